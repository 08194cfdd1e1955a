"""False Negative Elimination: one function for each formula of the paper (section 3), and the loss.

A candidate that looks more like the anchor's match than a negative should is, by Bayes' rule,
probably a match that nobody annotated. FNE turns this probability into a sampling weight and repels
one sampled candidate.

Shapes, here and in `negative_sampling.py`: B batch, M memory bank, C = B + M candidates (the
batch's keys first, then the bank's slots), D embedding, A anchors of one process (A = B in a single
process). Embeddings are unit rows. "i2t" has images as anchors and texts as candidates, "t2i" the
reverse. Needs only `memory_bank.py` and `negative_sampling.py`.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memory_bank import MemoryBank
from negative_sampling import (
    NO_NEGATIVE,
    Candidates,
    CaptionEvidence,
    Direction,
    cosine,
    cosine_of_pairs,
    draw_negatives,
    excluded_candidates,
    positive_and_drawn_keys,
)
from negative_sampling import sample_negatives as sample_negatives  # public here

LEAST_VARIANCE = 1e-12  # a single repeated value has no spread: this keeps its density finite

# -------------------------------------------------------------------------------------- statistics


class RunningGaussian(nn.Module):
    """Fit a Gaussian to a stream of similarities (paper, section 3.2).

    Buffers:
        count: () int64, values so far.
        mean: () float64.
        m2: () float64, sum of squared deviations.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        # In double precision, since a long epoch adds 1e5 small terms to a large sum.
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("m2", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, values: Tensor, mask: Tensor | None = None) -> None:
        """Add values to the statistics in place.

        This is the published estimator: first the mean moves over all the values, then each value
        adds its squared deviation from that new mean to `m2`. Welford's estimator would be exact;
        this one is a little low, and the numbers of the released program depend on it.

        Args:
            values: similarities of any shape.
            mask: bool of the same shape, true for the values to add; all by default. A mask is
                taken rather than a selection, for which a GPU would wait.
        """
        values = values.to(self.mean.dtype)
        mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
        values = values.where(mask, 0.0)
        count = self.count + mask.sum()
        mean = (self.mean * self.count + values.sum()) / count.clamp(min=1)
        self.m2 += ((values - mean).square() * mask).sum()
        self.mean.copy_(mean)
        self.count.copy_(count)

    @property
    def variance(self) -> Tensor:
        """Variance m2 / (count - 1), a () tensor; 0 before there are two values."""
        return self.m2 / (self.count - 1).clamp(min=1)

    def log_density(self, similarity: Tensor) -> Tensor:
        """Compute log N(s; mean, variance) up to a constant, in the shape of `similarity`."""
        mean = self.mean.to(similarity.dtype)
        variance = self.variance.clamp(min=LEAST_VARIANCE).to(similarity.dtype)
        return -0.5 * ((similarity - mean).square() / variance + variance.log())

    def reset(self) -> None:
        """Set all statistics to 0 in place."""
        for buffer in self.buffers():
            buffer.zero_()


