"""Which candidates the figures show: what FNE draws, the hardest, and likely false negatives.

`picks` asks the method itself (`FNELoss.draw_directions`) for its draw, so a gallery cannot tell
another story than the training does. It takes no random number from the training's stream.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fne_loss import FNELoss
from metrics.retrieval import BLOCK
from negative_sampling import (
    NO_NEGATIVE,
    CaptionEvidence,
    Direction,
    cosine,
    excluded_candidates,
)
from training.objectives.base import exclude_above


class Picks(NamedTuple):
    """The candidates that the gallery of one anchor shows, of C.

    Attributes:
        drawn: the negative that FNE draws; None without FNE, or where every candidate is excluded.
        hardest: the most similar candidates, the most similar first.
        suspects: further candidates whose posterior is above `suspicion`, the highest first.
        similarity: (C,) cosines of the anchor and each candidate.
        posterior: (C,) P(false negative) of each candidate; None before the posterior is used.
    """

    drawn: int | None
    hardest: list[int]
    suspects: list[int]
    similarity: Tensor
    posterior: Tensor | None


def suspicion(criterion: FNELoss) -> float:
    """Return the posterior above which a candidate is shown as a possible false negative.

    Above the prior, the similarity speaks for a match; up to the floor, FNE ignores the posterior.
    (The floor alone would say little where the prior is above it: every candidate would pass.)
    """
    return max(criterion.prior, criterion.posterior_floor)


@torch.no_grad()
def picks(
    criterion: FNELoss | None, anchors: Tensor, keys: Tensor, bank_keys: Tensor,
    image_ids: Tensor, bank_ids: Tensor, item_ids: Tensor, count: int = 3,
    captions: tuple[Tensor, Tensor, Tensor] | None = None,
    match_posterior: Tensor | None = None, match_bar: float | None = None,
) -> list[Picks]:
    """Return for each anchor what FNE draws, the hardest candidates, and likely false negatives.

    Args:
        criterion: the loss with its fitted statistics; with None only the hardest are chosen.
        anchors: (B, D) unit rows.
        keys: (B, D) keys of the anchors' own pairs, the first B candidates.
        bank_keys: (M, D) keys of the memory bank, the other candidates.
        image_ids: (B,) photos of the anchors.
        bank_ids: (M,) photos of the bank; -100 marks an empty slot.
        item_ids: (C,) the photo or caption that each candidate is. A photo with five captions may
            be in the bank five times: it is picked once as hardest, and once as suspect.
        count: the most candidates picked as hardest, and the most picked as suspects.
        captions: keys (B, D) and (M, D) of all candidates' captions and their ids (C,). Without
            them a posterior by evidence is not known.
        match_posterior: P(match) (B, C) as a teacher sees it, in place of the fitted posterior.
        match_bar: P(match) above which a candidate is no negative: it is neither drawn nor the
            hardest, but may be shown as a suspect.

    Returns:
        A `Picks` for each of the B anchors.
    """
    similarity = torch.cat([cosine(anchors, keys), cosine(anchors, bank_keys)], dim=1)  # (B, C)
    candidate_ids = torch.cat([image_ids, bank_ids])  # (C,)
    excluded = excluded_candidates(image_ids, candidate_ids)  # (B, C)
    allowed = ~excluded  # (B, C)
    barred = None if match_bar is None else exclude_above(match_bar, match_posterior, None)
    if barred is not None:
        allowed &= ~barred
    drawn, posterior = [None] * len(anchors), None
    if criterion is not None:
        caption_similarity = None
        if not criterion.by_evidence:
            captions = None
        elif captions is not None:
            evidence = CaptionEvidence.collect(
                image_ids, candidate_ids, slice(len(anchors)), *captions)
            caption_similarity = evidence.similarity(0, len(candidate_ids))  # (B, C)
        drawn = draw_aside(criterion, Direction(anchors, keys, bank_keys), image_ids, bank_ids,
                           captions, match_posterior, barred)
        if match_posterior is not None:
            posterior = match_posterior  # (B, C)
        elif criterion.posterior_is_trusted(caption_similarity is not None):
            posterior = criterion.posterior(similarity, caption_similarity)  # (B, C)
    result = []
    for row, drawn_candidate in enumerate(drawn):
        hardest = best_distinct(similarity[row], allowed[row], item_ids, count)
        suspects = []
        if posterior is not None:
            # Where N+ is wider than N-, the posterior rises again far below both. Nothing so
            # dissimilar is ever drawn, so nothing below the cut-down is a suspect.
            bound = criterion.cut_down_bound()
            suspicious = (~excluded[row] & (posterior[row] > suspicion(criterion))
                          & (similarity[row] > bound))  # (C,)
            already_shown = hardest[:1]
            if drawn_candidate is not None:
                already_shown = [*already_shown, drawn_candidate]
            for candidate in already_shown:
                suspicious &= item_ids != item_ids[candidate]
            suspects = best_distinct(posterior[row], suspicious, item_ids, count)
        result.append(Picks(drawn_candidate, hardest, suspects, similarity[row],
                            None if posterior is None else posterior[row]))
    return result


def draw_aside(
    criterion: FNELoss, direction: Direction, image_ids: Tensor, bank_ids: Tensor,
    captions: tuple[Tensor, Tensor, Tensor] | None, match_posterior: Tensor | None = None,
    also_excluded: Tensor | None = None,
) -> list[int | None]:
    """Return the candidate that `FNELoss` draws for each anchor, or None where it draws none.

    The random state is restored afterwards, so the training draws as if nothing had been asked.

    Args:
        criterion: the loss with its fitted statistics.
        direction: B anchors and their candidates.
        image_ids: (B,) photos of the anchors.
        bank_ids: (M,) photos of the bank.
        captions, match_posterior: as of `picks`.
        also_excluded: (B, C) bool, candidates that are not drawn, beside those of the own photo.
    """
    devices = [direction.anchors.device] if direction.anchors.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        [draw] = criterion.draw_directions(
            (direction,), image_ids, bank_ids, also_excluded=(also_excluded,), captions=captions,
            match_posterior=None if match_posterior is None else (match_posterior,))
    return [None if index == NO_NEGATIVE else index for index in draw.indices.tolist()]


def best_distinct(scores: Tensor, allowed: Tensor, item_ids: Tensor, count: int) -> list[int]:
    """Return the `count` highest allowed scores (C,), no two with the same entry of `item_ids`.

    Args:
        scores: (C,) numbers.
        allowed: (C,) bool, which candidates may be returned.
        item_ids: (C,) the item that each candidate is a copy of.

    Returns:
        Candidates, the highest score first; fewer than `count` where there are no more.
    """
    # Few of the best are copies of each other: ten times as many are enough to look at.
    best = scores.masked_fill(~allowed, -torch.inf).topk(min(10 * count, len(scores)))
    chosen, chosen_items = [], set()
    for score, candidate in zip(best.values.tolist(), best.indices.tolist()):
        item = int(item_ids[candidate])
        if score > -torch.inf and item not in chosen_items and len(chosen) < count:
            chosen_items.add(item)
            chosen.append(candidate)
    return chosen


@torch.no_grad()
def top_wrong_leads(queries: Tensor, items: Tensor, matches: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far the best wrong item of each query is above its best match, and which it is.

    Args:
        queries: (N_q, D) unit rows.
        items: (N_g, D) unit rows.
        matches: (N_q, N_g) bool, at least one in each row.

    Returns:
        (N_q,) differences of similarities, and (N_q,) the best wrong items.
    """
    leads, best = [], []
    rows_per_block = max(1, BLOCK // len(items))
    for block, block_matches in zip(queries.split(rows_per_block), matches.split(rows_per_block)):
        similarity = cosine(block, items)  # (b, N_g)
        wrong, wrong_item = similarity.masked_fill(block_matches, -torch.inf).max(dim=1)
        right = similarity.masked_fill(~block_matches, -torch.inf).amax(dim=1)
        leads.append(wrong - right)
        best.append(wrong_item)
    return torch.cat(leads), torch.cat(best)


def fixed_choice(count: int, total: int) -> list[int]:
    """Return `count` of the numbers below `total`, in random order and the same ones each time.

    They come from a generator of their own, so no other random number changes.
    """
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count].tolist()
