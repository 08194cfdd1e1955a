"""Folders that a command writes as a whole, in place of what it wrote there earlier.

Each folder holds a list of the files that were written, with a digest of each. A later command
replaces exactly these: what somebody put there or changed since stays.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from safetensors import SafetensorError

from common.errors import InputError, one_line
from common.files import flush_folder, read_json
from common.temporary import remove, remove_left_overs, temporary_folder, temporary_path
from common.terminal import print_note

LIST = ".written.json"
MAX_LIST_BYTES = 2**22
LONGEST_WAIT = 60  # seconds for another command that writes into the same folder
RENAME_EXCHANGE, AT_FDCWD = 2, -100  # of Linux
# How a file system says that it cannot exchange two names.
NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


def folder_place(path: Path, flag: str) -> Path:
    """Return where `replaced_folder` puts the folder of a flag, with all links resolved.

    Args:
        path: The flag's value.
        flag: The flag, with which error messages begin.

    Raises:
        InputError: If anything but an empty folder, or one that `replaced_folder` wrote, is there.
    """
    place = Path(os.path.realpath(path))
    check_replaceable(place, flag)
    return place


def check_replaceable(place: Path, flag: str) -> None:
    """Check that nothing, an empty folder, or one that `replaced_folder` wrote is at `place`.

    Raises:
        InputError: If something else is there, if it cannot be read, or if it is the working
            folder.
    """
    if not os.path.lexists(place):
        return
    try:
        if place.is_dir() and (not any(place.iterdir()) or written_files(place) is not None):
            if Path(os.getcwd()).is_relative_to(place):
                raise InputError(f"{flag} {place} is the working folder, or holds it: call the "
                                 "command from another one")
            return
    except OSError as error:
        raise InputError(f"{flag} {place} cannot be read ({one_line(error)}): name another one"
                         ) from error
    raise InputError(f"{flag} {place} cannot be written: what is there already is no empty folder, "
                     f"and none that {flag} wrote; name another one, or move this one away")


def written_files(folder: Path) -> dict[str, str] | None:
    """Return the digests of the files that were written to a folder, by their path in it.

    Returns:
        The digests; None if the folder has no list of them.
    """
    path = folder / LIST
    if path.is_symlink() or not path.is_file():
        return None
    try:
        content = read_json(path, MAX_LIST_BYTES)
    except InputError:
        return None
    return content if isinstance(content, dict) else None


@contextlib.contextmanager
def replaced_folder(place: Path, flag: str, may_stay: Collection[str] = ()) -> Iterator[Path]:
    """Make a new folder, and put it in place of another one at the end of the `with`.

    The folder at `place` is replaced in one step where the file system can exchange two names. Else
    it is renamed, and removed once the new one is there. If anything fails, it is as it was.

    Args:
        place: What `folder_place` returned.
        flag: The flag, with which error messages begin.
        may_stay: Names of files that stay as they are if somebody changed them. Any other file that
            was changed is an error where a new one has its name.

    Yields:
        An empty folder to write into.

    Raises:
        InputError: If the folder cannot be written, or cannot be replaced.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        remove_left_overs(place.parent)
        with temporary_folder(place.parent) as new:
            yield new
            finish(new)
            with locked(place.parent):
                check_replaceable(place, flag)
                if os.path.lexists(place):
                    new.chmod(stat.S_IMODE(place.stat().st_mode))
                    kept = carry_over(place, new, flag, may_stay)
                    exchange(new, place)
                    for path in kept:
                        print_note(f"{path} was changed since it was written, and stays as it is")
                else:
                    new.rename(place)
        flush_folder(place.parent)
    except (OSError, SafetensorError) as error:  # both of the disk
        reason = one_line(error)
        if getattr(error, "errno", None) == errno.EBUSY:
            reason = "a disk is mounted there, so it cannot be replaced: name a folder inside of it"
        raise InputError(f"{flag} {place} cannot be written ({reason}): free some space or name "
                         "another place; what was there is untouched") from error


