"""The forms of the posterior against slow loops, and the command on a small split."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.runs import expect_exit

from data import Split
from experiments import posterior
from experiments.posterior import (
    FORMS,
    TEACHER_FORMS,
    Pairs,
    expected_calibration_error,
    fit_split_evidence,
    fit_teacher_evidence,
    log_loss,
    log_odds,
    measure,
    teacher_log_odds,
)
from metrics.embeddings import Embeddings, gaussians_from_statistics, save_embeddings

OWNERS = np.array([0, 1, 0, 2, 1, 0, 2, 3, 3, 1, 2, 3])  # four photos, three captions each
STATISTICS = np.array([[20, 0.6, 0.8], [40, 0.1, 1.2]])


def some_embeddings(seed=0, statistics=STATISTICS):
    torch.manual_seed(seed)
    images, texts = F.normalize(torch.randn(4, 5), dim=1), F.normalize(torch.randn(12, 5), dim=1)
    split = Split("split", [f"{n}.jpg" for n in range(4)], [f"caption {n}" for n in range(12)],
                  OWNERS)
    return Embeddings(images, texts, split, statistics, None if statistics is None else 0.1)


def some_pairs():
    texts, images = np.nonzero(OWNERS[:, None] != np.arange(4))
    return Pairs(images, texts, (texts + images) % 3 == 0)


def density(x, points):
    """Return the density of the Gaussian fitted to `points` (n, d) at x (d,), but for a factor."""
    covariance = np.atleast_2d(np.cov(points.T))
    gap = np.array(x) - points.mean(axis=0)
    return (np.exp(-0.5 * gap @ np.linalg.inv(covariance) @ gap)
            / np.sqrt(np.linalg.det(covariance)))


@pytest.mark.parametrize("form", [form for form in FORMS if form != "published"])
def test_each_form_is_bayes_rule_over_all_pairs_of_the_split(form):
    embeddings, pairs = some_embeddings(), some_pairs()
    images = embeddings.image_embeds.double().numpy()
    texts = embeddings.text_embeds.double().numpy()
    to_mean, known = "one" not in form, FORMS[form]
    captions = [np.flatnonzero(OWNERS == photo) for photo in range(4)]
    same, different = [], []
    for photo in range(4):
        for text in range(12):
            own = [other for other in captions[photo] if other != text]
            s, each = images[photo] @ texts[text], texts[own] @ texts[text]
            found = same if OWNERS[text] == photo else different
            found += [(s, each.mean())] if to_mean else [(s, r) for r in each]
    same, different = (np.array(points)[:, list(known)] for points in (same, different))
    if not to_mean and known == (1,):
        assert len(same) == 4 * 3 * 2 and len(different) == 4 * 9 * 3
    evidence = fit_split_evidence(embeddings, pairs, to_mean)
    found = log_odds(form, evidence, []).reshape(len(pairs.is_match), -1)
    for (photo, text, _), odds in zip(zip(*pairs), found):
        s, each = images[photo] @ texts[text], texts[captions[photo]] @ texts[text]
        for r, value in zip([each.mean()] if to_mean else each, odds):
            x = np.array((s, r))[list(known)]
            wanted = math.log(density(x, same) / density(x, different))
            assert value == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def with_teacher(embeddings, seed=5):
    torch.manual_seed(seed)
    embeds = F.normalize(torch.randn(4, 6)[OWNERS] + 0.8 * torch.randn(12, 6), dim=1)
    embeddings.teacher_embeds = embeds.half()
    return embeddings


@pytest.mark.parametrize("form", TEACHER_FORMS)
def test_forms_with_a_teacher_are_bayes_rule_over_all_pairs_of_the_split(form, monkeypatch):
    monkeypatch.setattr("teacher.posterior.LEAST_PAIRS", 12)  # there are so many
    embeddings, pairs = with_teacher(some_embeddings()), some_pairs()
    images, texts, seen = (embeds.double().numpy() for embeds in (
        embeddings.image_embeds, embeddings.text_embeds, embeddings.teacher_embeds))
    known = list(TEACHER_FORMS[form])
    captions = [np.flatnonzero(OWNERS == photo) for photo in range(4)]

    def similarities(photo, text):
        own = [other for other in captions[photo] if other != text]
        return np.array([images[photo] @ texts[text], (texts[own] @ texts[text]).mean(),
                         (seen[own] @ seen[text]).mean()])[known]

    points = {True: [], False: []}
    for photo in range(4):
        for text in range(12):
            points[OWNERS[text] == photo].append(similarities(photo, text))
    same, different = np.array(points[True]), np.array(points[False])
    found = teacher_log_odds(form, fit_teacher_evidence(embeddings, pairs))
    means = np.array([same.mean(), different.mean()])
    weights = np.array([1 / same.var(ddof=1), -1 / different.var(ddof=1)])
    turn = (means @ weights) / weights.sum()  # where the ratio of two Gaussians turns back
    for photo, text, odds in zip(pairs.images, pairs.texts, found):
        x = similarities(photo, text)
        if form == "teacher":
            x = np.maximum(x, turn) if weights.sum() < 0 else np.minimum(x, turn)
        wanted = math.log(density(x, same) / density(x, different))
        assert odds == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_files_with_and_without_a_teacher_are_measured_and_measured_again(tmp_path, capsys):
    """Over results of either kind, and over nothing else."""
    save_embeddings(with_teacher(some_embeddings(0)), tmp_path / "taught.npz")
    save_embeddings(some_embeddings(1), tmp_path / "plain.npz")
    matches = [[] for _ in range(12)]
    for photo, text, true in zip(*some_pairs()):
        matches[text] += [int(photo)] if true else []
    (tmp_path / "test_matches.json").write_text(json.dumps({"matches": matches}))
    more = ["--matches", str(tmp_path / "test_matches.json"), "--output", str(tmp_path / "o.json")]
    for names in ("plain",), ("taught",), ("taught", "plain"):
        posterior.main([*(str(tmp_path / f"{name}.npz") for name in names), *more])
        kept, printed = json.loads((tmp_path / "o.json").read_text()), capsys.readouterr().out
        for name in names:
            forms = [*FORMS, *TEACHER_FORMS] if name == "taught" else [*FORMS]
            assert list(kept[name]) == forms
        columns = len(FORMS) + ("taught" in names) * len(TEACHER_FORMS)
        assert printed.splitlines()[3].count("|") == columns + 2
        assert ("nan" in printed) == (len(names) == 2)
    kept["taught"].pop("teacher")
    (tmp_path / "o.json").write_text(json.dumps(kept))
    before = (tmp_path / "o.json").read_bytes()
    expect_exit([str(tmp_path / "plain.npz"), *more], 2, capsys, ["--output"], posterior.main)
    assert (tmp_path / "o.json").read_bytes() == before


def test_the_published_form_is_that_of_the_statistics():
    embeddings, pairs = some_embeddings(), some_pairs()
    evidence = fit_split_evidence(embeddings, pairs, to_mean=True)
    found = log_odds("published", evidence, gaussians_from_statistics(STATISTICS))
    for photo, text, odds in zip(pairs.images, pairs.texts, found):
        s = float(embeddings.image_embeds[photo].double() @ embeddings.text_embeds[text].double())
        wanted = sum(sign * (-0.5 * (s - mean) ** 2 / (m2 / (count - 1))
                             - 0.5 * math.log(m2 / (count - 1)))
                     for sign, (count, mean, m2) in zip((1, -1), STATISTICS))
        assert odds == pytest.approx(wanted, abs=1e-6)


def test_calibration_error_and_log_loss_by_hand():
    true = np.array([True, False, True, False])
    p = np.array([0.9, 0.95, 0.1, 0.12])  # bins 13, 14, 1 and 1
    assert expected_calibration_error(true, p) == pytest.approx(
        (0.1 + 0.95 + 2 * abs(0.11 - 0.5)) / 4)
    assert log_loss(true, p) == pytest.approx(
        -np.log([0.9, 0.05, 0.1, 0.88]).mean())
    assert log_loss(np.array([True]), np.array([0.0])) < 30


def test_a_prior_is_chosen_on_one_half_and_measured_on_the_other(monkeypatch):
    """Labels that follow a form's own odds at a known prior choose that prior."""
    embeddings, pairs = some_embeddings(), some_pairs()
    monkeypatch.setattr(posterior, "PRIORS", (1e-4, 0.5))
    found = measure(embeddings, pairs, 0.2)
    assert found.keys() == FORMS.keys()
    halves = pairs.images % 2 == 0
    for form in ("published", "both, all captions"):
        assert found[form]["chosen_on"]["pairs"] == halves.sum()
        assert found[form]["measured_on"]["pairs"] == (~halves).sum()
        assert found[form]["chosen_prior"] == 0.5  # a third of the pairs are true
    assert found["published"]["prior"] == 0.1 and found["one caption"]["prior"] == 0.01
    above = sum(float(embeddings.image_embeds[i] @ embeddings.text_embeds[t]) > 0.6 - 0.2
                for i, t in zip(pairs.images, pairs.texts))
    assert found["published"]["above_pairs"] == above
    assert found["both, one caption"]["above_pairs"] == 3 * above


