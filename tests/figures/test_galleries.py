"""Rows of the galleries: their photos, captions, headings and marks."""

import numpy as np
import pytest
import torch
from PIL import Image

from data import Split
from figures.galleries import Library, Pairs, negative_rows, probability, retrieval_rows
from fne_loss import FNELoss


@pytest.fixture
def library(tmp_path):
    """Four photos, two captions each; caption 7 of photo 3 is true of photo 0 too."""
    photos = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(photos):
        Image.new("RGB", (40, 20), (60 * number, 0, 0)).save(path)
    owners = np.repeat(np.arange(4), 2)
    matches = owners[:, None] == np.arange(4)
    matches[7, 0] = True
    split = Split(tmp_path, [path.name for path in photos], [f"text {n}" for n in range(8)],
                  owners, matches)
    return Library(split, photos)


def test_retrieval_rows_are_ranked_and_marked(library):
    """Photo 0 lies along x; the captions' angles put 7, 1, 4, 0 and 2 first."""
    angles = {7: 0.1, 1: 0.2, 4: 0.3, 0: 0.4, 2: 0.5, 3: 0.9, 5: 1.0, 6: 1.1}
    texts = torch.tensor([[np.cos(angles[n]), np.sin(angles[n])] for n in range(8)])
    images = torch.tensor([[1.0, 0], [0, 1.0], [-1.0, 0], [np.cos(0.3), np.sin(0.3)]],
                          dtype=texts.dtype)
    [row] = retrieval_rows("i2t", library, images, texts, [1])
    assert [cell.caption for cell in row] == [f"text {n}" for n in (1, 7, 1, 4, 0, 2)]
    assert [cell.is_match for cell in row] == [None, True, True, False, True, False]
    assert row[1].photo == library.photos[3] and row[1].numbers == "s 1.00"
    [row] = retrieval_rows("t2i", library, images, texts, [7])  # 0.1 away from photo 0
    assert [cell.photo.name for cell in row] == [f"{n}.png" for n in (3, 0, 3, 1, 2)]
    assert [cell.is_match for cell in row] == [None, True, True, False, False]
    assert row[1].caption == "text 0" and row[2].caption == "text 6"


def test_negative_rows_name_their_cells_and_mark_true_matches(library):
    """Photo 0 against the captions of photos 3, 2 and 1, most similar first, from a bank."""
    anchors = keys = torch.tensor([[1.0, 0.0]])
    angles = torch.tensor([0.1, 0.2, 0.3, 0.0])
    bank_keys = torch.stack([angles.cos(), angles.sin()], dim=1)
    pairs = Pairs(torch.tensor([0]), torch.tensor([1]))
    bank = Pairs(torch.tensor([3, 2, 1, -100]), torch.tensor([7, 4, 2, -100]))
    [row] = negative_rows("i2t", library, None, anchors, keys, bank_keys, pairs, bank)
    assert [(cell.heading, cell.caption, cell.is_match) for cell in row] == [
        ("own pair", "text 1", None), ("hardest", "text 7", True), ("hardest", "text 4", False),
        ("hardest", "text 2", False)]
    criterion = FNELoss(prior=0.5, min_count=0)
    for gaussian, mean in ((criterion.positive, 0.98), (criterion.negative, 0.0)):
        gaussian.update(torch.tensor([mean - 0.1, mean + 0.1]))
    [row] = negative_rows("i2t", library, criterion, anchors, keys, bank_keys, pairs, bank)
    assert [cell.heading for cell in row[:3]] == ["own pair", "drawn", "hardest"]
    assert {cell.heading for cell in row[3:]} == {"likely a match"}
    assert {cell.caption for cell in row[1:]} == {"text 7", "text 4", "text 2"}
    assert all("p 1.00" in cell.numbers for cell in row[1:])


def test_a_caption_that_the_bank_does_not_know_has_a_note(library):
    cell = library.cell("drawn", "", 2, -100, library.is_match(2, -100))
    assert "not recorded" in cell.caption and cell.is_match is False
    assert library.cell("drawn", "", 9000, -100, None).photo is None


@pytest.mark.parametrize("value, text", [(0.5, "0.50"), (0.0951, "0.10"), (0.03, "0.03"),
                                         (2.3e-5, "2e-05"), (1.0, "1.00"), (0.0, "0")])
def test_probabilities_keep_a_digit_that_matters(value, text):
    assert probability(value) == text
