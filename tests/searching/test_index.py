"""The index file: its content comes back, and nothing but an index is read or replaced."""

import hashlib
import json
import os
import struct

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from helpers.spoiling_files import FEW, damaged
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from searching import index as module
from searching.index import Origin, index_place, is_index, read_index, read_index_as_is, write_index

NAMES = ["a.jpg", "deep/b.png", "deep/\udcff\n.jpg", "z <b>.jpg"]
STATS = {"a.jpg": (5, -3), "deep/b.png": (2**40, 2**62), "deep/\udcff\n.jpg": (0, 1),
         "z <b>.jpg": (7, 7)}
BROKEN = {"c.jpg": (1, 2)}


def rows(count, dim=6):
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(0)), dim=1)


@pytest.fixture
def origin(tmp_path):
    (tmp_path / "photos").mkdir()
    return Origin("model 1", tmp_path / "photos")


@pytest.fixture
def place(tmp_path, origin):
    """An index of four photos, whose embeddings came in another order and in two blocks."""
    embeds = rows(4)
    order = [2, 0, 3, 1]  # row of each name
    blocks = [embeds[[1, 3]], embeds[[0, 2]]]  # row 0 is of name 1, row 1 of name 3, ...
    assert [order.index(number) for number in range(4)] == [1, 3, 0, 2]
    write_index(tmp_path / "index", origin, STATS, blocks, dict(zip(NAMES, order)), BROKEN)
    return tmp_path / "index"


@pytest.mark.parametrize("block", [1, 3, 2**15])
def test_what_is_written_comes_back(place, origin, monkeypatch, block):
    monkeypatch.setattr(module, "ROWS_PER_BLOCK", block)
    first = read_index(place, origin, 6)
    write_index(place, origin, STATS, [first.embeds], {name: row for row, name in enumerate(NAMES)},
                BROKEN)
    index = read_index(place, origin, 6)
    assert torch.equal(index.embeds, rows(4)) and torch.equal(first.embeds, rows(4))
    assert dict(index.photos.rows()) == STATS and index.photos.names == NAMES
    assert dict(index.broken.rows()) == BROKEN


def test_the_library_safetensors_reads_it(place):
    """All tensors have plain types: no Python object is in the file."""
    tensors = safetensors.torch.load_file(place)
    assert {name: value.dtype for name, value in tensors.items()} == module.TENSORS
    assert torch.equal(tensors["embeddings"], rows(4))
    assert bytes(tensors["names"].tolist()).split(b"\0") == list(map(os.fsencode, NAMES))


@pytest.mark.parametrize("names", [0, 1, 3])
def test_an_index_of_few_photos_or_none(tmp_path, origin, names):
    stats = {f"{number}.jpg": (number, number) for number in range(names)}
    write_index(tmp_path / "x", origin, stats, [rows(names, 5)],
                {name: row for row, name in enumerate(stats)}, {})
    index = read_index(tmp_path / "x", origin, 5)
    assert dict(index.photos.rows()) == stats and index.embeds.shape == (names, 5)
    assert index.broken.names == []


def test_a_missing_or_empty_file_is_no_index_yet(tmp_path, origin):
    assert read_index(tmp_path / "nothing", origin, 6) is None
    (tmp_path / "empty").touch()
    assert read_index(tmp_path / "empty", origin, 6) is None


def test_the_index_of_another_model_or_folder_is_refused(place, origin, tmp_path):
    with pytest.raises(InputError, match=f"--index {place}"):
        read_index(place, origin._replace(model="model 2"), 6)
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match=f"--index {place}.*photos"):
        read_index(place, origin._replace(folder=tmp_path / "other"), 6)


def test_a_folder_that_was_moved_keeps_its_index(place, origin, tmp_path):
    origin.folder.rename(tmp_path / "moved")
    assert read_index(place, origin._replace(folder=tmp_path / "moved"), 6).photos.names == NAMES


@pytest.mark.parametrize("content", [b"x", b"some text\n" * 99, bytes(2**10), b"\xff" * 99,
                                     struct.pack("<Q", 2) + b"{}", b"PK\3\4" + bytes(99)])
def test_a_file_of_another_kind_is_neither_read_nor_replaced(tmp_path, origin, content):
    (tmp_path / "theirs").write_bytes(content)
    with pytest.raises(InputError, match="--index .*theirs"):
        read_index(tmp_path / "theirs", origin, 6)
    with pytest.raises(InputError, match="--index .*theirs"):
        index_place(tmp_path / "theirs", origin, [])
    assert (tmp_path / "theirs").read_bytes() == content


