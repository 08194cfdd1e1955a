"""Photos: checking, decoding, resizing, normalising. What training does to them besides is in
`inputs/augmentation.py`.

Everything here works on one photo at a time, as PIL image or uint8 tensor; only `normalize` takes
a batch, on whichever device it lies.
"""

import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

from common.errors import InputError, one_line, reraise_out_of_memory
from common.files import leads_out_of_folder
from common.terminal import print_status, progress
from inputs.arrays import Lazy
from inputs.shards import TarPhoto, read_at

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FORMATS = "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff",
            ".ppm", ".pgm", ".pbm", ".pnm"}
MAX_PIXELS = 100_000_000  # 300 MB once decoded, in each worker
LARGE_FILE = 2_000_000  # bytes; above this a photo's size is looked up before the run starts
MANY, SAMPLE = 200_000, 20_000  # photos above which a sample is checked, and of how many
CHECKED = 4096  # photos that are checked together

Photo = Path | TarPhoto  # where a photo is: in a folder, or inside a tar


class TooLarge(InputError):
    """A photo whose pixels would fill the memory."""

    def __init__(self, path: Photo, pixels: str):
        super().__init__(f"photo {path} has {pixels} pixels, more than the {MAX_PIXELS:,} that are "
                         "decoded: make it smaller")


class Photos(Lazy):
    """The files of photos that are named by relative path or by bare name, (N_i,) paths.

    `leads_out` of a path tells whether a link leads out of the folder, where `load_from` has to ask
    since not all photos were asked before; or it is None.
    """

    def __init__(self, names: Sequence[str], folder: Path):
        self.names, self.folder = names, folder
        self.leads_out: Callable[[Path], str | None] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def item(self, index: int) -> Path:
        return photo_path(self.names[index], self.folder)


