r"""Measure how right P(false negative) is, by each kind of evidence, against
people's judgements or all true matches:

    python -m experiments.posterior one.npz two.npz \
        --judgements flickr8k_crowd_judgements.json
    python -m experiments.posterior one.npz two.npz \
        --matches data/shapes/shapes_test_matches.json

The embeddings are files that `evaluation.py --save_embeddings` wrote, of runs
of `--loss fne`. On the pairs that are not annotated as matches, the command
measures precision and calibration of the posterior by the similarity of photo
and caption, by that of captions, and by both; where the files hold what a
teacher makes of the captions (`teacher_embeds`), also with its similarity.
"""

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from common.errors import InputError, exit_on_input_error, printable
from experiments.flags import build_posterior_parser

if __name__ == "__main__":
    build_posterior_parser(__doc__).parse_args()  # --help need not wait for the imports below

import numpy as np
import torch
from scipy.special import expit, logit
from scipy.stats import multivariate_normal
from torch import Tensor

from common import files
from common.memory import keep_freed_memory
from common.presets import PRIOR_OF_EVIDENCE
from common.terminal import print_result
from fne_loss import (
    RunningBivariateGaussian,
    RunningGaussian,
    cut_down_bound,
    false_negative_posterior,
)
from inputs.splits import read_matches
from metrics.embeddings import Embeddings, fitted_gaussians, read_embeddings
from metrics.evidence import fit_evidence, moments_in_float64
from metrics.judgements import auroc, average_precision, read_judgements
from metrics.teacher import fit_teacher
from teacher.posterior import TeacherPosterior

PRIORS = 1e-4, 1e-3, 3e-3, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2
BINS = 15  # of the expected calibration error, equally wide (Guo et al., 2017)
PHOTO_CAPTION, CAPTIONS = 0, 1  # the two similarities, s and r
# The forms of the posterior, and the similarities that each knows.
FORMS = {"published": (PHOTO_CAPTION,), "photo, caption": (PHOTO_CAPTION,),
         "one caption": (CAPTIONS,), "all captions": (CAPTIONS,),
         "both, one caption": (PHOTO_CAPTION, CAPTIONS),
         "both, all captions": (PHOTO_CAPTION, CAPTIONS)}
# Further forms, of files with `teacher_embeds`: the teacher's similarity of captions, alone, with
# that of photo and caption, and with both.
TEACHER = 2
TEACHER_FORMS = {"teacher": (TEACHER,), "photo, teacher": (PHOTO_CAPTION, TEACHER),
                 "both and teacher": (PHOTO_CAPTION, CAPTIONS, TEACHER)}
COLUMNS = {"ap": "AP", "auroc": "AUROC", "ece": "ECE", "above_ap": "AP above the cut-down",
           "above_auroc": "AUROC above the cut-down", "above_ece": "ECE above the cut-down"}


class Pairs(NamedTuple):
    """J pairs of a photo and another photo's caption."""

    images: np.ndarray  # (J,) indices in the split
    texts: np.ndarray  # (J,) indices in the split
    is_match: np.ndarray  # (J,) bool, whether the caption describes the photo


def pairs_of_matches(embeddings: Embeddings, path: Path) -> Pairs:
    """Return all pairs of a split that are not annotated, with their true matches from a file.

    Args:
        embeddings: of the split.
        path: the file of all true matches.

    Raises:
        InputError: the file is none of the split's matches.
    """
    split = embeddings.split
    known = read_matches(path.with_name(path.name.replace("_matches.json", ".json")),
                         len(split.captions), len(split.images))
    if known is None:
        raise InputError(f"--matches {printable(str(path))} is no file of matches: give "
                         "SPLIT_matches.json")
    texts, images = np.nonzero(split.image_of_text[:, None] != np.arange(len(split.images)))
    return Pairs(images, texts, known[texts, images])


def pairs_of_judgements(embeddings: Embeddings, path: Path) -> Pairs:
    """Return the pairs of a split that people judged; a match is what most of them call one.

    Args:
        embeddings: of the split.
        path: the file of people's answers.
    """
    judgements = read_judgements(path, embeddings.split)
    return Pairs(judgements.images, judgements.texts, judgements.yes_share > 0.5)


# ------------------------------------------------------------------------------- forms of evidence


class Evidence(NamedTuple):
    """The two similarities of J pairs, and the Gaussians that are fitted to them.

    Attributes:
        similarities: (2, J, K): s of photo and caption, and r of captions, for each of the K
            captions of the photo that r is taken to. K is 1 where r is to the mean of all captions.
        same: the Gaussian of (s, r) of photos with their own captions.
        different: the Gaussian of (s, r) of photos with captions of other photos.
    """

    similarities: Tensor
    same: RunningBivariateGaussian
    different: RunningBivariateGaussian


