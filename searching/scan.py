"""Which photos lie in a folder, with their sizes and times: no photo is opened."""

import os
from pathlib import Path

from common.errors import InputError, one_line
from common.terminal import warn
from inputs.photos import SUFFIXES

Stat = tuple[int, int]  # size in bytes, and time of the last change in nanoseconds


def scan(folder: Path, follow_links: bool = False) -> dict[str, Stat]:
    """Return the photos in a folder and in all folders inside it, with size and time of each.

    Hidden files and folders are skipped, and everything that is no regular file. So are links that
    lead out of the folder, unless `follow_links` is true, and links to other folders inside it,
    whose photos are found where they lie.

    Args:
        folder: where to look.
        follow_links: whether links may lead out of `folder`.

    Returns:
        (bytes, nanoseconds) of each photo, by its path relative to `folder`, in the order of paths.

    Raises:
        InputError: `folder` is no folder that can be read, or holds no photo.
    """
    root = Path(os.path.realpath(folder))
    photos, links_out = {}, []
    # Folders that are still to be looked into: relative path, and path without links.
    pending, visited = [("", str(root))], {str(root)}
    while pending:
        inside, real_folder = pending.pop()
        for entry in visible_entries(folder, inside):
            name = os.path.join(inside, entry.name)
            real_path = os.path.join(real_folder, entry.name)
            if entry.is_symlink():
                real_path = os.path.realpath(entry.path)
                leads_out = not Path(real_path).is_relative_to(root)
                if leads_out and not follow_links:
                    if os.path.exists(real_path):
                        links_out.append(name)
                    continue
                if not leads_out and os.path.isdir(real_path):
                    continue
            if is_photo(entry):
                photos[name] = stat_of(entry)
            elif is_folder(entry) and real_path not in visited:
                visited.add(real_path)
                pending.append((name, real_path))
    if links_out:
        warn(f"--photos {folder}: {len(links_out):,} links lead out of it and are passed over, "
             f"such as {links_out[0]}: allow them with --follow_links")
    if not photos:
        raise InputError(f"--photos {folder} holds no photo, no file that ends in .jpg, .png or "
                         "the like: name the folder that they are in")
    return dict(sorted(photos.items()))


def visible_entries(folder: Path, inside: str) -> list[os.DirEntry]:
    """Return the entries of the folder `folder / inside`, without hidden ones.

    A folder inside `folder` that cannot be read has no entries, and a warning tells so.

    Raises:
        InputError: `folder` itself cannot be read.
    """
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
    """Return whether an entry is named as a photo, and is a regular file: no pipe or device."""
    try:
        return os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file()
    except OSError:  # such as a link to itself
        return False


def is_folder(entry: os.DirEntry) -> bool:
    """Return whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def stat_of(entry: os.DirEntry) -> Stat:
    """Return size and time of a file, each in 64 bits: some file systems have times beyond."""
    try:
        stat = entry.stat()
    except OSError:  # the file has vanished meanwhile, which decoding it will tell
        return 0, 0
    return stat.st_size, max(-2**63, min(stat.st_mtime_ns, 2**63 - 1))
