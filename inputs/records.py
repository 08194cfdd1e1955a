"""Captions files of every format, read as records: a photo's name and captions of it.

`.json` holds triples, Karpathy's splits or COCO's captions; `.jsonl` holds an object a line. A file
of lines `photo#number`, tab, caption is Flickr's own; every other file is a table, of which rows
are counted as a spreadsheet counts them, the header being row 1.
"""

import ast
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from common.errors import InputError, one_line
from common.files import (
    MAX_BYTES,
    is_unicode,
    leads_out_of_folder,
    open_file,
    read_bytes,
    read_json,
    read_start,
)
from common.terminal import print_status, warn

LONGEST_LINE = 2**24  # letters, or bytes
TRIPLE = "image", "caption"
# The names of columns, or keys, that people give to photos and to captions. Capitals, spaces and
# hyphens do not count. The plain names go before the others, and are taken without a word.
PLAIN_IMAGE_COLUMNS = "file_name", "filepath", "image"
IMAGE_COLUMNS = *PLAIN_IMAGE_COLUMNS, *(
    "filename", "file", "file_path", "path", "image_name", "image_path", "image_file",
    "image_filename", "img", "img_name", "img_path", "img_file", "photo", "photo_name",
    "photo_path", "picture")
PLAIN_CAPTION_COLUMNS = "text", "caption", "title"
CAPTION_COLUMNS = *PLAIN_CAPTION_COLUMNS, *(
    "captions", "texts", "comment", "comments", "sentence", "sentences", "description",
    "descriptions", "raw", "raw_caption", "raw_captions", "alt_text")
NUMBERED = re.compile(r"(.*?)_?(\d+)")  # caption_0, caption1
# What programs write where there is no value: pandas' own list.
MISSING = {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND",
           "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
# How a record that lacks something is described, by what the record is called.
LACKS = {"record": "(counted from 0) has no {!r}", "photo": "has no {!r}",
         "line": "has no {!r}: add it, or take the line out",
         "row": "has nothing in column {!r}: fill it in, or take the row out"}
WRITTEN_BY_PEOPLE = "line", "row"  # kinds of records that are no data set's own

KARPATHY_SPLITS = {"train": {"train", "restval"}, "val": {"val"}, "test": {"test"}}
SPLIT_NAMES = {"train": ("train",), "val": ("val", "validation", "valid", "dev"), "test": ("test",)}
OWN_SUFFIXES = ".json", ".jsonl", ".csv", ".tsv"  # of the files of own data
TOKEN_LINE = re.compile(r"([^\t]+)#\d+\t(.*)")
FUSED_TOKEN_LINE = re.compile(r"(\S+\.\w+)#\d+ +(\S.*)")  # a space in place of the tab

USUAL_DELIMITER = {".csv": ",", ".tsv": "\t"}
DELIMITERS = ",\t;|"  # open_clip's own .csv has tabs, spreadsheets write semicolons, Kaggle bars
PHOTO_NAME = re.compile(r"\S+\.(jpe?g|png|webp|gif|bmp|tiff?|heic|avif)", re.IGNORECASE)
STRING = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)  # of Python's writing


class Columns(NamedTuple):
    """What a user calls the columns, or keys; None stands for a usual name.

    Attributes:
        image: the photo's file.
        caption: the captions; several names are separated by commas.
        split: train, val or test; "none" where the file's own word does not count.
    """

    image: str | None = None
    caption: str | None = None
    split: str | None = None


USUAL = Columns()


class Keys(NamedTuple):
    """The columns, or keys, of a file that hold the parts of a record."""

    image: str
    captions: tuple[str, ...]
    split: str | None = None


TRIPLE_KEYS = Keys(TRIPLE[0], TRIPLE[1:])


class Record(NamedTuple):
    """Some captions of a photo; the same photo may come again."""

    image: str
    captions: list[str]
    split: str | None = None  # as the file calls it, where it says so
    place: str = ""  # in the file, for messages


