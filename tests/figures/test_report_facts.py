"""What a report says of a run comes from its embeddings, and from nothing else."""

import datetime
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.runs import command, expect_exit
from PIL import Image

import evaluation
import train
from common.options import parse_scoring
from common.version import commit
from data import Split
from figures.galleries import BOTH, CAPTION, PHOTO, Library, Pairs, negative_rows, retrieval_rows
from figures.picks import suspicion
from figures.plots import calibration_figure, distribution_figure
from figures.report import cell_html, fitted_criterion, write_report
from fne_loss import FNELoss
from metrics.embeddings import Embeddings, read_embeddings, save_embeddings
from metrics.facts import FACT_TYPES, METHOD_FACTS, facts_array, read_facts, run_summary
from metrics.true_matches import metric_label

FACTS = {"dataset": "shapes", "split": "test", "phase": "FNE", "epoch": 9, "num_epochs": 10,
         "step": 1404, "loss": "fne", "margin": 0.25, "tau": 0.7, "posterior_floor": 0.002,
         "nums_right_sims": 150, "batch_size_train": 6, "date": "2026-11-20", "commit": "abc123"}


def scored(tmp_path, facts=FACTS, hub=False):
    """Return embeddings of twelve photos with two captions each, and the photos.

    With `hub`, photo 3 and its caption 6 come first for nearly every query.
    """
    torch.manual_seed(0)
    photos = [tmp_path / f"{number}.png" for number in range(12)]
    for number, path in enumerate(photos):
        Image.new("RGB", (50, 40), (20 * number, 99, 0)).save(path)
    owners = np.repeat(np.arange(12), 2)
    images = F.normalize(torch.randn(12, 8) + 1, dim=1)
    texts = F.normalize(images[owners] + 0.6 * torch.randn(24, 8), dim=1)
    if hub:
        images[3] = texts[6] = F.normalize(images.mean(dim=0), dim=0)
    split = Split(tmp_path, [path.name for path in photos], [f"caption {n}" for n in range(24)],
                  owners)
    # count, mean and m2: N+ = 0.7 +- 0.1, N- = 0.5 +- 0.1
    statistics = np.array([[500, 0.7, 4.99], [1000, 0.5, 9.99]])
    return Embeddings(images, texts, split, statistics, 0.05, dict(facts)), photos


def page(embeddings, photos, tmp_path, judgements=None):
    """Write a report; return its html, its text without tags, and the metrics."""
    options, _ = parse_scoring("", ["--embeddings", "e.npz"])
    options.judgements = judgements
    metrics, _ = evaluation.all_metrics(embeddings, options)
    place = write_report(embeddings, metrics, "a title", photos, tmp_path / "page")
    assert place == tmp_path / "page" / "report.html"
    html = place.read_text(encoding="utf-8")
    return html, " ".join(re.sub("<[^>]*>", " ", html[html.index("<body>"):]).split()), metrics


# ------------------------------------------------------------------------------------------ facts


def test_the_report_repeats_the_facts_of_the_embeddings(tmp_path):
    _, text, _ = page(*scored(tmp_path), tmp_path)
    for fact in ("epoch 9/10, FNE, step 1,404", "margin 0.25", "tau 0.7", "posterior_floor 0.002",
                 "prior 0.05", "nums_right_sims 150", "2026-11-20, code at commit abc123"):
        assert fact in text
    assert "image_res" not in text and "seed" not in text  # not among these facts


def test_no_default_is_stated_as_a_fact(tmp_path):
    """The report of another program's embeddings names nothing of the published setting."""
    embeddings, photos = scored(tmp_path, {})
    embeddings.statistics = embeddings.prior = None
    _, text, _ = page(embeddings, photos, tmp_path)
    text = text.replace(commit(), "")  # its digits may be any
    for name in "margin", "tau", "vit-base", "bert", "384", "3407", "epoch", "posterior_floor":
        assert name not in text


@pytest.mark.parametrize("missing", METHOD_FACTS)
def test_without_an_option_that_the_draw_needs_nothing_is_drawn(tmp_path, missing):
    embeddings, photos = scored(tmp_path, {k: v for k, v in FACTS.items() if k != missing})
    assert fitted_criterion(embeddings) is None
    _, text, _ = page(embeddings, photos, tmp_path)
    assert "drawn" not in text


