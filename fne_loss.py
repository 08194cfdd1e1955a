"""False Negative Elimination: one function per formula of the paper (section 3), and the loss.

A candidate that looks more like the anchor's match than a negative should is, by Bayes' rule,
probably an unannotated match. FNE turns that into a weight and repels one drawn candidate.

Shapes: B batch, M bank, C = B + M candidates (this batch's keys first, then the bank's slots), D
embedding, A = B anchors (or a process's own, where several share a batch). Embeddings are unit
rows. "i2t" has image anchors and text candidates, "t2i" the reverse. Needs only `memory_bank.py`.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memory_bank import (
    NO_NEGATIVE,
    Asked,
    Captions,
    MemoryBank,
    Proposing,
    Side,
    Weighing,
    at_least_float32,
    cosine,
    excluded_candidates,
    gather_drawn,
    list_barred,
    moments,  # noqa: F401
    running_sums,
)

SETTINGS = "margin", "tau", "prior", "posterior_floor", "min_count"
WEIGHED = 2**18  # similarities of one direction up to which a CPU, too, weighs them all


class RunningGaussian(nn.Module):
    """Mean and variance of a stream of similarities (paper, section 3.2), as buffers: `count` ()
    int64, `mean` () and `m2` () float64, the sum of squared deviations."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        for name in "mean", "m2":  # doubles: a long epoch adds 1e5 small terms to a large sum
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, values: Tensor, mask: Tensor | None = None) -> None:
        """Add `values` (any shape), or those where the bool `mask` (same shape) is true: to select
        them would make a GPU wait for the count.

        The published estimator: first the mean moves over all the values, then each value adds its
        squared deviation from that *new* mean. (Welford's would keep m2 exactly; this one is a
        little low, and the golden numbers need it.)
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
        """m2 / (count - 1), a () tensor; 0 before there are two values."""
        return self.m2 / (self.count - 1).clamp(min=1)

    def reset(self) -> None:
        for buffer in self.buffers():
            buffer.zero_()


class RunningEvidence(nn.Module):
    """Mean and covariance of a stream of pairs (s, r), as buffers: `count` () int64, `mean` (2,)
    and `m2` (2, 2) float64. No published number rests on it: it is exact (Chan et al., 1983)."""

    def __init__(self):
        super().__init__()
        for name, shape in ("count", ()), ("mean", 2), ("m2", (2, 2)):
            dtype = torch.int64 if name == "count" else torch.float64
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))

    @torch.no_grad()
    def add(self, sums: Tensor) -> None:
        """Add what `memory_bank.moments` (6,) sums up; nothing where that is not finite."""
        count, s, r, ss, sr, rr = sums.where(sums.isfinite().all(), 0.0)
        mean = torch.stack([s, r]) / count.clamp(min=1)
        step, share = mean - self.mean, count / (self.count + count).clamp(min=1)
        self.m2 += torch.stack([ss, sr, sr, rr]).view(2, 2) - torch.outer(mean, mean) * count
        self.m2 += torch.outer(step, step) * self.count * share
        self.mean += step * share
        self.count += count.long()

    reset = RunningGaussian.reset


def cosine_of_pairs(embeds: Tensor, others: Tensor) -> Tensor:
    """(B,) cosines of unit rows (B, D) and (B, D), row by row, in the precision of `cosine`."""
    return torch.mul(*at_least_float32(embeds, others)).sum(dim=1)


class InBatch(NamedTuple):
    """What the (B, B) similarity of a batch says of its pairs, without gradient."""

    positive: Tensor  # (B,) similarity of each pair
    hardest: Tensor  # (2, B) of each image's hardest text, then each text's hardest image
    hardest_at: Tensor  # (2, B) which one in the batch; nothing where `hardest` is -inf
    confident: Tensor  # (B,) bool, pairs that are each other's best match


@torch.no_grad()
def rank_in_batch(similarity: Tensor, image_ids: Tensor, excluded: Tensor | None = None) -> InBatch:
    """Pairs, their hardest negatives, and which are confident (paper, section 3.2), from (B, B)
    similarities, images in rows and texts in columns, and (B,) ids of the photos.

    Other captions of a pair's own photo do not compete (Fidelity note 4), nor what (B, B)
    `excluded` bars further. A tie is not a best."""
    positive = similarity.detach().diagonal()  # (B,)
    barred = excluded_candidates(image_ids, image_ids, excluded)
    allowed = similarity.masked_fill(barred, -torch.inf)  # (B, B)
    hardest, hardest_at = torch.stack([allowed, allowed.T]).max(dim=2)  # (2, B), (2, B)
    return InBatch(positive, hardest, hardest_at, (positive > hardest).all(dim=0))


def confident_pairs(similarity: Tensor, image_ids: Tensor) -> Tensor:
    """(B,) bool: pairs that are each other's best match in the batch, as in `rank_in_batch`."""
    return rank_in_batch(similarity, image_ids).confident


