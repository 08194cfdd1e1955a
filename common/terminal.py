"""What commands print while they work: progress bars, status lines, warnings and results.

Of several processes only the first one prints. --quiet silences bars, status lines and notes;
warnings and results are always printed. Errors are printed by `common.errors`.
"""

import os
import sys
import warnings
from collections.abc import Iterable
from typing import TextIO

from tqdm import TqdmMonitorWarning, tqdm

from common.errors import one_line, output_errors, printable
from common.ranks import is_main

quiet = False  # set by a command's main, from --quiet


def progress(
    iterable: Iterable | None, description: str, total: int | None = None, **kwargs
) -> tqdm:
    """Return `iterable` with a progress bar, which vanishes at its end.

    There is no bar where standard error is no terminal, with --quiet, or in any but the first
    process.

    Args:
        iterable: The items, or None for a bar that is moved by hand.
        description: What stands in front of the bar.
        total: The number of items, where `iterable` has no length.
        **kwargs: Further arguments of `tqdm`.
    """
    disable = True if quiet or not is_main() else None  # None lets tqdm look for a terminal
    with warnings.catch_warnings():
        # tqdm warns where memory is too short for the thread that keeps slow bars moving.
        warnings.simplefilter("ignore", TqdmMonitorWarning)
        return tqdm(iterable, description, total, leave=False, disable=disable, **kwargs)


def warn(line: str) -> None:
    """Print a warning of one line on standard error, also with --quiet."""
    write_above_bars(f"warning: {one_line(line)}", sys.stderr)


def print_note(line: str) -> None:
    """Print one line on standard error about what a command does besides its results.

    Nothing is printed with --quiet.
    """
    if not quiet:
        write_above_bars(one_line(line), sys.stderr)


def print_status(text: str) -> None:
    """Print one or more lines on standard output about how a command gets on; not with --quiet."""
    if not quiet:
        print_result(text)


def print_result(text: str) -> None:
    """Print one or more lines of results on standard output, also with --quiet."""
    lines = [printable(line) for line in text.split("\n")]
    write_above_bars("\n".join(lines), sys.stdout)


def write_above_bars(text: str, stream: TextIO) -> None:
    """Write lines to a stream, above progress bars, in the first process alone.

    The stream may have been closed at its other end, as by `| head`. Then nobody reads it, and the
    run goes on. It also goes on, and its other outputs are written, where the disk of standard
    output is full; `exit_on_input_error` then ends the command with an error.
    """
    if not is_main():
        return
    try:
        tqdm.write(text, stream)
        stream.flush()
    except OSError as error:
        if stream is sys.stdout and not isinstance(error, BrokenPipeError):
            output_errors.append(error)
        discarded = os.open(os.devnull, os.O_WRONLY)
        os.dup2(discarded, stream.fileno())  # or the flush at the end of Python fails again
        os.close(discarded)