def test_the_draw_is_made_with_the_options_of_the_run(tmp_path):
    criterion = fitted_criterion(scored(tmp_path)[0])
    assert (criterion.margin, criterion.tau, criterion.prior) == (0.25, 0.7, 0.05)
    assert (criterion.posterior_floor, criterion.min_count) == (0.002, 150)
    _, text, _ = page(*scored(tmp_path), tmp_path)
    assert "batches of 6" in text


def test_the_report_names_its_date_and_its_commit(tmp_path):
    _, text, _ = page(*scored(tmp_path), tmp_path)
    assert f"report {datetime.date.today().isoformat()}, code at commit {commit()}" in text


def test_the_report_of_a_warm_ups_checkpoint_says_so(tmp_path):
    _, text, _ = page(*scored(tmp_path, FACTS | {"phase": "triplet, hardest negative"}), tmp_path)
    assert "FNE would believe" in text and "FNE believes" not in text
    assert "warm-up (triplet, hardest negative)" in text and "FNE would draw" in text
    _, text, _ = page(*scored(tmp_path), tmp_path)
    assert "FNE believes" in text and "warm-up" not in text and "would draw" not in text


def test_the_facts_of_a_run_reach_its_report(data, tmp_path, capsys):
    """Options and epoch go from the checkpoint through the embeddings file to the report."""
    train.main(command(data, tmp_path, "--num_epochs", "2", "--tau", "0.9", "--margin", "0.15",
                       "--quiet"))
    saved = str(tmp_path / "e.npz")
    for name, position in (("checkpoint", "epoch 2/2, FNE"), ("model_best", "epoch ")):
        evaluation.main([str(tmp_path / f"{name}.pth.tar"), "--data_path", str(data), "--split",
                         "val", "--save_embeddings", saved, "--workers", "0"])
        assert position in capsys.readouterr().out
    evaluation.main([str(tmp_path / "checkpoint.pth.tar"), "--data_path", str(data), "--split",
                     "val", "--save_embeddings", saved, "--workers", "0"])
    embeddings = read_embeddings(tmp_path / "e.npz")
    assert embeddings.facts.keys() <= FACT_TYPES.keys()
    expected = {"dataset": "shapes", "split": "val", "phase": "FNE", "epoch": 2, "num_epochs": 2,
                "step": 14, "tau": 0.9, "margin": 0.15, "loss": "fne", "batch_size_train": 16,
                "posterior_floor": 1e-3, "nums_right_sims": 2, "queue_size": 40, "seed": 1,
                "image_encoder": "small-convnext", "embed_size": 24, "commit": commit()}
    assert {name: embeddings.facts[name] for name in expected} == expected
    capsys.readouterr()
    evaluation.main(["--embeddings", saved, "--report", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"shapes val, {saved}", "  epoch 2/2, FNE"]
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "tau 0.9" in text and "margin 0.15" in text and "queue_size 40" in text


# ------------------------------------------------------------------------------- the facts' file


def test_facts_survive_the_file(tmp_path):
    embeddings, _ = scored(tmp_path)
    save_embeddings(embeddings, tmp_path / "e.npz")
    assert read_embeddings(tmp_path / "e.npz").facts == FACTS
    embeddings.facts = {}
    save_embeddings(embeddings, tmp_path / "e.npz")
    assert np.load(tmp_path / "e.npz")["facts"] == "{}"
    assert read_embeddings(tmp_path / "e.npz").facts == {}


def test_facts_of_a_later_version_are_ignored():
    assert read_facts(np.array(json.dumps(FACTS | {"later": [1]})), "x") == FACTS


@pytest.mark.parametrize("name", ["a\nb", "x" * 1000])
def test_a_fact_that_could_not_be_read_again_is_not_written(name):
    """An encoder's folder may have any name that a file can have."""
    assert read_facts(facts_array(FACTS | {"image_encoder": name}), "x") == FACTS


@pytest.mark.parametrize("text", ["", "{", "[1]", "7", "null", '"a"', "[" * 50_000,
                                  '{"tau": ' + "1" * 200_000 + "}"])
def test_facts_that_are_no_json_object_end_in_one_line(tmp_path, capsys, text):
    embeddings, _ = scored(tmp_path)
    save_embeddings(embeddings, tmp_path / "e.npz")
    arrays = dict(np.load(tmp_path / "e.npz")) | {"facts": np.array(text)}
    np.savez(tmp_path / "e.npz", **arrays)
    expect_exit(["--embeddings", str(tmp_path / "e.npz")], 2, capsys, ["e.npz", "facts"],
                evaluation.main)


@pytest.mark.parametrize("name, value", [
    ("margin", "a"), ("margin", -0.1), ("margin", True), ("tau", [1]), ("epoch", 1.5),
    ("epoch", 2**70), ("phase", 3), ("phase", "a\x1b[2J"), ("commit", "x" * 1000),
    ("batch_size_train", -1), ("margin", float("nan")), ("margin", float("inf"))])
def test_an_impossible_fact_ends_in_one_line(tmp_path, capsys, name, value):
    save_embeddings(scored(tmp_path)[0], tmp_path / "e.npz")
    text = np.array(json.dumps(FACTS | {name: value}))
    np.savez(tmp_path / "e.npz", **dict(np.load(tmp_path / "e.npz")) | {"facts": text})
    expect_exit(["--embeddings", str(tmp_path / "e.npz")], 2, capsys, ["e.npz", name],
                evaluation.main)


@pytest.mark.parametrize("facts, text", [
    ({}, ""), ({"checkpoint": "released"}, "released"), ({"epoch": 3}, "epoch 3"),
    ({"phase": "FNE", "epoch": 3, "num_epochs": 25}, "epoch 3/25, FNE")])
def test_the_text_of_a_checkpoints_place_in_its_run(facts, text):
    assert run_summary(facts) == text


def test_facts_are_escaped(tmp_path):
    html, text, _ = page(*scored(tmp_path, FACTS | {"text_encoder": "<i>mine</i>"}), tmp_path)
    assert "&lt;i&gt;mine&lt;/i&gt;" in html and "<i>" not in html


# ------------------------------------------------------------------------------- what is shown


def test_the_report_holds_the_agreement_with_people(tmp_path):
    judged = [{"image": f"{a}.png", "caption_of": f"{(a + step) % 12}.png", "caption_no": 0,
               "yes": int(step == 1), "no": 2 * int(step != 1)}
              for a in range(12) for step in (1, 2, 3)]
    (tmp_path / "j.json").write_text(json.dumps(judged))
    _, text, metrics = page(*scored(tmp_path), tmp_path, tmp_path / "j.json")
    assert "36 pairs of 12 photos" in text and "called 12 of them a match" in text
    for score in metrics["judgements"].keys() & {"similarity", "posterior", "captions", "evidence"}:
        for key in "ap", "auroc", "spearman":
            value = "{:.3f} [{:.3f}, {:.3f}]".format(*metrics["judgements"][score][key])
            assert value in text, (score, key)
    assert all(label in text for label in ("AP", "AUROC", "Spearman's rho".replace("'", "&#x27;")))
    assert "Do people agree" not in page(*scored(tmp_path), tmp_path)[1]


@pytest.mark.parametrize("key, label", [
    ("map_at_r", "mAP@R"), ("r_precision", "R-Precision"), ("eccv_map_at_r", "ECCV mAP@R"),
    ("eccv_r1", "ECCV R@1"), ("cxc_r10", "CxC R@10"), ("other", "other")])
def test_metrics_have_their_names(key, label):
    assert metric_label(key) == label


def test_no_photo_is_shown_twice_among_the_mistakes(tmp_path):
    """One photo, and one caption, come first nearly everywhere."""
    html, _, _ = page(*scored(tmp_path, hub=True), tmp_path)
    parts = html.split("<h2>Most confident mistakes")[1:]
    assert len(parts) == 2
    for part in parts:
        part = part.split("<h2>")[0]
        wrong = int(re.search(r"For (\d+) of", part).group(1))
        shown = re.findall(r'src="(data:image/jpeg[^"]+)"', part)
        assert wrong > 6 and len(shown) >= 2
        assert len(shown) == len(set(shown))


def test_the_largest_leads_are_the_ones_shown(tmp_path):
    html, _, _ = page(*scored(tmp_path), tmp_path)
    for part in html.split("<h2>Most confident mistakes")[1:]:
        leads = [float(lead) for lead in re.findall(r'class="soft">\+([\d.]+)<', part)]
        assert leads == sorted(leads, reverse=True)


def test_what_is_compared_is_marked(tmp_path):
    """A candidate's photo is faint in i2t, where captions are compared; its caption is in t2i."""
    embeddings, photos = scored(tmp_path)
    library = Library(embeddings.split, photos)
    pairs, owners = library.pairs([0, 5]), torch.from_numpy(embeddings.split.image_of_text)
    images, texts = embeddings.image_embeds, embeddings.text_embeds
    own = (pairs.image_ids, pairs.text_ids)
    for side, compared, arguments in (
            ("i2t", CAPTION, (images[own[0]], texts[own[1]], texts, pairs,
                              Pairs(owners, torch.arange(24)))),
            ("t2i", PHOTO, (texts[own[1]], images[own[0]], images, pairs,
                            Pairs(torch.arange(12), library.first_texts())))):
        criterion = fitted_criterion(embeddings)
        for rows in (negative_rows(side, library, criterion, *arguments),
                     retrieval_rows(side, library, images, texts, [0, 5])):
            for row in rows:
                assert [cell.compared for cell in row[1:]] == [compared] * len(row[1:])
                assert len(row) > 1
        assert rows[0][0].compared == ({CAPTION, PHOTO} - {compared}).pop()  # what is asked
    cell = library.cell("a", "b", 0, 0, None, CAPTION)
    assert re.search(r'<img[^>]*class="faint"', cell_html(cell))
    assert 'figcaption class="faint"' not in cell_html(cell)
    cell = library.cell("a", "b", 0, 0, None, PHOTO)
    assert 'figcaption class="faint"' in cell_html(cell) and '<img alt="" src' in cell_html(cell)
    assert "faint" not in cell_html(library.cell("a", "b", 0, 0, None, BOTH))


def test_a_candidate_is_called_a_match_only_if_its_posterior_is_above_the_prior(tmp_path):
    """A floor below the prior, as in `shapes`, is not enough."""
    embeddings, _ = scored(tmp_path, FACTS | {"posterior_floor": 1e-3})
    criterion = fitted_criterion(embeddings)
    assert criterion.prior == 0.05 and suspicion(criterion) == 0.05
    library = Library(embeddings.split, None)
    pairs, owners = library.pairs(list(range(24))), embeddings.split.image_of_text
    rows = negative_rows("i2t", library, criterion, embeddings.image_embeds[owners],
                         embeddings.text_embeds, embeddings.text_embeds, pairs,
                         Pairs(torch.from_numpy(owners), torch.arange(24)))
    named = [(cell.heading, float(cell.numbers.split("p ")[1])) for row in rows for cell in row
             if cell.heading.endswith("a match")]
    assert {heading for heading, _ in named} == {"perhaps a match", "likely a match"}
    for heading, p in named:
        assert (p >= 0.5) if heading == "likely a match" else (0.05 <= p <= 0.5), (heading, p)
    drawn = [float(cell.numbers.split("p ")[1]) for row in rows for cell in row
             if cell.heading == "drawn"]
    assert min(drawn) < 0.05  # there are candidates above the floor that nobody calls a match


def test_with_the_published_prior_the_floor_decides():
    assert suspicion(FNELoss()) == 1e-3 > FNELoss().prior


def test_the_legend_names_both_lines_of_the_posterior(tmp_path):
    criterion = fitted_criterion(scored(tmp_path)[0])
    figure = distribution_figure(np.ones((2, 400), dtype=np.int64), criterion, "a title")
    labels = {text.get_text() for axes in figure.axes for text in axes.get_legend().get_texts()}
    assert "above 0.002 it sets the weight" in labels
    assert "above the prior, s speaks for a match" in labels
    assert not any("false negative above" in label for label in labels)
    heights = {line.get_label(): line.get_ydata()[0] for line in figure.axes[1].lines}
    assert heights["above the prior, s speaks for a match"] == 0.05
    assert heights["above 0.002 it sets the weight"] == 0.002


def test_a_bin_without_a_match_is_not_drawn_as_a_small_share():
    rows = [{"mean_posterior": p, "match_share": share, "pairs": pairs}
            for p, share, pairs in ((1e-5, 0.03, 900), (0.02, 0.5, 61), (0.1, 0.0, 1))]
    lines = {line.get_label(): line for line in calibration_figure(rows, "share").axes[0].lines}
    assert list(lines["the posterior"].get_ydata()) == [0.03, 0.5]
    assert list(lines["none of a bin's pairs"].get_xdata()) == [0.1]
    some = calibration_figure(rows[:2], "share").axes[0].lines
    assert [line.get_label() for line in some] == ["perfect", "the posterior"]
