"""Captions files of every format, each read as records, one after another.

`.json` holds triples, Karpathy's splits or COCO's captions, `.jsonl` a record a line. Of the other
files, those with lines `photo#number`, tab, caption are Flickr's, and the rest are tables.
"""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from common.errors import InputError, one_line
from common.files import read_json
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
from inputs.text_files import json_items, numbered_lines, raw_lines

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
    return list(each_record(path, split, columns))


def each_record(
    path: Path, split: str | None = None, columns: Columns = USUAL
) -> Iterator[Record]:
    """The same one after another, so that a list of millions is never whole in memory. Only
    Karpathy's and COCO's files are objects, and read as a whole."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        items = json_items(path)
        yield from json_records(read_json(path) if items is None else items, path, split, columns)
        return
    lines = numbered_lines(raw_lines(path))
    first = next(lines, None)
    if first is None:
        raise InputError(f"{path} is empty")
    if suffix == ".jsonl":
        yield from line_records(first, lines, path, columns)
    elif TOKEN_LINE.fullmatch(first[1]):
        refuse_columns(columns, path)
        yield from token_records(itertools.chain([first], lines), path)
    else:
        lines.close()
        yield from table_records(lambda: raw_lines(path), path, columns)


# --------------------------------------------------------------------------------------------- json


def json_records(
    content: object, path: Path, split: str | None = None, columns: Columns = USUAL
) -> Iterator[Record]:
    """Records of a parsed json file: triples, or their iterator; Karpathy's format or COCO's."""
    if isinstance(content, dict):
        refuse_columns(columns, path)
        if is_coco(content):
            yield from coco_records(content, path)
            return
        content = flatten_karpathy(content, split, path)
    items = iter(content if isinstance(content, list | Iterator) else ())
    first = next(items, None)
    if first is None:
        raise InputError(f"{path} holds no {f'{split} ' if split else ''}records: expected a list "
                         'of {"image": ..., "caption": ...}')
    keys = triple_keys(first, columns, path)
    for number, record in enumerate(itertools.chain([first], items)):
        yield check_record(record, "record", number, path, keys)


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


def line_records(
    first: tuple[str, str], others: Iterator[tuple[str, str]], path: Path, columns: Columns
) -> Iterator[Record]:
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

    keys = find_keys(list(parsed(*first)), columns, path)
    return check_rows(itertools.chain([first], others), lambda where, line: check_record(
        parsed(where, line), "line", where, path, keys), "line")


def token_records(lines: Iterator[tuple[str, str]], path: Path) -> Iterator[Record]:
    """Records of Flickr's own captions: `photo#number`, a tab, a caption."""
    for where, line in lines:
        match = TOKEN_LINE.fullmatch(line)
        if not match:
            raise InputError(f"{path}: line {where} is not photo#number, a tab and a caption")
        record = {"image": match[1], "caption": [match[2]]}
        yield check_record(record, "photo", f"of line {where}", path)
