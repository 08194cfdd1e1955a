"""Photos against plain PIL: finding, checking, resizing, normalising."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.photos import array, noise, save
from PIL import Image

from common.errors import InputError
from inputs import photos
from inputs.fitting import PhotoDataset
from inputs.photos import (
    CLIP_MEAN,
    CLIP_STD,
    find_photos,
    load_photo,
    photo_fault,
)

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
