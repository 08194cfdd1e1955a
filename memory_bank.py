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
PART, PART_ON_CPU, LEAST, GROUP = 2**24, 2**20, 2**10, 32
PROPOSALS = 8  # of an anchor, before all candidates are weighed
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
    def enqueue(self, image_keys: Tensor, text_keys: Tensor, image_ids: Tensor, text_ids=None):
        """Write a batch over the oldest slots, wrapping at the end. A pair with keys that are not
        finite leaves its slot empty, so that it is never drawn.

        Of the momentum encoders' unit rows (B, D), B <= M, the photos' ids (B,), not negative, and
        indices of the captions (B,), or None where nobody will ask for them.

        Raises:
            ValueError: the shapes disagree with each other or with the bank, or B > M.
        """
        size, dim = self.image_keys.shape
        batch = len(image_ids)
        text_ids = torch.full_like(image_ids, EMPTY) if text_ids is None else text_ids
        for what, shape, pair in (("keys", (batch, dim), (image_keys, text_keys)),
                                  ("ids", (batch,), (image_ids, text_ids))):
            if any(of.shape != shape for of in pair):
                raise ValueError(f"the bank takes {what} of shape {shape}, got "
                                 f"{tuple(pair[0].shape)} and {tuple(pair[1].shape)}")
        if batch > size:
            raise ValueError(f"a batch of {batch} does not fit a memory bank of {size} slots")
        finite = image_keys.isfinite().all(dim=1) & text_keys.isfinite().all(dim=1)  # (B,)
        image_keys, text_keys = (of.where(finite[:, None], 0.0) for of in (image_keys, text_keys))
        image_ids, text_ids = (ids.where(finite, EMPTY) for ids in (image_ids, text_ids))
        # All of it stays on the device: no slice bound has to be read back from the pointer.
        slots = (self.pointer + torch.arange(batch, device=self.pointer.device)) % size  # (B,)
        for name, rows in (("image_keys", image_keys), ("text_keys", text_keys),
                           ("image_ids", image_ids), ("text_ids", text_ids)):
            ring = getattr(self, name)
            ring.index_copy_(0, slots, rows.to(ring.dtype))
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


def excluded_candidates(image_ids: Tensor, candidate_ids: Tensor, further=None) -> Tensor:
    """(A, C) bool from ids (A,) and (C,): the anchor's own image, `EMPTY` = -100, or `further`."""
    barred = (image_ids[:, None] == candidate_ids) | (candidate_ids == EMPTY)
    return barred if further is None else barred | further


def list_barred(image_ids: Tensor, candidate_ids: Tensor, further: Tensor | None = None) -> tuple:
    """What `excluded_candidates` bars, by ids (A,) and (C,): (N,) anchors and (N,) candidates of
    one photo, in the order of the candidates; and `further` (*, C) with the empty slots, if any.
    It reads numbers back, and compares only candidates with the last 16 bits of an anchor's id."""
    known = torch.zeros(2**16, dtype=torch.bool, device=image_ids.device)
    known[image_ids & 0xFFFF] = True
    near = known[candidate_ids & 0xFFFF].nonzero()[:, 0]  # (n,)
    candidates, anchors = (candidate_ids[near, None] == image_ids).nonzero(as_tuple=True)
    empty = candidate_ids[None] == EMPTY  # (1, C)
    if empty.any():
        further = empty if further is None else further | empty
    return anchors, near[candidates], further


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


