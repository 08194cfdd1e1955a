"""Galleries: rows of cells, each a photo with its caption and the numbers that belong to them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data import Split
from figures.picks import picks
from fne_loss import FNELoss, cosine

PHOTO, CAPTION, BOTH = "photo", "caption", "both"
# What the query of a direction is, and what is ranked for it.
ASKING, RANKED = {"i2t": PHOTO, "t2i": CAPTION}, {"i2t": CAPTION, "t2i": PHOTO}
LIKELY = 0.5  # posterior above which a candidate is more likely a match than not


class Cell(NamedTuple):
    """One photo and caption of a gallery, with the text above and below them.

    Attributes:
        heading: what the cell shows, such as "own pair", "drawn", or a rank.
        numbers: similarity and posterior, such as "s 0.52  p 0.031".
        photo: the photo's file; None where there are no photos, or the photo is not known.
        caption: the caption's text.
        is_match: whether it is a match of the row's first cell; None where that is not asked.
        compared: PHOTO, CAPTION or BOTH: what the numbers belong to. The other half of the pair is
            only shown with it.
    """

    heading: str
    numbers: str
    photo: Path | None
    caption: str
    is_match: bool | None
    compared: str = BOTH


class Pairs(NamedTuple):
    """N photos and captions that belong together, as indices in a split."""

    image_ids: Tensor  # (N,) int64
    text_ids: Tensor  # (N,) int64


class Library(NamedTuple):
    """The photos and captions of a split, found by their indices."""

    split: Split
    photos: Sequence[Path] | None  # the N_i photo files; None where there are none

    def cell(
        self, heading: str, numbers: str, image: int, text: int, is_match: bool | None,
        compared: str = BOTH,
    ) -> Cell:
        """Return a cell of photo `image` and caption `text`.

        Either index may be -100, or of another split: a memory bank that was taken over from a
        released checkpoint does not know its captions. The cell then says so.
        """
        known = 0 <= image < len(self.split.images)
        caption = self.split.captions[text] if text >= 0 else "(caption not recorded)"
        photo = self.photos[image] if known and self.photos is not None else None
        return Cell(heading, numbers, photo, caption, is_match, compared)

    def is_match(self, image: int, text: int) -> bool:
        """Return whether a pair is annotated as a match, or is true where all matches are known."""
        if not (0 <= image < len(self.split.images) and text >= 0):
            return False
        if self.split.matches is not None and self.split.matches[text, image]:
            return True
        return int(self.split.image_of_text[text]) == image

    def pairs(self, texts: list[int]) -> Pairs:
        """Return the captions `texts` with the photo that each was written for."""
        text_ids = torch.tensor(texts)
        return Pairs(torch.from_numpy(self.split.image_of_text)[text_ids], text_ids)

    def first_texts(self) -> Tensor:
        """Return the index of the first caption of each photo, (N_i,) int64."""
        first = torch.zeros(len(self.split.images), dtype=torch.int64)
        image_of_text = torch.from_numpy(self.split.image_of_text)  # (N_t,)
        return first.scatter_reduce_(0, image_of_text, torch.arange(len(image_of_text)), "amin",
                                     include_self=False)


def negative_rows(
    direction: str, library: Library, criterion: FNELoss | None, anchors: Tensor, keys: Tensor,
    bank_keys: Tensor, pairs: Pairs, bank: Pairs, text_keys: tuple[Tensor, Tensor] | None = None,
    match_posterior: Tensor | None = None, match_bar: float | None = None,
    more_posteriors: Mapping[str, Callable[[int, int], float]] = {},
) -> list[list[Cell]]:
    """Return a row for each anchor: its own pair, FNE's draw, the hardest, and likely matches.

    Args:
        direction: "i2t" for photos as anchors and captions as candidates, "t2i" for the reverse.
            The cell of a candidate also shows the other half of its pair, which is not compared.
        library: where photos and captions are looked up.
        criterion: the loss; without one only the three hardest candidates are shown.
        anchors: (B, D) online embeddings of `pairs`.
        keys: (B, D) keys of `pairs` on the candidates' side.
        bank_keys: (M, D) keys of `bank`.
        pairs: the B pairs that are shown.
        bank: the M pairs of the memory bank; -100 marks an empty slot.
        text_keys: (B, D) and (M, D) keys of the captions of both, for a posterior by evidence.
        match_posterior, match_bar: as of `picks`.
        more_posteriors: by the letter that stands before it, a function that returns another
            posterior of a photo and a caption, which is then shown beside the first.

    Returns:
        B rows of cells.
    """
    images = torch.cat([pairs.image_ids, bank.image_ids]).tolist()  # C
    texts = torch.cat([pairs.text_ids, bank.text_ids]).tolist()  # C
    device = anchors.device
    item_ids = torch.tensor(texts if direction == "i2t" else images, device=device)  # (C,)
    captions = None
    if text_keys:
        captions = *text_keys, torch.tensor(texts, device=device)
    chosen = picks(criterion, anchors, keys, bank_keys, pairs.image_ids.to(device),
                   bank.image_ids.to(device), item_ids, captions=captions,
                   match_posterior=match_posterior, match_bar=match_bar)
    rows = []
    for anchor, pick in enumerate(chosen):
        image, text = images[anchor], texts[anchor]

        def cell(heading, candidate, pick=pick, image=image, text=text):
            numbers = f"s {pick.similarity[candidate]:.2f}"
            if pick.posterior is not None:
                numbers += f"  p {probability(float(pick.posterior[candidate]))}"
            candidate_image, candidate_text = images[candidate], texts[candidate]
            compared = ((image, candidate_text) if direction == "i2t"
                        else (candidate_image, text))
            for letter, posterior in more_posteriors.items():
                numbers += f"  {letter} {probability(posterior(*compared))}"
            return library.cell(heading, numbers, candidate_image, candidate_text,
                                library.is_match(*compared), RANKED[direction])

        row = [library.cell("own pair", f"s {pick.similarity[anchor]:.2f}", image, text, None)]
        if pick.drawn is not None:
            row.append(cell("drawn", pick.drawn))
        hardest = pick.hardest if criterion is None else pick.hardest[:1]
        row += [cell("hardest", candidate) for candidate in hardest]
        for candidate in pick.suspects:
            likely = pick.posterior[candidate] > LIKELY
            row.append(cell("likely a match" if likely else "perhaps a match", candidate))
        rows.append(row)
    return rows


def probability(value: float) -> str:
    """Return a probability with two digits that matter, for 0.9999 and for 0.00002 alike."""
    return f"{value:.2f}" if value >= 0.095 else f"{value:.1g}"


@torch.no_grad()
def retrieval_rows(
    direction: str, library: Library, image_embeds: Tensor, text_embeds: Tensor, texts: list[int],
    count: int = 5,
) -> list[list[Cell]]:
    """Return a row for each of a few pairs: the query, and its `count` best results.

    Args:
        direction: "i2t" to search with the pairs' photos, "t2i" to search with their captions.
        library: where photos and captions are looked up.
        image_embeds: (N_i, D) unit rows of the whole split.
        text_embeds: (N_t, D) unit rows of the whole split.
        texts: captions of the pairs.
        count: the most results of a query.

    Returns:
        A row of cells for each of `texts`.
    """
    first_texts = library.first_texts().tolist()
    rows = []
    for text in texts:
        image = int(library.split.image_of_text[text])
        if direction == "i2t":
            query, items = image_embeds[image], text_embeds
        else:
            query, items = text_embeds[text], image_embeds
        best = cosine(query[None], items)[0].topk(min(count, len(items)))
        row = [library.cell(ASKING[direction], "", image, text, None, ASKING[direction])]
        for rank, (score, item) in enumerate(zip(best.values.tolist(), best.indices.tolist()), 1):
            if direction == "i2t":
                result_image, result_text = int(library.split.image_of_text[item]), item
                is_match = library.is_match(image, result_text)
            else:
                result_image, result_text = item, first_texts[item]
                is_match = library.is_match(result_image, text)
            row.append(library.cell(f"{rank}", f"s {score:.2f}", result_image, result_text,
                                    is_match, RANKED[direction]))
        rows.append(row)
    return rows
