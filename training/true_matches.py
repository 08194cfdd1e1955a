"""The true matches of the training split, annotated or not, where they are known.

True matches serve two ends. `TrueMatches.share_of` tells which share of a loss's negatives is
false. And with `--oracle` they bound what any elimination of false negatives could give: no true
match of an anchor is then a candidate of its loss, neither in the sum nor as the hardest of the
triplet loss, neither in a draw of FNE nor as its fallback, nor in the denominator of InfoNCE. FNE's
published statistics stay those of a run without the oracle: confident pairs and their hardest
negatives are how the method measures, not what it repels, and with others the cut-down would move
as well. With `--posterior evidence` N- is fitted to the candidates of the draws, so without the
true matches.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import InputError
from data import Batch, Split
from memory_bank import MemoryBank

# What `--oracle` did to a run, for whoever reads its results.
ORACLE_TEXT = {"off": "", "exclude": "oracle: true matches excluded from the candidates",
               "positives": "oracle: true matches as further positives"}


class TrueMatches(NamedTuple):
    """Which caption of the training split is true of which photo."""

    matrix: Tensor | None  # (N_t, N_i) bool on the run's device; None where matches are not known

    @classmethod
    def of_split(cls, split: Split | None, device: torch.device) -> "TrueMatches":
        """Copy the matches of a split to `device`; None where it has none."""
        if split is None or split.matches is None:
            return cls(None)
        return cls(torch.from_numpy(split.matches).to(device))

    @property
    def known(self) -> bool:
        """Return whether the true matches are known."""
        return self.matrix is not None

    def check_known(self, oracle: str, split: Split | None) -> None:
        """Check that `--oracle` asks for nothing that is not known.

        Raises:
            InputError: it does.
        """
        if oracle != "off" and split is not None and not self.known:
            raise InputError(f"--oracle {oracle}: the true matches of {split.source} are not known:"
                             f" give them in {split.source.stem}_matches.json beside it, or take "
                             "--dataset shapes")

    def in_batch(self, batch: Batch) -> Tensor:
        """Look up the true matches among a batch's pairs.

        Returns:
            (B, B) bool, images in rows and texts in columns, true on the diagonal.
        """
        matches = self.matrix[batch.text_ids[None, :], batch.image_ids[:, None]]  # (B, B)
        # A file of matches may leave out what the pairs themselves tell.
        return matches | (batch.image_ids[:, None] == batch.image_ids)

    def among_candidates(
        self, batch: Batch, bank: MemoryBank, local: slice
    ) -> tuple[Tensor, Tensor]:
        """Look up the true matches of A anchors among the C candidates of batch and bank.

        A text whose index the bank does not know counts as a match: the bank of a released
        checkpoint knows photos alone.

        Args:
            batch: the ids of all B pairs.
            bank: the memory bank.
            local: the A rows of the batch that are anchors.

        Returns:
            (A, C) bool of i2t, and of t2i.
        """
        text_ids = torch.cat([batch.text_ids, bank.text_ids])  # (C,)
        image_ids = torch.cat([batch.image_ids, bank.image_ids])  # (C,)
        anchor_texts, anchor_images = batch.text_ids[local, None], batch.image_ids[local, None]
        return (self.matrix[text_ids.clamp(min=0), anchor_images] | (text_ids < 0),
                self.matrix[anchor_texts, image_ids.clamp(min=0)])

    def share_of(self, image_ids: Tensor, text_ids: Tensor, weights: Tensor) -> Tensor:
        """Compute which share of negative pairs is a true match, by weight.

        Args:
            image_ids, text_ids: int64; a pair with a negative id is unknown and left out.
            weights: not negative; the three shapes broadcast.

        Returns:
            () share in [0, 1]; NaN where no pair is known.
        """
        weights = weights * ((image_ids >= 0) & (text_ids >= 0))
        false_negative = self.matrix[text_ids.clamp(min=0), image_ids.clamp(min=0)]
        return (weights * false_negative).sum() / weights.sum()


def infonce_of_matches(similarity: Tensor, matches: Tensor, log_scale: Tensor) -> Tensor:
    """Compute InfoNCE with every true match of the batch as a positive, mean of both directions.

    With l = exp(log_scale) s, P the matches of anchor i in the batch and N all others:

        mean over p in P of  -log( exp(l_ip) / (exp(l_ip) + sum over n in N of exp(l_in)) )

    Each match is ranked before all that is none, and matches do not compete: in one softmax they
    would push each other apart. The logarithm of their summed shares would be content with one of
    them, mostly the annotated one, and mAP@R asks for all. Without further matches this is
    `fne_loss.infonce_loss`.

    Args:
        similarity: (B, B), images in rows and texts in columns.
        matches: (B, B) bool in the same layout, true on the diagonal.
        log_scale: () log of the inverse temperature.

    Returns:
        () loss.
    """
    logits = log_scale.exp() * similarity  # (B, B)
    i2t, t2i = mean_over_matches(logits, matches), mean_over_matches(logits.T, matches.T)
    return (i2t + t2i) / 2


def mean_over_matches(logits: Tensor, matches: Tensor) -> Tensor:
    """Compute one direction of `infonce_of_matches`, anchors in the rows of (B, B): a () loss."""
    others = logits.masked_fill(matches, -torch.inf).logsumexp(dim=1, keepdim=True)  # (B, 1)
    costs = F.softplus(others - logits).masked_fill(~matches, 0.0)  # (B, B)
    return (costs.sum(dim=1) / matches.sum(dim=1)).mean()
