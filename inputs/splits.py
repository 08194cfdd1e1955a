"""What every source of pairs gives: a split, in which each photo is there once."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.files import read_json
from inputs.records import Record


@dataclass
class Split:
    """N_i photos and N_t captions, in the order of their source. Every source of pairs gives this.

    Attributes:
        source: the file, or the name of the data set, that the split comes from.
        images: (N_i) names of the photos, as the source writes them.
        captions: (N_t) raw texts.
        image_of_text: (N_t,) int64, the photo of each caption.
        matches: (N_t, N_i) bool, where known: every true match, annotated or not.
        photos: (N_i) the photos themselves (`inputs.photos.PhotoSequence`); None where only their
            names are known.
    """

    source: Path
    images: Sequence[str]
    captions: Sequence[str]
    image_of_text: np.ndarray
    matches: np.ndarray | None = None
    photos: Sequence | None = None


def split_of_records(
    records: Iterable[Record], source: Path, captions_per_image: int | None = None
) -> Split:
    """Return the split that records say; those of one `image` are one photo.

    Args:
        captions_per_image: keep only the first so many captions of each photo.

    Raises:
        InputError: of the file of true matches beside `source`.
    """
    number_of: dict[str, int] = {}
    captions: list[str] = []
    image_of_text: list[int] = []
    rows: list[int] = []  # of the captions that are kept, among those of the file
    captions_of_image: Counter[int] = Counter()
    captions_in_file = 0
    for record in records:
        image = number_of.setdefault(record.image, len(number_of))
        texts = record.captions
        if captions_per_image is not None:
            texts = texts[: max(0, captions_per_image - captions_of_image[image])]
            captions_of_image[image] += len(record.captions)
        captions += texts
        image_of_text += [image] * len(texts)
        rows += range(captions_in_file, captions_in_file + len(texts))
        captions_in_file += len(record.captions)
    matches = read_matches(source, captions_in_file, len(number_of))
    return Split(source, list(number_of), captions, np.array(image_of_text, dtype=np.int64),
                 None if matches is None else matches[rows])


def read_matches(path: Path, captions: int, images: int) -> np.ndarray | None:
    """Read the (N_t, N_i) true matches that `<split>_matches.json` beside a split lists, if it is
    there.

    The file is `{"matches": [[photo indices of caption 0], ...]}`, in the order of the split.

    Raises:
        InputError: the file has other captions or photos.
    """
    path = path.with_name(path.stem + "_matches.json")
    if not path.is_file():
        return None
    content = read_json(path)
    lists = content.get("matches") if isinstance(content, dict) else None
    if not isinstance(lists, list) or len(lists) != captions:
        raise InputError(f"{path} does not list the 'matches' of {captions} captions")
    matches = np.zeros((captions, images), dtype=bool)
    for number, found in enumerate(lists):
        if not isinstance(found, list) or not all(
                type(image) is int and 0 <= image < images for image in found):
            raise InputError(f"{path}: the matches of caption {number} are not a list of numbers "
                             f"from 0 to {images - 1}")
        matches[number, found] = True
    return matches
