"""Which files hold a split, and the records that they hold together.

Flickr30K, COCO and Flickr8k come as triples or as Karpathy's file, or as their owners publish them:
captions without a split, which Karpathy's file or Flickr8k's lists then say. `custom` is anybody's
own data, a file for each split.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from common.errors import InputError
from common.files import read_json
from inputs.formats import (
    each_record,
    flatten_karpathy,
    json_records,
    read_records,
)
from inputs.records import USUAL, Columns, Record, check_record
from inputs.shards import is_shards
from inputs.text_files import numbered_lines, raw_lines

FILE_PREFIX = {"flickr": "flickr30k", "mscoco": "coco", "flickr8k": "flickr8k", "shapes": "shapes"}
# The captions as their owners publish them, and Flickr8k's own lists of photos.
OWNERS = {"flickr": ("results_20130124.token",), "flickr8k": ("Flickr8k.token.txt",),
          "mscoco": ("captions_train2014.json", "captions_val2014.json")}
LISTS = {"train": "Flickr_8k.trainImages.txt", "val": "Flickr_8k.devImages.txt",
         "test": "Flickr_8k.testImages.txt"}
# What the files of own data may be called.
OWN_NAMES = {"train": ("train",), "val": ("val", "validation", "valid", "dev"), "test": ("test",)}
OWN_SUFFIXES = ".json", ".jsonl", ".csv", ".tsv"
METADATA = "metadata.csv", "metadata.jsonl"  # of an imagefolder


def split_records(
    dataset: str, split: str, data_path: Path, json_path: Path | None = None,
    columns: Columns = USUAL,
) -> tuple[Path, list[Record]]:
    """The records of a split, and the file that they come from.

    Raises:
        InputError: the file is missing, or of `read_records`.
    """
    path = find_split_file(dataset, split, data_path, json_path)
    return path, list(split_file_records(path, dataset, split, columns))


def split_file_records(
    path: Path, dataset: str, split: str, columns: Columns = USUAL
) -> Iterator[Record]:
    """The records of a split one after another, from the file that `find_split_file` has found."""
    if dataset == "custom" and path.name in METADATA:  # whose names start in its own folder
        return (record._replace(image=f"{path.parent.name}/{record.image}")
                for record in each_record(path, split, columns))
    if path.name in OWNERS.get(dataset, ()):
        return iter(owners_records(dataset, split, path.parent))
    if path.name != karpathy_name(dataset):
        return each_record(path, split, columns)
    content = read_json(path)
    if has_sentences(content) or not owners_files(dataset, path.parent):
        return json_records(content, path, split, columns)
    return iter(owners_records(dataset, split, path.parent))


def files_read(path: Path, dataset: str, split: str) -> list[Path]:
    """All files that `split_file_records` may read, where they are there: `path`, and of a data set
    whose owners publish captions alone what else may say what is in the split."""
    if dataset not in OWNERS:
        return [path]
    lists = [place / karpathy_name(dataset) for place in karpathy_places(path.parent)]
    others = [*owners_files(dataset, path.parent), path.parent / LISTS[split], *lists]
    return list(dict.fromkeys([path, *(other for other in others if other.is_file())]))


def find_split_file(dataset: str, split: str, data_path: Path, json_path: Path | None) -> Path:
    """The file that holds a split: under `json_path`, or `json/`, or beside the photos.

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
    own = any(path.is_file() for folder in folders for path in own_files(split, folder))
    raise InputError(f"neither {names[0]} nor {names[1]} is in {', '.join(map(str, folders))}: "
                     "name their folder with --json_path"
                     f"{', or read your own data with --dataset custom' if own else ''}")


def split_folders(data_path: Path, json_path: Path | None) -> list[Path]:
    """Where split files are looked for."""
    beside = data_path.parent if is_shards(data_path) else data_path
    return [json_path] if json_path else [Path("json"), beside, beside.parent]


def check_is_folder(data_path: Path) -> None:
    if not is_shards(data_path) and not data_path.is_dir():
        raise InputError(f"--data_path {data_path} is not a folder")


