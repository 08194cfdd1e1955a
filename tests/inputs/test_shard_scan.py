"""What is found in a tar, of any content and in any state."""

import bz2
import gzip
import io
import json
import lzma
import re
import tarfile

import pytest
from helpers.shards import PHOTO, jpeg, pairs, write_shard
from helpers.spoiling_files import FEW, damaged
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from inputs.shard_index import (
    BAD_CAPTION,
    BROKEN,
    NO_CAPTION,
    NO_PHOTO,
    PAIR,
    TWO_PHOTOS,
    Index,
    scan_shard,
)
from inputs.shards import find_shards


class Scan:
    """What a shard was found to hold, in plain values."""

    def __init__(self, path, column):
        shards = find_shards(path)
        rows = scan_shard(shards[0], column)
        index = Index(shards, [rows], column)
        photos = [row for row in range(len(rows)) if rows["state"][row] != NO_PHOTO]
        self.alone = [index.member(row) for row in range(len(rows)) if row not in photos]
        self.names = [index.member(row) for row in photos]
        self.offsets, self.sizes = rows["photo"][photos], rows["size"][photos]
        self.states = rows["state"][photos]
        texts = [(number, text) for number, row in enumerate(photos)
                 if rows["state"][row] == PAIR for text in index.captions(row)]
        self.photo_of_text = [number for number, _ in texts]
        self.texts = [text for _, text in texts]


def scan(path, column=None):
    return Scan(path, column)


def scanned(tmp_path, files, column=None):
    return scan(write_shard(tmp_path / "a.tar", files), column)


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_photos_lie_where_the_standard_library_finds_them(tmp_path, layout):
    """In every layout, with long names too, and names that are no ASCII where they can be."""
    long = "d" * 90 + "/" + "n" * 90
    files = [*pairs(0, 3), (f"{long}.jpg", jpeg("blue")), (f"{long}.txt", "long")]
    if layout != tarfile.USTAR_FORMAT:
        files += [("x" * 200 + "é.png", jpeg("green", kind="PNG")), ("x" * 200 + "é.txt", "é")]
    path = write_shard(tmp_path / "a.tar", files, layout)
    block = scan(path)
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        photos = [member for member in tar if not member.name.endswith("txt")]
        assert block.names == [member.name for member in photos]
        for offset, size, member in zip(block.offsets, block.sizes, photos):
            assert content[offset : offset + size] == tar.extractfile(member).read()
    assert block.texts == [text for name, text in files if name.endswith("txt")]
    assert block.photo_of_text == list(range(len(photos)))
    assert not block.states.any()


def test_a_sample_is_what_shares_a_key(tmp_path):
    """Up to the first dot of the name, its folder with it, wherever in the shard; capitals of the
    suffix do not count."""
    block = scanned(tmp_path, [
        ("b.txt", "of b"), ("a.JPG", PHOTO), ("d/a.jpeg", PHOTO), ("b.x.y.txt", "not a caption"),
        ("a.cls", "7"), ("d/a.TXT", "of d/a"), ("b.Png", jpeg(kind="PNG")), ("a.txt", "of a")])
    assert block.names == ["a.JPG", "d/a.jpeg", "b.Png"] and not block.states.any()
    assert block.texts == ["of a", "of d/a", "of b"]
    assert block.photo_of_text == [0, 1, 2]


@pytest.mark.parametrize("content, texts", [
    ({"caption": "a dog"}, ["a dog"]), ({"captions": ["a", " b "], "url": "x"}, ["a", "b"]),
    ({"Text": "a dog"}, ["a dog"]), ({"sentences": [{"raw": "a"}, {"raw": "b"}]}, ["a", "b"]),
    (["a", "b"], ["a", "b"]), ("a", ["a"]), ({"caption": None, "text": "a"}, ["a"])])
def test_json_holds_one_caption_or_several(tmp_path, content, texts):
    block = scanned(tmp_path, [("a.jpg", PHOTO), ("a.json", json.dumps(content))])
    assert block.texts == texts and block.photo_of_text == [0] * len(texts)


def test_text_goes_before_json_unless_a_key_is_named(tmp_path):
    files = [("a.jpg", PHOTO), ("a.txt", "text"), ("a.json", '{"caption": "json", "Alt": "alt"}')]
    assert scanned(tmp_path, files).texts == ["text"]
    assert scanned(tmp_path, files, "alt").texts == ["alt"]
    assert scanned(tmp_path, files, "other").states.tolist() == [NO_CAPTION]
    assert scanned(tmp_path, files[:2], "alt").texts == ["text"]  # it may be that of val's table


