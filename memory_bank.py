"""The memory bank: keys of recent batches, kept as candidates for negatives; and looking at them.

Usable with nothing else of this repository (paper, section 3.3; the idea of a queue of momentum
keys is MoCo's). Shapes as in `fne_loss.py`; no step needs an (A, C), since candidates are looked at
part by part.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

EMPTY = -100
NO_NEGATIVE = -1  # the index drawn for an anchor that has no allowed candidate at all
# Similarities looked at together; on a CPU as its cache holds, LEAST an anchor, counted by GROUP.
PART, PART_ON_CPU, LEAST, GROUP = 2**24, 2**18, 2**10, 32
PROPOSALS = 6  # of an anchor, before all its candidates are weighed
CAPTIONS = 6  # of an anchor's photo that are looked up, at most, its own one among them


class MemoryBank(nn.Module):
    """A ring of the last M image and text keys, first in, first out.

    Buffers (saved with `state_dict`, moved with `.to`):
        image_keys, text_keys: (M, D) float, unit rows where filled, zero where empty.
        image_ids: (M,) int64, the photo that a slot shows; `EMPTY` = -100 marks an empty slot.
        text_ids: (M,) int64, the caption's index in the training split; -100 where unknown.
        pointer: () int64, the slot that is written next.

    Args:
        size: M, the number of slots (published: 8,224).
        dim: D, the width of the embeddings.
        dtype: of the keys; bfloat16 takes half the room, and changes a cosine by less than 1e-3.
    """

    def __init__(self, size: int, dim: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"a memory bank needs size and dim above 0, got {size} and {dim}")
        for side in "image", "text":
            self.register_buffer(f"{side}_keys", torch.zeros(size, dim, dtype=dtype))  # (M, D)
        for side in "image", "text":
            self.register_buffer(f"{side}_ids", torch.full((size,), EMPTY))  # (M,)
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        """Filled slots. Waits for the device, so call it when logging, not in each step."""
        return int((self.image_ids != EMPTY).sum())

    @torch.no_grad()
    def enqueue(
        self, image_keys: Tensor, text_keys: Tensor, image_ids: Tensor,
        text_ids: Tensor | None = None,
    ) -> None:
        """Write a batch over the oldest slots, wrapping at the end.

        A pair whose keys are not finite leaves its slot empty, so that it is never drawn.

        Of the momentum encoders' unit rows (B, D), B <= M, the photos' ids (B,), not negative, and
        indices of the captions (B,), or None where nobody will ask for them.

        Raises:
            ValueError: the shapes disagree with each other or with the bank, or B > M.
        """
        size, dim = self.image_keys.shape
        batch = len(image_ids)
        if image_keys.shape != (batch, dim) or text_keys.shape != (batch, dim):
            raise ValueError(f"the bank takes keys of shape ({batch}, {dim}), got "
                             f"{tuple(image_keys.shape)} and {tuple(text_keys.shape)}")
        if text_ids is None:
            text_ids = torch.full_like(image_ids, EMPTY)
        if image_ids.shape != (batch,) or text_ids.shape != (batch,):
            raise ValueError(f"the bank takes ids of shape ({batch},), got "
                             f"{tuple(image_ids.shape)} and {tuple(text_ids.shape)}")
        if batch > size:
            raise ValueError(f"a batch of {batch} does not fit a memory bank of {size} slots")
        finite = image_keys.isfinite().all(dim=1) & text_keys.isfinite().all(dim=1)  # (B,)
        image_keys, text_keys = (of.where(finite[:, None], 0.0) for of in (image_keys, text_keys))
        image_ids, text_ids = (ids.where(finite, EMPTY) for ids in (image_ids, text_ids))
        # All of it stays on the device: no slice bound has to be read back from the pointer.
        slots = (self.pointer + torch.arange(batch, device=self.pointer.device)) % size  # (B,)
        self.image_keys.index_copy_(0, slots, image_keys.to(self.image_keys.dtype))
        self.text_keys.index_copy_(0, slots, text_keys.to(self.text_keys.dtype))
        self.image_ids.index_copy_(0, slots, image_ids.to(torch.int64))
        self.text_ids.index_copy_(0, slots, text_ids.to(torch.int64))
        self.pointer.copy_((self.pointer + batch) % size)

    def extra_repr(self) -> str:
        return "size={}, dim={}".format(*self.image_keys.shape)


def at_least_float32(embeds: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Both in their common precision, which is float32 or better."""
    dtype = torch.promote_types(torch.promote_types(embeds.dtype, others.dtype), torch.float32)
    return embeds.to(dtype), others.to(dtype)


