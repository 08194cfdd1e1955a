"""Where pairs come from: one function for each source, from the options to a `Split`.

`SOURCES` lists them, and `read_split` chooses. Whatever reads a `Split` never asks where it came
from. Flickr30K, COCO and Flickr8k come as triples or as Karpathy's file, or as their owners publish
them: captions without a split, which Karpathy's file or Flickr8k's lists then say. `custom` is
anybody's own data: a file for each split, tar shards, or Parquet and Arrow files; `hub` is a data
set of the Hugging Face Hub.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from common.errors import InputError, one_line
from common.files import open_file, read_json, user_cache_folder
from common.options import SourceOptions
from common.terminal import print_status, progress, warn
from inputs import arrow
from inputs.photos import Photos, PhotoSequence
from inputs.records import (
    SPLIT_NAMES,
    Columns,
    Record,
    check_record,
    check_start,
    each_record,
    flatten_karpathy,
    json_records,
    numbered_lines,
    own_files,
    raw_lines,
    split_of_word,
)
from inputs.shard_index import find_in_shards, pairs_of_shards, shard_index
from inputs.shards import find_shards, is_shards
from inputs.splits import Split, split_of_records

OWN_DATASETS = "custom", "hub"  # anybody's data, for which no pipeline was published
FILE_PREFIX = {"flickr": "flickr30k", "mscoco": "coco", "flickr8k": "flickr8k", "shapes": "shapes"}
# The captions as their owners publish them, and Flickr8k's own lists of photos.
OWNERS = {"flickr": ("results_20130124.token",), "flickr8k": ("Flickr8k.token.txt",),
          "mscoco": ("captions_train2014.json", "captions_val2014.json")}
LISTS = {"train": "Flickr_8k.trainImages.txt", "val": "Flickr_8k.devImages.txt",
         "test": "Flickr_8k.testImages.txt"}
LARGE = 2**24  # bytes of a captions file whose captions are mapped: about 100,000
VERSION = 1  # goes up whenever the same captions file gives other records
METADATA = "metadata.csv", "metadata.jsonl"  # of an imagefolder


def read_split(options: SourceOptions, name: str, captions_per_image: int | None = None) -> Split:
    """Read the split `name` from wherever the options say that it is.

    Args:
        name: train, val or test.
        captions_per_image: keep only the first so many captions of each photo (Fidelity note 9).

    Raises:
        InputError: the split is missing, cannot be read, is empty, or a record of it is not in
            order.
    """
    return SOURCES[source_of(options, name)](options, name, captions_per_image)


def source_of(options: SourceOptions, name: str) -> str:
    """Return which of `SOURCES` the split `name` comes from.

    Raises:
        InputError: --json_path is no folder.
    """
    if options.dataset == "hub":
        return "hub"
    if captions_in_shards(options, name):
        return "shards"
    if captions_in_arrow(options, name):
        return "arrow"
    return "files"


def split_of_files(
    options: SourceOptions, name: str, captions_per_image: int | None = None
) -> Split:
    """Return the split that a captions file names, whose photos are in a folder or in shards."""
    place = photos_place(options, name)
    path = find_split_file(options.dataset, name, place, options.json_path)
    split = mapped_split(path, options, name, captions_per_image) if is_large(path) else None
    if split is None:
        records = progress(split_file_records(path, options, name), f"reading {path.name}")
        split = split_of_records(records, path, captions_per_image)
    split.photos = photos_at(split.images, place, options)
    return split


def mapped_split(
    path: Path, options: SourceOptions, name: str, captions_per_image: int | None
) -> Split | None:
    """Return the split of a large captions file with its texts mapped from the cache, and not in
    lists; None, and a line that says why, where that cannot be done."""
    if not arrow.has_library():
        print_status(f"{path.name}: its captions are in memory; {arrow.WAY_OUT} has them mapped, "
                     "and shared by all processes")
        return None
    check_start(path)  # before its digest is made
    records = progress(split_file_records(path, options, name), f"reading {path.name}")
    try:
        table = arrow.mapped_records(records, records_key(path, options, name),
                                     cache_folder(options.cache))
    except OSError as error:
        warn(f"--cache {cache_folder(options.cache)} cannot be used ({one_line(error)}): captions "
             "are in memory, for this run alone")
        return None
    return arrow.split_of_table(table, path, Columns("image", "caption"), options, None, path,
                                captions_per_image=captions_per_image)


def is_large(path: Path) -> bool:
    """Return whether a captions file is so large that its captions are mapped and not in lists."""
    matches = path.with_name(f"{path.stem}_matches.json")
    return path.stat().st_size >= LARGE and not matches.is_file()


def records_key(path: Path, options: SourceOptions, name: str) -> str:
    """Return a text that is another one wherever the records of a split may be.

    The files' content is in it, and not their time: a copy can have the time of the original.
    """
    files = [path, *owners_files(options.dataset, path.parent)]
    if options.dataset in OWNERS:
        lists = [folder / file for folder in karpathy_folders(path.parent)
                 for file in (LISTS[name], karpathy_name(options.dataset))]
        files += [file for file in lists if file.is_file()]
    digests = []
    for file in dict.fromkeys(files):
        with open_file(file) as content:
            digests.append((os.path.abspath(file),
                            hashlib.file_digest(content, "sha256").hexdigest()))
    return repr((VERSION, digests, options.dataset, name, columns_of(options), options.bad_rows))


def split_of_shards(
    options: SourceOptions, name: str, captions_per_image: int | None = None
) -> Split:
    """Return the split that is all pairs in its tar shards, in the shards' order.

    Raises:
        InputError: there is no pair; or in val and test one cannot be used.
    """
    place = photos_place(options, name)
    index = shard_index(find_shards(place), options.caption_column, cache_folder(options.cache))
    return pairs_of_shards(index, place, name != "train", captions_per_image,
                           turns_photos(options))


def split_of_arrow_files(
    options: SourceOptions, name: str, captions_per_image: int | None = None
) -> Split:
    """Return the split that is in Parquet or Arrow files, in `save_to_disk`, or on the Hub."""
    return arrow.split_of_arrow(options, name, photos_place(options, name), turns_photos(options),
                                captions_per_image)


# From options, the name of a split and a number of captions per photo to a `Split`.
SOURCES = {
    "files": split_of_files,  # json, jsonl, tables and Flickr's own captions; photos elsewhere
    "shards": split_of_shards,  # photos and captions in tar files
    "arrow": split_of_arrow_files,  # Parquet, Arrow, `save_to_disk`; photos inside or beside
    "hub": split_of_arrow_files,  # a name of the Hugging Face Hub
}


def photos_place(options: SourceOptions, split: str) -> Path:
    """Return the folder, or the pattern of shards, of a split's photos."""
    path_of_split = {"val": options.val_path, "test": options.test_path}.get(split)
    return options.data_path if path_of_split is None else path_of_split


