"""Data sets that the Hugging Face library `datasets` reads: Parquet and Arrow files, folders of
`save_to_disk`, the Hub; and captions files that are too large for lists.

The library maps its Arrow files, so that all processes of a machine share them, and a text or a
photo is read when it is asked for. It is an extra: `pip install -r requirements-datasets.txt`.
Nothing that comes along is run: only data files of the kinds in `BUILDERS` are read, no script and
no pickle, and a photo is never decoded by the library.
"""

import contextlib
import glob
import hashlib
import importlib.util
import io
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import InputError, one_line, reraise_out_of_memory
from common.files import leads_out_of_folder
from common.hub import hub_error
from common.options import SourceOptions
from common.terminal import print_status, warn
from inputs.photos import PhotoSequence
from inputs.records import (
    IMAGE_COLUMNS,
    MISSING,
    Columns,
    Keys,
    Record,
    announce_keys,
    caption_keys,
    find_key,
    plain,
    split_key,
    split_of_word,
)
from inputs.splits import Split

SUFFIXES = ".parquet", ".arrow"
# Which of the library's readers may read what a name of the Hub stands for: none of them runs code.
BUILDERS = {"parquet", "arrow", "imagefolder", "json", "csv"}
BATCH = 2**14  # texts that are read together
WAY_OUT = "pip install -r requirements-datasets.txt"


def has_library() -> bool:
    """Return whether the library `datasets` is installed."""
    return importlib.util.find_spec("datasets") is not None


def library(what: object):
    """Return the library `datasets`, quiet.

    Args:
        what: names what it is needed for in the error.

    Raises:
        InputError: it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{what}: Parquet and Arrow files and the Hub are read by the package "
                         f"datasets, which is missing: {WAY_OUT}") from error
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)  # its errors are told in a line here
    return datasets


# ----------------------------------------------------------------------------------- where they are


def is_arrow_data(place: Path | None) -> bool:
    """Whether a path is a folder of `save_to_disk`, or a file, folder or pattern of Parquet or
    Arrow files."""
    if place is None:
        return False
    if place.is_dir():
        return is_saved(place) or bool(data_files(place))
    return str(place).lower().endswith(SUFFIXES)


def is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` of the library has written a folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def data_files(place: Path) -> list[str]:
    """Return the Parquet or Arrow files of a folder, or of a pattern, sorted."""
    if not place.is_dir():
        return sorted(glob.glob(os.path.expanduser(str(place)), recursive=True))
    patterns = [place / depth / f"*{suffix}" for depth in ("", "*", "*/*") for suffix in SUFFIXES]
    return sorted({path for pattern in patterns for path in glob.glob(str(pattern))})


def split_of_file(path: str) -> str | None:
    """Return the split that the name of a file, or of its folder, says; None where it says none."""
    for text in os.path.basename(path), os.path.basename(os.path.dirname(path)):
        for word in re.split(r"[^a-z]+", text.lower()):
            if (split := split_of_word(word)) is not None:
                return split
    return None


# ----------------------------------------------------------------------------------------- reading


class Part(NamedTuple):
    """A part of a data set, as its owner cut it: a table, and the split that its name says."""

    split: str | None
    table: object  # a `datasets.Dataset`


def parts_of_files(options: SourceOptions, place: Path) -> list[Part]:
    """Return the parts of a folder or pattern of files.

    Raises:
        InputError: there is no file, or one cannot be read.
    """
    datasets = library(f"--data_path {place}")
    with errors_in_a_line(place):
        if place.is_dir() and is_saved(place):
            found = datasets.load_from_disk(str(place))
            named = found.items() if isinstance(found, dict) else [(None, found)]
            return [Part(split_of_word(name), table) for name, table in named]
        groups: dict[str | None, list[str]] = {}
        for path in data_files(place):
            groups.setdefault(split_of_file(path), []).append(path)
        if not groups:
            raise InputError(f"{place}: there is no such file")
        return [Part(split, read_files(datasets, paths, options))
                for split, paths in groups.items()]


def read_files(datasets, paths: list[str], options: SourceOptions):
    """Return one table of some Parquet or Arrow files. Arrow files are mapped as they are; Parquet
    files are written to the library's cache as Arrow files once."""
    kinds = {os.path.splitext(path)[1].lower() for path in paths}
    if len(kinds) > 1:
        raise InputError(f"{os.path.dirname(paths[0])} has files of both kinds, .parquet and "
                         ".arrow: name one with a pattern, '*.parquet'")
    if kinds == {".arrow"}:
        tables = [datasets.Dataset.from_file(path) for path in paths]
        return datasets.concatenate_datasets(tables) if len(tables) > 1 else tables[0]
    cache = None if options.cache is None else str(options.cache / "datasets")
    return datasets.load_dataset("parquet", data_files={"train": paths}, split="train",
                                 cache_dir=cache)


