"""The folder of a run: files are written whole or not at all, and read without running code."""

import argparse
import contextlib
import errno
import os
import pickle
import shutil
import socket
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch

from common import files, processes
from common.errors import NOT_WRITABLE, InputError, one_line, reraise_out_of_memory
from common.locks import LockHeld, lock
from common.ranks import is_main, world_size
from common.temporary import (
    check_writable,
    remove,
    remove_left_overs,
    temporary_file,
    temporary_path,
)
from common.terminal import print_status, warn

NEWEST, BEST, RESULTS = "checkpoint.pth.tar", "model_best.pth.tar", "test_results.json"
RUN_FILES = NEWEST, BEST, RESULTS, "events.out.tfevents.*"
FORMAT = "fne-1"  # of checkpoints
LOCK = ".lock"
# Errors that keep a file from being read now, though it may be whole.
NOT_NOW = {errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE,
           errno.ENOMEM}


class NotReadable(InputError):
    """A file exists and may be whole, but cannot be read now."""


def save(path: Path, state: dict) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    files.write(path, lambda file: torch.save(state, file), "checkpoint")


def save_twice(path: Path, other: Path, state: dict) -> None:
    """Write a checkpoint under two names, `path` first: as one file where the disk has hard links.

    Raises:
        InputError: it cannot be written.
    """
    save(path, state)
    link = temporary_path(other.parent, path.stat().st_ino)
    try:
        os.link(path, link)
        os.replace(link, other)
    except OSError:
        remove(link)
        save(other, state)


def load(path: Path, way_out: str = "train first, or name one with --resume") -> object:
    """Load a file that `torch.save` wrote, with its tensors mapped from the file.

    Every byte is compared with the file's own checksums: a damaged file would train on silently.

    Args:
        path: the file.
        way_out: what the user can do where there is no file, as the end of the message.

    Raises:
        InputError: it is missing, of another format, cut short, damaged, or holds code.
        NotReadable: it may be whole, but reading it is not allowed, or fails.
    """
    try:
        if not os.path.isfile(path):
            os.stat(path.parent)  # a folder that may not be looked into hides its files
            raise InputError(f"no checkpoint {path}: {way_out}")
        with open(path, "rb"):
            pass
        zipped = zipfile.is_zipfile(path)
        if zipped:
            check_zip(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a remark on the pickle protocol of foreign files
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        check_plain(state)
        return state
    except FileNotFoundError as error:
        raise InputError(f"no checkpoint {path}: {way_out}") from error
    except OSError as error:
        if error.errno not in NOT_NOW:
            raise unlike_a_checkpoint(path, error) from error
        raise NotReadable(f"checkpoint {path} cannot be read ({one_line(error)}): it may be whole, "
                          "so nothing is done in its place") from error
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} is no checkpoint, or holds objects that are not numbers and "
                         "could run code; it is not loaded") from error
    except InputError:
        raise
    except Exception as error:  # of two dozen kinds, as bytes come: all mean the same
        reraise_out_of_memory(error)
        raise unlike_a_checkpoint(path, error) from error


def unlike_a_checkpoint(path: Path, error: Exception) -> InputError:
    """Make the error of a file that does not read as a checkpoint, because of `error`."""
    return InputError(f"{path} is no checkpoint, or is cut short or damaged "
                      f"({type(error).__name__}): fetch or save it again")


def check_zip(path: Path) -> None:
    """Check that a checkpoint's zip file is as `torch.save` writes it: stored, and undamaged.

    Compressed parts would be mapped as weights without being unpacked, and could unpack to any
    size; so what the file declares is looked at first.

    Raises:
        ValueError: a part is compressed, longer than the file, or damaged.
    """
    with zipfile.ZipFile(path) as file:
        parts = file.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size
               for part in parts) or sum(part.file_size for part in parts) > path.stat().st_size:
            raise ValueError("compressed")
        if (damaged := file.testzip()) is not None:
            raise ValueError(f"{damaged} is damaged")


class FolderLock:
    """Keep a run's folder to one process, from `take` to the end of the `with`."""

    def __init__(self):
        self.file = None

    def take(self, folder: Path) -> None:
        """Lock a folder for this run, if this is its first process and the folder exists.

        Nothing is done if the folder is locked by this object already.

        Raises:
            InputError: another process trains here.
        """
        if self.file is not None or not folder.is_dir() or not is_main():
            return
        try:
            self.file = lock(folder / LOCK)
        except LockHeld as holder:
            raise InputError(f"--logger_name {folder}: {holder} trains in this folder now; wait "
                             "for its end, or name another folder") from holder

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *error) -> None:
        if self.file is not None:
            self.file.close()


