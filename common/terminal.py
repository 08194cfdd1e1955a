"""What the commands show while they work: bars on a terminal, lines anywhere, nothing if --quiet.

Results and errors are not its business: they are printed whatever --quiet says.
"""

import sys
from collections.abc import Iterable

from tqdm import tqdm

quiet = False  # set by a command's main, from --quiet


def progress(iterable: Iterable | None, what: str, total: int | None = None, **more) -> tqdm:
    """`iterable` behind a bar that vanishes at its end; no bar where stderr is no terminal."""
    return tqdm(iterable, what, total, leave=False, disable=quiet or None, **more)


def warn(line: str) -> None:
    """A warning on stderr, above the bars, also if --quiet."""
    tqdm.write(f"warning: {' '.join(line.split())}", file=sys.stderr)


def say(line: str) -> None:
    """Print a line at once, above the bars where there are any; not if --quiet."""
    if not quiet:
        tqdm.write(line)
        sys.stdout.flush()
