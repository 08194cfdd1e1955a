"""Photos: decoding, checking, resizing, augmenting, normalising.

Everything here works on one photo at a time, as PIL image and then as uint8 tensor; only
`normalize` takes a batch, on whichever device it lies.
"""

import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as T
from torchvision.transforms.v2 import functional as TF
from tqdm import tqdm

from errors import InputError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GREY = [128.0, 128.0, 128.0]


def find_photos(images: list[str], source: Path, data_path: Path) -> list[Path]:
    """The files of photos that split file `source` names, by relative path or by bare name.

    Each is checked without decoding it.

    A file that does not end as a JPEG or PNG should is decoded, to be sure that it is cut short.

    Raises:
        InputError: the folder is missing or empty, or a photo is missing or broken (says which).
    """
    if not data_path.is_dir() or not any(data_path.iterdir()):
        raise InputError(f"--data_path {data_path} is not a folder with photos in it")
    found = []
    for name in images:
        path = data_path / name
        found.append(path if path.is_file() else data_path / PurePosixPath(name).name)
    with ThreadPoolExecutor(16) as pool:
        checks = pool.map(photo_fault, found)
        bar = tqdm(checks, f"checking photos of {source.name}", len(found),
                   leave=False, disable=None)
        faults = [(path, fault) for path, fault in zip(found, bar, strict=True) if fault]
    if faults:
        raise InputError(f"{len(faults)} of {len(found)} photos of {source} cannot be used "
                         f"under --data_path {data_path}; the first, {faults[0][0]}, "
                         f"{faults[0][1]}")
    return found


def photo_fault(path: Path) -> str | None:
    """What is wrong with a photo, or None."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 64))
            end = file.read()
    except OSError:
        return "is missing"
    if b"\xff\xd9" in end or b"IEND" in end:
        return None
    try:
        load_photo(path)
    except InputError:
        return "is cut short or no photo: fetch it again"
    return None


def load_photo(path: Path) -> Image.Image:
    """A decoded RGB photo; InputError names one that cannot be decoded."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"photo {path} cannot be decoded ({error}): fetch it again") from error


def eval_pixels(image: Image.Image, size: int) -> Tensor:
    """Plain bicubic resize to the square: uint8 (3, size, size)."""
    return TF.pil_to_tensor(TF.resize(image, [size, size], InterpolationMode.BICUBIC))


def train_pixels(image: Image.Image, size: int) -> Tensor:
    """Random resized crop, flip and two of ten operations: uint8 (3, size, size)."""
    crop = T.RandomResizedCrop(size, scale=(0.5, 1.0), interpolation=InterpolationMode.BICUBIC)
    image = T.RandomHorizontalFlip()(crop(image))
    for operation in torch.randint(len(OPERATIONS), (2,)).tolist():
        if torch.rand(()) < 0.5:
            image = OPERATIONS[operation](image)
    return TF.pil_to_tensor(image)


def affine(image: Image.Image, angle=0.0, shift=(0, 0), shear=(0.0, 0.0), center=None):
    """An affine warp by `angle` degrees, `shift` pixels and `shear` slopes, its sign random."""
    sign = 1 if torch.rand(()) < 0.5 else -1
    degrees = [sign * math.degrees(math.atan(slope)) for slope in shear]
    return TF.affine(image, sign * angle, [sign * x for x in shift], 1.0, degrees,
                     InterpolationMode.BILINEAR, GREY, center)


# Level 7 of 10 of the usual random augmentation. Shears keep the top left corner, as they do there.
OPERATIONS = (
    lambda image: image,
    TF.autocontrast,
    TF.equalize,
    lambda image: TF.adjust_brightness(image, 1.36),
    lambda image: TF.adjust_sharpness(image, 1.36),
    lambda image: affine(image, shear=(0.21, 0.0), center=[0, 0]),
    lambda image: affine(image, shear=(0.0, 0.21), center=[0, 0]),
    lambda image: affine(image, shift=(7, 0)),
    lambda image: affine(image, shift=(0, 7)),
    lambda image: affine(image, angle=21.0),
)


def normalize(pixels: Tensor, mean: Iterable[float], std: Iterable[float]) -> Tensor:
    """uint8 (B, 3, R, R) to float32, scaled to [0, 1] and standardised per channel.

    Runs on the device of `pixels`: a quarter of the bytes cross to it, and the workers are spared.
    """
    return TF.normalize(TF.to_dtype(pixels, torch.float32, scale=True), list(mean), list(std))


class PhotoDataset(Dataset):
    """Photos as evaluation sees them: item i is uint8 (3, size, size)."""

    def __init__(self, photos: list[Path], size: int):
        self.photos, self.size = photos, size

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Tensor:
        return eval_pixels(load_photo(self.photos[index]), self.size)
