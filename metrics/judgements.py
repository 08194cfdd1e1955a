"""People's answers to "does this caption describe this photo?", against a model's similarity.

Reads a JSON list of {"image", "caption_of", "caption_no", "yes", "no"} and Flickr8k's own
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
from metrics.teacher import fit_teacher

# How the keys of `agreement` are printed.
AGREEMENT_LABELS = {"ap": "AP", "auroc": "AUROC", "spearman": "Spearman's rho"}
RESAMPLES = 200  # of the intervals
# Scores that `judge` compares with people, and of those that are probabilities the calibration.
SCORES = "similarity", "posterior", "captions", "evidence", "teacher", "teacher_posterior"
CALIBRATIONS = {"posterior": "calibration", "evidence": "evidence_calibration",
                "teacher posterior": "teacher_calibration"}
POSTERIOR_BINS = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 1.0)  # of the calibration table


class Judgements(NamedTuple):
    """J judged pairs of a photo and another photo's caption.

    Attributes:
        images: (J,) the photos' indices in the split.
        texts: (J,) the captions' indices in the split.
        yes_share: (J,) the share of people who call the pair a match, in [0, 1].
        left_out: The number of pairs that are not scored, by reason.
    """

    images: np.ndarray
    texts: np.ndarray
    yes_share: np.ndarray
    left_out: dict[str, int]


class JudgedPair(NamedTuple):
    """One line or record of a file of judgements.

    Attributes:
        image: The photo's file name.
        caption_image: The file name of the photo that the caption belongs to.
        caption_number: The caption's number among those of its photo, from 0.
        yes_share: The share of people who call the pair a match, in [0, 1]; None where nobody has
            answered yet.
    """

    image: str
    caption_image: str
    caption_number: int
    yes_share: float | None


def read_judgements(path: Path, split: Split) -> Judgements:
    """Read the judged pairs whose photo and caption are in a split.

    Args:
        path: A JSON file, or a text file of Flickr8k.
        split: Names the photos, with or without folders, and their captions.

    Raises:
        InputError: If the file cannot be read, or none of its pairs can be scored.
    """
    pairs = read_json_pairs(path) if path.suffix == ".json" else read_text_pairs(path)
    index_of_image = {name.rsplit("/", 1)[-1]: index for index, name in enumerate(split.images)}
    index_of_image |= {name: index for index, name in enumerate(split.images)}
    texts_of_image = [[] for _ in split.images]
    for text, image in enumerate(split.image_of_text.tolist()):
        texts_of_image[image].append(text)
    images, texts, yes_shares = [], [], []
    left_out = {"annotated as matches": 0, "photo not in the split": 0,
                "caption not in the split": 0, "not answered": 0}
    for pair in pairs:
        caption_image = index_of_image.get(pair.caption_image)
        captions = [] if caption_image is None else texts_of_image[caption_image]
        if pair.image == pair.caption_image or (
                caption_image is not None and caption_image == index_of_image.get(pair.image)):
            left_out["annotated as matches"] += 1
        elif pair.yes_share is None:
            left_out["not answered"] += 1
        elif pair.image not in index_of_image:
            left_out["photo not in the split"] += 1
        elif not 0 <= pair.caption_number < len(captions):
            left_out["caption not in the split"] += 1
        else:
            images.append(index_of_image[pair.image])
            texts.append(captions[pair.caption_number])
            yes_shares.append(pair.yes_share)
    if not images:
        raise InputError(f"--judgements {path}: none of its {len(pairs)} pairs is an unannotated "
                         f"pair of {split.source}")
    return Judgements(np.array(images), np.array(texts), np.array(yes_shares), left_out)


def read_json_pairs(path: Path) -> list[JudgedPair]:
    """Read judged pairs from a JSON list of {"image", "caption_of", "caption_no", "yes", "no"}.

    A record with 0 in both is not answered yet: `scripts.find_matches` writes such.

    Raises:
        InputError: If the file is no such list; the message names the record.
    """
    records = read_json(path)
    if not isinstance(records, list):
        raise InputError(f"--judgements {path} is not a list of records")
    pairs = []
    for number, record in enumerate(records):
        try:
            yes, no = float(record["yes"]), float(record["no"])
            if not (yes >= 0 and no >= 0 and yes + no < np.inf):
                raise ValueError("counts must be finite and not negative")
            image, caption_image = str(record["image"]), str(record["caption_of"])
            yes_share = yes / (yes + no) if yes + no else None
            pairs.append(JudgedPair(image, caption_image, int(record["caption_no"]), yes_share))
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise InputError(f"--judgements {path}: record {number} needs image, caption_of, "
                             f"caption_no, and answers in yes and no ({error!r})") from error
    return pairs


def read_text_pairs(path: Path) -> list[JudgedPair]:
    """Read judged pairs from one of Flickr8k's text files.

    A line is photo, `photo#number` of the caption, and three numbers, separated by tabs. In
    CrowdFlowerAnnotations.txt the numbers are the share of yes, and the counts of yes and no. In
    ExpertAnnotations.txt they are the scores of three experts from 1 to 4, of which 3 and 4 call
    the pair a match.

    Raises:
        InputError: If the file has another format; the message names the line.
    """
    try:
        lines = read_bytes(path).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--judgements {path} cannot be read: {one_line(error)}") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        try:
            image, caption, *numbers = line.split("\t")
            caption_image, caption_number = caption.rsplit("#", 1)
            first, second, third = map(float, numbers)
            if min(first, second, third) >= 1:  # scores of experts
                yes_share = np.mean([score >= 3 for score in (first, second, third)])
            else:
                yes_share = second / (second + third)
            if not 0 <= yes_share <= 1:
                raise ValueError("counts must not be negative")
            pairs.append(JudgedPair(image, caption_image, int(caption_number), float(yes_share)))
        except (ValueError, ArithmeticError) as error:
            raise InputError(f"--judgements {path}: line {number} is not photo, caption#number and "
                             f"three numbers, parted by tabs ({error})") from error
    return pairs


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the area under precision over recall, for scores that should find the true labels.

    Equal scores share the precision at the end of their run.

    Args:
        labels: (J,) bool, at least one of them true.
        scores: (J,).
    """
    order = np.argsort(-scores, kind="stable")
    labels, scores = labels[order], scores[order]
    ends_run = np.append(np.diff(scores) != 0, True)  # the last of each run of equal scores
    hits = labels.cumsum()[ends_run]
    precision = hits / (np.flatnonzero(ends_run) + 1)
    return float((np.diff(hits, prepend=0) * precision).sum() / labels.sum())


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the probability that a true label scores above a false one; equal scores count half.

    Args:
        labels: (J,) bool, both values among them.
        scores: (J,).
    """
    from scipy import stats  # takes a second to load, which most commands need not wait for

    ranks = stats.rankdata(scores)
    positives = labels.sum()
    negatives = len(labels) - positives
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def agreement(yes_share: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Return how far scores agree with people.

    Args:
        yes_share: (J,) the share of people who call each pair a match.
        scores: (J,).

    Returns:
        "ap" and "auroc" for the label "most people say yes", and "spearman", the rank correlation
        with `yes_share`.
    """
    from scipy import stats  # takes a second to load

    labels = yes_share > 0.5
    return {"ap": average_precision(labels, scores), "auroc": auroc(labels, scores),
            "spearman": float(stats.spearmanr(scores, yes_share).statistic)}