def read_records(
    path: Path, split: str | None = None, columns: Columns = USUAL, bad_rows: str = "refuse",
    announce: Callable[[str], None] = print_status,
) -> list[Record]:
    """Read all records of a captions file, in the file's order.

    Args:
        split: train, val or test: of Karpathy's format, which holds all three, only the records of
            this split are returned.
        columns: the user's names of columns.
        bad_rows: "refuse", or "skip" to leave out what is not in order and say so in a warning.
        announce: is called with a line that says which columns were taken, where these are not the
            plain ones.

    Raises:
        InputError: the file cannot be read or holds no record, or, unless `bad_rows` is "skip", a
            record is not in order. The message names the row and the column.
    """
    return list(each_record(path, split, columns, bad_rows, announce))


def each_record(
    path: Path, split: str | None = None, columns: Columns = USUAL, bad_rows: str = "refuse",
    announce: Callable[[str], None] = print_status,
) -> Iterator[Record]:
    """Yield the records of `read_records` one after another.

    Args, Raises: see `read_records`.
    """
    skip = bad_rows == "skip"
    suffix = path.suffix.lower()
    if suffix == ".json":
        check_start(path)
        yield from json_records(read_json(path), path, split, columns, skip, announce)
        return
    lines = numbered_lines(raw_lines(path))
    first = next(lines, None)
    lines.close()
    if first is None:
        raise InputError(f"{path} is empty")
    if suffix == ".jsonl":
        yield from line_records(path, columns, skip, announce)
    elif TOKEN_LINE.fullmatch(first[1]):
        refuse_columns(columns, path)
        yield from token_records(path, skip)
    else:
        yield from table_records(lambda: raw_lines(path), path, columns, skip, announce)


# ------------------------------------------------------------------------------------ files of text


def read_text(path: Path) -> str:
    """Read a whole text file in UTF-8, with or without a byte-order mark."""
    try:
        content = read_bytes(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error
    return text_of(content, str(path))


def text_of(content: bytes, name: str, first_line: int = 1) -> str:
    """Decode the bytes of a text file, or of a part of it; an error begins with `name`."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start), error.object[error.start]
        raise InputError(f"{name}: line {first_line + line} is not UTF-8 (byte 0x{byte:02x}): save "
                         "the file as UTF-8") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0"))
        raise InputError(f"{name}: line {first_line + line} holds a NUL byte, so it is no text in "
                         "UTF-8: save the file as UTF-8")
    return text


def raw_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file with their ends; a file may have millions.

    Raises:
        InputError: the file cannot be read, or the line that is reached is no UTF-8 or has no end.
    """
    try:
        with io.TextIOWrapper(open_file(path), encoding="utf-8-sig", newline="") as file:
            while line := file.readline(LONGEST_LINE + 1):
                if "\0" in line or len(line) > LONGEST_LINE:
                    raise ValueError("a NUL byte, or no end of a line")
                yield line
    except (OSError, ValueError) as error:
        check_lines(path)
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error


def check_lines(path: Path) -> None:
    """Check that a file can be read, and that its lines are UTF-8 and have an end.

    Raises:
        InputError: they are not; the message names the line.
    """
    try:
        with open_file(path) as file:
            lines = iter(lambda: file.readline(LONGEST_LINE + 1), b"")
            for number, line in enumerate(lines, 1):
                if len(line) > LONGEST_LINE and b"\0" not in line:
                    raise InputError(f"{path}: line {number} has more than {LONGEST_LINE:,} bytes: "
                                     "is it a captions file?")
                text_of(line, str(path), number)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error


def check_start(path: Path) -> None:
    """Check that a captions file begins as a text, and is not too large to be read.

    Raises:
        InputError: it does not, or is.
    """
    if path.suffix.lower() != ".json":
        next(raw_lines(path), None)
    elif path.is_file() and path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path} has more than {MAX_BYTES:,} bytes: save it as .jsonl, which is "
                         "read line by line")
    elif b"\0" in read_start(path):
        raise InputError(f"{path} holds NUL bytes, so it is no json: fetch it again")


def lines_of(text: str) -> Iterator[str]:
    """Yield the lines of a text with their ends, as `raw_lines` yields those of a file.

    `str.splitlines` would also split at other letters that a caption may hold.
    """
    return iter(io.StringIO(text, newline=""))