class RunningBivariateGaussian(nn.Module):
    """Fit a Gaussian to a stream of pairs (s, r), for the posterior by evidence, which is ours.

    s is the similarity of photo and caption, r that of captions. No published number depends on
    this estimator: it is exact (Chan et al., 1983).

    Buffers:
        count: () int64, pairs so far.
        mean: (2,) float64.
        m2: (2, 2) float64, sums of products of deviations.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("m2", torch.zeros(2, 2, dtype=torch.float64))

    @torch.no_grad()
    def add(self, moments: Tensor) -> None:
        """Add pairs to the statistics in place, or nothing if a moment is not finite.

        Args:
            moments: (6,) sums of 1, s, r, s^2, s r, r^2 over the pairs, as by
                `negative_sampling.pair_moments`.
        """
        count, s, r, ss, sr, rr = moments.where(moments.isfinite().all(), 0.0)
        mean = torch.stack([s, r]) / count.clamp(min=1)
        step, share = mean - self.mean, count / (self.count + count).clamp(min=1)
        self.m2 += torch.stack([ss, sr, sr, rr]).view(2, 2) - torch.outer(mean, mean) * count
        self.m2 += torch.outer(step, step) * self.count * share
        self.mean += step * share
        self.count += count.long()

    def log_density(self, similarity: Tensor, caption_similarity: Tensor) -> Tensor:
        """Compute log N((s, r); mean, covariance) up to a constant, in the inputs' shape."""
        (var_s, cov), (_, var_r) = self.m2 / (self.count - 1).clamp(min=1)
        var_s, var_r = var_s.clamp(min=LEAST_VARIANCE), var_r.clamp(min=LEAST_VARIANCE)
        determinant = (var_s * var_r - cov.square()).maximum(1e-9 * var_s * var_r)
        s, r = similarity - self.mean[0], caption_similarity - self.mean[1]
        distance = s.square() * (var_r / determinant) - s * r * (2 * cov / determinant)
        return -0.5 * (distance + r.square() * (var_s / determinant) + determinant.log())

    reset = RunningGaussian.reset


class BatchRanking(NamedTuple):
    """How the pairs of a batch compare with their hardest negatives, without gradient."""

    positive: Tensor  # (B,) similarity of each pair
    hardest: Tensor  # (2, B) similarity of each image's hardest text, and each text's hardest image
    hardest_at: Tensor  # (2, B) row of that negative in the batch; arbitrary where hardest is -inf
    confident: Tensor  # (B,) bool, pairs that are each other's best match


@torch.no_grad()
def rank_batch(
    similarity: Tensor, image_ids: Tensor, also_excluded: Tensor | None = None
) -> BatchRanking:
    """Find each pair's hardest negatives in the batch, and the confident pairs (section 3.2).

    Another caption of a pair's own photo is no negative (Fidelity note 4). A pair is confident if
    both its image and its text are more similar to each other than to any negative; a tie is not.

    Args:
        similarity: (B, B), images in rows and texts in columns, pairs on the diagonal.
        image_ids: (B,) int64, photo of each pair.
        also_excluded: (B, B) bool, further pairs that are no negatives.
    """
    positive = similarity.detach().diagonal()  # (B,)
    excluded = excluded_candidates(image_ids, image_ids, also_excluded)  # (B, B)
    allowed = similarity.masked_fill(excluded, -torch.inf)  # (B, B)
    hardest, hardest_at = torch.stack([allowed, allowed.T]).max(dim=2)  # (2, B), (2, B)
    return BatchRanking(positive, hardest, hardest_at, (positive > hardest).all(dim=0))


def confident_pairs(similarity: Tensor, image_ids: Tensor) -> Tensor:
    """Find the pairs that are each other's best match in the batch (paper, section 3.2).

    Args:
        similarity: (B, B), images in rows and texts in columns.
        image_ids: (B,) int64, photo of each pair.

    Returns:
        (B,) bool.
    """
    return rank_batch(similarity, image_ids).confident


# --------------------------------------------------------------------------- posterior and weights


def is_trusted(min_count: int, *gaussians: nn.Module) -> Tensor:
    """Tell whether more than `min_count` values were fitted to each Gaussian: () bool."""
    return torch.stack([gaussian.count for gaussian in gaussians]).min() > min_count


