"""Which of a run's processes this one is, as torchrun tells each of them in its environment.

Where these variables are not set, a run is a single process. Nothing else reads them. How the
processes communicate is in `common/processes.py`.
"""

import os


def world_size() -> int:
    """Return N, the number of processes of this run on all machines."""
    return max(1, environment_number("WORLD_SIZE", 1))


def rank() -> int:
    """Return the number of this process among all of the run, from 0."""
    return environment_number("RANK", 0) if world_size() > 1 else 0


def local_world_size() -> int:
    """Return the number of this run's processes on this machine."""
    return max(1, environment_number("LOCAL_WORLD_SIZE", world_size()))


def local_rank() -> int:
    """Return the number of this process among those on this machine, from 0: that of its GPU."""
    return environment_number("LOCAL_RANK", rank()) if world_size() > 1 else 0


def environment_number(name: str, default: int) -> int:
    """Return the number in a variable of the environment, or `default` if it holds none.

    `processes.check_environment` refuses an environment whose numbers are missing or wrong.
    """
    text = os.environ.get(name, "")
    return int(text) if is_number(text) else default


def is_number(text: str) -> bool:
    """Return whether a text is a number that a variable of the environment can hold."""
    return text.isdecimal() and len(text) < 10


def is_main() -> bool:
    """Return whether this is the process that prints and writes files for all."""
    return rank() == 0


def local_rows(batch_size: int) -> slice:
    """Return the rows of a global batch that are this process's.

    Args:
        batch_size: B, the number of pairs of all N processes together; N divides it.

    Returns:
        A slice of B / N rows.
    """
    size = batch_size // world_size()
    return slice(rank() * size, (rank() + 1) * size)
