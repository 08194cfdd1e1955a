"""How long the parts of a training step take."""

import itertools
import time
from collections import Counter

import torch


class StepClock:
    """Measure how long the parts of a step take.

    On a GPU events mark the stream and are read when logs are written, so that no step waits for
    them. "data" is then the time for which the GPU stood idle.

    Args:
        device: where the steps are computed.
    """

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.marks = []  # (name of the part that ended here, when)

    def lap(self, name: str | None) -> None:
        """Book the time since the last lap under `name`, or under nothing if None."""
        if self.cuda:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        else:
            mark = time.perf_counter()
        self.marks.append((name, mark))

    def seconds(self) -> Counter:
        """Sum the seconds booked under each name since the last call."""
        totals = Counter()
        if self.cuda and self.marks:
            self.marks[-1][1].synchronize()
        for (_, start), (name, end) in itertools.pairwise(self.marks):
            if name is not None:
                totals[name] += start.elapsed_time(end) / 1000 if self.cuda else end - start
        del self.marks[:-1]
        return totals