def photos_at(names: Sequence[str], place: Path, options: SourceOptions) -> PhotoSequence:
    """Return the photos of these names in a folder, or in tar shards; none is looked at yet."""
    if not is_shards(place):
        return Photos(names, place, options.follow_links, turns_photos(options))
    index = shard_index(find_shards(place), options.caption_column, cache_folder(options.cache))
    return find_in_shards(names, index, turns_photos(options))


def turns_photos(options: SourceOptions) -> bool:
    """Whether photos are turned as their EXIF orientation says: the published pipeline does not."""
    return options.exif == "apply" or options.exif == "auto" and options.dataset in OWN_DATASETS


def cache_folder(asked: Path | None) -> Path | None:
    """Return where what takes long to make is kept: `asked`, or in the user's cache, if any."""
    return asked if asked is not None else user_cache_folder("fne")


def columns_of(options: SourceOptions) -> Columns:
    """Return what the user calls the columns of a captions file."""
    return Columns(options.image_column, options.caption_column, options.split_column)


# ------------------------------------------------------------------------------------- split files


def split_file_records(path: Path, options: SourceOptions, split: str) -> Iterator[Record]:
    """Yield the records of a split from the file that `find_split_file` has found.

    Raises:
        InputError: of `inputs.records.each_record`; or a record of own data says that it belongs to
            another split than its file does.
    """
    dataset, columns = options.dataset, columns_of(options)
    if dataset == "custom":
        # Names in an imagefolder's metadata start in its own folder.
        before = f"{path.parent.name}/" if path.name in METADATA else ""
        for record in each_record(path, split, columns, options.bad_rows):
            if path.suffix != ".json" and split_of_word(record.split) not in (None, split):
                raise InputError(f"{path}: {record.place} says split {record.split!r}, in a file "
                                 f"of {split}: split it with python -m scripts.split {path} --out "
                                 "FOLDER")
            yield record._replace(image=f"{before}{record.image}")
        return
    if path.name in OWNERS.get(dataset, ()):
        yield from owners_records(dataset, split, path.parent)
        return
    if path.name != karpathy_name(dataset):
        yield from each_record(path, split, columns, options.bad_rows)
        return
    content = read_json(path)
    if has_sentences(content) or not owners_files(dataset, path.parent):
        yield from json_records(content, path, split, columns, options.bad_rows == "skip")
    else:
        yield from owners_records(dataset, split, path.parent)