def test_weights_are_no_index(tmp_path, origin):
    safetensors.torch.save_file({"x": torch.ones(2)}, tmp_path / "model", {"format": "pt"})
    assert not is_index(tmp_path / "model")
    with pytest.raises(InputError, match="--index .*model"):
        read_index(tmp_path / "model", origin, 6)


def test_folders_and_pipes_are_refused(tmp_path, origin):
    os.mkfifo(tmp_path / "pipe")
    for name in "pipe", "photos":
        with pytest.raises(InputError, match=f"--index .*{name}"):
            read_index(tmp_path / name, origin, 6)


def test_a_damaged_index_is_none_and_a_warning_names_it(place, origin, capsys):
    intact = place.read_bytes()
    for content in intact[:-1], intact[:-40], intact + b"x":
        place.write_bytes(content)
        assert read_index(place, origin, 6) is None
        line = capsys.readouterr().err
        assert line.startswith(f"warning: --index {place}") and line.count("\n") == 1
    place.write_bytes(intact)
    assert read_index(place, origin, 7) is None  # the model has longer embeddings


@settings(FEW, max_examples=150)
@given(choice=st.data())
def test_any_damage_to_an_index(place, origin, choice):
    intact = place.read_bytes()
    try:
        place.write_bytes(damaged(choice.draw, intact))
        index = read_index(place, origin, 6)
        if index is not None:
            assert len(index.photos.names) == len(index.embeds) == len(index.photos.stats)
    except InputError as error:
        assert "\n" not in str(error)
    finally:
        place.write_bytes(intact)


def save_index(path, tensors, header):
    """Write tensors as an index whose digest is that of its content, whatever that is."""
    content = safetensors.torch.save(tensors, header)[:-32]
    path.write_bytes(content + hashlib.sha256(content).digest())


def index_tensors(**changes):
    """Return the tensors of an index, some of them changed; None leaves one out.

    The library safetensors writes them by type and name, so `sha256` comes last.
    """
    tensors = {"stats": torch.zeros(2, 2, dtype=torch.int64), "embeddings": rows(2),
               "broken_stats": torch.zeros(0, 2, dtype=torch.int64),
               "names": torch.tensor(list(b"a\0b"), dtype=torch.uint8),
               "broken_names": torch.zeros(0, dtype=torch.uint8),
               "sha256": torch.zeros(32, dtype=torch.uint8)}
    return {name: value for name, value in (tensors | changes).items() if value is not None}


@pytest.mark.parametrize("changes", [
    dict(stats=None), dict(more=torch.zeros(1)), dict(embeddings=rows(3)),
    dict(embeddings=rows(2).double()), dict(embeddings=torch.zeros(12)),
    dict(stats=torch.zeros(2, dtype=torch.int64)), dict(stats=torch.zeros(2, 2)),
    dict(names=torch.tensor(list(b"b\0a"), dtype=torch.uint8)),
    dict(names=torch.tensor(list(b"a\0a"), dtype=torch.uint8)),
    dict(names=torch.tensor(list(b"a\0b\0c"), dtype=torch.uint8)),
    dict(broken_names=torch.tensor(list(b"a"), dtype=torch.uint8)), dict(embeddings=0 * rows(2)),
    dict(embeddings=1.01 * rows(2)), dict(embeddings=torch.stack([rows(1)[0], torch.zeros(6)])),
    dict(embeddings=rows(2) * torch.nan), dict(embeddings=rows(2) * torch.inf)])
def test_a_hostile_index_is_not_used(tmp_path, origin, capsys, changes):
    save_index(tmp_path / "good", index_tensors(), origin.header())
    assert read_index(tmp_path / "good", origin, 6).photos.names == ["a", "b"]
    save_index(tmp_path / "bad", index_tensors(**changes), origin.header())
    assert read_index(tmp_path / "bad", origin, 6) is None
    assert "--index" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["embeddings", "stats", "names", "broken_names", "sha256"])
def test_a_flipped_bit_makes_an_index_anew(place, origin, capsys, where):
    """Also the sign of one number, which no other check would find."""
    content = bytearray(place.read_bytes())
    length = struct.unpack("<Q", content[:8])[0]
    start, end = json.loads(content[8 : 8 + length])[where]["data_offsets"]
    for byte in range(8 + length + start, 8 + length + end):
        content[byte] ^= 128
        place.write_bytes(content)
        assert read_index(place, origin, 6) is None
        with pytest.raises(InputError, match=f"--as_is: --index {place}"):
            read_index_as_is(place, origin, 6)
        content[byte] ^= 128
    assert "made anew" in capsys.readouterr().err
    place.write_bytes(content)
    assert read_index(place, origin, 6).photos.names == NAMES


