"""Timing two pieces of work in turns; and the memory of this process."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

now = time.perf_counter  # or `time.process_time`, which other work on the machine disturbs less


class Row(NamedTuple):
    """A line of the table."""

    section: str
    what: str
    beside: str
    ratios: list[float]  # one for each repeat
    ours: float  # median
    unit: str = "s"  # of `ours`


def in_turns(repeats: int, ours: Callable, other: Callable, device: str = "cpu",
             fresh: Callable = tuple) -> tuple[list[float], list[float]]:
    """Seconds by `now` of both, called in turns on the same `fresh()` arguments, after one call
    each."""
    def clock(function, arguments):
        if device == "cuda":
            torch.cuda.synchronize()
        began = now()
        function(*arguments)
        if device == "cuda":
            torch.cuda.synchronize()
        return now() - began

    times = []
    for _ in range(repeats + 1):
        arguments = fresh()
        times.append((clock(ours, arguments), clock(other, arguments)))
    ours_times, other_times = zip(*times[1:])
    return list(ours_times), list(other_times)


def row(section, what, beside, times, inverse=False, unit="s") -> Row:
    """Ours over the other, or with `inverse` the other over ours."""
    ratios = [b / a if inverse else a / b for a, b in zip(*times)]
    return Row(section, what, beside, ratios, statistics.median(times[0]), unit)


def resident(field: str) -> float:
    """A field of the process's memory in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))
