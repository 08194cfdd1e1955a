r"""How right is P(false negative), by which evidence? Against people, or all true
matches:

    python -m experiments.posterior one.npz two.npz \
        --judgements flickr8k_crowd_judgements.json
    python -m experiments.posterior one.npz two.npz \
        --matches data/shapes/shapes_test_matches.json

Of embeddings that `evaluation.py --save_embeddings` wrote, of runs of `--loss
fne`: precision and calibration of the posterior by the similarity of photo and
caption, by that of captions, and by both, on the pairs that are not annotated
as matches.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from common.errors import InputError, exit_on_import_error, exit_on_input_error, printable
from experiments.flags import build_posterior_parser

if __name__ == "__main__":
    exit_on_import_error()
    build_posterior_parser(__doc__).parse_args()  # --help need not wait for the imports below

import numpy as np
import torch
from scipy.special import expit, logit
from torch import Tensor

from common import files
from common.flags import PRIOR_OF_EVIDENCE
from common.memory import keep_freed_memory
from common.terminal import print_result
from data import read_matches
from fne_loss import (
    RunningEvidence,
    RunningGaussian,
    cut_down_bound,
    false_negative_posterior,
)
from metrics.embeddings import Embeddings, fitted_gaussians, read_embeddings
from metrics.evidence import fit_evidence, moments_in_float64
from metrics.judgements import auroc, average_precision, read_judgements

PRIORS = 1e-4, 1e-3, 3e-3, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2
BINS = 15  # of the expected calibration error, equally wide (Guo et al., 2017)
# What each form of the posterior sees: 0 the similarity of photo and caption, 1 that of captions.
FORMS = {"published": (0,), "photo, caption": (0,), "one caption": (1,), "all captions": (1,),
         "both, one caption": (0, 1), "both, all captions": (0, 1)}
COLUMNS = {"ap": "AP", "auroc": "AUROC", "ece": "ECE", "above_ap": "AP above the cut-down",
           "above_auroc": "AUROC above the cut-down", "above_ece": "ECE above the cut-down"}


class Pairs(NamedTuple):
    """J pairs of a photo and another photo's caption."""

    images: np.ndarray  # (J,)
    texts: np.ndarray  # (J,)
    true: np.ndarray  # (J,) bool, whether the caption describes the photo


def pairs_of_matches(embeddings: Embeddings, path: Path) -> Pairs:
    """All pairs of a split whose true matches are in `path`."""
    split = embeddings.split
    known = read_matches(path.with_name(path.name.replace("_matches.json", ".json")),
                         len(split.captions), len(split.images))
    if known is None:
        raise InputError(f"--matches {printable(str(path))} is no file of matches: give "
                         "SPLIT_matches.json")
    texts, images = np.nonzero(split.image_of_text[:, None] != np.arange(len(split.images)))
    return Pairs(images, texts, known[texts, images])


def pairs_of_judgements(embeddings: Embeddings, path: Path) -> Pairs:
    """The judged pairs of a split; true is what most people call so."""
    judged = read_judgements(path, embeddings.split)
    return Pairs(judged.images, judged.texts, judged.yes_share > 0.5)


# ------------------------------------------------------------------------------- forms of evidence


class Evidence(NamedTuple):
    """What one form sees of the pairs, and its Gaussians."""

    seen: Tensor  # (2, J, K): s and r for each of K own captions of the photo; K is 1 of all
    same: RunningEvidence
    different: RunningEvidence


def evidence_of(embeddings: Embeddings, pairs: Pairs, every: bool) -> Evidence:
    """s of photo and caption, r of the captions, and their Gaussians over the whole split.

    r is to each of the photo's captions or, with `every`, to their mean. N+ is fitted to a photo
    with its own captions, r then being to the others; N- to all with captions of other photos. It
    holds the similarity of all captions: 200 MB of 5,000.
    """
    images, texts = (of.double() for of in (embeddings.image_embeds, embeddings.text_embeds))
    owners = torch.from_numpy(embeddings.split.image_of_text)  # (N_t,)
    captions = [(owners == photo).nonzero()[:, 0] for photo in range(len(images))]
    if min(map(len, captions)) != max(map(len, captions)) or len(captions[0]) < 2:
        raise InputError(f"{embeddings.split.source}: this needs photos with the same number of "
                         "captions, at least two")
    own, s_of, r_of = torch.stack(captions), images @ texts.T, texts @ texts.T
    # (N_i, K), (N_i, N_t) and (N_t, N_t)
    if every:
        _, same, different = fit_evidence(
            replace(embeddings, image_embeds=images, text_embeds=texts))
    else:
        same, different = RunningEvidence(), RunningEvidence()
        count = own.shape[1]
        apart = ~torch.eye(count, dtype=torch.bool)  # (K, K)
        for photo, listed in enumerate(own):
            s, r, other = s_of[photo], r_of[listed], owners != photo  # (N_t,), (K, N_t), (N_t,)
            same.add(moments_in_float64(s[listed].expand(count, -1)[apart], r[:, listed][apart]))
            different.add(moments_in_float64(s[other].repeat(count), r[:, other].flatten()))
    at = torch.from_numpy(pairs.images), torch.from_numpy(pairs.texts)
    s, r = s_of[at], r_of[own[at[0]], at[1][:, None]]  # (J,), (J, K)
    r = r.mean(dim=1, keepdim=True) if every else r
    return Evidence(torch.stack([s[:, None].expand_as(r), r]), same, different)