def numbered_lines(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (number from 1, line without its end) of the lines that are not blank."""
    return ((str(number), line.rstrip("\r\n")) for number, line in enumerate(lines, 1)
            if line.strip())


# ------------------------------------------------------------------------------------------ records


def check_record(
    record: object, kind: str, where: object, path: Path, keys: Keys = TRIPLE_KEYS
) -> Record:
    """Return what a parsed record says of a photo under `keys`.

    Args:
        kind: record, photo, line or row.
        where: its number, or whatever else says which one it is.

    Raises:
        InputError: something is missing or not of its kind, or the photo's name is no path inside
            a folder.
    """
    place = f"{kind} {where}"
    if not isinstance(record, dict):
        raise InputError(f"{path}: {place} {LACKS[kind].format(keys.image)}")
    name = record.get(keys.image)
    if name == [] or is_missing(name):
        raise lacking(name, keys.image, kind, f"{path}: {place}")
    captions = record_captions(record, kind, f"{path}: {place}", keys)
    if isinstance(name, str):
        name = name.replace("\\", "/")  # as Windows writes paths
    if not isinstance(name, str) or leads_out_of_folder(name):
        raise InputError(f"{path}: {place}: {keys.image!r} {name!r} must be a path inside the "
                         "photo folder, relative to it")
    split = record.get(keys.split or "split")
    if kind in WRITTEN_BY_PEOPLE:
        name = str(PurePosixPath(name))
    return Record(name, captions, split if isinstance(split, str) else None, place)


def record_captions(record: dict, kind: str, place: str, keys: Keys) -> list[str]:
    """Return the captions of a record, at least one.

    Where several columns hold captions, those without a value are left out.
    """
    blank = kind in WRITTEN_BY_PEOPLE  # published data sets may have captions of a space
    values = [record.get(key) for key in keys.captions]
    present = [(key, value) for key, value in zip(keys.captions, values)
               if not (value in ("", []) or is_missing(value, blank))]
    if not present:
        raise lacking(values[0], keys.captions[0], kind, place)
    captions = []
    for key, value in present:
        texts = value if isinstance(value, list) else [value]
        texts = [text.get("raw") if isinstance(text, dict) and "raw" in text else text
                 for text in texts]
        if not all(isinstance(text, str) or is_missing(text) for text in texts):
            raise InputError(f"{place}: {key!r} is neither text nor a list of texts")
        if any(is_missing(text, blank) for text in texts):
            raise InputError(f"{place}: {key!r} has an empty text in its list: {texts!r}"[:400])
        if not all(map(is_unicode, texts)):  # json may hold half a letter, \ud800
            raise InputError(f"{place}: {key!r} {texts} is no Unicode text")
        captions += texts
    return captions


def is_missing(value: object, blank: bool = True) -> bool:
    """Whether a value stands for none: None, NaN, or a text such as "nan" or "NULL"; with `blank`
    also a text of nothing but space."""
    if isinstance(value, str):
        text = value.strip()
        return text in MISSING if text else blank
    return value is None or isinstance(value, float) and value != value


def lacking(value: object, key: str, kind: str, place: str) -> InputError:
    """Return the error of a record without a value under `key`."""
    if isinstance(value, str) and value.strip():
        return InputError(f"{place} has {value.strip()!r} in {key!r}, which stands for a missing "
                          f"value: fill it in, or take the {kind} out")
    return InputError(f"{place} {LACKS[kind].format(key)}")


def is_blank(value: object) -> bool:
    """Return whether a value is a text of nothing but space."""
    return isinstance(value, str) and not value.strip()


def check_rows(
    rows: Iterable[tuple[str, object]], read: Callable[[str, object], Record], kind: str,
    skip: bool = False, path: Path | None = None,
) -> Iterator[Record]:
    """Yield `read(place, row)` of each row that is in order.

    The error comes when all rows have been looked at, so that it says how many are not in order.

    Args:
        skip: leave those rows out, and say so in a warning.

    Raises:
        InputError: the error of the first row that is not in order, unless `skip`; or no row is.
    """
    first, faults, good = None, 0, 0
    for where, row in rows:
        try:
            record = read(where, row)
        except InputError as error:
            first, faults = first or error, faults + 1
        else:
            good += 1
            yield record
    if first and skip and good:
        warn(f"{path}: {faults:,} {kind}s are left out (--bad_rows skip), the first: {first}")
    elif first:
        more = f" ({faults:,} {kind}s are not in order)" if faults > 1 else ""
        raise InputError(f"{first}{more}") from first


# ------------------------------------------------------------------------------------------ columns


def find_keys(names: list[str], columns: Columns, path: Path) -> Keys:
    """Return which of the names of columns, or keys, are those of photo, captions and split.

    Raises:
        InputError: there is none, or it is not clear which one.
    """
    image = find_key(names, columns.image, IMAGE_COLUMNS, "--image_column", path)
    try:
        captions = caption_keys(names, columns.caption, path)
    except InputError as error:
        if columns.image is None and image.lower() not in PLAIN_IMAGE_COLUMNS:
            raise InputError(f"{error}; photos would be from {image!r} (--image_column)") from error
        raise
    if image in captions:
        raise InputError(f"--image_column and --caption_column both name {image!r} of {path}")
    return Keys(image, captions, split_key(names, columns.split, path))


def announce_keys(
    keys: Keys, columns: Columns, path: Path, announce: Callable[[str], None]
) -> None:
    """Announce which columns were taken, where these are not the plain ones and nobody named them.
    """
    plain_image = columns.image is not None or keys.image.lower() in PLAIN_IMAGE_COLUMNS
    plain_caption = columns.caption is not None or (
        len(keys.captions) == 1 and keys.captions[0].lower() in PLAIN_CAPTION_COLUMNS)
    if not (plain_image and plain_caption):
        announce(f"{path}: photos from column {keys.image!r}, captions from "
                 f"{listed(list(keys.captions))}")


def find_key(
    names: list[str], named: str | None, usual: tuple[str, ...], flag: str, path: Path
) -> str:
    """Return the name that the user named for by `flag`, or the only usual one."""
    wanted = set(usual) if named is None else {plain(named)}
    found = [name for name in names if plain(name) in wanted]
    if named is None:
        found = [name for name in found if plain(name) in PLAIN_IMAGE_COLUMNS] or found
    check_found(found, names, named, usual, flag, path)
    if len(found) > 1:
        raise InputError(f"{path} has the columns {listed(found)}: name one with {flag}")
    return found[0]


def caption_keys(names: list[str], named: str | None, path: Path) -> tuple[str, ...]:
    """Return the columns of captions: those that the user named for, or those of one usual name,
    with numbers behind it or without."""
    flag = "--caption_column"
    if named is not None and plain(named) not in set(map(plain, names)) and "," in named:
        return tuple(find_key(names, one, (), flag, path) for one in named.split(","))
    if named is not None:
        return (find_key(names, named, (), flag, path),)
    families: dict[str, list[str]] = {}
    for name in names:
        numbered = NUMBERED.fullmatch(plain(name))
        stem = numbered[1] if numbered else plain(name)
        if stem in CAPTION_COLUMNS:
            families.setdefault(stem, []).append(name)
    families = {stem: family for stem, family in families.items()
                if stem in PLAIN_CAPTION_COLUMNS} or families
    found = [name for family in families.values() for name in family]
    check_found(found, names, None, CAPTION_COLUMNS, flag, path)
    if len(families) > 1:
        raise InputError(f"{path} has the columns {listed(found)}: name one with {flag}, or "
                         "several, separated by commas")
    return tuple(found)


def check_found(
    found: list[str], names: list[str], named: str | None, usual: tuple[str, ...], flag: str,
    path: Path,
) -> None:
    """Raise InputError where no column was found, or two have the same name."""
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path} has {found.count(twice)} columns {twice!r}: rename all but one")
    if not found:
        none = repr(named) if named is not None else f"{', '.join(usual[:5])} or the like"
        raise InputError(f"{path} begins with the columns {listed(names)}, and none is called "
                         f"{none}: name yours with {flag}")


def split_key(names: list[str], named: str | None, path: Path) -> str | None:
    """Return the column that says which photo goes into which split, or None.

    Raises:
        InputError: there is none of the name that the user named for.
    """
    if named is not None and plain(named) == "none":
        return "\0"  # a name that no column has
    if named is not None:
        return find_key(names, named, (), "--split_column", path)
    return next((name for name in names if plain(name) == "split"), None)


def plain(name: str) -> str:
    """Return the name of a column without what does not count: "Image Name" is "image_name"."""
    return re.sub(r"[ -]+", "_", name.strip().lower())


def listed(names: list[str], most: int = 12) -> str:
    """Return names of columns for a message, which a file without a header may make long."""
    shown = [repr(name if len(name) <= 40 else f"{name[:40]}...") for name in names[:most]]
    return ", ".join(shown + ["..."] * (len(names) > most))


def refuse_columns(columns: Columns, path: Path) -> None:
    """Raise InputError where columns are named for a format that has none."""
    if columns.image is not None or columns.caption is not None:
        raise InputError(f"{path} has no columns to be named: leave out --image_column and "
                         "--caption_column")


def split_of_word(word: str | None) -> str | None:
    """Return train, val or test, as a file's own word for a split means; None where it is none."""
    word = (word or "").strip().lower()
    return next((split for split in SPLIT_NAMES
                 if word in SPLIT_NAMES[split] or word in KARPATHY_SPLITS[split]), None)


def own_files(split: str, folder: Path) -> list[Path]:
    """Return what a split of own data may be called in a folder, whether or not it is there."""
    return [folder / f"{name}{suffix}" for name in SPLIT_NAMES[split] for suffix in OWN_SUFFIXES]


# --------------------------------------------------------------------------------------------- json


def json_records(
    content: object, path: Path, split: str | None = None, columns: Columns = USUAL,
    skip: bool = False, announce: Callable[[str], None] = print_status,
) -> Iterator[Record]:
    """Yield the records of a parsed json file: triples, Karpathy's format or COCO's."""
    if isinstance(content, dict):
        refuse_columns(columns, path)
        if is_coco(content):
            yield from coco_records(content, path)
            return
        content = flatten_karpathy(content, split, path)
    if not isinstance(content, list) or not content:
        raise InputError(f"{path} holds no {f'{split} ' if split else ''}records: expected a list "
                         'of {"image": ..., "caption": ...}')
    keys = triple_keys(content[0], columns, path)
    yield from check_rows(
        enumerate(content), lambda number, record: check_record(record, "record", number, path,
                                                                keys), "record", skip, path)
    announce_keys(keys, columns, path, announce)


def triple_keys(first: object, columns: Columns, path: Path) -> Keys:
    """Return the keys of a json list: those of triples, or others where `first` has none of these
    or the user names some."""
    if not isinstance(first, dict):
        return TRIPLE_KEYS
    if columns[:2] == USUAL[:2] and {*TRIPLE} <= first.keys():
        numbered = [name for name in first if (match := NUMBERED.fullmatch(plain(name)))
                    and match[1] == TRIPLE[1]]
        return Keys(TRIPLE[0], (TRIPLE[1], *numbered),
                    split_key(list(first), columns.split, path))
    try:
        return find_keys(list(first), columns, path)
    except InputError:
        if columns != USUAL or len(first.keys() - {*TRIPLE}) == len(first) > 1:
            raise
        return TRIPLE_KEYS  # a record will be said to lack one of them


def flatten_karpathy(
    content: dict, split: str | None, path: Path, captions: bool = True
) -> list[dict]:
    """Return records {image, caption: [...], split} of a split, or of all, of Karpathy's format.

    With `captions` false the photos alone are named for: {image, split}.
    """
    if not isinstance(content.get("images"), list):
        raise InputError(f"{path}: an object without a list 'images' is no Karpathy split file")
    records = []
    for number, image in enumerate(content["images"]):
        try:
            if split is None or image["split"] in KARPATHY_SPLITS[split]:
                name = PurePosixPath(image.get("filepath", "")) / image["filename"]
                record = {"image": str(name), "split": image["split"]}
                if captions:
                    record["caption"] = [sentence["raw"] for sentence in image["sentences"]]
                records.append(record)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: images[{number}] lacks 'split', 'filename' or the 'raw' of "
                             "its 'sentences'") from error
    return records