def find_split_file(dataset: str, split: str, data_path: Path, json_path: Path | None) -> Path:
    """Return the file that holds a split: under `json_path`, or `json/`, or beside the photos.

    Triples go before Karpathy's file, and the owners' captions come last, after both have been
    looked for everywhere.

    Raises:
        InputError: it is in none of these places.
    """
    folders = split_folders(data_path, json_path)
    if dataset == "custom":
        return find_own_file(split, folders, data_path, json_path)
    names = f"{FILE_PREFIX[dataset]}_{split}.json", karpathy_name(dataset)
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    for folder in folders:
        for path in owners_files(dataset, folder):
            return path
    check_is_folder(data_path)
    has_own = any(path.is_file() for folder in folders for path in own_files(split, folder))
    raise InputError(f"neither {names[0]} nor {names[1]} is in {', '.join(map(str, folders))}: "
                     "name their folder with --json_path"
                     f"{', or read your own data with --dataset custom' if has_own else ''}")


def split_folders(data_path: Path, json_path: Path | None) -> list[Path]:
    """Return where split files are looked for."""
    beside = data_path.parent if is_shards(data_path) else data_path
    return [json_path] if json_path else [Path("json"), beside, beside.parent]


def check_is_folder(data_path: Path) -> None:
    """Raise InputError where photos are neither in a folder nor in shards."""
    if not is_shards(data_path) and not data_path.is_dir():
        raise InputError(f"--data_path {data_path} is not a folder")


def karpathy_name(dataset: str) -> str | None:
    """Return the name of Karpathy's file of a data set."""
    return f"dataset_{FILE_PREFIX[dataset]}.json" if dataset in FILE_PREFIX else None


# ---------------------------------------------------------------------------------------- own data


def find_own_file(
    split: str, folders: list[Path], data_path: Path, json_path: Path | None
) -> Path:
    """Return the file of a split of own data: `train.csv`, or `train/metadata.csv`, or the like.

    Raises:
        InputError: there is none, or more than one in the same folder.
    """
    if json_path and json_path.is_file():
        raise InputError(f"--json_path {json_path} is a file: split it with python -m "
                         f"scripts.split {json_path} --out FOLDER, and name that folder")
    path = own_file(split, folders)
    if path is not None:
        return path
    check_is_folder(data_path)
    tars = ("; tar shards are named themselves, as 'shards/{00000..00331}.tar'"
            if any(data_path.glob("*.tar")) else "")
    raise InputError(f"no {split}.json, {split}.jsonl, {split}.csv or {split}.tsv is in "
                     f"{', '.join(map(str, folders))}: name their folder with --json_path, or make "
                     f"them of one file with python -m scripts.split{tars}")


def own_file(split: str, folders: list[Path]) -> Path | None:
    """Return the file of a split of own data, or None.

    Raises:
        InputError: a folder has more than one.
    """
    for folder in folders:
        imagefolder = [folder / name / file for name in SPLIT_NAMES[split] for file in METADATA]
        for paths in own_files(split, folder), imagefolder:
            found = [path for path in paths if path.is_file()]
            if len(found) > 1:
                raise InputError(f"both {found[0]} and {found[1]} are there for the {split} "
                                 "split: take one away")
            if found:
                return found[0]
    return None


