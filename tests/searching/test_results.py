"""Results as text and as json, and P(match) by Bayes' rule."""

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
from searching.results import Answer, Result, as_json, as_text, fitted_posterior, make_answers

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
    posterior, basis = fitted_posterior(STATISTICS, OPTIONS, "model")
    scores = np.array([0.75, 0.5, 0.45, 0.41])
    wanted = [bayes(score) for score in scores]
    assert posterior.probabilities(scores) == pytest.approx(wanted, rel=1e-9)
    assert "0.03" in basis and "401" in basis


def test_below_the_cut_down_there_is_none():
    """Where N+ is the wider one, Bayes' rule alone rises again there."""
    posterior, _ = fitted_posterior(STATISTICS, OPTIONS, "model")
    assert bayes(-0.2) > 0.99
    assert posterior.probabilities(np.array([0.41, 0.39, -0.2]))[1:] == [None, None]  # 0.6 - 0.2


def test_a_posterior_that_training_did_not_use_yet_is_named_so():
    _, usual = fitted_posterior(STATISTICS, OPTIONS, "model")
    early = SimpleNamespace(**vars(OPTIONS) | {"nums_right_sims": 500})
    _, basis = fitted_posterior(STATISTICS, early, "model")
    assert basis.startswith(usual) and "500" in basis and "500" not in usual


@pytest.mark.parametrize("statistics", [
    None, [[0, 0, 0], [0, 0, 0]], [[1, 0.5, 0], [9, 0.1, 1]], [[9, 0.5, -1], [9, 0.1, 1]],
    [[9.5, 0.5, 1], [9, 0.1, 1]], [[1e300, 0.5, 1], [9, 0.1, 1]]])
def test_a_model_without_statistics_is_refused_by_name(statistics):
    array = None if statistics is None else np.array(statistics, dtype=float)
    with pytest.raises(InputError, match="model"):
        fitted_posterior(array, OPTIONS, "model")


FOUND = [Best(np.array([1, 0]), np.array([0.5, 0.25])), Best(np.array([0]), np.array([-0.125]))]
NASTY = [os.fsdecode(b"a\xff\n\x1b[31m.jpg"), "<b>.jpg"]


def test_text_has_a_line_for_each_result_whatever_its_name():
    answers = make_answers([Query("x")], FOUND[:1], None, NASTY, Path("photos"))
    assert as_text(answers, False).split("\n") == [
        " 0.5000  photos/<b>.jpg", " 0.2500  photos/a\udcff\\n\x1b[31m.jpg"]
    queries = [Query("x"), Query("y\nz", (Path("p.jpg"),))]
    answers = make_answers(queries, FOUND, None, NASTY, Path("f"))
    assert as_text(answers, False).split("\n\n")[1].split("\n") == [
        "y\\nz, like p.jpg", "-0.1250  f/a\udcff\\n\x1b[31m.jpg"]


def test_text_with_the_posterior():
    answers = [Answer(Query("x"), [Result(0.5, 0.75, Path("a")), Result(0.25, None, Path("b")),
                                     Result(0.2, 1.2e-7, Path("c"))])]
    assert as_text(answers, True).split("\n") == [
        " 0.5000  P 0.750     a", " 0.2500  P -         b", " 0.2000  P 1e-07     c"]


def test_json_brings_back_every_name_and_number():
    queries = [Query("x", (Path(NASTY[0]),)), Query("y")]
    answers = make_answers(queries, FOUND, None, NASTY, Path("photos"))
    text = as_json(answers, {"model": "m"})
    assert text.isascii()
    content = json.loads(text)
    assert content["model"] == "m" and [query["text"] for query in content["queries"]] == ["x", "y"]
    assert content["queries"][0]["like"] == [NASTY[0]]
    first = content["queries"][0]["results"]
    assert [result["score"] for result in first] == [0.5, 0.25]
    assert os.fsencode(first[1]["path"]) == b"photos/a\xff\n\x1b[31m.jpg"
    assert "posterior" not in first[0]


def test_json_with_posterior_and_of_captions():
    posterior, basis = fitted_posterior(STATISTICS, OPTIONS, "model")
    best = Best(np.array([0, 1]), np.array([0.5, 0.1]))
    answers = make_answers([Query(None, (Path("p.jpg"),))], [best], posterior,
                           ["A dog.", "A \ud83d\ude00."], None)
    results = json.loads(as_json(answers, {"posterior": basis}))["queries"][0]["results"]
    assert results[0]["caption"] == "A dog." and results[1]["posterior"] is None
    assert results[0]["posterior"] == pytest.approx(bayes(0.5))
