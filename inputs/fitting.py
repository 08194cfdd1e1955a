"""How a photo of any shape becomes the square of pixels that an image encoder takes.

The published pipeline squashes it. Pretrained pairs were trained otherwise: CLIP's photos are
resized by their shorter side, and the square in the middle is taken. A `PhotoFit` says which, and
`fitted_pixels` does it, to the same pixels as the pair's own image processor.
"""

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from inputs.photos import eval_pixels, load_from

FITS = "squash", "crop", "pad"
RESAMPLINGS = "nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"  # by Pillow's number
LIBRARIES = "pillow", "torchvision"
LARGEST_ENLARGEMENT = 8.0


class PhotoFit(NamedTuple):
    """How photos are fitted into a square of R x R pixels, whatever R is.

    The defaults are the published evaluation.

    Attributes:
        fit: "squash" resizes both sides to R; "crop" resizes the shorter side to R and keeps the
            square in the middle; "pad" resizes the longer side to R and fills up with black.
        resampling: One of `RESAMPLINGS`.
        library: One of `LIBRARIES`, which resizes. Their pixels differ by a level here and there.
        enlargement: Photos are resized to R times this number, and R x R pixels in the middle of
            the result are kept.
        rounds_half_pixels: Whether the corner of the crop is rounded to the nearest even pixel
            where the margins differ by one, as torchvision's transforms do it. Otherwise it is
            rounded down, as transformers' image processors do it.
    """

    fit: str = "squash"
    resampling: str = "bicubic"
    library: str = "pillow"
    enlargement: float = 1.0
    rounds_half_pixels: bool = False

    def resized_shape(self, width: int, height: int, size: int) -> tuple[int, int]:
        """Return the (height, width) to which a photo is resized before it is cropped or padded.

        Args:
            width: Of the photo, in pixels.
            height: Of the photo, in pixels.
            size: R.
        """
        side = round(size * self.enlargement)
        if self.fit == "squash":
            return side, side
        short, long = sorted((width, height))
        if self.fit == "crop":
            long_side = int(side * long / short)
            return (side, long_side) if height <= width else (long_side, side)
        short_side = max(1, round(side * short / long))
        return (short_side, side) if height <= width else (side, short_side)


PUBLISHED_FIT = PhotoFit()


def fitted_pixels(image: Image.Image, size: int, fit: PhotoFit = PUBLISHED_FIT) -> Tensor:
    """Fit an RGB image into a square, as in evaluation: uint8 (3, size, size)."""
    if fit == PUBLISHED_FIT:
        return eval_pixels(image, size)  # the same pixels, faster
    height, width = fit.resized_shape(image.width, image.height, size)
    if fit.library == "pillow":
        resampling = Image.Resampling[fit.resampling.upper()]
        pixels = TF.pil_to_tensor(image.resize((width, height), resampling))
    else:
        pixels = TF.resize(TF.pil_to_tensor(image), [height, width],
                           InterpolationMode(fit.resampling), antialias=True)
    return center_square(pixels, size, fit.rounds_half_pixels)


def center_square(pixels: Tensor, size: int, rounds_half_pixels: bool) -> Tensor:
    """Return the square in the middle of an image, filled up with black where the image is smaller.

    Args:
        pixels: uint8 (3, height, width).
        size: R, the side of the square.
        rounds_half_pixels: See `PhotoFit`.

    Returns:
        uint8 (3, R, R).
    """
    height, width = pixels.shape[1:]
    lacking = max(0, size - width), max(0, size - height)
    if any(lacking):
        left, top = (lack // 2 for lack in lacking)
        right, bottom = (lack - lack // 2 for lack in lacking)
        pixels = TF.pad(pixels, [left, top, right, bottom])
        height, width = pixels.shape[1:]
    top, left = ((length - size) / 2 for length in (height, width))
    if rounds_half_pixels:
        top, left = round(top), round(left)
    top, left = int(top), int(left)
    square = pixels[:, top : top + size, left : left + size]
    return square.contiguous()


class PhotoDataset(Dataset):
    """Photos as evaluation sees them: item i is the photo i, uint8 (3, size, size).

    Args:
        photos: (N_i,).
        size: R, the side of the square photos in pixels.
        fit: How they are fitted into the square.
    """

    def __init__(self, photos: Sequence, size: int, fit: PhotoFit = PUBLISHED_FIT):
        self.photos, self.size, self.fit = photos, size, fit

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Tensor:
        return fitted_pixels(load_from(self.photos, index), self.size, self.fit)
