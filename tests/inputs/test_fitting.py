"""Photos fitted into a square, beside the image processors of transformers and torchvision."""

import numpy as np
import pytest
import torch
import transformers as T
from PIL import Image
from torchvision import transforms

from encoders.image_processors import (
    fit_of_processor,
    pixel_statistics_of_processor,
    timm_preparation,
)
from inputs.fitting import PUBLISHED_FIT, PhotoFit, fitted_pixels
from inputs.photos import eval_pixels, normalize

SHAPES = [(61, 45), (40, 77), (33, 33), (200, 31), (7, 90), (224, 225), (500, 333)]


def photo(width, height):
    noise = np.random.default_rng(width).integers(0, 256, (height // 3 + 2, width // 3 + 2, 3))
    return Image.fromarray(noise.astype(np.uint8)).resize((width, height), Image.BICUBIC)


def processor(kind, backend, **settings):
    """Return an image processor of transformers that resizes with a library."""
    suffix = "" if backend == "torchvision" else "Pil"
    return getattr(T, f"{kind}ImageProcessor{suffix}")(**settings)


def square(side):
    return {"height": side, "width": side}


@pytest.mark.skipif(not hasattr(T, "CLIPImageProcessorPil"), reason="of transformers 5 alone")
@pytest.mark.parametrize("backend", ["torchvision", "pil"])
@pytest.mark.parametrize(("kind", "settings"), [
    ("CLIP", dict(size={"shortest_edge": 32}, crop_size=square(32))),
    ("CLIP", dict(size={"shortest_edge": 37}, crop_size=square(32), resample=2)),
    ("CLIP", dict(size={"shortest_edge": 30}, do_center_crop=False)),
    ("Siglip", dict(size=square(32), resample=2)),
    ("Blip", dict(size=square(24))),
    ("EfficientNet", dict(size=square(38), crop_size=square(31), do_center_crop=True,
                          include_top=False))])
@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_are_those_of_the_image_processor(kind, settings, backend, shape):
    image, one = photo(*shape), processor(kind, backend, **settings)
    size, fit = fit_of_processor(one, "x")
    wanted = torch.as_tensor(np.asarray(one(
        image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]))
    if wanted.shape[1] != wanted.shape[2]:  # the processor leaves a rectangle
        top, left = ((length - size) // 2 for length in wanted.shape[1:])
        wanted = wanted[:, top : top + size, left : left + size]
    got = fitted_pixels(image, size, fit)
    assert got.dtype == torch.uint8 and got.shape == (3, size, size) and got.is_contiguous()
    assert torch.equal(got, wanted.to(torch.uint8))
    assert fit.library == {"pil": "pillow"}.get(backend, backend)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("crop_mode", "fit"), [("center", "crop"), ("squash", "squash")])
def test_pixels_are_those_of_timm(shape, crop_mode, fit):
    """By torchvision's own transforms, of which timm's evaluation is made."""
    config = {"input_size": (3, 32, 32), "crop_pct": 0.9, "crop_mode": crop_mode,
              "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.2,) * 3}
    prepared = timm_preparation(config)
    resize = transforms.Resize(35 if fit == "crop" else (35, 35),
                               transforms.InterpolationMode.BICUBIC)
    wanted = transforms.Compose([resize, transforms.CenterCrop(32), transforms.PILToTensor()])
    got = fitted_pixels(photo(*shape), prepared.size, prepared.fit)
    assert prepared.fit.fit == fit and torch.equal(got, wanted(photo(*shape)))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_padded_photo_is_whole_and_in_the_middle(shape):
    width, height = shape
    white = Image.new("RGB", shape, (255, 255, 255))
    pixels = fitted_pixels(white, 32, PhotoFit("pad"))
    inside = pixels[0] == 255
    rows, columns = inside.any(dim=1), inside.any(dim=0)
    assert torch.equal(inside, rows[:, None] & columns[None, :])
    assert (pixels[:, ~inside] == 0).all()
    sides = int(rows.sum()), int(columns.sum())
    assert sides[0 if height >= width else 1] == 32
    short = sides[1 if height >= width else 0]
    assert abs(short - 32 * min(shape) / max(shape)) <= 1
    for along in rows, columns:
        first, last = along.nonzero()[0].item(), 31 - along.nonzero()[-1].item()
        assert abs(first - last) <= 1


def test_the_published_fit_is_the_published_resize():
    image = photo(61, 45)
    wanted = np.asarray(image.resize((32, 32), Image.BICUBIC)).transpose(2, 0, 1)
    assert torch.equal(fitted_pixels(image, 32), eval_pixels(image, 32))
    assert np.array_equal(fitted_pixels(image, 32, PUBLISHED_FIT).numpy(), wanted)
    by_other_way = fitted_pixels(image, 32, PhotoFit(rounds_half_pixels=True))
    assert np.array_equal(by_other_way.numpy(), wanted)


@pytest.mark.parametrize("settings", [
    {}, dict(do_rescale=False), dict(do_normalize=False), dict(rescale_offset=True),
    dict(rescale_factor=1 / 127.5, rescale_offset=True), dict(include_top=False),
    dict(do_normalize=False, rescale_factor=1 / 127.5, rescale_offset=True, include_top=False)])
def test_pixels_are_standardised_as_by_the_image_processor(settings):
    one = T.EfficientNetImageProcessor(size=square(32), image_mean=[0.2, 0.3, 0.4],
                                       image_std=[0.3, 0.2, 0.5], **settings)
    image = photo(61, 45)
    wanted = one(image, return_tensors="pt")["pixel_values"]
    pixels = fitted_pixels(image, *fit_of_processor(one, "x"))
    got = normalize(pixels[None], *pixel_statistics_of_processor(one))
    torch.testing.assert_close(got, wanted.float(), rtol=1e-6, atol=1e-5)
