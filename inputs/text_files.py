"""Files of text, whole or line by line, and lists of json item by item."""

import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from common.errors import InputError, one_line
from common.files import read_bytes, read_json

BLOCK = 2**22  # letters of a json file that are read at a time
SPACE = re.compile(r"[ \t\n\r]*")
DELIMITERS = {*" \t\n\r,]"}  # what may follow an item of a json list


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


def raw_lines(path: Path) -> Iterator[str]:
    """The lines of a file, with their ends, one after another: a file may have millions.

    Raises:
        InputError: as `read_text` does, though only at the line that is at fault.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")
        with open(path, encoding="utf-8-sig", newline="") as file:
            for line in file:
                if "\0" in line:
                    raise ValueError("a NUL byte")
                yield line
    except (OSError, ValueError) as error:
        read_text(path)  # tells what and where
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error


def numbered_lines(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(number from 1, line) of the lines that are not blank, without their ends."""
    return ((str(number), line.rstrip("\r\n")) for number, line in enumerate(lines, 1)
            if line.strip())


def lines_of(text: str) -> Iterator[str]:
    """The lines of a text, with their ends, as of a file.

    Not by splitlines, which would part it at other letters that a caption may hold.
    """
    return iter(io.StringIO(text, newline=""))


def json_items(path: Path) -> Iterator[object] | None:
    """The items of a file that is a json list, one after another; None where it is no list.

    Raises:
        InputError: as `read_json` does, though only where the fault is reached.
    """
    if not path.is_file():
        return None
    try:
        with open(path, encoding="utf-8-sig") as file:
            start = next((letter for block in iter(lambda: file.read(1024), "")
                          for letter in block if letter not in " \t\n\r"), "")
    except (OSError, ValueError):
        return None
    return list_items(path) if start == "[" else None


def list_items(path: Path) -> Iterator[object]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            yield from parsed_items(file)
    except (OSError, ValueError, RecursionError) as error:
        read_json(path)  # tells what and where
        raise InputError(f"{path} cannot be read as json: {one_line(error)}") from error


def parsed_items(file: TextIO) -> Iterator[object]:
    """The items of a list; ValueError where it is none."""
    decode, text, place, ended = json.JSONDecoder().raw_decode, "", 0, False

    def more() -> None:
        nonlocal text, place, ended
        block = file.read(max(BLOCK, len(text) - place))
        text, place, ended = text[place:] + block, 0, not block

    def mark() -> str:
        """The next letter that is no space."""
        nonlocal place
        while (place := SPACE.match(text, place).end()) == len(text) and not ended:
            more()
        return text[place : place + 1]

    mark()  # the bracket that opens it
    place += 1
    after = mark()
    while after != "]":
        try:
            item, end = decode(text, place)
            whole = text[end : end + 1] in DELIMITERS  # of a number, more may follow
        except json.JSONDecodeError:
            if ended:
                raise
            whole = False
        if not whole and not ended:
            more()
            continue
        yield item
        place = end
        after = mark()
        if after == ",":
            place += 1
            mark()
        elif after != "]":
            raise ValueError("an item is followed by neither comma nor bracket")
    place += 1
    if mark():
        raise ValueError("something follows the list")