def log_density(similarity: Tensor, gaussian: nn.Module, texts: Tensor | None = None) -> Tensor:
    """log N(s; mean, variance), or with similarities r of `texts` log N((s, r); mean, covariance),
    but for the constant; the shape of `similarity`."""
    # A single repeated value has no spread; the floor keeps its density finite.
    if texts is None:
        mean = gaussian.mean.to(similarity.dtype)
        variance = gaussian.variance.clamp(min=1e-12).to(similarity.dtype)
        return -0.5 * ((similarity - mean).square() / variance + variance.log())
    (a, b), (_, c) = gaussian.m2 / (gaussian.count - 1).clamp(min=1)
    a, c = a.clamp(min=1e-12), c.clamp(min=1e-12)
    determinant = (a * c - b.square()).maximum(1e-9 * a * c)
    s, r = similarity - gaussian.mean[0], texts - gaussian.mean[1]
    distance = s.square() * (c / determinant) - s * r * (2 * b / determinant)
    return -0.5 * (distance + r.square() * (a / determinant) + determinant.log())


def false_negative_posterior(
    similarity: Tensor, positive: nn.Module, negative: nn.Module, prior: float, texts=None
) -> Tensor:
    """P(false negative | s) = prior N+(s) / (prior N+(s) + (1 - prior) N-(s)) (section 3.2, Bayes).

    Written as the sigmoid of the log odds: in both tails the densities themselves are 0 / 0.
    Similarities and probabilities have any shape; `prior` is P(false negative) of a candidate
    before its similarity is known, in (0, 1). With similarities r of the captions, `texts`, it is
    P(false negative | s, r) of two `RunningEvidence`, which is ours and not the paper's."""
    odds = log_density(similarity, positive, texts) - log_density(similarity, negative, texts)
    return torch.sigmoid(odds + math.log(prior / (1 - prior)))


def cut_down_bound(positive: RunningGaussian, margin: float) -> Tensor:
    """() similarity up to which nothing is drawn: easy negatives teach nothing (section 3.3)."""
    return positive.mean - margin


def sampling_weights(
    similarity: Tensor, positive_similarity: Tensor, excluded: Tensor,
    positive: RunningGaussian, negative: RunningGaussian, *,
    margin: float, tau: float, prior: float, posterior_floor: float, min_count: int, posterior=None,
) -> Tensor:
    """(B, C) weights in [0, 1] to draw candidates by (paper, section 3.3); a row may be all zero.

    exp(-tau p) where the posterior p > posterior_floor: a likely false negative is drawn less.
    exp(-tau (s - s+)^2) elsewhere: one near the anchor's own match s+ is drawn more.
    0 where excluded, and where s <= mean(positive) - margin, the `cut_down_bound`.
    Up to `min_count` confident pairs the posterior is not trusted yet and taken as 0.

    Of similarities (B, C), anchors against candidates; s+ (B,), each anchor against its own key;
    excluded (B, C) bool, true where a candidate shows the anchor's own image or is empty; the
    fitted Gaussians; settings as of `FNELoss`; and posterior (B, C), where it rests on more."""
    if posterior is None:
        posterior = false_negative_posterior(similarity, positive, negative, prior)  # (B, C)
    suspicious = (posterior > posterior_floor) & (positive.count > min_count)
    distance = (similarity - positive_similarity[:, None]).square()
    weights = torch.exp(-tau * torch.where(suspicious, posterior, distance))
    cut = similarity <= cut_down_bound(positive, margin).to(similarity.dtype)
    return weights * ~(excluded | cut)  # faster than masked_fill, which branches at each candidate