def test_the_command_prints_a_row_for_each_file_and_keeps_all(tmp_path, capsys):
    for name, seed in ("one", 0), ("two", 1):
        save_embeddings(some_embeddings(seed), tmp_path / f"{name}.npz")
    matches = [[] for _ in range(12)]
    for photo, text, true in zip(*some_pairs()):
        matches[text] += [int(photo)] if true else []
    (tmp_path / "test_matches.json").write_text(json.dumps({"matches": matches}))
    files = [str(tmp_path / "one.npz"), str(tmp_path / "two.npz")]
    posterior.main([*files, "--matches", str(tmp_path / "test_matches.json"), "--output",
                    str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    kept = json.loads((tmp_path / "out.json").read_text())
    assert kept.keys() == {"one", "two"}
    for name in kept:
        value = kept[name]["published"]["ap"]
        assert f"| {name} | {value:.3f} |" in printed
    mean = np.mean([kept[name]["both, all captions"]["ece"] for name in kept])
    row = printed.split("\nECE:\n")[1].split("| mean |")[1].split("\n")[0]
    assert row.endswith(f"| {mean:.3f} |")


@pytest.mark.parametrize("flags, named", [
    ([], ["--judgements", "--matches"]),
    (["--matches", "nowhere.json"], ["--matches nowhere.json"]),
    (["--judgements", "nowhere.json"], ["nowhere.json"])])
def test_a_mistake_is_one_line(tmp_path, capsys, flags, named):
    save_embeddings(some_embeddings(), tmp_path / "one.npz")
    expect_exit([str(tmp_path / "one.npz"), *flags], 2, capsys, named, posterior.main)


def test_embeddings_that_cannot_be_measured_are_named(tmp_path, capsys):
    (tmp_path / "test_matches.json").write_text(json.dumps(
        {"matches": [[(int(OWNERS[n]) + 1) % 4] for n in range(12)]}))
    none = some_embeddings(statistics=None)
    uneven = some_embeddings()
    uneven.split = Split("split", none.split.images, none.split.captions, OWNERS.clip(0, 2))
    for embeddings, named in (none, "statistics"), (uneven, "captions"):
        save_embeddings(embeddings, tmp_path / "one.npz")
        expect_exit([str(tmp_path / "one.npz"), "--matches", str(tmp_path / "test_matches.json")],
                    2, capsys, ["one.npz", named], posterior.main)
