"""The results of a search as text and as json, and P(match) of a score."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common.errors import InputError
from fne_loss import RunningGaussian, cut_down_bound, false_negative_posterior
from metrics.embeddings import check_statistics, gaussians_from_statistics
from searching.exact import Best
from searching.queries import Query
from training.objectives.options import FNEOptions


class Result(NamedTuple):
    """One result of a query: a photo's file or a caption, whichever is not None.

    Attributes:
        score: cosine of the query and the result.
        posterior: P(match | score); None where it is not asked for, or the score is cut down.
        photo: the photo's file.
        caption: the caption's text.
    """

    score: float
    posterior: float | None
    photo: Path | None = None
    caption: str | None = None

    def label(self) -> str:
        """Return the path of the photo, or the caption."""
        return str(self.photo) if self.caption is None else self.caption


class Answer(NamedTuple):
    """A query and its results, the best first."""

    query: Query
    results: list[Result]


class Posterior(NamedTuple):
    """FNE's posterior with the statistics that the training of a model ended with.

    Attributes:
        positive: N+, the similarities of confident pairs.
        negative: N-, the similarities of their hardest negatives.
        prior: P(match) of a photo and a caption of which nothing is known.
        bound: the cut-down: a similarity up to this is never drawn, and has no posterior.
    """

    positive: RunningGaussian
    negative: RunningGaussian
    prior: float
    bound: float

    def probabilities(self, scores: np.ndarray) -> list[float | None]:
        """Return P(match | s) of each cosine s.

        A cosine up to the cut-down has none: training never uses the posterior there, and the two
        Gaussians may cross a second time.

        Args:
            scores: (K,) cosines, float64.
        """
        posterior = false_negative_posterior(torch.from_numpy(scores), self.positive,
                                             self.negative, self.prior)  # (K,)
        return [value if score > self.bound else None
                for value, score in zip(posterior.tolist(), scores.tolist())]


def fitted_posterior(
    statistics: np.ndarray | None, options: FNEOptions, name: str
) -> tuple[Posterior, str]:
    """Return the posterior of a model, and a line that tells what it rests on.

    Args:
        statistics: of the model's training, as `checkpoint.fitted_statistics` returns them.
        options: of the model; its prior, margin and nums_right_sims are used.
        name: of the model, for an error's message.

    Raises:
        InputError: the model has no statistics, or none that FNE could have fitted.
    """
    gaussians = []
    if statistics is not None:
        check_statistics(statistics, options.prior, name)
        gaussians = gaussians_from_statistics(statistics)
    if not gaussians:
        raise InputError(f"--posterior: {name} holds no statistics that FNE has fitted (a released "
                         "checkpoint, a control without FNE and a model that was not trained yet "
                         "have none): leave the flag out")
    positive, negative = gaussians
    count = int(positive.count)
    basis = (f"P(match) is FNE's posterior under a prior of {options.prior:g}, from {count:,} "
             "confident pairs of the last epoch of training; it is not calibrated")
    if count <= options.nums_right_sims:
        basis += (f", and FNE itself did not use it yet, which takes more than "
                  f"{options.nums_right_sims:,}")
    bound = float(cut_down_bound(positive, options.margin))
    return Posterior(positive, negative, options.prior, bound), basis


def make_answers(
    queries: list[Query], best: list[Best], posterior: Posterior | None,
    names: Sequence[str], folder: Path | None,
) -> list[Answer]:
    """Return each query with its results.

    Args:
        queries: the queries.
        best: the best rows of each query.
        posterior: gives P(match) of a score; None leaves it out.
        names: of all rows: paths inside `folder`, or captions where `folder` is None.
        folder: the folder of the photos that were searched.
    """
    answers = []
    for query, query_best in zip(queries, best):
        probabilities = [None] * len(query_best.rows)
        if posterior is not None:
            probabilities = posterior.probabilities(query_best.scores)
        results = []
        for row, score, probability in zip(query_best.rows.tolist(), query_best.scores.tolist(),
                                           probabilities):
            if folder is None:
                results.append(Result(score, probability, caption=names[row]))
            else:
                results.append(Result(score, probability, photo=folder / names[row]))
        answers.append(Answer(query, results))
    return answers


def as_text(answers: list[Answer], with_posterior: bool) -> str:
    """Return the results as text, a line for each.

    Where there are several queries, each has a line of its own above its results, and a blank line
    below them.
    """
    blocks = []
    for answer in answers:
        lines = []
        if len(answers) > 1:
            lines.append(escape_line_breaks(answer.query.title()))
        for result in answer.results:
            posterior = ""
            if with_posterior:
                posterior = f"  P {probability_text(result.posterior):8}"
            label = escape_line_breaks(result.label())
            lines.append(f"{result.score:7.4f}{posterior}  {label}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def escape_line_breaks(text: str) -> str:
    """Return a name or a caption in one line; the terminal escapes other characters later."""
    return text.replace("\n", "\\n")


def probability_text(value: float | None) -> str:
    """Return a probability with the digits that matter, and a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"


def as_json(answers: list[Answer], facts: dict[str, str]) -> str:
    """Return the results as json, in ASCII.

    Bytes of a file's name that are no UTF-8 appear as Python's surrogates.

    Args:
        facts: names and values that stand before the queries. With "posterior" among them, each
            result has its posterior.
    """
    queries = []
    for answer in answers:
        results = []
        for result in answer.results:
            record = {"score": result.score}
            if result.caption is None:
                record["path"] = os.fspath(result.photo)
            else:
                record["caption"] = result.caption
            if "posterior" in facts:
                record["posterior"] = result.posterior
            results.append(record)
        queries.append({"text": answer.query.text,
                        "like": list(map(os.fspath, answer.query.photos)), "results": results})
    return json.dumps(facts | {"queries": queries}, indent=1)
