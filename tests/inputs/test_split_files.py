"""Which files hold a split: the usual ones, own data, and captions as their owners publish them."""

import json
from pathlib import Path

import pytest

from common.errors import InputError
from data import read_split
from inputs import records, sources
from inputs.records import read_records
from inputs.sources import find_split_file

DATA = Path("photos")  # splits are read without looking at the photos


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def photos_and_captions(dataset, split, folder, data_path=DATA, **more):
    found = read_split(dataset, split, data_path, folder, **more)
    texts = [[] for _ in found.images]
    for text, image in zip(found.captions, found.image_of_text.tolist(), strict=True):
        texts[image].append(text)
    return list(zip(found.images, texts, strict=True))


# ---------------------------------------------------------------------------------------- own data

OWN = {"json": [{"image": "a.jpg", "caption": "x"}], "csv": "file_name,text\na.jpg,x\n",
       "jsonl": '{"file_name": "a.jpg", "text": "x"}\n', "tsv": "filepath\ttitle\na.jpg\tx\n"}


@pytest.mark.parametrize("suffix", OWN)
@pytest.mark.parametrize("name", ["train", "val", "test", "validation", "valid", "dev"])
def test_own_data_is_a_file_for_each_split(tmp_path, name, suffix):
    path = write(tmp_path / f"{name}.{suffix}", OWN[suffix])
    split = name if name in ("train", "test") else "val"
    found = read_split("custom", split, DATA, tmp_path)
    assert (found.source, found.images, found.captions) == (path, ["a.jpg"], ["x"])


def test_own_data_is_looked_for_where_any_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "all" / "photos"
    photos.mkdir(parents=True)
    for path in (tmp_path / "all" / "train.csv", photos / "train.jsonl", Path("json/train.tsv")):
        write(path, OWN[path.suffix[1:]])
        assert find_split_file("custom", "train", photos, None) == path
    write(tmp_path / "mine" / "val.csv", OWN["csv"])
    with pytest.raises(InputError, match="no train.json, train.jsonl, train.csv or train.tsv is "
                                         "in mine: .* --json_path, .* python -m scripts.split"):
        find_split_file("custom", "train", photos, Path("mine"))


@pytest.mark.parametrize("file", ["metadata.csv", "metadata.jsonl"])
@pytest.mark.parametrize("folder", ["val", "validation", "dev"])
def test_an_imagefolder_is_read_beside_its_photos(tmp_path, folder, file):
    """Its names start in the folder of the split; a file for the split goes before it."""
    write(tmp_path / folder / file, OWN[file.split(".")[1]].replace("a.jpg", "sub/a.jpg"))
    assert photos_and_captions("custom", "val", None, tmp_path) == [(f"{folder}/sub/a.jpg", ["x"])]
    write(tmp_path / "val.json", OWN["json"])
    assert photos_and_captions("custom", "val", None, tmp_path) == [("a.jpg", ["x"])]


def test_two_files_for_a_split_are_one_too_many(tmp_path):
    for name in "val.json", "dev.csv":
        write(tmp_path / name, OWN[name.split(".")[1]])
    with pytest.raises(InputError, match="both .*val.json and .*dev.csv .* take one away"):
        find_split_file("custom", "val", DATA, tmp_path)


def test_a_single_file_is_to_be_split_first(tmp_path):
    path = write(tmp_path / "captions.csv", OWN["csv"])
    with pytest.raises(InputError, match=f"is a file: .* python -m scripts.split {path} --out"):
        find_split_file("custom", "train", DATA, path)


def test_who_forgets_the_data_set_is_told(tmp_path):
    write(tmp_path / "train.csv", OWN["csv"])
    with pytest.raises(InputError, match="--dataset custom$"):
        find_split_file("flickr", "train", tmp_path, tmp_path)
    with pytest.raises(InputError, match="name their folder with --json_path$"):
        find_split_file("flickr", "val", tmp_path, tmp_path)


def test_columns_have_the_names_that_the_user_says(tmp_path):
    write(tmp_path / "test.csv", "photo,words,text\na.jpg,A dog,no\n")
    columns = {"image_column": "photo", "caption_column": "words"}
    assert read_split("custom", "test", DATA, tmp_path, **columns).captions == ["A dog"]


def test_matches_lie_beside_a_table_too(tmp_path):
    write(tmp_path / "test.csv", "image,text\na.jpg,x\nb.jpg,y\n")
    write(tmp_path / "test_matches.json", {"matches": [[0, 1], [1]]})
    matches = read_split("custom", "test", DATA, tmp_path).matches
    assert matches.tolist() == [[True, True], [False, True]]


