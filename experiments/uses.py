"""Train with another use of likely matches, which the posterior by evidence
finds, and test. Takes all flags of train.py:

    python -m experiments.uses filter --dataset flickr8k --loss triplet

`experiments.dose --uses` runs all uses at each dose. Each use takes the place
of one loss after its warm-up. Uses in the triplet loss and in InfoNCE know the
captions of a photo that the run has seen; those in FNE know batch and bank, as
`--posterior evidence` does.
"""

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

import contextlib
import math
from collections.abc import Iterator

from common.errors import InputError, exit_on_input_error
from experiments.flags import USES, WITNESS_BAR, build_uses_parser

if __name__ == "__main__":
    build_uses_parser(__doc__).parse_known_args()  # --help need not wait for the imports below

import torch
import torch.nn.functional as F
from torch import Tensor

import train
from common.options import with_preset
from common.presets import PRIOR_OF_EVIDENCE
from common.ranks import world_size
from data import Batch, Split
from experiments.likely_options import LIKELY_OPTIONS
from fne_loss import (
    FNELoss,
    RunningBivariateGaussian,
    false_negative_posterior,
    is_trusted,
    sampling_weights,
)
from model import DualEncoder
from negative_sampling import cosine, excluded_candidates, pair_moments
from training.objectives import OBJECTIVES, Entry
from training.objectives.base import Objective, Outcome, Step
from training.objectives.fne import FNEObjective
from training.objectives.infonce import InfoNCEObjective
from training.objectives.triplet import TripletObjective
from training.options import TrainOptions, parse

SHARPNESS = 100.0  # of a draw that takes the hardest: .01 of similarity is a factor of e