def test_rows_in_another_order_are_found(place, origin):
    """Each row is a unit row, and each name there."""
    content = place.read_bytes()
    row = rows(4)[0].numpy().tobytes()
    at = content.index(row)
    other = at + len(row) if content[at + len(row) :].count(rows(4)[1].numpy().tobytes()) else at
    swapped = bytearray(content)
    swapped[at : at + 24], swapped[other : other + 24] = (
        content[other : other + 24], content[at : at + 24])
    place.write_bytes(swapped)
    assert swapped != content and read_index(place, origin, 6) is None


@pytest.mark.parametrize("number", ["3", "99", "999999999"])
def test_an_index_of_a_later_format_is_left_alone(place, origin, number):
    save_index(place, index_tensors(), origin.header() | {"format": f"fne-search-{number}"})
    content = place.read_bytes()
    with pytest.raises(InputError, match=f"--index {place}.* format {number}"):
        read_index(place, origin, 6)
    assert place.read_bytes() == content


@pytest.mark.parametrize("number", ["0", "1"])
def test_an_index_of_an_earlier_format_is_made_anew(place, origin, capsys, number):
    save_index(place, index_tensors(), origin.header() | {"format": f"fne-search-{number}"})
    assert read_index(place, origin, 6) is None
    assert f"format {number}" in capsys.readouterr().err


@pytest.mark.parametrize("format", ["fne-search-", "fne-search-2x", "fne-search-clusters-1",
                                    "fne-search--2", "fne-search-0x2", "xfne-search-2"])
def test_a_file_of_another_format_is_no_index(tmp_path, origin, format):
    save_index(tmp_path / "x", index_tensors(), origin.header() | {"format": format})
    assert not is_index(tmp_path / "x")
    with pytest.raises(InputError, match="--index .*x is no index"):
        read_index(tmp_path / "x", origin, 6)


@pytest.mark.parametrize("name", ["/etc/x.jpg", "../x.jpg", "a/../../x.jpg"])
def test_with_as_is_no_name_may_lead_out_of_the_folder(tmp_path, origin, name):
    write_index(tmp_path / "x", origin, {name: (1, 1)}, [rows(1)], {name: 0}, {})
    with pytest.raises(InputError, match="--index"):
        read_index_as_is(tmp_path / "x", origin, 6)


def test_with_as_is_there_must_be_an_index(tmp_path, origin):
    with pytest.raises(InputError, match="--as_is"):
        read_index_as_is(tmp_path / "x", origin, 6)


def test_a_huge_header_is_not_read(tmp_path):
    with open(tmp_path / "x", "wb") as file:
        file.write(struct.pack("<Q", 2**60) + b"{")
    assert module.read_header(tmp_path / "x") == {}
    text = json.dumps({"__metadata__": 5}).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(text)) + text)
    assert module.read_header(tmp_path / "x") == {}


# ------------------------------------------------------------------------------ where it is kept


def test_the_index_is_kept_in_the_users_cache(tmp_path, origin, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = index_place(None, origin, [])
    assert place.parent == tmp_path / "cache" / "fne-search" and place.parent.is_dir()
    assert place.parent.stat().st_mode & 0o077 == 0
    assert place != index_place(None, origin._replace(model="another"), [])
    (tmp_path / "link").symlink_to("photos")
    assert place == index_place(None, origin._replace(folder=tmp_path / "link"), [])
    for value in "", "relative":
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert index_place(None, origin, []).parent == tmp_path / "home/.cache/fne-search"


@pytest.mark.parametrize("cache", ["photos", "photos/deep/cache"])
def test_the_index_is_among_the_photos_only_if_a_flag_says_so(tmp_path, origin, monkeypatch, cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
    with pytest.raises(InputError, match="--photos.*--index"):
        index_place(None, origin, [])
    assert list((tmp_path / "photos").iterdir()) == []
    named = tmp_path / "photos" / "index.safetensors"
    assert index_place(named, origin, []) == named


def test_sizes_and_times_are_exact(tmp_path, origin):
    stats = {"a.jpg": (2**63 - 1, -2**63)}
    write_index(tmp_path / "x", origin, stats, [rows(1)], {"a.jpg": 0}, {})
    assert dict(read_index(tmp_path / "x", origin, 6).photos.rows()) == stats
    assert read_index(tmp_path / "x", origin, 6).photos.stats.dtype == np.int64