def test_two_keys_that_may_be_the_captions_are_refused(tmp_path):
    files = [("a.jpg", PHOTO), ("a.json", '{"caption": "x", "text": "y"}')]
    with pytest.raises(InputError, match="a.json has captions under 'caption', 'text': name one"):
        scanned(tmp_path, files)
    assert scanned(tmp_path, files, "text").texts == ["y"]


@pytest.mark.parametrize("files, state", [
    ([("a.jpg", PHOTO)], NO_CAPTION), ([("a.jpg", PHOTO), ("a.json", "{}")], NO_CAPTION),
    ([("a.jpg", PHOTO), ("a.txt", b"\xff")], BAD_CAPTION),
    ([("a.jpg", PHOTO), ("a.txt", " \n")], BAD_CAPTION),
    ([("a.jpg", PHOTO), ("a.txt", "x\0y")], BAD_CAPTION),
    ([("a.jpg", PHOTO), ("a.txt", "x"), ("a.txt", "y")], BAD_CAPTION),
    ([("a.jpg", PHOTO), ("a.json", "{")], BAD_CAPTION),
    ([("a.jpg", PHOTO), ("a.json", "[" * 10**5)], BAD_CAPTION),
    ([("a.jpg", PHOTO), ("a.json", "7")], BAD_CAPTION),
    ([("a.jpg", PHOTO), ("a.json", '{"caption": []}')], BAD_CAPTION),
    ([("a.jpg", PHOTO), ("a.json", '{"caption": ["x", 7]}')], BAD_CAPTION),
    ([("a.jpg", PHOTO), ("a.json", '{"caption": "\\ud800"}')], BAD_CAPTION),
    ([("a.jpg", b""), ("a.txt", "x")], BROKEN),
    ([("a.jpg", PHOTO[:-2]), ("a.txt", "x")], BROKEN),
    ([("a.jpg", "<html>"), ("a.txt", "x")], BROKEN)])
def test_what_is_no_pair_is_left_out(tmp_path, files, state):
    block = scanned(tmp_path, files + [("z.jpg", PHOTO), ("z.txt", "good")])
    assert block.states.tolist() == [state, PAIR]
    assert block.texts == ["good"] and block.photo_of_text == [1]


def test_photos_that_share_a_sample_are_left_out(tmp_path):
    block = scanned(tmp_path, [("a.jpg", PHOTO), ("a.png", jpeg(kind="PNG")), ("a.txt", "x"),
                               ("b.jpg", PHOTO), ("b.jpg", b""), ("b.txt", "y")])
    assert block.states.tolist() == [TWO_PHOTOS, TWO_PHOTOS, TWO_PHOTOS, BROKEN]


def test_captions_alone_are_counted_and_hidden_files_are_not(tmp_path):
    block = scanned(tmp_path, [
        ("x.json", "{}"), ("y.txt", "y"), ("__MACOSX/a.jpg", b""), ("._a.jpg", b""),
        (".hidden/a.jpg", b""), ("../a.jpg", b""), ("./a.jpg", PHOTO), ("a.txt", "a")])
    assert (block.names, block.alone) == (["a.jpg"], ["x.json", "y.txt"])


def test_an_empty_tar_holds_nothing(tmp_path):
    block = scanned(tmp_path, [])
    assert block.names == [] and block.texts == [] and len(block.offsets) == 0


