"""What the commands show while they work: bars on a terminal, lines anywhere, nothing if --quiet.
Of several processes only the first one shows anything.

Results and errors are not its business: they are printed whatever --quiet says.
"""

import os
import sys
import warnings
from collections.abc import Iterable
from typing import TextIO

from tqdm import TqdmMonitorWarning, tqdm

from common.errors import one_line, printable
from common.ranks import is_main

quiet = False  # set by a command's main, from --quiet


def progress(iterable: Iterable | None, what: str, total: int | None = None, **more) -> tqdm:
    """`iterable` behind a bar that vanishes at its end; no bar where stderr is no terminal."""
    with warnings.catch_warnings():
        # It says so where memory is too short for the thread that keeps slow bars moving.
        warnings.simplefilter("ignore", TqdmMonitorWarning)
        return tqdm(iterable, what, total, leave=False, disable=quiet or not is_main() or None,
                    **more)


def warn(line: str) -> None:
    """A warning on stderr, above the bars, also if --quiet."""
    write(f"warning: {one_line(line)}", sys.stderr)


def note(line: str) -> None:
    """What a command that prints results does besides, on stderr; not if --quiet."""
    if not quiet:
        write(one_line(line), sys.stderr)


def say(text: str) -> None:
    """Print a line or some at once, above the bars where there are any; not if --quiet."""
    if not quiet:
        tell(text)


def tell(text: str) -> None:
    """Print results, in lines, whatever --quiet says."""
    write("\n".join(map(printable, text.split("\n"))), sys.stdout)


def write(text: str, stream: TextIO) -> None:
    """Write a line to a stream that may have been closed at its other end, as `| head` does: then
    nobody reads it, and the run goes on."""
    if not is_main():
        return
    try:
        tqdm.write(text, stream)
        stream.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # or the flush at the end of Python fails again
        os.close(nowhere)
