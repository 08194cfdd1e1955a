"""What an image processor of transformers or timm does to photos, in the terms of this program.

An image processor is read, and not run: its numbers say how photos are fitted into a square
(`inputs.fitting.PhotoFit`) and by which mean and standard deviation pixels are standardised.
"""

import math
from typing import NamedTuple

import transformers

from common.errors import InputError
from encoders.hub import fetch
from inputs.fitting import RESAMPLINGS, PhotoFit

TIMM_FITS = {"center": "crop", "squash": "squash", "border": "pad"}


class PhotoPreparation(NamedTuple):
    """How photos become the pixels that an image encoder was trained with.

    Attributes:
        size: R, the side of the square photos in pixels.
        mean: Three numbers: pixels in [0, 1] are standardised by them.
        std: Three numbers.
        fit: How photos are fitted into the square.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: PhotoFit


def load_photo_preparation(name: str, **kwargs) -> PhotoPreparation:
    """Read the image processor of a model.

    Args:
        name: A local folder, or the name of a model on the Hub.
        **kwargs: Further arguments of `from_pretrained`.

    Raises:
        InputError: If the processor does something else to photos than can be expressed.
        Exception: Of a dozen types, if there is no image processor (`hub.fetch`).
    """
    processor = fetch(transformers.AutoImageProcessor, name, **kwargs)
    if hasattr(processor, "data_config"):
        return timm_preparation(processor.data_config)
    mean, std = pixel_statistics_of_processor(processor)
    size, fit = fit_of_processor(processor, name)
    return PhotoPreparation(size, mean, std, fit)


def load_pixel_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation alone of a model's image processor."""
    processor = fetch(transformers.AutoImageProcessor, name)
    if hasattr(processor, "data_config"):
        return tuple(processor.data_config["mean"]), tuple(processor.data_config["std"])
    return pixel_statistics_of_processor(processor)


def timm_preparation(config: dict) -> PhotoPreparation:
    """Read a data configuration of timm."""
    size = config["input_size"][-1]
    resized = math.floor(size / (config.get("crop_pct") or 0.875))
    fit = PhotoFit(TIMM_FITS[config.get("crop_mode") or "center"], config["interpolation"],
                   enlargement=resized / size, rounds_half_pixels=True)
    return PhotoPreparation(size, tuple(config["mean"]), tuple(config["std"]), fit)


def pixel_statistics_of_processor(processor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of pixels in [0, 1] that a processor amounts to.

    A processor of transformers maps a pixel x of 0 to 255 to (factor x - offset - mean) / std, of
    which each part can be left out.
    """
    factor = 255 * processor.rescale_factor if getattr(processor, "do_rescale", True) else 255.0
    factor = 1.0 if abs(factor - 1) < 1e-9 else factor  # 255 * (1 / 255)
    offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if getattr(processor, "do_normalize", True):
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    if getattr(processor, "include_top", False):  # EfficientNet's divides once more
        std = tuple(number * other for number, other in zip(std, processor.image_std))
    return (tuple((offset + number) / factor for number in mean),
            tuple(number / factor for number in std))


def fit_of_processor(processor, name: str) -> tuple[int, PhotoFit]:
    """Return R and the `PhotoFit` of an image processor of transformers.

    Raises:
        InputError: If its photos are no squares, or it does something else to them.
    """
    def side(size: object, key: str) -> int | None:
        return size.get(key) if isinstance(size, dict) else getattr(size, key, None)

    crops = getattr(processor, "do_center_crop", None)
    resized = side(processor.size, "shortest_edge")
    if resized is not None:
        fit = "crop"
    else:
        fit, resized = "squash", side(processor.size, "height")
        if resized is None or resized != side(processor.size, "width"):
            raise InputError(f"{name}: its image processor makes photos of {processor.size}, and "
                             "no squares; give --image_fit and --image_stats")
    size = side(processor.crop_size, "height") if crops else resized
    if crops and size != side(processor.crop_size, "width"):
        raise InputError(f"{name}: its image processor crops photos to {processor.crop_size}, and "
                         "to no square; give --image_fit and --image_stats")
    if not getattr(processor, "do_resize", True):
        raise InputError(f"{name}: its image processor leaves photos in their own size; give "
                         "--image_fit and --image_stats")
    return size, PhotoFit(fit, RESAMPLINGS[int(processor.resample)], library_of(processor),
                          resized / size)


def library_of(processor) -> str:
    """Return the library with which an image processor of transformers resizes photos."""
    backend = getattr(processor, "backend", None)  # transformers 5 says it
    is_torchvision = (backend == "torchvision" if isinstance(backend, str)
                      else type(processor).__name__.endswith("Fast"))
    return "torchvision" if is_torchvision else "pillow"