def sample_negatives(weights: Tensor, fallback: Tensor, share: Tensor | None = None) -> Tensor:
    """(B,) int64: one candidate per row, drawn with probability proportional to its weight.

    The first running sum of a row's weights above a random share of their total wins: one random
    number a row, where a race of C exponentials would cost as much as the similarities do. Of
    weights (B, C), not negative; fallback (B,) int64, taken by a row that has no weight; and share
    (B,) doubles in [0, 1) to draw with, random ones unless given."""
    if share is None:
        share = torch.rand(len(weights), dtype=torch.float64, device=weights.device)
    sums = running_sums(weights)  # (B, C)
    share = share[:, None] * sums[:, -1:]  # (B, 1)
    drawn = torch.searchsorted(sums, share, right=True).clamp(max=weights.shape[1] - 1)  # (B, 1)
    # Rounding may not let a candidate of weight 0 win, be it once in 1e15 draws.
    return drawn[:, 0].where(weights.gather(1, drawn)[:, 0] > 0, fallback)


def hinge(anchors: Tensor, keys: Tensor, negatives: Tensor, margin: float) -> Tensor:
    """Mean over the B anchors of max(0, margin + s(anchor, negative) - s(anchor, own key)).

    Of anchors (B, D), the only input that gets a gradient; keys (C, D), C >= B, anchor i's own
    positive is keys[i]; and negatives (B,), rows of `keys`: `NO_NEGATIVE` contributes no loss."""
    keys = keys.detach()
    lead = (anchors * (keys[negatives] - keys[: len(anchors)])).sum(dim=1)  # (B,)
    return F.relu(margin + lead).where(negatives != NO_NEGATIVE, 0.0).mean()


def triplet_loss(
    image_embeds: Tensor, text_embeds: Tensor, image_ids: Tensor, margin: float, max_violation: bool
) -> Tensor:
    """`triplet_from_similarity` of unit rows (B, D) and (B, D), matching pairs."""
    return triplet_from_similarity(
        cosine(image_embeds, text_embeds), image_ids, margin, max_violation)


def triplet_from_similarity(
    similarity: Tensor, image_ids: Tensor, margin: float, max_violation: bool, excluded=None
) -> Tensor:
    """The usual in-batch loss (VSE++), both directions, summed and divided by B: the warm-up. From
    (B, B) similarities, images in rows and texts in columns, and (B,) photo ids: another caption of
    the anchor's photo is no negative (Fidelity note 4), nor what (B, B) `excluded` bars further.
    With `max_violation` only the hardest negative counts, else all of them."""
    positive = similarity.diagonal()[:, None]  # (B, 1)
    barred = excluded_candidates(image_ids, image_ids, excluded)
    cost_i2t = F.relu(margin + similarity - positive).masked_fill(barred, 0.0)
    cost_t2i = F.relu(margin + similarity.T - positive).masked_fill(barred.T, 0.0)
    if max_violation:
        cost_i2t, cost_t2i = cost_i2t.amax(dim=1), cost_t2i.amax(dim=1)
    return (cost_i2t.sum() + cost_t2i.sum()) / len(image_ids)


def infonce_loss(
    similarity: Tensor, image_ids: Tensor, log_scale: Tensor, excluded: Tensor | None = None
) -> Tensor:
    """In-batch softmax contrastive loss (InfoNCE, as in CLIP), mean of both directions: a control.

    Arguments as above; other captions of the own photo are left out. `log_scale` () is the log of
    the inverse temperature, learned: clamp it to log 100 after each optimizer step, as CLIP does. A
    clamp in here would end its gradient."""
    barred = excluded_candidates(image_ids, image_ids, excluded).fill_diagonal_(False)
    logits = (log_scale.exp() * similarity).masked_fill(barred, -torch.inf)  # (B, B)
    return ((logits.logsumexp(dim=1) + logits.logsumexp(dim=0)) / 2 - logits.diagonal()).mean()


class Draw(NamedTuple):
    """The negatives of one direction, and what the sampler thought of them, without gradient."""

    negatives: Tensor  # (A,) candidate indices: < B this batch's, then the bank's slots; -1 none
    keys: Tensor  # (2A, D) the anchors' own keys, then the drawn ones, as by `gather_drawn`
    rows: Tensor  # (A,) where in `keys` each anchor's negative is; -1 none
    posterior: Tensor  # (A,) P(false negative) of the drawn, as used: 0 up to min_count
    counts: Tensor  # (2,) candidates of all anchors that have weight, and that are not excluded
    evidence: Tensor | None = None  # (2, 6) for `add_evidence`, 0 of the published posterior

    @property
    def cut(self) -> Tensor:
        """() share of the allowed candidates that the cut-down removed."""
        return 1 - self.counts[0] / self.counts[1].clamp(min=1)


