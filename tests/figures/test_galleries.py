"""What figures and galleries show, against slow loops from the formulas."""

import numpy as np
from helpers import oracle
import pytest
import torch
from helpers.cases import CASES, FLOOR, SETTINGS, directions, embeddings, make_case, oracle_weights
from PIL import Image

from data import Split
from figures.galleries import Library, Pairs, negative_rows, probability, retrieval_rows
from figures.picks import fixed_choice, picks, top_wrong_leads
from figures.sheets import thumbnail
from fne_loss import FNELoss
from training.monitor import BINS, count_similarities


def test_the_histograms_count_what_the_statistics_take():
    """Bin by bin against a loop, and in number and mean against the Gaussians of the same data."""
    torch.manual_seed(3)
    criterion, counts = FNELoss(), torch.zeros(2, BINS, dtype=torch.int64)
    wanted = np.zeros((2, BINS), dtype=int)
    for ids in ([4], [5, 5], [0, 0, 1, 2, 2, 3, 4], list(range(20)), list(range(30))):
        images, texts, _, _ = embeddings(len(ids), 6, torch.float32)
        criterion.update_statistics(images, texts, torch.tensor(ids))
        count_similarities(counts, images, texts, torch.tensor(ids))
        similarity = (images @ texts.T).tolist()
        for row in range(len(ids)):
            if oracle.is_confident(similarity, row, ids):
                wanted[0, int((similarity[row][row] + 1) / 2 * BINS)] += 1
                for matrix in (similarity, oracle.transposed(similarity)):
                    for found in [oracle.negatives(matrix, row, ids)]:
                        if found:
                            wanted[1, int((max(found) + 1) / 2 * BINS)] += 1
    assert (counts.numpy() == wanted).all() and wanted[0].sum() > 10
    centres = (torch.arange(BINS) + 0.5) * 2 / BINS - 1
    for row, gaussian in zip(counts, (criterion.positive, criterion.negative)):
        assert row.sum() == gaussian.count
        assert float((row * centres).sum() / row.sum()) == pytest.approx(
            float(gaussian.mean), abs=1 / BINS)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("count", [1, 3])