def fit_split_evidence(embeddings: Embeddings, pairs: Pairs, to_mean: bool) -> Evidence:
    """Return s and r of some pairs, with Gaussians fitted to the whole split.

    For a photo with its own caption, r is the similarity to its other captions. The similarities of
    all captions to each other are held in memory: 200 MB for 5,000 captions.

    Args:
        embeddings: of the split, whose photos all have the same number of captions.
        pairs: the J pairs.
        to_mean: whether r is the similarity to the mean of a photo's captions; otherwise there is
            an r for each of its captions.

    Raises:
        InputError: the photos have different numbers of captions, or only one.
    """
    image_embeds, text_embeds = embeddings.image_embeds.double(), embeddings.text_embeds.double()
    image_of_text = torch.from_numpy(embeddings.split.image_of_text)  # (N_t,)
    texts_of = [(image_of_text == image).nonzero()[:, 0] for image in range(len(image_embeds))]
    counts = set(map(len, texts_of))
    if len(counts) > 1 or min(counts) < 2:
        raise InputError(f"{embeddings.split.source}: this needs photos with the same number of "
                         "captions, at least two")
    texts_of = torch.stack(texts_of)  # (N_i, K)
    photo_similarity = image_embeds @ text_embeds.T  # (N_i, N_t)
    caption_similarity = text_embeds @ text_embeds.T  # (N_t, N_t)
    if to_mean:
        _, same, different = fit_evidence(
            replace(embeddings, image_embeds=image_embeds, text_embeds=text_embeds))
    else:
        same, different = RunningBivariateGaussian(), RunningBivariateGaussian()
        count = texts_of.shape[1]
        others = ~torch.eye(count, dtype=torch.bool)  # (K, K), each caption with the others
        for image, texts in enumerate(texts_of):
            s, r = photo_similarity[image], caption_similarity[texts]  # (N_t,), (K, N_t)
            foreign = image_of_text != image  # (N_t,)
            same.add(moments_in_float64(s[texts].expand(count, -1)[others], r[:, texts][others]))
            different.add(moments_in_float64(s[foreign].repeat(count), r[:, foreign].flatten()))
    images, texts = torch.from_numpy(pairs.images), torch.from_numpy(pairs.texts)
    s = photo_similarity[images, texts]  # (J,)
    r = caption_similarity[texts_of[images], texts[:, None]]  # (J, K)
    if to_mean:
        r = r.mean(dim=1, keepdim=True)
    return Evidence(torch.stack([s[:, None].expand_as(r), r]), same, different)


def marginal(evidence: RunningBivariateGaussian, axis: int) -> RunningGaussian:
    """Return the Gaussian of s alone (axis `PHOTO_CAPTION`) or of r alone (axis `CAPTIONS`)."""
    gaussian = RunningGaussian()
    gaussian.count.copy_(evidence.count)
    gaussian.mean.copy_(evidence.mean[axis])
    gaussian.m2.copy_(evidence.m2[axis, axis])
    return gaussian


def log_odds(form: str, evidence: Evidence, published: list[RunningGaussian]) -> np.ndarray:
    """Return the logarithm of N+ / N- of all pairs by one form of the posterior, (J K,).

    Args:
        form: a key of `FORMS`.
        evidence: the similarities of the pairs, and Gaussians fitted to the split.
        published: the Gaussians of the training, of the form "published".
    """
    known = FORMS[form]
    if len(known) == 2:
        s, r = evidence.similarities
        even = false_negative_posterior(s, evidence.same, evidence.different, 0.5, r)
    else:
        [axis] = known
        if form == "published":
            positive, negative = published
        else:
            positive, negative = marginal(evidence.same, axis), marginal(evidence.different, axis)
        even = false_negative_posterior(evidence.similarities[axis], positive, negative, 0.5)
    return even.logit().flatten().numpy()


class TeacherEvidence(NamedTuple):
    """Three similarities of J pairs, one of them a teacher's, and what is fitted to them.

    Attributes:
        similarities: (J, 3): s of photo and caption, r of the caption and the mean of the photo's
            captions, and r as the teacher sees it.
        same: mean (3,) and covariance (3, 3) of photos with their own captions.
        different: the same of photos with captions of other photos.
        teacher: the teacher's own P(match), with a prior of one half.
    """

    similarities: np.ndarray
    same: tuple[np.ndarray, np.ndarray]
    different: tuple[np.ndarray, np.ndarray]
    teacher: TeacherPosterior


