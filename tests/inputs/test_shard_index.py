"""The index of shards: made by several processes as by one, kept, made anew, asked by name."""

import os
from pathlib import Path

import numpy as np
import pytest
from helpers.shards import PHOTO, jpeg, pairs, write_shard

from common.errors import InputError
from inputs import shard_index as module
from inputs.photos import check_photos
from inputs.shard_index import FOLDER, find_in_shards, pairs_of_shards, shard_index
from inputs.shards import find_shards


@pytest.fixture
def three(tmp_path):
    """Three shards of two pairs each, with faults of every kind among them; their pattern."""
    write_shard(tmp_path / "s" / "0.tar", [("z.txt", "alone"), *pairs(0, 2), ("e.jpg", b""),
                                           ("e.txt", "of none")])
    write_shard(tmp_path / "s" / "1.tar", [("bare.jpg", PHOTO)])
    write_shard(tmp_path / "s" / "2.tar", [])
    write_shard(tmp_path / "s" / "3.tar", [*pairs(2, 3), ("k.jpg", PHOTO), (
        "k.json", '{"caption": ["one", "two"]}'), ("t.jpg", PHOTO), ("t.png", PHOTO)])
    return tmp_path / "s" / "{0..3}.tar"


def arrays_of(index):
    """All that an index holds, in plain values."""
    split = pairs_of_shards(index, Path("x"), every=False)
    return {"photos": list(split.photos), "names": list(split.images),
            "captions": list(split.captions), "image_of_text": split.image_of_text.tolist(),
            "rows": index.rows.tolist(), "left_out": index.left_out()}


def count_scans(monkeypatch):
    scanned = []

    def scan(shard, caption_column):
        scanned.append(Path(shard.path).name)
        return module_scan(shard, caption_column)

    module_scan = module.scan_shard
    monkeypatch.setattr(module, "scan_shard", scan)
    monkeypatch.setattr(module, "usable_cores", lambda: 1)
    return scanned


def test_pairs_follow_the_shards_in_their_order(three):
    index = shard_index(find_shards(three))
    split = pairs_of_shards(index, three, every=False)
    photos = split.photos
    assert [photo.name for photo in photos] == [
        "0.tar/000000.jpg", "0.tar/000001.jpg", "3.tar/000002.jpg", "3.tar/k.jpg"]
    assert list(split.images) == [photo.name for photo in photos]
    assert list(split.captions) == ["photo 0", "photo 1", "photo 2", "one", "two"]
    assert split.image_of_text.tolist() == [0, 1, 2, 3, 3]
    assert split.image_of_text.dtype == np.int64
    assert all(photo.open().read() == PHOTO for photo in photos)


def test_what_is_left_out_is_counted_with_the_first_of_each_kind(three):
    told = shard_index(find_shards(three)).left_out()
    folder = three.parent
    assert told == [
        f"1 photos without a caption, such as {folder}/1.tar: bare.jpg",
        f"2 photos that are not alone in their sample, such as {folder}/3.tar: t.jpg",
        f"1 photos that are cut short or none, such as {folder}/0.tar: e.jpg",
        f"1 captions without a photo, such as {folder}/0.tar: z.txt",
        f"1 shards without a photo, such as {folder}/2.tar"]


def test_several_processes_index_as_one_does(three, monkeypatch, tmp_path):
    shards, found = find_shards(three), []
    monkeypatch.setattr(module, "index_folder", lambda shards, cache: cache)
    for cores in 1, 3:
        monkeypatch.setattr(module, "usable_cores", lambda cores=cores: cores)
        found.append(arrays_of(shard_index(shards, cache=tmp_path / f"cache{cores}")))
        found.append(arrays_of(shard_index(shards, cache=tmp_path / f"cache{cores}")))  # mapped
    found.append(arrays_of(shard_index(shards)))  # in memory
    assert all(other == found[0] for other in found[1:])


def test_an_index_is_kept_and_a_changed_shard_makes_it_anew(three, monkeypatch):
    scanned = count_scans(monkeypatch)
    first = arrays_of(shard_index(find_shards(three)))
    assert scanned == ["0.tar", "1.tar", "2.tar", "3.tar"]
    assert arrays_of(shard_index(find_shards(three))) == first and len(scanned) == 4
    content = (three.parent / "1.tar").read_bytes()
    write_shard(three.parent / "1.tar", [*pairs(7, 8), ("more.jpg", PHOTO), ("more.txt", "more")])
    assert "more" in arrays_of(shard_index(find_shards(three)))["captions"]
    # The same bytes at another time: nobody but their writer knows that they are the same.
    (three.parent / "1.tar").write_bytes(content)
    assert arrays_of(shard_index(find_shards(three)))["captions"] == first["captions"]
    assert scanned[4:] == ["1.tar", "1.tar"]  # and no other one
    assert arrays_of(shard_index(find_shards(three), "alt"))["captions"][0] == "photo 0"
    assert len(scanned) == 10  # a key of one's own is another index