def find_photos(
    images: Sequence[str], source: Path, data_path: Path, follow_links: bool = False,
    every: bool = True,
) -> Photos:
    """The files of photos that split file `source` names, by relative path or by bare name.

    Each is checked without decoding it; a file that does not end as a JPEG or PNG should is
    decoded, to be sure that it is cut short. Without `every`, of more than `MANY` only `SAMPLE`
    are, spread evenly, which is said.

    Raises:
        InputError: the folder is missing or empty, or a photo is missing, broken, enormous, or,
            without `follow_links`, reached by a link out of the folder (says which).
    """
    if not data_path.is_dir() or not has_files(data_path):
        raise InputError(f"{data_path} is not a folder with photos in it")
    outside = next((name for name in images if leads_out_of_folder(name)), None)
    if outside is not None:
        raise InputError(f"{source}: photo {outside!r} must be a path inside the photo folder")
    found = Photos(images, data_path)
    leads_out = (lambda path: None) if follow_links else link_check(data_path)
    checked = found
    if not every and len(found) > MANY:
        checked, found.leads_out = found[:: -(-len(found) // SAMPLE)], leads_out
        print_status(f"{source.name}: {len(checked):,} of {len(found):,} photos are checked before "
                     "the run; others that are broken will be told of, and replaced, as it meets "
                     "them (--max_bad_photos)")
    faults = list(photo_faults(checked, leads_out, f"checking photos of {source.name}"))
    if faults:
        raise InputError(f"{len(faults)} of {len(checked)} photos of {source} cannot be used "
                         f"under {data_path}; the first, {faults[0][0]}, {faults[0][1]}")
    return found


def has_files(folder: Path) -> bool:
    """Whether anything is in a folder, which may hold millions."""
    with os.scandir(folder) as entries:
        return next(entries, None) is not None


def photo_faults(
    photos: Sequence[Path], leads_out: Callable[[Path], str | None], what: str
) -> Iterator[tuple[Path, str]]:
    """The photos that cannot be used, and what is wrong with each."""
    with ThreadPoolExecutor(16) as pool, progress(None, what, len(photos)) as bar:
        for start in range(0, len(photos), CHECKED):
            paths = list(photos[start : start + CHECKED])
            for path, fault in zip(paths, pool.map(photo_fault, paths), strict=True):
                if fault := fault or leads_out(path):
                    yield path, fault
                bar.update()


def load_from(photos: Sequence, index: int) -> Image.Image:
    """`load_photo` of one of many, which is asked now what it was not asked before.

    Raises:
        InputError: see `load_photo`; or a link leads out of the folder.
    """
    photo = photos[index]
    leads_out = getattr(photos, "leads_out", None)
    if leads_out is not None and (fault := leads_out(photo)):
        raise InputError(f"photo {photo} {fault}")
    return load_photo(photo)


def photo_path(name: str, data_path: Path) -> Path:
    """Where a photo should be: at its relative path, or else at its bare name."""
    path = data_path / name
    return path if os.path.isfile(path) else data_path / PurePosixPath(name).name


def link_check(data_path: Path) -> Callable[[Path], str | None]:
    """A function that tells of a photo's path whether a link leads out of `data_path`, or None.

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


def photo_fault(path: Photo) -> str | None:
    """What is wrong with a photo, or None."""
    try:
        size, start, end = size_and_ends(path)
    except InputError:  # of a shard
        raise
    except (OSError, ValueError):  # a name that no file can have is a ValueError
        return "is missing"
    whole = b"\xff\xd9" in end or b"IEND" in end or is_whole_webp(size, start)
    if whole and size < LARGE_FILE:
        return None
    try:
        (open_photo if whole else load_photo)(path).close()
    except TooLarge as error:
        return one_line(error)
    except InputError:
        return "is cut short or no photo: fetch it again"
    return None


def size_and_ends(path: Photo, length: int = 64) -> tuple[int, bytes, bytes]:
    """How many bytes a photo has, and the first and last of them.

    Raises:
        OSError, ValueError: there is no such file.
        InputError: its shard has changed.
    """
    if isinstance(path, TarPhoto):
        length = min(length, path.size)
        return path.size, *(read_at(path.shard, path.offset + start, length)
                            for start in (0, path.size - length))
    if not os.path.isfile(path):  # not a pipe or device either, which might never end
        raise FileNotFoundError("there is no such file")
    with open(path, "rb") as file:
        start, size = file.read(length), file.seek(0, os.SEEK_END)
        file.seek(max(0, size - length))
        return size, start, file.read()


def is_whole_webp(size: int, start: bytes) -> bool:
    """Whether a file that starts so is a WebP with as many bytes as it says: this alone tells it
    from one that is cut short without decoding it."""
    return (start[:4], start[8:12]) == (b"RIFF", b"WEBP") and (
        8 + int.from_bytes(start[4:8], "little") <= size)


def open_photo(path: Photo) -> Image.Image:
    """A photo whose header is read, but no pixel yet.

    Only `FORMATS` are tried: Pillow would have another program, Ghostscript, run what an EPS file
    says.

    Raises:
        InputError: it is none of `FORMATS`, or has more than `MAX_PIXELS`.
    """
    try:
        if isinstance(path, TarPhoto):
            file = path.open()
        elif os.path.isfile(path):
            file = path
        else:
            raise FileNotFoundError("there is no such file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own remark on size, and on odd tags
            image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise TooLarge(path, "too many") from error
    except Exception as error:  # of a dozen kinds, as bytes come
        reraise_out_of_memory(error)
        raise undecodable(path, error) from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise TooLarge(path, f"{image.width} x {image.height}")
    return image


def load_photo(path: Photo) -> Image.Image:
    """A decoded RGB photo, the first of an animation, as the published pipeline sees it.

    Except that of 16 bits of grey the upper eight are taken: Pillow alone makes nearly all white.

    Raises:
        InputError: see `open_photo`; or its pixels cannot be decoded.
    """
    with open_photo(path) as image:
        try:
            if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG"):
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            image.load()  # all of its pixels: the file is closed behind it
            return image if image.mode == "RGB" else image.convert("RGB")
        except Exception as error:  # as above
            reraise_out_of_memory(error)
            raise undecodable(path, error) from error


def undecodable(path: Photo, error: Exception) -> InputError:
    return InputError(f"photo {path} cannot be decoded ({one_line(error)}): fetch it again")


def eval_pixels(image: Image.Image, size: int) -> Tensor:
    """Plain bicubic resize of an RGB image to the square: uint8 (3, size, size)."""
    resized = image.resize((size, size), Image.Resampling.BICUBIC)
    # Row by row a line of each colour, which are put together to planes faster than single pixels
    # are, here or in a batch.
    lines = np.frombuffer(resized.tobytes("raw", "RGB;L"), dtype=np.uint8)
    return torch.from_numpy(lines.reshape(size, 3, size).transpose(1, 0, 2).copy())


def normalize(
    pixels: Tensor, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]
) -> Tensor:
    """uint8 (B, 3, R, R) to float32, scaled to [0, 1] and standardised per channel.

    Runs on the device of `pixels`: a quarter of the bytes cross to it, and the workers are spared.
    Give mean and std (3,) as tensors that are there: a GPU waits for lists to be copied.
    """
    floats = TF.to_dtype(pixels, torch.float32, scale=True)
    mean, std = (torch.as_tensor(numbers, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
                 for numbers in (mean, std))
    return floats.sub_(mean).div_(std)


class PhotoDataset(Dataset):
    """Photos as evaluation sees them: item i is uint8 (3, size, size)."""

    def __init__(self, photos: Sequence, size: int):
        self.photos, self.size = photos, size

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Tensor:
        return eval_pixels(load_photo(self.photos[index]), self.size)
