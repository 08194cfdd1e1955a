"""What is said of results: text, json, and P(match) by Bayes' rule."""

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from common.errors import InputError
from searching.exact import Best
from searching.queries import Query
from searching.results import Answer, Hit, answers, as_json, as_text, fitted_posterior

# count, mean and m2 of N+ and N-: variances 0.01 and 0.0025.
STATISTICS = np.array([[401, 0.6, 4.0], [801, 0.3, 2.0]])
OPTIONS = SimpleNamespace(prior=0.03, margin=0.2, nums_right_sims=200)


def bayes(score, prior=0.03):
    """prior N+(s) / (prior N+(s) + (1 - prior) N-(s)), written out."""
    def density(mean, variance):
        return math.exp(-(score - mean) ** 2 / (2 * variance)) / math.sqrt(2 * math.pi * variance)

    positive, negative = prior * density(0.6, 0.01), (1 - prior) * density(0.3, 0.0025)
    return positive / (positive + negative)


def test_the_posterior_is_bayes_rule():
    posterior, told = fitted_posterior(STATISTICS, OPTIONS, "model")
    scores = np.array([0.75, 0.5, 0.45, 0.41])
    assert posterior.of(scores) == pytest.approx([bayes(score) for score in scores], rel=1e-9)
    assert "prior of 0.03" in told and "401 confident pairs" in told and "not calibrated" in told


def test_below_the_cut_down_there_is_none():
    """Where N+ is the wider one, Bayes' rule alone rises again there."""
    posterior, _ = fitted_posterior(STATISTICS, OPTIONS, "model")
    assert bayes(-0.2) > 0.99
    assert posterior.of(np.array([0.41, 0.39, -0.2]))[1:] == [None, None]  # 0.6 - 0.2


def test_few_pairs_are_told():
    _, told = fitted_posterior(STATISTICS, SimpleNamespace(**vars(OPTIONS) | {
        "nums_right_sims": 500}), "model")
    assert "did not use it yet" in told and "500" in told


@pytest.mark.parametrize("statistics", [
    None, [[0, 0, 0], [0, 0, 0]], [[1, 0.5, 0], [9, 0.1, 1]], [[9, 0.5, -1], [9, 0.1, 1]],
    [[9.5, 0.5, 1], [9, 0.1, 1]], [[1e300, 0.5, 1], [9, 0.1, 1]]])
def test_a_model_without_statistics_is_told(statistics):
    array = None if statistics is None else np.array(statistics, dtype=float)
    with pytest.raises(InputError, match="model"):
        fitted_posterior(array, OPTIONS, "model")


FOUND = [Best(np.array([1, 0]), np.array([0.5, 0.25])), Best(np.array([0]), np.array([-0.125]))]
NASTY = [os.fsdecode(b"a\xff\n\x1b[31m.jpg"), "<b>.jpg"]


def test_text_has_a_line_for_each_result_whatever_its_name():
    found = answers([Query("x")], FOUND[:1], None, NASTY, Path("photos"))
    assert as_text(found, False).split("\n") == [
        " 0.5000  photos/<b>.jpg", " 0.2500  photos/a\udcff\\n\x1b[31m.jpg"]
    found = answers([Query("x"), Query("y\nz", (Path("p.jpg"),))], FOUND, None, NASTY, Path("f"))
    assert as_text(found, False).split("\n\n")[1].split("\n") == [
        "y\\nz, like p.jpg", "-0.1250  f/a\udcff\\n\x1b[31m.jpg"]


def test_text_with_the_posterior():
    found = [Answer(Query("x"), [Hit(0.5, 0.75, Path("a")), Hit(0.25, None, Path("b")),
                                 Hit(0.2, 1.2e-7, Path("c"))])]
    assert as_text(found, True).split("\n") == [
        " 0.5000  P 0.750     a", " 0.2500  P -         b", " 0.2000  P 1e-07     c"]


def test_json_brings_back_every_name_and_number():
    found = answers([Query("x", (Path(NASTY[0]),)), Query("y")], FOUND, None, NASTY, Path("photos"))
    text = as_json(found, {"model": "m"})
    assert text.isascii()
    content = json.loads(text)
    assert content["model"] == "m" and [query["text"] for query in content["queries"]] == ["x", "y"]
    assert content["queries"][0]["like"] == [NASTY[0]]
    first = content["queries"][0]["results"]
    assert [result["score"] for result in first] == [0.5, 0.25]
    assert os.fsencode(first[1]["path"]) == b"photos/a\xff\n\x1b[31m.jpg"
    assert "posterior" not in first[0]


def test_json_with_posterior_and_of_captions():
    posterior, told = fitted_posterior(STATISTICS, OPTIONS, "model")
    found = answers([Query(None, (Path("p.jpg"),))], [Best(np.array([0, 1]), np.array([0.5, 0.1]))],
                    posterior, ["A dog.", "A \ud83d\ude00."], None)
    results = json.loads(as_json(found, {"posterior": told}))["queries"][0]["results"]
    assert results[0]["caption"] == "A dog." and results[1]["posterior"] is None
    assert results[0]["posterior"] == pytest.approx(bayes(0.5))
