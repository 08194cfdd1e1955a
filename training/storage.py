"""A run's folder: files that are written whole or not at all, and read without running code."""

import argparse
import contextlib
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from common.errors import NO_ROOM, InputError, one_line
from common.terminal import say

NEWEST, BEST = "checkpoint.pth.tar", "model_best.pth.tar"
RUN_FILES = "*.pth.tar", "test_results.json", "events.out.tfevents.*"


def save(path: Path, state: dict) -> None:
    """Write a checkpoint so that `path` always holds a whole one: beside, flushed, renamed.

    The former one stays until the new one is on the disk, so there must be room for both.

    Raises:
        InputError: the folder cannot be written or the disk is full; `path` is as it was.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            part.unlink()
        # Where the disk is full, torch tells of its own file format instead.
        reason = "no room" if isinstance(error, RuntimeError) else one_line(error)
        raise InputError(f"checkpoint {path} cannot be written ({reason}): free some space or "
                         "choose another --logger_name; the last one is untouched") from error
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Have the disk keep a rename too. Some network file systems refuse; they need none."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def load(path: Path) -> object:
    """What `torch.save` wrote, its tensors mapped from the file rather than read.

    Every byte is compared with the file's own checksums: a damaged file would train on silently.

    Raises:
        InputError: missing, of another format, cut short, damaged, or holding code.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint {path}: train first, or name one with --resume")
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped and (damaged := zipfile.ZipFile(path).testzip()) is not None:
            raise ValueError(f"{damaged} is damaged")
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a remark on the pickle protocol of foreign files
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} is no checkpoint, or holds objects that are not numbers and "
                         "could run code; it is not loaded") from error
    except Exception as error:  # of two dozen kinds, as bytes come: all mean the same
        raise InputError(f"{path} is no checkpoint, or is cut short or damaged "
                         f"({type(error).__name__}): fetch or save it again") from error


def prepare_folder(folder: Path, fresh: bool) -> None:
    """Make the run's folder; a fresh run moves the files of a former one into `previous_N`.

    A former run that left no checkpoint left nothing to keep: its logs are written anew.

    Raises:
        InputError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob("*.part"):  # a save that was killed
            part.unlink()
        probe = folder / f".{os.getpid()}.part"
        probe.write_bytes(b"1")
        probe.unlink()
        if fresh and any(folder.glob(RUN_FILES[0])):
            move_aside(folder)
    except OSError as error:
        raise InputError(f"--logger_name {folder} cannot be written ({one_line(error)}): free "
                         "some space, or name another folder") from error


@contextlib.contextmanager
def written_to(folder: Path) -> Iterator[None]:
    """Inside, a disk that takes no more is an InputError that names the run's folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise InputError(f"--logger_name {folder} cannot be written ({one_line(error)}): free some "
                         "space, and go on with --resume auto") from error


def move_aside(folder: Path) -> None:
    """Move a run's files into the first `previous_N` that is not there yet, and say so."""
    number = 1
    while (aside := folder / f"previous_{number}").exists():
        number += 1
    aside.mkdir()
    for path in [path for pattern in RUN_FILES for path in folder.glob(pattern)]:
        path.rename(aside / path.name)
    say(f"{folder} held a run already: its files are now in {aside}")
