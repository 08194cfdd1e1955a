"""Time a loader's work on one photo, on one core, against two baselines and decoding alone.

The baselines are written from the paper's description of the pipeline: a random resized crop and a
flip on PIL images, two of ten operations, then floats. One baseline does the operations through
PIL, the other through OpenCV on arrays, as is usual. The second one needs

    pip install opencv-python-headless
"""

import io
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import Row, make_row, time_in_turns
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as T
from torchvision.transforms.v2 import functional as TF

from inputs.augmentation import train_pixels
from inputs.photos import CLIP_MEAN, CLIP_STD, eval_pixels, load_photo

try:
    import cv2
except ImportError:
    cv2 = None

GREY = 128, 128, 128  # fills what an operation leaves empty


def make_photos(count: int, width: int, height: int, quality: int) -> list[bytes]:
    """Return the bytes of JPEGs that are as hard to decode as photos: noise of every scale."""
    rng, photos = np.random.default_rng(), []
    for _ in range(count):
        pixels = np.full((height, width, 3), 128.0)
        for scale in (64, 32, 16, 8, 4, 2, 1):
            noise = rng.normal(size=(height // scale + 1, width // scale + 1, 3)) * 12 * scale**0.4
            pixels += np.kron(noise, np.ones((scale, scale, 1)))[:height, :width]
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
        photos.append(buffer.getvalue())
    return photos


# ------------------------------------------------------------------------------------ the baselines


def decode(photo: Path) -> Image.Image:
    """Return a decoded photo."""
    return Image.open(photo).convert("RGB")


def crop_and_flip(image: Image.Image, size: int) -> Image.Image:
    """Return a random crop of a photo, scaled to size x size pixels, and flipped half of the time.
    """
    crop = T.RandomResizedCrop(size, scale=(0.5, 1.0), interpolation=InterpolationMode.BICUBIC)
    return T.RandomHorizontalFlip()(crop(image))


def apply_two(operations: Sequence[Callable], photo):
    """Return a photo after two random operations, each of them applied with probability 0.5."""
    for index in torch.randint(len(operations), (2,)).tolist():
        if torch.rand(()) < 0.5:
            photo = operations[index](photo)
    return photo


def random_sign() -> int:
    """Return 1 or -1, each half of the time."""
    return 1 if torch.rand(()) < 0.5 else -1


def plain_affine(image, angle=0.0, shift=(0, 0), shear=(0.0, 0.0), center=None):
    """Return a photo that is rotated, translated or sheared, in a random direction."""
    sign = random_sign()
    return TF.affine(image, sign * angle, [sign * x for x in shift], 1.0, [sign * x for x in shear],
                     InterpolationMode.BILINEAR, [128.0] * 3, center)


PLAIN_OPERATIONS = (
    lambda image: image, TF.autocontrast, TF.equalize,
    lambda image: TF.adjust_brightness(image, 1.36),
    lambda image: TF.adjust_sharpness(image, 1.36),
    lambda image: plain_affine(image, shear=(11.86, 0.0), center=[0, 0]),
    lambda image: plain_affine(image, shear=(0.0, 11.86), center=[0, 0]),
    lambda image: plain_affine(image, shift=(7, 0)),
    lambda image: plain_affine(image, shift=(0, 7)),
    lambda image: plain_affine(image, angle=21.0),
)


# The ten operations through OpenCV, on uint8 arrays (H, W, 3).


def cv_autocontrast(pixels: np.ndarray) -> np.ndarray:
    """Stretch each channel to the whole range of values."""
    low, high = (bound.astype(float) for bound in (pixels.min((0, 1)), pixels.max((0, 1))))
    stretched = (np.arange(256)[:, None] - low) * (255 / np.maximum(high - low, 1))
    return cv2.LUT(pixels, stretched.clip(0, 255).astype(np.uint8)[None])


def cv_equalize(pixels: np.ndarray) -> np.ndarray:
    """Equalise the histogram of each channel."""
    return cv2.merge([cv2.equalizeHist(plane) for plane in cv2.split(pixels)])


def cv_brighten(pixels: np.ndarray) -> np.ndarray:
    """Multiply all values by 1.36."""
    return cv2.LUT(pixels, (np.arange(256) * 1.36).clip(0, 255).astype(np.uint8))


def cv_sharpen(pixels: np.ndarray) -> np.ndarray:
    """Move each pixel away from the mean of its neighbours by the factor 1.36."""
    smooth = cv2.filter2D(pixels, -1, np.float32([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13)
    return cv2.addWeighted(pixels, 1.36, smooth, -0.36, 0)


def cv_warp(pixels: np.ndarray, matrix: Sequence) -> np.ndarray:
    """Apply an affine map, a (2, 3) matrix, to the positions of all pixels."""
    return cv2.warpAffine(pixels, np.float32(matrix), pixels.shape[1::-1], flags=cv2.INTER_LINEAR,
                          borderMode=cv2.BORDER_CONSTANT, borderValue=GREY)


def cv_rotate(pixels: np.ndarray) -> np.ndarray:
    """Rotate about the middle by 21 degrees, in a random direction."""
    middle = pixels.shape[1] / 2, pixels.shape[0] / 2
    return cv_warp(pixels, cv2.getRotationMatrix2D(middle, -21 * random_sign(), 1))


CV_OPERATIONS = (
    lambda pixels: pixels, cv_autocontrast, cv_equalize, cv_brighten, cv_sharpen,
    lambda pixels: cv_warp(pixels, [[1, -0.21 * random_sign(), 0], [0, 1, 0]]),
    lambda pixels: cv_warp(pixels, [[1, 0, 0], [-0.21 * random_sign(), 1, 0]]),
    lambda pixels: cv_warp(pixels, [[1, 0, 7 * random_sign()], [0, 1, 0]]),
    lambda pixels: cv_warp(pixels, [[1, 0, 0], [0, 1, 7 * random_sign()]]),
    cv_rotate,
)


def to_floats(image: Image.Image | np.ndarray) -> torch.Tensor:
    """Return a photo as normalised float32 pixels (3, H, W)."""
    return TF.normalize(TF.to_dtype(TF.to_image(image), torch.float32, scale=True),
                        list(CLIP_MEAN), list(CLIP_STD))


def plain_training(photo: Path, size: int) -> torch.Tensor:
    """Return a training photo by the baseline that works on PIL images."""
    return to_floats(apply_two(PLAIN_OPERATIONS, crop_and_flip(decode(photo), size)))


def cv_training(photo: Path, size: int) -> torch.Tensor:
    """Return a training photo by the baseline that does the operations through OpenCV."""
    return to_floats(apply_two(CV_OPERATIONS, np.array(crop_and_flip(decode(photo), size))))


def plain_evaluation(photo: Path, size: int) -> torch.Tensor:
    """Return an evaluation photo by the baseline: a plain bicubic resize."""
    return to_floats(decode(photo).resize((size, size), Image.Resampling.BICUBIC))


# ----------------------------------------------------------------------------------------- the rows


def training(photo: Path, size: int) -> torch.Tensor:
    """Return a training photo as this program's loader makes it, uint8."""
    return train_pixels(load_photo(photo), size)


def evaluation(photo: Path, size: int) -> torch.Tensor:
    """Return an evaluation photo as this program's loader makes it, uint8."""
    return eval_pixels(load_photo(photo), size)


def decoding(photo: Path, size: int) -> None:
    """Decode a photo and do nothing else."""
    with Image.open(photo) as image:
        image.load()


def compare(
    work: str, photos: list[Path], size: int, repeats: int, function: Callable,
    references: dict[str, Callable],
) -> list[Row]:
    """Return a row for each reference that this program's function is compared with.

    Args:
        work: the work in words.
        photos: the files that all functions process.
        size: R, the side of the pixels that they make.
        repeats: turns of each measurement.
        function: of this program.
        references: by what stands in the table.
    """
    def on_all_photos(call):
        return lambda: [call(photo, size) for photo in photos]

    rows = []
    for name, reference in references.items():
        times = time_in_turns(repeats, on_all_photos(function), on_all_photos(reference))
        per_photo = [[seconds / len(photos) for seconds in listed] for listed in times]
        rows.append(make_row("input", work, name, per_photo, inverse=reference is not decoding))
    return rows


def input_rows(short: bool, repeats: int, device: str) -> list[Row]:
    """Return the loader's work on training photos of two sizes, and on evaluation photos.

    This program leaves normalising to the device, where it is a small share of an encoder's work.
    There is no baseline through OpenCV for evaluation photos, which need no operation.

    Args:
        short: whether to take tiny sizes.
        repeats: turns of each measurement.
        device: not used; all of it is work of a CPU.
    """
    if cv2 is None:
        print("rows beside OpenCV are left out: pip install opencv-python-headless",
              file=sys.stderr)
    threads, rows = torch.get_num_threads(), []
    torch.set_num_threads(1)
    cases = (("training", training, cv_training, plain_training, (500, 375, 90), 384),
             ("training", training, cv_training, plain_training, (192, 192, 75), 96),
             ("evaluation", evaluation, None, plain_evaluation, (500, 375, 90), 384))
    with tempfile.TemporaryDirectory() as folder:
        for name, function, with_cv, plain, (width, height, quality), size in cases:
            photos = []
            for content in make_photos(2 if short else 64, width, height, quality):
                photos.append(Path(folder) / f"{width}_{len(photos)}.jpg")
                photos[-1].write_bytes(content)
            references = {"PIL and floats take (times ours)": plain, "decoding alone": decoding}
            if with_cv is not None and cv2 is not None:
                cv2.setNumThreads(1)
                references = {"OpenCV and floats take (times ours)": with_cv, **references}
            if short:
                size //= 8
            rows += compare(f"{name}: a photo of {width} x {height}, to {size} x {size}", photos,
                            size, repeats, function, references)
    torch.set_num_threads(threads)
    return rows