class FNELoss(nn.Module):
    """The loss of the paper, for anybody's training loop.

        criterion.update_statistics(image_embeds, text_embeds, image_ids)
        loss = criterion(image_embeds, text_embeds, image_keys, text_keys, image_ids, bank)
        bank.enqueue(image_keys, text_keys, image_ids)

    and `criterion.reset_statistics()` when an epoch starts. The statistics are buffers.

    Args:
        margin: lead of a positive over a negative, and the width of the cut-down.
        tau: how sharply the weights fall with posterior and distance (the paper's tau).
        prior: P(false negative) of any candidate, in (0, 1).
        posterior_floor: posteriors up to this count as true negatives.
        min_count: confident pairs that an epoch must exceed before the posterior is used.
        posterior: "published", or "evidence", which is ours: from the captions' similarity too,
            by Gaussians of their own (prior .01 suits it); `forward` and bank then need `text_ids`.
    """

    def __init__(self, margin=0.2, tau=0.5, prior=1e-4, posterior_floor=1e-3, min_count=200,
                 posterior="published"):
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
            self.same, self.different = RunningEvidence(), RunningEvidence()

    @torch.no_grad()
    def update_statistics(self, image_embeds: Tensor, text_embeds: Tensor, image_ids: Tensor):
        """Add a batch of online embeddings (B, D), (B, D) with photo ids (B,) to both Gaussians."""
        self.add_to_statistics(rank_in_batch(cosine(image_embeds, text_embeds), image_ids))

    @torch.no_grad()
    def add_to_statistics(self, batch: InBatch) -> None:
        """A confident pair gives its similarity to `positive`, its hardest two to `negative`."""
        self.positive.update(batch.positive, batch.confident)
        self.negative.update(batch.hardest, batch.confident & batch.hardest.isfinite())

    def add_evidence(self, evidence: Tensor) -> None:
        """What a step's draws saw, (2, 6), for the next one's: candidates of the same photo and
        another caption to `same`, all that were allowed to `different`."""
        if self.by_evidence:
            self.same.add(evidence[0])
            self.different.add(evidence[1])

    def reset_statistics(self) -> None:
        """Forget the statistics; each epoch starts anew."""
        for gaussian in self.children():
            gaussian.reset()

    def posterior(self, similarity: Tensor, texts: Tensor | None) -> Tensor:
        """`false_negative_posterior` by the loss's own statistics; 0 up to `min_count`."""
        sides = (self.positive, self.negative) if texts is None else (self.same, self.different)
        known = sides[0].count.minimum(self.positive.count) > self.min_count
        return false_negative_posterior(similarity, *sides, self.prior, texts).where(known, 0.0)

    def weights(self, similarity: Tensor, own: Tensor, excluded: Tensor, texts=None) -> Tensor:
        """`sampling_weights` by the loss's own statistics and settings."""
        settings = {name: getattr(self, name) for name in SETTINGS}
        settings["posterior"] = None if texts is None else self.posterior(similarity, texts)
        return sampling_weights(similarity, own, excluded, self.positive, self.negative, **settings)

    @torch.no_grad()
    def draw(
        self, anchors: Tensor, keys: Tensor, bank_keys: Tensor, image_ids: Tensor, bank_ids: Tensor,
        first: int = 0, excluded: Tensor | None = None, captions=None,
    ) -> Draw:
        """Draw one negative for each of anchors (A, D), online embeddings of pairs from `first` on.
        Keys (B, D) are the batch's momentum keys of the other side, keys[i] the match of pair i,
        bank_keys (M, D) the bank's; ids (B,), (M,) of photos; excluded (A, C) bool, barred beside
        those of the own image; captions as of `draw_from`."""
        sides = [Side(anchors, keys, bank_keys)]
        return self.draw_from(sides, image_ids, bank_ids, first, [excluded], captions)[0]

    @torch.no_grad()
    def draw_both(
        self, image_embeds: Tensor, text_embeds: Tensor, image_keys: Tensor, text_keys: Tensor,
        image_ids: Tensor, bank: MemoryBank, first: int = 0, excluded=(None, None),
        text_ids: Tensor | None = None,
    ) -> tuple[Draw, Draw]:
        """Draw for i2t, then for t2i; as `forward`, or with the (A, D) of pairs from `first` on."""
        captions = None
        if self.by_evidence:
            if text_ids is None:
                raise ValueError("the posterior by evidence needs text_ids (B,) of the captions")
            captions = text_keys, bank.text_keys, torch.cat([text_ids, bank.text_ids])
        sides = [Side(image_embeds, text_keys, bank.text_keys),
                 Side(text_embeds, image_keys, bank.image_keys)]
        return self.draw_from(sides, image_ids, bank.image_ids, first, excluded, captions)

    def draw_from(
        self, sides: list[Side], image_ids: Tensor, bank_ids: Tensor, first, excluded, captions=None
    ) -> tuple[Draw, ...]:
        """As `draw`, for each of `sides`; by evidence given captions: (B, D), (M, D), ids (C,)."""
        ids, mine = torch.cat([image_ids, bank_ids]), slice(first, first + len(sides[0].anchors))
        own = torch.cat([cosine_of_pairs(side.anchors, side.keys[mine]) for side in sides])
        further = None
        if any(of is not None for of in excluded):
            none = torch.zeros(len(sides[0].anchors), len(ids), dtype=torch.bool, device=ids.device)
            further = torch.cat([none if of is None else of for of in excluded])
        asked = Asked(sides, own, image_ids[mine].repeat(len(sides)), ids, further, mine,
                      Captions.of(image_ids[mine], ids, mine, *captions) if captions else None)
        if ids.device.type == "cpu" and len(image_ids) * len(ids) > WEIGHED:
            *barred, further = list_barred(image_ids[mine], ids, further)
            look = Proposing(asked._replace(excluded=further), self.weights, sample_negatives,
                             bound=cut_down_bound(self.positive, self.margin), barred=barred)
        else:
            look = Weighing(asked, self.weights, sample_negatives)
        look.show()
        return self.look_back(look, first)

    def look_back(self, look: Weighing | Proposing, first: int) -> tuple[Draw, ...]:
        """What was drawn in each direction, once `look` has seen all candidates."""
        ask, draws = look.asked, []
        for side, negatives, counts, different in zip(
                ask.sides, ask.by_side(look.negatives()), look.counts, look.moments):
            keys, rows = gather_drawn(side.keys, side.bank_keys, negatives, first)
            texts, same = None, torch.zeros_like(different)
            if ask.captions is not None:
                texts, same = ask.captions.similarity_to(negatives), ask.captions.moments(side)
            similarity = cosine_of_pairs(side.anchors, keys[rows])
            posterior = self.posterior(similarity, texts).where(negatives != NO_NEGATIVE, 0.0)
            evidence = torch.stack([same, different])
            draws.append(Draw(negatives, keys, rows, posterior, counts, evidence))
        return tuple(draws)

    def hinge_of(self, image_embeds: Tensor, text_embeds: Tensor, i2t: Draw, t2i: Draw) -> Tensor:
        """`hinge` on what was drawn, both directions summed, of online embeddings (A, D) each."""
        return (hinge(image_embeds, i2t.keys, i2t.rows, self.margin)
                + hinge(text_embeds, t2i.keys, t2i.rows, self.margin))

    def forward(
        self, image_embeds: Tensor, text_embeds: Tensor, image_keys: Tensor, text_keys: Tensor,
        image_ids: Tensor, bank: MemoryBank, excluded=(None, None), text_ids: Tensor | None = None,
    ) -> Tensor:
        """The hinge on one drawn negative per anchor, summed over both directions, over B.

        Of online embeddings (B, D), which get the gradient, momentum keys (B, D) of the same pairs,
        their photo ids (B,), the bank, only read, `excluded` as of `draw` of both, and text ids."""
        draws = self.draw_both(image_embeds, text_embeds, image_keys, text_keys, image_ids, bank, 0,
                               excluded, text_ids)
        self.add_evidence(draws[0].evidence + draws[1].evidence)
        return self.hinge_of(image_embeds, text_embeds, *draws)
