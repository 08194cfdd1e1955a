"""Drawing one negative for each anchor among the batch's keys and the memory bank.

`draw_negatives` is the entry. It draws from the weights of all candidates (`sample_exact`), or on a
CPU with many candidates by rejection (`sample_by_rejection`), which draws from the same
distribution and weighs only a few candidates of each anchor. The weights themselves are given as a
function: the formula of the paper is `fne_loss.sampling_weights`.

Shapes: S directions (i2t and t2i, or one alone), A anchors in each, R = S A anchors in all, stacked
in the order of the directions; B batch, M bank, C = B + M candidates, the batch's B keys first and
then the bank's slots; D embedding; c candidates of one block. No tensor of shape (R, C) is made:
the candidates are visited block by block. Needs only `memory_bank.py`.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from memory_bank import EMPTY

NO_NEGATIVE = -1  # index drawn for an anchor that has no allowed candidate

# Similarities in a block. On a CPU a block should fit the cache, and have some width.
BLOCK_ON_GPU, BLOCK_ON_CPU, LEAST_WIDTH = 2**24, 2**20, 2**10
# Similarities of one direction above which a CPU draws by rejection. docs/speed.md has the gain.
EXACT_UP_TO = 2**18
PROPOSALS = 8  # that rejection makes for each anchor before it falls back to exact weights
GROUPS = 32  # that rejection splits the columns of a block into, to find its n-th candidate
CAPTIONS = 6  # candidates of the anchor's own photo that the evidence of captions uses, at most

# (R, c) similarity, (R,) positive similarity, (R, c) excluded, (R, c) caption similarity or None,
# (R, c) match posterior or None -> (R, c) weights in [0, 1].
Weigh = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


# ------------------------------------------------------------------------------------ similarities


def promote_to_float32(embeds: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Convert two tensors to their common type, or to float32 where that is less precise."""
    dtype = torch.promote_types(torch.promote_types(embeds.dtype, others.dtype), torch.float32)
    return embeds.to(dtype), others.to(dtype)


def cosine(embeds: Tensor, others: Tensor) -> Tensor:
    """Compute all cosines of unit rows, in float32 or better also under autocast.

    Args:
        embeds: (A, D) unit rows.
        others: (C, D) unit rows.

    Returns:
        (A, C) cosines.
    """
    embeds, others = promote_to_float32(embeds, others)
    with torch.autocast(embeds.device.type, enabled=False):
        return embeds @ others.T


def cosine_of_pairs(embeds: Tensor, others: Tensor) -> Tensor:
    """Compute the cosine of each row of `embeds` (B, D) with the same row of `others` (B, D).

    Returns:
        (B,) cosines, in float32 or better.
    """
    embeds, others = promote_to_float32(embeds, others)
    return (embeds * others).sum(dim=1)


# -------------------------------------------------------------------------------------- candidates


def excluded_candidates(
    image_ids: Tensor, candidate_ids: Tensor, also_excluded: Tensor | None = None
) -> Tensor:
    """Find the candidates that show the anchor's own photo or are empty slots of the bank.

    Args:
        image_ids: (A,) int64, photo of each anchor.
        candidate_ids: (C,) int64, photo of each candidate, `EMPTY` = -100 for an empty slot.
        also_excluded: (A, C) bool, candidates to exclude in addition.

    Returns:
        (A, C) bool, true where a candidate may not be drawn.
    """
    excluded = (image_ids[:, None] == candidate_ids) | (candidate_ids == EMPTY)  # (A, C)
    return excluded if also_excluded is None else excluded | also_excluded


def take_keys(batch_keys: Tensor, bank_keys: Tensor, indices: Tensor) -> Tensor:
    """Look up candidates by their index without joining batch and bank.

    Args:
        batch_keys: (B, D), the candidates 0 to B - 1.
        bank_keys: (M, D), the candidates B to B + M - 1.
        indices: int64 of any shape; a negative index gives an arbitrary key.

    Returns:
        The keys, of the shape of `indices` and a last dimension D.
    """
    batch = len(batch_keys)
    from_batch = batch_keys[indices.clamp(0, batch - 1)]  # (*, D)
    from_bank = bank_keys[(indices - batch).clamp(min=0)]  # (*, D)
    return torch.where((indices < batch)[..., None], from_batch, from_bank)


