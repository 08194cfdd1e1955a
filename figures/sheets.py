"""Sheets: galleries drawn as one picture, with PIL; matplotlib takes a second for so many axes."""

import functools
import textwrap
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from figures.galleries import CAPTION, PHOTO, Cell
from figures.pages import thumbnail

INK, FAINT, MATCH = "#24292f", "#8c959f", "#1f9d3a"
CELL, PICTURE, LINE = 150, 104, 13  # pixels: a gallery's column, its photos, a line of text


def sheet(rows: list[list[Cell]], title: str) -> Image.Image:
    """Rows of cells as one picture: heading, photo, caption; a green frame and tick on matches, and
    what is not compared is faint."""
    height = 2 * LINE + PICTURE + 3 * LINE + 14
    width = max(map(len, rows)) * CELL + 8
    lines = wrapped(title, width // 8, 3)  # pixels of a bold letter
    top = len(lines) * (LINE + 2) + 6
    page = Image.new("RGB", (width, top + len(rows) * height + 3), "white")
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        draw.text((8, 5 + number * (LINE + 2)), line, INK, font("DejaVuSans-Bold", 12))
    for row, cells in enumerate(rows):
        y = top + row * height
        draw.line((8, y, width - 8, y), "#d0d7de")
        for column, cell in enumerate(cells):
            draw_cell(page, draw, cell, 8 + column * CELL, y + 3)
    return page


def draw_cell(page: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, x: int, y: int) -> None:
    """One cell, its upper left corner at (x, y)."""
    plain, bold = font("DejaVuSans", 10), font("DejaVuSans-Bold", 10)
    heading = f"{cell.heading} ✓" if cell.right else cell.heading
    draw.text((x, y), heading, MATCH if cell.right else INK, bold)
    draw.text((x, y + LINE), cell.numbers, INK, plain)
    top = y + 2 * LINE + 2
    photo = thumbnail(cell.photo, PICTURE)
    if cell.compared == CAPTION:
        photo = Image.blend(photo, Image.new("RGB", photo.size, "white"), 0.6)
    page.paste(photo, (x, top))
    if cell.right:
        draw.rectangle((x - 3, top - 3, x + photo.width + 2, top + photo.height + 2),
                       outline=MATCH, width=3)
    ink = FAINT if cell.compared == PHOTO else INK
    for number, line in enumerate(wrapped(cell.caption, 23, 3)):
        draw.text((x, top + PICTURE + 3 + number * LINE), line, ink, plain)


def wrapped(text: str, width: int, lines: int) -> list[str]:
    """At most `lines` lines of `width` characters; an ellipsis tells of more."""
    return textwrap.wrap(text, width, max_lines=lines, placeholder=" …")


@functools.cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A font that comes with matplotlib, so that a sheet looks alike everywhere."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf",
                              size)
