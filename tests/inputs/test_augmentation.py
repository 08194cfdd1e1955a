"""The published augmentation against plain PIL, and its draws against torchvision's."""

from collections import Counter

import numpy as np
import pytest
import torch
from helpers.photos import array, noise
from PIL import Image, ImageEnhance, ImageOps
from scipy.stats import ks_2samp
from torchvision.transforms import v2 as T
from torchvision.transforms.v2 import functional as TF

from inputs import augmentation
from inputs.augmentation import OPERATIONS, draw, train_pixels

NAMES = ("identity", "autocontrast", "equalize", "brightness", "sharpness", "shear_x", "shear_y",
         "translate_x", "translate_y", "rotate")
SIZE = 65


def apply(name, image):
    """An operation by name, on a PIL image."""
    operation = OPERATIONS[NAMES.index(name)]
    return TF.to_pil_image(operation(TF.pil_to_tensor(image)))


def waves(size=SIZE):
    """A smooth picture, other in every place, so that a warp can be read off it."""
    y, x = np.mgrid[:size, :size] / size
    channels = 128 + 60 * np.sin(9 * x + y), 128 + 60 * np.cos(9 * y), 90 + 60 * np.sin(9 * x * y)
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


PLAIN_COLOURS = {
    "identity": lambda image: image,
    "autocontrast": ImageOps.autocontrast,
    "equalize": ImageOps.equalize,
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(1.36),
    "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(1.36),
}


@pytest.mark.parametrize("name", PLAIN_COLOURS)
def test_colour_operations_are_those_of_pil(name):
    image = noise(low=30, high=200)
    got = apply(name, image)
    np.testing.assert_array_equal(array(got), array(PLAIN_COLOURS[name](image)))
    assert name == "identity" or (array(got) != array(image)).mean() > 0.5


@pytest.mark.parametrize("name", PLAIN_COLOURS)
@pytest.mark.parametrize("side", [1, 2, 3, 17, 300])
def test_colour_operations_are_those_of_pil_whatever_the_levels(name, side):
    """One level, a few, all of them, and a colour that has only one."""
    for seed, (low, high) in enumerate([(0, 1), (7, 8), (255, 256), (0, 256), (3, 250), (90, 94)]):
        image = noise(side, side, low, high, seed)
        flat = Image.merge("RGB", [image.getchannel(0), Image.new("L", image.size, 9),
                                   image.getchannel(2)])
        for each in image, flat:
            np.testing.assert_array_equal(array(apply(name, each)),
                                          array(PLAIN_COLOURS[name](each)))


def warped(image, matrix):
    """PIL's own warp; its matrix (a, b, c, d, e, f) takes output places to input places."""
    return array(image.transform(image.size, Image.Transform.AFFINE, matrix,
                                 Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)))


PLAIN_WARPS = {
    "shear_x": lambda image, sign: warped(image, (1, 0.21 * sign, 0, 0, 1, 0)),
    "shear_y": lambda image, sign: warped(image, (1, 0, 0, 0.21 * sign, 1, 0)),
    "translate_x": lambda image, sign: warped(image, (1, 0, 7 * sign, 0, 1, 0)),
    "translate_y": lambda image, sign: warped(image, (1, 0, 0, 0, 1, 7 * sign)),
    "rotate": lambda image, sign: array(image.rotate(
        21 * sign, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128))),
}


@pytest.mark.parametrize("name", PLAIN_WARPS)
def test_warps_are_those_of_pil_with_both_signs(name):
    """Within rounding; along the edge of the grey, which a rotation has in four corners, more may
    differ."""
    edge = 2 * SIZE if name == "rotate" else SIZE  # pixels
    image = waves()
    wanted = {sign: PLAIN_WARPS[name](image, sign) for sign in (-1, 1)}
    signs = []
    for seed in range(40):
        torch.manual_seed(seed)
        got = array(apply(name, image))
        off = {sign: np.abs(got - wanted[sign]).max(axis=2) for sign in wanted}
        signs.append(min(off, key=lambda sign: off[sign].mean()))
        assert (off[signs[-1]] > 1).sum() <= edge
        assert off[-signs[-1]].mean() > 50
    assert 10 <= signs.count(1) <= 30


@pytest.mark.parametrize(("name", "share"), [
    ("shear_x", 0.21 / 2), ("shear_y", 0.21 / 2), ("translate_x", 7 / SIZE),
    ("translate_y", 7 / SIZE), ("rotate", None)])
