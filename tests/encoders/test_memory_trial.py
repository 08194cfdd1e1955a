"""What an encoder takes for one large input is told before it is tried."""

import pytest
import torch
import transformers

from common.errors import InputError
from encoders import memory_trial
from encoders.loading import load_encoder
from encoders.memory_trial import LargestOperation, check_memory
from model import DualEncoder


def test_a_photo_that_no_memory_holds_is_told_before_it_is_tried(monkeypatch):
    """10 GB in a small encoder at 8192 pixels; the estimate itself takes none of it."""
    encoder = load_encoder("small-convnext", "image", 64)
    monkeypatch.setattr(memory_trial, "available_memory", lambda: 10**9)
    with pytest.raises(InputError, match=r"^--image_res 8192: .* at least \d\.\d GB .* 1\.0 GB"):
        DualEncoder(encoder, load_encoder("tiny-bert", "text", 64, range(99)), embed_size=8,
                    image_res=8192)


def test_a_photo_of_too_many_tokens_is_refused():
    encoder = load_encoder("small-vit", "image", 64)
    with pytest.raises(InputError, match="^--image_res 8192: .* pairs"):
        check_memory(encoder, "--image_res 8192: a photo", True,
                     pixel_values=(1, 3, 8192, 8192), interpolate_pos_encoding=True)


def test_a_caption_that_no_memory_holds_is_told_before_it_is_tried():
    """T5 has a table of all pairs of tokens."""
    encoder = transformers.T5EncoderModel(transformers.T5Config(
        vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(InputError, match="^--max_tokens 1000000: "):
        DualEncoder(load_encoder("small-convnext", "image", 64), encoder, embed_size=8,
                    image_res=64, max_tokens=10**6)


def test_the_largest_operation_is_counted_with_its_arguments():
    with LargestOperation() as largest:
        torch.zeros(3, 4) @ torch.zeros(4, 5)
        torch.zeros(9).sum()
    assert largest.bytes == 4 * (3 * 4 + 4 * 5 + 3 * 5)


def test_usual_sizes_are_neither_warned_of_nor_changed(monkeypatch):
    encoder = load_encoder("small-vit", "image", 64)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    monkeypatch.setattr(memory_trial, "warn", lambda line: pytest.fail(line))
    check_memory(encoder, "a photo", True, pixel_values=(1, 3, 1024, 1024),
                 interpolate_pos_encoding=True)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
