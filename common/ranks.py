"""Which of a run's processes this one is, as torchrun tells each of them in its environment.

Without torchrun, or whatever else sets these variables, a run is a single process. Nothing else
reads them; what the processes say to each other is in `common/processes.py`.
"""

import os


def world() -> int:
    """N, the processes of this run on all machines."""
    return max(1, number_in("WORLD_SIZE", 1))


def rank() -> int:
    """Which of them this is, from 0."""
    return number_in("RANK", 0)


def local_world() -> int:
    """How many of them share this machine."""
    return max(1, number_in("LOCAL_WORLD_SIZE", world()))


def local_rank() -> int:
    """Which of those this is, from 0: the number of its GPU."""
    return number_in("LOCAL_RANK", rank())


def number_in(name: str, default: int) -> int:
    """A number of the environment; what is none there is refused by `processes.together`."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 10 else default


def is_main() -> bool:
    """Whether this is the process that speaks and writes for all."""
    return rank() == 0


def own_rows(batch: int) -> slice:
    """The rows of a global batch of B pairs that are this process's: B / N of them."""
    size = batch // world()
    return slice(rank() * size, (rank() + 1) * size)
