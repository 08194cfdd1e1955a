"""InfoNCE, the in-batch softmax contrastive loss of CLIP, as a control."""

import math

import torch
from torch import Tensor, nn

from common.errors import InputError
from data import Batch
from fne_loss import excluded_candidates, infonce_logits, infonce_loss
from training.objectives.base import (
    Negatives,
    Objective,
    Outcome,
    Step,
    check_teacher,
    excluded_share,
    weighted_pairs,
)
from training.true_matches import infonce_of_matches

FIRST_TEMPERATURE = 0.07
LARGEST_SCALE = 100.0  # as of CLIP


def bound_scale(log_scale: Tensor, first_scale: float) -> None:
    """Bound a learned scale in place, to 100 or to where it began, if that was more.

    Args:
        log_scale: () logarithm of the scale.
        first_scale: the scale that the run began with; that of SigLIP is above 100.
    """
    log_scale.data.clamp_(max=math.log(max(LARGEST_SCALE, first_scale)))


class InfoNCEObjective(Objective):
    """Softmax over the batch with a learned temperature.

    With `--oracle positives` every true match of the batch is a positive. Without `--temperature`
    the constructor sets `options.temperature` in place: to that of a pretrained pair, or to 0.07.
    """

    def __init__(self, options, model, split=None):
        super().__init__(options, model, split)
        if options.temperature is None:
            options.temperature = 1 / model.logit_scale if model.logit_scale else FIRST_TEMPERATURE
        scale = torch.tensor(1 / options.temperature, device=self.device)
        self.log_scale = nn.Parameter(scale.log())  # () log of the inverse temperature

    @classmethod
    def check_options(cls, options) -> None:
        """Accept `--oracle positives` as well, but not beside a teacher.

        Raises:
            InputError: an option needs another loss, or another option.
        """
        if options.oracle != "positives":
            return super().check_options(options)
        check_teacher(options)
        if options.posterior != "published":
            raise InputError(f"--oracle positives: takes no --posterior {options.posterior}; leave "
                             "one of the two out")

    @classmethod
    def phase(cls, options, epoch: int) -> str:
        """Name the loss of an epoch, counted from 0."""
        return "InfoNCE"

    def forward(self, step: Step) -> Outcome:
        """Compute the loss of a step from the similarities of the whole batch."""
        excluded = self.excluded_in_batch(step)  # (B, B) or None
        weights = self.negative_weights(step)  # (B, B) or None
        ids = step.batch.image_ids
        loss = self.loss_of(step.similarity, ids, excluded, weights)
        negatives = self.softmax_negatives(step.similarity, step.batch, excluded, weights)
        return Outcome(loss, loss.detach(), negatives, excluded_share(excluded, ids))

    def loss_of(
        self, similarity: Tensor, image_ids: Tensor, excluded: Tensor | None,
        weights: Tensor | None,
    ) -> Tensor:
        """Compute the loss from similarities.

        Args:
            similarity: (B, B), images in rows and texts in columns.
            image_ids: (B,) int64, photo of each pair.
            excluded: (B, B) bool, pairs that are no negatives beside those of one photo, or None.
            weights: (B, B) factors of the negatives' terms, or None.

        Returns:
            () loss.
        """
        if self.options.oracle == "positives":
            return infonce_of_matches(similarity, excluded, self.log_scale)
        return infonce_loss(similarity, image_ids, self.log_scale, excluded, weights)

    def compiled_methods(self) -> tuple[str, ...]:
        """Name the loss from similarities."""
        return ("loss_of",)

    @torch.no_grad()
    def softmax_negatives(
        self, similarity: Tensor, batch: Batch, also_excluded: Tensor | None,
        negative_weights: Tensor | None = None,
    ) -> Negatives:
        """Give all pairs of a batch by the softmax's weight on them, both directions summed.

        Args:
            similarity: (B, B), images in rows and texts in columns.
            batch: the batch's ids.
            also_excluded: (B, B) bool, pairs that are no negatives.
            negative_weights: (B, B) factors of the negatives' terms.
        """
        excluded = excluded_candidates(batch.image_ids, batch.image_ids, also_excluded)  # (B, B)
        logits = infonce_logits(similarity, batch.image_ids, self.log_scale, also_excluded,
                                negative_weights)  # (B, B)
        weights = (logits.softmax(dim=0) + logits.softmax(dim=1)) * ~excluded  # (B, B)
        return weighted_pairs(weights, batch)

    def after_step(self, step: Step) -> None:
        """Bound the learned scale in place."""
        bound_scale(self.log_scale, 1 / self.options.temperature)

    def entries(self) -> dict[str, nn.Module | Tensor]:
        """Name what a checkpoint keeps."""
        return {"log_scale": self.log_scale}

    def values(self) -> dict[str, Tensor | float]:
        """Give the temperature for TensorBoard."""
        return {"train/temperature": (-self.log_scale.detach()).exp()}
