"""Which candidates the figures show: what FNE draws, the hardest, likely false negatives.

`picks` asks the method itself (`FNELoss.draw`) what it would draw, so a gallery cannot tell another
story than the training does. No random number of the training's stream is taken.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fne_loss import (
    NO_NEGATIVE,
    FNELoss,
    cosine,
    cut_down_bound,
    excluded_candidates,
)
from memory_bank import Captions
from metrics.retrieval import BLOCK


class Picks(NamedTuple):
    """What one anchor's gallery shows of its C candidates."""

    drawn: int | None  # None where there is no candidate, or no FNE
    hardest: list[int]  # most similar first
    suspects: list[int]  # others whose posterior is above `suspicion`, highest first
    similarity: Tensor  # (C,)
    posterior: Tensor | None  # (C,), None before it is used


def suspicion(criterion: FNELoss) -> float:
    """The posterior above which a candidate is shown as one that may be a false negative.

    Above the prior, its similarity speaks for a match. Up to the floor FNE takes no notice of it.
    (The floor alone says little where the prior is above it: then every candidate passes.)
    """
    return max(criterion.prior, criterion.posterior_floor)


@torch.no_grad()
def picks(
    criterion: FNELoss | None, anchors: Tensor, keys: Tensor, bank_keys: Tensor,
    image_ids: Tensor, bank_ids: Tensor, shown: Tensor, count: int = 3,
    captions: tuple[Tensor, Tensor, Tensor] | None = None,
) -> list[Picks]:
    """For each anchor what FNE draws, the hardest candidates, and likely false negatives.

    Args:
        criterion: the loss with its fitted statistics; None shows the hardest alone.
        anchors, keys, bank_keys, image_ids, bank_ids: as `FNELoss.draw` takes them.
        shown: (C,) what a candidate is, for a photo with five captions may be in the bank five
            times: no number in it is picked twice as hardest, nor as suspect.
        count: the most hardest ones, and the most suspects.
        captions: keys (B, D) and (M, D) and ids (C,) of all candidates' captions, without which a
            posterior by evidence is not known.
    """
    similarity = torch.cat([cosine(anchors, keys), cosine(anchors, bank_keys)], dim=1)  # (B, C)
    ids = torch.cat([image_ids, bank_ids])  # (C,)
    excluded = excluded_candidates(image_ids, ids)  # (B, C)
    drawn, posterior = [None] * len(anchors), None
    if criterion is not None:
        fitted, texts, captions = criterion.positive, None, criterion.by_evidence and captions
        if captions:
            known = Captions.of(image_ids, ids, slice(len(anchors)), *captions)
            fitted, texts = criterion.same, known.similarity(0, len(ids))  # (B, C)
        drawn = draw_aside(criterion, anchors, keys, bank_keys, image_ids, bank_ids,
                           captions=captions)
        if min(fitted.count, criterion.positive.count) > criterion.min_count:
            posterior = criterion.posterior(similarity, texts)  # (B, C)
    result = []
    for row, own in enumerate(drawn):
        allowed = ~excluded[row]
        hardest = best_distinct(similarity[row], allowed, shown, count)
        suspects = []
        if posterior is not None:
            # Where N+ is the wider one, the posterior rises again far below both; that is cut down.
            bound = cut_down_bound(criterion.positive, criterion.margin)
            suspicious = (allowed & (posterior[row] > suspicion(criterion))
                          & (similarity[row] > bound))
            for seen in hardest[:1] + [own] * (own is not None):
                suspicious &= shown != shown[seen]
            suspects = best_distinct(posterior[row], suspicious, shown, count)
        result.append(Picks(own, hardest, suspects, similarity[row],
                            None if posterior is None else posterior[row]))
    return result


def draw_aside(criterion: FNELoss, *arguments: Tensor, **more) -> list[int | None]:
    """What `FNELoss.draw` draws, one candidate or None for each anchor; training draws as if this
    had not been asked."""
    devices = [arguments[0].device] if arguments[0].is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        negatives = criterion.draw(*arguments, **more).negatives.tolist()
    return [None if index == NO_NEGATIVE else index for index in negatives]


def best_distinct(scores: Tensor, allowed: Tensor, shown: Tensor, count: int) -> list[int]:
    """The `count` highest of the allowed scores (C,), no two with one number in `shown` (C,)."""
    # Few of the best are copies of each other: ten times as many are enough to look at.
    best = scores.masked_fill(~allowed, -torch.inf).topk(min(10 * count, len(scores)))
    found, seen = [], set()
    for score, index in zip(best.values.tolist(), best.indices.tolist()):
        number = int(shown[index])
        if score > -torch.inf and number not in seen and len(found) < count:
            seen.add(number)
            found.append(index)
    return found


@torch.no_grad()
def top_wrong_leads(queries: Tensor, items: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """How far the best wrong item of each query is above its best right one, and which it is.

    Args:
        queries: (N_q, D); items: (N_g, D) unit rows.
        right: (N_q, N_g) bool.

    Returns:
        (N_q,) difference of similarities and (N_q,) item.
    """
    leads, found = [], []
    step = max(1, BLOCK // len(items))
    for block, own in zip(queries.split(step), right.split(step)):
        similarity = cosine(block, items)  # (b, N_g)
        wrong, index = similarity.masked_fill(own, -torch.inf).max(dim=1)
        leads.append(wrong - similarity.masked_fill(~own, -torch.inf).amax(dim=1))
        found.append(index)
    return torch.cat(leads), torch.cat(found)


def fixed_choice(number: int, of: int) -> list[int]:
    """The same `number` of `range(of)` each time, from a generator of its own."""
    return torch.randperm(of, generator=torch.Generator().manual_seed(0))[:number].tolist()
