"""A record of a captions file, a photo and captions of it, and what can be wrong with one."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from common.errors import InputError
from common.files import is_unicode, leads_out_of_folder

TRIPLE = "image", "caption"
# What Hugging Face's imagefolder, open_clip and our own triples call the two.
IMAGE_COLUMNS = "file_name", "filepath", "image"
CAPTION_COLUMNS = "text", "caption", "title"
# How a record without something is told of, by what it is called.
LACKS = {"record": "(counted from 0) has no {!r}", "photo": "has no {!r}",
         "line": "has no {!r}: add it, or take the line out",
         "row": "has nothing in column {!r}: fill it in, or take the row out"}


class Columns(NamedTuple):
    """What a user calls the columns, or keys, of photos and captions; None for a usual name."""

    image: str | None = None
    caption: str | None = None


USUAL = Columns()


class Record(NamedTuple):
    """Some captions of a photo; the same photo may come again."""

    image: str
    captions: list[str]
    split: str | None = None  # as the file calls it, where it says so
    place: str = ""  # in the file, for messages


def check_record(
    record: object, kind: str, where: object, path: Path, keys: tuple[str, str] = TRIPLE
) -> Record:
    """What a parsed record says of a photo under `keys`.

    Args:
        kind: of `LACKS`; `where`, its number or the like, says which.

    Raises:
        InputError: something is missing or not of its kind, or the photo is none inside a folder.
    """
    place, own = f"{kind} {where}", kind in ("line", "row")  # what people write themselves
    for key in keys:
        if not isinstance(record, dict) or not record.get(key) or own and is_blank(record[key]):
            raise InputError(f"{path}: {place} {LACKS[kind].format(key)}")
    name, captions = (record[key] for key in keys)
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise InputError(f"{path}: {place}: {keys[1]!r} is neither text nor a list of texts")
    if own and any(map(is_blank, captions)):
        raise InputError(f"{path}: {place}: {keys[1]!r} has an empty text in its list")
    if not all(map(is_unicode, captions)):  # json may hold half a letter, \ud800
        raise InputError(f"{path}: {place}: {keys[1]!r} {captions} is no Unicode text")
    if not isinstance(name, str) or leads_out_of_folder(name):
        raise InputError(f"{path}: {place}: {keys[0]!r} {name!r} must be a path inside the photo "
                         "folder, relative to it")
    split = record.get("split")
    return Record(str(PurePosixPath(name)) if own else name, captions,
                  split if isinstance(split, str) else None, place)


def is_blank(value: object) -> bool:
    """Whether a value is a text of nothing but space."""
    return isinstance(value, str) and not value.strip()


def check_rows(
    rows: Iterable[tuple[str, object]], read: Callable[[str, object], Record], kind: str
) -> Iterator[Record]:
    """`read` of each (place, row); the InputError of the first that fails says how many do, so it
    comes when all have been looked at."""
    first, faults = None, 0
    for where, row in rows:
        try:
            record = read(where, row)
        except InputError as error:
            first, faults = first or error, faults + 1
        else:
            yield record
    if first:
        more = f" ({faults:,} {kind}s are not in order)" if faults > 1 else ""
        raise InputError(f"{first}{more}") from first


def find_keys(names: list[str], columns: Columns, path: Path) -> tuple[str, str]:
    """Which of the names of columns, or keys, are those of photo and caption.

    Raises:
        InputError: there is none, or more than one.
    """
    keys = (find_key(names, columns.image, IMAGE_COLUMNS, "--image_column", path),
            find_key(names, columns.caption, CAPTION_COLUMNS, "--caption_column", path))
    if keys[0] == keys[1]:
        raise InputError(f"--image_column and --caption_column both name {keys[0]!r} of {path}")
    return keys


def find_key(
    names: list[str], asked: str | None, usual: tuple[str, ...], flag: str, path: Path
) -> str:
    """The name that the user asked for by `flag`, or the only usual one; capitals do not count."""
    wanted = usual if asked is None else [asked.strip().lower()]
    found = [name for name in names if name.lower() in wanted]
    if len(found) == 1:
        return found[0]
    if len(set(found)) == 1:
        raise InputError(f"{path} has {len(found)} columns {found[0]!r}: rename all but one")
    if found:
        raise InputError(f"{path} has the columns {listed(found)}: name one with {flag}")
    none = repr(asked) if asked is not None else f"{', '.join(usual[:-1])} or {usual[-1]}"
    raise InputError(f"{path} begins with the columns {listed(names)}, and none is called {none}: "
                     f"name yours with {flag}")


def listed(names: list[str], most: int = 12) -> str:
    """Names of columns for a message, which a file without a header may make long."""
    shown = [repr(name if len(name) <= 40 else f"{name[:40]}...") for name in names[:most]]
    return ", ".join(shown + ["..."] * (len(names) > most))


def refuse_columns(columns: Columns, path: Path) -> None:
    """Raise InputError where columns are named for a format that has none."""
    if columns != USUAL:
        raise InputError(f"{path} has no columns to be named: leave out --image_column and "
                         "--caption_column")
