"""Measure the time of two pieces of work in turns, and the memory of this process."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

now = time.perf_counter  # or `time.process_time`, which other work on the machine disturbs less


class Row(NamedTuple):
    """A row of the table of speeds.

    Attributes:
        section: of `speed.SECTIONS`.
        work: the work of this program, in words.
        reference: the work that it is compared with, in words.
        ratios: of the two times, one for each repeat.
        value: the median time of the work, or what `unit` says.
        unit: of `value`.
    """

    section: str
    work: str
    reference: str
    ratios: list[float]
    value: float
    unit: str = "s"


def time_in_turns(
    repeats: int, work: Callable, reference: Callable, device: str = "cpu",
    make_arguments: Callable[[], tuple] = tuple,
) -> tuple[list[float], list[float]]:
    """Return the seconds of two functions that are called in turns, by the clock `now`.

    Args:
        repeats: turns that count, after a first one that does not.
        work: the function of this program.
        reference: the function that it is compared with.
        device: "cuda" waits for the GPU before and after each call.
        make_arguments: returns fresh arguments for each turn; both functions get the same ones.

    Returns:
        The seconds of `work` and those of `reference`, `repeats` each.
    """
    def measure(function, arguments):
        if device == "cuda":
            torch.cuda.synchronize()
        started = now()
        function(*arguments)
        if device == "cuda":
            torch.cuda.synchronize()
        return now() - started

    times = []
    for _ in range(repeats + 1):
        arguments = make_arguments()
        times.append((measure(work, arguments), measure(reference, arguments)))
    work_times, reference_times = zip(*times[1:])
    return list(work_times), list(reference_times)


def make_row(
    section: str, work: str, reference: str, times: tuple[list[float], list[float]],
    inverse: bool = False, unit: str = "s",
) -> Row:
    """Return a row of the table from the times of both pieces of work.

    Args:
        times: of the work of this program, and of its reference.
        inverse: whether the ratio is the reference's time over that of the work.
        unit: of `times`.
    """
    ratios = []
    for work_time, reference_time in zip(*times):
        ratios.append(reference_time / work_time if inverse else work_time / reference_time)
    return Row(section, work, reference, ratios, statistics.median(times[0]), unit)


def resident(field: str) -> float:
    """Return a field of this process's memory in MiB, such as "VmRSS"; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))