def parts_of_hub(options: SourceOptions, place: Path) -> list[Part]:
    """Return the splits of a data set of the Hub, `name` or `name:config`, or of a folder that is a
    copy of one.

    Raises:
        InputError: it cannot be had, or would run code.
    """
    datasets = library(f"--dataset hub --data_path {place}")
    name, _, config = str(place).partition(":")
    if not Path(name).is_dir() and (fault := hub_error()) is not None:
        datasets.config.HF_HUB_OFFLINE = True  # or the library would try again and again
    else:
        fault = None
    with errors_in_a_line(place, f"; the Hub does not answer: {fault}" if fault else ""):
        cache = None if options.cache is None else str(options.cache / "datasets")
        builder = datasets.load_dataset_builder(name, config or None, cache_dir=cache)
        kind = type(builder).__module__.split(".")
        if "packaged_modules" in kind and not BUILDERS & set(kind) and "cache" not in kind:
            raise InputError(f"--data_path {place}: its files are read by {kind[-1]!r}, which is "
                             f"none of {', '.join(sorted(BUILDERS))}; tar files are read with "
                             "--dataset custom, once they are fetched")
        found = datasets.load_dataset(name, config or None, cache_dir=cache)
        return [Part(split_of_word(split), table) for split, table in found.items()]


