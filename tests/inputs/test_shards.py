"""Which shards a pattern names, and bytes read at their place."""

import glob
import io
import os
import pickle
import subprocess
import threading
from pathlib import Path

import pytest
from helpers.shards import PHOTO, jpeg, pairs, write_shard

from common.errors import InputError
from inputs import shards
from inputs.photos import load_photo, photo_fault
from inputs.shard_index import shard_index
from inputs.shards import TarPhoto, expanded, find_shards, is_shards, read_at


@pytest.mark.parametrize("pattern", [
    "a/{00000..00012}.tar", "{8..11}.tar", "{08..11}.tar", "{0..3}.tar", "{3..1}.tar",
    "{00..2}.tar", "{9..010}.tar", "{train,val}/{0..2}-{a,b}.tar", "{a.tar,b.tar}", "x{,1}.tar",
    "plain.tar", "{5..5}.tar", "{007..7}.tar"])
def test_braces_are_those_of_the_shell(pattern):
    done = subprocess.run(["bash", "-c", f"echo {pattern}"], capture_output=True, text=True)
    assert list(expanded(pattern)) == done.stdout.split()


@pytest.mark.parametrize("pattern", ["{}.tar", "{a}.tar", "{1..}.tar", "{a..c}.tar", "{0..9.tar",
                                     "0..9}.tar", "{a,{1..2}}.tar", "{1..9..2}.tar", "{-1..2}.tar",
                                     "{0..99999999999}.tar", "{0..9999}{0..9999}.tar"])
def test_other_braces_are_refused(pattern):
    with pytest.raises(InputError, match="shards .*tar: "):
        list(expanded(pattern))


def test_what_is_taken_for_shards(tmp_path):
    (tmp_path / "folder.tar").mkdir()
    for name in "a.tar", "{0..3}.tar", "{a.tar,b.tar}", "A.TAR", "a.tar.gz", "a.tgz":
        assert is_shards(tmp_path / name), name
    for name in "folder.tar", "photos", "a.zip", "tar":
        assert not is_shards(tmp_path / name), name
    assert not is_shards(None)


def test_shards_that_are_not_there_are_told(tmp_path):
    for number in 0, 2:
        write_shard(tmp_path / f"{number}.tar", pairs(0, 1))
    with pytest.raises(InputError, match="2 of 4 shards .* are missing, such as .*1.tar"):
        find_shards(tmp_path / "{0..3}.tar")
    with pytest.raises(InputError, match="twice"):
        find_shards(tmp_path / "{0,0}.tar")
    with pytest.raises(InputError, match="0.tar.gz is no .tar"):
        find_shards(tmp_path / "0.tar.gz")
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(InputError, match="missing"):
        find_shards(tmp_path / "pipe.tar")
    odd = write_shard(tmp_path / "{1..}.tar", pairs(0, 1))  # there as it is written
    assert [shard.path for shard in find_shards(odd)] == [str(odd)]


def test_bytes_at_a_place_are_those_of_the_file(tmp_path):
    """Of more shards than stay open, from several threads and from a forked process."""
    photos = [jpeg((number, 0, 0)) for number in range(shards.MOST_OPEN + 20)]
    for number, photo in enumerate(photos):
        write_shard(tmp_path / f"{number}.tar", [("a.jpg", photo), ("a.txt", "x")])
    index = shard_index(find_shards(tmp_path / f"{{0..{len(photos) - 1}}}.tar"))
    handles = [index.photo(number) for number in range(len(photos))]
    faults = []

    def read_all():
        for handle, photo in zip(handles, photos):
            if handle.open().read() != photo:
                faults.append(str(handle))

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    child = os.fork()
    if not child:
        read_all()
        os._exit(len(faults))
    read_all()
    assert os.waitpid(child, 0)[1] == 0 and not faults
    opened = [link for link in glob.glob("/proc/self/fd/*")
              if os.path.realpath(link).endswith(".tar")]
    assert len(opened) == shards.MOST_OPEN


def test_a_photo_in_a_shard_is_the_photo(tmp_path):
    """Its pixels, its name in messages; and it travels to worker processes."""
    path = write_shard(tmp_path / "0.tar", [("a/b.jpg", PHOTO), ("a/b.txt", "x")])
    (tmp_path / "b.jpg").write_bytes(PHOTO)
    photo = shard_index(find_shards(path)).photo(0)
    assert load_photo(photo).tobytes() == load_photo(tmp_path / "b.jpg").tobytes()
    assert str(photo) == f"{path}: a/b.jpg" and photo.name == "0.tar/a/b.jpg"
    assert pickle.loads(pickle.dumps(photo)) == photo and photo_fault(photo) is None
    assert isinstance(photo.open(), io.BytesIO)


def test_a_shard_that_changed_is_not_read(tmp_path):
    path = write_shard(tmp_path / "0.tar", pairs(0, 3))
    photo = shard_index(find_shards(path)).photo(1)
    assert load_photo(photo)
    shards.open_shard.cache_clear()
    os.utime(path, (1, 1))
    with pytest.raises(InputError, match="0.tar has changed"):
        read_at(photo.shard, photo.offset, photo.size)
    with pytest.raises(InputError, match="photo .*0.tar: the photo at .* cannot .*changed"):
        load_photo(photo)
    path.unlink()
    shards.open_shard.cache_clear()
    with pytest.raises(InputError, match="0.tar is missing"):
        read_at(photo.shard, photo.offset, photo.size)


def test_a_broken_photo_is_named_with_its_shard(tmp_path):
    path = write_shard(tmp_path / "0.tar", [("a.jpg", PHOTO[:200]), ("a.txt", "x")])
    shard, = find_shards(path)
    photo = TarPhoto(shard, 0, 512, 200)
    assert "cut short" in photo_fault(photo)
    with pytest.raises(InputError, match=f"photo {path}: a.jpg cannot be decoded"):
        load_photo(photo)


def test_a_whole_webp_is_told_from_a_cut_one_by_its_length(tmp_path, monkeypatch):
    """So that shards of them are not decoded to be indexed."""
    whole, cut = tmp_path / "whole.webp", tmp_path / "cut.webp"
    content = jpeg(kind="WEBP")
    whole.write_bytes(content)
    cut.write_bytes(content[:-5])
    assert "cut short" in photo_fault(cut)
    monkeypatch.setattr("inputs.photos.load_photo", None)
    assert photo_fault(whole) is None


def test_paths_of_photos_in_folders_stay_as_they_were(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_photo(Path(tmp_path / "none.jpg"))
    assert photo_fault(tmp_path) == "is missing" and photo_fault(Path("a\0b")) == "is missing"