def parts(size: int, batch: int, rows: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Bounds that part the C = B + M candidates, the batch's keys first: no (R, c) gets large."""
    width = max(PART_ON_CPU // rows, LEAST) if device.type == "cpu" else max(PART // rows, 1)
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


def similarity_to_part(rows: Tensor, keys: Tensor, bank_keys: Tensor, start: int, out: Tensor):
    """`out` (A, c), filled with cosines of `rows` (A, D) and the candidates from `start` on."""
    batch = len(keys)
    stored = bank_keys[max(start - batch, 0) : start - batch + out.shape[1]]
    rows = rows.to(out.dtype)
    with torch.autocast(rows.device.type, enabled=False):
        torch.mm(rows, stored.T.to(out.dtype), out=out[:, -len(stored) :])
        if not start:
            torch.mm(rows, keys.T.to(out.dtype), out=out[:, :batch])
    return out


def moments(values: Tensor, others: Tensor, count: Tensor | int) -> Tensor:
    """(6,) float64 sums of 1, x, y, x^2, x y, y^2 over `count` pairs; both are 0 in all others."""
    x, y = values.reshape(-1), others.reshape(-1)
    sums = torch.stack([x.sum(), y.sum(), x.dot(x), x.dot(y), y.dot(y)]).double()
    return torch.cat([torch.as_tensor(count, device=x.device).double()[None], sums])


class Captions(NamedTuple):
    """The captions of A anchors' photos in batch and bank. An anchor's similarity to a candidate's
    caption is the mean over them, its own one among them, but not the candidate itself."""

    mean: Tensor  # (A, D) of their keys
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
        return cls(own / count, others, there, rest / (count - 1).clamp(min=1), keys, bank_keys)

    def similarity(self, start: int, stop: int) -> Tensor:
        """(A, c) to the candidates from index `start` up to `stop`."""
        out = self.mean.new_empty(len(self.mean), stop - start)
        return similarity_to_part(self.mean, self.keys, self.bank_keys, start, out)

    def similarity_to(self, candidates: Tensor) -> Tensor:
        """(A,) to one of the `candidates` (A,) each."""
        return (rows_of(self.keys, self.bank_keys, candidates) * self.mean).sum(dim=1)

    def moments(self, side: "Side") -> Tensor:
        """(6,) `moments` of anchors and the other captions' pairs, of the same photo."""
        candidates = rows_of(side.keys, side.bank_keys, self.others)  # (A, K, D)
        similarity = (side.anchors[:, None] * candidates).sum(dim=2)  # (A, K)
        return moments(similarity * self.there, self.same, self.there.sum())


class Side(NamedTuple):
    """Anchors of one direction, and the keys that they draw from."""

    anchors: Tensor  # (A, D)
    keys: Tensor  # (B, D)
    bank_keys: Tensor  # (M, D)


class Asked(NamedTuple):
    """R = S A anchors, those of S directions one after the other, and the C candidates of each."""

    sides: list[Side]  # S
    own: Tensor  # (R,) s+, each anchor's similarity to its own key
    image_ids: Tensor  # (R,)
    ids: Tensor  # (C,) photos of the candidates
    excluded: Tensor | None  # (R, C) or (1, C) bool, barred beside those of the own image
    mine: slice  # which A of the batch's B pairs the anchors are of
    captions: Captions | None = None  # of the A
    generator: torch.Generator | None = None

    def by_side(self, rows: Tensor) -> tuple[Tensor, ...]:
        """(R, *) as S tensors (A, *), which share its memory."""
        return rows.chunk(len(self.sides))

    def similarity(self, start: int, stop: int) -> Tensor:
        """(R, c) to the candidates from index `start` up to `stop`."""
        whole = self.own.new_empty(len(self.own), stop - start)
        for side, out in zip(self.sides, self.by_side(whole)):
            similarity_to_part(*side, start, out)
        return whole

    def uniform(self, sides: int, *shape: int) -> Tensor:
        """(sides A, *shape) doubles in [0, 1): the anchors' part of what the whole batch draws."""
        drawn = torch.rand(sides, len(self.sides[0].keys), *shape, dtype=torch.float64,
                           device=self.own.device, generator=self.generator)
        return drawn[:, self.mine].flatten(0, 1)


class Look:
    """A draw for each of the R anchors `asked` for, from candidates that are shown part by part.

    `weights` makes (R, c) of similarities (R, c), s+ (R,), barred (R, c) and similarities of
    captions (R, c), or None; `sample` columns (A,) of one direction's (A, c) of these, fallback
    (A,) and, of a part of the batch, random shares (A,)."""

    def __init__(self, asked: Asked, weights: Callable, sample: Callable):
        self.asked, self.weights, self.sample = asked, weights, sample
        self.hardest = torch.full_like(asked.own, -torch.inf)  # (R,) of the allowed so far
        self.hardest_at = torch.full_like(asked.image_ids, NO_NEGATIVE)  # (R,)
        self.moments = torch.zeros(len(asked.sides), 6, device=asked.own.device).double()
        self.counts = 0  # (S, 2) candidates that have weight, and that are allowed

    def show(self) -> None:
        """Look at all candidates."""
        ask, (_, keys, bank_keys) = self.asked, self.asked.sides[0]
        sides = len(ask.sides)
        # Parts as of the whole batch, so that a share of it takes the same random numbers.
        for start, stop in parts(len(bank_keys), len(keys), sides * len(keys), keys.device):
            texts = ask.captions and ask.captions.similarity(start, stop).repeat(sides, 1)
            seen, allowed, *pairs = self(start, ask.similarity(start, stop), texts)
            self.counts = self.counts + torch.stack([seen, allowed], dim=1)
            if texts is not None:
                self.moments += torch.stack(
                    [moments(*side) for side in zip(*map(ask.by_side, pairs), allowed)])

    def keep_hardest(self, start: int, similarity: Tensor, rows=slice(None)) -> Tensor:
        """(R,) column of each row's highest in a part; `NO_NEGATIVE` where all are -inf."""
        highest, at = similarity.max(dim=1)
        higher = highest > self.hardest[rows]
        self.hardest_at[rows] = torch.where(higher, start + at, self.hardest_at[rows])
        self.hardest[rows] = self.hardest[rows].maximum(highest)
        return at.where(highest.isfinite(), NO_NEGATIVE)


class Weighing(Look):
    """By the weights of all candidates. It waits for no device."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.drawn = self.hardest_at.clone()  # (R,)
        self.total = torch.zeros_like(self.hardest, dtype=torch.float64)  # (R,) weight so far

    def __call__(self, start: int, similarity: Tensor, texts: Tensor | None) -> tuple:
        """Look at candidates from index `start` on: (R, c) similarities, and those of captions. How
        many have weight (S,) and are allowed (S,), and both similarities, 0 where barred."""
        ask, stop = self.asked, start + similarity.shape[1]
        further = None if ask.excluded is None else ask.excluded[:, start:stop]
        barred = excluded_candidates(ask.image_ids, ask.ids[start:stop], further)  # (R, c)
        weights = self.weights(similarity, ask.own, barred, texts)  # (R, c)
        at = self.keep_hardest(start, similarity.masked_fill(barred, -torch.inf))  # (R,)
        # A part's draw replaces the earlier one with its share of the weight: one draw from all.
        weight = weights.sum(dim=1, dtype=torch.float64)
        self.total += weight
        chances, here = [], []
        for side in zip(ask.by_side(weights), ask.by_side(at)):
            chances.append(ask.uniform(1))
            whole = ask.generator is None and len(side[0]) == len(ask.sides[0].keys)
            here.append(self.sample(*side) if whole else self.sample(*side, ask.uniform(1)))
        replace = torch.cat(chances) * self.total < weight  # (R,)
        self.drawn = torch.where(replace, start + torch.cat(here), self.drawn)
        seen, allowed = (torch.stack([side.count_nonzero() for side in ask.by_side(of)])
                         for of in (weights, ~barred))
        pairs = [of if texts is None else of.masked_fill(barred, 0.0) for of in (similarity, texts)]
        return seen, allowed, *pairs

    def negatives(self) -> Tensor:
        """(R,) indices, of the hardest where nothing has weight; `NO_NEGATIVE` without any."""
        return torch.where(self.total > 0, self.drawn, self.hardest_at)


class Proposing(Look):
    """The same for little more than the similarities' cost, on a CPU: it reads numbers back.

    Rejection sampling: of the candidates above `bound` (), up to which weights are 0, each as
    likely as the others is proposed, and taken with a probability that is its weight, at most 1. So
    only proposals are weighed, and the first that is taken is drawn as by the weights of all. Where
    an anchor takes none of its PROPOSALS, all are weighed. `barred` is of `list_barred`."""

    def __init__(self, *arguments, bound: Tensor, barred: tuple):
        super().__init__(*arguments)
        self.bound = bound.to(self.hardest.dtype)
        self.anchors, self.candidates = barred  # (N,), (N,)
        self.at = torch.full((len(self.hardest), PROPOSALS), NO_NEGATIVE)  # (R, P)
        self.similarity = torch.full_like(self.at, -torch.inf, dtype=self.hardest.dtype)
        self.texts = None if self.asked.captions is None else self.similarity.clone()  # (R, P)
        self.seen = torch.zeros(len(self.at), 1, dtype=torch.float64)  # (R, 1) above the bound
        seed = int(torch.randint(2**62, ()))  # the same in each process, used or not
        self.again = self.asked._replace(generator=torch.Generator().manual_seed(seed))

    def __call__(self, start: int, similarity: Tensor, texts: Tensor | None) -> tuple:
        """As of `Weighing`. Both tensors are changed where a candidate is barred."""
        ask, stop = self.asked, start + similarity.shape[1]
        own = slice(*torch.searchsorted(self.candidates, torch.tensor([start, stop])).tolist())
        own = slice(None), self.anchors[own], self.candidates[own] - start
        further = None if ask.excluded is None else ask.excluded[:, start:stop]

        def bar(values: Tensor, fill: float) -> None:
            values.view(len(ask.sides), -1, stop - start)[own] = fill
            if further is not None:
                values.masked_fill_(further, fill)

        bar(similarity, -torch.inf)
        allowed = torch.tensor([
            side.numel() - len(own[1]) if further is None else (side > -torch.inf).count_nonzero()
            for side in ask.by_side(similarity)])
        seen = self.propose(start, similarity, texts)  # (R,)
        if not self.seen.all():  # the hardest of these may be asked for
            bare = (self.seen[:, 0] == 0).nonzero()[:, 0]
            self.keep_hardest(start, similarity[bare], bare)
        if texts is not None:
            bar(similarity, 0.0)
            bar(texts, 0.0)
        return seen.view(len(allowed), -1).sum(dim=1), allowed, similarity, texts

    def propose(self, start: int, similarity: Tensor, texts: Tensor | None) -> Tensor:
        """Replace each proposal by one of this part with the part's share of all seen so far: (R,)
        how many this part has above the bound."""
        rows, columns = similarity.shape
        width = math.ceil(columns / GROUP)
        above = similarity.new_empty(rows, GROUP * width)
        torch.gt(similarity, self.bound, out=above[:, :columns])  # as floats: fastest to add up
        above[:, columns:] = 0
        above = above.view(rows, GROUP, width)
        sums = above.sum(dim=1).cumsum(dim=1)  # (R, width) of all groups up to each
        self.seen += sums[:, -1:]
        rank = self.asked.uniform(len(self.asked.sides), PROPOSALS) * self.seen  # (R, P)
        row, slot = (rank < sums[:, -1:]).nonzero(as_tuple=True)  # (n,), (n,)
        rank = rank.floor_().to(sums.dtype)  # this part's are the first
        group = torch.searchsorted(sums, rank, right=True)[row, slot]  # (n,) with the rank-th
        members = above[row, :, group].cumsum(dim=1)  # (n, GROUP)
        rank = rank[row, slot] - sums[row, group] + members[:, -1]
        column = torch.searchsorted(members, rank[:, None], right=True)[:, 0] * width + group
        self.at[row, slot] = start + column
        self.similarity[row, slot] = similarity[row, column]
        if texts is not None:
            self.texts[row, slot] = texts[row, column]
        return sums[:, -1].long()

    def negatives(self) -> Tensor:
        """As `Weighing.negatives`."""
        weights = self.weights(self.similarity, self.asked.own, self.at == NO_NEGATIVE, self.texts)
        taken = self.asked.uniform(len(self.asked.sides), PROPOSALS) < weights  # (R, P)
        first, any_taken = taken.byte().argmax(dim=1, keepdim=True), taken.any(dim=1)
        negatives = self.at.gather(1, first)[:, 0].where(any_taken, self.hardest_at)
        left = (self.seen[:, 0] > 0) & ~any_taken  # (R,)
        if left.any():
            look = Weighing(self.again, self.weights, self.sample)
            look.show()
            negatives = look.negatives().where(left, negatives)
        return negatives