@contextlib.contextmanager
def errors_in_a_line(place: Path, more: str = "") -> Iterator[None]:
    """Turn whatever the library raises inside into an InputError of one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of dozens of kinds
        reraise_out_of_memory(error)
        text = one_line(error)
        if "script" in text.lower():
            raise InputError(f"--data_path {place} is a script, which would run code, and is "
                             "refused: fetch its Parquet files and name them with --dataset custom"
                             ) from error
        raise InputError(f"--data_path {place} cannot be read ({text[:300]}){more}") from error


# ------------------------------------------------------------------------------------------- splits


def split_of_arrow(
    options: SourceOptions, name: str, place: Path, upright: bool,
    captions_per_image: int | None = None,
) -> Split:
    """Return the split `name` of Parquet or Arrow files, of `save_to_disk`, or of the Hub.

    The splits are those that the owner cut; or a column says what is in a split, where the user
    names one, or where the owner cut nothing.

    Raises:
        InputError: there is no such split, or a row is not in order.
    """
    parts = (parts_of_hub if options.dataset == "hub" else parts_of_files)(options, place)
    columns = Columns(options.image_column, options.caption_column, options.split_column)
    names = parts[0].table.column_names
    by_column = split_key(names, columns.split, place)
    cut = {part.split for part in parts}
    has_own_path = name != "train" and {"val": options.val_path,
                                        "test": options.test_path}[name] is not None
    rows = None
    if by_column in names and (columns.split is not None or len(parts) == 1):
        tables = [part.table for part in parts]
        table = library(place).concatenate_datasets(tables) if len(tables) > 1 else tables[0]
        words = table.data.column(by_column).to_pylist()
        rows = np.array([number for number, word in enumerate(words)
                         if split_of_word(str(word)) == name], dtype=np.int64)
        if not len(rows):
            shown = ", ".join(sorted({str(word) for word in words})[:8])
            raise InputError(f"{place}: no row of column {by_column!r} says {name}, but {shown}: "
                             f"name the data of {name} with --{name}_path")
    elif name in cut and (len(cut) > 1 or not has_own_path):
        table = next(part.table for part in parts if part.split == name)
    elif len(parts) == 1 and (has_own_path or cut == {None} and name == "train"):
        table = parts[0].table
    else:
        shown = ", ".join(sorted(str(split) for split in cut if split)) or "nothing by name"
        raise InputError(f"{place} has no split {name}, but {shown}: name the data of {name} with "
                         f"--{name}_path, or a column that says it with --split_column")
    return split_of_table(table, Path(f"{place}: {name}"), columns, options, rows, place, upright,
                          captions_per_image)


def split_of_table(
    table, source: Path, columns: Columns, options: SourceOptions, rows: np.ndarray | None,
    place: Path, upright: bool = False, captions_per_image: int | None = None,
) -> Split:
    """Return the split that some rows of a table are.

    Args:
        table: a `datasets.Dataset`.
        source: names the split in messages.
        rows: (n,) of the table; None for all.
        place: the folder that paths of photos start in.
        upright: turn photos as their EXIF data say.

    Raises:
        InputError: a row has no photo or no caption, and --bad_rows is "refuse".
    """
    data = (table if table._indices is None else table.flatten_indices()).data
    rows = np.arange(len(data)) if rows is None else rows
    keys = find_columns(table, columns, place)
    photos = PhotoColumn(data, keys, table._fingerprint, place)
    captions, row_of_text, missing = flat_captions(data, keys, rows)
    missing = missing | photos.missing()[rows]
    if missing.any():
        first = int(rows[missing.argmax()])
        said = (f"{place}: row {first} (counted from 0) lacks a photo or a caption, or has a text "
                "that stands for a missing value")
        if options.bad_rows != "skip" or missing.all():
            raise InputError(f"{said} ({int(missing.sum()):,} rows do): take them out, or leave "
                             "them out with --bad_rows skip")
        warn(f"{place}: {int(missing.sum()):,} rows are left out (--bad_rows skip), the first: row "
             f"{first}")
    good = np.zeros(len(data), dtype=bool)
    good[rows[~missing]] = True
    is_good = good[row_of_text]
    captions, row_of_text = captions.take(np.flatnonzero(is_good)), row_of_text[is_good]
    announce_keys(keys, columns, place, print_status)
    group, firsts = photos.groups(rows[~missing])
    number_of_row = np.full(len(data), -1, dtype=np.int64)
    number_of_row[rows[~missing]] = group
    image_of_text = number_of_row[row_of_text]  # (N_t,)
    if captions_per_image is not None:
        chosen = first_of_each(image_of_text, captions_per_image)
        captions, image_of_text = captions.take(chosen), image_of_text[chosen]
    found = RowPhotos(photos, firsts, upright)
    release_memory()
    return Split(source, RowNames(photos, firsts), captions, image_of_text, photos=found)


def release_memory() -> None:
    """Give the system back what Arrow holds and does not use: hundreds of MB of large tables."""
    import pyarrow

    pyarrow.default_memory_pool().release_unused()


def first_of_each(groups: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the first `count` members of each group, in their order."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    place = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
    return np.sort(order[place < count])


def find_columns(table, columns: Columns, place: Path) -> Keys:
    """Return the columns of photo and captions: a column of photos itself goes before names."""
    names = table.column_names
    images = [name for name in names if is_photo_type(table.data.schema.field(name).type)]
    if columns.image is None and len(images) > 1:
        raise InputError(f"{place} has the columns {', '.join(images)} of photos: name one with "
                         "--image_column")
    image = images[0] if columns.image is None and images else find_key(
        names, columns.image, IMAGE_COLUMNS, "--image_column", place)
    texts = [name for name in names if name != image
             and is_text_type(table.data.schema.field(name).type)]
    return Keys(image, caption_keys(texts, columns.caption, place), None)


def is_photo_type(kind) -> bool:
    """Return whether an Arrow type is that of photos: bytes, or bytes and a path beside them."""
    import pyarrow

    if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
        return True
    return pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def is_text_type(kind) -> bool:
    """Return whether an Arrow type is that of texts, or of lists of texts."""
    import pyarrow

    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        kind = kind.value_type
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


# ----------------------------------------------------------------------------------------- captions


class ArrowTexts(Sequence):
    """Texts of mapped columns, each read when it is asked for.

    Args:
        columns: Arrow columns of texts.
        column_of: (N,) uint8, the column of each text.
        place_of: (N,) the place of each text in its column.
    """

    def __init__(self, columns: list, column_of: np.ndarray, place_of: np.ndarray):
        self.columns, self.column_of, self.place_of = columns, column_of, place_of

    def __len__(self) -> int:
        return len(self.place_of)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.read(np.arange(len(self))[index])
        index = range(len(self))[index]
        return self.columns[self.column_of[index]][int(self.place_of[index])].as_py()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BATCH):
            yield from self.read(np.arange(start, min(start + BATCH, len(self))))
        release_memory()

    def read(self, indices: np.ndarray) -> list[str]:
        """Return some texts, column by column, which takes a tenth of the time of one by one."""
        texts = np.empty(len(indices), dtype=object)
        columns, places = self.column_of[indices], self.place_of[indices]
        for number in np.unique(columns).tolist():
            wanted = np.flatnonzero(columns == number)
            low, high = int(places[wanted].min()), int(places[wanted].max()) + 1
            if high - low <= 4 * len(wanted):  # close to each other, as rows in their order are
                block = self.columns[number].slice(low, high - low)
                texts[wanted] = block.to_numpy(zero_copy_only=False)[places[wanted] - low]
            else:
                texts[wanted] = self.columns[number].take(places[wanted]).to_pylist()
        return texts.tolist()

    def take(self, indices: np.ndarray) -> "ArrowTexts":
        """Return some of these texts."""
        return ArrowTexts(self.columns, self.column_of[indices], self.place_of[indices])


def are_missing(texts) -> np.ndarray:
    """Return (N,) whether each text of an Arrow column stands for a missing value."""
    import pyarrow
    import pyarrow.compute as pc

    stands_for_none = pc.is_in(pc.utf8_trim_whitespace(texts),
                               pyarrow.array(sorted(MISSING), texts.type))
    return np.asarray(pc.or_kleene(pc.is_null(texts), stands_for_none))


def flat_captions(data, keys: Keys, rows: np.ndarray) -> tuple[ArrowTexts, np.ndarray, np.ndarray]:
    """Return the captions of rows of a table, in the rows' order; the row of each; and (n,) whether
    a row has none, or one in a list that stands for a missing value.

    Where several columns hold captions, those without a value are left out.
    """
    import pyarrow
    import pyarrow.compute as pc

    flat, column_of, place_of, row_of, bad = [], [], [], [], np.zeros(len(data), dtype=bool)
    for number, key in enumerate(keys.captions):
        column = data.column(key)
        kind = column.type
        if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
            counts = np.asarray(pc.fill_null(pc.list_value_length(column), 0))
            texts = pc.list_flatten(column)
            owners = np.repeat(np.arange(len(data)), counts)
        else:
            texts, owners = column, np.arange(len(data))
        absent = are_missing(texts)
        if texts is not column:
            bad[owners[absent]] = True  # a text of a list
        present = np.flatnonzero(~absent)
        flat.append(texts)
        column_of.append(np.full(len(present), number, dtype=np.uint8))
        place_of.append(present)
        row_of.append(owners[present])
    column_of, place_of, row_of = (np.concatenate(arrays)
                                   for arrays in (column_of, place_of, row_of))
    if len(flat) > 1:
        order = np.argsort(row_of, kind="stable")
        column_of, place_of, row_of = column_of[order], place_of[order], row_of[order]
    if len(rows) < len(data):
        wanted = np.zeros(len(data), dtype=bool)
        wanted[rows] = True
        chosen = np.flatnonzero(wanted[row_of])
        column_of, place_of, row_of = column_of[chosen], place_of[chosen], row_of[chosen]
    has_any = np.zeros(len(data), dtype=bool)
    has_any[row_of] = True
    small = place_of.astype(np.uint32) if len(data) < 2**31 else place_of
    return ArrowTexts(flat, column_of, small), row_of, (bad | ~has_any)[rows]


# ------------------------------------------------------------------------------------------- photos


class PhotoColumn:
    """The column of a table that holds photos: their bytes, or their paths.

    Args:
        data: the table, an Arrow one.
        keys: its columns.
        fingerprint: what the library says of its content.
        place: the folder that paths start in.
    """

    def __init__(self, data, keys: Keys, fingerprint: str, place: Path):
        import pyarrow

        column = data.column(keys.image)
        self.fingerprint, self.bytes, self.paths = fingerprint, None, None
        self.folder = place if place.is_dir() else place.parent
        if pyarrow.types.is_struct(column.type):
            import pyarrow.compute as pc

            self.bytes = pc.struct_field(column, "bytes")
            if column.type.get_field_index("path") >= 0:
                self.paths = pc.struct_field(column, "path")
        elif is_photo_type(column.type):
            self.bytes = column
        else:
            self.paths = column
        others = [name for name in data.column_names
                  if plain(name) in IMAGE_COLUMNS and name != keys.image
                  and is_text_type(data.schema.field(name).type)]
        self.names = data.column(others[0]) if others else self.paths

    def missing(self) -> np.ndarray:
        """Return (rows,) whether a row has neither bytes nor a path."""
        import pyarrow.compute as pc

        absent = np.ones(len(self.bytes if self.bytes is not None else self.paths), dtype=bool)
        if self.bytes is not None:
            absent &= np.asarray(pc.is_null(self.bytes))
        if self.paths is not None:
            absent &= are_missing(self.paths)
        return absent

    def groups(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (n,) the photo of each row, counted in the rows' order, and (N_i,) the first row
        of each photo. Rows of one name whose photos have as many bytes are one photo."""
        import pyarrow.compute as pc

        if self.names is None or self.names.null_count:
            return np.arange(len(rows)), rows
        names = self.names.take(rows) if len(rows) < len(self.names) else self.names
        encoded = names.combine_chunks().dictionary_encode()
        if len(encoded.dictionary) == len(rows):  # a row for each photo
            return np.arange(len(rows)), rows
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        if self.bytes is not None:
            lengths = np.asarray(pc.fill_null(pc.binary_length(self.bytes), 0))[rows]
            codes = codes * (int(lengths.max(initial=0)) + 1) + lengths
        _, firsts, group = np.unique(codes, return_index=True, return_inverse=True)
        order = np.argsort(firsts)  # by the first row of each
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order))
        return rank[group], rows[firsts[order]]

    def name(self, row: int) -> str:
        """Return the name of a row's photo; its number where it has none."""
        name = None if self.names is None else self.names[row].as_py()
        return str(row) if name is None else name

    def content(self, row: int) -> bytes:
        """Return the bytes of a row's photo.

        Raises:
            OSError: its file is not there, or is outside the folder of the data.
        """
        content = None if self.bytes is None else self.bytes[row].as_py()
        if content is not None:
            return content
        path = self.path(row)
        with open(path, "rb") as file:
            return file.read()

    def path(self, row: int) -> str:
        """Return the path of a row's photo, which must be inside the folder of the data, or in the
        library's cache."""
        name = self.paths[row].as_py().replace("\\", "/")
        path = os.path.join(self.folder, name)
        roots = [self.folder]
        if os.path.isabs(name):
            import datasets

            roots += [datasets.config.HF_DATASETS_CACHE, datasets.config.HF_CACHE_HOME]
        elif leads_out_of_folder(name):
            raise FileNotFoundError(f"{name} leads out of the folder")
        real = os.path.realpath(path)
        if not any(Path(real).is_relative_to(os.path.realpath(root)) for root in roots):
            raise FileNotFoundError(f"{name} is outside of {self.folder}")
        if not os.path.isfile(real):
            raise FileNotFoundError(f"there is no file {path}")
        return real


