"""Pages of html: one file with style and photos in it, that needs no server and no network."""

import base64
import functools
import io
from pathlib import Path
from string import Template

from PIL import Image, ImageOps

from common.errors import InputError
from inputs.photos import load_photo

HERE = Path(__file__).parent


def fill(name: str, **parts: str) -> str:
    """A template of this folder with the common style and `parts`, which are html already."""
    style = (HERE / "style.css").read_text(encoding="utf-8")
    template = Template((HERE / name).read_text(encoding="utf-8"))
    return template.substitute(style=style, **parts)


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
