"""The deliberate differences 10 to 12: which checkpoint is the best, photo operations, resuming."""

import numpy as np
import pytest
import torch
from helpers.runs import assert_same, command, final_state
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms.v2 import functional as TF

import checkpoint
import train
from common.device import use_bf16
from inputs.augmentation import OPERATIONS

AUTOCONTRAST, SHARPNESS, ROTATE = (OPERATIONS[number] for number in (1, 4, 9))

# -------------------------------------------------------------------------------- 10: the best one


def test_fidelity_note_10_the_best_may_be_in_the_middle_of_an_epoch(data, tmp_path, monkeypatch):
    """As released, only the ends of epochs compete: step 7 would win, of rsum 110."""
    score, found = train.score, iter([10.0, 90.0, 130.0, 110.0, 120.0, 100.0, 105.0])

    def scored(*arguments):
        metrics, embeds = score(*arguments)
        return metrics | {"rsum": next(found)}, embeds

    monkeypatch.setattr(train, "score", scored)  # at steps 0, 3, 6, 7, 10, 13, 14
    train.main(command(data, tmp_path, "--num_epochs", "2"))
    best = checkpoint.read(tmp_path / "model_best.pth.tar")
    assert (best["global_step"], best["epoch"], best["step"]) == (6, 0, 6)
    assert best["best_rsum"] == 130.0


# ------------------------------------------------------------------------------- 11: operations


def released_autocontrast(channel):
    """Its arithmetic: `-low` of a uint8 is 256 - low, so the table is shifted up, not down."""
    high, low = channel.max(), channel.min()
    scale = 255 / (float(high) - float(low))
    with np.errstate(over="ignore"):
        offset = float(-low) * scale
    return (np.arange(256) * scale + offset).clip(0, 255).astype(np.uint8)[channel]


def released_sharpness(pixels, factor):
    """Its arithmetic: floats beyond 0 to 255 are cast to uint8, modulo 256. (R, R), inside."""
    around = sum(np.roll(pixels.astype(np.float64), (down, right), (0, 1))
                 for down in (-1, 0, 1) for right in (-1, 0, 1))
    smooth = np.round((around + 4 * pixels) / 13)
    return (smooth + factor * (pixels - smooth)).astype(np.int64).astype(np.uint8)


def grey_photo(low, high):
    """uint8 (3, 32, 32), each channel with this least and largest value."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(low, high + 1, (3, 32, 32))
    pixels[:, 0, 0], pixels[:, 0, 1] = low, high
    return torch.from_numpy(pixels.astype(np.uint8))


def as_pil(pixels):
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def as_pixels(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def test_fidelity_note_11_autocontrast_of_a_channel_whose_minimum_is_above_0():
    pixels = grey_photo(40, 200)
    ours = AUTOCONTRAST(pixels)
    assert torch.equal(ours, as_pixels(ImageOps.autocontrast(as_pil(pixels))))
    assert ours.amin() == 0 and ours.amax() == 255 and ours.float().std() > 50
    released = released_autocontrast(pixels[0].numpy())
    assert (released == 255).all()  # white
    # Where the least value is 0, nothing wraps and both agree.
    dark = grey_photo(0, 200)
    released = torch.from_numpy(released_autocontrast(dark[0].numpy()))
    assert (AUTOCONTRAST(dark)[0].int() - released.int()).abs().max() <= 1


def test_fidelity_note_11_sharpness_of_an_edge():
    pixels = torch.zeros(3, 32, 32, dtype=torch.uint8)
    pixels[:, :, 16:] = 255
    ours = SHARPNESS(pixels)
    pil = as_pixels(ImageEnhance.Sharpness(as_pil(pixels)).enhance(1.36))
    assert (ours.int() - pil.int()).abs().max() <= 1
    assert torch.equal(ours, pixels)  # an edge of black and white cannot get sharper
    released = released_sharpness(pixels[0].numpy(), 1.36)[1:-1, 1:-1]
    assert released[:, 14].min() > 128 and released[:, 15].max() < 128  # it turned round


def test_fidelity_note_11_a_turn_is_about_the_centre(monkeypatch):
    """A photo that is its own half turn stays so; about (W/2, W/2), half a pixel off, it is not."""
    torch.manual_seed(0)
    half = torch.randint(0, 256, (3, 16, 32), dtype=torch.uint8)
    pixels = torch.cat([half, half.flip(1, 2)], dim=1)
    assert torch.equal(pixels, pixels.flip(1, 2))
    turned = ROTATE(pixels)
    assert (turned.int() - turned.flip(1, 2).int()).abs().max() <= 1  # rounding
    assert (turned.int() - pixels.int()).abs().max() > 50
    off = TF.rotate(pixels, 21.0, TF.InterpolationMode.BILINEAR, center=[16.5, 16.5], fill=128)
    assert (off.int() - off.flip(1, 2).int()).abs().max() > 10


# -------------------------------------------------------------------- 12: resuming, and precision


def test_fidelity_note_12_a_resumed_run_goes_on(data, tmp_path):
    """As released, it would be at epoch 0 again, with an Adam that has seen nothing."""
    train.main(command(data, tmp_path / "whole"))
    train.main(command(data, tmp_path / "parts", "--num_epochs", "2"))
    path = tmp_path / "parts" / "checkpoint.pth.tar"
    before = checkpoint.read(path)
    assert before["epoch"] == 2
    assert {int(moments["step"]) for moments in before["optimizer"]["state"].values()} == {14}
    train.main(command(data, tmp_path / "parts", "--resume", "auto"))
    after = checkpoint.read(path)
    assert after["epoch"] == 3
    assert {int(moments["step"]) for moments in after["optimizer"]["state"].values()} == {21}
    whole, parts = final_state(tmp_path / "whole"), final_state(tmp_path / "parts")
    assert_same(whole, parts)


@pytest.mark.parametrize("precision, able, used", [
    ("auto", True, True), ("auto", False, False), ("fp32", True, False), ("bf16", True, True)])
def test_fidelity_note_12_bfloat16_on_a_gpu_unless_fp32_is_asked_for(
        monkeypatch, precision, able, used):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **keywords: able)
    assert use_bf16(precision, torch.device("cuda")) == used
    assert use_bf16("auto", torch.device("cpu")) is False  # there both programs agree
