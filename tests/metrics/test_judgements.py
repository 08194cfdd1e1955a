"""People's judgements: how they are read, and how scores are compared with them."""

import json

import numpy as np
import pytest
from helpers.judged import PAIRS, as_json, small_embeddings, small_split
from scipy import stats

from common.errors import InputError
from data import read_split
from metrics.judgements import (
    Judgements,
    agreement,
    agreement_with_intervals,
    auroc,
    average_precision,
    calibration,
    judge,
    judgement_lines,
    read_judgements,
)


@pytest.fixture
def split(tmp_path):
    return small_split(tmp_path)


def as_crowd_flower(path):
    path.write_text("".join(f"{image}\t{other}#{number}\t{yes / 3:.4f}\t{yes}\t{no}\n"
                            for image, other, number, yes, no in PAIRS))


def as_expert(path):
    path.write_text("".join(f"{image}\t{other}#{number}\t" + "\t".join("4" * yes + "2" * no) + "\n"
                            for image, other, number, yes, no in PAIRS))


@pytest.mark.parametrize("write, name", [
    (as_json, "x.json"), (as_crowd_flower, "CrowdFlowerAnnotations.txt"),
    (as_expert, "ExpertAnnotations.txt")])
def test_every_format_gives_the_same_judgements(split, tmp_path, write, name):
    write(tmp_path / name)
    got = read_judgements(tmp_path / name, split)
    assert got.images.tolist() == [0, 0, 1, 2, 2]
    assert got.texts.tolist() == [3, 4, 1, 0, 2]
    np.testing.assert_allclose(got.yes_share, [1, 0, 2 / 3, 1 / 3, 0], atol=1e-4)
    assert got.left_out == {"annotated as matches": 1, "photo not in the split": 1,
                            "caption not in the split": 2, "not answered": 0}


def test_pairs_that_nobody_has_answered_are_left_out_and_counted(split, tmp_path):
    as_json(tmp_path / "x.json")
    records = json.loads((tmp_path / "x.json").read_text())
    records[0] |= {"yes": 0, "no": 0}
    (tmp_path / "x.json").write_text(json.dumps(records))
    got = read_judgements(tmp_path / "x.json", split)
    assert got.images.tolist() == [0, 1, 2, 2] and got.left_out["not answered"] == 1
    assert "1 not answered" in judgement_lines(judge(small_embeddings(split), tmp_path / "x.json"))


def test_a_photo_may_be_named_with_its_folder(split, tmp_path):
    """The name in the split is another photo's than that of the same file name elsewhere."""
    split.images = ["one/a.jpg", "b.jpg", "two/a.jpg"]
    answers = {"caption_no": 0, "yes": 1, "no": 0}
    (tmp_path / "x.json").write_text(json.dumps([
        {"image": "one/a.jpg", "caption_of": "two/a.jpg"} | answers,
        {"image": "b.jpg", "caption_of": "one/a.jpg"} | answers]))
    got = read_judgements(tmp_path / "x.json", split)
    assert (got.images.tolist(), got.texts.tolist()) == ([0, 1], [4, 0])


@pytest.mark.parametrize("name, content, named", [
    ("x.json", "[{}]", "record 0"), ("x.json", "nonsense", "json"),
    ("x.json", '[{"image": "a.jpg", "caption_of": "b.jpg", "caption_no": 0, "yes": 0, "no": 0}]',
     "1 pairs"),
    ("x.txt", "a.jpg\tb.jpg#0\t1\t2\n", "line 1"), ("x.txt", "a.jpg b.jpg\n", "line 1"),
    ("x.json", "[]", "0 pairs"), ("nothing.txt", None, "nothing.txt"),
])
def test_a_bad_file_is_an_error_of_one_line(split, tmp_path, name, content, named):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=named) as caught:
        read_judgements(tmp_path / name, split)
    message = str(caught.value)
    assert str(tmp_path / name) in message
    assert "\n" not in message


def test_average_precision_and_auroc_by_hand():
    labels = np.array([True, False, True, False])
    scores = np.array([0.9, 0.8, 0.7, 0.1])
    assert average_precision(labels, scores) == pytest.approx((1 + 2 / 3) / 2)
    assert auroc(labels, scores) == pytest.approx(3 / 4)
    tied = np.array([0.9, 0.5, 0.5, 0.1])
    assert average_precision(labels, tied) == pytest.approx((1 + 2 / 3) / 2)
    assert auroc(labels, tied) == pytest.approx(3.5 / 4)
    # A constant score has the base rate as average precision, and an AUROC of one half.
    assert (average_precision(labels, tied * 0), auroc(labels, tied * 0)) == (0.5, 0.5)