# ---------------------------------------------------------------------- captions from their owners

PLACES = [("train2014", "1", "train"), ("val2014", "2", "restval"), ("val2014", "3", "val"),
          ("val2014", "4", "test")]
OF_SPLIT = {"train": ["train2014/1.jpg", "val2014/2.jpg"], "val": ["val2014/3.jpg"],
            "test": ["val2014/4.jpg"]}


def karpathy(path, sentences=True):
    return write(path, {"images": [
        {"filepath": folder, "filename": f"{name}.jpg", "split": part,
         **({"sentences": [{"raw": f"Karpathy's of {name}."}]} if sentences else {})}
        for folder, name, part in PLACES]})


def coco(folder):
    for part in "train2014", "val2014":
        names = [name for place, name, _ in PLACES if place == part]
        write(folder / f"captions_{part}.json", {
            "images": [{"id": int(name), "file_name": f"{name}.jpg"} for name in names],
            "annotations": [{"image_id": int(name), "caption": f"{number} of {name}."}
                            for number in range(2) for name in reversed(names)]})
    return folder


@pytest.mark.parametrize("split", OF_SPLIT)
@pytest.mark.parametrize("where", ["beside, split alone", "one folder up", "json"])
def test_cocos_own_captions_and_karpathys_split(tmp_path, monkeypatch, split, where):
    """Photos are named, and ordered, as Karpathy's file does it: it knows their folders."""
    monkeypatch.chdir(tmp_path)
    folder = coco(tmp_path / "coco" / "annotations")
    place = {"one folder up": folder.parent, "json": Path("json")}.get(where, folder)
    karpathy(place / "dataset_coco.json", sentences=place != folder)
    assert photos_and_captions("mscoco", split, folder) == [
        (name, [f"{number} of {Path(name).stem}." for number in range(2)])
        for name in OF_SPLIT[split]]


def test_karpathys_captions_and_triples_go_before_the_owners(tmp_path):
    """As ever: what was read before the owners' captions could be is read still."""
    folder = coco(tmp_path)
    karpathy(folder / "dataset_coco.json")
    assert photos_and_captions("mscoco", "val", folder) == [
        ("val2014/3.jpg", ["Karpathy's of 3."])]
    write(folder / "coco_val.json", [{"image": "5.jpg", "caption": "A triple."}])
    assert photos_and_captions("mscoco", "val", folder) == [("5.jpg", ["A triple."])]


def test_the_owners_captions_are_the_last_to_be_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    coco(tmp_path / "json")
    triples = write(tmp_path / "coco_val.json", [{"image": "5.jpg", "caption": "A triple."}])
    photos = tmp_path / "images"
    assert find_split_file("mscoco", "val", photos, None) == triples
    triples.unlink()
    assert find_split_file("mscoco", "val", photos, None) == Path("json/captions_train2014.json")


@pytest.mark.parametrize(("dataset", "file", "prefix"), [
    ("flickr", "results_20130124.token", "flickr30k"),
    ("flickr8k", "Flickr8k.token.txt", "flickr8k")])
def test_flickrs_own_captions_and_karpathys_split(tmp_path, dataset, file, prefix):
    lines = [f"{name}.jpg#{number}\t{number} of {name} ." for _, name, _ in PLACES
             for number in range(2)]
    write(tmp_path / "text" / file, "\n".join([*lines, "in_no_split.jpg#0\tx"]) + "\n")
    karpathy(tmp_path / f"dataset_{prefix}.json")
    for split, names in OF_SPLIT.items():
        found = read_split(dataset, split, DATA, tmp_path / "text")
        assert found.images == names and found.source == tmp_path / "text" / file
        assert found.captions == [f"{number} of {Path(name).stem} ." for name in names
                                  for number in range(2)]


def test_flickr8ks_own_lists(tmp_path):
    """They go before Karpathy's split of the same photos."""
    write(tmp_path / "Flickr8k.token.txt",
          "".join(f"{name}.jpg#{n}\t{n} of {name} .\n" for name in "abcd" for n in range(2)))
    for part, names in ("train", "bd"), ("dev", "c"), ("test", "a"):
        write(tmp_path / f"Flickr_8k.{part}Images.txt", "".join(f"{n}.jpg\r\n" for n in names))
    for split, names in ("train", "bd"), ("val", "c"), ("test", "a"):
        assert photos_and_captions("flickr8k", split, tmp_path) == [
            (f"{name}.jpg", [f"0 of {name} .", f"1 of {name} ."]) for name in names]