def false_negative_posterior(
    similarity: Tensor, positive: nn.Module, negative: nn.Module, prior: float,
    caption_similarity: Tensor | None = None, trusted: Tensor | None = None,
) -> Tensor:
    """Compute P(false negative | s) by Bayes' rule (paper, section 3.2).

        p = prior N+(s) / (prior N+(s) + (1 - prior) N-(s))

    It is computed as the sigmoid of the log odds: in both tails the densities themselves are 0 / 0.

    Args:
        similarity: s, of any shape.
        positive, negative: the fitted N+ and N-: two `RunningGaussian`, or, with
            `caption_similarity`, two `RunningBivariateGaussian`.
        prior: P(false negative) of a candidate before its similarity is known, in (0, 1).
        caption_similarity: r, in the shape of `similarity`, for P(false negative | s, r), which is
            ours and not the paper's.
        trusted: () bool; where false the posterior is 0, as if the prior were.

    Returns:
        Probabilities in [0, 1], in the shape of `similarity`.
    """
    evidence = (similarity,) if caption_similarity is None else (similarity, caption_similarity)
    log_likelihood_ratio = positive.log_density(*evidence) - negative.log_density(*evidence)
    log_prior_odds = math.log(prior / (1 - prior))
    if trusted is not None:
        log_prior_odds = positive.mean.new_full((), log_prior_odds).where(trusted, -torch.inf)
    return torch.sigmoid(log_likelihood_ratio + log_prior_odds)


def cut_down_bound(positive: RunningGaussian, margin: float) -> Tensor:
    """Compute the similarity up to which all weights are 0: a () tensor (paper, section 3.3).

    Easy negatives teach nothing: the hinge of one below mean(N+) - margin is mostly 0.
    """
    return positive.mean - margin


def weights_from_posterior(
    similarity: Tensor, positive_similarity: Tensor, excluded: Tensor, posterior: Tensor,
    bound: Tensor, *, tau: float, posterior_floor: float,
) -> Tensor:
    """Compute the weights that negatives are drawn by (paper, section 3.3).

        exp(-tau p)           where p > posterior_floor: a likely false negative is drawn less
        exp(-tau (s - s+)^2)  elsewhere: a candidate near the positive is drawn more
        0                     where excluded, and where s <= bound

    Args:
        similarity: s (B, C), anchors in rows and candidates in columns.
        positive_similarity: s+ (B,), each anchor with its own key.
        excluded: (B, C) bool.
        posterior: p (B, C), P(false negative).
        bound: () the `cut_down_bound`.
        tau: how fast the weights fall with posterior and distance.
        posterior_floor: posterior up to which a candidate counts as a true negative.

    Returns:
        (B, C) weights in [0, 1]; a row may be all zero.
    """
    distance = (similarity - positive_similarity[:, None]).square()
    weights = torch.exp(-tau * torch.where(posterior > posterior_floor, posterior, distance))
    cut = similarity <= bound.to(similarity.dtype)
    return weights * ~(excluded | cut)  # faster than masked_fill, which branches at each candidate


def sampling_weights(
    similarity: Tensor, positive_similarity: Tensor, excluded: Tensor,
    positive: RunningGaussian, negative: RunningGaussian, *,
    margin: float, tau: float, prior: float, posterior_floor: float, min_count: int,
) -> Tensor:
    """Compute the published sampling weights from similarities (paper, section 3.3).

    The posterior is used once more than `min_count` confident pairs were fitted, and 0 until then.

    Args:
        similarity: s (B, C), anchors in rows and candidates in columns.
        positive_similarity: s+ (B,), each anchor with its own key.
        excluded: (B, C) bool, true where a candidate shows the anchor's own photo or is empty.
        positive, negative: the fitted N+ and N-.
        margin, tau, prior, posterior_floor, min_count: as of `FNELoss`.

    Returns:
        (B, C) weights in [0, 1]; a row may be all zero.
    """
    posterior = false_negative_posterior(
        similarity, positive, negative, prior, trusted=is_trusted(min_count, positive))  # (B, C)
    return weights_from_posterior(
        similarity, positive_similarity, excluded, posterior, cut_down_bound(positive, margin),
        tau=tau, posterior_floor=posterior_floor)


# ------------------------------------------------------------------------------------------ losses