def test_agreement_is_that_of_the_definitions():
    generator = np.random.default_rng(0)
    yes, scores = generator.integers(0, 4, 300) / 3, generator.normal(size=300).round(1)
    labels, got = yes > 0.5, agreement(yes, scores)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels] for b in scores[~labels]]
    assert got["auroc"] == pytest.approx(np.mean(pairs))
    precision, recall, total = [], [], labels.sum()
    for level in sorted(set(scores), reverse=True):
        chosen = scores >= level
        precision.append(labels[chosen].mean())
        recall.append(labels[chosen].sum() / total)
    assert got["ap"] == pytest.approx(np.dot(np.diff([0, *recall]), precision))
    assert got["spearman"] == pytest.approx(stats.spearmanr(scores, yes).statistic)


def test_judge_scores_the_judged_pairs(split, tmp_path):
    as_json(tmp_path / "x.json")
    embeddings = small_embeddings(split)
    got = judge(embeddings, tmp_path / "x.json", resamples=50)
    assert (got["pairs"], got["photos"], got["false_negatives"]) == (5, 3, 2)
    similarity = embeddings.image_embeds @ embeddings.text_embeds.T
    scores = similarity[[0, 0, 1, 2, 2], [3, 4, 1, 0, 2]].double().numpy()
    wanted = agreement(np.array([1, 0, 2 / 3, 1 / 3, 0]), scores)
    for key, value in wanted.items():
        assert got["similarity"][key][0] == pytest.approx(value, abs=1e-6)
        low, high = got["similarity"][key][1:]
        assert low <= high
    # With equal variances the posterior rises with the similarity, and ranks alike.
    assert got["posterior"]["auroc"][0] == got["similarity"]["auroc"][0]
    assert sum(row["pairs"] for row in got["calibration"]) == 5
    assert "2 called a match" in judgement_lines(got)


def test_intervals_are_over_photos():
    """Ten copies of each pair of a photo do not change the interval."""
    generator = np.random.default_rng(0)
    images, yes = np.repeat(np.arange(40), 5), generator.integers(0, 4, 200) / 3
    scores = yes + generator.normal(size=200)

    def interval(times):
        pairs = Judgements(np.repeat(images, times), np.zeros(200 * times, int),
                           np.repeat(yes, times), {})
        return agreement_with_intervals(pairs, np.repeat(scores, times), 100)["auroc"]

    np.testing.assert_allclose(interval(1), interval(10), atol=1e-9)
    value, low, high = interval(1)
    assert low < value < high and 0.02 < high - low < 0.3


def test_calibration_counts_the_pairs_of_each_bin():
    posterior = np.array([0.0, 5e-5, 0.05, 0.05, 0.99, 1.0])
    rows = calibration(np.array([0, 0, 0, 1, 1, 1.0]), posterior)
    assert [row["pairs"] for row in rows] == [2, 2, 2]
    assert [row["match_share"] for row in rows] == [0, 0.5, 1]


def test_judgements_without_a_false_negative_are_refused(split, tmp_path):
    (tmp_path / "x.txt").write_text("a.jpg\tb.jpg#0\t0\t0\t3\n")
    with pytest.raises(InputError, match="^--judgements .*x.txt"):
        judge(small_embeddings(split), tmp_path / "x.txt")


def test_the_judgements_of_flickr8k_have_1985_false_negatives(shared):
    """All 47,288 judged pairs are of the test split."""
    path = shared / "json" / "flickr8k_crowd_judgements.json"
    split = read_split("flickr8k", "test", shared / "json")
    got = read_judgements(path, split)
    unannotated = [r for r in json.loads(path.read_text()) if r["image"] != r["caption_of"]]
    assert len(got.yes_share) == len(unannotated) == 46575
    assert (got.yes_share > 0.5).sum() == sum(r["yes"] > r["no"] for r in unannotated) == 1985
    assert got.left_out == {"annotated as matches": 713, "photo not in the split": 0,
                            "caption not in the split": 0, "not answered": 0}
