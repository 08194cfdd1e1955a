"""Photos: finding, checking, decoding, resizing, normalising. What training does to them besides is
in `inputs/augmentation.py`.

Everything here works on one photo at a time, as PIL image or uint8 tensor; only `normalize` takes
a batch, on whichever device it lies.
"""

import functools
import io
import operator
import os
import struct
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageOps, features
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from common.errors import InputError, one_line, reraise_out_of_memory
from common.files import leads_out_of_folder
from common.terminal import print_status, progress

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FORMATS = "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff",
            ".ppm", ".pgm", ".pbm", ".pnm", ".heic", ".heif", ".avif"}
MAX_PIXELS = 100_000_000  # 300 MB once decoded, in each worker
MAX_BYTES = 2**30  # of the file of a photo
LARGE_FILE = 2_000_000  # bytes; above this a photo's size is looked up before the run starts
MANY, SAMPLE = 200_000, 20_000  # photos above which a sample is checked, and of how many
CHECKED = 4096  # photos that are checked together
LISTED = 500_000  # files of a folder among which a photo that is missing is looked for
MISSING = "is missing"

PNG = b"\x89PNG\r\n\x1a\n"
# Chunks of a PNG that no pixel depends on: texts, a colour profile, a date.
PNG_TEXTS = {b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"tIME"}
HEIC_BRANDS = b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"
# How files begin that are often found under a photo's name, and what they are.
OTHER_FORMATS = {
    b"\x00\x00\x00\x0cJXL ": "a JPEG XL photo, which is not read: convert it to JPEG or PNG",
    b"\xff\x0a": "a JPEG XL photo, which is not read: convert it to JPEG or PNG",
    b"\x00\x00\x00\x0cjP  ": "a JPEG 2000 photo, which is not read: convert it to JPEG or PNG",
    b"8BPS": "a Photoshop file, which is not read: save it as JPEG or PNG",
    b"%PDF": "a PDF: take the photo out of it, as JPEG or PNG",
    b"%!PS": "PostScript and no photo: convert it to JPEG or PNG",
    b"<svg": "an SVG drawing, which is not read: convert it to PNG",
    b"<?xm": "an XML or SVG text and no photo: fetch it again, or convert it to PNG",
    b"<!do": "a web page and no photo: fetch it again",
    b"<htm": "a web page and no photo: fetch it again",
    b"version https://git-lfs": "a pointer of Git LFS and no photo: fetch it with git lfs pull",
}

# Where a photo is: a file's path; or, inside a tar or a table, an object whose `open` gives its
# bytes as a file, whose `ends` gives its size and its ends, and whose `str` says where it is.
Photo = Path | object


class TooLarge(InputError):
    """A photo whose pixels, or whose bytes, would fill the memory.

    It is made from its message alone, so that it comes out of a worker process as what it is.
    """


# ---------------------------------------------------------------------------------- many photos