def captions_in_shards(options: SourceOptions, split: str) -> bool:
    """Whether a split is all that is in its tar shards: of own data, where no file says otherwise.

    Raises:
        InputError: --json_path is no folder.
    """
    place, json_path = photos_place(options, split), options.json_path
    if options.dataset != "custom" or not is_shards(place):
        return False
    if json_path and not json_path.is_dir():
        raise InputError(f"--json_path {json_path} is not a folder of split files")
    return own_file(split, split_folders(place, json_path)) is None


def captions_in_arrow(options: SourceOptions, split: str) -> bool:
    """Whether a split of own data is in Parquet or Arrow files, where no other file says what is in
    it."""
    place = photos_place(options, split)
    if options.dataset != "custom" or place is None:
        return False
    # Split files are looked for first: the folder may hold millions of photos.
    has_file = own_file(split, split_folders(place, options.json_path)) is not None
    return not has_file and arrow.is_arrow_data(place)


# ---------------------------------------------------------------------- captions from their owners


def owners_files(dataset: str, folder: Path) -> list[Path]:
    """Return the owners' captions of a data set that a folder has."""
    return [folder / name for name in OWNERS.get(dataset, ()) if (folder / name).is_file()]


def owners_records(dataset: str, split: str, folder: Path) -> list[Record]:
    """Return the owners' captions of the photos that are in a split, in the split's order.

    Raises:
        InputError: nothing says what is in the split, or a photo of it has no caption.
    """
    files = owners_files(dataset, folder)
    source, members = split_members(dataset, split, folder, files[0])
    texts = defaultdict(list)
    for path in files:
        for record in each_record(path):
            texts[bare_name(record.image)] += record.captions
    lacking = [name for name in members if bare_name(name) not in texts]
    if lacking:
        raise InputError(f"{' and '.join(map(str, files))}: without captions of {len(lacking):,} "
                         f"photos of the {split} split of {source}, such as {lacking[0]!r}: put "
                         f"all of {', '.join(OWNERS[dataset])} into {folder}")
    return [check_record({"image": name, "caption": texts[bare_name(name)]}, "photo", number,
                         source) for number, name in enumerate(members)]


def split_members(
    dataset: str, split: str, folder: Path, captions: Path
) -> tuple[Path, list[str]]:
    """Return the file that names the photos of a split of the owners' captions, and these names.

    That is Flickr8k's own list in `folder`; or Karpathy's file there, one folder up or in `json/`.
    """
    path = folder / LISTS[split]
    if dataset == "flickr8k" and path.is_file():
        members = [line.strip() for _, line in numbered_lines(raw_lines(path))]
        if not members:
            raise InputError(f"{path} names no photo")
        return path, members
    for place in karpathy_folders(folder):
        path = place / karpathy_name(dataset)
        if path.is_file():
            content = read_json(path)
            if not isinstance(content, dict):
                raise InputError(f"{path} is no Karpathy split file: it is no json object")
            members = [record["image"] for record in
                       flatten_karpathy(content, split, path, captions=False)]
            if not members:
                raise InputError(f"{path} has no photo of the {split} split")
            return path, members
    raise InputError(f"{captions} says nothing of splits: put {karpathy_name(dataset)}"
                     f"{f' or {LISTS[split]}' if dataset == 'flickr8k' else ''} beside it")


def karpathy_folders(folder: Path) -> list[Path]:
    """Return where Karpathy's file is looked for that says what of `folder` is in a split."""
    return [folder, folder.parent, Path("json")]


def has_sentences(content: object) -> bool:
    """Return whether Karpathy's file has captions, and not the split alone."""
    images = content.get("images") if isinstance(content, dict) else None
    return not isinstance(images, list) or not images or any(
        "sentences" in image for image in images if isinstance(image, dict))


def bare_name(name: str) -> str:
    """Return a photo's name without its folder, which the owners' files leave out."""
    return PurePosixPath(name).name
