"""The pairwise sigmoid loss of SigLIP (Zhai et al., 2023).

This is also the example of docs/extending.md: a loss of the batch alone with two learned numbers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fne_loss import excluded_candidates
from training.objectives.base import Objective, Outcome, Step, excluded_share, weighted_pairs
from training.objectives.infonce import bound_scale

FIRST_SCALE, FIRST_BIAS = 10.0, -10.0  # of SigLIP's training, from scratch


def sigmoid_loss(
    similarity: Tensor, image_ids: Tensor, log_scale: Tensor, bias: Tensor,
    also_excluded: Tensor | None = None, negative_weights: Tensor | None = None,
) -> Tensor:
    """Compute the pairwise sigmoid loss: every pair of the batch is classified by itself.

        1/B sum over i, j of  -log sigmoid(z_ij (exp(log_scale) s_ij + bias))

    with z_ij = 1 for the pairs and -1 for all others.

    Args:
        similarity: s (B, B), images in rows and texts in columns.
        image_ids: (B,) int64, photo of each pair; other captions of it are left out.
        log_scale, bias: () learned numbers.
        also_excluded: (B, B) bool, further pairs that are left out.
        negative_weights: (B, B) in [0, 1], factor of each negative's term; 1 by default. The
            diagonal is ignored.

    Returns:
        () loss.
    """
    excluded = excluded_candidates(image_ids, image_ids, also_excluded).fill_diagonal_(False)
    logits = log_scale.exp() * similarity + bias  # (B, B)
    signs = 2 * torch.eye(len(logits), device=logits.device) - 1  # (B, B)
    costs = -F.logsigmoid(signs * logits)  # (B, B)
    if negative_weights is not None:
        costs = costs * negative_weights.where(signs < 0, 1.0)
    return costs.masked_fill(excluded, 0.0).sum() / len(logits)


class SigmoidObjective(Objective):
    """Pairwise sigmoid loss with learned scale and bias.

    Without `--sigmoid_scale` or `--sigmoid_bias` the constructor sets them in `options` in place:
    to those of a pair that was trained with this loss, or to those that SigLIP's own training began
    with. The scale of a CLIP, which has no bias, would make positives of all pairs.
    """

    def __init__(self, options, model, split=None):
        super().__init__(options, model, split)
        has_bias = bool(model.logit_bias)  # 0 of a pair that was trained with a softmax
        if options.sigmoid_scale is None:
            options.sigmoid_scale = model.logit_scale if has_bias else FIRST_SCALE
        if options.sigmoid_bias is None:
            options.sigmoid_bias = model.logit_bias if has_bias else FIRST_BIAS
        first_scale = torch.tensor(options.sigmoid_scale, device=self.device)
        self.log_scale = nn.Parameter(first_scale.log())  # ()
        self.bias = nn.Parameter(torch.tensor(options.sigmoid_bias, device=self.device))  # ()

    @classmethod
    def phase(cls, options, epoch: int) -> str:
        """Name the loss of an epoch, counted from 0."""
        return "sigmoid"

    def forward(self, step: Step) -> Outcome:
        """Compute the loss of a step from the similarities of the whole batch."""
        excluded, image_ids = self.excluded_in_batch(step), step.batch.image_ids
        factors = self.negative_weights(step)  # (B, B) or None
        loss = self.loss_of(step.similarity, image_ids, excluded, factors)
        with torch.no_grad():  # a negative's share of the gradient with respect to the similarities
            weights = torch.sigmoid(self.log_scale.exp() * step.similarity + self.bias)  # (B, B)
            weights = weights * ~excluded_candidates(image_ids, image_ids, excluded)
            if factors is not None:
                weights = weights * factors
        return Outcome(loss, loss.detach(), weighted_pairs(weights, step.batch),
                       excluded_share(excluded, image_ids))

    def loss_of(
        self, similarity: Tensor, image_ids: Tensor, excluded: Tensor | None,
        factors: Tensor | None,
    ) -> Tensor:
        """Compute the `sigmoid_loss` by the learned numbers: a () loss."""
        return sigmoid_loss(similarity, image_ids, self.log_scale, self.bias, excluded, factors)

    def compiled_methods(self) -> tuple[str, ...]:
        """Name the loss from similarities."""
        return ("loss_of",)

    def after_step(self, step: Step) -> None:
        """Bound the learned scale in place, as `InfoNCEObjective` does."""
        bound_scale(self.log_scale, self.options.sigmoid_scale)

    def entries(self) -> dict[str, nn.Module | Tensor]:
        """Name what a checkpoint keeps."""
        return {"log_scale": self.log_scale, "sigmoid_bias": self.bias}

    def values(self) -> dict[str, Tensor | float]:
        """Give scale and bias for TensorBoard."""
        return {"train/temperature": (-self.log_scale.detach()).exp(),
                "train/sigmoid_bias": self.bias.detach()}