def test_folders_and_devices_in_a_tar_are_passed_over(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in ("d", tarfile.DIRTYPE), ("p.jpg", tarfile.FIFOTYPE):
            member = tarfile.TarInfo(name)
            member.type = kind
            tar.addfile(member)
        member = tarfile.TarInfo("d/a.jpg")
        member.size = len(PHOTO)
        tar.addfile(member, io.BytesIO(PHOTO))
    assert scan(path).names == ["d/a.jpg"]


# ---------------------------------------------------------------------------------- broken, or odd


def told_of(path):
    with pytest.raises(InputError) as caught:
        scan(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_tar_that_is_cut_is_told_with_the_file_it_breaks_at(tmp_path):
    """At every place that is not its very end."""
    whole = write_shard(tmp_path / "whole.tar", pairs(0, 3)).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        members = tar.getmembers()
    path, end = tmp_path / "cut.tar", members[-1].offset_data + 512
    for length in [*range(1, end, 97), *(member.offset for member in members[1:]), end]:
        path.write_bytes(whole[:length])
        begun = [member.name for member in members if member.offset_data <= length]
        told = told_of(path)
        if length < 512:
            assert "is no tar file" in told
        else:
            assert begun[-1] in told and "cut short" in told, (length, told)
    path.write_bytes(whole[: end + 512])  # with one of the two blocks of zeros
    assert len(scan(path).names) == 3


def test_a_tar_that_is_broken_in_the_middle_is_told(tmp_path):
    path = write_shard(tmp_path / "a.tar", pairs(0, 3))
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2]
    content = bytearray(path.read_bytes())
    content[third.offset + 20 : third.offset + 60] = b"x" * 40
    path.write_bytes(content)
    assert "behind 000000.txt, at byte" in told_of(path)


@pytest.mark.parametrize("pack, told", [(gzip.compress, "gzip"), (bz2.compress, "bzip2"),
                                        (lzma.compress, "xz"),
                                        (lambda content: b"\x28\xb5\x2f\xfd" + content, "zstd")])
def test_a_compressed_tar_is_refused(tmp_path, pack, told):
    path = write_shard(tmp_path / "a.tar", pairs(0, 3))
    path.write_bytes(pack(path.read_bytes()))
    assert f"compressed ({told}): unpack it first" in told_of(path)


def test_a_tar_whose_first_name_looks_like_a_mark_is_none_the_less_one(tmp_path):
    assert scanned(tmp_path, [("BZh.jpg", PHOTO), ("BZh.txt", "x")]).texts == ["x"]


@pytest.mark.parametrize("content, told", [(b"", "is empty"), (b"x" * 5000, "is no tar file"),
                                           (b"<html>", "is no tar file"), (PHOTO, "is no tar")])
def test_what_is_no_tar_is_refused(tmp_path, content, told):
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    assert told in told_of(path)


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_link_in_place_of_a_photo_is_refused(tmp_path, kind):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("b.jpg")
        member.type, member.linkname = kind, "a.jpg"
        tar.addfile(member)
    assert "b.jpg is a link" in told_of(path)


def test_a_sparse_file_is_refused(tmp_path):
    """GNU's own old kind, of which a header suffices."""
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(header) + bytes(1024))
    assert "a.jpg has holes" in told_of(path)


def test_a_size_below_zero_is_refused(tmp_path):
    header = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 11 + b"\x00"  # -256, in GNU's own numbers
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(header) * 3 + bytes(1024))
    # A newer Python refuses the size itself.
    assert re.search("a size that no file has|invalid offset", told_of(path))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_shard(tmp_path_factory.mktemp("small") / "a.tar", pairs(0, 2), tarfile.PAX_FORMAT)


@FEW
@given(draw=st.data())
def test_any_bytes_are_read_or_told_of(small, draw):
    path = small.with_name("damaged.tar")
    path.write_bytes(damaged(draw.draw, small.read_bytes()))
    try:
        scan(path)
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("behind", ["a second tar", "text", "zeros without end"])
def test_a_tar_that_goes_on_behind_its_end_is_refused(tmp_path, behind):
    """Its second half would be dropped without a word."""
    path = write_shard(tmp_path / "a.tar", pairs(0, 2))
    with open(path, "ab") as file:
        if behind == "a second tar":
            file.write(write_shard(tmp_path / "b.tar", pairs(2, 4)).read_bytes())
        elif behind == "text":
            file.write(bytes(5000) + b"x")
        else:
            file.truncate(2**40)
    with pytest.raises(InputError, match="a.tar goes on behind its end, at byte"):
        scan(path)


@pytest.mark.parametrize("blocks", [1, 20, 2048])
def test_zeros_behind_the_end_are_what_tar_writes(tmp_path, blocks):
    path = write_shard(tmp_path / "a.tar", pairs(0, 2))
    path.write_bytes(path.read_bytes() + bytes(512 * (blocks - 1)))
    assert scan(path).texts == ["photo 0", "photo 1"]


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K", b"X"])
def test_a_header_without_end_is_not_read(tmp_path, kind):
    """A longer name, or further facts, which `tarfile` reads as a whole."""
    path = write_shard(tmp_path / "a.tar", pairs(0, 2))
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = kind, 2**33 - 1
    with open(tmp_path / "b.tar", "wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT) + path.read_bytes())
        file.truncate(2**34)
    with pytest.raises(InputError, match="b.tar is no tar file .*a header of"):
        scan(tmp_path / "b.tar")
