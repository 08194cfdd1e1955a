"""Processes that share work: in order, gone with the one that started them, a kill told of."""

import os
import signal
import time
from pathlib import Path

import pytest
from helpers.stopping import in_a_child, status_of

from common.errors import InputError
from common.pools import map_in_processes


def doubled(number):
    return 2 * number


def refused(number):
    if number == 3:
        raise InputError("three")
    return number


def killed(number):
    os.kill(os.getpid(), signal.SIGKILL)


def slow(path):
    path.write_text(str(os.getpid()))
    time.sleep(60)


@pytest.mark.parametrize("processes", [0, 1, 3])
def test_results_come_in_order(processes):
    assert list(map_in_processes(doubled, range(20), processes, "doubling", 3)) == [
        2 * number for number in range(20)]
    with pytest.raises(InputError, match="three"):
        list(map_in_processes(refused, range(20), processes, "counting"))


def test_a_process_that_is_killed_is_told_of():
    with pytest.raises(InputError, match="was counting was killed"):
        list(map_in_processes(killed, range(4), 2, "counting"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_none_outlives_the_process_that_started_it(tmp_path, number):
    places = [tmp_path / name for name in "ab"]
    child = in_a_child(lambda: list(map_in_processes(slow, places, 2, "waiting")))
    numbers = []
    deadline = time.monotonic() + 60
    while len(numbers) < 2 and time.monotonic() < deadline:
        numbers = [int(text) for place in places if place.is_file() and (text := place.read_text())]
        time.sleep(0.05)
    os.kill(child, number)
    status_of(child)
    while any(map(alive, numbers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(numbers) == 2 and not any(map(alive, numbers))


def alive(number):
    """Not one that has ended, and that nobody has waited for yet."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