class RowPhoto:
    """A photo in a row of a table. It stands wherever the `Path` of a photo in a folder does."""

    def __init__(self, column: PhotoColumn, row: int):
        self.column, self.row = column, row

    def __str__(self) -> str:
        return f"{self.column.folder}: {self.name} (row {self.row})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowPhoto) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    @property
    def name(self) -> str:
        """Its name in the table, or its number."""
        return self.column.name(self.row)

    @property
    def identity(self) -> tuple:
        """Return what identifies the photo: its name and its size, or its place."""
        if self.column.names is None:
            return self.column.fingerprint, self.row
        size = 0 if self.column.bytes is None else len(self.column.content(self.row))
        return "name", self.name, size

    def open(self) -> io.BytesIO:
        """Return its bytes, as a file."""
        return io.BytesIO(self.column.content(self.row))

    def ends(self, length: int) -> tuple[int, bytes, bytes]:
        """Return its size and its first and last bytes, `length` of each."""
        content = self.column.content(self.row)
        return len(content), content[:length], content[-length:]

    def state(self) -> str:
        """Return a text that is another one where its bytes may be."""
        return f"{self.column.fingerprint} {self.row} {self.name!r}"


class RowPhotos(PhotoSequence):
    """Photos in rows of a table.

    Args:
        rows: (N_i,) rows.
        upright: turn photos as their EXIF data say.
    """

    def __init__(self, column: PhotoColumn, rows: np.ndarray, upright: bool):
        self.column, self.rows, self.upright = column, rows, upright

    def __len__(self) -> int:
        return len(self.rows)

    def photo(self, index: int) -> RowPhoto:
        return RowPhoto(self.column, int(self.rows[index]))

    def clues(self) -> Iterator[object]:
        if self.column.names is None:
            return ((self.column.fingerprint, int(row)) for row in self.rows)
        return iter(RowNames(self.column, self.rows))

    def missing(self, index: int) -> str | None:
        row = int(self.rows[index])
        if self.column.bytes is not None and self.column.bytes[row].is_valid:
            return None
        try:
            self.column.path(row)
        except OSError:
            return "missing"
        return None


