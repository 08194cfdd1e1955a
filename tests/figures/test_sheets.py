"""Sheets of photos: frames around matches, captions that fit, and missing photos."""

import numpy as np
from PIL import Image

from figures.galleries import Cell
from figures.pages import thumbnail
from figures.sheets import CELL_WIDTH, MATCH, sheet, wrap_text


def test_a_sheet_frames_matches_and_nothing_else(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (30, 60), "white").save(path)
    cells = [Cell("own pair", "", path, "a caption", None), Cell("drawn", "s 1", path, "b", True),
             Cell("hardest", "s 1", None, "word " * 40, False)]
    page = np.array(sheet([cells, cells[:1]], "title"))
    green = (page == [int(MATCH[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=2)
    assert page.shape[1] == 3 * CELL_WIDTH + 8
    columns = np.flatnonzero(green.any(axis=0))
    assert CELL_WIDTH < columns.min() and columns.max() < 2 * CELL_WIDTH
    assert green.sum() > 500  # a frame, not a speck


def test_long_captions_end_in_an_ellipsis():
    assert wrap_text("a dog", 23, 3) == ["a dog"]
    lines = wrap_text("word " * 40, 23, 3)
    assert len(lines) == 3 and lines[-1].endswith("…") and max(map(len, lines)) <= 23
    assert len(wrap_text("x" * 200, 23, 3)) <= 3


def test_thumbnails_fit_and_an_unreadable_photo_is_grey(tmp_path):
    Image.new("RGB", (40, 20), (60, 0, 0)).save(tmp_path / "whole.png")
    assert thumbnail(tmp_path / "whole.png", 80).size == (80, 40)
    (tmp_path / "broken.png").write_bytes((tmp_path / "whole.png").read_bytes()[:50])
    for path in (None, tmp_path / "gone.png", tmp_path / "broken.png"):
        image = thumbnail(path, 30)
        assert image.size == (30, 30) and image.getcolors() == [(900, (154, 154, 154))]