def test_picks_are_those_of_a_slow_loop_over_the_bank(name, count, sampled):
    """The draw is replaced by the heaviest candidate, so that a loop can tell what it must be."""
    case = make_case(name)
    images, texts, image_keys, text_keys, ids = case.inputs
    shown = torch.arange(len(case.candidate_ids)) // 2  # neighbours are copies of each other
    for i2t, (anchors, candidates) in zip((True, False), directions(case)):
        got = picks(case.criterion, images if i2t else texts, text_keys if i2t else image_keys,
                    case.bank.text_keys if i2t else case.bank.image_keys, ids,
                    case.bank.image_ids, shown, count)
        heavy = oracle_weights(case, anchors, candidates)
        hardest_of = oracle.fallbacks(anchors, candidates, case.ids, case.candidate_ids)
        for row, similarity in enumerate(oracle.similarities(anchors, candidates)):
            allowed = [c for c in range(len(candidates))
                       if not oracle.is_excluded(case.ids[row], case.candidate_ids[c])]
            drawn = None if not allowed else (
                max(allowed, key=heavy[row].__getitem__) if any(heavy[row]) else hardest_of[row])
            assert got[row].drawn == drawn
            assert got[row].hardest == distinct(allowed, similarity, count)
            posterior = [oracle.posterior(value, *case.statistics, SETTINGS["prior"])
                         for value in similarity]
            seen = {c // 2 for c in [drawn, *got[row].hardest[:1]] if c is not None}
            cut = case.statistics[0].mean - SETTINGS["margin"]
            suspects = [c for c in allowed
                        if posterior[c] > FLOOR and similarity[c] > cut and c // 2 not in seen]
            assert got[row].suspects == distinct(suspects, posterior, count)


def distinct(candidates, scores, count):
    """The highest scores first, one of each pair of neighbours."""
    found = []
    for candidate in sorted(candidates, key=scores.__getitem__, reverse=True):
        if candidate // 2 not in [other // 2 for other in found]:
            found.append(candidate)
    return found[:count]


def test_picks_take_no_random_number_and_change_nothing():
    case = make_case("wrapped")
    images, _, _, text_keys, ids = case.inputs
    before = torch.get_rng_state(), *(buffer.clone() for buffer in case.criterion.buffers())
    arguments = (case.criterion, images, text_keys, case.bank.text_keys, ids, case.bank.image_ids,
                 torch.arange(len(case.candidate_ids)))
    first, torch_state = picks(*arguments), torch.get_rng_state()
    torch.randn(5)
    assert [pick.drawn for pick in picks(*arguments)] == [pick.drawn for pick in first]
    after = torch_state, *case.criterion.buffers()
    assert all(torch.equal(a, b) for a, b in zip(before, after))


def test_without_trusted_statistics_nothing_is_suspected():
    case = make_case("wrapped")
    images, _, _, text_keys, ids = case.inputs
    arguments = (images, text_keys, case.bank.text_keys, ids, case.bank.image_ids,
                 torch.arange(len(case.candidate_ids)))
    case.criterion.min_count = int(case.criterion.positive.count)
    early, control = picks(case.criterion, *arguments), picks(None, *arguments)
    assert all(pick.posterior is None and pick.suspects == [] for pick in early + control)
    assert all(pick.drawn is not None for pick in early)
    assert all(pick.drawn is None and len(pick.hardest) == 3 for pick in control)


def test_the_far_tail_of_a_wide_positive_gaussian_is_no_suspicion():
    """Below both Gaussians the wider one wins again, at a similarity that is never drawn."""
    criterion = FNELoss(prior=0.5, min_count=1)
    criterion.positive.update(torch.tensor([0.5, 0.9]))
    criterion.negative.update(torch.tensor([0.4, 0.44]))
    angles = torch.tensor([0.0, 3.0, 0.3])
    bank_keys = torch.stack([angles.cos(), angles.sin()], dim=1)
    anchor = torch.tensor([[1.0, 0.0]])
    [pick] = picks(criterion, anchor, anchor, bank_keys, torch.tensor([9]), torch.tensor([1, 2, 3]),
                   torch.arange(4))
    assert pick.posterior[2] > 0.99 and float(pick.similarity[2]) < -0.9
    assert pick.drawn != 2 and 2 not in pick.suspects and pick.hardest == [1, 3, 2]


def test_leads_of_wrong_results():
    rng = np.random.default_rng(0)
    queries, items = rng.normal(size=(7, 4)), rng.normal(size=(9, 4))
    right = rng.random((7, 9)) < 0.3
    right[:, 0] = True
    leads, found = top_wrong_leads(*map(torch.from_numpy, (queries, items, right)))
    for row, similarity in enumerate(queries @ items.T):
        wrong = np.where(right[row], -np.inf, similarity)
        assert found[row] == wrong.argmax()
        assert float(leads[row]) == pytest.approx(wrong.max() - similarity[right[row]].max())


# ------------------------------------------------------------------------------------------- rows


@pytest.fixture
def library(tmp_path):
    """Four photos, two captions each; caption 7 of photo 3 is true of photo 0 too."""
    photos = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(photos):
        Image.new("RGB", (40, 20), (60 * number, 0, 0)).save(path)
    owners = np.repeat(np.arange(4), 2)
    matches = owners[:, None] == np.arange(4)
    matches[7, 0] = True
    split = Split(tmp_path, [path.name for path in photos], [f"text {n}" for n in range(8)],
                  owners, matches)
    return Library(split, photos)


def test_retrieval_rows_are_ranked_and_marked(library):
    """Photo 0 along x; captions at angles that put 7, 1, 4, 0 and 2 first."""
    angles = {7: 0.1, 1: 0.2, 4: 0.3, 0: 0.4, 2: 0.5, 3: 0.9, 5: 1.0, 6: 1.1}
    texts = torch.tensor([[np.cos(angles[n]), np.sin(angles[n])] for n in range(8)])
    images = torch.tensor([[1.0, 0], [0, 1.0], [-1.0, 0], [np.cos(0.3), np.sin(0.3)]],
                          dtype=texts.dtype)
    [row] = retrieval_rows("i2t", library, images, texts, [1])
    assert [cell.caption for cell in row] == [f"text {n}" for n in (1, 7, 1, 4, 0, 2)]
    assert [cell.right for cell in row] == [None, True, True, False, True, False]
    assert row[1].photo == library.photos[3] and row[1].numbers == "s 1.00"
    [row] = retrieval_rows("t2i", library, images, texts, [7])  # 0.1 away from photo 0
    assert [cell.photo.name for cell in row] == [f"{n}.png" for n in (3, 0, 3, 1, 2)]
    assert [cell.right for cell in row] == [None, True, True, False, False]
    assert row[1].caption == "text 0" and row[2].caption == "text 6"


def test_negative_rows_name_their_cells_and_mark_true_matches(library):
    """Photo 0 against the captions of photos 3, 2 and 1, most similar first, from a bank."""
    anchors = keys = torch.tensor([[1.0, 0.0]])
    angles = torch.tensor([0.1, 0.2, 0.3, 0.0])
    bank_keys = torch.stack([angles.cos(), angles.sin()], dim=1)
    pairs = Pairs(torch.tensor([0]), torch.tensor([1]))
    bank = Pairs(torch.tensor([3, 2, 1, -100]), torch.tensor([7, 4, 2, -100]))
    [row] = negative_rows("i2t", library, None, anchors, keys, bank_keys, pairs, bank)
    assert [(cell.heading, cell.caption, cell.right) for cell in row] == [
        ("own pair", "text 1", None), ("hardest", "text 7", True), ("hardest", "text 4", False),
        ("hardest", "text 2", False)]
    criterion = FNELoss(prior=0.5, min_count=0)
    for gaussian, mean in ((criterion.positive, 0.98), (criterion.negative, 0.0)):
        gaussian.update(torch.tensor([mean - 0.1, mean + 0.1]))
    [row] = negative_rows("i2t", library, criterion, anchors, keys, bank_keys, pairs, bank)
    assert [cell.heading for cell in row[:3]] == ["own pair", "drawn", "hardest"]
    assert {cell.heading for cell in row[3:]} == {"false negative?"}
    assert {cell.caption for cell in row[1:]} == {"text 7", "text 4", "text 2"}
    assert all("p 1.00" in cell.numbers for cell in row[1:])


def test_a_bank_that_does_not_know_its_captions(library):
    cell = library.cell("drawn", "", 2, -100, library.is_match(2, -100))
    assert "not recorded" in cell.caption and cell.right is False
    assert library.cell("drawn", "", 9000, -100, None).photo is None


@pytest.mark.parametrize("value, text", [(0.5, "0.50"), (0.0951, "0.10"), (0.03, "0.03"),
                                         (2.3e-5, "2e-05"), (1.0, "1.00"), (0.0, "0")])
def test_probabilities_keep_a_digit_that_matters(value, text):
    assert probability(value) == text


def test_the_handful_is_always_the_same():
    before = torch.get_rng_state()
    assert fixed_choice(4, 100) == fixed_choice(4, 100) and len(set(fixed_choice(4, 100))) == 4
    assert fixed_choice(4, 3) and torch.equal(before, torch.get_rng_state())


def test_thumbnails_fit_and_a_lost_photo_is_grey(library, tmp_path):
    assert thumbnail(library.photos[1], 80).size == (80, 40)
    (tmp_path / "broken.png").write_bytes(library.photos[1].read_bytes()[:50])
    for path in (None, tmp_path / "gone.png", tmp_path / "broken.png"):
        image = thumbnail(path, 30)
        assert image.size == (30, 30) and image.getcolors() == [(900, (154, 154, 154))]
