r"""Check a data folder before a run: decode every photo, read every caption,
compare the splits.

    python -m scripts.check_data --dataset flickr \
        --data_path $DATA_PATH/f30k/images

It ends with status 0 where the folder can be used, maybe with remarks, and with
2 where it cannot, or where a photo of `custom` data is in two splits.
"""

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

import hashlib
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from common.options import CheckingOptions, check_paths, parse_checking

if __name__ == "__main__":
    parse_checking(__doc__)  # --help need not wait for the imports below

from PIL import Image

from common.errors import InputError, exit_on_input_error
from common.pools import map_in_processes
from common.terminal import print_result, progress
from data import Split, check_places
from inputs.arrow import RowPhoto
from inputs.captions import clean_caption
from inputs.loader import usable_cores
from inputs.photos import Photo as PhotoPlace
from inputs.photos import (
    Photos,
    TooLarge,
    load_photo,
    open_photo,
    photo_file,
)
from inputs.sources import read_split

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
    "rotated by EXIF": "turned, or used as stored, as --exif says; auto turns own data alone",
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


class Findings(NamedTuple):
    """What was found of a photo: kinds of `FATAL` and `ODD`, and a hash of its bytes."""

    kinds: list[str]
    digest: str = ""


def examine(photo: PhotoPlace | str) -> Findings:
    """Decode a photo and return what is unusual about it; in place of a photo that could not be
    found, its kind of `FATAL` is given."""
    if isinstance(photo, str):
        return Findings([photo])
    if isinstance(photo, Path) and not os.path.isfile(photo):
        return Findings(["missing"])
    try:
        with open_photo(photo) as image:
            kinds = odd_kinds(image)
        load_photo(photo)
        with photo_file(photo) as file:
            return Findings(kinds, hashlib.blake2b(file.read(), digest_size=16).hexdigest())
    except TooLarge:
        return Findings(["too large"])
    except (InputError, OSError):
        return Findings(["unreadable"])


def odd_kinds(image: Image.Image) -> list[str]:
    """Return the kinds of `ODD` that an opened photo is of."""
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


def examine_all(photos: list[PhotoPlace | str], workers: int) -> list[Findings]:
    """Call `examine` for each photo, in as many processes, behind a bar."""
    if any(isinstance(photo, RowPhoto) for photo in photos):
        workers = 0  # such a photo would take its whole table along to another process
    found = map_in_processes(examine, photos, min(workers, usable_cores()), "examining photos", 16)
    return list(progress(found, "examining photos", len(photos)))


def check_photos(splits: dict[str, Split], options: CheckingOptions) -> dict[str, list[str]]:
    """Return for each kind of `FATAL`, `ODD` and `BETWEEN` the photos that it was found in, as
    "split: name"."""
    names, photos, linked = [], [], set()
    for split_name, split in splits.items():
        for number, name in enumerate(split.images):
            label = f"{split_name}: {name}"
            photo = split.photos.missing(number) or split.photos[number]
            names.append((split_name, label))
            photos.append(photo)
            if isinstance(split.photos, Photos) and isinstance(photo, Path) and (
                    split.photos.leads_out(photo)):
                linked.add(label)
    found, same_file, same_bytes = defaultdict(list), defaultdict(list), defaultdict(list)
    findings = examine_all(photos, options.workers)
    for (split_name, label), photo, finding in zip(names, photos, findings, strict=True):
        for kind in finding.kinds:
            found[kind].append(label)
        if isinstance(photo, str):
            continue
        if label in linked:
            found["linked"].append(label)
        same_file[photo].append((split_name, label))
        if finding.digest:
            same_bytes[finding.digest].append((split_name, label, photo))
    for copies in same_file.values():
        if len(copies) > 1:
            parts, labels = zip(*copies)
            found["same name" if len(set(parts)) > 1 else "twice"].append(" = ".join(labels))
    for copies in same_bytes.values():
        parts, labels, files = zip(*copies)
        if len(set(files)) > 1:
            found["same bytes" if len(set(parts)) > 1 else "twice"].append(" = ".join(labels))
    return found


def check_captions(
    splits: dict[str, Split], max_words: int, cleaning: str = "published"
) -> dict[str, list[str]]:
    """Return for each kind of `CAPTIONS` the captions that it was found in, as "split: photo:
    caption"."""
    found = defaultdict(list)
    for split_name, split in splits.items():
        for text, image in zip(split.captions, split.image_of_text.tolist(), strict=True):
            words = text.split() if cleaning == "raw" else clean_caption(text, 10**9).split()
            label = f"{split_name}: {split.images[image]}: {text[:60]!r}"
            if not words:
                found["empty"].append(label)
            if len(words) > max_words and cleaning != "raw":
                found["long"].append(label)
    return found


def finding_lines(title: str, kinds: dict[str, str], found: dict[str, list[str]]) -> list[str]:
    """Return a title and a row for each kind that was found; no lines where none was."""
    rows = [f"  {kind:16} {len(found[kind]):7,}  {meaning}\n{'':28}{examples(found[kind])}"
            for kind, meaning in kinds.items() if found.get(kind)]
    return [title, *rows] if rows else []


def examples(labels: list[str], count: int = 3) -> str:
    """Return the first labels, and how many more there are."""
    more = f", and {len(labels) - count:,} more" if len(labels) > count else ""
    return ", ".join(labels[:count]) + more


def main(argv: list[str] | None = None) -> None:
    options = parse_checking(__doc__, argv)
    with exit_on_input_error():
        check_paths(options)
        if options.data_path is None:
            raise InputError("--data_path: name the folder of the photos, or their shards")
        check_places(options)
        splits = {split_name: read_split(options, split_name) for split_name in SPLITS}
        for split_name, split in splits.items():
            print_result(f"{split_name:5} {len(split.images):8,} photos {len(split.captions):9,} "
                         f"captions  {split.source}")
        photos, captions = check_photos(splits, options), check_captions(
            splits, options.max_words, options.captions)
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
