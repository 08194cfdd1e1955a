"""The picture that opens the README: its rows and numbers against slow loops, and its command."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.runs import contents, expect_exit
from PIL import Image

from data import read_split
from figures import opening
from figures.opening import choose_rows, draw_for_captions, true_match_shares
from figures.picks import fixed_choice, suspicion
from figures.report import fitted_criterion
from inputs.shapes import make_shapes
from metrics.embeddings import Embeddings, save_embeddings

FACTS = {"dataset": "shapes", "split": "test", "phase": "FNE", "margin": 0.2, "tau": 0.5,
         "posterior_floor": 1e-3, "nums_right_sims": 200, "batch_size_train": 6}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """The folder of `shapes` with forty test photos, a tenth of which a caption is true of."""
    sizes = {"train": 1, "val": 1, "test": 40}
    return make_shapes(tmp_path_factory.mktemp("shapes") / "shapes", 0, sizes, 32, ambiguity=10)


@pytest.fixture(scope="module")
def embeddings(shapes):
    """The test split of `shapes`: a caption lies near all photos that it is true of."""
    split = read_split("shapes", "test", shapes)
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(len(split.images), 8, generator=generator), dim=1)
    texts = torch.from_numpy(split.matches).float() @ images + 0.5 * images[split.image_of_text]
    noise = 0.3 * torch.randn(texts.shape, generator=generator)
    # count, mean and m2: N+ = 0.7 +- 0.2, N- = 0.2 +- 0.2
    statistics = np.array([[500, 0.7, 19.96], [1000, 0.2, 39.96]])
    return Embeddings(images, F.normalize(texts + noise, dim=1), split, statistics, 0.05,
                      dict(FACTS))


def gaussian(x, mean):
    return np.exp(-0.5 * ((x - mean) / 0.2) ** 2)


def slow_row(embeddings, text):
    """Similarities, posteriors and draw chances of a caption, from the formulas; 0 for its photo.
    """
    own = int(embeddings.split.image_of_text[text])
    s = (embeddings.image_embeds @ embeddings.text_embeds[text]).double().numpy()
    p = 0.05 * gaussian(s, 0.7) / (0.05 * gaussian(s, 0.7) + 0.95 * gaussian(s, 0.2))
    weights = np.exp(-0.5 * np.where(p > 1e-3, p, (s - s[own]) ** 2)) * (s > 0.7 - 0.2)
    weights[own] = 0
    return own, s, p, weights / max(weights.sum(), 1e-12)


def test_posteriors_and_chances_are_those_of_the_formulas(embeddings):
    draws = draw_for_captions(embeddings, fitted_criterion(embeddings))
    for text in range(len(embeddings.split.captions)):
        own, s, p, chances = slow_row(embeddings, text)
        assert draws.posterior[text].numpy() == pytest.approx(p, abs=1e-5)
        assert draws.chance[text].numpy() == pytest.approx(chances, abs=1e-5)
        assert draws.drawn[text] != own
        assert chances[draws.drawn[text]] > 0 or not chances.any()


def test_a_row_begins_with_a_hardest_negative_that_is_a_true_match(embeddings):
    criterion, matches = fitted_criterion(embeddings), embeddings.split.matches
    draws = draw_for_captions(embeddings, criterion)
    rows = choose_rows(draws, torch.from_numpy(matches), criterion, 1000)
    assert 1 < len(rows) < len(matches)
    order = fixed_choice(len(matches), len(matches))
    assert [row.text for row in rows] == sorted([row.text for row in rows], key=order.index)
    assert len({row.hardest.image for row in rows}) == len(rows)
    for row in rows:
        own, s, p, chances = slow_row(embeddings, row.text)
        others = [image for image in np.argsort(-s) if image != own]
        assert row.hardest.image == others[0] and matches[row.text, others[0]]
        candidates = [row.hardest, row.drawn, *row.spared]
        assert len({own, *(candidate.image for candidate in candidates)}) == 5
        for candidate in candidates:
            assert candidate.posterior == pytest.approx(p[candidate.image], abs=1e-5)
            assert candidate.chance == pytest.approx(chances[candidate.image], abs=1e-5)
            assert candidate.is_match == matches[row.text, candidate.image]
        rest = [image for image in np.argsort(-p) if s[image] > 0.5
                and image not in (own, row.hardest.image, row.drawn.image)]
        assert [candidate.image for candidate in row.spared] == rest[:2]
        assert min(candidate.posterior for candidate in row.spared) > suspicion(criterion)


def test_shares_of_true_matches_are_counted_caption_by_caption(embeddings):
    matches = embeddings.split.matches
    hardest, drawn = [], []
    for text in range(len(matches)):
        own, s, _, chances = slow_row(embeddings, text)
        s[own] = -np.inf
        hardest.append(matches[text, s.argmax()])
        drawn.append(chances[matches[text]].sum())
    draws = draw_for_captions(embeddings, fitted_criterion(embeddings))
    shares = true_match_shares(draws, torch.from_numpy(matches))
    assert shares == pytest.approx((np.mean(hardest), np.mean(drawn)), abs=1e-6)
    assert 0 < shares[1] < shares[0]


def test_the_command_writes_the_same_picture_each_time(embeddings, shapes, tmp_path, capsys):
    save_embeddings(embeddings, tmp_path / "e.npz")
    command = [str(tmp_path / "e.npz"), "--data_path", str(shapes), "--rows", "2", "--output"]
    opening.main([*command, str(tmp_path / "a.jpg")])
    opening.main([*command, str(tmp_path / "b.jpg")])
    picture = Image.open(tmp_path / "a.jpg")
    assert picture.format == "JPEG" and picture.width == opening.WIDTH
    assert (tmp_path / "a.jpg").read_bytes() == (tmp_path / "b.jpg").read_bytes()
    assert capsys.readouterr().out.count("\n") == 2


@pytest.mark.parametrize("flags, named", [
    (["--rows", "0"], "--rows 0"), (["--rows", "20"], "--rows 20"),
    (["--output", "{tmp}/theirs.jpg"], "--output"), (["--data_path", "{tmp}"], "shapes_test")])
def test_a_mistake_is_one_line(embeddings, shapes, tmp_path, capsys, flags, named):
    save_embeddings(embeddings, tmp_path / "e.npz")
    (tmp_path / "theirs.jpg").write_text("text")
    before = contents(tmp_path)
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    expect_exit([str(tmp_path / "e.npz"), "--data_path", str(shapes), "--output",
                 str(tmp_path / "new.jpg"), *flags], 2, capsys, [named], opening.main)
    assert contents(tmp_path) == before


def test_embeddings_without_statistics_are_named(embeddings, shapes, tmp_path, capsys):
    plain = Embeddings(embeddings.image_embeds, embeddings.text_embeds, embeddings.split)
    save_embeddings(plain, tmp_path / "plain.npz")
    expect_exit([str(tmp_path / "plain.npz"), "--data_path", str(shapes), "--output",
                 str(tmp_path / "new.jpg")], 2, capsys, ["plain.npz"], opening.main)