def is_coco(content: dict) -> bool:
    """Return whether a json object is COCO's captions file, and not Karpathy's."""
    images = content.get("images")
    if not isinstance(images, list) or not isinstance(content.get("annotations"), list):
        return False
    return not any("split" in image for image in images[:1] if isinstance(image, dict))


def coco_records(content: dict, path: Path) -> list[Record]:
    """Return the records of COCO's own captions: the photos that have some, in the order of
    `images`."""
    names, texts = {}, {}
    for number, image in enumerate(content["images"]):
        try:
            names[image["id"]] = image["file_name"]
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: images[{number}] lacks 'id' or 'file_name'") from error
    for number, annotation in enumerate(content["annotations"]):
        try:
            known = annotation["image_id"] in names
            texts.setdefault(annotation["image_id"], []).append(annotation["caption"])
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: annotations[{number}] lacks 'image_id' or 'caption': is it "
                             "a file of captions?") from error
        if not known:
            raise InputError(f"{path}: annotations[{number}] is of a photo that is not in 'images'")
    if not texts:
        raise InputError(f"{path} holds no records: its 'annotations' are empty")
    return [check_record({"image": name, "caption": texts[key]}, "photo", f"{key!r}", path)
            for key, name in names.items() if key in texts]


# ------------------------------------------------------------------------------------------- lines


