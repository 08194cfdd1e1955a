"""Processes of an experiment, a few at a time, one thread each."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Generic, TypeVar

from common import files
from common.errors import InputError, printable
from common.terminal import warn

ROOT = Path(__file__).resolve().parent.parent
Task = TypeVar("Task")


class Pool(Generic[Task]):
    """Runs that are trained side by side, each in a process of its own.

    Args:
        jobs: processes at a time.
        command: gives the command of a run.
        log: gives the file that the output of a run goes to.
    """

    def __init__(
        self, jobs: int, command: Callable[[Task], list[str]], log: Callable[[Task], Path]
    ):
        self.jobs, self.command, self.log = jobs, command, log
        self.processes: set[subprocess.Popen] = set()
        self.ended = False  # whether no further process shall start

    def train(self, runs: Sequence[Task]) -> Iterator[tuple[Task, str | None]]:
        """Train runs, and yield each when it has ended, with the reason if it has failed.

        The processes that are still at work end with the iterator.
        """
        self.ended = False
        with ThreadPoolExecutor(self.jobs) as threads:
            futures = {threads.submit(self.train_in_process, run): run for run in runs}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                self.end()

    def train_in_process(self, run: Task) -> str | None:
        """Train a run in its own process, and return the last line that it printed if it failed."""
        if self.ended:
            return "stopped"
        log = self.log(run)
        with files.open_log(log) as file:
            process = subprocess.Popen(
                self.command(run), stdout=file, stderr=subprocess.STDOUT, cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})
            self.processes.add(process)
            status = process.wait()
            self.processes.discard(process)
        if status == 0:
            return None
        lines = log.read_text(errors="replace").splitlines()
        return f"{lines[-1] if lines else 'no word'}; see {log}"

    def end(self) -> None:
        """Send SIGTERM to all processes that are at work; each saves its run."""
        self.ended = True
        for process in list(self.processes):
            with contextlib.suppress(OSError):
                process.terminate()


def make_folders(work: Path, results: Path) -> None:
    """Make the folders of an experiment, which --work and --results name.

    Raises:
        InputError: one cannot be made.
    """
    for path, flag in ((work, "--work"), (results, "--results")):
        files.check_path(path, flag)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{flag} {printable(str(path))} cannot be made ({error.strerror}): "
                             "name another folder") from error


@contextlib.contextmanager
def exit_on_signal() -> Iterator[None]:
    """On SIGTERM or SIGINT, end the command with one line, after all of its runs have ended."""
    before = signal.getsignal(signal.SIGTERM)

    def stop(number, frame):
        raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGTERM, stop)
        yield
    except KeyboardInterrupt:
        warn("stopped; the same command goes on")
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, before)