@pytest.mark.parametrize(("spoil", "told"), [
    (lambda folder: (folder / "dataset_coco.json").unlink(),
     "captions_train2014.json says nothing of splits: put dataset_coco.json beside it"),
    (lambda folder: (folder / "captions_train2014.json").unlink(),
     "captions_val2014.json: without captions of 1 photos of the train split of .*dataset_coco"
     ".json, such as 'train2014/1.jpg': put all of captions_train2014.json, captions_val2014.json"),
    (lambda folder: write(folder / "dataset_coco.json", {"images": []}), "holds no train records"),
    (lambda folder: write(folder / "dataset_coco.json", {"images": [{"split": "val", "filename":
     "3.jpg"}]}), "dataset_coco.json has no photo of the train split"),
    (lambda folder: write(folder / "dataset_coco.json", {"images": [{"filename": "3.jpg"}]}),
     r"images\[0\] lacks 'split'"),
    (lambda folder: write(folder / "captions_val2014.json", "{"), "captions_val2014.json cannot"),
    (lambda folder: write(folder / "captions_val2014.json", {"images": []}),
     "captions_val2014.json holds no records")])
def test_owners_files_that_are_not_whole(tmp_path, spoil, told):
    folder = coco(tmp_path)
    karpathy(folder / "dataset_coco.json", sentences=False)
    spoil(folder)
    with pytest.raises(InputError, match=told) as caught:
        read_split("mscoco", "train", DATA, folder)
    assert "\n" not in str(caught.value)


def test_an_empty_list_of_photos(tmp_path):
    write(tmp_path / "Flickr8k.token.txt", "a.jpg#0\tx\n")
    write(tmp_path / "Flickr_8k.devImages.txt", "\n")
    with pytest.raises(InputError, match="Flickr_8k.devImages.txt names no photo"):
        read_split("flickr8k", "val", DATA, tmp_path)
    with pytest.raises(InputError, match="dataset_flickr8k.json or Flickr_8k.testImages.txt"):
        read_split("flickr8k", "test", DATA, tmp_path)


def test_flickr8k_in_full_from_its_owners_files(shared, tmp_path):
    """The real captions, written as their owner does it, are the split that they came from."""
    lines = []
    for split, part in ("train", "train"), ("val", "dev"), ("test", "test"):
        whole = read_split("flickr8k", split, DATA, shared / "json")
        write(tmp_path / f"Flickr_8k.{part}Images.txt", "\n".join(whole.images))
        number = dict.fromkeys(range(len(whole.images)), 0)
        for text, image in zip(whole.captions, whole.image_of_text.tolist(), strict=True):
            lines.append(f"{whole.images[image]}#{number[image]}\t{text}")
            number[image] += 1
    write(tmp_path / "Flickr8k.token.txt", "\n".join(sorted(lines)))
    found = read_split("flickr8k", "test", DATA, tmp_path)
    whole = read_split("flickr8k", "test", DATA, shared / "json")
    assert (found.images, found.captions) == (whole.images, whole.captions)


# ------------------------------------------------------------------------------- files without end


def endless(path, start=b""):
    """A file of 10 TB, nearly all of it holes, which read as zeros."""
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(10 * 2**40)
    return path


@pytest.mark.parametrize("name", ["c.csv", "c.tsv", "c.txt", "c.jsonl", "c.json"])
@pytest.mark.parametrize("start", [b"", b"image,caption\n1.jpg,", b'[{"image": "', b"\n\n"])
def test_a_file_without_end_is_not_read_to_it(tmp_path, name, start):
    with pytest.raises(InputError, match=name):
        read_records(endless(tmp_path / name, start))


@pytest.mark.parametrize("name", ["c.csv", "c.jsonl"])
def test_a_line_without_end_is_told_with_its_number(tmp_path, name, monkeypatch):
    monkeypatch.setattr(records, "LONGEST_LINE", 100)
    (tmp_path / name).write_text("image,caption\n" * 3 + "a" * 101)
    with pytest.raises(InputError, match=rf"{name}: line 4 has more than 100 bytes"):
        list(records.raw_lines(tmp_path / name))
    (tmp_path / name).write_text("a" * 99 + "\n" + "ä" * 49 + "\n")
    assert len(list(records.raw_lines(tmp_path / name))) == 2


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl", "train.json"])
def test_a_large_file_is_looked_at_before_its_digest_is_made(tmp_path, name, monkeypatch):
    """Which would read it to its end."""
    monkeypatch.setattr(sources, "records_key", lambda *_: pytest.fail("it was read"))
    endless(tmp_path / name)
    with pytest.raises(InputError, match=name):
        read_split("custom", "train", tmp_path)