def marginal(evidence: RunningEvidence, axis: int) -> RunningGaussian:
    """The Gaussian of s (0) or r (1) alone."""
    gaussian = RunningGaussian()
    gaussian.count.copy_(evidence.count)
    gaussian.mean.copy_(evidence.mean[axis])
    gaussian.m2.copy_(evidence.m2[axis, axis])
    return gaussian


def log_odds(form: str, evidence: Evidence, published: list[RunningGaussian]) -> np.ndarray:
    """(J K,) of a form, without a prior."""
    sides, seen = (evidence.same, evidence.different), FORMS[form]
    if len(seen) == 2:
        even = false_negative_posterior(evidence.seen[0], *sides, 0.5, evidence.seen[1])
    else:
        sides = published if form == "published" else [marginal(side, *seen) for side in sides]
        even = false_negative_posterior(evidence.seen[seen[0]], *sides, 0.5)
    return even.logit().flatten().numpy()


# -------------------------------------------------------------------------------------- measured


def expected_calibration_error(true: np.ndarray, posterior: np.ndarray) -> float:
    """Mean over all pairs of |mean posterior - share of true pairs| in the pair's bin."""
    bins = np.minimum((posterior * BINS).astype(int), BINS - 1)
    gaps = [abs(posterior[bins == number].mean() - true[bins == number].mean())
            * (bins == number).sum() for number in np.unique(bins)]
    return float(sum(gaps) / len(true))


def log_loss(true: np.ndarray, posterior: np.ndarray) -> float:
    """Mean of -log of the probability that the posterior gave to what is so."""
    p = np.where(true, posterior, 1 - posterior)
    return float(-np.log(np.maximum(p, 1e-12)).mean())


def measured(true: np.ndarray, posterior: np.ndarray, above: np.ndarray) -> dict[str, float]:
    """The columns of one form, of (n,) each; `above` is bool, s above the cut-down."""
    found = {}
    for start, rows in (("", slice(None)), ("above_", above)):
        of, p = true[rows], posterior[rows]
        found[f"{start}pairs"], found[f"{start}true"] = len(of), int(of.sum())
        if 0 < of.sum() < len(of):
            found[f"{start}ap"], found[f"{start}auroc"] = average_precision(of, p), auroc(of, p)
            found[f"{start}ece"] = expected_calibration_error(of, p)
    return found


def measure(embeddings: Embeddings, pairs: Pairs, margin: float) -> dict[str, dict]:
    """Every form's columns on all pairs, at its prior; and its prior and columns if the prior is
    chosen by log loss on the pairs of every other photo, and measured on the rest."""
    gaussians = fitted_gaussians(embeddings)
    if not gaussians:
        raise InputError(f"{embeddings.split.source} has no statistics of FNE: take a run of "
                         "--loss fne after its warm-up")
    found, kinds = {}, {every: evidence_of(embeddings, pairs, every) for every in (False, True)}
    bound = float(cut_down_bound(gaussians[0], margin))
    for form in FORMS:
        evidence = kinds["one" not in form]
        count = evidence.seen.shape[2]
        true = pairs.true.repeat(count)
        above = (evidence.seen[0] > bound).flatten().numpy()
        half = (pairs.images % 2 == 0).repeat(count)
        odds = log_odds(form, evidence, gaussians)
        own = embeddings.prior if form == "published" else PRIOR_OF_EVIDENCE
        best = min(PRIORS, key=lambda prior: log_loss(
            true[half], expit(odds[half] + logit(prior))))
        chosen = expit(odds + logit(best))
        found[form] = {"prior": own} | measured(true, expit(odds + logit(own)), above) | {
            "chosen_prior": best,
            "chosen_on": measured(true[half], chosen[half], above[half]),
            "measured_on": measured(true[~half], chosen[~half], above[~half])}
    return found


def tables(results: dict[str, dict]) -> str:
    """One table for each column: a row for each file, a column for each form, and the means."""
    lines = []
    for key, title in COLUMNS.items():
        lines += [f"\n{title}:\n", "| file | " + " | ".join(FORMS) + " |",
                  "|---|" + "---|" * len(FORMS)]
        rows = {name: [forms[form].get(key, np.nan) for form in FORMS]
                for name, forms in results.items()}
        rows["mean"] = np.mean(list(rows.values()), axis=0)
        lines += [f"| {name} | " + " | ".join(f"{value:.3f}" for value in row) + " |"
                  for name, row in rows.items()]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    options = build_posterior_parser(__doc__).parse_args(argv)
    with exit_on_input_error():
        if (options.judgements is None) == (options.matches is None):
            raise InputError("give either --judgements or --matches")
        keep_freed_memory()  # else half of the time goes into new pages
        results = {}
        for path in options.embeddings:
            embeddings = read_embeddings(path)
            pairs = (pairs_of_judgements(embeddings, options.judgements) if options.judgements
                     else pairs_of_matches(embeddings, options.matches))
            if not 0 < pairs.true.sum() < len(pairs.true):
                raise InputError(f"{printable(str(path))}: its pairs are all matches or all none")
            results[path.stem] = measure(embeddings, pairs, options.margin)
        print_result(tables(results))
        if options.output:
            text = json.dumps(results, indent=1)
            files.write(options.output, f"{text}\n".encode(), "--output")


if __name__ == "__main__":
    main()