def hinge(anchors: Tensor, keys: Tensor, negatives: Tensor, margin: float) -> Tensor:
    """Compute the hinge loss of anchors with one negative each (paper, section 3.3).

        mean over i of max(0, margin + s(anchor i, keys[negatives[i]]) - s(anchor i, keys[i]))

    Args:
        anchors: (B, D) unit rows, the only input that receives a gradient.
        keys: (C, D) unit rows, C >= B; anchor i's positive is keys[i].
        negatives: (B,) int64 rows of `keys`; an anchor with `NO_NEGATIVE` contributes 0.
        margin: the margin.

    Returns:
        () loss.
    """
    keys = keys.detach()
    lead = (anchors * (keys[negatives] - keys[: len(anchors)])).sum(dim=1)  # (B,)
    return F.relu(margin + lead).where(negatives != NO_NEGATIVE, 0.0).mean()


def triplet_loss(
    image_embeds: Tensor, text_embeds: Tensor, image_ids: Tensor, margin: float, max_violation: bool
) -> Tensor:
    """Compute the in-batch triplet loss of VSE++ (Faghri et al., 2018), both directions, over B.

    Args:
        image_embeds, text_embeds: (B, D) unit rows; row i of both is a pair.
        image_ids: (B,) int64, photo of each pair; another caption of it is no negative.
        margin: the margin.
        max_violation: whether only the hardest negative of each anchor counts, or all.

    Returns:
        () loss.
    """
    similarity = cosine(image_embeds, text_embeds)  # (B, B)
    return triplet_from_similarity(similarity, image_ids, margin, max_violation)


def triplet_from_similarity(
    similarity: Tensor, image_ids: Tensor, margin: float, max_violation: bool,
    also_excluded: Tensor | None = None, negative_weights: Tensor | None = None,
) -> Tensor:
    """Compute the in-batch triplet loss, which is FNE's warm-up, from similarities.

    Args:
        similarity: (B, B), images in rows and texts in columns.
        image_ids: (B,) int64, photo of each pair; another caption of it is no negative (Fidelity
            note 4).
        margin: the margin.
        max_violation: whether only the negative of highest cost counts for each anchor, or all.
        also_excluded: (B, B) bool, further pairs that are no negatives.
        negative_weights: (B, B) in [0, 1], factor of each negative's cost; 1 by default.

    Returns:
        () loss, both directions summed and divided by B.
    """
    cost_i2t, cost_t2i = triplet_costs(similarity, image_ids, margin, also_excluded,
                                       negative_weights)
    if max_violation:
        cost_i2t, cost_t2i = cost_i2t.amax(dim=1), cost_t2i.amax(dim=1)  # (B,), (B,)
    return (cost_i2t.sum() + cost_t2i.sum()) / len(image_ids)


