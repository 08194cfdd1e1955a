r"""Check a data folder before a run: decode every photo, read every caption,
compare the splits.

    python -m scripts.check_data --dataset flickr \
        --data_path $DATA_PATH/f30k/images

It ends with status 0 where the folder can be used, maybe with remarks, and with
2 where it cannot, or where a photo of `custom` data is in two splits.
"""

import hashlib
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from common.errors import exit_on_import_error
from common.options import CheckingOptions, check_paths, parse_checking

if __name__ == "__main__":
    exit_on_import_error()
    parse_checking(__doc__)  # --help need not wait for the imports below

from PIL import Image

from common.errors import InputError, exit_on_input_error
from common.pools import map_in_processes
from common.terminal import print_result, progress
from data import Split, check_places, photos_of, photos_place, read_split
from inputs.captions import clean_caption
from inputs.kept import cache_folder
from inputs.loader import usable_cores
from inputs.photos import TooLarge, link_check, load_photo, open_photo, photo_path
from inputs.records import Columns
from inputs.shard_index import ShardPhotos, look_up, shard_index
from inputs.shards import TarPhoto, find_shards, is_shards

SPLITS = "train", "val", "test"
ORIENTATION = 0x0112  # the EXIF tag
SMALL, LONG = 32, 10_000  # pixels of a side

# What is said of a finding; the first ones make a folder unusable.
FATAL = {
    "missing": "not in the folder, or the shards",
    "ambiguous": "several photos of the shards have this name: put the shard's before it",
    "unreadable": "cut short, or no photo",
    "too large": "more pixels than are decoded",
    "linked": "a link leads out of the folder: allow it with --follow_links",
}
ODD = {
    "CMYK": "converted to RGB without a colour profile",
    "palette": "converted to RGB",
    "16 bits": "the upper eight of each are used",
    "transparent": "transparency is dropped",
    "rotated by EXIF": "used as stored, not turned, as the published pipeline does",
    "animated": "the first frame is used",
    "small": f"a side below {SMALL} pixels",
    "long": f"a side above {LONG:,} pixels",
}
BETWEEN = {
    "same name": "one photo in two splits: the test leaks",
    "same bytes": "one photo under two names in two splits: the test leaks",
    "twice": "one photo under two names in a split: its captions are false negatives",
}
CAPTIONS = {
    "empty": "nothing is left after cleaning",
    "long": "cut after --max_words",
}


class Photo(NamedTuple):
    """What a look at a photo found: kinds of `FATAL` and `ODD`, and a hash of its bytes."""

    kinds: list[str]
    digest: str = ""


def examine(path: Path | TarPhoto | str) -> Photo:
    """Decode a photo and say what is unusual about it; in place of one that could not be found its
    kind of `FATAL` is given."""
    if isinstance(path, str):
        return Photo([path])
    if isinstance(path, Path) and not os.path.isfile(path):
        return Photo(["missing"])
    try:
        with open_photo(path) as image:
            kinds = odd_kinds(image)
        load_photo(path)
        with path.open() if isinstance(path, TarPhoto) else open(path, "rb") as file:
            return Photo(kinds, hashlib.blake2b(file.read(), digest_size=16).hexdigest())
    except TooLarge:
        return Photo(["too large"])
    except (InputError, OSError):
        return Photo(["unreadable"])


def odd_kinds(image: Image.Image) -> list[str]:
    """The kinds of `ODD` that an opened photo is of."""
    try:
        turned = image.getexif().get(ORIENTATION, 1) not in (0, 1)
    except Exception:  # EXIF data can be broken in any way; the pixels do not depend on it
        turned = False
    found = {
        "CMYK": image.mode == "CMYK",
        "palette": image.mode in ("P", "PA"),
        "16 bits": image.mode.startswith("I"),
        "transparent": image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info,
        "rotated by EXIF": turned,
        "animated": getattr(image, "n_frames", 1) > 1,
        "small": min(image.size) < SMALL,
        "long": max(image.size) > LONG,
    }
    return [kind for kind, is_so in found.items() if is_so]


def examine_all(paths: list[Path | TarPhoto | str], workers: int) -> list[Photo]:
    """`examine` each, in as many processes, behind a bar."""
    found = map_in_processes(examine, paths, min(workers, usable_cores()), "examining photos", 16)
    return list(progress(found, "examining photos", len(paths)))


