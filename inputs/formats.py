"""Captions files of every format, each read as a list of records.

`.json` holds triples, Karpathy's splits or COCO's captions, `.jsonl` a record a line. Of the other
files, those with lines `photo#number`, tab, caption are Flickr's, and the rest are tables.
"""

import json
import re
from pathlib import Path, PurePosixPath

from common.errors import InputError, one_line
from common.files import read_bytes, read_json
from inputs.records import (
    TRIPLE,
    USUAL,
    Columns,
    Record,
    check_record,
    check_rows,
    find_keys,
    refuse_columns,
)
from inputs.tables import table_records

KARPATHY_SPLITS = {"train": {"train", "restval"}, "val": {"val"}, "test": {"test"}}
TOKEN_LINE = re.compile(r"([^\t]+)#\d+\t(.*)")


def read_records(path: Path, split: str | None = None, columns: Columns = USUAL) -> list[Record]:
    """All records of a captions file, in its order.

    Args:
        split: train, val or test: of Karpathy's format, which holds all three, those of this one.

    Raises:
        InputError: the file cannot be read, holds no record, or one that is not in order: says
            which row and column.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        return json_records(read_json(path), path, split, columns)
    text = read_text(path)
    lines = numbered_lines(text)
    if not lines:
        raise InputError(f"{path} is empty")
    if suffix == ".jsonl":
        return line_records(lines, path, columns)
    if TOKEN_LINE.fullmatch(lines[0][1]):
        refuse_columns(columns, path)
        return token_records(lines, path)
    return table_records(text, path, columns)


def read_text(path: Path) -> str:
    """A file's text in UTF-8, with or without a byte-order mark."""
    try:
        content = read_bytes(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error
    return text_of(content, str(path))


def text_of(content: bytes, told: str) -> str:
    """The same of bytes; an error begins with `told`."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise InputError(f"{told}: line {line} is not UTF-8 (byte 0x{byte:02x}): save the file as "
                         "UTF-8") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{told}: line {line} holds a NUL byte, so it is no text in UTF-8: save "
                         "the file as UTF-8")
    return text


def numbered_lines(text: str) -> list[tuple[str, str]]:
    """(number from 1, line) of the lines that are not blank, whatever a line ends with.

    Not by splitlines, which would part it at other letters that a caption may hold.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(str(number), line) for number, line in enumerate(lines, 1) if line.strip()]


# --------------------------------------------------------------------------------------------- json


def json_records(
    content: object, path: Path, split: str | None = None, columns: Columns = USUAL
) -> list[Record]:
    """Records of a parsed json file: triples, Karpathy's format or COCO's."""
    records = []
    if isinstance(content, dict):
        refuse_columns(columns, path)
        if is_coco(content):
            return coco_records(content, path)
        content = flatten_karpathy(content, split, path)
    if isinstance(content, list) and content:
        keys = triple_keys(content[0], columns, path)
        records = [check_record(record, "record", number, path, keys)
                   for number, record in enumerate(content)]
    if not records:
        raise InputError(f"{path} holds no {f'{split} ' if split else ''}records: expected a list "
                         'of {"image": ..., "caption": ...}')
    return records


def triple_keys(first: object, columns: Columns, path: Path) -> tuple[str, str]:
    """The keys of photo and caption of a json list: those of triples, others where `first` has
    none of these or the user names some."""
    if not isinstance(first, dict) or columns == USUAL and {*TRIPLE} <= first.keys():
        return TRIPLE
    try:
        return find_keys(list(first), columns, path)
    except InputError:
        if columns != USUAL:
            raise
        return TRIPLE  # a record will be told to lack one of them


def flatten_karpathy(
    content: dict, split: str | None, path: Path, captions: bool = True
) -> list[dict]:
    """Records {image, caption: [...], split} of a split, or of all, of Karpathy's format.

    With `captions` false the photos alone are asked for: {image, split}.
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
    """Whether a json object is COCO's captions file, and not Karpathy's."""
    images = content.get("images")
    if not isinstance(images, list) or not isinstance(content.get("annotations"), list):
        return False
    return not any("split" in image for image in images[:1] if isinstance(image, dict))


def coco_records(content: dict, path: Path) -> list[Record]:
    """Records of COCO's own captions: the photos that have some, in the order of `images`."""
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


def line_records(lines: list[tuple[str, str]], path: Path, columns: Columns) -> list[Record]:
    """Records of a jsonl file, one an object a line; the first line's keys serve for all."""
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

    keys = find_keys(list(parsed(*lines[0])), columns, path)
    return check_rows(lines, lambda where, line: check_record(
        parsed(where, line), "line", where, path, keys), "line")


def token_records(lines: list[tuple[str, str]], path: Path) -> list[Record]:
    """Records of Flickr's own captions: `photo#number`, a tab, a caption."""
    records = []
    for where, line in lines:
        match = TOKEN_LINE.fullmatch(line)
        if not match:
            raise InputError(f"{path}: line {where} is not photo#number, a tab and a caption")
        record = {"image": match[1], "caption": [match[2]]}
        records.append(check_record(record, "photo", f"of line {where}", path))
    return records