def line_records(
    path: Path, columns: Columns, skip: bool, announce: Callable[[str], None]
) -> Iterator[Record]:
    """Yield the records of a jsonl file, one an object a line; the first line's keys serve for all.
    """
    def parsed(where: str, line: str) -> dict:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = one_line(error).replace("line 1 column", "column")  # of this line
            raise InputError(f"{path}: line {where} cannot be read as json: {reason}") from error
        if not isinstance(record, dict):
            raise InputError(f'{path}: line {where} is no object, as {{"file_name": "1.jpg", '
                             '"text": "A dog."} is one')
        return record

    keys = None
    for where, line in numbered_lines(raw_lines(path)):
        try:
            keys = find_keys(list(parsed(where, line)), columns, path)
            break
        except InputError:
            if not skip:
                raise
    if keys is None:
        raise InputError(f"{path} has no line that is an object of a photo and its captions")
    yield from check_rows(
        numbered_lines(raw_lines(path)), lambda where, line: check_record(
            parsed(where, line), "line", where, path, keys), "line", skip, path)
    announce_keys(keys, columns, path, announce)


def token_records(path: Path, skip: bool) -> Iterator[Record]:
    """Yield the records of Flickr's own captions: `photo#number`, a tab, a caption."""
    repairs = Repairs(path, "line")

    def read(where: str, line: str) -> Record:
        match = TOKEN_LINE.fullmatch(line)
        if not match and (match := FUSED_TOKEN_LINE.fullmatch(line)):
            repairs.add(where)
        if not match:
            raise InputError(f"{path}: line {where} is not photo#number, a tab and a caption")
        return check_record({"image": match[1], "caption": [match[2]]}, "photo",
                            f"of line {where}", path)

    yield from check_rows(numbered_lines(raw_lines(path)), read, "line", skip, path)
    repairs.warn_of_repairs()


