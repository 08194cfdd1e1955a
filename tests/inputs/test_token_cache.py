"""Token ids of many captions are kept, and nothing else is ever taken for them."""

import contextlib
import inspect
import os
import resource
import subprocess
import sys
from zlib import crc32

import numpy as np
import pytest
from helpers.captions import word_tokenizer
from helpers.paths import ROOT
from helpers.runs import assert_same, command, final_state

import inputs.captions
import train
from common.errors import InputError
from inputs.captions import Captions, kept_arrays
from inputs.sources import cache_folder
from training.options import parse

RAW = ["A red cat, runs.", "dog", "a BLUE dog sits; a red cat runs", "zebra-cat"] * 3
ASKED = dict(texts=RAW, tokenizer=word_tokenizer(), max_words=30, max_tokens=30, prefix="",
             cleaning="published")


@pytest.fixture(autouse=True)
def all_is_many(monkeypatch):
    monkeypatch.setattr(inputs.captions, "MANY", 0)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def made(monkeypatch):
    """What was made, and not taken from the cache, so far."""
    calls, plain = [], inputs.captions.token_arrays
    monkeypatch.setattr(inputs.captions, "token_arrays",
                        lambda *arguments: calls.append(1) or plain(*arguments))
    return calls


def files_in(cache):
    return sorted(cache.glob("*.npy")) if cache.is_dir() else []


def test_kept_ids_are_those_that_are_made(cache, made):
    plain = Captions(**ASKED)
    for padded in False, True, True:
        captions = Captions(**ASKED, padded=padded, cache=cache)
        assert np.array_equal(captions.ids, plain.ids)
        assert np.array_equal(captions.ends, plain.ends)
        assert [row.tolist() for row in captions] == [row.tolist() for row in plain]
    assert len(made) == 2 and len(files_in(cache)) == 2


def test_a_run_with_kept_ids_is_the_run_without(data, finished, tmp_path, monkeypatch, made):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for number in range(2):
        train.main(command(data, tmp_path / f"run{number}"))
        assert_same(final_state(tmp_path / f"run{number}"), final_state(finished))
    assert len(made) == 3 and len(files_in(tmp_path / "fne")) == 6


def test_few_captions_are_not_kept(cache, made, monkeypatch):
    monkeypatch.setattr(inputs.captions, "MANY", len(RAW) + 1)
    for _ in range(2):
        Captions(**ASKED, cache=cache)
    assert len(made) == 2 and not cache.exists()


def test_the_cache_is_the_users_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "fne" and cache_folder(tmp_path / "x") == tmp_path / "x"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(cache_folder(None)) == "/home/somebody/.cache/fne"
    assert str(parse("", ["--cache", "x"])[0].cache) == "x"


@pytest.mark.parametrize(("changed", "value"), [
    ("texts", [*RAW[:-1], "zebra-dog"]), ("texts", RAW[:-1]), ("texts", ["ab", "c"]),
    ("texts", ["a", "bc"]), ("max_words", 2), ("max_tokens", 2), ("prefix", "a "),
    ("cleaning", "raw"),
    ("tokenizer", word_tokenizer("[PAD] [UNK] red a blue cat dog runs sits"))])
def test_whatever_token_ids_depend_on_makes_them_anew(cache, made, changed, value):
    assert ASKED.keys() | {"padded", "cache"} == inspect.signature(Captions).parameters.keys()
    Captions(**ASKED, cache=cache)
    for _ in range(2):
        found = Captions(**ASKED | {changed: value}, cache=cache)
    assert len(made) == 2
    assert np.array_equal(found.ids, Captions(**ASKED | {changed: value}).ids)


def test_a_tokenizer_that_cannot_be_written_down_keeps_nothing(cache, made):
    class Own:
        pad_token_id = 0

        def __call__(self, texts, **settings):
            return {"input_ids": [[1] * len(text.split()) for text in texts]}

    for _ in range(2):
        captions = Captions(RAW, Own(), 30, 30, cache=cache)
        assert captions.lengths.tolist() == [len(text.replace("-", " ").split()) for text in RAW]
    assert len(made) == 2 and not cache.exists()


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGE = {"cut short": lambda path: path.write_bytes(path.read_bytes()[:-3]),
          "a flipped bit": flip, "empty": lambda path: path.write_bytes(b""),
          "objects": lambda path: np.save(path, np.array([None]), allow_pickle=True)}


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_damaged_is_made_anew(cache, made, capsys, kind, number):
    plain = Captions(**ASKED, cache=cache)
    ids = plain.ids.copy()
    path = files_in(cache)[number]
    del plain
    DAMAGE[kind](path)
    assert np.array_equal(Captions(**ASKED, cache=cache).ids, ids) and len(made) == 2
    error = capsys.readouterr().err
    assert f"{path} is damaged (" in error and "made anew" in error
    assert np.array_equal(Captions(**ASKED, cache=cache).ids, ids) and len(made) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number, change", [
    (0, lambda ids: ids[:-1]), (0, lambda ids: ids + 1000), (0, lambda ids: ids.astype(np.int64)),
    (0, lambda ids: ids[None]), (0, lambda ids: -ids.astype(np.int32)),
    (1, lambda ends: ends[::-1]), (1, lambda ends: ends[:-1]), (1, lambda ends: ends.astype(float)),
    (1, lambda ends: np.full_like(ends, ends[-1])), (1, lambda ends: ends[:, None])])
