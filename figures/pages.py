"""Pages of html: each is one file that holds its style and photos, and needs no server or network.
"""

import base64
import functools
import io
from html import escape
from pathlib import Path
from string import Template

from PIL import Image, ImageOps

from common import files
from common.errors import InputError, printable
from inputs.photos import load_photo

TEMPLATES = Path(__file__).parent  # of `page.html` and the style sheets
THUMBNAIL_SIZE = 176  # pixels of the longer side of a photo inside a page
UNREADABLE_PHOTO = "#9a9a9a"  # the colour shown in place of a photo that cannot be read
GENERATOR_WITHIN = 1000  # bytes from the beginning of a page in which its generator is named


def page(
    generator: str, title: str, facts: dict[str, str], sections: str, *style_sheets: str
) -> str:
    """Return a page of html.

    Args:
        generator: the flag that writes the page, such as "search.py --html"; `is_page` recognises
            the page by it.
        title: plain text of the heading.
        facts: names and values, in plain text, of the list below the heading.
        sections: html of everything below that list.
        style_sheets: names of further style sheets in this folder, beside `style.css`.
    """
    style = "".join((TEMPLATES / name).read_text(encoding="utf-8")
                    for name in ("style.css", *style_sheets))
    fact_list = "".join(f"<dt>{html_text(name)}</dt><dd>{html_text(value)}</dd>"
                        for name, value in facts.items())
    template = Template((TEMPLATES / "page.html").read_text(encoding="utf-8"))
    return template.substitute(generator=generator, style=style, title=html_text(title),
                               facts=fact_list, sections=sections)


def is_page(path: Path, generator: str) -> bool:
    """Return whether a file is a page that `page` made for the flag `generator`."""
    mark = f'<meta name="generator" content="{generator}">'
    return mark.encode() in files.read_start(path, GENERATOR_WITHIN)


def html_text(value: str) -> str:
    """Return a text as html: escaped, and unprintable characters as visible escape sequences."""
    return escape(printable(value))


def thumbnail(path: Path | None, size: int) -> Image.Image:
    """Return a photo scaled so that its longer side has `size` pixels.

    A photo that is unknown (None) or cannot be read is a plain grey square: training and the search
    of photos warn of it already, and a page is worth showing without it.
    """
    if path is not None:
        try:
            return ImageOps.contain(load_photo(path, upright=True), (size, size))
        except InputError:
            pass
    return Image.new("RGB", (size, size), UNREADABLE_PHOTO)


def jpeg_bytes(image: Image.Image, quality: int = 60, comment: bytes = b"") -> bytes:
    """Return a picture as the bytes of a JPEG file, near whose beginning is `comment`."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True, comment=comment)
    return buffer.getvalue()


@functools.lru_cache(maxsize=1024)
def data_uri(photo: Path) -> str:
    """Return a photo's thumbnail as the address of a JPEG that lies inside the page itself."""
    encoded = base64.b64encode(jpeg_bytes(thumbnail(photo, THUMBNAIL_SIZE)))
    return "data:image/jpeg;base64," + encoded.decode()
