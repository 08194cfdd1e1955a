"""Texts, photos and rows of numbers in arrays are what lists of them are."""

import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.paths import ROOT

from inputs import arrays
from inputs.arrays import Parts, Texts, mapped, rows_of
from inputs.photos import Photos

TEXTS = ["A dog.", "", "süßer Hund", "\ud800 half a letter", "犬\n\0", "x" * 300]


def written(folder, texts=TEXTS, each=2):
    """`Texts` that were written in parts, in memory or in files."""
    parts = Parts(folder)
    for start in range(0, len(texts), each):
        parts.add_texts("texts", texts[start : start + each])
    return Texts(*rows_of(parts.finish(), "texts"))


@pytest.fixture(params=["memory", "files"])
def texts(request, tmp_path):
    return written(tmp_path if request.param == "files" else None)


def test_texts_are_those_of_the_list(texts, monkeypatch):
    monkeypatch.setattr(arrays, "CHUNK", 4)
    assert list(texts) == TEXTS and len(texts) == 6 and texts == TEXTS and TEXTS == texts
    assert [texts[number] for number in range(-6, 6)] == TEXTS * 2
    assert texts[np.int64(2)] == texts[torch.tensor(2)] == TEXTS[2]
    for wrong in (6, -7):
        with pytest.raises(IndexError):
            texts[wrong]
    assert texts != TEXTS[:5] and texts != [*TEXTS[:5], "y"] and texts != "A dog."
    assert TEXTS[1] in texts and texts.index(TEXTS[3]) == 3 and set(texts) == set(TEXTS)
    assert texts + ["y"] == [*TEXTS, "y"] and ["y"] + texts == ["y", *TEXTS]
    assert np.array(texts[:3]).tolist() == TEXTS[:3] and bool(texts) and not texts[:0]
    assert pickle.loads(pickle.dumps(texts)) == TEXTS
    assert repr(texts).startswith("<6 items: 'A dog.', '', 'süßer Hund', ...")


@pytest.mark.parametrize("rows", [slice(1, 4), slice(None, None, -2), slice(2), slice(9, 12),
                                  slice(-3, None)])
def test_slices_are_those_of_the_list(texts, rows):
    assert texts[rows] == TEXTS[rows] and list(texts[rows][1:]) == TEXTS[rows][1:]


def test_texts_with_a_gap():
    letters = np.frombuffer(b"a\0bc\0\0d", dtype=np.uint8)
    texts = Texts(letters, np.array([1, 4, 5, 7]), gap=1)
    assert texts == ["a", "bc", "", "d"] and [texts[n] for n in range(4)] == list(texts)


def test_no_texts(tmp_path):
    parts = Parts(tmp_path)
    parts.add_texts("texts", [])
    for empty in Texts(*rows_of(parts.finish(), "texts")), Texts.of([]):
        assert list(empty) == [] and empty == [] and len(empty) == 0
    assert Texts.of(["", ""]) == ["", ""]


def test_numbers_are_mapped_as_they_were_written(tmp_path):
    """Also by torch, which wants arrays that may be written to; the file stays as it is."""
    parts, numbers = Parts(tmp_path), np.arange(1000, dtype=np.int64) * 2**33
    for start in range(0, 1000, 300):
        parts.add("numbers", numbers[start : start + 300])
    parts.add("none", np.empty(0, dtype=np.uint16))
    found = parts.finish()
    assert np.array_equal(found["numbers"], numbers) and found["numbers"].dtype == np.int64
    assert len(found["none"]) == 0 and found["none"].dtype == np.uint16
    tensor = torch.from_numpy(found["numbers"])
    tensor[0] = 5
    assert mapped(tmp_path / "numbers", "<i8", 1000)[0] == 0
    assert (tmp_path / "numbers").stat().st_size == 8000
    for length in (999, 1001):
        with pytest.raises(ValueError, match="numbers has 8,000 bytes and not"):
            mapped(tmp_path / "numbers", "<i8", length)


def test_ends_take_eight_bytes_where_four_do_not_suffice():
    """As many letters are not written for this: the lengths alone are said to be so."""
    parts = Parts()
    for lengths in ([2**32 - 1], [3], [0]):
        parts.add_rows("rows", np.zeros(1, dtype=np.uint8), lengths)
    ends = parts.finish()["rows_ends"]
    assert ends.dtype == np.int64 and ends.tolist() == [2**32 - 1, 2**32 + 2, 2**32 + 2]
    assert written(None).ends.dtype == np.uint32


def test_photos_are_paths(tmp_path):
    letters = random.Random(1)
    names = [f"{letters.randrange(9)}/{number}.jpg" for number in range(7)]
    for name in names[:3]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    photos = Photos(Texts.of(names), tmp_path)
    wanted = [tmp_path / name for name in names[:3]] + [
        tmp_path / name.split("/")[1] for name in names[3:]]  # by bare name
    assert photos == wanted and photos[-1] == wanted[-1] and photos[2:5] == wanted[2:5]
    assert photos[5].name == "5.jpg"


SAMPLERS = """
import os, sys
from inputs.arrays import Texts

held = [f"A photo of {number} dogs and a cat ." for number in range(200_000)]
if sys.argv[1] == "arrays":
    held = Texts.of(held)

def own():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))

ends = os.pipe()
if not os.fork():
    before = own()
    letters = sum(map(len, held))
    os.write(ends[1], f"{letters} {own() - before}".encode())
    os._exit(0)
print(os.read(ends[0], 100).decode())
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells")
def test_a_worker_that_looks_at_texts_copies_none():
    """A forked process that looks at each caption of a list copies them all, since it counts its
    look in each; of arrays it has next to nothing of its own."""
    told = [subprocess.run([sys.executable, "-c", SAMPLERS, kind], cwd=ROOT, capture_output=True,
                           text=True, check=True).stdout.split() for kind in ("arrays", "list")]
    (letters, own), (the_same, copied) = ([int(number) for number in line] for line in told)
    assert letters == the_same > 6_000_000
    assert own < copied / 4 and copied > 10_000  # KiB
