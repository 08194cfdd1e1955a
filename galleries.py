"""What the figures show: which similarities are counted, which pairs and candidates are picked.

`picks` asks the method itself (`FNELoss.draw`) what it would draw, so a gallery cannot tell another
story than the training does. Everything here only reads: no weight, statistic or key changes, and
no random number of the training's stream is taken.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageOps
from torch import Tensor

from data import Split
from errors import InputError
from fne_loss import (
    NO_NEGATIVE,
    FNELoss,
    confident_pairs,
    cosine,
    false_negative_posterior,
    hardest_negatives,
    same_image,
)
from memory_bank import EMPTY
from photos import load_photo
from relevance import BLOCK

BINS = 400  # of the similarities, on [-1, 1]


class Cell(NamedTuple):
    """One picture of a gallery, with what is written above and below it."""

    heading: str  # what it is: "own caption", "drawn", "1"
    numbers: str  # "s 0.52  p 0.031"
    photo: Path | None  # None where there are no photos, or it is not known
    caption: str
    right: bool | None  # a match of the row's first cell; None where that is not asked


class Pairs(NamedTuple):
    """Photos and captions that belong together, by their numbers in a split; (N,) int64 each."""

    image_ids: Tensor
    text_ids: Tensor


class Picks(NamedTuple):
    """What one anchor's gallery shows of its C candidates."""

    drawn: int | None  # None where there is no candidate, or no FNE
    hardest: list[int]  # most similar first
    suspects: list[int]  # others taken for false negatives, highest posterior first
    similarity: Tensor  # (C,)
    posterior: Tensor | None  # (C,), None before it is used


@torch.no_grad()
def count_similarities(
    counts: Tensor, image_embeds: Tensor, text_embeds: Tensor, image_ids: Tensor
) -> None:
    """Add a batch to the histograms of what `FNELoss.update_statistics` takes from it.

    Args:
        counts: (2, BINS) int64, changed in place: confident positives, and their hardest negatives.
        image_embeds, text_embeds: (B, D) unit rows of matching pairs.
        image_ids: (B,) ids of the photos.
    """
    similarity = cosine(image_embeds, text_embeds)  # (B, B)
    confident = confident_pairs(similarity, image_ids)
    for row, values in ((0, similarity.diagonal()),
                        (1, hardest_negatives(similarity, image_ids)[0]),
                        (1, hardest_negatives(similarity.T, image_ids)[0])):
        taken = confident & values.isfinite()
        bins = ((values.where(taken, 0.0) + 1) * (BINS / 2)).long().clamp(0, BINS - 1)  # (B,)
        counts[row].index_add_(0, bins, taken.long())  # no wait for a GPU, unlike a selection


def fixed_choice(number: int, of: int) -> list[int]:
    """The same `number` of `range(of)` each time, from a generator of its own."""
    return torch.randperm(of, generator=torch.Generator().manual_seed(0))[:number].tolist()


# ------------------------------------------------------------------------------------------- picks


@torch.no_grad()
def picks(
    criterion: FNELoss | None, anchors: Tensor, keys: Tensor, bank_keys: Tensor,
    image_ids: Tensor, bank_ids: Tensor, shown: Tensor, count: int = 3,
) -> list[Picks]:
    """For each anchor what FNE draws, the hardest candidates, and likely false negatives.

    Args:
        criterion: the loss with its fitted statistics; None shows the hardest alone.
        anchors, keys, bank_keys, image_ids, bank_ids: as `FNELoss.draw` takes them.
        shown: (C,) what a candidate is, for a photo with five captions may be in the bank five
            times: no number in it is picked twice as hardest, nor as suspect.
        count: the most hardest ones, and the most suspects.
    """
    similarity = torch.cat([cosine(anchors, keys), cosine(anchors, bank_keys)], dim=1)  # (B, C)
    candidate_ids = torch.cat([image_ids, bank_ids])  # (C,)
    excluded = same_image(image_ids, candidate_ids) | (candidate_ids == EMPTY)  # (B, C)
    drawn, posterior = [None] * len(anchors), None
    if criterion is not None:
        drawn = draw_aside(criterion, anchors, keys, bank_keys, image_ids, bank_ids)
        if criterion.positive.count > criterion.min_count:
            posterior = false_negative_posterior(
                similarity, criterion.positive, criterion.negative, criterion.prior)  # (B, C)
    result = []
    for row, own in enumerate(drawn):
        allowed = ~excluded[row]
        hardest = best_distinct(similarity[row], allowed, shown, count)
        suspects = []
        if posterior is not None:
            # Where N+ is the wider one, the posterior rises again far below both; that is cut down.
            suspicious = (allowed & (posterior[row] > criterion.posterior_floor)
                          & (similarity[row] > criterion.positive.mean - criterion.margin))
            for seen in hardest[:1] + [own] * (own is not None):
                suspicious &= shown != shown[seen]
            suspects = best_distinct(posterior[row], suspicious, shown, count)
        result.append(Picks(own, hardest, suspects, similarity[row],
                            None if posterior is None else posterior[row]))
    return result


def draw_aside(criterion: FNELoss, *arguments: Tensor) -> list[int | None]:
    """What `FNELoss.draw` draws, one candidate or None for each anchor; training draws as if this
    had not been asked."""
    devices = [arguments[0].device] if arguments[0].is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        negatives = criterion.draw(*arguments).negatives.tolist()
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