# ------------------------------------------------------------------------------------------- tables


class Row(NamedTuple):
    """A row of a table: its place, its text, and its cells or what is wrong with it."""

    where: str
    text: str
    cells: list[str]
    fault: str | None


class Table(NamedTuple):
    """How the rows of a table are read."""

    delimiter: str
    header: list[str]
    keys: Keys
    quoted: bool  # whether text in double quotes is a cell, or quotes are letters as any others


class Repairs:
    """Counts the rows of a file that were repaired, and says so once."""

    def __init__(self, path: Path, kind: str):
        self.path, self.kind, self.count, self.first = path, kind, 0, ""

    def add(self, where: str) -> None:
        """Count a row that was repaired."""
        self.first = self.first or where
        self.count += 1

    def warn_of_repairs(self) -> None:
        """Say in a warning how many rows were repaired, if any."""
        if self.count:
            warn(f"{self.path}: {self.count:,} {self.kind}s lack or have too many delimiters and "
                 f"are read as they are meant, such as {self.kind} {self.first}")


def table_records(
    lines: Callable[[], Iterator[str]], path: Path, columns: Columns, skip: bool = False,
    announce: Callable[[str], None] = print_status,
) -> Iterator[Record]:
    """Yield the records of a table, one a row.

    Args:
        lines: gives the table's lines, with their ends, anew whenever it is called.

    Raises:
        InputError: a row is not in order, unless `skip`; or the header names no photos or captions.
    """
    table = read_header(lines, path, columns)
    table = table._replace(quoted=uses_quotes(lines, table, path))
    repairs = Repairs(path, "row")

    def read(where: str, row: Row) -> Record:
        cells = fitted_cells(row, table, path)
        if cells is not row.cells:
            repairs.add(where)
        record = dict(zip(table.header, cells, strict=True))
        record[table.keys.image] = record[table.keys.image].strip()
        for key in table.keys.captions:
            record[key] = cell_captions(record[key], f"{path}: row {where}: {key!r}")
        return check_record(record, "row", where, path, table.keys)

    rows = ((row.where, row) for row in table_rows(lines(), table.delimiter, table.quoted))
    next(rows)  # the header
    count = 0
    for record in check_rows(rows, read, "row", skip, path):
        count += 1
        yield record
    if not count:
        raise InputError(f"{path} has a header and no row under it")
    announce_keys(table.keys, columns, path, announce)
    repairs.warn_of_repairs()