def check_plain(value: object) -> None:
    """Check that a value is made of dense tensors, plain numbers, texts, lists and dictionaries.

    A checkpoint needs no more, and nothing else can surprise those who read it.

    Raises:
        ValueError: it holds something else.
    """
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise ValueError("a tensor that is not dense")
    elif isinstance(value, dict):
        for key, item in value.items():
            check_plain(key)
            check_plain(item)
    elif isinstance(value, list | tuple):
        for item in value:
            check_plain(item)
    elif isinstance(value, argparse.Namespace):
        check_plain(vars(value))
    elif isinstance(value, int) and not -2**63 <= value < 2**63:
        raise ValueError("a number beyond 64 bits")


def holds_run(folder: Path) -> bool:
    """Tell whether a run has left its files in a folder."""
    return any(any(folder.glob(pattern)) for pattern in RUN_FILES)


def check_own(path: Path, file_format: str) -> None:
    """Check that nothing is at a path but a file that this program wrote, whole or damaged.

    Args:
        path: the path.
        file_format: value of the entry "format", the first of such a file.

    Raises:
        InputError: something else is there.
    """
    is_own = path.is_file() and (
        path.stat().st_size == 0 or file_format.encode() in files.read_start(path, 2**20))
    if os.path.lexists(path) and not is_own:
        raise InputError(f"{path} is none of this program's files: move it away, or name another "
                         "folder")


def prepare_folder(
    folder: Path, lock: FolderLock, fresh: bool, best_of: Path | None = None
) -> None:
    """Make the folder of a run; a new run moves the files of a former one into `previous_N`.

    A former run that left no checkpoint left nothing to keep: its logs are overwritten.

    Args:
        folder: the folder.
        lock: taken, if it is not yet.
        fresh: whether the run is a new one.
        best_of: another folder, which the run began in, whose best checkpoint is copied here.

    Raises:
        InputError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.take(folder)
        remove_left_overs(folder)
        check_writable(folder)
        if fresh and any(os.path.lexists(folder / name) for name in (NEWEST, BEST)):
            move_aside(folder)
        for name in NEWEST, BEST:
            check_own(folder / name, FORMAT)
    except OSError as error:
        raise InputError(f"--logger_name {folder} cannot be written ({one_line(error)}): free "
                         "some space, or name another folder") from error
    if best_of is not None and best_of.resolve() != folder.resolve() and (
            best_of / BEST).is_file():
        with open(best_of / BEST, "rb") as best:
            files.write(folder / BEST, lambda file: shutil.copyfileobj(best, file), "checkpoint")


def prepare_run_folder(run, lock: FolderLock, goes_on_from: Path | None) -> None:
    """Make the folder of a run ready to be written, and see that all processes share it.

    Args:
        run: a `training.run.Run`; `best_rsum` is set back in place where its best checkpoint is
            gone.
        lock: taken, if it is not yet.
        goes_on_from: the checkpoint that the run goes on from; None for a new run.

    Raises:
        InputError: the folder cannot be made or written, or not all processes see it.
    """
    folder = run.options.logger_name
    if is_main():
        prepare_folder(folder, lock, fresh=goes_on_from is None,
                       best_of=goes_on_from and goes_on_from.parent)
        if run.best_rsum >= 0 and not (folder / BEST).is_file():
            warn(f"{goes_on_from} goes on without its best checkpoint, which is not beside it: "
                 "the best is found anew from here on")
            run.best_rsum = -1.0
    run.best_rsum = processes.broadcast_from_main(run.best_rsum)
    check_shared(folder)


def check_shared(folder: Path) -> None:
    """Check that every process of the run sees the folder of the first one, to read checkpoints.

    Raises:
        InputError: a machine does not see it.
    """
    if world_size() == 1:
        return
    with temporary_file(folder) if is_main() else contextlib.nullcontext((None, None)) as (_, made):
        mark = processes.broadcast_from_main(made)
        if not mark.exists():
            raise InputError(f"--logger_name {folder}: {socket.gethostname()} does not see the "
                             "folder of the first process: name one on a disk that all machines "
                             "share")
        processes.barrier()


@contextlib.contextmanager
def written_to(folder: Path) -> Iterator[None]:
    """Turn an error of a disk that takes no more, inside the `with`, into an InputError.

    Raises:
        InputError: it names the folder of the run.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        raise InputError(f"--logger_name {folder} cannot be written ({one_line(error)}): free some "
                         "space, and go on with --resume auto") from error


def move_aside(folder: Path) -> None:
    """Move a run's files into the first `previous_N` that does not exist yet, and print a line."""
    number = 1
    while os.path.lexists(aside := folder / f"previous_{number}"):
        number += 1
    aside.mkdir()
    for pattern in RUN_FILES:
        for path in list(folder.glob(pattern)):
            path.rename(aside / path.name)
    print_status(f"{folder} held a run already: its files are now in {aside}")