def agreement_with_intervals(
    judgements: Judgements, scores: np.ndarray, resamples: int, seed: int = 0
) -> dict[str, list[float]]:
    """Return `agreement` with 95 % bootstrap intervals over photos.

    The pairs of a photo are not independent, so photos are drawn with replacement, not pairs.

    Args:
        judgements: J judged pairs.
        scores: (J,).
        resamples: The number of times that photos are drawn.
        seed: Of the random numbers.

    Returns:
        [value, low, high] by the keys of `agreement`.
    """
    value = agreement(judgements.yes_share, scores)
    order = np.argsort(judgements.images, kind="stable")
    first_of_photo = np.flatnonzero(np.diff(judgements.images[order])) + 1
    pairs_of_photo = np.split(order, first_of_photo)
    generator = np.random.default_rng(seed)
    samples = []
    for _ in range(resamples):
        photos = generator.integers(len(pairs_of_photo), size=len(pairs_of_photo))
        pairs = np.concatenate([pairs_of_photo[photo] for photo in photos])
        matches = (judgements.yes_share[pairs] > 0.5).sum()
        if 0 < matches < len(pairs):
            samples.append(agreement(judgements.yes_share[pairs], scores[pairs]))
    intervals = {}
    for key in value:
        low, high = np.percentile([sample[key] for sample in samples], (2.5, 97.5))
        intervals[key] = [value[key], low, high]
    return intervals


def calibration(yes_share: np.ndarray, posterior: np.ndarray) -> list[dict[str, float]]:
    """Compare the posterior with people's answers in the bins of `POSTERIOR_BINS`.

    Args:
        yes_share: (J,) the share of people who call each pair a match.
        posterior: (J,) P(false negative).

    Returns:
        For each bin that is not empty: "low" and "high", the number of "pairs", "mean_posterior",
        "match_share", the share of pairs that most people call a match, and "mean_yes".
    """
    rows = []
    for low, high in itertools.pairwise(POSTERIOR_BINS):
        inside = (posterior >= low) & ((posterior < high) | (high == 1.0))
        if inside.any():
            rows.append({"low": low, "high": high, "pairs": int(inside.sum()),
                         "mean_posterior": float(posterior[inside].mean()),
                         "match_share": float((yes_share[inside] > 0.5).mean()),
                         "mean_yes": float(yes_share[inside].mean())})
    return rows


