"""The clock that books the seconds of a step's parts."""

from collections import Counter

import torch

from training import clock
from training.clock import StepClock


def test_the_clock_books_every_second_once(monkeypatch):
    times = iter([0.0, 1.0, 3.0, 10.0, 10.5, 11.0])
    monkeypatch.setattr(clock.time, "perf_counter", lambda: next(times))
    laps = StepClock(torch.device("cpu"))
    for name in (None, "data", "loss"):
        laps.lap(name)
    assert laps.seconds() == Counter(data=1.0, loss=2.0)
    laps.lap(None)  # a validation of seven seconds
    laps.lap("data")
    laps.lap("data")
    assert laps.seconds() == Counter(data=1.0)
    assert laps.seconds() == Counter()
