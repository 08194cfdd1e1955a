"""People's answers to "does this caption describe this photo?", against a model's similarity.

Reads a json list of {"image", "caption_of", "caption_no", "yes", "no"} and Flickr8k's own
`CrowdFlowerAnnotations.txt` and `ExpertAnnotations.txt`. Only pairs that are *not* annotated as
matches are scored: those that people nevertheless call a match are the false negatives.
"""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common.errors import InputError, one_line
from common.files import read_bytes, read_json
from data import Split
from fne_loss import false_negative_posterior
from metrics.embeddings import Embeddings, fitted_gaussians
from metrics.evidence import fit_evidence, score_by_evidence

AGREEMENT = {"ap": "AP", "auroc": "AUROC", "spearman": "Spearman's rho"}  # keys of `agreement`
POSTERIOR_BINS = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 1.0)  # of the calibration table


class Judgements(NamedTuple):
    """J judged pairs of a photo and another photo's caption."""

    images: np.ndarray  # (J,) photo's index in the split
    texts: np.ndarray  # (J,) caption's index in the split
    yes: np.ndarray  # (J,) share of people who call it a match
    left_out: dict[str, int]  # pairs that are not scored, by reason


def read_judgements(path: Path, split: Split) -> Judgements:
    """The judged pairs of `path` whose photo and caption are in the split.

    Raises:
        InputError: the file cannot be read, or none of its pairs is in the split.
    """
    pairs = json_pairs(path) if path.suffix == ".json" else text_pairs(path)
    image_of = {name.rsplit("/", 1)[-1]: index for index, name in enumerate(split.images)}
    texts_of = [[] for _ in split.images]
    for text, image in enumerate(split.image_of_text.tolist()):
        texts_of[image].append(text)
    kept, left_out = [], {"annotated as matches": 0, "photo not in the split": 0,
                          "caption not in the split": 0}
    for image, caption_of, number, yes in pairs:
        if image == caption_of:
            left_out["annotated as matches"] += 1
        elif image not in image_of:
            left_out["photo not in the split"] += 1
        elif caption_of not in image_of or not 0 <= number < len(texts_of[image_of[caption_of]]):
            left_out["caption not in the split"] += 1
        else:
            kept.append((image_of[image], texts_of[image_of[caption_of]][number], yes))
    if not kept:
        raise InputError(f"--judgements {path}: none of its {len(pairs)} pairs is an unannotated "
                         f"pair of {split.source}")
    images, texts, yes = (np.array(column) for column in zip(*kept))
    return Judgements(images, texts, yes, left_out)


def json_pairs(path: Path) -> list[tuple[str, str, int, float]]:
    """(photo, photo of the caption, the caption's number there, share of yes) of a json file."""
    pairs, records = [], read_json(path)
    if not isinstance(records, list):
        raise InputError(f"--judgements {path} is not a list of records")
    for number, record in enumerate(records):
        try:
            yes, no = float(record["yes"]), float(record["no"])
            if not (yes >= 0 and no >= 0 and yes + no < np.inf):
                raise ValueError("counts must be finite and not negative")
            names = str(record["image"]), str(record["caption_of"])
            pairs.append((*names, int(record["caption_no"]), yes / (yes + no)))
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise InputError(f"--judgements {path}: record {number} needs image, caption_of, "
                             f"caption_no, and answers in yes and no ({error!r})") from error
    return pairs


def text_pairs(path: Path) -> list[tuple[str, str, int, float]]:
    """The same of Flickr8k's text files: photo, `photo#number`, then counts or scores.

    Counts are the share of yes, yes and no; scores are three experts' from 1 to 4, of which 3 and 4
    call the caption a match.
    """
    try:
        lines = read_bytes(path).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--judgements {path} cannot be read: {one_line(error)}") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        try:
            image, caption, *values = line.split("\t")
            caption_of, caption_no = caption.rsplit("#", 1)
            first, second, third = map(float, values)
            if min(first, second, third) >= 1:
                yes = np.mean([score >= 3 for score in (first, second, third)])
            else:
                yes = second / (second + third)
            if not 0 <= yes <= 1:
                raise ValueError("counts must not be negative")
            pairs.append((image, caption_of, int(caption_no), float(yes)))
        except (ValueError, ArithmeticError) as error:
            raise InputError(f"--judgements {path}: line {number} is not photo, caption#number and "
                             f"three numbers, parted by tabs ({error})") from error
    return pairs


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under precision over recall; ties share the precision at their end."""
    order = np.argsort(-scores, kind="stable")
    labels, scores = labels[order], scores[order]
    last = np.append(np.diff(scores) != 0, True)  # ends of runs of equal scores
    hits = labels.cumsum()[last]
    precision = hits / (np.flatnonzero(last) + 1)
    return float((np.diff(hits, prepend=0) * precision).sum() / labels.sum())


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """P(a match scores above a non-match); ties count half."""
    from scipy import stats  # takes a second to load, which most commands need not wait for

    ranks, positives = stats.rankdata(scores), labels.sum()
    return float((ranks[labels].sum() - positives * (positives + 1) / 2)
                 / (positives * (len(labels) - positives)))


def agreement(yes: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """AP and AUROC for "most people say yes", Spearman's rho with the share of yes; all (J,)."""
    from scipy import stats  # as above

    labels = yes > 0.5
    return {"ap": average_precision(labels, scores), "auroc": auroc(labels, scores),
            "spearman": float(stats.spearmanr(scores, yes).statistic)}