def fill_similarity(
    rows: Tensor, batch_keys: Tensor, bank_keys: Tensor, start: int, out: Tensor
) -> None:
    """Fill `out` in place with the cosines of `rows` and the candidates from `start` on.

    Args:
        rows: (A, D) unit rows.
        batch_keys: (B, D) unit rows.
        bank_keys: (M, D) unit rows.
        start: 0, or an index of the bank, B or more.
        out: (A, c), overwritten; a block that starts at 0 holds the whole batch.
    """
    batch = len(batch_keys)
    stored = bank_keys[max(start - batch, 0) : start - batch + out.shape[1]]
    rows = rows.to(out.dtype)
    with torch.autocast(rows.device.type, enabled=False):
        # Not `mm(out=...)`: there `torch.compile` breaks the graph at a view with gaps.
        out[:, -len(stored) :].addmm_(rows, stored.T.to(out.dtype), beta=0)
        if start == 0:
            out[:, :batch].addmm_(rows, batch_keys.T.to(out.dtype), beta=0)


class Direction(NamedTuple):
    """One retrieval direction: its anchors, and the keys that their negatives are drawn from."""

    anchors: Tensor  # (A, D) online embeddings of the batch's pairs, or of this process's
    batch_keys: Tensor  # (B, D) momentum keys of the batch; row i is the positive of pair i
    bank_keys: Tensor  # (M, D) momentum keys in the memory bank


def positive_and_drawn_keys(
    direction: Direction, local: slice, indices: Tensor
) -> tuple[Tensor, Tensor]:
    """Gather the keys that `fne_loss.hinge` compares, without copying the whole bank.

    Args:
        direction: A anchors and their candidates.
        local: the A rows of the batch that are anchors.
        indices: (A,) int64 drawn candidates, or `NO_NEGATIVE`.

    Returns:
        (2A, D) the anchors' positive keys, then the drawn ones; and (A,) int64, the row of each
        anchor's drawn key, or `NO_NEGATIVE`.
    """
    drawn = take_keys(direction.batch_keys, direction.bank_keys, indices)  # (A, D)
    keys = torch.cat([direction.batch_keys[local], drawn])  # (2A, D)
    rows = torch.arange(len(indices), 2 * len(indices), device=keys.device)
    return keys, rows.where(indices != NO_NEGATIVE, NO_NEGATIVE)


