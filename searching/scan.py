"""Which photos lie in a folder, and whether one has changed: names, sizes and times, no bytes."""

import os
from pathlib import Path

from common.errors import InputError, one_line
from common.terminal import warn
from inputs.photos import SUFFIXES

Stat = tuple[int, int]  # bytes, and nanoseconds of the last change


def scan(folder: Path, follow_links: bool = False) -> dict[str, Stat]:
    """The photos of a folder and of all folders in it, by relative path, in the paths' order.

    Hidden files and folders are passed over, and what is no regular file. So are links out of the
    folder, unless `follow_links`, and links to other folders inside it, whose photos are found at
    their own place.

    Raises:
        InputError: it is no folder that can be read, or has no photo.
    """
    root, found, outside = Path(os.path.realpath(folder)), {}, []
    todo, seen = [("", str(root))], {str(root)}
    while todo:
        inside, real = todo.pop()
        for entry in entries_of(folder, inside):
            name = os.path.join(inside, entry.name)
            at = os.path.join(real, entry.name)
            if entry.is_symlink():
                at = os.path.realpath(entry.path)
                leads_out = not Path(at).is_relative_to(root)
                if leads_out and not follow_links:
                    outside += [name] * os.path.exists(at)
                    continue
                if not leads_out and os.path.isdir(at):
                    continue
            if is_photo(entry):
                found[name] = stat_of(entry)
            elif entry.is_dir() and at not in seen:
                seen.add(at)
                todo.append((name, at))
    if outside:
        warn(f"--photos {folder}: {len(outside):,} links lead out of it and are passed over, such "
             f"as {outside[0]}: allow them with --follow_links")
    if not found:
        raise InputError(f"--photos {folder} holds no photo, no file that ends in .jpg, .png or "
                         "the like: name the folder that they are in")
    return dict(sorted(found.items()))


def entries_of(folder: Path, inside: str) -> list[os.DirEntry]:
    """What is in a folder but for hidden files; nothing, and a warning, of one inside that cannot
    be read."""
    try:
        with os.scandir(folder / inside) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        if not inside:
            raise InputError(f"--photos {folder} is no folder that can be read "
                             f"({one_line(error)})") from error
        warn(f"folder {folder / inside} cannot be read ({one_line(error)}): its photos are passed "
             "over")
        return []


def is_photo(entry: os.DirEntry) -> bool:
    """Whether a file is named as a photo, and is one that ends: no pipe or device."""
    return os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file()


def stat_of(entry: os.DirEntry) -> Stat:
    """Size and time, in 64 bits each; some file systems tell of times beyond."""
    try:
        stat = entry.stat()
    except OSError:  # gone meanwhile: decoding it will tell
        return 0, 0
    return stat.st_size, max(-2**63, min(stat.st_mtime_ns, 2**63 - 1))
