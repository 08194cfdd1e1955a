"""The published augmentation: random resized crop, flip, and two of ten operations.

Everything here works on one photo at a time, as uint8 planes (3, R, R): whole planes are what numpy
and torch are fast on, and what a batch is stacked of. Pixels are PIL's, or within a level or two of
them where they are resized or warped.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from torch import Tensor

GREY = 128  # of what a warp uncovers
ATTEMPTS = 10  # crops that are drawn until one fits


class Draws(NamedTuple):
    """What is random about a training photo, but for the signs of its operations."""

    box: tuple[int, int, int, int]  # left, top, right, bottom of the crop
    flip: bool
    operations: list[int]  # those that are applied, in this order


def draw(width: int, height: int) -> Draws:
    """Of a photo of this size: a crop, a flip half of the time, and two of ten operations, drawn
    with replacement and each applied half of the time.

    All from one call for random numbers: each costs far more than what is done with them.
    """
    flip, *numbers = torch.rand(7 + 2 * ATTEMPTS).tolist()
    operations = [int(len(OPERATIONS) * numbers[which]) for which in (0, 1)
                  if numbers[2 + which] < 0.5]
    return Draws(crop_box(width, height, numbers[4:]), flip < 0.5, operations)


def crop_box(width: int, height: int, numbers: Sequence[float]) -> tuple[int, int, int, int]:
    """The usual random crop (torchvision's `RandomResizedCrop`): half to all of the area, sides
    3 : 4 to 4 : 3, anywhere; the middle where ten such do not fit.

    Args:
        numbers: 2 + 2 * `ATTEMPTS`, uniform in [0, 1).
    """
    across, down, *shapes = numbers
    for share, bend in zip(shapes[::2], shapes[1::2], strict=True):
        area = width * height * (0.5 + 0.5 * share)
        ratio = (3 / 4) ** (1 - 2 * bend)  # width over height
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int((width - w + 1) * across), int((height - h + 1) * down)
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def train_pixels(image: Image.Image, size: int) -> Tensor:
    """An RGB image, cropped, flipped, and changed by two of ten: uint8 (3, size, size)."""
    box, flip, operations = draw(image.width, image.height)
    pixels = resized_crop(image, box, size)
    if flip:
        pixels = pixels.flip(2)
    for operation in operations:
        pixels = OPERATIONS[operation](pixels)
    return pixels


def resized_crop(image: Image.Image, box: tuple[int, int, int, int], size: int) -> Tensor:
    """A part of an RGB image, resized bicubically: uint8 (3, size, size), within a level of PIL's.

    torch resizes several times faster than PIL, and pixels of four bytes twice as fast again as it
    does planes.
    """
    part = image.crop(box)
    width, height = part.size
    pixels = torch.frombuffer(bytearray(part.tobytes("raw", "RGBX")), dtype=torch.uint8)
    # Strides of channels_last, also that of a batch of one, by which torch tells it.
    pixels = pixels.as_strided((1, 4, height, width), (4 * height * width, 1, 4 * width, 4))
    pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True)
    return torch.from_numpy(np.ascontiguousarray(pixels[0, :3].numpy()))  # half of torch's time


# --------------------------------------------------------------------------------------- operations


def on_planes(operation: Callable) -> Callable:
    """An operation on uint8 arrays (3, R, R), for tensors."""
    return lambda pixels, *arguments: torch.from_numpy(operation(pixels.numpy(), *arguments))


def looked_up(planes: np.ndarray, tables: list[np.ndarray]) -> np.ndarray:
    """Each plane of (3, R, R) through its own table of 256, whose numbers are cut to levels."""
    # Many times as fast as indexing, which makes eight bytes of each index.
    found = bytearray().join(
        plane.tobytes().translate(table.clip(0, 255).astype(np.uint8).tobytes())
        for plane, table in zip(planes, tables, strict=True))
    return np.frombuffer(found, dtype=np.uint8).reshape(planes.shape)


@on_planes
def autocontrast(planes: np.ndarray) -> np.ndarray:
    """Each plane stretched so that its darkest level becomes 0 and its lightest 255."""
    tables = []
    for low, high in zip(planes.min((1, 2)).tolist(), planes.max((1, 2)).tolist(), strict=True):
        scale = 255.0 / (high - low) if high > low else 1.0
        shift = -low * scale if high > low else 0.0
        tables.append(np.arange(256) * scale + shift)  # as PIL has it: what is cut must be the same
    return looked_up(planes, tables)


@on_planes
def equalize(planes: np.ndarray) -> np.ndarray:
    """Each plane's levels spread so that all are equally frequent."""
    tables = []
    for plane in torch.from_numpy(planes):
        counts = torch.bincount(plane.flatten(), minlength=256).numpy()
        last = counts[counts.nonzero()[0][-1]]
        step = (counts.sum() - last) // 255
        below = counts.cumsum() - counts
        tables.append((below + step // 2) // step if step else np.arange(256))
    return looked_up(planes, tables)


@on_planes
def brighten(planes: np.ndarray) -> np.ndarray:
    """1.36 times as bright, cut to whole levels."""
    return looked_up(planes, [np.arange(256) * 34 // 25] * 3)


@on_planes
def sharpen(planes: np.ndarray) -> np.ndarray:
    """Each pixel 1.36 times as far from the smoothed one, edges left as they are.

    Smoothed is the mean of 3 x 3, the centre counted five times, rounded; the result is cut.
    """
    levels = planes.astype(np.int16)
    centre = levels[:, 1:-1, 1:-1]
    sums = levels[:, :-2] + levels[:, 1:-1]
    sums += levels[:, 2:]  # (3, R - 2, R)
    smooth = sums[:, :, :-2] + sums[:, :, 1:-1]
    smooth += sums[:, :, 2:]  # (3, R - 2, R - 2)
    smooth += 4 * centre
    smooth += 6  # 13 being odd, this rounds
    smooth //= 13
    sharp = (centre - smooth) * 9 // 25 + centre
    sharpened = planes.copy()
    sharpened[:, 1:-1, 1:-1] = sharp.clip(0, 255)
    return sharpened


def random_sign() -> int:
    return 1 if torch.rand(()) < 0.5 else -1


def translate(pixels: Tensor, x: int, y: int) -> Tensor:
    """Shift by whole pixels, both ways equally likely; what is uncovered is grey."""
    sign = random_sign()
    x, y = sign * x, sign * y
    return F.pad(pixels, (x, -x, y, -y), value=GREY)


@on_planes
def shear_rows(planes: np.ndarray, slope: float) -> np.ndarray:
    """Row y moves to the left by `slope` times the distance of its centre from the top edge,
    bilinearly; what is uncovered is grey."""
    size = planes.shape[1]
    shifts = slope * (np.arange(size) + 0.5)
    whole = np.floor(shifts).astype(int)
    reach = abs(whole).max() + 1
    padded = np.full((3, size, size + 2 * reach), GREY, dtype=np.uint8)
    padded[:, :, reach : reach + size] = planes
    # Of each row the part that is seen, and one more pixel to interpolate with: (3, R, R + 1).
    seen = sliding_window_view(padded, size + 1, axis=2)[:, np.arange(size), reach + whole]
    seen = seen.astype(np.uint16)
    share = np.rint(256 * (shifts - whole)).astype(np.uint16)[:, None]  # of the right pixel, / 256
    mixed = seen[:, :, :-1] * (256 - share)
    mixed += seen[:, :, 1:] * share
    mixed += 128  # so that it is rounded
    mixed >>= 8
    return mixed.astype(np.uint8)


def shear_x(pixels: Tensor, slope: float) -> Tensor:
    """Shear by a slope of a random sign; the top left corner stays."""
    return shear_rows(pixels, random_sign() * slope)


def shear_y(pixels: Tensor, slope: float) -> Tensor:
    return shear_x(pixels.mT.contiguous(), slope).mT.contiguous()


@functools.lru_cache(maxsize=4)  # two for each size that is in use; a megabyte each at 384
def rotated_places(size: int, degrees: float) -> Tensor:
    """Where pixels of a turned square are from, (1, R, R, 2), corners being at -1 and 1."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    return F.affine_grid(torch.tensor([[[cos, sin, 0.0], [-sin, cos, 0.0]]]), [1, 3, size, size],
                         align_corners=False)


def rotate(pixels: Tensor, degrees: float) -> Tensor:
    """Turn about the centre, both ways equally likely, bilinearly; grey outside."""
    places = rotated_places(pixels.shape[1], random_sign() * degrees)
    # Outside it reads zeros, so grey must be the zero.
    turned = F.grid_sample(pixels[None] - float(GREY), places, align_corners=False)[0]
    turned += GREY + 0.5  # so that it is rounded
    return torch.from_numpy(turned.numpy().astype(np.uint8))  # a third of torch's time


# Level 7 of 10 of the usual random augmentation.
OPERATIONS = (
    lambda pixels: pixels,
    autocontrast,
    equalize,
    brighten,
    sharpen,
    lambda pixels: shear_x(pixels, 0.21),
    lambda pixels: shear_y(pixels, 0.21),
    lambda pixels: translate(pixels, 7, 0),
    lambda pixels: translate(pixels, 0, 7),
    lambda pixels: rotate(pixels, 21.0),
)
