"""The oracle: what perfect elimination of false negatives would give, where all matches are known.

With --oracle no true match of an anchor is a candidate of its loss: not in the sum and not the
hardest of the triplet loss, in no draw of FNE from batch and bank nor its fallback, and not in the
denominator of InfoNCE. Nothing else changes. FNE's statistics in particular are those of the run
without: confident pairs and their hardest negatives are how the method measures, not what it
repels, and with others the cut-down would move, so that two things would differ and not one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import InputError
from data import Batch, LoadedSplit
from training.run import Run

OFF, EXCLUDE, POSITIVES = "off", "exclude", "positives"  # values of --oracle


def check_known(oracle: str, train_set: LoadedSplit) -> None:
    """Raise InputError where `oracle` asks for matches that are not known."""
    split = train_set.split
    if oracle != OFF and split.matches is None:
        raise InputError(f"--oracle {oracle}: the true matches of {split.source} are not known: "
                         f"give them in {split.source.stem}_matches.json beside it, or take "
                         "--dataset shapes")


def in_batch(run: Run, batch: Batch) -> Tensor | None:
    """(B, B) bool, images in rows and texts in columns: true matches, the pairs themselves among
    them. None without the oracle."""
    if run.options.oracle == OFF:
        return None
    matches = run.matches[batch.text_ids[None, :], batch.image_ids[:, None]]  # (B, B)
    # A file of matches may leave out what the pairs themselves tell.
    return matches | (batch.image_ids[:, None] == batch.image_ids)


def among_candidates(
    run: Run, batch: Batch, own: slice
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Which of batch and bank is a true match of this process's A anchors: (A, C) bool of i2t, and
    of t2i. None, None without the oracle.

    A text whose number the bank does not know counts as one: the bank of a released checkpoint has
    photos alone.
    """
    if run.options.oracle == OFF:
        return None, None
    texts = torch.cat([batch.text_ids, run.bank.text_ids])  # (C,)
    images = torch.cat([batch.image_ids, run.bank.image_ids])  # (C,)
    own_texts, own_images = batch.text_ids[own, None], batch.image_ids[own, None]  # (A, 1)
    return (run.matches[texts.clamp(min=0), own_images] | (texts < 0),
            run.matches[own_texts, images.clamp(min=0)])


def infonce_of_matches(similarity: Tensor, matches: Tensor, log_scale: Tensor) -> Tensor:
    """InfoNCE with every true match of the batch as a positive, mean of both directions.

    With l = exp(log_scale) s, P the matches of anchor i in the batch and N all others:

        mean over p in P of  -log( exp(l_ip) / (exp(l_ip) + sum over n in N of exp(l_in)) )

    Each match is ranked before all that is none, and matches do not compete: in one softmax they
    would push each other apart. The logarithm of their *summed* shares would be content with one
    of them, mostly the annotated one, and mAP@R asks for all. Without further matches this is
    `fne_loss.infonce_loss`.

    Args:
        similarity: (B, B), images in rows and texts in columns.
        matches: (B, B) bool likewise, its diagonal true.
        log_scale: () log of the inverse temperature.
    """
    logits = log_scale.exp() * similarity  # (B, B)
    return sum(mean_over_matches(*sides) for sides in
               ((logits, matches), (logits.T, matches.T))) / 2


def mean_over_matches(logits: Tensor, matches: Tensor) -> Tensor:
    """() mean over anchors, in rows, of the formula above."""
    others = logits.masked_fill(matches, -torch.inf).logsumexp(dim=1, keepdim=True)  # (B, 1)
    costs = F.softplus(others - logits).masked_fill(~matches, 0.0)  # (B, B)
    return (costs.sum(dim=1) / matches.sum(dim=1)).mean()


def text(oracle: str) -> str:
    """What was done, for whoever reads results; "" without the oracle."""
    return {OFF: "", EXCLUDE: "oracle: true matches excluded from the candidates",
            POSITIVES: "oracle: true matches as further positives"}[oracle]
