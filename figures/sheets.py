"""Galleries drawn as one picture, with PIL: matplotlib takes a second for as many axes."""

import functools
import textwrap
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from figures.galleries import CAPTION, PHOTO, Cell
from figures.pages import thumbnail

# Colours of text, of what is not compared, and of true matches.
INK, FAINT, MATCH = "#24292f", "#8c959f", "#1f9d3a"
RULE = "#d0d7de"  # colour of the line above each row
# In pixels: the width of a cell, the longer side of its photo, and the height of a line of text.
CELL_WIDTH, PHOTO_SIZE, LINE_HEIGHT = 150, 104, 13
MARGIN = 8  # pixels to the left of a row and to the right of it
TITLE_LETTER = 8  # pixels of a letter of the title
CAPTION_LETTERS, CAPTION_LINES, TITLE_LINES = 23, 3, 3


def sheet(rows: list[list[Cell]], title: str) -> Image.Image:
    """Draw a gallery as one picture, its title above and a line between two rows.

    A cell shows its heading, numbers, photo and caption. A match has a green frame and a tick, and
    what is not compared is faint.
    """
    row_height = 2 * LINE_HEIGHT + PHOTO_SIZE + CAPTION_LINES * LINE_HEIGHT + 14
    width = max(map(len, rows)) * CELL_WIDTH + MARGIN
    title_lines = wrap_text(title, width // TITLE_LETTER, TITLE_LINES)
    title_height = len(title_lines) * (LINE_HEIGHT + 2) + 6
    page = Image.new("RGB", (width, title_height + len(rows) * row_height + 3), "white")
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(title_lines):
        y = 5 + number * (LINE_HEIGHT + 2)
        draw.text((MARGIN, y), line, INK, load_font("DejaVuSans-Bold", 12))
    for row, cells in enumerate(rows):
        y = title_height + row * row_height
        draw.line((MARGIN, y, width - MARGIN, y), RULE)
        for column, cell in enumerate(cells):
            draw_cell(page, draw, cell, MARGIN + column * CELL_WIDTH, y + 3)
    return page


def draw_cell(page: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, x: int, y: int) -> None:
    """Draw a cell onto `page`, its upper left corner at (x, y).

    Args:
        draw: the drawing context of `page`.
    """
    plain, bold = load_font("DejaVuSans", 10), load_font("DejaVuSans-Bold", 10)
    heading = f"{cell.heading} ✓" if cell.is_match else cell.heading
    draw.text((x, y), heading, MATCH if cell.is_match else INK, bold)
    draw.text((x, y + LINE_HEIGHT), cell.numbers, INK, plain)

    photo_top = y + 2 * LINE_HEIGHT + 2
    photo = thumbnail(cell.photo, PHOTO_SIZE)
    if cell.compared == CAPTION:
        photo = Image.blend(photo, Image.new("RGB", photo.size, "white"), 0.6)
    page.paste(photo, (x, photo_top))
    if cell.is_match:
        frame = (x - 3, photo_top - 3, x + photo.width + 2, photo_top + photo.height + 2)
        draw.rectangle(frame, outline=MATCH, width=3)

    ink = FAINT if cell.compared == PHOTO else INK
    for number, line in enumerate(wrap_text(cell.caption, CAPTION_LETTERS, CAPTION_LINES)):
        draw.text((x, photo_top + PHOTO_SIZE + 3 + number * LINE_HEIGHT), line, ink, plain)


def wrap_text(text: str, width: int, max_lines: int) -> list[str]:
    """Split a text into at most `max_lines` lines of `width` characters.

    A text that is longer ends in an ellipsis.
    """
    return textwrap.wrap(text, width, max_lines=max_lines, placeholder=" …")


@functools.cache
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Load a font that comes with matplotlib, so that a sheet looks the same on every machine."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(fonts / f"{name}.ttf", size)
