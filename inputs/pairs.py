"""A split as arrays: the names of its photos, its captions, and which photo each caption is of."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import InputError, one_line
from common.terminal import progress
from inputs.arrays import Parts, Texts, rows_of
from inputs.kept import Arrays, file_digest, kept
from inputs.records import Columns, Record
from inputs.split_files import files_read, split_file_records

LARGE = 2**24  # bytes of split files whose arrays are kept; those of about 100,000 captions
PART = 2**16  # captions that are objects at a time


class PairArrays(NamedTuple):
    """N_i photos and N_t captions."""

    images: Texts  # (N_i,) names
    captions: Texts  # (N_t,) raw
    image_of_text: np.ndarray  # (N_t,) int64
    rows: np.ndarray | slice  # which of the file's captions these are
    in_file: int  # captions of the file


def pair_arrays(
    path: Path, dataset: str, split: str, captions_per_image: int | None, columns: Columns,
    cache: Path | None,
) -> PairArrays:
    """The arrays of a split, whose file `find_split_file` has found.

    Args:
        captions_per_image: keep only the first so many captions of each photo.
        cache: folder in which those of a large split are kept.

    Raises:
        InputError: of `split_file_records`.
    """
    sources = files_read(path, dataset, split)

    def key() -> dict:
        return {"files": [[os.path.abspath(source), digest_of(source)] for source in sources],
                "dataset": dataset, "split": split, "columns": list(columns),
                "captions_per_image": captions_per_image}

    def fill(parts: Parts) -> None:
        records = split_file_records(path, dataset, split, columns)
        add_pairs(progress(records, f"reading {path.name}"), captions_per_image, parts)

    large = sum(source.stat().st_size for source in sources if source.is_file()) >= LARGE
    return as_pairs(kept(cache if large else None, "captions", key, fill))


def digest_of(source: Path) -> str:
    try:
        return file_digest(source)
    except OSError as error:
        raise InputError(f"{source} cannot be read: {one_line(error)}") from error


def add_pairs(records: Iterable[Record], captions_per_image: int | None, parts: Parts) -> None:
    """Write a split's arrays to `parts`, from records one after another."""
    number_of: dict[str, int] = {}
    seen = Counter()  # captions of each photo so far, where they are limited
    names, texts, owners, rows, photos, in_file = [], [], [], [], 0, 0

    def write() -> None:
        parts.add_texts("images", names)
        parts.add_texts("captions", texts)
        parts.add("image_of_text", np.array(owners, dtype=np.int64))
        if captions_per_image is not None:
            parts.add("rows", np.array(rows, dtype=np.int64))
        for written in names, texts, owners, rows:
            written.clear()

    for record in records:
        image = number_of.setdefault(record.image, len(number_of))
        if len(number_of) > photos:
            photos += 1
            names.append(record.image)
        captions = record.captions
        if captions_per_image is not None:
            captions = captions[: max(0, captions_per_image - seen[image])]
            seen[image] += len(record.captions)
            rows += range(in_file, in_file + len(captions))
        texts += captions
        owners += [image] * len(captions)
        in_file += len(record.captions)
        if len(texts) + len(names) >= PART:
            write()
    write()
    parts.add("in_file", np.array([in_file], dtype=np.int64))


def as_pairs(arrays: Arrays) -> PairArrays:
    return PairArrays(Texts(*rows_of(arrays, "images")), Texts(*rows_of(arrays, "captions")),
                      arrays["image_of_text"], arrays.get("rows", slice(None)),
                      int(arrays["in_file"][0]))
