"""The benchmarks run, in a short form, and count right; nothing here asserts a time."""

import sys

import pytest
import torch
from conftest import ROOT
from torch.utils.flop_counter import FlopCounterMode

from inputs.photos import CLIP_MEAN, CLIP_STD, normalize

sys.path.insert(0, str(ROOT / "benchmarks"))

import growth  # noqa: E402
import speed  # noqa: E402

import training_step as training  # noqa: E402


def test_each_section_gives_a_table_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    rows = speed.main(["--short", "--repeats", "2", "--device", "cpu", "--save"])
    assert {row.section for row in rows} == set(speed.SECTIONS)
    assert all(len(row.ratios) == 2 and min(row.ratios) > 0 and row.seconds > 0 for row in rows)
    printed = capsys.readouterr().out
    assert printed.count("\n| ") == len(rows) + 1
    [saved] = tmp_path.iterdir()
    assert printed.strip() in saved.read_text() and "speed.py --short" in saved.read_text()


def test_growth_gives_a_row_for_each_size(capsys):
    growth.main(["--banks", "32", "64", "--photos", "20", "--batch", "8", "--dim", "4",
                 "--repeats", "1"])
    printed = capsys.readouterr().out
    assert "| 32 |" in printed and "| 64 |" in printed and "| 20 x 100 |" in printed


def test_the_plain_pipeline_makes_the_same_photos():
    """Same crops, flips and draws; pixels within rounding, but for the edges of the grey."""
    for seed, photo in enumerate(speed.make_photos(30)):
        torch.manual_seed(seed)
        plain = speed.plain_training(photo, 64)
        torch.manual_seed(seed)
        ours = speed.train_pixels(speed.decode(photo), 64)
        off = (normalize(ours, CLIP_MEAN, CLIP_STD) - plain).abs()
        assert off.mean() < 0.02 and (off > 0.06).float().mean() < 0.05


@pytest.mark.parametrize("length", [16, 40])
def test_necessary_flops_are_those_that_pytorch_counts(monkeypatch, length):
    monkeypatch.setattr(training, "TOKENS", length)
    flags = ["--image_encoder", "small-vit", "--batch_size_train", "4", "--queue_size", "8",
             "--embed_size", "0", "--text_encoder", "bert-192"]
    monkeypatch.setitem(training.encoders.BUILT_IN, "bert-192", lambda size, words:
                        training.BertConfig(vocab_size=words, hidden_size=192, num_hidden_layers=2,
                                            num_attention_heads=3, intermediate_size=500))
    run = training.make_run([*training.SMALL, *flags], "cpu")
    for encoder in run.model, run.momentum_model:  # it leaves out a CPU's fused attention
        encoder.image_encoder.set_attn_implementation("eager")
        encoder.text_encoder.set_attn_implementation("eager")
    batch = training.random_batch(run)
    with FlopCounterMode(display=False) as counter:
        training.bare_encoders(run, batch)
    assert counter.get_total_flops() == pytest.approx(training.necessary_flops(run), rel=0.01)
