"""Pages of html: one file with style and photos in it, that needs no server and no network."""

import base64
import functools
import io
from html import escape
from pathlib import Path
from string import Template

from PIL import Image, ImageOps

from common.errors import InputError, printable
from inputs.photos import load_photo

HERE = Path(__file__).parent


def page(generator: str, title: str, facts: dict[str, str], sections: str, *styles: str) -> str:
    """A page of html.

    Args:
        generator: the flag that writes it; a page is known by it, see `is_page`.
        title: a text, as are the names and values of `facts`; `sections`: html already.
        styles: more style sheets of this folder than the common one.
    """
    style = "".join((HERE / name).read_text(encoding="utf-8") for name in ("style.css", *styles))
    told = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in facts.items())
    template = Template((HERE / "page.html").read_text(encoding="utf-8"))
    return template.substitute(generator=generator, style=style, title=text(title), facts=told,
                               sections=sections)


def is_page(place: Path, generator: str) -> bool:
    """Whether a file is a page that `page` made for the same flag."""
    with open(place, "rb") as file:
        return f'<meta name="generator" content="{generator}">'.encode() in file.read(1000)


def text(value: str) -> str:
    """A text from data as html: escaped, what is not printable shown as such."""
    return escape(printable(value))


def thumbnail(path: Path | None, size: int) -> Image.Image:
    """A photo scaled to fill size x size pixels one way; plain grey where it cannot be read, of
    which training and `find_photos` tell."""
    try:
        if path is not None:
            return ImageOps.contain(load_photo(path), (size, size))
    except InputError:
        pass
    return Image.new("RGB", (size, size), "#9a9a9a")


def jpeg(image: Image.Image, quality: int = 60) -> bytes:
    """A picture's JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


@functools.lru_cache(maxsize=1024)
def data_uri(photo: Path) -> str:
    """A photo as a small JPEG inside the page."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(thumbnail(photo, 176))).decode()