def cosine(embeds: Tensor, others: Tensor) -> Tensor:
    """(A, C) cosines of unit rows (A, D) and (C, D), in float32 or better also under autocast."""
    embeds, others = at_least_float32(embeds, others)
    with torch.autocast(embeds.device.type, enabled=False):
        return embeds @ others.T


def excluded_candidates(
    image_ids: Tensor, candidate_ids: Tensor, further: Tensor | None = None
) -> Tensor:
    """(A, C) bool from ids (A,) and (C,): the anchor's own image, `EMPTY` = -100, or `further`."""
    barred = (image_ids[:, None] == candidate_ids) | (candidate_ids == EMPTY)
    return barred if further is None else barred | further


def list_barred(image_ids: Tensor, candidate_ids: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """What `excluded_candidates` bars, by ids (A,) and (C,): (N,) anchors and (N,) candidates of
    one photo, in the order of the candidates; and (1, C) bool of empty slots, None without any.

    It reads numbers back, and compares only candidates with the last 16 bits of an anchor's id.
    """
    bits = 2**16 - 1
    known = torch.zeros(bits + 1, dtype=torch.bool, device=image_ids.device)
    known[image_ids & bits] = True
    near = known[candidate_ids & bits].nonzero()[:, 0]  # (n,)
    candidates, anchors = (candidate_ids[near, None] == image_ids).nonzero(as_tuple=True)
    empty = candidate_ids[None] == EMPTY
    return anchors, near[candidates], empty if empty.any() else None


def rows_of(keys: Tensor, bank_keys: Tensor, indices: Tensor) -> Tensor:
    """(*, D) of the candidates at `indices` (*), of the batch's (B, D) and the bank's (M, D)."""
    batch = len(keys)
    from_batch = keys[indices.clamp(0, batch - 1)]  # (*, D)
    from_bank = bank_keys[(indices - batch).clamp(min=0)]  # (*, D)
    return torch.where((indices < batch)[..., None], from_batch, from_bank)


def gather_drawn(keys: Tensor, bank_keys: Tensor, negatives: Tensor, first: int = 0):
    """The anchors' own keys, those from `first` on of the batch's (B, D), followed by the A drawn
    ones: (2A, D). And where each row's drawn one is there: (A,). It spares `hinge` the joined
    candidates (C, D), which would copy the whole bank."""
    anchors = len(negatives)
    rows = torch.arange(anchors, 2 * anchors, device=keys.device)
    keys = torch.cat([keys[first : first + anchors], rows_of(keys, bank_keys, negatives)])
    return keys, rows.where(negatives != NO_NEGATIVE, NO_NEGATIVE)


def other_captions(
    image_ids: Tensor, text_ids: Tensor, candidate_ids: Tensor, candidate_text_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Up to CAPTIONS = K candidates of the same photo and another caption of each of A anchors:
    (A, K) indices, and (A, K) bool, which of them there are. From ids of photos and captions, (A,)
    and (C,); a caption whose id is not known, below 0, is none."""
    ids, order = candidate_ids.sort(stable=True)  # (C,), (C,)
    begin = torch.searchsorted(ids, image_ids)[:, None]  # (A, 1)
    places = begin + torch.arange(CAPTIONS, device=ids.device)  # (A, K)
    indices = order[places.clamp(max=len(ids) - 1)]  # (A, K)
    texts = candidate_text_ids[indices]  # (A, K)
    there = (candidate_ids[indices] == image_ids[:, None]) & (places < len(ids))
    return indices, there & (texts != text_ids[:, None]) & (texts >= 0)


def parts(size: int, batch: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Bounds that part the C = B + M candidates so that no (B, c) gets large, nor a step's memory;
    the first part begins with the batch's own keys."""
    on_cpu = device.type == "cpu"
    width = max(PART_ON_CPU // batch, LEAST) if on_cpu else max(PART // batch, 1)
    width = math.ceil(size / math.ceil(size / width))
    width += -width % 64 if width > 64 else 0  # which is faster to multiply
    for start in range(0, size, width):
        yield start + batch if start else 0, batch + min(start + width, size)


def running_sums(values: Tensor) -> Tensor:
    """(B, C) float64 sums of each row up to each column; by doubling where PyTorch must be
    deterministic: a GPU's `cumsum` is not, or with memory that grows with C squared."""
    if not torch.are_deterministic_algorithms_enabled():
        return values.cumsum(dim=1, dtype=torch.float64)
    sums, width = values.double(), 1
    while width < sums.shape[1]:
        sums = torch.cat([sums[:, :width], sums[:, width:] + sums[:, :-width]], dim=1)
        width *= 2
    return sums


def similarity_to_part(
    rows: Tensor, keys: Tensor, bank_keys: Tensor, start: int, stop: int
) -> Tensor:
    """(A, c) of `rows` (A, D) and the candidates from index `start` up to `stop`."""
    batch = len(keys)
    stored = cosine(rows, bank_keys[max(start - batch, 0) : stop - batch])
    return stored if start else torch.cat([cosine(rows, keys), stored], dim=1)


def moments(values: Tensor, others: Tensor, count: Tensor | int) -> Tensor:
    """(6,) float64 sums of 1, x, y, x^2, x y, y^2 over `count` pairs; both are 0 in all others."""
    x, y = values.reshape(-1), others.reshape(-1)
    sums = torch.stack([x.sum(), y.sum(), x.dot(x), x.dot(y), y.dot(y)]).double()
    return torch.cat([torch.as_tensor(count, device=x.device).double()[None], sums])


class Captions(NamedTuple):
    """The captions of A anchors' photos in batch and bank. An anchor's similarity to a candidate's
    caption is the mean over them, its own one among them, but not the candidate itself."""

    own: Tensor  # (A, D) sum of their keys
    count: Tensor  # (A, 1) of them
    others: Tensor  # (A, K) and
    there: Tensor  # (A, K), as by `other_captions`
    same: Tensor  # (A, K) similarity to these, 0 where there is none
    keys: Tensor  # (B, D)
    bank_keys: Tensor  # (M, D)

    @classmethod
    def of(cls, image_ids: Tensor, candidate_ids: Tensor, mine: slice, keys: Tensor,
           bank_keys: Tensor, text_ids: Tensor) -> "Captions":
        """From photos' ids (A,) and (C,), and captions' keys (B, D), (M, D) and ids (C,)."""
        others, there = other_captions(image_ids, text_ids[mine], candidate_ids, text_ids)
        found = rows_of(keys, bank_keys, others) * there[..., None]  # (A, K, D)
        own, count = keys[mine] + found.sum(dim=1), 1 + there.sum(dim=1, keepdim=True)
        rest = ((own[:, None] - found) * found).sum(dim=2)  # (A, K), without the candidate itself
        return cls(own, count, others, there, rest / (count - 1).clamp(min=1), keys, bank_keys)

    def similarity(self, start: int, stop: int) -> Tensor:
        return similarity_to_part(self.own / self.count, self.keys, self.bank_keys, start, stop)

    def similarity_to(self, candidates: Tensor) -> Tensor:
        """(A,) to one of the `candidates` (A,) each."""
        return (rows_of(self.keys, self.bank_keys, candidates) * self.own / self.count).sum(dim=1)

    def moments(self, direction: "Direction") -> Tensor:
        """(6,) `moments` of anchors and the other captions' pairs, of the same photo."""
        candidates = rows_of(direction.keys, direction.bank_keys, self.others)  # (A, K, D)
        similarity = (direction.anchors[:, None] * candidates).sum(dim=2)  # (A, K)
        return moments(similarity * self.there, self.same, self.there.sum())


class Direction(NamedTuple):
    """A anchors of one side, and the C candidates of the other that they draw from."""

    anchors: Tensor  # (A, D)
    own: Tensor  # (A,) s+, each anchor's similarity to its own key
    image_ids: Tensor  # (A,)
    keys: Tensor  # (B, D)
    bank_keys: Tensor  # (M, D)
    ids: Tensor  # (C,) photos of the candidates
    excluded: Tensor | None  # (A, C) bool, barred beside those of the own image
    mine: slice | Tensor  # which of the batch the anchors are
    captions: Captions | None = None
    generator: torch.Generator | None = None

    def similarity(self, start: int, stop: int) -> Tensor:
        return similarity_to_part(self.anchors, self.keys, self.bank_keys, start, stop)

    def of(self, rows: Tensor, generator: torch.Generator) -> "Direction":
        """To weigh for some `rows` (R,) of the anchors, with random numbers of their own."""
        excluded = None if self.excluded is None else self.excluded[rows]
        captions = self.captions and self.captions._replace(
            own=self.captions.own[rows], count=self.captions.count[rows])
        places = torch.arange(len(self.keys), device=rows.device)[self.mine][rows]
        return self._replace(anchors=self.anchors[rows], own=self.own[rows], mine=places,
                             image_ids=self.image_ids[rows], excluded=excluded, captions=captions,
                             generator=generator)

    def uniform(self, *shape: int) -> Tensor:
        """(A, *shape) doubles in [0, 1): the anchors' part of what is drawn for the whole batch."""
        return torch.rand(len(self.keys), *shape, dtype=torch.float64, device=self.anchors.device,
                          generator=self.generator)[self.mine]


def show(looks: list) -> None:
    """Let each of `looks`, a `Weighing` or `Proposing`, look at all its candidates. The similarity
    of captions serves them all."""
    first = looks[0].direction
    for start, stop in parts(len(first.bank_keys), len(first.keys), first.keys.device):
        texts = first.captions and first.captions.similarity(start, stop)
        for look in looks:
            look(start, look.direction.similarity(start, stop), texts)


class Weighing:
    """A draw by the weights of all candidates. It waits for no device.

    `weights` makes (A, c) of similarities (A, c), s+ (A,), barred (A, c) and similarities of
    captions (A, c), or None; `sample` columns (A,) of these, fallback (A,) and random shares (A,).
    """

    def __init__(self, direction: Direction, weights: Callable, sample: Callable):
        self.direction, self.weights, self.sample = direction, weights, sample
        self.hardest = torch.full_like(direction.own, -torch.inf)  # (A,) of the allowed so far
        self.hardest_at = torch.full_like(direction.image_ids, NO_NEGATIVE)  # (A,)
        self.drawn = self.hardest_at
        self.total = torch.zeros_like(self.hardest, dtype=torch.float64)  # (A,) weight so far
        self.counts = 0  # (2,), as in `fne_loss.Draw`
        self.moments = torch.zeros(6, dtype=torch.float64, device=direction.own.device)

    def __call__(self, start: int, similarity: Tensor, texts: Tensor | None = None) -> None:
        """Look at candidates from index `start` on: (A, c) similarities, and those of captions."""
        ask, stop = self.direction, start + similarity.shape[1]
        further = None if ask.excluded is None else ask.excluded[:, start:stop]
        barred = excluded_candidates(ask.image_ids, ask.ids[start:stop], further)  # (A, c)
        weights = self.weights(similarity, ask.own, barred, texts)  # (A, c)
        highest, at = similarity.masked_fill(barred, -torch.inf).max(dim=1)  # (A,), (A,)
        self.hardest_at = torch.where(highest > self.hardest, start + at, self.hardest_at)
        self.hardest = self.hardest.maximum(highest)
        # A part's draw replaces the earlier one with the part's share of the weight so far: the
        # same as one draw from all candidates.
        weight = weights.sum(dim=1, dtype=torch.float64)
        self.total = self.total + weight
        replace = ask.uniform() * self.total < weight
        whole = ask.generator is None and len(ask.anchors) == len(ask.keys)
        share = {} if whole else {"share": ask.uniform()}
        here = self.sample(weights, at.where(highest.isfinite(), NO_NEGATIVE), **share)
        self.drawn = torch.where(replace, start + here, self.drawn)
        counts = torch.stack([weights.count_nonzero(), (~barred).count_nonzero()])
        self.counts = self.counts + counts
        if texts is not None:
            self.moments += moments(
                similarity.masked_fill(barred, 0.0), texts.masked_fill(barred, 0.0), counts[1])

    def negatives(self) -> Tensor:
        """(A,) indices, of the hardest where nothing has weight; `NO_NEGATIVE` without any."""
        return torch.where(self.total > 0, self.drawn, self.hardest_at)


class Proposing:
    """The same draw for little more than the similarities' cost, on a CPU: it reads numbers back.

    Rejection sampling: of the candidates above `bound` (), up to which weights are 0, each as
    likely as the others is proposed, and taken with a probability that is its weight, at most 1. So
    only proposals are weighed, and the first that is taken is drawn as by the weights of all. An
    anchor that takes none of its PROPOSALS does weigh them all. `barred` is of `list_barred`.
    """

    def __init__(self, direction: Direction, weights: Callable, sample: Callable, bound: Tensor,
                 barred: tuple):
        self.direction, self.weights, self.sample = direction, weights, sample
        self.bound = bound.to(direction.own.dtype)
        self.anchors, self.candidates, self.further = barred  # (N,), (N,), (1, C) or (A, C)
        if direction.excluded is not None:
            self.further = direction.excluded | (direction.ids == EMPTY)
        self.at = torch.full((len(direction.own), PROPOSALS), NO_NEGATIVE)  # (A, P)
        self.similarity = torch.full_like(self.at, -torch.inf, dtype=direction.own.dtype)
        self.texts = None if direction.captions is None else self.similarity.clone()  # (A, P)
        self.moments = torch.zeros(6, dtype=torch.float64)
        self.seen = torch.zeros(len(self.at), 1, dtype=torch.float64)  # (A, 1) above the bound
        self.hardest = torch.full_like(direction.own, -torch.inf)  # (A,) of rows that have none
        self.hardest_at = torch.full_like(direction.image_ids, NO_NEGATIVE)  # (A,)
        self.allowed, self.room = 0, self.similarity.new_empty(0)
        self.seed = int(torch.randint(2**62, ()))  # the same in each process, used or not

    @property
    def counts(self) -> Tensor:
        return torch.stack([self.seen.sum(), torch.tensor(float(self.allowed))]).long()

    def __call__(self, start: int, similarity: Tensor, texts: Tensor | None = None) -> None:
        """As of `Weighing`. Both tensors are changed where a candidate is barred."""
        bounds = torch.tensor([start, start + similarity.shape[1]])
        own = slice(*torch.searchsorted(self.candidates, bounds).tolist())
        own = self.anchors[own], self.candidates[own] - start
        further = None if self.further is None else self.further[:, slice(*bounds)]
        similarity[own] = -torch.inf
        if further is None:
            allowed = similarity.numel() - len(own[0])
        else:
            similarity.masked_fill_(further, -torch.inf)
            allowed = int((similarity > -torch.inf).count_nonzero())
        self.allowed += allowed
        self.propose(start, similarity, texts)
        bare = (self.seen[:, 0] == 0).nonzero()[:, 0]  # whose hardest may be asked for
        if len(bare):
            highest, at = similarity[bare].max(dim=1)
            better = highest > self.hardest[bare]
            self.hardest_at[bare] = torch.where(better, start + at, self.hardest_at[bare])
            self.hardest[bare] = self.hardest[bare].maximum(highest)
        if texts is not None:
            similarity[own] = texts[own] = 0.0
            if further is not None:
                similarity, texts = (of.masked_fill(further, 0.0) for of in (similarity, texts))
            self.moments += moments(similarity, texts, allowed)

    def propose(self, start: int, similarity: Tensor, texts: Tensor | None) -> None:
        """Replace each proposal by one of this part with the part's share of all seen so far."""
        rows, columns = similarity.shape
        width = math.ceil(columns / GROUP)
        if self.room.numel() < rows * GROUP * width:
            self.room = similarity.new_empty(rows * GROUP * width)
        above = self.room[: rows * GROUP * width].view(rows, -1)
        torch.gt(similarity, self.bound, out=above[:, :columns])  # as floats: fastest to add up
        above[:, columns:] = 0
        above = above.view(rows, GROUP, width)
        sums = above.sum(dim=1).cumsum(dim=1)  # (A, width) of all groups up to each
        self.seen += sums[:, -1:]
        rank = (self.direction.uniform(PROPOSALS) * self.seen).floor_()  # (A, P) this part's first
        row, slot = (rank < sums[:, -1:]).nonzero(as_tuple=True)  # (R,), (R,)
        rank = rank.to(sums.dtype)
        group = torch.searchsorted(sums, rank, right=True)[row, slot]  # (R,) with the rank-th
        members = above[row, :, group].cumsum(dim=1)  # (R, GROUP)
        rank = rank[row, slot] - sums[row, group] + members[:, -1]
        column = torch.searchsorted(members, rank[:, None], right=True)[:, 0] * width + group
        self.at[row, slot] = start + column
        self.similarity[row, slot] = similarity[row, column]
        if texts is not None:
            self.texts[row, slot] = texts[row, column]

    def negatives(self) -> Tensor:
        """As `Weighing.negatives`."""
        weights = self.weights(
            self.similarity, self.direction.own, self.at == NO_NEGATIVE, self.texts)
        taken = self.direction.uniform(PROPOSALS) < weights  # (A, P)
        first, any_taken = taken.byte().argmax(dim=1, keepdim=True), taken.any(dim=1)
        negatives = self.at.gather(1, first)[:, 0].where(any_taken, self.hardest_at)
        left = ((self.seen[:, 0] > 0) & ~any_taken).nonzero()[:, 0]
        if len(left):
            rest = self.direction.of(left, torch.Generator().manual_seed(self.seed))
            look = Weighing(rest, self.weights, self.sample)
            show([look])
            negatives[left] = look.negatives()
        return negatives
