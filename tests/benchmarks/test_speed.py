"""The table of speeds: each section runs, in a short form; nothing here asserts a time."""

import speed
import torch

from inputs.photos import CLIP_MEAN, CLIP_STD, normalize


def test_each_section_gives_a_table_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    rows = speed.main(["--short", "--repeats", "2", "--device", "cpu", "--save"])
    assert {row.section for row in rows} == set(speed.SECTIONS)
    assert all(len(row.ratios) == 2 and min(row.ratios) > 0 and row.seconds > 0 for row in rows)
    printed = capsys.readouterr().out
    assert printed.count("\n| ") == len(rows) + 1
    [saved] = tmp_path.iterdir()
    assert printed.strip() in saved.read_text() and "speed.py --short" in saved.read_text()


def test_the_plain_pipeline_makes_the_same_photos():
    """Same crops, flips and draws; pixels within rounding, but for the edges of the grey."""
    for seed, photo in enumerate(speed.make_photos(30)):
        torch.manual_seed(seed)
        plain = speed.plain_training(photo, 64)
        torch.manual_seed(seed)
        ours = speed.train_pixels(speed.decode(photo), 64)
        off = (normalize(ours, CLIP_MEAN, CLIP_STD) - plain).abs()
        assert off.mean() < 0.02 and (off > 0.06).float().mean() < 0.05