def fit_teacher_evidence(embeddings: Embeddings, pairs: Pairs) -> TeacherEvidence:
    """Return s, r and the teacher's r of some pairs, with Gaussians fitted to the whole split.

    For a photo with its own caption, r is the mean similarity to its other captions. All pairs of
    the split are held in memory: 500 MB for 1,000 photos and 5,000 captions.

    Args:
        embeddings: of the split, with `teacher_embeds`; each photo has at least two captions.
        pairs: the J pairs.
    """
    image_embeds, text_embeds = embeddings.image_embeds.double(), embeddings.text_embeds.double()
    image_of_text = torch.from_numpy(embeddings.split.image_of_text)  # (N_t,)
    counts = torch.bincount(image_of_text)  # (N_i,)
    texts = torch.arange(len(text_embeds))
    all_pairs = [image_embeds @ text_embeds.T]  # (N_i, N_t) each
    own_pairs = [all_pairs[0][image_of_text, texts]]  # (N_t,) each
    for embeds in text_embeds, embeddings.teacher_embeds.double():
        sums = torch.zeros(len(counts), embeds.shape[1], dtype=torch.float64)
        sums.index_add_(0, image_of_text, embeds)
        all_pairs.append(sums / counts[:, None] @ embeds.T)
        others = sums[image_of_text] - embeds  # (N_t, W)
        own_pairs.append((others * embeds).sum(dim=1) / (counts[image_of_text] - 1))
    all_pairs = torch.stack(all_pairs, dim=2)  # (N_i, N_t, 3)
    foreign = image_of_text != torch.arange(len(counts))[:, None]  # (N_i, N_t)
    teacher = fit_teacher(embeddings)
    teacher.prior = 0.5
    return TeacherEvidence(
        all_pairs[torch.from_numpy(pairs.images), torch.from_numpy(pairs.texts)].numpy(),
        mean_and_covariance(torch.stack(own_pairs, dim=1)), mean_and_covariance(all_pairs[foreign]),
        teacher)