def test_kept_ids_with_a_good_checksum_are_checked(cache, made, capsys, number, change):
    """An id beyond the vocabulary, or a caption without end, would fail in the run, or train."""
    plain = Captions(**ASKED, cache=cache)
    ids, ends = plain.ids.copy(), plain.ends.copy()
    path = files_in(cache)[number]
    array = np.ascontiguousarray(change((ids, ends)[number]))
    path.unlink()
    np.save(path.with_name(f"{path.stem.rpartition('-')[0]}-{crc32(array):08x}.npy"), array)
    for _ in range(2):
        again = Captions(**ASKED, cache=cache)
        assert np.array_equal(again.ids, ids) and np.array_equal(again.ends, ends)
    assert len(made) == 2 and "not what was written" in capsys.readouterr().err


def test_a_pipe_among_kept_ids_is_not_waited_for(cache, made):
    Captions(**ASKED, cache=cache)
    path = files_in(cache)[0]
    path.unlink()
    os.mkfifo(path)
    assert len(Captions(**ASKED, cache=cache)) == len(RAW) and len(made) == 2


def test_an_error_of_a_caption_leaves_nothing(cache):
    with pytest.raises(InputError, match="caption 1 .*has no tokens"):
        Captions(["a", "..."], word_tokenizer(), 30, 30, cache=cache)
    assert files_in(cache) == []


@contextlib.contextmanager
def small_files(size):
    """Inside, no file grows above `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["full", "a file", "no place for folders"])
def test_a_folder_that_cannot_be_written_costs_nothing_but_time(cache, tmp_path, capsys, kind):
    plain = Captions(**ASKED)
    if kind == "a file":
        cache.write_text("mine")
    elif kind == "no place for folders":
        (tmp_path / "file").write_text("mine")
        cache = tmp_path / "file" / "cache"
    with small_files(10 if kind == "full" else resource.RLIM_INFINITY):
        found = Captions(**ASKED, cache=cache)
    error = capsys.readouterr().err
    assert np.array_equal(found.ids, plain.ids)
    assert error.count("\n") == 1 and f"--cache {cache} cannot be used (" in error


def test_a_folder_that_can_only_be_read_serves(cache, made, monkeypatch):
    def refuse(*arguments, **settings):
        raise PermissionError(13, "Permission denied")

    Captions(**ASKED, cache=cache)
    monkeypatch.setattr("inputs.captions.Path.mkdir", refuse)
    Captions(**ASKED, cache=cache)
    assert len(made) == 1


MAKES = """
import sys, time
from pathlib import Path
import numpy as np
from inputs.captions import kept_arrays

folder, log = map(Path, sys.argv[1:])

def make():
    with open(log, "a") as file:
        file.write("made\\n")
    time.sleep(0.5)
    return np.arange(5), np.arange(2)

print(kept_arrays(folder, "numbers", make)[0].tolist())
"""


def test_of_processes_that_begin_together_one_makes_it(tmp_path, cache):
    log = tmp_path / "log"
    started = [subprocess.Popen([sys.executable, "-c", MAKES, str(cache), str(log)], cwd=ROOT,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
               for _ in range(3)]
    for out, error in [process.communicate() for process in started]:
        assert out == "[0, 1, 2, 3, 4]\n"
        assert error == "" or "waiting for process " in error and error.count("\n") == 1
    assert log.read_text() == "made\n" and len(files_in(cache)) == 2


def test_kept_arrays_are_mapped(cache):
    """So that the processes of a machine share them."""
    for _ in range(2):
        arrays = kept_arrays(cache, "numbers", lambda: (np.arange(5), np.arange(2)))
        assert all(isinstance(array.base, np.memmap) for array in arrays)
