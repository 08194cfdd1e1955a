"""An epoch on photos: its steps, its time limit, and the quarters that are compared."""

import sys
from collections import Counter
from types import SimpleNamespace

import photo_epoch
import pytest
from helpers.photos import six_photos

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


def test_an_epoch_ends_early_when_the_time_is_up(tmp_path, capsys):
    six_photos(tmp_path, "flickr8k")
    found = photo_epoch.main(["--photos", str(tmp_path), "--json_path", str(tmp_path), "--short",
                              "--workers", "0", "--seconds", "0"])
    assert (found.steps, found.of_steps) == (1, 3) and "| 1 of 3 |" in capsys.readouterr().out


def test_peaks_are_those_of_the_quarters_and_waits_those_of_the_clock(monkeypatch):
    """Of nine steps with memory of 1 to 9 MiB, a quarter is two."""
    memory = iter(range(1, 10))
    monkeypatch.setattr(photo_epoch, "start_peak", lambda device: None)
    monkeypatch.setattr(photo_epoch, "peak", lambda device: next(memory))
    monkeypatch.setattr(photo_epoch, "training_step", lambda run, batch: None)
    monkeypatch.setattr(photo_epoch, "close_workers", lambda loader: None)
    laps = Counter(data=1.0, encoders=2.0, loss=1.0)
    run = SimpleNamespace(
        device=SimpleNamespace(type="cpu"), train_mode=lambda: None, logs=[], global_step=0,
        clock=SimpleNamespace(lap=lambda name: None, seconds=lambda: laps), steps_per_epoch=9,
        options=SimpleNamespace(batch_size_train=32))
    batches = [SimpleNamespace(to=lambda device: None)] * 9
    found = photo_epoch.train_epoch(run, batches, 60)
    assert found == (9, 9, 9 * 32 / 4, 0.25, 2, 9)