def judge(embeddings: Embeddings, path: Path, resamples: int | None = None) -> dict:
    """Return how far a model's similarity and posteriors agree with people.

    Args:
        embeddings: Embeddings of a split.
        path: A file of judgements, see `read_judgements`.
        resamples: See `agreement_with_intervals`; `RESAMPLES` if None.

    Returns:
        "pairs", "photos", "false_negatives" (pairs that most people call a match) and "left_out";
        "similarity", and where the embeddings have FNE's statistics "posterior", each as
        `agreement_with_intervals` returns it; and the posterior's "calibration". Where photos have
        several captions also "captions", for the similarity of captions, "evidence", for the
        posterior by evidence, and its "evidence_calibration". With a teacher's embeddings also
        "teacher", for its similarity of captions, "teacher_posterior", for its P(match), and
        "teacher_calibration".

    Raises:
        InputError: If the file cannot be read, or people agree on every pair.
    """
    resamples = RESAMPLES if resamples is None else resamples
    judgements = read_judgements(path, embeddings.split)
    embeddings = embeddings.in_full_precision()
    image_embeds = embeddings.image_embeds[judgements.images]  # (J, D)
    text_embeds = embeddings.text_embeds[judgements.texts]  # (J, D)
    similarity = (image_embeds * text_embeds).sum(dim=1).double()  # (J,)
    false_negatives = int((judgements.yes_share > 0.5).sum())
    if false_negatives in (0, len(judgements.yes_share)):
        raise InputError(f"--judgements {path}: people agree on every pair, so there is nothing to "
                         "rank")
    result = {"pairs": len(judgements.yes_share), "photos": len(np.unique(judgements.images)),
              "false_negatives": false_negatives, "left_out": judgements.left_out,
              "similarity": agreement_with_intervals(judgements, similarity.numpy(), resamples)}
    if fitted_gaussians(embeddings):
        posterior = fitted_posterior(similarity, embeddings).numpy()
        result["posterior"] = agreement_with_intervals(judgements, posterior, resamples)
        result["calibration"] = calibration(judgements.yes_share, posterior)
    evidence = fit_evidence(embeddings)
    if evidence is not None:
        captions, posterior = score_by_evidence(
            embeddings, evidence, torch.from_numpy(judgements.images),
            torch.from_numpy(judgements.texts))
        posterior = posterior.numpy()
        result["captions"] = agreement_with_intervals(judgements, captions.numpy(), resamples)
        result["evidence"] = agreement_with_intervals(judgements, posterior, resamples)
        result["evidence_calibration"] = calibration(judgements.yes_share, posterior)
    teacher = fit_teacher(embeddings)
    if teacher is not None:
        captions, posterior = teacher.of_pairs(torch.from_numpy(judgements.images),
                                               torch.from_numpy(judgements.texts))
        captions, posterior = captions.double().numpy(), posterior.double().numpy()
        result["teacher"] = agreement_with_intervals(judgements, captions, resamples)
        result["teacher_posterior"] = agreement_with_intervals(judgements, posterior, resamples)
        result["teacher_calibration"] = calibration(judgements.yes_share, posterior)
    return result


def fitted_posterior(similarity: torch.Tensor, embeddings: Embeddings) -> torch.Tensor:
    """Return P(false negative) by the statistics that stand beside embeddings.

    Args:
        similarity: (J,) similarities of photo and caption.
        embeddings: Embeddings with statistics, see `fitted_gaussians`.

    Returns:
        (J,) probabilities.
    """
    positive, negative = fitted_gaussians(embeddings)
    return false_negative_posterior(similarity, positive, negative, embeddings.prior)


def judgement_lines(result: dict) -> str:
    """Return the result of `judge` as the lines that a test prints."""
    skipped = ", ".join(f"{count:,} {reason}"
                        for reason, count in result["left_out"].items() if count)
    lines = [f"people: {result['pairs']:,} unannotated pairs of {result['photos']:,} photos",
             f"  {result['false_negatives']:,} called a match (false negatives); left out:",
             f"  {skipped or 'none'}",
             "                           AP                 AUROC              Spearman"]
    for name in SCORES:
        if name in result:
            cells = ["{:.3f} [{:.3f}, {:.3f}]".format(*result[name][key])
                     for key in ("ap", "auroc", "spearman")]
            lines.append(f"  {name.replace('_', ' '):17} {'  '.join(cells)}")
    for name, key in CALIBRATIONS.items():
        if key not in result:
            continue
        lines.append(f"  {name:18} pairs   mean    called a match   mean share of yes")
        lines += [f"  {row['low']:7.4f}-{row['high']:<7.4f} {row['pairs']:8} "
                  f"{row['mean_posterior']:7.4f} {row['match_share']:12.3f} "
                  f"{row['mean_yes']:16.3f}" for row in result[key]]
    return "\n".join(lines)