def read_header(lines: Callable[[], Iterator[str]], path: Path, columns: Columns) -> Table:
    """Return a table's delimiter and columns.

    The delimiter is the suffix's, or another one where only that shows the two columns.
    """
    usual = USUAL_DELIMITER.get(path.suffix.lower(), ",")
    faults = []
    for delimiter in usual, *DELIMITERS.replace(usual, ""):
        header = []
        try:
            row = next(table_rows(lines(), delimiter, True), Row("1", "", [], None))
            if row.fault:
                raise InputError(f"{path}: {row.fault}")
            header = [name.strip() for name in row.cells]
            keys = find_keys(header, columns, path)
        except InputError as error:
            faults.append((len(header), error))
            continue
        return Table(delimiter, header, keys, True)
    raise max(faults, key=lambda fault: fault[0])[1]  # of the delimiter that gives most columns


def uses_quotes(lines: Callable[[], Iterator[str]], table: Table, path: Path) -> bool:
    """Return whether a table uses double quotes for quoting, and does not have them as letters.

    Quotes are letters where that leaves fewer rows that are not in order, and where more cells
    begin with a quote and go on behind the next one than are in quotes as a whole.
    """
    def faults(quoted: bool) -> int:
        return sum(not is_fitting(row, table, path)
                   for row in table_rows(lines(), table.delimiter, quoted))

    as_quotes = faults(True)
    if not as_quotes or faults(False) >= as_quotes:
        return True
    whole = torn = 0
    for row in table_rows(lines(), table.delimiter, False):
        for cell in row.cells:
            if cell.startswith('"'):
                is_whole = len(cell) > 1 and cell.rstrip().endswith('"')
                whole, torn = whole + is_whole, torn + (not is_whole)
    return whole >= torn