class RowNames(Sequence):
    """The names of photos in rows of a table, each read when it is asked for."""

    def __init__(self, column: PhotoColumn, rows: np.ndarray):
        self.column, self.rows = column, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        return self.column.name(int(self.rows[index]))

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BATCH):
            rows = self.rows[start : start + BATCH]
            if self.column.names is None:
                yield from map(str, rows.tolist())
            else:
                for row, name in zip(rows.tolist(), self.column.names.take(rows).to_pylist()):
                    yield str(row) if name is None else name
        release_memory()


# --------------------------------------------------------------------------- large captions files


def mapped_records(
    records: Iterator[Record], key: str, cache: Path | None
):
    """Return a table of records, a row for each caption, in columns `image` and `caption`, from the
    library's cache if it was made for `key` before.

    Args:
        key: whatever the records depend on.

    Raises:
        InputError: of the records.
    """
    datasets = library("a captions file of this size")
    failure = []

    def rows() -> Iterator[dict]:
        try:
            for record in records:
                for caption in record.captions:
                    yield {"image": record.image, "caption": caption}
        except InputError as error:
            failure.append(error)
            raise

    features = datasets.Features({"image": datasets.Value("string"),
                                  "caption": datasets.Value("string")})
    folder = None if cache is None else str(cache / "datasets")
    try:
        return datasets.Dataset.from_generator(
            rows, features=features, cache_dir=folder,
            fingerprint=hashlib.sha256(key.encode()).hexdigest()[:32])
    except Exception as error:
        if failure:
            raise failure[0] from error
        raise
