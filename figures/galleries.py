"""Galleries: rows of cells, each a photo with its caption and what is said of them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data import Split
from figures.picks import picks
from fne_loss import FNELoss, cosine

PHOTO, CAPTION, BOTH = "photo", "caption", "both"
# Of the two sides of a direction, the one that asks and the one that is ranked.
ASKING, RANKED = {"i2t": PHOTO, "t2i": CAPTION}, {"i2t": CAPTION, "t2i": PHOTO}
LIKELY = 0.5  # posterior above which a candidate is more likely a match than not


class Cell(NamedTuple):
    """One picture of a gallery, with what is written above and below it."""

    heading: str  # what it is: "own caption", "drawn", "1"
    numbers: str  # "s 0.52  p 0.031"
    photo: Path | None  # None where there are no photos, or it is not known
    caption: str
    right: bool | None  # a match of the row's first cell; None where that is not asked
    compared: str = BOTH  # PHOTO, CAPTION or BOTH: what the numbers are of, the other only shows it


class Pairs(NamedTuple):
    """Photos and captions that belong together, by their numbers in a split; (N,) int64 each."""

    image_ids: Tensor
    text_ids: Tensor


class Library(NamedTuple):
    """Where photos and captions are found by number; `photos` is None where there are none."""

    split: Split
    photos: Sequence[Path] | None

    def cell(
        self, heading: str, numbers: str, image: int, text: int, right: bool | None,
        compared: str = BOTH,
    ) -> Cell:
        """A cell of photo `image` and caption `text`; a bank that was taken over from a released
        checkpoint does not know its captions, -100."""
        known = 0 <= image < len(self.split.images)
        caption = self.split.captions[text] if text >= 0 else "(caption not recorded)"
        photo = self.photos[image] if known and self.photos is not None else None
        return Cell(heading, numbers, photo, caption, right, compared)

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
    bank_keys: Tensor, pairs: Pairs, bank: Pairs, text_keys: tuple[Tensor, Tensor] | None = None,
    by_evidence: Callable[[int, int], float] | None = None,
) -> list[list[Cell]]:
    """A row for each anchor: its own pair, what FNE draws, the hardest, and what may be a match.

    Args:
        side: "i2t": photos are the anchors and captions the candidates; "t2i" the reverse. A
            candidate's cell shows its other half too, which is not compared.
        anchors, keys: (B, D) of `pairs`; bank_keys: (M, D) of `bank`, slots may be empty.
        text_keys: (B, D) and (M, D) of both, for a posterior by evidence.
        by_evidence: gives that of a photo and a caption, to be shown beside the other posterior.
    """
    images = torch.cat([pairs.image_ids, bank.image_ids]).tolist()
    texts = torch.cat([pairs.text_ids, bank.text_ids]).tolist()
    device = anchors.device
    shown = torch.tensor(texts if side == "i2t" else images, device=device)
    chosen = picks(criterion, anchors, keys, bank_keys, pairs.image_ids.to(device),
                   bank.image_ids.to(device), shown,
                   captions=text_keys and (*text_keys, torch.tensor(texts, device=device)))
    rows = []
    for number, pick in enumerate(chosen):
        image, text = images[number], texts[number]

        def cell(heading, candidate, pick=pick, image=image, text=text):
            numbers = f"s {pick.similarity[candidate]:.2f}"
            if pick.posterior is not None:
                numbers += f"  p {probability(float(pick.posterior[candidate]))}"
            other, words = images[candidate], texts[candidate]
            compared = (image, words) if side == "i2t" else (other, text)
            if by_evidence is not None:
                numbers += f"  e {probability(by_evidence(*compared))}"
            return library.cell(heading, numbers, other, words, library.is_match(*compared),
                                RANKED[side])

        row = [library.cell("own pair", f"s {pick.similarity[number]:.2f}", image, text, None)]
        if pick.drawn is not None:
            row.append(cell("drawn", pick.drawn))
        row += [cell("hardest", candidate) for candidate in
                pick.hardest[: 1 if criterion is not None else None]]
        row += [cell("likely a match" if pick.posterior[candidate] > LIKELY else "perhaps a match",
                     candidate) for candidate in pick.suspects]
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
        row = [library.cell(ASKING[side], "", image, text, None, ASKING[side])]
        for place, (score, item) in enumerate(zip(best.values.tolist(), best.indices.tolist()), 1):
            other, words = ((int(library.split.image_of_text[item]), item) if side == "i2t"
                            else (item, first[item]))
            right = library.is_match(image, words) if side == "i2t" else (
                library.is_match(other, text))
            row.append(library.cell(f"{place}", f"s {score:.2f}", other, words, right,
                                    RANKED[side]))
        rows.append(row)
    return rows