class LikelyMatches:
    """Estimate P(match) of the pairs of a batch from the online embeddings of captions.

    This is `fne_loss.false_negative_posterior` by evidence, r being the mean similarity to all
    captions of the photo that were seen, each as it was last seen.

    Args:
        image_of_text: (N_t,) int64, photo of each caption of the training split.
        dim: D, the width of the embeddings.
        min_count: pairs of a photo and another caption of it that must have been seen before
            anything is likely.
    """

    def __init__(self, image_of_text: Tensor, dim: int, min_count: int = 200):
        count = image_of_text.bincount()  # (N_i,)
        order = image_of_text.argsort(stable=True)  # (N_t,)
        first = (count.cumsum(0) - count)[image_of_text[order]]  # (N_t,)
        place = torch.arange(len(order), device=order.device) - first  # (N_t,) among the photo's
        self.captions = order.new_full((len(count), int(count.max())), -1)  # (N_i, K)
        self.captions[image_of_text[order], place] = order
        self.texts = torch.zeros(len(order), dim, device=order.device)  # (N_t, D)
        self.seen = torch.zeros(len(order), dtype=torch.bool, device=order.device)  # (N_t,)
        self.same = RunningBivariateGaussian().to(order.device)
        self.different = RunningBivariateGaussian().to(order.device)
        self.min_count = min_count

    @torch.no_grad()
    def update(self, batch: Batch, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """Estimate P(match) of a batch, then learn from it in place.

        Args:
            batch: the ids of B pairs.
            image_embeds, text_embeds: (B, D) online embeddings.

        Returns:
            (B, B), images in rows and texts in columns; 0 within a photo.
        """
        image_ids, text_ids = batch.image_ids, batch.text_ids
        self.texts[text_ids], self.seen[text_ids] = text_embeds.float(), True
        listed = self.captions[image_ids]  # (B, K)
        exists = (listed >= 0) & self.seen[listed.clamp(min=0)]  # (B, K)
        known = self.texts[listed.clamp(min=0)] * exists[..., None]  # (B, K, D)
        total, count = known.sum(dim=1), exists.sum(dim=1, keepdim=True)  # (B, D), (B, 1)
        s, r = cosine(image_embeds, text_embeds), cosine(total, text_embeds) / count  # (B, B)
        other_photo = image_ids[:, None] != image_ids  # (B, B)
        posterior = false_negative_posterior(
            s.double(), self.same, self.different, PRIOR_OF_EVIDENCE, r.double(),
            trusted=is_trusted(self.min_count, self.same)).float()
        posterior = posterior.where(other_photo, 0.0)  # (B, B)
        exists = exists & (listed != text_ids[:, None])  # (B, K) other captions of the photo
        same_s = (image_embeds.float()[:, None] * known).sum(dim=2)  # (B, K)
        without_itself = ((total[:, None] - known) * known).sum(dim=2)  # (B, K)
        same_r = without_itself / (count - 1).clamp(min=1)  # (B, K)
        self.same.add(pair_moments(same_s * exists, same_r * exists, exists.sum()))
        self.different.add(pair_moments(s * other_photo, r * other_photo, other_photo.sum()))
        return posterior


def infonce_with_likely(
    similarity: Tensor, image_ids: Tensor, likely: Tensor, log_scale: Tensor, share: float
) -> Tensor:
    """Compute InfoNCE that repels a likely match less and, with `share`, attracts it.

    With l = exp(log_scale) s, p of `likely`, and w_i = 1 for anchor i's own and share p_ij else:

        mean over j by w_ij of  -log( exp(l_ij) / (exp(l_ij) + sum over n of (1 - p_in) exp(l_in)) )

    n are the candidates of other photos. With p = 0 it is `fne_loss.infonce_loss`.

    Args:
        similarity: s (B, B), images in rows and texts in columns.
        image_ids: (B,) int64, photo of each pair.
        likely: p (B, B), P(match).
        log_scale: () log of the inverse temperature.
        share: of a likely match as a positive.

    Returns:
        () loss, the mean of both directions.
    """
    excluded = excluded_candidates(image_ids, image_ids)  # (B, B)
    logits = log_scale.exp() * similarity
    negatives = (logits + torch.log1p(-likely.clamp(max=1 - 1e-6))).masked_fill(
        excluded, -torch.inf)  # (B, B)
    weights = (share * likely).masked_fill(excluded, 0.0) + torch.eye(len(logits)).to(likely)
    i2t = infonce_of_direction(logits, negatives, weights)
    return (i2t + infonce_of_direction(logits.T, negatives.T, weights.T)) / 2


def infonce_of_direction(logits: Tensor, negatives: Tensor, weights: Tensor) -> Tensor:
    """Compute one direction of `infonce_with_likely`, anchors in the rows of (B, B): a () loss."""
    denominator = negatives.logsumexp(dim=1, keepdim=True)  # (B, 1)
    costs = weights * F.softplus(denominator - logits)  # (B, B)
    return (costs.sum(dim=1) / weights.sum(dim=1)).mean()


# ------------------------------------------------------------------------------------- objectives


def likely_matches(split: Split, dim: int, device: torch.device) -> LikelyMatches:
    """Build the estimate of P(match) for a training split."""
    return LikelyMatches(torch.from_numpy(split.image_of_text).to(device), dim)


class FilterObjective(TripletObjective):
    """The triplet loss on the hardest candidate that is not likely a match.

    Up to `--likely_after` epochs it is the usual triplet loss.
    """

    def __init__(self, options, model: DualEncoder, split: Split | None = None):
        super().__init__(options, model, split)
        self.likely = likely_matches(split, model.embed_size, self.device)

    @classmethod
    def uses_hardest(cls, options, epoch: int) -> bool:
        """Tell whether an epoch, counted from 0, takes the hardest negative alone."""
        return epoch >= options.likely_after or super().uses_hardest(options, epoch)

    def excluded_in_batch(self, step: Step) -> Tensor | None:
        """Find pairs that are likely matches: (B, B) bool, images in rows. Learns in place."""
        if step.epoch < self.options.likely_after:
            return None
        likely = self.likely.update(step.batch, step.all_image_embeds, step.all_text_embeds)
        return likely > self.options.likely_threshold


class FilterWarmUpObjective(FNEObjective):
    """FNE whose warm-up filters, for runs that never leave it: momentum encoders and all."""

    warm_up_class = FilterObjective


class LikelyInfoNCEObjective(InfoNCEObjective):
    """InfoNCE that repels a likely match less and, with `--likely_share`, attracts it.

    Up to `--likely_after` epochs it is the usual InfoNCE.
    """

    def __init__(self, options, model: DualEncoder, split: Split | None = None):
        super().__init__(options, model, split)
        self.likely = likely_matches(split, model.embed_size, self.device)

    def forward(self, step: Step) -> Outcome:
        """Compute the loss of a step, and learn what is likely in place."""
        if step.epoch < self.options.likely_after:
            return super().forward(step)
        likely = self.likely.update(step.batch, step.all_image_embeds, step.all_text_embeds)
        loss = infonce_with_likely(step.similarity, step.batch.image_ids, likely, self.log_scale,
                                   self.options.likely_share)
        negatives = self.softmax_negatives(step.similarity, step.batch, None)
        return Outcome(loss, loss.detach(), negatives)


class Witnessed(Objective):
    """What a loss of the batch has where a witness of given quality says what is a match."""

    def __init__(self, options, model: DualEncoder, split: Split | None = None):
        super().__init__(options, model, split)
        self.witnessed = witnessed_matches(split, options.witness).to(self.device)

    def excluded_in_batch(self, step: Step) -> Tensor | None:
        """Look up what the witness calls a match: (B, B) bool, images in rows."""
        return self.witnessed[step.batch.text_ids[None, :], step.batch.image_ids[:, None]]


class WitnessObjective(Witnessed, TripletObjective):
    """The triplet loss without what a witness of given quality calls a match."""


class WitnessWarmUpObjective(FNEObjective):
    """FNE whose warm-up asks the witness, for runs that never leave it: momentum and all."""

    warm_up_class = WitnessObjective


class WitnessInfoNCEObjective(Witnessed, InfoNCEObjective):
    """InfoNCE without what a witness of given quality calls a match."""


def witness_log_odds(matches: Tensor, distance: float) -> Tensor:
    """Score pairs as a witness does that errs: a normal number, `distance` higher for a match.

    Args:
        matches: (N_t, N_i) bool, all true matches.
        distance: between the means of both kinds, in standard deviations.

    Returns:
        (N_t, N_i) logarithm of the odds of a match, by Bayes' rule with the share of matches as
        prior; the same numbers in each run.
    """
    noise = torch.randn(matches.shape, generator=torch.Generator().manual_seed(0))
    prior = matches.double().mean().clamp(1e-9, 1 - 1e-9)
    scores = distance * matches + noise
    return distance * scores - distance**2 / 2 + prior.logit().float()


def witnessed_matches(split: Split, distance: float) -> Tensor:
    """Return what a witness calls a match with a probability above `WITNESS_BAR`.

    Args:
        split: whose true matches are known.
        distance: as of `witness_log_odds`.

    Returns:
        (N_t, N_i) bool.
    """
    log_odds = witness_log_odds(torch.from_numpy(split.matches), distance)
    return log_odds > math.log(WITNESS_BAR / (1 - WITNESS_BAR))


class LikelyInBank(FNELoss):
    """FNE that weighs batch and bank with the posterior by evidence in another way.

    Args:
        settings: positional arguments of `FNELoss`.
        published_prior: the prior of the published posterior.
        threshold: the hardest candidate whose posterior is not above it is drawn; None for the
            published weights times 1 - p.
    """

    def __init__(self, *settings, published_prior: float, threshold: float | None):
        super().__init__(*settings, posterior="evidence")
        self.published_prior, self.threshold = published_prior, threshold

    def weigh(
        self, similarity: Tensor, positive_similarity: Tensor, excluded: Tensor,
        caption_similarity: Tensor | None = None, match_posterior: Tensor | None = None,
    ) -> Tensor:
        """Compute weights (R, c) in [0, 1]; arguments as of `FNELoss.weigh`."""
        posterior = self.posterior(similarity, caption_similarity)
        if self.threshold is not None:
            unlikely = (posterior <= self.threshold) & ~excluded
            return torch.exp(SHARPNESS * (similarity - 1)) * unlikely
        published = sampling_weights(
            similarity, positive_similarity, excluded, self.positive, self.negative,
            margin=self.margin, tau=self.tau, prior=self.published_prior,
            posterior_floor=self.posterior_floor, min_count=self.min_count)
        return published * (1 - posterior)


class BankObjective(FNEObjective):
    """FNE with the weights of `LikelyInBank`."""

    def build_criterion(self) -> FNELoss:
        """Build the loss that the options describe."""
        options = self.options
        published_prior = with_preset(TrainOptions, {"dataset": options.dataset}).prior
        return LikelyInBank(
            options.margin, options.tau, options.prior, options.posterior_floor,
            options.nums_right_sims, published_prior=published_prior,
            threshold=options.likely_threshold)


@contextlib.contextmanager
def use_in_place(name: str, loss: str, after: int = 0) -> Iterator[list[str]]:
    """Have `--loss` name a use of likely matches inside the `with`.

    Args:
        name: of `USES`.
        loss: what `--loss` is, which the use replaces in the table of objectives.
        after: epochs of the usual loss before the use; of FNE it is `--warmup_epochs`.

    Yields:
        The flags of train.py that set up the use.
    """
    use, usual = USES[name], OBJECTIVES[loss]
    flags = ["--likely_share", str(use.share), "--likely_after", str(after)]
    if use.witness is not None:
        flags = ["--witness", str(use.witness)]
    if use.threshold is not None:
        flags += ["--likely_threshold", str(use.threshold)]
    if use.witness is not None:
        objective = {"triplet": WitnessObjective, "fne": WitnessWarmUpObjective,
                     "infonce": WitnessInfoNCEObjective}[loss]
    elif use.loss != "fne":
        objectives = {"triplet": FilterObjective, "fne": FilterWarmUpObjective,
                      "infonce": LikelyInfoNCEObjective}
        objective = objectives[loss]
    else:
        objective = BankObjective if use.in_bank else FNEObjective
    path = f"{objective.__module__}:{objective.__name__}"
    OBJECTIVES[loss] = Entry(path, LIKELY_OPTIONS[loss])
    try:
        yield flags
    finally:
        OBJECTIVES[loss] = usual


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    arguments, flags = build_uses_parser(__doc__).parse_known_args(argv)
    with exit_on_input_error():
        use = USES[arguments.use]
        if use.loss == "fne":
            flags = [*flags, "--posterior", "evidence"]
        options, _ = parse("", flags)
        if options.loss != use.loss:
            raise InputError(f"{arguments.use} takes the place of --loss {use.loss}: give that")
        if options.resume is not None:
            raise InputError("--resume: no checkpoint holds what a use has learned; start anew")
        if use.loss != "fne" and (options.oracle != "off" or world_size() > 1):
            raise InputError(f"{arguments.use} takes no --oracle, and trains in one process")
        with use_in_place(arguments.use, options.loss, arguments.after) as more:
            train.main([*flags, *more])


if __name__ == "__main__":
    main()