def finish(folder: Path) -> None:
    """Write the list of all files in a folder, and flush them to the disk.

    Their permissions become those of any new file, which libraries may have narrowed.
    """
    folder_mode = stat.S_IMODE(folder.stat().st_mode)
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            path.chmod(folder_mode)
            continue
        path.chmod(folder_mode & 0o666)
        with open(path, "rb") as file:
            digests[path.relative_to(folder).as_posix()] = digest(file)
            os.fsync(file.fileno())
    (folder / LIST).write_text(json.dumps(digests, indent=2) + "\n")


def digest(file) -> str:
    """Return the digest of an open file."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def carry_over(old: Path, new: Path, flag: str, may_stay: Collection[str]) -> list[Path]:
    """Give the folder `new`, in place, all files of `old` but those that were written to it.

    Files have two names then, and links stay links. Nothing in `old` changes.

    Returns:
        The files of `may_stay` that were changed, and stay.

    Raises:
        InputError: If `new` has a file of that name too, which is not in `may_stay`.
        OSError: If a file cannot be had under another name.
    """
    written, kept = written_files(old) or {}, []
    written_folders = {str(parent) for name in written for parent in PurePosixPath(name).parents}
    for folder, folders, names in os.walk(old, onerror=raise_error):
        for name in [*folders, *names]:
            path = Path(folder) / name
            relative = path.relative_to(old).as_posix()
            target = new / relative
            is_folder = path.is_dir() and not path.is_symlink()
            if relative in written_folders and is_folder or relative == LIST:
                continue
            if is_as_written(path, written.get(relative)):
                continue
            if os.path.lexists(target) and not (is_folder and target.is_dir()):
                if relative not in may_stay or is_folder:
                    raise InputError(f"{flag}: {path} was put there or changed by somebody: move "
                                     "it away, or name another folder")
                target.unlink()
                kept.append(path)
            if is_folder:
                target.mkdir(parents=True, exist_ok=True)
                shutil.copystat(path, target)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                link(path, target)
    return kept


def raise_error(error: OSError) -> None:
    """Raise the error that `os.walk` met."""
    raise error


def is_as_written(path: Path, written: str | None) -> bool:
    """Return whether a path is that of a file with the content that was written to it.

    Args:
        path: The path.
        written: The digest of what was written to it; None if nothing was.
    """
    if written is None or not stat.S_ISREG(path.lstat().st_mode):
        return False
    with open(path, "rb") as file:
        return digest(file) == written


def link(path: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system has no second names."""
    try:
        os.link(path, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        if not path.is_symlink() and not path.is_file():
            raise
        shutil.copy2(path, target, follow_symlinks=False)


def exchange(new: Path, place: Path) -> None:
    """Put the folder `new` at `place`, and remove the one that is there.

    Raises:
        OSError: If that is not possible; then the folder at `place` is as it was.
    """
    try:
        exchange_names(new, place)
    except OSError as error:
        if error.errno not in NO_EXCHANGE:
            raise
        # Under a name that no later command takes for a left-over.
        former = place.with_name(f"{place.name[:100]}.earlier-{secrets.token_hex(4)}")
        place.rename(former)
        try:
            new.rename(place)
        except OSError:
            former.rename(place)
            raise
    else:
        former = temporary_path(place.parent, new.stat().st_ino)
        new.rename(former)
    remove(former)


def exchange_names(left: Path, right: Path) -> None:
    """Exchange the names of two folders in one step.

    Raises:
        OSError: If the system or the file system cannot do that.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if library.renameat2(AT_FDCWD, os.fsencode(left), AT_FDCWD, os.fsencode(right),
                         RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(right))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other commands from replacing a folder in `folder`, where the file system has locks.

    Raises:
        OSError: If another command does so for a minute.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    end = time.monotonic() + LONGEST_WAIT
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise OSError(f"another process has {folder} locked") from error
                time.sleep(0.1)
            except OSError:
                break  # a file system without locks
            else:
                break
        yield
    finally:
        os.close(descriptor)
