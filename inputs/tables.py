"""Tables of captions, `.csv`, `.tsv` and their like: a row for each caption, a header first.

Rows are counted as a spreadsheet counts them, the header being row 1.
"""

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from common.errors import InputError, one_line
from inputs.records import Columns, Record, check_record, check_rows, find_keys

USUAL_DELIMITER = {".csv": ",", ".tsv": "\t"}
DELIMITERS = ",\t;|"  # open_clip's own .csv has tabs, and spreadsheets write semicolons


def table_records(
    lines: Callable[[], Iterator[str]], path: Path, columns: Columns
) -> Iterator[Record]:
    """Records of a table, one a row.

    Args:
        lines: gives its lines, with their ends, anew whenever it is called.

    Raises:
        InputError: a row is not in order, or the header names no photos or captions.
    """
    delimiter, header, keys = read_header(lines, path, columns)

    def read(where: str, cells: list[str]) -> Record:
        if len(cells) != len(header):
            raise InputError(f"{path}: row {where} has {len(cells)} columns and the header "
                             f"{len(header)}: put a text that holds {delimiter!r} into quotes")
        record = dict(zip(header, cells, strict=True))
        record[keys[0]] = record[keys[0]].strip()
        record[keys[1]] = cell_captions(record[keys[1]], f"{path}: row {where}: {keys[1]!r}")
        return check_record(record, "row", where, path, keys)

    rows = table_rows(lines(), delimiter, path)
    next(rows)  # the header
    first = next(rows, None)
    if first is None:
        raise InputError(f"{path} has a header and no row under it")
    yield from check_rows(itertools.chain([first], rows), read, "row")


def read_header(
    lines: Callable[[], Iterator[str]], path: Path, columns: Columns
) -> tuple[str, list[str], tuple[str, str]]:
    """A table's delimiter, the names of its columns, and those of photo and caption.

    The delimiter is the suffix's, or another one where only that shows the two columns.
    """
    usual = USUAL_DELIMITER.get(path.suffix.lower(), ",")
    faults = []
    for delimiter in usual, *DELIMITERS.replace(usual, ""):
        header = []
        try:
            _, cells = next(table_rows(lines(), delimiter, path), ("", []))
            header = [name.strip() for name in cells]
            keys = find_keys(header, columns, path)
        except InputError as error:
            faults.append((len(header), error))
            continue
        return delimiter, ["split" if name.lower() == "split" else name for name in header], keys
    raise max(faults, key=lambda fault: fault[0])[1]  # that of the delimiter that parts the most


def table_rows(
    lines: Iterator[str], delimiter: str, path: Path
) -> Iterator[tuple[str, list[str]]]:
    """(place, cells) of the rows of a table that are not empty.

    A place is a row's number, and the line that it starts in where that is another number.
    """
    rows = csv.reader(lines, delimiter=delimiter, strict=True,
                      skipinitialspace=True)
    number = 0
    while True:
        number, line = number + 1, rows.line_num + 1
        where = str(number) if number == line else f"{number} (line {line})"
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise InputError(f"{path}: row {where} cannot be read ({one_line(error)}): close every "
                             "quote, and write a quote inside quotes twice") from error
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield where, cells


def cell_captions(cell: str, what: str) -> object:
    """The caption of a cell; the captions of a json list, as Flickr30K is published on the Hub."""
    if not re.match(r"""\[\s*["']""", cell):
        return cell
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} begins like a list, and is no json list of texts: write a row "
                         "for each caption") from error