class PhotoSequence(Sequence):
    """Hold N photos of a split, each located or decoded only when it is indexed.

    A slice is a sequence of this kind too. The sequence equals any sequence of the same photos.

    Attributes:
        upright: whether a photo is turned as its EXIF data say.
        checked: whether all photos were looked at when the sequence was made.
    """

    upright = False
    checked = False

    def photo(self, index: int) -> Photo:
        """Return where the photo `index` is; `index` is from 0 to below the length."""
        raise NotImplementedError

    def label(self, index: int) -> str:
        """Return the name of the photo `index` in messages."""
        return str(self.photo(index))

    def load(self, index: int) -> Image.Image:
        """Decode the photo `index`; see `load_photo`."""
        return load_photo(self[index], self.upright)

    def clues(self) -> Iterator[object]:
        """Yield a key for each photo, without opening it; equal photos have equal keys."""
        return (photo.identity for photo in self)

    def missing(self, index: int) -> str | None:
        """Return "missing" or "ambiguous" where it is not known where the photo `index` is."""
        return None

    def subset(self, rows: Sequence[int]) -> "PhotoSequence":
        """Return the photos at the indices `rows`, as a sequence of this kind."""
        return PhotoSlice(self, rows)

    def faults(self, rows: Sequence[int], what: str) -> Iterator[tuple[int, str]]:
        """Yield the photos among `rows` that cannot be used, and what is wrong with each.

        Args:
            what: names the work on the progress bar.
        """
        with ThreadPoolExecutor(16) as pool, progress(None, what, len(rows)) as bar:
            for start in range(0, len(rows), CHECKED):
                block = rows[start : start + CHECKED]
                for row, found in zip(block, pool.map(self.fault, block), strict=True):
                    if found:
                        yield row, found
                    bar.update()

    def fault(self, index: int) -> str | None:
        """Return what is wrong with the photo `index`, or None."""
        return photo_fault(self.photo(index))

    def __getitem__(self, index):
        if isinstance(index, slice):
            return PhotoSlice(self, range(len(self))[index])
        return self.photo(range(len(self))[operator.index(index)])

    def __iter__(self) -> Iterator[Photo]:
        return map(self.photo, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None

    def __repr__(self) -> str:
        return f"<{len(self):,} photos: {', '.join(map(str, self[:3]))}, ...>"


class PhotoSlice(PhotoSequence):
    """The photos `rows` of another sequence."""

    def __init__(self, whole: PhotoSequence, rows: Sequence[int]):
        self.whole, self.rows, self.upright = whole, rows, whole.upright

    def __len__(self) -> int:
        return len(self.rows)

    def photo(self, index: int) -> Photo:
        return self.whole.photo(int(self.rows[index]))

    def load(self, index: int) -> Image.Image:
        return self.whole.load(int(self.rows[range(len(self))[index]]))

    def label(self, index: int) -> str:
        return self.whole.label(int(self.rows[index]))

    def fault(self, index: int) -> str | None:
        return self.whole.fault(int(self.rows[index]))

    def missing(self, index: int) -> str | None:
        return self.whole.missing(int(self.rows[index]))


class Photos(PhotoSequence):
    """The files of photos that are named by relative path or by bare name.

    Args:
        names: (N_i) as a split file writes them.
        folder: the folder that they are in.
        follow_links: allow links that lead out of the folder.
        upright: turn photos as their EXIF data say.
    """

    def __init__(self, names: Sequence[str], folder: Path, follow_links: bool = False,
                 upright: bool = False):
        self.names, self.folder, self.upright = names, folder, upright
        self.leads_out = (lambda path: None) if follow_links else link_check(folder)
        self.asks_links = False  # where not all photos were looked at before

    def __len__(self) -> int:
        return len(self.names)

    def photo(self, index: int) -> Path:
        return photo_path(self.names[index], self.folder)

    def load(self, index: int) -> Image.Image:
        """Decode the photo `index`.

        Raises:
            InputError: see `load_photo`; or a link leads out of the folder.
        """
        path = self[index]
        if self.asks_links and (fault := self.leads_out(path)):
            raise InputError(f"photo {path} {fault}")
        return load_photo(path, self.upright)

    def fault(self, index: int) -> str | None:
        path = self.photo(index)
        return photo_fault(path) or self.leads_out(path)

    def clues(self) -> Iterator[str]:
        return (name.rpartition("/")[2] for name in self.names)

    def missing(self, index: int) -> str | None:
        return None if os.path.isfile(self.photo(index)) else "missing"

    def subset(self, rows: Sequence[int]) -> "Photos":
        photos = Photos([self.names[row] for row in rows], self.folder, upright=self.upright)
        photos.leads_out = self.leads_out
        return photos


def check_photos(photos: PhotoSequence, source: object, every: bool = True) -> None:
    """Look at photos without decoding them; one that does not end as a JPEG or PNG should is
    decoded, to be sure that it is cut short.

    Args:
        source: the split file that names them, for messages.
        every: with False, of more than `MANY` photos only `SAMPLE` are looked at, spread evenly,
            and a line says so.

    Raises:
        InputError: the folder is missing or empty; or a photo is missing, broken, enormous, or
            reached by a link out of the folder. The message says which one.
    """
    if photos.checked:
        return
    if isinstance(photos, Photos):
        check_folder(photos, source)
    rows, count = range(len(photos)), len(photos)
    if not every and count > MANY:
        rows = rows[:: -(-count // SAMPLE)]
        photos.asks_links = True
        print_status(f"{Path(str(source)).name}: {len(rows):,} of {count:,} photos are checked "
                     "before the run; others that are broken will be told of, and replaced, as it "
                     "meets them (--max_bad_photos)")
    faults = list(photos.faults(rows, f"checking photos of {Path(str(source)).name}"))
    if faults:
        first, fault = faults[0]
        under, hint = "", ""
        if isinstance(photos, Photos):
            under = f" under {photos.folder}"
            hint = whereabouts(photos.names[first], photos.folder) if fault == MISSING else ""
        raise InputError(f"{len(faults):,} of {len(rows):,} photos of {source} cannot be used"
                         f"{under}; the first, {photos.label(first)}, {fault}{hint}")


def check_folder(photos: Photos, source: object) -> None:
    """Raise InputError where the folder of photos has nothing in it, or a name leads out of it."""
    if not photos.folder.is_dir() or not has_files(photos.folder):
        raise InputError(f"{photos.folder} is not a folder with photos in it")
    outside = next((name for name in photos.names if leads_out_of_folder(name)), None)
    if outside is not None:
        raise InputError(f"{source}: photo {outside!r} must be a path inside the photo folder")


def find_photos(
    images: Sequence[str], source: object, data_path: Path, follow_links: bool = False,
    every: bool = True, upright: bool = False,
) -> Photos:
    """Return the files of photos that split file `source` names, after `check_photos`."""
    found = Photos(images, data_path, follow_links, upright)
    check_photos(found, source, every)
    return found


def load_from(photos: Sequence, index: int) -> Image.Image:
    """Decode one photo of a `PhotoSequence`, or of any sequence of paths.

    Raises:
        InputError: see `load_photo`.
    """
    return photos.load(index) if isinstance(photos, PhotoSequence) else load_photo(photos[index])


def has_files(folder: Path) -> bool:
    """Return whether anything is in a folder, which may hold millions of files."""
    with os.scandir(folder) as entries:
        return next(entries, None) is not None


# ------------------------------------------------------------------------------ where a photo is


def photo_path(name: str, data_path: Path) -> Path:
    """Return where a photo is: at its relative path, at what is left of that without its first
    folders, or, as other systems write the name, by another form of Unicode or suffix. Of a photo
    that is missing, where its bare name would be.
    """
    path = data_path / name
    if os.path.isfile(path):
        return path
    parts = PurePosixPath(name).parts
    shorter = ["/".join(parts[start:]) for start in range(1, len(parts))]
    for other in shorter:
        if os.path.isfile(data_path / other):
            return data_path / other
    for other in other_writings([name, *shorter]):
        if os.path.isfile(data_path / other):
            return data_path / other
    return data_path / PurePosixPath(name).name


def other_writings(names: list[str]) -> Iterator[str]:
    """Yield what photos may be called on another system than the one that wrote their names."""
    yield names[0].replace("/", "\\")  # unpacked by a program that takes this for a letter
    for name in names:
        stem, suffix = os.path.splitext(name)
        for text in dict.fromkeys([
                unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name),
                stem + suffix.lower(), stem + suffix.upper()]):
            if text != name:
                yield text


def whereabouts(name: str, folder: Path) -> str:
    """Return a clause that says in which folder below `folder` a missing photo is, or as what, for
    the end of a message; "" where it is not found either."""
    def normal(text: str) -> str:
        return unicodedata.normalize("NFC", text).casefold()

    wanted, listed = normal(PurePosixPath(name).name), 0
    for place, _, files in os.walk(folder):
        listed += len(files)
        for file in files:
            if normal(file) == wanted:
                if file != PurePosixPath(name).name:
                    return f"; there is {os.path.join(place, file)}: capitals must agree"
                return f"; it is in {place}: name that folder with --data_path"
        if listed > LISTED:
            break
    return ""


def link_check(data_path: Path) -> Callable[[Path], str | None]:
    """Return a function that says of a photo's path whether a link leads out of `data_path`, or
    None.

    `data_path` itself may be a link. Folders are looked up once, photos only if they are links.
    """
    root = data_path.resolve()
    resolve = functools.cache(os.path.realpath)

    def leads_out(path: Path) -> str | None:
        real = os.path.realpath(path) if path.is_symlink() else resolve(path.parent)
        if Path(real).is_relative_to(root):
            return None
        return f"is reached by a link out of that folder, to {real}: allow it with --follow_links"

    return leads_out


# --------------------------------------------------------------------------------- what is wrong


def photo_fault(path: Photo) -> str | None:
    """Return what is wrong with a photo, or None."""
    try:
        size, start, end = size_and_ends(path)
    except InputError:  # of a shard
        raise
    except (OSError, ValueError):  # a name that no file can have is a ValueError
        return MISSING
    whole = b"\xff\xd9" in end or b"IEND" in end or is_whole_webp(size, start)
    if whole and size < LARGE_FILE:
        return None
    try:
        (open_photo if whole else load_photo)(path).close()
    except TooLarge as error:
        return one_line(error)
    except InputError:
        other = other_format(start)
        return f"is {other}" if other else "is cut short or no photo: fetch it again"
    return None


def other_format(start: bytes) -> str | None:
    """Return what a file is that begins with `start` and is no photo of `FORMATS`, and the way out;
    None where that is not known."""
    if not start:
        return "empty, cut short or no photo: fetch it again"
    if is_heic(start):
        return ("a HEIC photo: pip install -r requirements-heic.txt reads such (if it is installed,"
                " the photo is damaged), or convert it to JPEG")
    if is_avif(start):
        return "an AVIF photo, which this Pillow does not read: convert it to JPEG or PNG"
    lower = start.lstrip().lower()
    for beginning, kind in OTHER_FORMATS.items():
        if start.startswith(beginning) or lower.startswith(beginning):
            return kind
    return None


def is_heic(start: bytes) -> bool:
    """Return whether a file that begins with `start` is a HEIC photo."""
    return start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS


def is_avif(start: bytes) -> bool:
    """Return whether a file that begins with `start` is an AVIF photo."""
    return start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis")


def size_and_ends(path: Photo, length: int = 64) -> tuple[int, bytes, bytes]:
    """Return how many bytes a photo has, and the first and last of them.

    Raises:
        OSError, ValueError: there is no such file.
        InputError: its shard has changed.
    """
    if not isinstance(path, Path):
        return path.ends(length)
    if not os.path.isfile(path):  # not a pipe or device either, which might never end
        raise FileNotFoundError("there is no such file")
    with open(path, "rb") as file:
        start, size = file.read(length), file.seek(0, os.SEEK_END)
        file.seek(max(0, size - length))
        return size, start, file.read()


def is_whole_webp(size: int, start: bytes) -> bool:
    """Whether a file that begins with `start` is a WebP with as many bytes as it says: this alone
    tells it from one that is cut short without decoding it."""
    return (start[:4], start[8:12]) == (b"RIFF", b"WEBP") and (
        8 + int.from_bytes(start[4:8], "little") <= size)


# -------------------------------------------------------------------------------------- decoding


def open_photo(path: Photo) -> Image.Image:
    """Return a photo whose header is read, but no pixel yet.

    Only `FORMATS` are tried, and HEIC and AVIF where a package reads them: Pillow would have
    another program, Ghostscript, run what an EPS file says.

    Raises:
        InputError: it is none of these, or has more than `MAX_PIXELS`.
    """
    try:
        with photo_file(path) as file:
            start, size = file.read(64), file.seek(0, os.SEEK_END)
        if size > MAX_BYTES:  # some formats are read as a whole
            raise TooLarge(f"photo {path} has {size:,} bytes, more than the {MAX_BYTES:,} that "
                           "are read: make it smaller")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own remark on size, and on odd tags
            image = opened(path, start)
    except TooLarge:
        raise
    except Image.DecompressionBombError as error:
        raise too_large(path, "too many") from error
    except Exception as error:  # of a dozen kinds, as bytes come
        reraise_out_of_memory(error)
        raise undecodable(path, error) from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise too_large(path, f"{image.width} x {image.height}")
    return image


def too_large(path: Photo, pixels: str) -> TooLarge:
    """Return the error of a photo that has so many pixels."""
    return TooLarge(f"photo {path} has {pixels} pixels, more than the {MAX_PIXELS:,} that are "
                    "decoded: make it smaller")


def photo_file(path: Photo) -> io.IOBase:
    """Open the file of a photo, or its bytes as a file.

    Raises:
        OSError: there is none.
    """
    if not isinstance(path, Path):
        return path.open()
    if not os.path.isfile(path):
        raise FileNotFoundError("there is no such file")
    return open(path, "rb")


def opened(path: Photo, start: bytes) -> Image.Image:
    """Return the PIL image of a photo whose bytes begin with `start`; a PNG whose texts cannot be
    read is opened without them."""
    try:
        file = path if isinstance(path, Path) else path.open()
        return Image.open(file, formats=formats_of(start))
    except Exception as error:
        if not start.startswith(PNG) or isinstance(error, Image.DecompressionBombError):
            raise
    with photo_file(path) as file:
        return Image.open(io.BytesIO(without_texts(file.read())), formats=("PNG",))


def formats_of(start: bytes) -> tuple[str, ...]:
    """Return Pillow's names of the formats that a file which begins with `start` may have."""
    if is_heic(start) and reads_heic():
        return "HEIF",
    if is_avif(start) and features.check("avif"):
        return "AVIF",
    return FORMATS


@functools.cache
def reads_heic() -> bool:
    """Return whether the package that reads HEIC is there; it is made known to Pillow."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def without_texts(content: bytes) -> bytes:
    """Return the bytes of a PNG without the chunks that no pixel depends on: a text may unpack to
    more than Pillow takes, or be damaged."""
    kept, place = [content[:8]], 8
    while place + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        if kind not in PNG_TEXTS:
            kept.append(content[place : place + 12 + length])
        place += 12 + length
    return b"".join([*kept, content[place:]])


def load_photo(path: Photo, upright: bool = False) -> Image.Image:
    """Decode a photo to RGB; of an animation its first frame.

    Except for 16 bits of grey, of which the upper eight are taken where Pillow alone makes nearly
    all white, the pixels are those that the published pipeline sees.

    Args:
        upright: turn the photo as its EXIF orientation says; the published pipeline does not.

    Raises:
        InputError: see `open_photo`; or its pixels cannot be decoded.
    """
    with open_photo(path) as image:
        try:
            return rgb(image, upright)
        except Exception as error:  # as above
            reraise_out_of_memory(error)
            failure = error
        if image.format == "PNG":  # a text behind the pixels
            try:
                with photo_file(path) as file:
                    content = without_texts(file.read())
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return rgb(Image.open(io.BytesIO(content), formats=("PNG",)), upright)
            except Exception as error:
                reraise_out_of_memory(error)
        raise undecodable(path, failure) from failure


def rgb(image: Image.Image, upright: bool) -> Image.Image:
    """Decode an opened image to RGB."""
    is_16_bit = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG")
    image.load()  # all of its pixels: the file is closed behind it
    if upright:
        image = turned(image)
    if is_16_bit:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def turned(image: Image.Image) -> Image.Image:
    """Return an image turned as its EXIF orientation says; EXIF data that cannot be read say
    nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:
        reraise_out_of_memory(error)
        return image


def undecodable(path: Photo, error: Exception) -> InputError:
    """Return the error of a photo that cannot be decoded, with what it is instead, if known."""
    try:
        other = other_format(size_and_ends(path)[1])
    except (OSError, ValueError):
        other = None
    if other:
        return InputError(f"photo {path} cannot be decoded: it is {other}")
    return InputError(f"photo {path} cannot be decoded ({one_line(error)}): fetch it again")


# ---------------------------------------------------------------------------------------- pixels


def eval_pixels(image: Image.Image, size: int) -> Tensor:
    """Resize an RGB image bicubically to a square, as in evaluation: uint8 (3, size, size)."""
    resized = image.resize((size, size), Image.Resampling.BICUBIC)
    # Row by row a line of each colour, which are put together to planes faster than single pixels
    # are, here or in a batch.
    lines = np.frombuffer(resized.tobytes("raw", "RGB;L"), dtype=np.uint8)
    return torch.from_numpy(lines.reshape(size, 3, size).transpose(1, 0, 2).copy())


def normalize(
    pixels: Tensor, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]
) -> Tensor:
    """Turn uint8 (B, 3, R, R) into float32, scaled to [0, 1] and standardised per channel.

    Runs on the device of `pixels`: a quarter of the bytes cross to it, and the workers are spared.
    Give mean and std (3,) as tensors that are there: a GPU waits for lists to be copied.
    """
    floats = TF.to_dtype(pixels, torch.float32, scale=True)
    mean, std = (torch.as_tensor(numbers, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
                 for numbers in (mean, std))
    return floats.sub_(mean).div_(std)
