"""The in-batch triplet loss, a control of its own and the warm-up of FNE."""

import torch
from torch import Tensor

from fne_loss import BatchRanking, rank_batch, triplet_costs, triplet_from_similarity
from training.objectives.base import (
    Objective,
    Outcome,
    Step,
    excluded_share,
    hardest_negatives,
)


class TripletObjective(Objective):
    """Hinge on the hardest negative in the batch with `--max_violation`, else on all negatives.

    The first `--easy_epochs` epochs sum over all negatives in any case: under the hardest negative
    alone an encoder that is trained from scratch collapses.
    """

    @classmethod
    def uses_hardest(cls, options, epoch: int) -> bool:
        """Tell whether an epoch, counted from 0, takes the hardest negative alone."""
        return options.max_violation and epoch >= options.easy_epochs

    @classmethod
    def phase(cls, options, epoch: int) -> str:
        """Name the loss of an epoch, counted from 0."""
        hardest = cls.uses_hardest(options, epoch)
        return "triplet, hardest negative" if hardest else "triplet, all negatives"

    def forward(self, step: Step) -> Outcome:
        """Compute the loss of a step from the similarities of the whole batch."""
        excluded = self.excluded_in_batch(step)  # (B, B) or None
        weights = self.negative_weights(step)  # (B, B) or None
        loss = self.loss_of(step.similarity, step.batch.image_ids, excluded, weights,
                            self.uses_hardest(self.options, step.epoch))
        ranking = step.ranking
        if weights is not None:
            ranking = rank_by_cost(step, self.options.margin, excluded, weights)
        elif excluded is not None:
            ranking = rank_batch(step.similarity, step.batch.image_ids, excluded)
        return Outcome(loss, loss.detach(), hardest_negatives(ranking, step.batch),
                       excluded_share(excluded, step.batch.image_ids))

    def loss_of(
        self, similarity: Tensor, image_ids: Tensor, excluded: Tensor | None,
        weights: Tensor | None, hardest: bool,
    ) -> Tensor:
        """Compute the loss from similarities.

        Args:
            similarity: (B, B), images in rows and texts in columns.
            image_ids: (B,) int64, photo of each pair.
            excluded: (B, B) bool, pairs that are no negatives beside those of one photo, or None.
            weights: (B, B) factors of the negatives' costs, or None.
            hardest: whether only the negative of highest cost counts for each anchor.

        Returns:
            () loss.
        """
        return triplet_from_similarity(similarity, image_ids, self.options.margin, hardest,
                                       excluded, weights)

    def compiled_methods(self) -> tuple[str, ...]:
        """Name the loss from similarities."""
        return ("loss_of",)


@torch.no_grad()
def rank_by_cost(
    step: Step, margin: float, excluded: Tensor | None, weights: Tensor
) -> BatchRanking:
    """Find the negative of highest cost of each anchor, where negatives count less than in full.

    Args:
        step: a training step.
        margin: of the hinge.
        excluded: (B, B) bool, pairs that are no negatives beside those of one photo, or None.
        weights: (B, B) factors of the costs.

    Returns:
        The ranking, with -inf as `hardest` where no negative costs anything.
    """
    costs = torch.stack(triplet_costs(
        step.similarity, step.batch.image_ids, margin, excluded, weights))  # (2, B, B)
    highest, places = costs.max(dim=2)  # (2, B), (2, B)
    return step.ranking._replace(hardest=highest.where(highest > 0, -torch.inf), hardest_at=places)