def check_photos(splits: dict[str, Split], options: CheckingOptions) -> dict[str, list[str]]:
    """Kind of `FATAL`, `ODD` and `BETWEEN` to the photos it was found in, as "split: name"."""
    names = [(part, name) for part, split in splits.items() for name in split.images]
    paths = [path for part, split in splits.items() for path in split_paths(split, part, options)]
    photos = examine_all(paths, options.workers)
    leads_out = {part: link_check(photos_place(options, part)) for part in splits}
    found, same_file, same_bytes = defaultdict(list), defaultdict(list), defaultdict(list)
    for (part, name), path, photo in zip(names, paths, photos, strict=True):
        label = f"{part}: {name}"
        for kind in photo.kinds:
            found[kind].append(label)
        if photo.kinds[:1] in (["missing"], ["ambiguous"]):
            continue
        if not options.follow_links and isinstance(path, Path) and leads_out[part](path):
            found["linked"].append(label)
        same_file[path].append((part, label))
        if photo.digest:
            same_bytes[photo.digest].append((part, label, path))
    for copies in same_file.values():
        if len(copies) > 1:
            parts, labels = zip(*copies)
            found["same name" if len(set(parts)) > 1 else "twice"].append(" = ".join(labels))
    for copies in same_bytes.values():
        parts, labels, files = zip(*copies)
        if len(set(files)) > 1:
            found["same bytes" if len(set(parts)) > 1 else "twice"].append(" = ".join(labels))
    return found


def split_paths(
    split: Split, part: str, options: CheckingOptions
) -> list[Path | TarPhoto | str]:
    """Where a split's photos are, or should be; a kind of `FATAL` of one that shards lack."""
    place = photos_place(options, part)
    if isinstance(split.images, ShardPhotos):
        return list(photos_of(split.images, split.source, place, options))
    if not is_shards(place):
        return [photo_path(name, place) for name in split.images]
    index = shard_index(find_shards(place), options.caption_column, cache_folder(options.cache))
    kinds = {0: "missing", 1: None}
    return [kinds.get(times, "ambiguous") or index.photo(row)
            for row, times in zip(*(array.tolist() for array in look_up(split.images, index)))]


def check_captions(splits: dict[str, Split], max_words: int) -> dict[str, list[str]]:
    """Kind of `CAPTIONS` to the captions, as "split: photo: caption"."""
    found = defaultdict(list)
    for part, split in splits.items():
        for text, image in zip(split.captions, split.image_of_text.tolist(), strict=True):
            words = clean_caption(text, max_words=10**9).split()
            label = f"{part}: {split.images[image]}: {text[:60]!r}"
            if not words:
                found["empty"].append(label)
            if len(words) > max_words:
                found["long"].append(label)
    return found


def finding_lines(title: str, kinds: dict[str, str], found: dict[str, list[str]]) -> list[str]:
    """A title and a row for each kind that was found; no lines where none was."""
    rows = [f"  {kind:16} {len(found[kind]):7,}  {meaning}\n{'':28}{examples(found[kind])}"
            for kind, meaning in kinds.items() if found.get(kind)]
    return [title, *rows] if rows else []


def examples(labels: list[str], count: int = 3) -> str:
    more = f", and {len(labels) - count:,} more" if len(labels) > count else ""
    return ", ".join(labels[:count]) + more


def main(argv: list[str] | None = None) -> None:
    options = parse_checking(__doc__, argv)
    with exit_on_input_error():
        check_paths(options)
        if options.data_path is None:
            raise InputError("--data_path: name the folder of the photos, or their shards")
        check_places(options)
        columns = Columns(options.image_column, options.caption_column)
        splits = {part: read_split(options.dataset, part, photos_place(options, part),
                                   options.json_path, columns=columns,
                                   cache=cache_folder(options.cache)) for part in SPLITS}
        for part, split in splits.items():
            print_result(f"{part:5} {len(split.images):8,} photos {len(split.captions):9,} "
                         f"captions  {split.source}")
        photos, captions = check_photos(splits, options), check_captions(splits, options.max_words)
        for line in [*finding_lines("photos that cannot be used", FATAL, photos),
                     *finding_lines("photos that are used, but are unusual", ODD, photos),
                     *finding_lines("photos that are there twice", BETWEEN, photos),
                     *finding_lines("captions", CAPTIONS, captions)]:
            print_result(line)
        bad = sum(len(photos.get(kind, ())) for kind in FATAL)
        print_result(f"{bad:,} photos cannot be used" if bad else "every photo can be used")
        leak = options.dataset == "custom" and bool(photos["same name"])
        if leak:
            print_result("no run starts on these splits: split by photo, as python -m "
                         "scripts.split does")
        sys.exit(2 if bad or leak else 0)


if __name__ == "__main__":
    main()