def mean_and_covariance(points: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return mean (d,) and covariance (d, d) of points (n, d)."""
    return points.mean(dim=0).numpy(), torch.cov(points.T).numpy()


def teacher_log_odds(form: str, evidence: TeacherEvidence) -> np.ndarray:
    """Return the logarithm of N+ / N- of all pairs by a form that knows a teacher, (J,).

    Args:
        form: a key of `TEACHER_FORMS`. That of the teacher alone is its own P(match), which never
            falls as r grows; the others are plain ratios of Gaussians.
        evidence: the similarities of the pairs, and Gaussians fitted to the split.
    """
    known = list(TEACHER_FORMS[form])
    similarities = evidence.similarities[:, known]  # (J, d)
    if known == [TEACHER]:
        even = evidence.teacher.from_similarity(torch.from_numpy(similarities[:, 0]))
        return even.logit().numpy()
    same, different = (
        multivariate_normal.logpdf(similarities, mean[known], covariance[np.ix_(known, known)],
                                   allow_singular=True)
        for mean, covariance in (evidence.same, evidence.different))
    return same - different


# -------------------------------------------------------------------------------------- measures


def expected_calibration_error(is_match: np.ndarray, posterior: np.ndarray) -> float:
    """Return the mean over pairs (n,) of |mean posterior - share of matches| in the pair's bin.

    The bins of the posterior are equally wide (Guo et al., 2017).
    """
    bins = np.minimum((posterior * BINS).astype(int), BINS - 1)
    total = 0.0
    for number in np.unique(bins):
        in_bin = bins == number
        gap = abs(posterior[in_bin].mean() - is_match[in_bin].mean())
        total += gap * in_bin.sum()
    return float(total / len(is_match))


def log_loss(is_match: np.ndarray, posterior: np.ndarray) -> float:
    """Return the mean over pairs (n,) of -log of the probability that was given to the truth."""
    p = np.where(is_match, posterior, 1 - posterior)
    return float(-np.log(np.maximum(p, 1e-12)).mean())


def precision_and_calibration(
    is_match: np.ndarray, posterior: np.ndarray, above: np.ndarray
) -> dict[str, float]:
    """Return precision and calibration of a posterior, on all pairs and above the cut-down.

    Args:
        is_match: (n,) bool.
        posterior: (n,) probabilities.
        above: (n,) bool, whether s is above the cut-down.

    Returns:
        "pairs", "true", "ap", "auroc" and "ece", and the same names with "above_" in front. The
        last three are left out where all pairs are matches, or none is.
    """
    result = {}
    for prefix, rows in (("", slice(None)), ("above_", above)):
        labels, p = is_match[rows], posterior[rows]
        result[f"{prefix}pairs"], result[f"{prefix}true"] = len(labels), int(labels.sum())
        if 0 < labels.sum() < len(labels):
            result[f"{prefix}ap"] = average_precision(labels, p)
            result[f"{prefix}auroc"] = auroc(labels, p)
            result[f"{prefix}ece"] = expected_calibration_error(labels, p)
    return result


def measure(embeddings: Embeddings, pairs: Pairs, margin: float) -> dict[str, dict]:
    """Measure every form of the posterior on some pairs of a split.

    Each form is measured on all pairs under its own prior. It is also measured under the prior that
    has the lowest log loss on the pairs of every other photo, on those pairs and on the rest.

    Args:
        embeddings: of the split, with the statistics of FNE.
        pairs: that are measured.
        margin: of the training, for the cut-down.

    Returns:
        For each form its "prior" with what `precision_and_calibration` returns, its "chosen_prior",
        and the same under that prior on the pairs that it was "chosen_on", and on the others,
        "measured_on". The forms with a teacher are there where the embeddings have one.

    Raises:
        InputError: the embeddings carry no statistics, or the captions are too few.
    """
    gaussians = fitted_gaussians(embeddings)
    if not gaussians:
        raise InputError(f"{embeddings.split.source} has no statistics of FNE: take a run of "
                         "--loss fne after its warm-up")
    to_each = fit_split_evidence(embeddings, pairs, to_mean=False)
    to_mean = fit_split_evidence(embeddings, pairs, to_mean=True)
    bound = float(cut_down_bound(gaussians[0], margin))
    is_above = (to_mean.similarities[PHOTO_CAPTION, :, 0] > bound).numpy()  # (J,)
    odds_of = {form: log_odds(form, to_each if "one" in form else to_mean, gaussians)
               for form in FORMS}
    if embeddings.teacher_embeds is not None:
        of_teacher = fit_teacher_evidence(embeddings, pairs)
        odds_of |= {form: teacher_log_odds(form, of_teacher) for form in TEACHER_FORMS}
    results = {}
    for form, odds in odds_of.items():
        count = len(odds) // len(pairs.is_match)  # K, or 1
        is_match, above = pairs.is_match.repeat(count), is_above.repeat(count)  # (J K,) each
        half = (pairs.images % 2 == 0).repeat(count)
        prior = embeddings.prior if form == "published" else PRIOR_OF_EVIDENCE
        losses = {candidate: log_loss(is_match[half], expit(odds[half] + logit(candidate)))
                  for candidate in PRIORS}
        chosen_prior = min(losses, key=losses.get)
        chosen = expit(odds + logit(chosen_prior))
        usual = expit(odds + logit(prior))
        results[form] = {"prior": prior} | precision_and_calibration(is_match, usual, above)
        results[form] |= {
            "chosen_prior": chosen_prior,
            "chosen_on": precision_and_calibration(is_match[half], chosen[half], above[half]),
            "measured_on": precision_and_calibration(is_match[~half], chosen[~half], above[~half])}
    return results


def tables(results: dict[str, dict]) -> str:
    """Return a Markdown table for each measure.

    A table has a row for each file and one of their means, and a column for each form that some
    file was measured with.

    Args:
        results: what `measure` returns, by the name of the file.
    """
    measured = [form for form in FORMS | TEACHER_FORMS
                if any(form in forms for forms in results.values())]
    lines = []
    for key, title in COLUMNS.items():
        lines += [f"\n{title}:\n", "| file | " + " | ".join(measured) + " |",
                  "|---|" + "---|" * len(measured)]
        rows = {name: [forms.get(form, {}).get(key, np.nan) for form in measured]
                for name, forms in results.items()}
        rows["mean"] = np.mean(list(rows.values()), axis=0)
        for name, row in rows.items():
            cells = " | ".join(f"{value:.3f}" for value in row)
            lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def is_measured(path: Path) -> bool:
    """Return whether a file is a json that this command wrote."""
    try:
        content = files.read_json(path, files.MAX_RESULT_BYTES)
    except InputError:
        return False
    return isinstance(content, dict) and bool(content) and all(
        isinstance(forms, dict) and set(forms) in ({*FORMS}, {*FORMS, *TEACHER_FORMS})
        for forms in content.values())


def main(argv: list[str] | None = None) -> None:
    """Run the command with the arguments `argv`, or with those of the process."""
    options = build_posterior_parser(__doc__).parse_args(argv)
    with exit_on_input_error():
        if (options.judgements is None) == (options.matches is None):
            raise InputError("give either --judgements or --matches")
        place = options.output and files.resolve_output(options.output, "--output", is_measured,
                                                        options.embeddings)
        keep_freed_memory()  # otherwise half of the time goes into new pages of memory
        results = {}
        for path in options.embeddings:
            embeddings = read_embeddings(path).in_full_precision()
            if options.judgements:
                pairs = pairs_of_judgements(embeddings, options.judgements)
            else:
                pairs = pairs_of_matches(embeddings, options.matches)
            if not 0 < pairs.is_match.sum() < len(pairs.is_match):
                raise InputError(f"{printable(str(path))}: its pairs are all matches or all none")
            results[path.stem] = measure(embeddings, pairs, options.margin)
        print_result(tables(results))
        if place:
            text = json.dumps(results, indent=1)
            files.write(place, f"{text}\n".encode(), "--output")


if __name__ == "__main__":
    main()