def triplet_costs(
    similarity: Tensor, image_ids: Tensor, margin: float, also_excluded: Tensor | None = None,
    negative_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the hinge of each anchor with each negative of the batch, in both directions.

    Args:
        similarity, image_ids, margin, also_excluded, negative_weights: as of
            `triplet_from_similarity`.

    Returns:
        Costs (B, B) of i2t and of t2i, anchors in rows; 0 for what is no negative.
    """
    positive = similarity.diagonal()[:, None]  # (B, 1)
    excluded = excluded_candidates(image_ids, image_ids, also_excluded)  # (B, B)
    cost_i2t = F.relu(margin + similarity - positive).masked_fill(excluded, 0.0)  # (B, B)
    cost_t2i = F.relu(margin + similarity.T - positive).masked_fill(excluded.T, 0.0)  # (B, B)
    if negative_weights is None:
        return cost_i2t, cost_t2i
    return cost_i2t * negative_weights, cost_t2i * negative_weights.T


def infonce_loss(
    similarity: Tensor, image_ids: Tensor, log_scale: Tensor, also_excluded: Tensor | None = None,
    negative_weights: Tensor | None = None,
) -> Tensor:
    """Compute the in-batch softmax contrastive loss of CLIP (Radford et al., 2021), as a control.

    Args:
        similarity: (B, B), images in rows and texts in columns.
        image_ids: (B,) int64, photo of each pair; other captions of it leave the softmax.
        log_scale: () log of the inverse temperature. Where it is learned, clamp it to log 100 after
            each optimizer step, as CLIP does; a clamp in here would end its gradient.
        also_excluded: (B, B) bool, further pairs that leave the softmax.
        negative_weights: (B, B) in [0, 1], factor of each negative's term in the softmax's sum; 1
            by default. The diagonal is ignored.

    Returns:
        () loss, the mean of both directions.
    """
    logits = infonce_logits(similarity, image_ids, log_scale, also_excluded, negative_weights)
    return ((logits.logsumexp(dim=1) + logits.logsumexp(dim=0)) / 2 - logits.diagonal()).mean()


def infonce_logits(
    similarity: Tensor, image_ids: Tensor, log_scale: Tensor, also_excluded: Tensor | None = None,
    negative_weights: Tensor | None = None,
) -> Tensor:
    """Compute the logits (B, B) of `infonce_loss`, whose arguments these are; -inf is left out."""
    excluded = excluded_candidates(image_ids, image_ids, also_excluded).fill_diagonal_(False)
    logits = log_scale.exp() * similarity  # (B, B)
    if negative_weights is not None:
        pairs = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits + negative_weights.masked_fill(pairs, 1.0).log()
    return logits.masked_fill(excluded, -torch.inf)


class DrawnNegatives(NamedTuple):
    """The negatives drawn in one direction, and what the sampler computed of them; no gradient."""

    indices: Tensor  # (A,) int64 candidate: below B the batch's, else the bank's slot; -1 for none
    keys: Tensor  # (2A, D) the anchors' positive keys, then their negatives'
    rows: Tensor  # (A,) int64, row of each anchor's negative in `keys`; -1 for none
    posterior: Tensor  # (A,) P(match) of the drawn candidates; 0 until a fitted one is trusted
    counts: Tensor  # (2,) candidates of all anchors that have weight, and that are not excluded
    evidence: Tensor  # (2, 6) moments of (s, r) for `FNELoss.add_evidence`; 0 if not by evidence

    @property
    def cut_share(self) -> Tensor:
        """Share of the allowed candidates that the cut-down removed: a () tensor in [0, 1]."""
        return 1 - self.counts[0] / self.counts[1].clamp(min=1)


class FNELoss(nn.Module):
    """The loss of the paper, for any training loop.

    The fitted statistics are buffers, saved by `state_dict`.

    Args:
        margin: lead that a positive should have over a negative, and the width of the cut-down.
        tau: how fast the weights fall with posterior and distance.
        prior: P(false negative) of any candidate, in (0, 1).
        posterior_floor: posterior up to which a candidate counts as a true negative.
        min_count: confident pairs that an epoch must exceed before the posterior is used.
        posterior: "published", or "evidence" for ours, which also uses the similarity of captions
            (a prior of 0.01 suits it); `forward` and the bank then need `text_ids`.

    Raises:
        ValueError: `posterior` is another text, or `prior` lies outside (0, 1).

    Example::

        criterion.reset_statistics()                   # when an epoch starts
        for image_embeds, text_embeds, image_keys, text_keys, image_ids in steps:
            criterion.update_statistics(image_embeds, text_embeds, image_ids)
            loss = criterion(image_embeds, text_embeds, image_keys, text_keys, image_ids, bank)
            ...
            bank.enqueue(image_keys, text_keys, image_ids)
    """

    def __init__(
        self, margin: float = 0.2, tau: float = 0.5, prior: float = 1e-4,
        posterior_floor: float = 1e-3, min_count: int = 200, posterior: str = "published",
    ):
        super().__init__()
        if posterior not in ("published", "evidence"):
            raise ValueError(f"posterior is published or evidence, got {posterior}")
        if not 0 < prior < 1:
            raise ValueError(f"prior is a probability in (0, 1), got {prior}")
        self.margin, self.tau, self.prior = margin, tau, prior
        self.posterior_floor, self.min_count = posterior_floor, min_count
        self.positive, self.negative = RunningGaussian(), RunningGaussian()
        self.by_evidence = posterior == "evidence"
        if self.by_evidence:
            self.same, self.different = RunningBivariateGaussian(), RunningBivariateGaussian()

    @torch.no_grad()
    def update_statistics(
        self, image_embeds: Tensor, text_embeds: Tensor, image_ids: Tensor
    ) -> None:
        """Add a batch to N+ and N- in place (paper, section 3.2).

        Args:
            image_embeds, text_embeds: (B, D) online embeddings of pairs.
            image_ids: (B,) int64, photo of each pair.
        """
        self.add_ranking(rank_batch(cosine(image_embeds, text_embeds), image_ids))

    @torch.no_grad()
    def add_ranking(self, ranking: BatchRanking) -> None:
        """Add a ranked batch to N+ and N- in place.

        A confident pair gives its similarity to N+, and its hardest negative in each direction to
        N-.
        """
        self.positive.update(ranking.positive, ranking.confident)
        self.negative.update(ranking.hardest, ranking.confident & ranking.hardest.isfinite())

    def add_evidence(self, evidence: Tensor) -> None:
        """Add the moments of a step's candidates to the Gaussians of the evidence in place.

        Without the posterior by evidence nothing is added.

        Args:
            evidence: (2, 6), the sum of `DrawnNegatives.evidence` over directions and processes:
                moments of candidates with another caption of the same photo, and of all allowed
                ones.
        """
        if self.by_evidence:
            self.same.add(evidence[0])
            self.different.add(evidence[1])

    def reset_statistics(self) -> None:
        """Forget all statistics in place; each epoch starts anew."""
        for gaussian in self.children():
            gaussian.reset()

    def posterior_is_trusted(self, by_evidence: bool) -> Tensor:
        """Tell whether this epoch has fitted enough pairs to use the posterior: () bool.

        Args:
            by_evidence: whether caption similarities are used too.
        """
        fitted = (self.positive, self.same) if by_evidence else (self.positive,)
        return is_trusted(self.min_count, *fitted)

    def posterior(self, similarity: Tensor, caption_similarity: Tensor | None = None) -> Tensor:
        """Compute P(false negative) by the fitted statistics; 0 until they are trusted.

        Args:
            similarity: s, of any shape.
            caption_similarity: r, in the same shape, for the posterior by evidence; None for the
                published one.
        """
        by_evidence = caption_similarity is not None
        fitted = (self.same, self.different) if by_evidence else (self.positive, self.negative)
        return false_negative_posterior(similarity, *fitted, self.prior, caption_similarity,
                                        trusted=self.posterior_is_trusted(by_evidence))

    def weigh(
        self, similarity: Tensor, positive_similarity: Tensor, excluded: Tensor,
        caption_similarity: Tensor | None = None, match_posterior: Tensor | None = None,
    ) -> Tensor:
        """Compute sampling weights by the fitted statistics and the settings of this loss.

        Args:
            similarity: s (R, c), anchors in rows and candidates in columns.
            positive_similarity: s+ (R,).
            excluded: (R, c) bool.
            caption_similarity: r (R, c), needed by evidence.
            match_posterior: p (R, c) that the caller knows, in place of the fitted posterior.

        Returns:
            (R, c) weights in [0, 1].
        """
        posterior = match_posterior
        if posterior is None:
            posterior = self.posterior(similarity, caption_similarity)  # (R, c)
        return weights_from_posterior(
            similarity, positive_similarity, excluded, posterior, self.cut_down_bound(),
            tau=self.tau, posterior_floor=self.posterior_floor)

    def cut_down_bound(self) -> Tensor:
        """Compute the similarity up to which all weights are 0: a () tensor."""
        return cut_down_bound(self.positive, self.margin)

    @torch.no_grad()
    def draw(
        self, image_embeds: Tensor, text_embeds: Tensor, image_keys: Tensor, text_keys: Tensor,
        image_ids: Tensor, bank: MemoryBank, *, first: int = 0,
        also_excluded: tuple[Tensor | None, Tensor | None] = (None, None),
        text_ids: Tensor | None = None, match_posterior: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[DrawnNegatives, DrawnNegatives]:
        """Draw one negative for each anchor of both directions.

        Args:
            image_embeds, text_embeds: (A, D) online embeddings of the batch's pairs from `first`
                on.
            image_keys, text_keys: (B, D) momentum keys of all pairs.
            image_ids: (B,) int64, photo of each pair.
            bank: the memory bank, which is only read.
            first: row of the batch that the first anchor is.
            also_excluded: (A, C) bool of i2t and of t2i: candidates to exclude in addition.
            text_ids: (B,) int64, caption of each pair; needed by evidence.
            match_posterior: (A, C) of i2t and of t2i: P(match) of each candidate as the caller
                knows it, in place of the posterior that this loss fits.

        Returns:
            The negatives of i2t and of t2i.
        """
        directions = (Direction(image_embeds, text_keys, bank.text_keys),
                      Direction(text_embeds, image_keys, bank.image_keys))
        captions = None
        if self.by_evidence:
            if text_ids is None:
                raise ValueError("the posterior by evidence needs text_ids (B,) of the captions")
            captions = text_keys, bank.text_keys, torch.cat([text_ids, bank.text_ids])
        return self.draw_directions(directions, image_ids, bank.image_ids, first=first,
                                    also_excluded=also_excluded, captions=captions,
                                    match_posterior=match_posterior)

    @torch.no_grad()
    def draw_directions(
        self, directions: tuple[Direction, ...], image_ids: Tensor, bank_ids: Tensor, *,
        first: int = 0, also_excluded: tuple[Tensor | None, ...] = (None, None),
        captions: tuple[Tensor, Tensor, Tensor] | None = None,
        match_posterior: tuple[Tensor, ...] | None = None,
    ) -> tuple[DrawnNegatives, ...]:
        """Draw one negative for each anchor of the given directions.

        Args:
            directions: S directions with A anchors each.
            image_ids: (B,) int64, photo of each pair of the batch.
            bank_ids: (M,) int64, photo in each slot of the bank.
            first: row of the batch that the first anchor is.
            also_excluded: (A, C) bool or None for each direction.
            captions: text keys of batch (B, D) and bank (M, D) and caption ids (C,), by evidence.
            match_posterior: (A, C) for each direction, as of `draw`.

        Returns:
            The negatives of each direction.
        """
        anchors = len(directions[0].anchors)
        local = slice(first, first + anchors)
        candidate_ids = torch.cat([image_ids, bank_ids])  # (C,)
        evidence = None
        if captions is not None:
            evidence = CaptionEvidence.collect(image_ids[local], candidate_ids, local, *captions)
        candidates = Candidates(
            directions, candidate_ids, local,
            stack_excluded(also_excluded, anchors, candidate_ids), evidence,
            None if match_posterior is None else torch.cat(match_posterior))
        sample = draw_negatives(candidates, self.weigh, self.cut_down_bound())
        posteriors = match_posterior or [None] * len(directions)
        return tuple(
            self.describe_draw(direction, candidates, *row) for direction, row in
            zip(directions, zip(candidates.by_direction(sample.indices), sample.counts,
                                sample.moments, posteriors)))

    def describe_draw(
        self, direction: Direction, candidates: Candidates, indices: Tensor, counts: Tensor,
        moments: Tensor, match_posterior: Tensor | None,
    ) -> DrawnNegatives:
        """Look up the keys and the posterior of the candidates drawn in one direction.

        Args:
            direction: the direction.
            candidates: of all directions.
            indices: (A,) int64 drawn candidates.
            counts: (2,) candidates with weight, and allowed ones.
            moments: (6,) of all allowed candidates.
            match_posterior: (A, C) that the caller knows, or None.
        """
        keys, rows = positive_and_drawn_keys(direction, candidates.local, indices)
        caption_similarity, same_photo = None, torch.zeros_like(moments)
        if candidates.captions is not None:
            caption_similarity = candidates.captions.similarity_to(indices)  # (A,)
            same_photo = candidates.captions.same_photo_moments(direction)  # (6,)
        if match_posterior is not None:
            posterior = match_posterior.gather(1, indices.clamp(min=0)[:, None])[:, 0]  # (A,)
        else:
            similarity = cosine_of_pairs(direction.anchors, keys[rows])  # (A,)
            posterior = self.posterior(similarity, caption_similarity)  # (A,)
        posterior = posterior.where(indices != NO_NEGATIVE, 0.0)
        return DrawnNegatives(indices, keys, rows, posterior, counts,
                              torch.stack([same_photo, moments]))

    def hinge_of(
        self, image_embeds: Tensor, text_embeds: Tensor, i2t: DrawnNegatives, t2i: DrawnNegatives
    ) -> Tensor:
        """Compute the `hinge` on drawn negatives, both directions summed: a () loss, over A.

        Args:
            image_embeds, text_embeds: (A, D) online embeddings, which receive the gradient.
            i2t, t2i: what `draw` gave for them.
        """
        return (hinge(image_embeds, i2t.keys, i2t.rows, self.margin)
                + hinge(text_embeds, t2i.keys, t2i.rows, self.margin))

    def forward(
        self, image_embeds: Tensor, text_embeds: Tensor, image_keys: Tensor, text_keys: Tensor,
        image_ids: Tensor, bank: MemoryBank, *, first: int = 0,
        also_excluded: tuple[Tensor | None, Tensor | None] = (None, None),
        text_ids: Tensor | None = None, match_posterior: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Draw one negative for each anchor and compute the hinge on it, summed over directions.

        In a loop of several processes each gives its own A anchors with `first`, and the keys and
        ids of all B pairs. The loss is the mean over its A anchors, so that the mean of the
        processes' gradients, as by DistributedDataParallel, is that of the whole batch.

        Args:
            image_embeds, text_embeds: (A, D) online embeddings of the batch's pairs from `first`
                on, which receive the gradient.
            image_keys, text_keys: (B, D) momentum keys of all pairs.
            image_ids: (B,) int64, photo of each pair.
            bank: the memory bank, which is only read: enqueue the batch after the step.
            first: row of the batch that the first anchor is.
            also_excluded: (A, C) bool of i2t and of t2i: candidates to exclude in addition.
            text_ids: (B,) int64, caption of each pair; needed by evidence.
            match_posterior: (A, C) of i2t and of t2i: P(match) of each candidate as the caller
                knows it, in place of the posterior that this loss fits.

        Returns:
            () loss.

        Raises:
            ValueError: by evidence, `text_ids` is missing; or the anchors are a part of the batch,
                whose evidence must be summed over the processes: call `draw`, `add_evidence` and
                `hinge_of` instead.
        """
        if self.by_evidence and len(image_embeds) < len(image_ids):
            raise ValueError("by evidence each process must learn what all have seen: call draw, "
                             "add_evidence with the sum over processes, and hinge_of")
        i2t, t2i = self.draw(image_embeds, text_embeds, image_keys, text_keys, image_ids, bank,
                             first=first, also_excluded=also_excluded, text_ids=text_ids,
                             match_posterior=match_posterior)
        self.add_evidence(i2t.evidence + t2i.evidence)
        return self.hinge_of(image_embeds, text_embeds, i2t, t2i)


def stack_excluded(
    also_excluded: tuple[Tensor | None, ...], anchors: int, candidate_ids: Tensor
) -> Tensor | None:
    """Stack masks (A, C) of several directions to (S A, C); None where no direction has one."""
    if all(mask is None for mask in also_excluded):
        return None
    nothing = torch.zeros(anchors, len(candidate_ids), dtype=torch.bool,
                          device=candidate_ids.device)
    return torch.cat([nothing if mask is None else mask for mask in also_excluded])
