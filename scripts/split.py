r"""Split one file of captions into train, val and test by photo, so that no
photo is on two sides.

    python -m scripts.split captions.csv --out splits \
        --val 1000 --test 1000 --seed 0

It reads every format that `--dataset custom` reads, and writes `train.json`,
`val.json` and `test.json`. The same photos and seed give the same split on any
machine, in whatever order the captions stand. A file may say itself, in a
column `split` or one that --split_column names, which photo goes where: then
--val and --test are left out. With --photos, photos that are not in that folder
are left out and counted.
"""

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

import argparse
import hashlib
import json
from collections import defaultdict
from pathlib import Path, PurePosixPath

from common import files
from common.errors import InputError, exit_on_input_error
from common.options import SourceOptions
from common.parser import Parser, add_flags
from common.terminal import print_result, warn
from inputs.records import (
    SPLIT_NAMES,
    Columns,
    Record,
    own_files,
    read_records,
    split_of_word,
)

SPLITS = tuple(SPLIT_NAMES)
BEGIN = '[\n{"image": '  # of the files that are written here, and of no others


def drawn(photos: list[str], val: int, test: int, seed: int) -> dict[str, str]:
    """Return the split of each photo. The photos are ordered by a hash of seed and name; test and
    val come first.

    A photo that comes or goes later so moves few others.

    Raises:
        InputError: the sizes leave nothing for some split.
    """
    if min(val, test) < 1:
        raise InputError(f"--val {val} --test {test}: each must be at least 1")
    if val + test >= len(photos):
        raise InputError(f"--val {val} --test {test} leave no photo for training: there are "
                         f"{len(photos):,}")

    def place(photo: str) -> bytes:
        return hashlib.sha256(f"{seed} {photo}".encode(errors="surrogatepass")).digest()

    splits = ["test"] * test + ["val"] * val + ["train"] * (len(photos) - val - test)
    return dict(zip(sorted(photos, key=place), splits, strict=True))


def splits_of_file(records: list[Record], path: Path) -> dict[str, str]:
    """Return the split of each photo, as the file's own column says.

    Raises:
        InputError: it does not say so of some photo, or says two things, or leaves a split empty.
    """
    if not any(record.split for record in records):
        raise InputError(f"{path} has no column 'split': say with --val and --test how many photos "
                         "these shall have, or name the column with --split_column")
    split_of = {}
    for record in records:
        split = split_of_word(record.split)
        if split is None:
            raise InputError(f"{path}: {record.place}: split {record.split!r} is none of train, "
                             "val and test")
        if split_of.setdefault(record.image, split) != split:
            raise InputError(f"{path}: {record.place}: photo {record.image!r} is in {split}, and "
                             f"in {split_of[record.image]} before")
    for split in SPLITS:
        if split not in split_of.values():
            raise InputError(f"{path}: its column 'split' has no photo for {split}")
    return split_of


def check_conflict(records: list[Record], options: argparse.Namespace) -> None:
    """Raise InputError where the file says itself which photo goes where, and --val and --test do
    too."""
    saying = next((record for record in records if split_of_word(record.split)), None)
    if options.val is not None and saying is not None:
        raise InputError(f"{options.captions} says itself what goes where ({saying.place}: split "
                         f"{saying.split!r}): leave --val and --test out, or give --split_column "
                         "none to draw a split all the same")


def present(captions_of: dict[str, list[str]], folder: Path) -> dict[str, list[str]]:
    """Return the photos that are in a folder, with their captions, and say how many are not.

    Raises:
        InputError: none is there.
    """
    from inputs.photos import Photos, whereabouts  # PyTorch too, which --help need not wait for

    photos = Photos(list(captions_of), folder)
    if not folder.is_dir():
        raise InputError(f"--photos {folder} is not a folder of photos")
    missing = {name for number, name in enumerate(captions_of) if photos.missing(number)}
    if missing:
        first = next(iter(name for name in captions_of if name in missing))
        if len(missing) == len(captions_of):
            hint = whereabouts(first, folder).replace("--data_path", "--photos")
            raise InputError(f"--photos {folder} has none of the {len(missing):,} photos, such as "
                             f"{first}{hint or ': name the folder that has them'}")
        warn(f"{len(missing):,} of {len(captions_of):,} photos are not in {folder}, and are left "
             f"out, the first: {first}")
    return {name: texts for name, texts in captions_of.items() if name not in missing}


def output_places(out: Path, captions: Path) -> dict[str, Path]:
    """Return where each split may be written.

    Raises:
        InputError: anything else is there, under any name that `custom` would read.
    """
    def is_own(path: Path) -> bool:
        return files.read_start(path).startswith(BEGIN.encode())

    for split in SPLITS:
        for other in own_files(split, out):
            if other.name != f"{split}.json" and other.exists():
                raise InputError(f"--out {out} has {other.name} already, and can have only one "
                                 f"{split} split: name another folder")
    return {split: files.resolve_output(out / f"{split}.json", "--out", is_own, [captions])
            for split in SPLITS}


def as_json(captions_of: dict[str, list[str]]) -> bytes:
    """Return the json of a split, a photo a line; what is no Unicode is escaped, as a file's name
    may be."""
    lines = []
    for image, captions in captions_of.items():
        record = {"image": image, "caption": captions}
        line = json.dumps(record, ensure_ascii=False)
        lines.append(line if files.is_unicode(line) else json.dumps(record))
    return "[\n{}\n]\n".format(",\n".join(lines)).encode()


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("captions", metavar="CAPTIONS", type=Path, help="the file to split")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER",
                        help="folder of the three files; made where it is not there")
    parser.add_argument("--val", type=int, metavar="PHOTOS", help="size of val")
    parser.add_argument("--test", type=int, metavar="PHOTOS",
                        help="size of test; all other photos are trained on")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    parser.add_argument("--photos", type=Path, metavar="FOLDER",
                        help="leave out the photos that are not in this folder, and count them")
    add_flags(parser, SourceOptions, "image_column", "caption_column", "split_column", "bad_rows")
    options = parser.parse_args(argv)
    with exit_on_input_error():
        files.check_path(options.captions, "CAPTIONS")
        files.check_path(options.out / "train.json", "--out")
        if (options.val is None) != (options.test is None):
            raise InputError("--val and --test go together: give both, or neither for a file with "
                             "a column 'split'")
        columns = Columns(options.image_column, options.caption_column, options.split_column)
        records = [record._replace(image=str(PurePosixPath(record.image)))
                   for record in read_records(options.captions, columns=columns,
                                              bad_rows=options.bad_rows)]
        check_conflict(records, options)
        captions_of = defaultdict(list)
        for record in records:
            captions_of[record.image] += record.captions
        if options.photos is not None:
            captions_of = present(captions_of, options.photos)
            records = [record for record in records if record.image in captions_of]
        if options.val is None:
            split_of = splits_of_file(records, options.captions)
        else:
            split_of = drawn(list(captions_of), options.val, options.test, options.seed)
        places = output_places(options.out, options.captions)
        for split, place in places.items():
            captions_of_part = {image: texts for image, texts in captions_of.items()
                                if split_of[image] == split}
            files.write(place, as_json(captions_of_part), "--out")
            count = sum(map(len, captions_of_part.values()))
            print_result(f"{split:5} {len(captions_of_part):8,} photos {count:9,} captions  "
                         f"{options.out / split}.json")


if __name__ == "__main__":
    main()