class Candidates(NamedTuple):
    """The anchors of all directions and the C candidates that each of them draws from."""

    directions: tuple[Direction, ...]  # S
    image_ids: Tensor  # (C,) int64, photo of each candidate; `EMPTY` = -100 in an empty slot
    local: slice  # the A rows of the batch that are anchors
    also_excluded: Tensor | None = None  # (R, C) bool, beside the own photo and empty slots
    captions: "CaptionEvidence | None" = None
    # (R, C) P(match) of each candidate as the caller knows it; None where the loss fits its own
    match_posterior: Tensor | None = None

    @property
    def anchor_ids(self) -> Tensor:
        """(R,) int64, photo of each anchor."""
        return self.image_ids[self.local].repeat(len(self.directions))

    def positive_similarity(self) -> Tensor:
        """Compute s+, the cosine of each anchor with its own key: (R,)."""
        return torch.cat([cosine_of_pairs(direction.anchors, direction.batch_keys[self.local])
                          for direction in self.directions])

    def by_direction(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Split a tensor (R, ...) into views (A, ...), one for each direction."""
        return rows.chunk(len(self.directions))

    def random_shares(
        self, directions: int, *shape: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw uniform numbers for anchors, so that any split of a batch over processes draws
        the same: each process draws for the whole batch and takes the rows of its anchors.

        Returns:
            (directions A, *shape) float64 in [0, 1).
        """
        batch_keys = self.directions[0].batch_keys
        shares = torch.rand(directions, len(batch_keys), *shape, dtype=torch.float64,
                            device=batch_keys.device, generator=generator)
        return shares[:, self.local].flatten(0, 1)


class Block(NamedTuple):
    """Consecutive candidates, and their similarities to all anchors."""

    start: int  # index of the first candidate
    stop: int  # index after the last
    similarity: Tensor  # (R, c)
    caption_similarity: Tensor | None  # (R, c), where the evidence of captions is used
    match_posterior: Tensor | None  # (R, c), where the caller knows it


def candidate_blocks(candidates: Candidates) -> Iterator[Block]:
    """Visit all candidates block by block; the first block holds the batch's keys.

    The blocks follow from the size of the whole batch alone, so that every process of a run, and
    every number of processes, draws its random numbers in the same order.

    Yields:
        Block: with new tensors, which the caller may overwrite, but for `match_posterior`.
    """
    anchors, batch_keys, bank_keys = candidates.directions[0]
    batch, size, directions = len(batch_keys), len(bank_keys), len(candidates.directions)
    dtype = torch.promote_types(anchors.dtype, batch_keys.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    width = block_width(size, directions * batch, batch_keys.device)
    for slot in range(0, size, width):
        start = batch + slot if slot else 0
        stop = batch + min(slot + width, size)
        similarity = batch_keys.new_empty(directions * len(anchors), stop - start, dtype=dtype)
        for direction, out in zip(candidates.directions, candidates.by_direction(similarity)):
            fill_similarity(*direction, start, out)
        caption_similarity = None
        if candidates.captions is not None:
            caption_similarity = candidates.captions.similarity(start, stop).repeat(directions, 1)
        match_posterior = candidates.match_posterior
        if match_posterior is not None:
            match_posterior = match_posterior[:, start:stop]
        yield Block(start, stop, similarity, caption_similarity, match_posterior)


def block_width(size: int, rows: int, device: torch.device) -> int:
    """Choose how many slots of a bank of `size` a block of `rows` anchors visits at once."""
    if device.type == "cpu":
        width = max(BLOCK_ON_CPU // rows, LEAST_WIDTH)
    else:
        width = max(BLOCK_ON_GPU // rows, 1)
    blocks = math.ceil(size / width)
    width = math.ceil(size / blocks)  # all blocks alike
    return width if width <= 64 else 64 * math.ceil(width / 64)  # multiplied faster


# ------------------------------------------------------------------------- the evidence of captions


def pair_moments(values: Tensor, others: Tensor, count: Tensor | int) -> Tensor:
    """Sum the moments of pairs (x, y) that `RunningBivariateGaussian.add` takes.

    Args:
        values: x, of any shape, 0 in what is no pair.
        others: y, of the same shape, 0 in what is no pair.
        count: the number of pairs.

    Returns:
        (6,) float64: sums of 1, x, y, x^2, x y, y^2 over the pairs.
    """
    x, y = values.reshape(-1), others.reshape(-1)
    sums = torch.stack([x.sum(), y.sum(), x.dot(x), x.dot(y), y.dot(y)]).double()
    return torch.cat([torch.as_tensor(count, device=x.device).double()[None], sums])


def other_captions_of_photo(
    image_ids: Tensor, text_ids: Tensor, candidate_ids: Tensor, candidate_text_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Find up to K = `CAPTIONS` candidates with another caption of each anchor's own photo.

    Args:
        image_ids, text_ids: (A,) int64, photo and caption of each anchor's pair.
        candidate_ids, candidate_text_ids: (C,) int64, photo and caption of each candidate; a
            negative caption id is unknown, and never another caption.

    Returns:
        (A, K) int64 indices of candidates, and (A, K) bool, which of them are such captions.
    """
    sorted_ids, order = candidate_ids.sort(stable=True)  # (C,), (C,)
    first = torch.searchsorted(sorted_ids, image_ids)[:, None]  # (A, 1)
    places = first + torch.arange(CAPTIONS, device=order.device)  # (A, K)
    indices = order[places.clamp(max=len(order) - 1)]  # (A, K)
    texts = candidate_text_ids[indices]  # (A, K)
    same_photo = (candidate_ids[indices] == image_ids[:, None]) & (places < len(order))
    return indices, same_photo & (texts != text_ids[:, None]) & (texts >= 0)


class CaptionEvidence(NamedTuple):
    """The captions of A anchors' photos, as far as batch and bank hold them.

    r, an anchor's caption similarity to a candidate, is the mean cosine of the candidate's caption
    with the captions of the anchor's photo, the anchor's own caption among them and the candidate
    itself left out.
    """

    mean: Tensor  # (A, D) mean key of the photo's captions
    others: Tensor  # (A, K) candidates with another caption of the photo
    exists: Tensor  # (A, K) bool, which of `others` there are
    same_photo_similarity: Tensor  # (A, K) r of `others`; 0 where there is none
    batch_keys: Tensor  # (B, D) text keys
    bank_keys: Tensor  # (M, D) text keys

    @classmethod
    def collect(
        cls, image_ids: Tensor, candidate_ids: Tensor, local: slice, batch_keys: Tensor,
        bank_keys: Tensor, text_ids: Tensor,
    ) -> "CaptionEvidence":
        """Collect the captions of the anchors' photos.

        Args:
            image_ids: (A,) int64, photo of each anchor.
            candidate_ids: (C,) int64, photo of each candidate.
            local: the rows of the batch that are anchors.
            batch_keys, bank_keys: (B, D) and (M, D) text keys.
            text_ids: (C,) int64, caption of each candidate; -100 where unknown.
        """
        others, exists = other_captions_of_photo(
            image_ids, text_ids[local], candidate_ids, text_ids)
        keys = take_keys(batch_keys, bank_keys, others) * exists[..., None]  # (A, K, D)
        total = batch_keys[local] + keys.sum(dim=1)  # (A, D)
        count = 1 + exists.sum(dim=1, keepdim=True)  # (A, 1)
        without_itself = ((total[:, None] - keys) * keys).sum(dim=2)  # (A, K)
        same_photo_similarity = without_itself / (count - 1).clamp(min=1)
        return cls(total / count, others, exists, same_photo_similarity, batch_keys, bank_keys)

    def similarity(self, start: int, stop: int) -> Tensor:
        """Compute r of all anchors and the candidates from `start` up to `stop`: (A, c)."""
        out = self.mean.new_empty(len(self.mean), stop - start)
        fill_similarity(self.mean, self.batch_keys, self.bank_keys, start, out)
        return out

    def similarity_to(self, candidates: Tensor) -> Tensor:
        """Compute r of each anchor and its one candidate of `candidates` (A,): (A,)."""
        return (take_keys(self.batch_keys, self.bank_keys, candidates) * self.mean).sum(dim=1)

    def same_photo_moments(self, direction: Direction) -> Tensor:
        """Sum `pair_moments` (6,) over (s, r) of anchors and other captions of their photo."""
        keys = take_keys(direction.batch_keys, direction.bank_keys, self.others)  # (A, K, D)
        similarity = (direction.anchors[:, None] * keys).sum(dim=2)  # (A, K)
        return pair_moments(similarity * self.exists, self.same_photo_similarity,
                            self.exists.sum())


# ---------------------------------------------------------------------------------------- sampling


class Sample(NamedTuple):
    """The candidates drawn for R anchors, with counts and moments of all their candidates."""

    indices: Tensor  # (R,) int64, the drawn candidate, or `NO_NEGATIVE`
    counts: Tensor  # (S, 2) int64, candidates with weight, and allowed ones, of each direction
    moments: Tensor  # (S, 6) float64 `pair_moments` of allowed candidates; 0 without captions


def draw_negatives(candidates: Candidates, weigh: Weigh, bound: Tensor) -> Sample:
    """Draw one candidate for each anchor, with probability proportional to its weight.

    An anchor whose candidates all have weight 0 takes the most similar allowed one.

    Args:
        candidates: anchors and candidates.
        weigh: computes weights in [0, 1].
        bound: () similarity up to which all weights are 0.
    """
    batch, image_ids = len(candidates.directions[0].batch_keys), candidates.image_ids
    if draws_by_rejection(image_ids.device, batch, len(image_ids)):
        return sample_by_rejection(candidates, weigh, bound)
    return sample_exact(candidates, weigh)


def draws_by_rejection(device: torch.device, batch: int, candidates: int) -> bool:
    """Tell whether `draw_negatives` draws by rejection on a device.

    Args:
        device: of the embeddings.
        batch: B.
        candidates: C, batch and bank.
    """
    return device.type == "cpu" and batch * candidates > EXACT_UP_TO


def running_sums(values: Tensor) -> Tensor:
    """Sum each row of `values` (B, C) up to each column, in float64: (B, C).

    Where PyTorch must be deterministic the sums are made by doubling: on a GPU `cumsum` is either
    not deterministic, or takes memory that grows with the square of C.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return values.cumsum(dim=1, dtype=torch.float64)
    sums, width = values.double(), 1
    while width < sums.shape[1]:
        sums = torch.cat([sums[:, :width], sums[:, width:] + sums[:, :-width]], dim=1)
        width *= 2
    return sums


def sample_negatives(weights: Tensor, fallback: Tensor, shares: Tensor | None = None) -> Tensor:
    """Draw one candidate of each row with probability proportional to its weight.

    The first running sum of a row's weights above a random share of their total wins. This takes
    one random number a row, where a race of C exponentials would cost as much as the similarities.

    Args:
        weights: (B, C), not negative.
        fallback: (B,) int64, the index that a row without any weight takes.
        shares: (B,) float64 in [0, 1) to draw with; random ones by default.

    Returns:
        (B,) int64 column of each row.
    """
    if shares is None:
        shares = torch.rand(len(weights), dtype=torch.float64, device=weights.device)
    sums = running_sums(weights)  # (B, C)
    target = shares[:, None] * sums[:, -1:]  # (B, 1)
    drawn = torch.searchsorted(sums, target, right=True).clamp(max=weights.shape[1] - 1)  # (B, 1)
    # Rounding may not let a candidate of weight 0 win, be it once in 1e15 draws.
    return drawn[:, 0].where(weights.gather(1, drawn)[:, 0] > 0, fallback)


class Hardest:
    """The most similar allowed candidate of each of R anchors, over the blocks seen so far."""

    def __init__(self, like: Tensor):
        self.similarity = torch.full_like(like, -torch.inf)  # (R,)
        self.indices = torch.full_like(like, NO_NEGATIVE, dtype=torch.int64)  # (R,)

    def update(self, start: int, similarity: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Take a block into account, in place.

        Args:
            start: index of the block's first candidate.
            similarity: (n, c), -inf where excluded.
            rows: the n anchors that `similarity` is of; all by default.

        Returns:
            (n,) int64 column of each anchor's hardest in this block; `NO_NEGATIVE` if all are
            excluded.
        """
        highest, column = similarity.max(dim=1)  # (n,), (n,)
        higher = highest > self.similarity[rows]
        self.indices[rows] = torch.where(higher, start + column, self.indices[rows])
        self.similarity[rows] = self.similarity[rows].maximum(highest)
        return column.where(highest.isfinite(), NO_NEGATIVE)


def sample_exact(
    candidates: Candidates, weigh: Weigh, generator: torch.Generator | None = None
) -> Sample:
    """Draw by the weights of all candidates. On a GPU this never waits for the device.

    A block's draw replaces the earlier blocks' with the block's share of the weight so far, which
    makes it one draw from all candidates.

    Args:
        candidates: anchors and candidates.
        weigh: computes weights in [0, 1].
        generator: source of random numbers; PyTorch's default one if None.
    """
    positive, anchor_ids = candidates.positive_similarity(), candidates.anchor_ids  # (R,), (R,)
    hardest = Hardest(positive)
    drawn = torch.full_like(anchor_ids, NO_NEGATIVE)  # (R,)
    total = torch.zeros_like(positive, dtype=torch.float64)  # (R,) weight so far
    counts, moments = 0, positive.new_zeros(len(candidates.directions), 6, dtype=torch.float64)
    for block in candidate_blocks(candidates):
        also_excluded = None
        if candidates.also_excluded is not None:
            also_excluded = candidates.also_excluded[:, block.start : block.stop]
        excluded = excluded_candidates(
            anchor_ids, candidates.image_ids[block.start : block.stop], also_excluded)  # (R, c)
        weights = weigh(block.similarity, positive, excluded, block.caption_similarity,
                        block.match_posterior)  # (R, c)
        fallback = hardest.update(
            block.start, block.similarity.masked_fill(excluded, -torch.inf))  # (R,)
        weight = weights.sum(dim=1, dtype=torch.float64)  # (R,)
        total += weight
        replacing, columns = [], []
        for direction_weights, direction_fallback in zip(
                candidates.by_direction(weights), candidates.by_direction(fallback)):
            replacing.append(candidates.random_shares(1, generator=generator))
            shares = candidates.random_shares(1, generator=generator)
            columns.append(sample_negatives(direction_weights, direction_fallback, shares))
        replace = torch.cat(replacing) * total < weight  # (R,)
        drawn = torch.where(replace, block.start + torch.cat(columns), drawn)
        weighted = count_true(candidates, weights)  # (S,)
        allowed = count_true(candidates, ~excluded)  # (S,)
        counts = counts + torch.stack([weighted, allowed], dim=1)
        if block.caption_similarity is not None:
            moments += block_moments(candidates, block.similarity.masked_fill(excluded, 0.0),
                                     block.caption_similarity.masked_fill(excluded, 0.0), allowed)
    return Sample(torch.where(total > 0, drawn, hardest.indices), counts, moments)


def count_true(candidates: Candidates, values: Tensor) -> Tensor:
    """Count what is not 0 in `values` (R, c) for each direction: (S,) int64."""
    return torch.stack([rows.count_nonzero() for rows in candidates.by_direction(values)])


def block_moments(
    candidates: Candidates, similarity: Tensor, caption_similarity: Tensor, allowed: Tensor
) -> Tensor:
    """Sum `pair_moments` over a block for each direction.

    Args:
        candidates: anchors and candidates.
        similarity, caption_similarity: (R, c), 0 where excluded.
        allowed: (S,) number of pairs that are not excluded.

    Returns:
        (S, 6) float64.
    """
    rows = zip(candidates.by_direction(similarity), candidates.by_direction(caption_similarity),
               allowed)
    return torch.stack([pair_moments(values, others, count) for values, others, count in rows])


# ------------------------------------------------------------------------------ rejection, on a CPU


class Proposals(NamedTuple):
    """P proposed candidates of each of R anchors, drawn evenly from those above the bound."""

    indices: Tensor  # (R, P) int64, `NO_NEGATIVE` where none was above the bound
    similarity: Tensor  # (R, P)
    caption_similarity: Tensor | None  # (R, P), where the evidence of captions is used
    above: Tensor  # (R, 1) float64, candidates above the bound so far


def sample_by_rejection(candidates: Candidates, weigh: Weigh, bound: Tensor) -> Sample:
    """Draw from the distribution of `sample_exact` at little more than the cost of the products.

    Rejection sampling: each of an anchor's P proposals is drawn evenly from the candidates above
    `bound`, below which weights are 0, and accepted with a probability that is its weight, which is
    at most 1. The first accepted proposal is a draw by the weights of all candidates. Only
    proposals are weighed. An anchor that accepts none is drawn exactly, with random numbers of its
    own. This reads numbers back from the device, so it is meant for a CPU.

    Args:
        candidates: anchors and candidates.
        weigh: computes weights in [0, 1].
        bound: () similarity up to which all weights are 0.
    """
    positive = candidates.positive_similarity()  # (R,)
    bound = bound.to(positive.dtype)
    seed = int(torch.randint(2**62, ()))  # drawn in each process of a run, whether used or not
    same_photo, also_excluded = same_photo_candidates(candidates)
    hardest = Hardest(positive)
    proposals = no_proposals(candidates, positive)
    counts, moments = 0, positive.new_zeros(len(candidates.directions), 6, dtype=torch.float64)
    for block in candidate_blocks(candidates):
        in_block = slice(*torch.searchsorted(
            same_photo[1], torch.tensor([block.start, block.stop])).tolist())
        anchors, columns = same_photo[0][in_block], same_photo[1][in_block] - block.start  # (n,)
        excluded = None if also_excluded is None else also_excluded[:, block.start : block.stop]

        def fill_excluded(values: Tensor, value: float, anchors=anchors, columns=columns,
                          excluded=excluded) -> None:
            """Overwrite excluded entries of `values` (R, c) in place."""
            for rows in candidates.by_direction(values):
                rows[anchors, columns] = value
            if excluded is not None:
                values.masked_fill_(excluded, value)

        similarity, caption_similarity = block.similarity, block.caption_similarity
        fill_excluded(similarity, -torch.inf)
        if excluded is None:
            size = similarity.numel() // len(candidates.directions) - len(anchors)
            allowed = torch.full((len(candidates.directions),), size)  # (S,)
        else:
            allowed = count_true(candidates, similarity > -torch.inf)  # (S,)
        above = propose(candidates, proposals, block, bound)  # (R,)
        without = (proposals.above[:, 0] == 0).nonzero()[:, 0]  # anchors that may take the hardest
        if len(without):
            hardest.update(block.start, similarity[without], without)
        weighted = above.view(len(allowed), -1).sum(dim=1)  # (S,)
        counts = counts + torch.stack([weighted, allowed], dim=1)
        if caption_similarity is not None:
            fill_excluded(similarity, 0.0)
            fill_excluded(caption_similarity, 0.0)
            moments += block_moments(candidates, similarity, caption_similarity, allowed)
    indices, undecided = accept(candidates, proposals, weigh, positive, hardest)
    if undecided.any():
        exact = sample_exact(candidates, weigh, torch.Generator().manual_seed(seed))
        indices = exact.indices.where(undecided, indices)
    return Sample(indices, counts, moments)


def same_photo_candidates(
    candidates: Candidates
) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
    """List the candidates that show an anchor's own photo, which are few.

    This compares only candidates whose id ends in the same 16 bits as that of some anchor.

    Returns:
        (n,) anchors of one direction and (n,) their candidates, in the order of the candidates; and
        (R, C) or (1, C) bool, what else is excluded: empty slots and `also_excluded`, or None.
    """
    anchor_ids, candidate_ids = candidates.image_ids[candidates.local], candidates.image_ids
    low_bits = torch.zeros(2**16, dtype=torch.bool, device=anchor_ids.device)
    low_bits[anchor_ids & 0xFFFF] = True
    possible = low_bits[candidate_ids & 0xFFFF].nonzero()[:, 0]  # (m,)
    columns, anchors = (candidate_ids[possible, None] == anchor_ids).nonzero(as_tuple=True)
    also_excluded, empty = candidates.also_excluded, candidate_ids[None] == EMPTY  # (1, C)
    if empty.any():
        also_excluded = empty if also_excluded is None else also_excluded | empty
    return (anchors, possible[columns]), also_excluded


def no_proposals(candidates: Candidates, positive: Tensor) -> Proposals:
    """Make the proposals of R anchors before any candidate was seen; `positive` is (R,)."""
    indices = torch.full((len(positive), PROPOSALS), NO_NEGATIVE)  # (R, P)
    similarity = torch.full_like(indices, -torch.inf, dtype=positive.dtype)  # (R, P)
    caption_similarity = None if candidates.captions is None else similarity.clone()  # (R, P)
    above = torch.zeros(len(positive), 1, dtype=torch.float64)  # (R, 1)
    return Proposals(indices, similarity, caption_similarity, above)


def propose(candidates: Candidates, proposals: Proposals, block: Block, bound: Tensor) -> Tensor:
    """Replace proposals in place by candidates of a block, with the block's share of all so far.

    A proposal that is replaced becomes the n-th candidate of the block above the bound, for a
    random n. To find it, the columns are counted in groups of `GROUPS` columns that lie a width
    apart: first the group that holds the n-th is searched for, then the place in it.

    Args:
        candidates: anchors and candidates.
        proposals: changed in place.
        block: its similarity is -inf where excluded.
        bound: () similarity that a candidate must exceed.

    Returns:
        (R,) int64, candidates of the block above the bound.
    """
    similarity = block.similarity  # (R, c)
    rows, columns = similarity.shape
    width = math.ceil(columns / GROUPS)
    above = similarity.new_empty(rows, GROUPS * width)
    torch.gt(similarity, bound, out=above[:, :columns])  # as floats, which add up fastest
    above[:, columns:] = 0
    above = above.view(rows, GROUPS, width)
    sums = above.sum(dim=1).cumsum(dim=1)  # (R, width) count in all groups up to each
    proposals.above.add_(sums[:, -1:])
    shares = candidates.random_shares(len(candidates.directions), PROPOSALS)  # (R, P)
    rank = shares * proposals.above  # (R, P) those below the block's count are replaced
    row, slot = (rank < sums[:, -1:]).nonzero(as_tuple=True)  # (n,), (n,)
    rank = rank.floor_().to(sums.dtype)
    group = torch.searchsorted(sums, rank, right=True)[row, slot]  # (n,)
    members = above[row, :, group].cumsum(dim=1)  # (n, GROUPS) count in the group up to each
    rank_in_group = rank[row, slot] - sums[row, group] + members[:, -1]  # (n,)
    member = torch.searchsorted(members, rank_in_group[:, None], right=True)[:, 0]  # (n,)
    column = member * width + group  # (n,)
    proposals.indices[row, slot] = block.start + column
    proposals.similarity[row, slot] = similarity[row, column]
    if block.caption_similarity is not None:
        proposals.caption_similarity[row, slot] = block.caption_similarity[row, column]
    return sums[:, -1].long()


def accept(
    candidates: Candidates, proposals: Proposals, weigh: Weigh, positive: Tensor, hardest: Hardest
) -> tuple[Tensor, Tensor]:
    """Take each anchor's first accepted proposal, or its hardest candidate if none has weight.

    Args:
        candidates: anchors and candidates.
        proposals: of all blocks.
        weigh: computes weights in [0, 1].
        positive: (R,) positive similarity.
        hardest: known for the anchors without a candidate above the bound.

    Returns:
        (R,) int64 indices, and (R,) bool, anchors that accepted no proposal although a candidate
        is above the bound.
    """
    match_posterior = candidates.match_posterior
    if match_posterior is not None:
        match_posterior = match_posterior.gather(1, proposals.indices.clamp(min=0))  # (R, P)
    weights = weigh(proposals.similarity, positive, proposals.indices == NO_NEGATIVE,
                    proposals.caption_similarity, match_posterior)  # (R, P)
    shares = candidates.random_shares(len(candidates.directions), PROPOSALS)
    accepted = shares < weights  # (R, P)
    first = accepted.byte().argmax(dim=1, keepdim=True)  # (R, 1)
    any_accepted = accepted.any(dim=1)  # (R,)
    indices = proposals.indices.gather(1, first)[:, 0].where(any_accepted, hardest.indices)
    return indices, (proposals.above[:, 0] > 0) & ~any_accepted
