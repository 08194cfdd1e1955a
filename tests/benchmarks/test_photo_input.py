"""The baselines of the photo benchmark make the same photos as the loader."""

import numpy as np
import photo_input
import pytest
import torch
from helpers.photos import array
from photo_input import CV_OPERATIONS, PLAIN_OPERATIONS, crop_and_flip, plain_evaluation, to_floats
from PIL import Image

from inputs.augmentation import OPERATIONS, train_pixels
from inputs.photos import CLIP_MEAN, CLIP_STD, eval_pixels, load_photo, normalize


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, paths = tmp_path_factory.mktemp("photos"), []
    for content in photo_input.make_photos(12, 120, 90, 90):
        paths.append(folder / f"{len(paths)}.jpg")
        paths[-1].write_bytes(content)
    return paths


def test_evaluation_is_the_same_to_rounding(photos):
    for photo in photos:
        ours = normalize(eval_pixels(load_photo(photo), 64)[None], CLIP_MEAN, CLIP_STD)[0]
        torch.testing.assert_close(ours, plain_evaluation(photo, 64), atol=1e-5, rtol=0)


def square(photo):
    return load_photo(photo).resize((64, 64), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("number", range(len(OPERATIONS)))
@pytest.mark.parametrize("library", ["PIL", "OpenCV"])
def test_an_operation_is_the_same_but_for_rounding_and_edges(photos, number, library):
    if library == "OpenCV":
        pytest.importorskip("cv2")
    for seed, photo in enumerate(photos):
        image = square(photo)
        torch.manual_seed(seed)
        ours = OPERATIONS[number](eval_pixels(image, 64)).permute(1, 2, 0).numpy().astype(int)
        torch.manual_seed(seed)
        theirs = (PLAIN_OPERATIONS[number](image) if library == "PIL"
                  else CV_OPERATIONS[number](np.array(image)))
        off = np.abs(ours - array(theirs))
        # OpenCV equalises by another formula, and is told to turn about W / 2, half a pixel off.
        assert off.mean() < (12 if library == "OpenCV" and number in (2, 9) else 3)


def test_a_training_photo_is_as_bright_and_as_varied(photos):
    """Crops and draws differ, so means over many draws are compared."""
    for pipeline in photo_input.plain_training, photo_input.cv_training:
        if pipeline is photo_input.cv_training:
            pytest.importorskip("cv2")
        torch.manual_seed(0)
        plain = torch.stack([pipeline(photo, 32) for photo in photos for _ in range(20)])
        ours = normalize(torch.stack([train_pixels(load_photo(photo), 32) for photo in photos
                                      for _ in range(20)]), CLIP_MEAN, CLIP_STD)
        assert plain.shape == ours.shape and plain.dtype == ours.dtype
        assert abs(plain.mean() - ours.mean()) < 0.1 and abs(plain.std() / ours.std() - 1) < 0.1


def test_floats_are_ours(photos):
    image = crop_and_flip(load_photo(photos[0]), 48)
    ours = normalize(eval_pixels(image, 48)[None], CLIP_MEAN, CLIP_STD)[0]
    torch.testing.assert_close(to_floats(image), ours, atol=1e-5, rtol=0)
