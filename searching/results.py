"""What was found, for people and for programs; and P(match) of a score."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common.errors import InputError
from common.options import TrainOptions
from fne_loss import RunningGaussian, cut_down_bound, false_negative_posterior
from metrics.embeddings import check_statistics, gaussians_from_statistics
from searching.exact import Best
from searching.queries import Query


class Hit(NamedTuple):
    """One result: a photo's file or a caption."""

    score: float  # cosine
    posterior: float | None  # P(match | score); None where it is not asked for, or cut down
    photo: Path | None = None
    caption: str | None = None

    def shown(self) -> str:
        return str(self.photo) if self.caption is None else self.caption


class Answer(NamedTuple):
    """A query and its results, the best first."""

    query: Query
    hits: list[Hit]


class Posterior(NamedTuple):
    """FNE's posterior with the statistics that a model's training ended with."""

    positive: RunningGaussian
    negative: RunningGaussian
    prior: float  # P(match) of a photo and a caption of which nothing is known
    bound: float  # cut-down: similarities up to this are never drawn, and have no posterior

    def of(self, scores: np.ndarray) -> list[float | None]:
        """P(match | s) of cosines (K,); None up to the cut-down, below which nobody asks it: the
        two Gaussians may cross there a second time."""
        values = false_negative_posterior(torch.from_numpy(scores), self.positive, self.negative,
                                          self.prior)
        return [value if score > self.bound else None
                for value, score in zip(values.tolist(), scores.tolist())]


def fitted_posterior(
    statistics: np.ndarray | None, options: TrainOptions, name: str
) -> tuple[Posterior, str]:
    """The posterior of a model, and in one line what it rests on.

    Args:
        statistics: of `checkpoint.fitted_statistics`.
        options: of the model; prior, margin and nums_right_sims are used.

    Raises:
        InputError: it has no statistics, or none that FNE could have fitted.
    """
    gaussians = []
    if statistics is not None:
        check_statistics(statistics, options.prior, name)
        gaussians = gaussians_from_statistics(statistics)
    if not gaussians:
        raise InputError(f"--posterior: {name} holds no statistics that FNE has fitted (a released "
                         "checkpoint, a control without FNE and a model that was not trained yet "
                         "have none): leave the flag out")
    count = int(gaussians[0].count)
    told = (f"P(match) is FNE's posterior under a prior of {options.prior:g}, from {count:,} "
            "confident pairs of the last epoch of training; it is not calibrated")
    if count <= options.nums_right_sims:
        told += (f", and FNE itself did not use it yet, which takes more than "
                 f"{options.nums_right_sims:,}")
    bound = float(cut_down_bound(gaussians[0], options.margin))
    return Posterior(*gaussians, options.prior, bound), told


def answers(
    queries: list[Query], found: list[Best], posterior: Posterior | None,
    names: Sequence[str], folder: Path | None,
) -> list[Answer]:
    """Queries with their results.

    Args:
        names: of the rows: paths in `folder`, or without one captions.
    """
    result = []
    for query, best in zip(queries, found):
        chances = [None] * len(best.rows) if posterior is None else posterior.of(best.scores)
        hits = []
        for row, score, chance in zip(best.rows.tolist(), best.scores.tolist(), chances):
            what = {"caption": names[row]} if folder is None else {"photo": folder / names[row]}
            hits.append(Hit(score, chance, **what))
        result.append(Answer(query, hits))
    return result


def as_text(found: list[Answer], with_posterior: bool) -> str:
    """A line for each result; above those of each query its own, where there are several."""
    blocks = []
    for answer in found:
        lines = [] if len(found) == 1 else [one_line_of(answer.query.title())]
        for hit in answer.hits:
            chance = f"  P {chance_text(hit.posterior):8}" if with_posterior else ""
            lines.append(f"{hit.score:7.4f}{chance}  {one_line_of(hit.shown())}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def one_line_of(text: str) -> str:
    """A name or caption with its line breaks in escapes; the terminal's own are added later."""
    return text.replace("\n", "\\n")


def chance_text(value: float | None) -> str:
    """P(match) with digits that matter; a dash where there is none."""
    return "-" if value is None else f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"


def as_json(found: list[Answer], facts: dict[str, str]) -> str:
    """The same for programs: ASCII, a name's bytes that are no UTF-8 as Python's surrogates."""
    queries = []
    for answer in found:
        results = []
        for hit in answer.hits:
            result = {"score": hit.score}
            result |= {"path": os.fspath(hit.photo)} if hit.caption is None else {
                "caption": hit.caption}
            if "posterior" in facts:
                result["posterior"] = hit.posterior
            results.append(result)
        queries.append({"text": answer.query.text,
                        "like": list(map(os.fspath, answer.query.photos)), "results": results})
    return json.dumps(facts | {"queries": queries}, indent=1)
