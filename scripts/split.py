r"""Split one file of captions into train, val and test by photo, so that no
photo is on two sides.

    python -m scripts.split captions.csv --out splits \
        --val 1000 --test 1000 --seed 0

It reads every format that `--dataset custom` reads, and writes `train.json`,
`val.json` and `test.json`. The same photos and seed give the same split on any
machine, in whatever order the captions stand. Without --val and --test the file
itself must say in a column `split` which photo goes where.
"""

import hashlib
import json
from collections import defaultdict
from pathlib import Path, PurePosixPath

from common import files
from common.errors import InputError, exit_on_input_error
from common.flags import Parser, add_column_flags
from common.terminal import print_result
from inputs.formats import KARPATHY_SPLITS, read_records
from inputs.records import Columns, Record
from inputs.split_files import OWN_NAMES, own_files

SPLITS = tuple(OWN_NAMES)
BEGIN = '[\n{"image": '  # of the files that are written here, and of no others


def drawn(photos: list[str], val: int, test: int, seed: int) -> dict[str, str]:
    """Photo to split. The photos are ordered by a hash of seed and name; test and val come first.

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

    parts = ["test"] * test + ["val"] * val + ["train"] * (len(photos) - val - test)
    return dict(zip(sorted(photos, key=place), parts, strict=True))


def as_told(records: list[Record], path: Path) -> dict[str, str]:
    """Photo to split, as the file's own column says.

    Raises:
        InputError: it does not say so of some photo, or says two things, or leaves a split empty.
    """
    if not any(record.split for record in records):
        raise InputError(f"{path} has no column 'split': say with --val and --test how many photos "
                         "these shall have")
    split_of = {}
    for record in records:
        told = (record.split or "").strip().lower()
        part = next((part for part in SPLITS
                     if told in KARPATHY_SPLITS[part] or told in OWN_NAMES[part]), None)
        if part is None:
            raise InputError(f"{path}: {record.place}: split {record.split!r} is none of train, "
                             "val and test")
        if split_of.setdefault(record.image, part) != part:
            raise InputError(f"{path}: {record.place}: photo {record.image!r} is in {part}, and "
                             f"in {split_of[record.image]} before")
    for part in SPLITS:
        if part not in split_of.values():
            raise InputError(f"{path}: its column 'split' has no photo for {part}")
    return split_of


def output_places(out: Path, captions: Path) -> dict[str, Path]:
    """Where each split may be written: InputError where anything else is there, by any name that
    `custom` would read."""
    def is_own(path: Path) -> bool:
        return files.read_bytes(path).startswith(BEGIN.encode())

    for part in SPLITS:
        for other in own_files(part, out):
            if other.name != f"{part}.json" and other.exists():
                raise InputError(f"--out {out} has {other.name} already, and can have only one "
                                 f"{part} split: name another folder")
    return {part: files.resolve_output(out / f"{part}.json", "--out", is_own, [captions])
            for part in SPLITS}


def as_json(captions_of: dict[str, list[str]]) -> bytes:
    """The json of a split, a photo a line; what is no Unicode is escaped, as a file's name may be.
    """
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
    add_column_flags(parser)
    options = parser.parse_args(argv)
    with exit_on_input_error():
        files.check_path(options.captions, "CAPTIONS")
        files.check_path(options.out / "train.json", "--out")
        if (options.val is None) != (options.test is None):
            raise InputError("--val and --test go together: give both, or neither for a file with "
                             "a column 'split'")
        records = [record._replace(image=str(PurePosixPath(record.image)))
                   for record in read_records(options.captions, columns=Columns(
                       options.image_column, options.caption_column))]
        captions_of = defaultdict(list)
        for record in records:
            captions_of[record.image] += record.captions
        if options.val is None:
            split_of = as_told(records, options.captions)
        else:
            split_of = drawn(list(captions_of), options.val, options.test, options.seed)
        places = output_places(options.out, options.captions)
        for part, place in places.items():
            own = {image: texts for image, texts in captions_of.items() if split_of[image] == part}
            files.write(place, as_json(own), "--out")
            print_result(f"{part:5} {len(own):8,} photos {sum(map(len, own.values())):9,} "
                         f"captions  {options.out / part}.json")


if __name__ == "__main__":
    main()
