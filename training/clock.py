"""How long the parts of a training step take."""

import itertools
import time
from collections import Counter

import torch


class StepClock:
    """How long the parts of a step take. On a GPU it marks its stream with events, which are read
    when logs are written: no step waits for it. "data" is then the time that the GPU stood idle."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.marks = []  # (name of the part that ended here, when)

    def lap(self, name: str | None) -> None:
        """Book the time since the last lap under `name`; None: under nothing."""
        if self.cuda:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        else:
            mark = time.perf_counter()
        self.marks.append((name, mark))

    def seconds(self) -> Counter:
        """Name to seconds since this was last asked."""
        totals = Counter()
        if self.cuda and self.marks:
            self.marks[-1][1].synchronize()
        for (_, start), (name, end) in itertools.pairwise(self.marks):
            if name is not None:
                totals[name] += start.elapsed_time(end) / 1000 if self.cuda else end - start
        del self.marks[:-1]
        return totals
