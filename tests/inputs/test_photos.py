"""Photos against plain PIL: finding, checking, resizing, augmenting, normalising."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.photos import array, noise, save
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import v2 as T
from torchvision.transforms.v2 import functional as TF

from common.errors import InputError
from inputs import photos
from inputs.photos import (
    CLIP_MEAN,
    CLIP_STD,
    OPERATIONS,
    PhotoDataset,
    find_photos,
    load_photo,
    photo_fault,
)

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


# ------------------------------------------------------------------------------ finding photo files


SOURCE = Path("x.json")


def test_photos_are_found_by_relative_path_or_bare_name(tmp_path):
    save(tmp_path, ["val2014/1.jpg", "1.jpg", "2.png"])
    found = find_photos(["val2014/1.jpg", "1.jpg", "test2014/2.png"], SOURCE, tmp_path)
    assert found == [tmp_path / name for name in ("val2014/1.jpg", "1.jpg", "2.png")]


@pytest.mark.parametrize(("case", "message"), [
    ("folder", "nothing is not a folder"), ("empty", "not a folder with photos"),
    ("missing", "1 of 2 photos of x.json .*gone.jpg, is missing"),
    ("broken", "2 of 2 photos of x.json .*here.jpg, is cut short")])
def test_photos_that_cannot_be_used(tmp_path, case, message):
    folder, names = tmp_path / "photos", ["here.jpg", "gone.jpg"]
    folder.mkdir()
    if case == "missing":
        save(folder, names[:1])
    if case == "broken":
        (folder / "here.jpg").write_text("no photo")
    with pytest.raises(InputError, match=message) as caught:
        find_photos(names, SOURCE, tmp_path / "nothing" if case == "folder" else folder)
    assert "\n" not in str(caught.value)


def encoded(kind):
    buffer = io.BytesIO()
    noise().save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(("content", "fault"), [
    (encoded("JPEG"), None), (encoded("PNG"), None), (encoded("GIF"), None),
    (encoded("JPEG") + bytes(10), None), (encoded("JPEG") + bytes(5000), None),
    (encoded("PNG") + bytes(5000), None),
    (encoded("JPEG")[:-2][:1500], "cut short"), (encoded("PNG")[:1500], "cut short"),
    (encoded("JPEG")[:20], "cut short"), (b"", "cut short"), (b"A text.\n" * 50, "cut short"),
    (None, "missing")])
def test_faults_of_a_photo(tmp_path, content, fault):
    path = tmp_path / "photo.jpg"
    if content is not None:
        path.write_bytes(content)
    found = photo_fault(path)
    assert found is None if fault is None else fault in found
    if fault == "cut short":
        with pytest.raises(InputError, match="photo.jpg cannot be decoded"):
            load_photo(path)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK"])
def test_photos_of_every_mode_become_rgb(tmp_path, mode):
    path = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    image = noise().convert(mode)
    image.save(path)
    got = load_photo(path)
    assert got.mode == "RGB"
    np.testing.assert_array_equal(array(got), array(image.convert("RGB")))


# ------------------------------------------------------------------------- resizing and normalising


@pytest.mark.parametrize("size", [16, 64])
def test_evaluation_resizes_plainly(tmp_path, size):
    wanted = np.asarray(noise().resize((size, size), Image.Resampling.BICUBIC))
    got = photos.eval_pixels(noise(), size)
    assert got.dtype == torch.uint8
    np.testing.assert_array_equal(got.permute(1, 2, 0), wanted)
    noise().save(tmp_path / "x.png")
    dataset = PhotoDataset([tmp_path / "x.png"], size)
    assert len(dataset) == 1 and torch.equal(dataset[0], got)


def test_normalize():
    pixels = torch.randint(256, (2, 3, 4, 5), dtype=torch.uint8)
    mean, std = (torch.tensor(value)[:, None, None] for value in (CLIP_MEAN, CLIP_STD))
    got = photos.normalize(pixels, CLIP_MEAN, CLIP_STD)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, (pixels / 255 - mean) / std)


# ------------------------------------------------------------------------------------- augmentation


@pytest.mark.parametrize(("name", "plain"), [
    ("identity", lambda image: image),
    ("autocontrast", ImageOps.autocontrast),
    ("equalize", ImageOps.equalize),
    ("brightness", lambda image: ImageEnhance.Brightness(image).enhance(1.36)),
    ("sharpness", lambda image: ImageEnhance.Sharpness(image).enhance(1.36))])
def test_colour_operations_are_those_of_pil(name, plain):
    image = noise(low=30, high=200)
    got = apply(name, image)
    np.testing.assert_array_equal(array(got), array(plain(image)))
    assert name == "identity" or (array(got) != array(image)).mean() > 0.5


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
    monkeypatch.setattr(photos, "OPERATIONS", tuple(
        lambda image, name=name: (calls.append(name), image)[1] for name in NAMES))
    return calls


def test_two_of_ten_operations_each_with_probability_one_half(counted):
    torch.manual_seed(0)
    draws, image, numbers, twice = 4000, noise(4, 4), Counter(), 0
    for _ in range(draws):
        counted_before = len(counted)
        photos.train_pixels(image, 4)
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
    seen = []
    crop = T.RandomResizedCrop.make_params

    def record(self, images):
        seen.append(crop(self, images))
        return seen[-1]

    monkeypatch.setattr(T.RandomResizedCrop, "make_params", record)
    torch.manual_seed(0)
    ramp = Image.fromarray(np.tile(np.arange(100, dtype=np.uint8), (100, 1))).convert("RGB")
    rows = [photos.train_pixels(ramp, 8)[0, 0].int() for _ in range(400)]
    assert 160 < sum(bool(row[0] > row[-1]) for row in rows) < 240
    areas = [box["height"] * box["width"] / 10_000 for box in seen]
    assert len(areas) == 400 and 0.48 < min(areas) < 0.55 and 0.95 < max(areas) <= 1


def test_training_pixels():
    got = photos.train_pixels(noise(), 24)
    assert got.shape == (3, 24, 24) and got.dtype == torch.uint8
