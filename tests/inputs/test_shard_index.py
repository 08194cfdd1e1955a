"""The index of shards: made by several processes as by one, kept, made anew, asked by name."""

import os
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import contents
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


def kept_index(pattern, column=None):
    """The index of shards, kept in a cache beside their folder."""
    return shard_index(find_shards(pattern), column, pattern.parent.parent / "cache")


def kept_files(pattern, name="*"):
    return list((pattern.parent.parent / "cache" / FOLDER).glob(f"{name}.npy"))


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
    index = kept_index(three)
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
    told = kept_index(three).left_out()
    folder = three.parent
    assert told == [
        f"1 photos without a caption, such as {folder}/1.tar: bare.jpg",
        f"2 photos that are not alone in their sample, such as {folder}/3.tar: t.jpg",
        f"1 photos that are cut short or none, such as {folder}/0.tar: e.jpg",
        f"1 captions without a photo, such as {folder}/0.tar: z.txt",
        f"1 shards without a photo, such as {folder}/2.tar"]


def test_several_processes_index_as_one_does(three, monkeypatch, tmp_path):
    shards, found = find_shards(three), []
    for cores in 1, 3:
        monkeypatch.setattr(module, "usable_cores", lambda cores=cores: cores)
        found.append(arrays_of(shard_index(shards, cache=tmp_path / f"cache{cores}")))
        found.append(arrays_of(shard_index(shards, cache=tmp_path / f"cache{cores}")))  # mapped
    found.append(arrays_of(shard_index(shards)))  # in memory
    assert all(other == found[0] for other in found[1:])


def test_an_index_is_kept_and_a_changed_shard_makes_it_anew(three, monkeypatch):
    scanned = count_scans(monkeypatch)
    first = arrays_of(kept_index(three))
    assert scanned == ["0.tar", "1.tar", "2.tar", "3.tar"]
    assert arrays_of(kept_index(three)) == first and len(scanned) == 4
    content = (three.parent / "1.tar").read_bytes()
    write_shard(three.parent / "1.tar", [*pairs(7, 8), ("more.jpg", PHOTO), ("more.txt", "more")])
    assert "more" in arrays_of(kept_index(three))["captions"]
    # The same bytes at another time: nobody but their writer knows that they are the same.
    (three.parent / "1.tar").write_bytes(content)
    assert arrays_of(kept_index(three))["captions"] == first["captions"]
    assert scanned[4:] == ["1.tar", "1.tar"]  # and no other one
    assert arrays_of(kept_index(three, "alt"))["captions"][0] == "photo 0"
    assert len(scanned) == 10  # a key of one's own is another index


def test_a_moved_folder_keeps_its_index(three, tmp_path, monkeypatch):
    scanned = count_scans(monkeypatch)
    first = kept_index(three)
    three.parent.rename(tmp_path / "moved")
    index = kept_index(tmp_path / "moved" / three.name)
    assert len(scanned) == 4 and index.rows.tolist() == first.rows.tolist()
    assert arrays_of(index)["photos"][0].open().read() == PHOTO


@pytest.mark.parametrize("spoil", [
    lambda path: path.write_bytes(path.read_bytes()[:-1]),
    lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    lambda path: path.write_bytes(b""), lambda path: np.save(path, np.zeros(3))])
def test_a_damaged_index_is_made_anew(three, monkeypatch, capsys, spoil):
    first = arrays_of(kept_index(three))
    [path] = kept_files(three, "3.tar-*")
    spoil(path)
    scanned = count_scans(monkeypatch)
    assert arrays_of(kept_index(three)) == first
    assert scanned == ["3.tar"] and "damaged" in capsys.readouterr().err
    assert arrays_of(kept_index(three)) == first and len(scanned) == 1


@pytest.mark.parametrize("change", [
    lambda rows: rows["photo"].__setitem__([1, 2], rows["photo"][[2, 1]]),
    lambda rows: rows["photo"].__setitem__(1, 2**62), lambda rows: rows["header"].fill(512),
    lambda rows: rows["size"].__setitem__(1, 2**31), lambda rows: rows["state"].fill(99),
    lambda rows: rows["text"].__setitem__(1, -1), lambda rows: rows["captions"].fill(0),
    lambda rows: rows["text_size"].__setitem__(1, 2**31)])
def test_an_index_with_a_good_checksum_is_checked(three, monkeypatch, capsys, change):
    """Its rows must lie in the shard, each photo behind its own header and before the next one."""
    first = arrays_of(kept_index(three))
    [path] = kept_files(three, "0.tar-*")
    rows = np.load(path)[:-1]
    change(rows)
    module.keep_rows(path, rows)
    scanned = count_scans(monkeypatch)
    assert arrays_of(kept_index(three)) == first
    assert scanned == ["0.tar"] and "out of order" in capsys.readouterr().err


def test_what_lies_beside_shards_is_no_index(three, monkeypatch):
    """Nothing is read from there, and nothing is written."""
    first = arrays_of(kept_index(three))
    beside = three.parent / ".fne-index"
    (three.parent.parent / "cache" / FOLDER).rename(beside)
    before = contents(three.parent)
    scanned = count_scans(monkeypatch)
    assert arrays_of(kept_index(three)) == first and len(scanned) == 4
    assert contents(three.parent) == before


def test_another_shard_of_the_same_name_size_and_time_is_told_by_its_bytes(three, monkeypatch):
    kept_index(three)
    path = three.parent / "1.tar"
    state = path.stat()
    write_shard(path, [("rare.jpg", PHOTO)])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    scanned = count_scans(monkeypatch)
    kept_index(three)
    assert scanned == ["1.tar"]


@pytest.mark.parametrize("cores", [1, 2])
def test_a_broken_shard_ends_it_and_nothing_is_left(three, monkeypatch, cores):
    monkeypatch.setattr(module, "usable_cores", lambda: cores)
    path = three.parent / "3.tar"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="3.tar is cut short inside 000002.jpg"):
        kept_index(three)
    assert not kept_files(three, "3.tar-*")


def test_a_process_that_is_killed_is_told(three, monkeypatch):
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    monkeypatch.setattr(module, "scan_shard", killed)
    with pytest.raises(InputError, match="was killed"):
        kept_index(three)


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