def karpathy_name(dataset: str) -> str | None:
    return f"dataset_{FILE_PREFIX[dataset]}.json" if dataset in FILE_PREFIX else None


# ---------------------------------------------------------------------------------------- own data


def own_files(split: str, folder: Path) -> list[Path]:
    """What a split of own data may be called in a folder, whether or not it is there."""
    return [folder / f"{name}{suffix}" for name in OWN_NAMES[split] for suffix in OWN_SUFFIXES]


def find_own_file(
    split: str, folders: list[Path], data_path: Path, json_path: Path | None
) -> Path:
    """A split of own data: `train.csv`, or `train/metadata.csv`, or another of their kind.

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
    """A split of own data, or None; InputError where a folder has more than one."""
    for folder in folders:
        imagefolder = [folder / name / file for name in OWN_NAMES[split] for file in METADATA]
        for paths in own_files(split, folder), imagefolder:
            found = [path for path in paths if path.is_file()]
            if len(found) > 1:
                raise InputError(f"both {found[0]} and {found[1]} are there for the {split} "
                                 "split: take one away")
            if found:
                return found[0]
    return None


def captions_in_shards(
    dataset: str, split: str, data_path: Path, json_path: Path | None
) -> bool:
    """Whether a split is all that is in its tar shards: of own data, where no file says otherwise.

    Raises:
        InputError: `json_path` is no folder.
    """
    if dataset != "custom" or not is_shards(data_path):
        return False
    if json_path and not json_path.is_dir():
        raise InputError(f"--json_path {json_path} is not a folder of split files")
    return own_file(split, split_folders(data_path, json_path)) is None


# ---------------------------------------------------------------------- captions from their owners


def owners_files(dataset: str, folder: Path) -> list[Path]:
    """The owners' captions of a data set that a folder has."""
    return [folder / name for name in OWNERS.get(dataset, ()) if (folder / name).is_file()]


def owners_records(dataset: str, split: str, folder: Path) -> list[Record]:
    """The owners' captions of the photos that are in a split, in the order of that.

    Raises:
        InputError: nothing says what is in the split, or a photo of it has no caption.
    """
    files = owners_files(dataset, folder)
    source, members = split_members(dataset, split, folder, files[0])
    texts = defaultdict(list)
    for path in files:
        for record in read_records(path):
            texts[bare(record.image)] += record.captions
    lacking = [name for name in members if bare(name) not in texts]
    if lacking:
        raise InputError(f"{' and '.join(map(str, files))}: without captions of {len(lacking):,} "
                         f"photos of the {split} split of {source}, such as {lacking[0]!r}: put "
                         f"all of {', '.join(OWNERS[dataset])} into {folder}")
    return [check_record({"image": name, "caption": texts[bare(name)]}, "photo", number, source)
            for number, name in enumerate(members)]


def split_members(
    dataset: str, split: str, folder: Path, captions: Path
) -> tuple[Path, list[str]]:
    """The photos of a split of the owners' captions in `folder`, and the file that names them.

    That is Flickr8k's own list beside them; or Karpathy's file there, one folder up or in `json/`.
    """
    path = folder / LISTS[split]
    if dataset == "flickr8k" and path.is_file():
        members = [line.strip() for _, line in numbered_lines(raw_lines(path))]
        if not members:
            raise InputError(f"{path} names no photo")
        return path, members
    for place in karpathy_places(folder):
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


def karpathy_places(folder: Path) -> list[Path]:
    """Where Karpathy's file is looked for that says what of `folder` is in a split."""
    return [folder, folder.parent, Path("json")]


def has_sentences(content: object) -> bool:
    """Whether Karpathy's file has captions, and not the split alone."""
    images = content.get("images") if isinstance(content, dict) else None
    return not isinstance(images, list) or not images or any(
        "sentences" in image for image in images if isinstance(image, dict))


def bare(name: str) -> str:
    """A photo's name without its folder, which the owners' files leave out."""
    return PurePosixPath(name).name
