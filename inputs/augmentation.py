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
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

GREY = 128  # of what a warp uncovers
ATTEMPTS = 10  # crops that are drawn until one fits


class Draws(NamedTuple):
    """What is random about a training photo, but for the signs of its operations."""

    box: tuple[int, int, int, int]  # left, top, right, bottom of the crop
    flip: bool
    operations: list[int]  # those that are applied, in this order


def draw(width: int, height: int) -> Draws:
    """Draw the augmentation of a photo: a crop, a flip half of the time, and two of ten operations,
    drawn with replacement and each applied half of the time.

    All numbers come from one call: each call costs far more than what is done with its numbers.

    Args:
        width, height: of the photo, in pixels.
    """
    flip, *numbers = torch.rand(7 + 2 * ATTEMPTS).tolist()
    operations = [int(len(OPERATIONS) * numbers[which]) for which in (0, 1)
                  if numbers[2 + which] < 0.5]
    return Draws(crop_box(width, height, numbers[4:]), flip < 0.5, operations)


def crop_box(width: int, height: int, numbers: Sequence[float]) -> tuple[int, int, int, int]:
    """Return the box of the usual random crop (torchvision's `RandomResizedCrop`): half to all of
    the area, sides 3 : 4 to 4 : 3, anywhere; the middle where ten such boxes do not fit.

    Args:
        width, height: of the photo, in pixels.
        numbers: 2 + 2 * `ATTEMPTS`, uniform in [0, 1).

    Returns:
        Left, top, right and bottom, in pixels.
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
    """Crop and flip an RGB image, and change it by two of ten operations: uint8 (3, size, size)."""
    box, flip, operations = draw(image.width, image.height)
    pixels = resized_crop(image, box, size)
    if flip:
        pixels = pixels.flip(2)
    for operation in operations:
        pixels = OPERATIONS[operation](pixels)
    return pixels


def resized_crop(image: Image.Image, box: tuple[int, int, int, int], size: int) -> Tensor:
    """Resize a part of an RGB image bicubically: uint8 (3, size, size), within a level of PIL's.

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


def through_pil(operation: Callable) -> Callable:
    """Return an operation of PIL that treats each colour alone as one on tensors (3, R, R).

    PIL takes planes faster than it puts pixels of three together.
    """
    def on_planes(pixels: Tensor) -> Tensor:
        return torch.from_numpy(np.stack([
            np.asarray(operation(Image.fromarray(plane))) for plane in pixels.numpy()]))

    return on_planes


def sharpen(pixels: Tensor, factor: float) -> Tensor:
    """Move pixels (3, R, R) away from those of a smooth copy, of weights 1 around a 5; the border
    stays.

    The pixels are PIL's, whose smooth ones are rounded and whose result is cut off, in a third of
    its time.
    """
    inner, values = (slice(None), slice(1, -1), slice(1, -1)), pixels.numpy().astype(np.float32)
    rows = values[:, :-2] + values[:, 1:-1] + values[:, 2:]  # (3, R - 2, R)
    smooth = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * values[inner]
    smooth = np.floor(smooth * np.float32(1 / 13) + np.float32(0.5))
    sharp = smooth + np.float32(factor) * (values[inner] - smooth)
    result = pixels.clone()
    result.numpy()[inner] = sharp.clip(0, 255)
    return result


def random_sign() -> int:
    """Return 1 or -1, both equally likely."""
    return 1 if torch.rand(()) < 0.5 else -1


def translate(pixels: Tensor, x: int, y: int) -> Tensor:
    """Shift pixels (3, R, R) by `x` and `y`, either way equally likely; the rest is grey."""
    sign = random_sign()
    x, y = sign * x, sign * y
    return F.pad(pixels, (x, -x, y, -y), value=GREY)


@functools.lru_cache(maxsize=12)  # both signs of three for two sizes; a megabyte each at 384
def sampling_grid(size: int, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """Return (1, R, R, 2), where a warped square's pixels are from; corners are at -1 and 1."""
    return F.affine_grid(torch.tensor([matrix]), [1, 3, size, size], align_corners=False)


def warp(pixels: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """Warp pixels (3, R, R) bilinearly; what is outside is grey.

    Args:
        matrix: (2, 3), takes places (x, y, 1) of the result to where they are from, where corners
            are at -1 and 1.
    """
    # Outside it reads zeros, so grey must be the zero.
    warped = F.grid_sample(pixels[None] - float(GREY), sampling_grid(pixels.shape[1], matrix),
                           align_corners=False)[0]
    warped += GREY + 0.5  # so that it is rounded
    return torch.from_numpy(warped.numpy().astype(np.uint8))  # a third of torch's time


def shear(pixels: Tensor, x: float, y: float) -> Tensor:
    """Shear pixels (3, R, R) by slopes of a random sign; the top left corner stays."""
    sign = random_sign()
    x, y = sign * x, sign * y
    return warp(pixels, ((1.0, x, x), (y, 1.0, y)))


def rotate(pixels: Tensor, degrees: float) -> Tensor:
    """Turn pixels (3, R, R) about their centre, both ways equally likely."""
    angle = random_sign() * math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    return warp(pixels, ((cos, sin, 0.0), (-sin, cos, 0.0)))


# Level 7 of 10 of the usual random augmentation.
OPERATIONS = (
    lambda pixels: pixels,
    through_pil(ImageOps.autocontrast),
    through_pil(ImageOps.equalize),
    lambda pixels: TF.adjust_brightness(pixels, 1.36),
    lambda pixels: sharpen(pixels, 1.36),
    lambda pixels: shear(pixels, 0.21, 0.0),
    lambda pixels: shear(pixels, 0.0, 0.21),
    lambda pixels: translate(pixels, 7, 0),
    lambda pixels: translate(pixels, 0, 7),
    lambda pixels: rotate(pixels, 21.0),
)