def with_intervals(
    judgements: Judgements, scores: np.ndarray, resamples: int, seed: int = 0
) -> dict[str, list[float]]:
    """`agreement` as [value, low, high]: 95 % bootstrap intervals over photos, not pairs.

    The pairs of a photo are not independent, so photos are drawn with replacement.
    """
    value = agreement(judgements.yes, scores)
    order = np.argsort(judgements.images, kind="stable")
    pairs_of = np.split(order, np.flatnonzero(np.diff(judgements.images[order])) + 1)
    generator, samples = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn = generator.integers(len(pairs_of), size=len(pairs_of))
        pairs = np.concatenate([pairs_of[photo] for photo in drawn])
        if 0 < (judgements.yes[pairs] > 0.5).sum() < len(pairs):
            samples.append(agreement(judgements.yes[pairs], scores[pairs]))
    return {key: [value[key], *np.percentile([sample[key] for sample in samples], (2.5, 97.5))]
            for key in value}


def calibration(yes: np.ndarray, posterior: np.ndarray) -> list[dict[str, float]]:
    """For bins of the posterior: pairs, its mean, the share called a match, mean share of yes."""
    rows = []
    for low, high in itertools.pairwise(POSTERIOR_BINS):
        inside = (posterior >= low) & ((posterior < high) | (high == 1.0))
        if inside.any():
            rows.append({"low": low, "high": high, "pairs": int(inside.sum()),
                         "mean_posterior": float(posterior[inside].mean()),
                         "match_share": float((yes[inside] > 0.5).mean()),
                         "mean_yes": float(yes[inside].mean())})
    return rows


def judge(embeddings: Embeddings, path: Path, resamples: int = 200) -> dict:
    """How far a model's similarity, and the posterior where it is known, agree with people.

    Returns:
        pairs, photos, false_negatives (called a match by most), left_out; `similarity`, and
        `posterior` if the embeddings carry FNE's statistics, each ap, auroc and spearman as [value,
        low, high]; and the posterior's `calibration`. Where photos have several captions also
        `captions`, the similarity of captions, `evidence`, the posterior by both, and its
        `evidence_calibration`.
    """
    judgements = read_judgements(path, embeddings.split)
    similarity = (embeddings.image_embeds[judgements.images]
                  * embeddings.text_embeds[judgements.texts]).sum(dim=1).double()  # (J,)
    false_negatives = int((judgements.yes > 0.5).sum())
    if false_negatives in (0, len(judgements.yes)):
        raise InputError(f"--judgements {path}: people agree on every pair, so there is nothing to "
                         "rank")
    result = {"pairs": len(judgements.yes), "photos": len(np.unique(judgements.images)),
              "false_negatives": false_negatives, "left_out": judgements.left_out,
              "similarity": with_intervals(judgements, similarity.numpy(), resamples)}
    if fitted_gaussians(embeddings):
        posterior = fitted_posterior(similarity, embeddings).numpy()
        result["posterior"] = with_intervals(judgements, posterior, resamples)
        result["calibration"] = calibration(judgements.yes, posterior)
    if evidence := fit_evidence(embeddings):
        captions, posterior = (scores.numpy() for scores in score_by_evidence(
            embeddings, evidence, *map(torch.from_numpy, (judgements.images, judgements.texts))))
        result["captions"] = with_intervals(judgements, captions, resamples)
        result["evidence"] = with_intervals(judgements, posterior, resamples)
        result["evidence_calibration"] = calibration(judgements.yes, posterior)
    return result


def fitted_posterior(similarity: torch.Tensor, embeddings: Embeddings) -> torch.Tensor:
    """P(false negative) of similarities (J,), from the statistics beside the embeddings."""
    return false_negative_posterior(similarity, *fitted_gaussians(embeddings), embeddings.prior)


def judgement_lines(result: dict) -> str:
    """What a test prints of it."""
    skipped = ", ".join(f"{n:,} {reason}" for reason, n in result["left_out"].items() if n)
    lines = [f"people: {result['pairs']:,} unannotated pairs of {result['photos']:,} photos",
             f"  {result['false_negatives']:,} called a match (false negatives); left out:",
             f"  {skipped or 'none'}",
             "                     AP                 AUROC              Spearman"]
    for name in "similarity", "posterior", "captions", "evidence":
        if name in result:
            cells = "  ".join("{:.3f} [{:.3f}, {:.3f}]".format(*result[name][key])
                              for key in ("ap", "auroc", "spearman"))
            lines.append(f"  {name:11} {cells}")
    for name, key in (("posterior", "calibration"), ("evidence", "evidence_calibration")):
        if key in result:
            lines.append(f"  {name:18} pairs   mean    called a match   mean share of yes")
            lines += [f"  {row['low']:7.4f}-{row['high']:<7.4f} {row['pairs']:8} "
                      f"{row['mean_posterior']:7.4f} {row['match_share']:12.3f} "
                      f"{row['mean_yes']:16.3f}" for row in result[key]]
    return "\n".join(lines)