def table_rows(lines: Iterator[str], delimiter: str, quoted: bool) -> Iterator[Row]:
    """Yield the rows of a table that are not empty.

    A row's place is its number, and the line that it starts in where that is another number.
    """
    taken: list[str] = []

    def remembered() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line

    rows = csv.reader(remembered(), delimiter=delimiter, strict=True, skipinitialspace=True,
                      quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
    number = 0
    while True:
        number, line = number + 1, rows.line_num + 1
        where = str(number) if number == line else f"{number} (line {line})"
        taken.clear()
        try:
            cells = next(rows, None)
        except csv.Error as error:
            yield Row(where, "".join(taken), [], f"row {where} cannot be read ({one_line(error)}): "
                      "close every quote, and write a quote inside quotes twice")
            continue
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield Row(where, "".join(taken), cells, None)


def is_fitting(row: Row, table: Table, path: Path) -> bool:
    """Return whether a row can be read and has as many cells as the header."""
    try:
        fitted_cells(row, table, path)
    except InputError:
        return False
    return True


def fitted_cells(row: Row, table: Table, path: Path) -> list[str]:
    """Return the cells of a row, as many as the header has; `row.cells` itself where these are.

    What is clearly meant is repaired: empty cells behind the last column, a delimiter that prose
    has inside the last column's caption, or one delimiter that was forgotten.

    Raises:
        InputError: the row cannot be read, or it is not clear which cell belongs to which column.
    """
    if row.fault:
        raise InputError(f"{path}: {row.fault}")
    wanted, cells = len(table.header), row.cells
    if len(cells) == wanted:
        return cells
    if len(cells) > wanted and all(map(is_blank, cells[wanted:])):
        return cells[:wanted]
    repaired = None
    if len(cells) > wanted:
        repaired = joined_prose(row.text.rstrip("\r\n"), table)
    elif len(cells) == wanted - 1:
        repaired = with_forgotten_delimiter(cells, table)
    if repaired is None:
        raise InputError(f"{path}: row {row.where} has {len(cells)} columns and the header "
                         f"{wanted}: put a text that holds {table.delimiter!r} into quotes, or "
                         "leave such rows out with --bad_rows skip")
    return repaired


def joined_prose(text: str, table: Table) -> list[str] | None:
    """Return the cells of a row whose last column is a caption that holds delimiters, each before a
    space, as prose has commas; None where that is not so."""
    wanted = len(table.header)
    parts = text.split(table.delimiter)
    is_prose = all(part.startswith(" ") for part in parts[wanted:])
    if table.keys.captions != (table.header[-1],) or not is_prose or (
            table.quoted and '"' in text) or "\n" in text:
        return None
    return [part.strip() for part in (*parts[: wanted - 1],
                                      table.delimiter.join(parts[wanted - 1 :]))]


def with_forgotten_delimiter(cells: list[str], table: Table) -> list[str] | None:
    """Return the cells of a row in which a space stands for one delimiter, where only one place
    makes sense; else None.

    A photo's column takes a file's name, a caption's takes words, and any other takes a number.
    """
    def fits(text: str, column: int) -> bool:
        name = table.header[column]
        if name == table.keys.image:
            return PHOTO_NAME.fullmatch(text.strip()) is not None
        if name in table.keys.captions:
            return any(letter.isalpha() for letter in text)
        return text.strip().isdigit()

    found = []
    for place, cell in enumerate(cells):
        first, _, second = cell.strip().partition(" ")
        candidate = [*cells[:place], first, second.strip(), *cells[place + 1 :]]
        if second and all(fits(text, column) for column, text in enumerate(candidate)):
            found.append(candidate)
    return found[0] if len(found) == 1 else None


def cell_captions(cell: str, place: str) -> object:
    """Return the caption of a cell; or the captions of a list, as json, Python or NumPy writes it.

    Literals are read and nothing is evaluated.
    """
    is_list = re.match(r"""\s*\[\s*["'{]""", cell)
    if not is_list and not re.fullmatch(r"""\s*\(\s*["'].*\)\s*""", cell, re.DOTALL):
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        pass
    between = STRING.sub("", cell.strip())
    if re.fullmatch(r"\[[\s,]*\]", between):  # texts and commas alone, or spaces as NumPy's
        try:
            return [ast.literal_eval(text) for text in STRING.findall(cell)]
        except (ValueError, SyntaxError):
            pass
    try:
        found = ast.literal_eval(cell.strip())
        if isinstance(found, list | tuple):
            return list(found)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        pass
    if not is_list:  # a caption in brackets
        return cell
    raise InputError(f"{place} begins like a list, and is no list of texts: write a row for each "
                     "caption")