# ----------------------------------------------------------------------------------- rows of cells


class Library(NamedTuple):
    """Where photos and captions are found by number; `photos` is None where there are none."""

    split: Split
    photos: list[Path] | None

    def cell(self, heading: str, numbers: str, image: int, text: int, right: bool | None) -> Cell:
        """A cell of photo `image` and caption `text`; a bank that was taken over from a released
        checkpoint does not know its captions, -100."""
        known = 0 <= image < len(self.split.images)
        caption = self.split.captions[text] if text >= 0 else "(caption not recorded)"
        photo = self.photos[image] if known and self.photos is not None else None
        return Cell(heading, numbers, photo, caption, right)

    def is_match(self, image: int, text: int) -> bool:
        """Annotated, or true where all matches are known."""
        if not (0 <= image < len(self.split.images) and text >= 0):
            return False
        if self.split.matches is not None and self.split.matches[text, image]:
            return True
        return int(self.split.image_of_text[text]) == image

    def pairs(self, texts: list[int]) -> Pairs:
        """Captions with their photos."""
        texts = torch.tensor(texts)
        return Pairs(torch.from_numpy(self.split.image_of_text)[texts], texts)

    def first_texts(self) -> Tensor:
        """(N_i,) a caption of each photo: its first."""
        texts = torch.zeros(len(self.split.images), dtype=torch.int64)
        owners = torch.from_numpy(self.split.image_of_text)
        return texts.scatter_reduce_(0, owners, torch.arange(len(owners)), "amin",
                                     include_self=False)


def negative_rows(
    side: str, library: Library, criterion: FNELoss | None, anchors: Tensor, keys: Tensor,
    bank_keys: Tensor, pairs: Pairs, bank: Pairs,
) -> list[list[Cell]]:
    """A row for each anchor: its own pair, what FNE draws, the hardest, and likely false negatives.

    Args:
        side: "i2t": photos are the anchors and captions the candidates; "t2i" the reverse. A
            candidate's cell shows its other half too.
        anchors, keys: (B, D) of `pairs`; bank_keys: (M, D) of `bank`, slots may be empty.
    """
    images = torch.cat([pairs.image_ids, bank.image_ids]).tolist()
    texts = torch.cat([pairs.text_ids, bank.text_ids]).tolist()
    device = anchors.device
    shown = torch.tensor(texts if side == "i2t" else images, device=device)
    chosen = picks(criterion, anchors, keys, bank_keys, pairs.image_ids.to(device),
                   bank.image_ids.to(device), shown)
    rows = []
    for number, pick in enumerate(chosen):
        image, text = images[number], texts[number]

        def cell(heading, candidate, pick=pick, image=image, text=text):
            numbers = f"s {pick.similarity[candidate]:.2f}"
            if pick.posterior is not None:
                numbers += f"  p {probability(float(pick.posterior[candidate]))}"
            other, words = images[candidate], texts[candidate]
            right = library.is_match(image, words) if side == "i2t" else (
                library.is_match(other, text))
            return library.cell(heading, numbers, other, words, right)

        row = [library.cell("own pair", f"s {pick.similarity[number]:.2f}", image, text, None)]
        if pick.drawn is not None:
            row.append(cell("drawn", pick.drawn))
        row += [cell("hardest", candidate) for candidate in
                pick.hardest[: 1 if criterion is not None else None]]
        row += [cell("false negative?", candidate) for candidate in pick.suspects]
        rows.append(row)
    return rows


def probability(value: float) -> str:
    """Two digits that matter, for 0.9999 and for 0.00002."""
    return f"{value:.2f}" if value >= 0.095 else f"{value:.1g}"


@torch.no_grad()
def retrieval_rows(
    side: str, library: Library, image_embeds: Tensor, text_embeds: Tensor, texts: list[int],
    count: int = 5,
) -> list[list[Cell]]:
    """A row for each of `texts` (t2i) or its photo (i2t): the pair, then its `count` best results.

    Args:
        image_embeds: (N_i, D); text_embeds: (N_t, D) unit rows of the whole split.
    """
    first, rows = library.first_texts().tolist(), []
    for text in texts:
        image = int(library.split.image_of_text[text])
        query, items = ((image_embeds[image], text_embeds) if side == "i2t"
                        else (text_embeds[text], image_embeds))
        best = cosine(query[None], items)[0].topk(min(count, len(items)))
        row = [library.cell("photo" if side == "i2t" else "caption", "", image, text, None)]
        for place, (score, item) in enumerate(zip(best.values.tolist(), best.indices.tolist()), 1):
            other, words = ((int(library.split.image_of_text[item]), item) if side == "i2t"
                            else (item, first[item]))
            right = library.is_match(image, words) if side == "i2t" else (
                library.is_match(other, text))
            row.append(library.cell(f"{place}", f"s {score:.2f}", other, words, right))
        rows.append(row)
    return rows


def thumbnail(path: Path | None, size: int) -> Image.Image:
    """A photo scaled to fill size x size pixels one way; plain grey where it cannot be read, of
    which training and `find_photos` tell."""
    try:
        if path is not None:
            return ImageOps.contain(load_photo(path), (size, size))
    except InputError:
        pass
    return Image.new("RGB", (size, size), "#9a9a9a")