def test_what_a_warp_uncovers_is_grey(name, share):
    got = array(apply(name, Image.new("RGB", (SIZE, SIZE), (250, 0, 250))))
    grey = (got == 128).all(axis=2)
    assert (grey | (got == [250, 0, 250]).all(axis=2)).mean() > 0.97  # the rest is a seam
    corners = grey[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.all() if name == "rotate" else corners.sum() in (1, 2)
    assert share is None or abs(grey.mean() - share) < 1.5 / SIZE


@pytest.mark.parametrize(("name", "axis"), [("shear_x", 0), ("shear_y", 1)])
def test_shears_keep_the_top_left_corner(name, axis):
    got = array(apply(name, waves()))
    edges = [np.abs(np.take(got - array(waves()), index, axis)).mean() for index in (0, -1)]
    assert edges[0] < 3 and edges[1] > 20


@pytest.fixture
def counted(monkeypatch):
    """Count calls of each operation instead of applying it; crop and flip do nothing."""
    calls = []
    monkeypatch.setattr(augmentation, "OPERATIONS", tuple(
        lambda image, name=name: (calls.append(name), image)[1] for name in NAMES))
    return calls


def test_two_of_ten_operations_each_with_probability_one_half(counted):
    torch.manual_seed(0)
    draws, image, numbers, twice = 4000, noise(4, 4), Counter(), 0
    for _ in range(draws):
        counted_before = len(counted)
        train_pixels(image, 4)
        applied = counted[counted_before:]
        numbers[len(applied)] += 1
        twice += len(applied) == 2 and applied[0] == applied[1]
    totals = Counter(counted)

    def within(count, trials, p):  # four standard deviations
        return abs(count - trials * p) < 4 * (trials * p * (1 - p)) ** 0.5

    assert all(within(totals[name], 2 * draws, 0.05) for name in NAMES)
    assert all(within(numbers[n], draws, p) for n, p in ((0, 0.25), (1, 0.5), (2, 0.25)))
    assert within(twice, draws, 0.25 * 0.1)  # drawn with replacement


def test_crop_and_flip(counted, monkeypatch):
    """Crops of half to all of the area, then a flip half of the time."""
    seen, crop_box = [], augmentation.crop_box

    def record(*arguments):
        seen.append(crop_box(*arguments))
        return seen[-1]

    monkeypatch.setattr(augmentation, "crop_box", record)
    torch.manual_seed(0)
    ramp = Image.fromarray(np.tile(np.arange(100, dtype=np.uint8), (100, 1))).convert("RGB")
    rows = [train_pixels(ramp, 8)[0, 0].int() for _ in range(400)]
    assert 160 < sum(bool(row[0] > row[-1]) for row in rows) < 240
    areas = [(right - left) * (bottom - top) / 10_000 for left, top, right, bottom in seen]
    assert len(areas) == 400 and 0.48 < min(areas) < 0.55 and 0.95 < max(areas) <= 1


def torchvision_box(width, height):
    """A crop as torchvision draws it."""
    crop = T.RandomResizedCrop(8, scale=(0.5, 1.0)).make_params([torch.empty(3, height, width)])
    left, top = crop["left"], crop["top"]
    return left, top, left + crop["width"], top + crop["height"]


@pytest.mark.parametrize(("width", "height"), [(500, 375), (192, 192), (300, 480), (9, 7)])
def test_crops_are_distributed_as_those_of_torchvision(width, height):
    """Both corners, sides, area and shape, which tell of the joint distribution as well."""
    def numbers(box):
        left, top, right, bottom = box
        w, h = right - left, bottom - top
        return left, top, right, bottom, w, h, w * h, w / h, left / (width - w + 1), left * top

    torch.manual_seed(0)
    draws = 3000
    ours = np.array([numbers(draw(width, height).box) for _ in range(draws)])
    plain = np.array([numbers(torchvision_box(width, height)) for _ in range(draws)])
    for a, b in zip(ours.T, plain.T, strict=True):
        assert ks_2samp(a, b, method="asymp").pvalue > 1e-4
    inside = (ours[:, :2] >= 0).all() and (ours[:, 2:4] <= [width, height]).all()
    assert inside and (ours[:, 4:6] > 0).all()


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000), (1, 999), (999, 1)])
def test_a_photo_that_no_crop_fits_gives_its_middle(width, height):
    boxes = {draw(width, height).box for _ in range(20)}
    assert boxes == {torchvision_box(width, height)}


@pytest.mark.parametrize(("box", "size"), [
    ((0, 0, 53, 37), 96), ((7, 3, 47, 36), 24), ((5, 5, 6, 6), 16), ((52, 0, 53, 37), 40)])
def test_a_resized_crop_is_that_of_pil_within_a_level(box, size):
    wanted = noise().crop(box).resize((size, size), Image.Resampling.BICUBIC)
    got = augmentation.resized_crop(noise(), box, size)
    assert got.dtype == torch.uint8 and got.is_contiguous()
    off = np.abs(got.permute(1, 2, 0).numpy().astype(int) - array(wanted))
    assert off.max() <= 1 and (off > 0).mean() < 0.05


def test_training_pixels_are_those_of_plain_pil():
    """The whole of it, for the same draws; pixels within a level or two but for grey edges, and
    what a later operation makes of a level."""
    means = []
    photo = Image.fromarray(array(waves(160)).astype(np.uint8)).resize((160, 120))
    for seed in range(60):
        torch.manual_seed(seed)
        plain = plain_training(photo, draw(*photo.size))
        torch.manual_seed(seed)
        off = np.abs(train_pixels(photo, SIZE).permute(1, 2, 0).numpy() - plain)
        means.append(off.mean())
    assert np.median(means) < 0.3 and max(means) < 5  # another sign or draw is off by 20 and more


def plain_training(photo, drawn):
    """A photo with the draws of a seed, of which the next are the signs."""
    image = photo.crop(drawn.box).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    image = ImageOps.mirror(image) if drawn.flip else image
    for operation in drawn.operations:
        name = NAMES[operation]
        if name in PLAIN_WARPS:
            sign = 1 if torch.rand(()) < 0.5 else -1
            # PIL's matrix says where pixels are from, and its rotation is anticlockwise.
            sign = sign if name.startswith("shear") else -sign
            image = Image.fromarray(PLAIN_WARPS[name](image, sign).astype(np.uint8))
        else:
            image = PLAIN_COLOURS[name](image)
    return array(image)


def test_training_pixels():
    got = train_pixels(noise(), 24)
    assert got.shape == (3, 24, 24) and got.dtype == torch.uint8 and got.is_contiguous()