def test_a_moved_folder_takes_its_index_along(three, tmp_path, monkeypatch):
    scanned = count_scans(monkeypatch)
    first = shard_index(find_shards(three))
    three.parent.rename(tmp_path / "moved")
    index = shard_index(find_shards(tmp_path / "moved" / three.name))
    assert len(scanned) == 4 and index.rows.tolist() == first.rows.tolist()
    assert arrays_of(index)["photos"][0].open().read() == PHOTO


@pytest.mark.parametrize("spoil", [
    lambda path: path.write_bytes(path.read_bytes()[:-1]),
    lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    lambda path: path.write_bytes(b""), lambda path: np.save(path, np.zeros(3))])
def test_a_damaged_index_is_made_anew(three, monkeypatch, capsys, spoil):
    first = arrays_of(shard_index(find_shards(three)))
    [path] = (three.parent / FOLDER).glob("3.tar-*.npy")
    spoil(path)
    scanned = count_scans(monkeypatch)
    assert arrays_of(shard_index(find_shards(three))) == first
    assert scanned == ["3.tar"] and "damaged" in capsys.readouterr().err
    assert arrays_of(shard_index(find_shards(three))) == first and len(scanned) == 1


def test_shards_that_cannot_be_written_beside_have_their_index_in_the_cache(
        three, monkeypatch, tmp_path):
    shards, cache = find_shards(three), tmp_path / "cache"
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: (
        Path(path) != three.parent and access(path, mode)))
    first = arrays_of(shard_index(shards, cache=cache))
    scanned = count_scans(monkeypatch)
    assert arrays_of(shard_index(shards, cache=cache)) == first and not scanned
    assert not (three.parent / FOLDER).exists() and len(list(cache.glob("*.npy"))) == 4


@pytest.mark.parametrize("cores", [1, 2])
def test_a_broken_shard_ends_it_and_nothing_is_left(three, monkeypatch, cores):
    monkeypatch.setattr(module, "usable_cores", lambda: cores)
    path = three.parent / "3.tar"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="3.tar is cut short inside 000002.jpg"):
        shard_index(find_shards(three))
    assert not list((three.parent / FOLDER).glob("3.tar-*"))


def test_a_process_that_is_killed_is_told(three, monkeypatch):
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    monkeypatch.setattr(module, "scan_shard", killed)
    with pytest.raises(InputError, match="was killed"):
        shard_index(find_shards(three))


def killed(shard, caption_column):
    os.kill(os.getpid(), 9)


# ---------------------------------------------------------------------------------------- by name


@pytest.fixture
def named(tmp_path):
    """Two shards in two folders, whose samples have the same keys in part."""
    write_shard(tmp_path / "a" / "0.tar", [("x/1.jpg", jpeg("red")), ("2.jpg", jpeg("green")),
                                           ("bad.jpg", b"")])
    write_shard(tmp_path / "b" / "0.tar", [("x/1.jpg", jpeg("blue")), ("y/3.jpg", jpeg("grey")),
                                           ("z/3.jpg", jpeg("pink")), ("w/2.jpg", jpeg("black"))])
    return shard_index(find_shards(tmp_path / "{a,b}" / "0.tar"))


@pytest.mark.parametrize("name, found", [
    ("2.jpg", "a/0.tar/2.jpg"), ("w/2.jpg", "b/0.tar/w/2.jpg"), ("y/3.jpg", "b/0.tar/y/3.jpg"),
    ("b/0.tar/x/1.jpg", "b/0.tar/x/1.jpg"), ("a/0.tar/x/1.jpg", "a/0.tar/x/1.jpg")])
def test_a_photo_is_found_by_its_path_its_shard_or_its_bare_name(named, name, found):
    photos = find_in_shards([name, "2.jpg"], named)
    assert named.name(int(photos.rows[0])) == found and photos[1].member == "2.jpg"


@pytest.mark.parametrize("name, told", [
    ("x/1.jpg", "more than once: name it with its shard"), ("3.jpg", "more than once"),
    ("none.jpg", "in none of the shards"), ("bad.jpg", "is cut short or no photo")])
def test_a_photo_that_is_missing_twice_there_or_broken_is_told(named, name, told):
    told = f"2 of 4 photos of val.json .* the first, {name}, .*{told}"
    with pytest.raises(InputError, match=told):
        check_photos(find_in_shards(["2.jpg", name, "w/2.jpg", "neither.jpg"], named), "val.json")


def test_names_of_an_index_lead_back_to_its_photos(named):
    """As embeddings that were saved with them do."""
    names = [named.name(row) for row in (0, 1, 3, 4)]
    assert find_in_shards(names, named).rows.tolist() == [0, 1, 3, 4]
