"""The in-batch triplet loss, a control of its own and the warm-up of FNE."""

from torch import Tensor

from fne_loss import rank_batch, triplet_from_similarity
from training.objectives.base import Objective, Outcome, Step, hardest_negatives


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
        loss = self.loss_of(step.similarity, step.batch.image_ids, excluded,
                            self.uses_hardest(self.options, step.epoch))
        ranking = step.ranking
        if excluded is not None:
            ranking = rank_batch(step.similarity, step.batch.image_ids, excluded)
        return Outcome(loss, loss.detach(), hardest_negatives(ranking, step.batch))

    def loss_of(
        self, similarity: Tensor, image_ids: Tensor, excluded: Tensor | None, hardest: bool
    ) -> Tensor:
        """Compute the loss from similarities.

        Args:
            similarity: (B, B), images in rows and texts in columns.
            image_ids: (B,) int64, photo of each pair.
            excluded: (B, B) bool, further pairs that are no negatives, or None.
            hardest: whether only the hardest negative of each anchor counts.

        Returns:
            () loss.
        """
        return triplet_from_similarity(similarity, image_ids, self.options.margin, hardest,
                                       excluded)

    def compiled_methods(self) -> tuple[str, ...]:
        """Name the loss from similarities."""
        return ("loss_of",)
