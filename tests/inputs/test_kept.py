"""What is kept is what would be made, and nothing else is ever taken for it."""

import contextlib
import inspect
import json
import resource
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest
from helpers.captions import word_tokenizer
from helpers.paths import ROOT
from helpers.runs import assert_same, command, final_state

import inputs.captions
import inputs.kept
import inputs.pairs
import train
from common.errors import InputError
from data import load_split, read_split
from inputs.arrays import Texts
from inputs.captions import Captions
from inputs.kept import cache_folder, kept
from inputs.records import USUAL, Columns
from training.options import parse

RAW = ["A red cat, runs.", "dog", "a BLUE dog sits; a red cat runs", "zebra-cat"] * 3
TABLE = "file_name,text,title\n" + "".join(
    f"{number // 2}.jpg,{text.replace(',', '')},other {number}\n"
    for number, text in enumerate(RAW))
COLUMNS = Columns(None, "text")


@pytest.fixture(autouse=True)
def all_is_large(monkeypatch):
    monkeypatch.setattr(inputs.pairs, "LARGE", 0)
    monkeypatch.setattr(inputs.captions, "MANY", 0)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def made(monkeypatch):
    """What was made, and not taken from the cache, so far."""
    made = []
    for module, name in (inputs.pairs, "add_pairs"), (inputs.captions, "add_tokens"):
        monkeypatch.setattr(module, name, telling(getattr(module, name), name, made))
    return made


def telling(plain, name, calls):
    def tells(*arguments):
        calls.append(name)
        return plain(*arguments)

    return tells


def entries(cache, kind=""):
    return sorted(path for path in cache.iterdir() if path.is_dir()
                  and path.name.startswith(kind)) if cache.is_dir() else []


def own_split(folder, text=TABLE, name="train.csv"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder


def as_lists(split, captions=None):
    told = [list(split.images), list(split.captions), split.image_of_text.tolist(),
            str(split.image_of_text.dtype)]
    return told if captions is None else [*told, [row.tolist() for row in captions]]


# ------------------------------------------------------------------------------ the same to the bit


def test_a_split_from_the_cache_is_the_one_that_was_read(tmp_path, cache, made):
    folder = own_split(tmp_path / "x")
    ways = [read_split("custom", "train", folder, folder, limit, COLUMNS, place)
            for limit in (None, 1) for place in (None, cache, cache)]
    assert made == ["add_pairs"] * 4 and len(entries(cache)) == 2
    for plain, *others in (ways[:3], ways[3:]):
        assert all(as_lists(other) == as_lists(plain) for other in others)
    assert ways[0].captions == [text.replace(",", "") for text in RAW]
    assert ways[0].image_of_text.tolist() == [number // 2 for number in range(12)]
    assert ways[3].captions == ways[0].captions[::2] and len(ways[3].images) == 6


def test_matches_are_read_beside_a_split_that_is_kept(tmp_path, cache, made):
    folder = own_split(tmp_path / "x")
    for first in (0, 3):
        lists = [[(number // 2 + first) % 6] for number in range(12)]
        (folder / "train_matches.json").write_text(json.dumps({"matches": lists}))
        for limit, rows in ((None, range(12)), (1, range(0, 12, 2))):
            split = read_split("custom", "train", folder, folder, limit, COLUMNS, cache)
            assert [row.nonzero()[0].tolist() for row in split.matches] == [
                lists[row] for row in rows]
    assert made == ["add_pairs"] * 2


@pytest.mark.parametrize("wide", [False, True])
def test_token_ids_from_the_cache_are_those_that_were_made(cache, made, wide):
    """In two bytes, or in four where the vocabulary is large; padding is no part of them."""
    words = " ".join(f"w{number}" for number in range(2**16)) if wide else ""
    tokenizer = word_tokenizer(f"[PAD] [UNK] {words} a red blue cat dog runs sits")
    texts = Texts.of(RAW)
    plain = Captions(RAW, tokenizer, 30, 5)
    for padded in (False, True, False):
        captions = Captions(texts, tokenizer, 30, 5, padded, cache=cache)
        assert captions.ids.dtype == (np.int32 if wide else np.uint16)
        assert [row.tolist() for row in captions] == [row.tolist() for row in plain]
        assert captions.lengths.tolist() == plain.lengths.tolist()
        assert captions.batch_length == (5 if padded else None)
        ids, _ = captions.padded([captions[0], captions[1]])
        assert ids.shape == (2, 5 if padded else 4)
        assert ids.max() == tokenizer.get_vocab()["runs"]
    assert made == ["add_tokens"] * 2 and len(entries(cache)) == 1


def test_a_run_from_the_cache_is_the_run_without(data, finished, tmp_path, monkeypatch, made):
    """What is trained, logged and scored is the same to the bit: when it is made, and when kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for number in range(2):
        train.main(command(data, tmp_path / f"run{number}"))
        assert_same(final_state(tmp_path / f"run{number}"), final_state(finished))
        assert (tmp_path / f"run{number}" / "test_results.json").read_text() == (
            finished / "test_results.json").read_text()
        assert len(made) == 6 and len(entries(tmp_path / "fne")) == 6


def test_what_is_small_is_not_kept(tmp_path, cache, made, monkeypatch):
    monkeypatch.setattr(inputs.pairs, "LARGE", len(TABLE) + 1)
    monkeypatch.setattr(inputs.captions, "MANY", len(RAW) + 1)
    folder = own_split(tmp_path / "x")
    for _ in range(2):
        split = read_split("custom", "train", folder, folder, None, COLUMNS, cache)
        Captions(split.captions, word_tokenizer(), 30, 30, cache=cache)
    assert made == ["add_pairs", "add_tokens"] * 2 and not cache.exists()


def test_the_cache_is_the_users_own(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "fne" and cache_folder(tmp_path / "x") == tmp_path / "x"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(cache_folder(None)) == "/home/somebody/.cache/fne"
    options, _ = parse("", ["--cache", "x"])
    assert str(options.cache) == "x"


# ----------------------------------------------------------------------------------- no wrong hit


READING = dict(path="", dataset="custom", split="train", captions_per_image=None, columns=COLUMNS)


@pytest.mark.parametrize(("changed", "value"), [
    ("path", TABLE.replace("dog", "cat", 1)), ("path", TABLE.replace("0.jpg", "9.jpg")),
    ("path", TABLE + "9.jpg,a cat,x\n"), ("split", "test"), ("captions_per_image", 1),
    ("captions_per_image", 2), ("columns", Columns(None, "title")), ("dataset", "flickr")])
def test_whatever_a_split_depends_on_makes_it_anew(tmp_path, cache, made, changed, value):
    names = inspect.signature(inputs.pairs.pair_arrays).parameters.keys()
    assert READING.keys() | {"cache"} == names
    path = own_split(tmp_path / "x") / "train.csv"
    before = path.stat()

    def read(**values):
        return inputs.pairs.pair_arrays(**{**READING, "path": path, **values}, cache=cache)

    read()
    if changed == "path":  # of the same size and time, too
        path.write_text(value)
        inputs.kept.os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        values = {}
    else:
        values = {changed: value}
    found = [read(**values) for _ in range(2)]
    assert made == ["add_pairs"] * 2
    assert found[0].captions == found[1].captions


def test_the_same_bytes_in_another_place_are_another_split(tmp_path, cache, made):
    """The format, and names of an imagefolder, follow from a file's path."""
    for name in "x", "y":
        folder = own_split(tmp_path / name)
        read_split("custom", "train", folder, folder, None, COLUMNS, cache)
    assert len(made) == 2


def test_every_file_that_a_split_is_read_from_counts(tmp_path, cache, made):
    """Captions from their owners, and the list that says what is in the split."""
    folder = tmp_path / "x"
    own_split(folder, "a.jpg#0\tA dog .\nb.jpg#0\tA cat .\n", "Flickr8k.token.txt")
    found = []
    for names in ["a.jpg"], ["a.jpg", "b.jpg"], ["a.jpg", "b.jpg"]:
        own_split(folder, "\n".join(names), "Flickr_8k.testImages.txt")
        found.append(list(read_split("flickr8k", "test", folder, folder, cache=cache).images))
        assert found[-1] == names
    assert len(made) == 2


TOKENISING = dict(texts=RAW, tokenizer=word_tokenizer(), max_words=30, max_tokens=30, prefix="")


@pytest.mark.parametrize(("changed", "value"), [
    ("texts", [*RAW[:-1], "zebra-dog"]), ("texts", RAW[:-1]), ("texts", ["ab", "", "c"]),
    ("texts", ["a", "b", "c"]), ("max_words", 2), ("max_tokens", 2), ("prefix", "a "),
    ("tokenizer", word_tokenizer("[PAD] [UNK] red a blue cat dog runs sits"))])
def test_whatever_token_ids_depend_on_makes_them_anew(cache, made, changed, value):
    names = inspect.signature(Captions).parameters.keys()
    assert TOKENISING.keys() | {"padded", "cache"} == names

    def read(**values):
        values = {**TOKENISING, **values}
        values["texts"] = Texts.of([text or "a" for text in values["texts"]])
        return Captions(**values, cache=cache)

    read()
    found, again = read(**{changed: value}), read(**{changed: value})
    assert made == ["add_tokens"] * 2
    assert np.array_equal(found.ids, again.ids) and np.array_equal(found.ends, again.ends)


def test_another_program_makes_it_anew(tmp_path, cache, made, monkeypatch):
    """Another version of the code that reads, or of what it rests on."""
    folder = own_split(tmp_path / "x")
    told = inputs.kept.program()
    assert len(told) == 5 and len(told[1]) == 64
    for number in range(6):
        other = told if number == 5 else told[:number] + ["other"] + told[number + 1 :]
        monkeypatch.setattr(inputs.kept, "program", lambda other=other: other)
        read_split("custom", "train", folder, folder, None, COLUMNS, cache)
        assert len(made) == number + 1


def test_a_tokenizer_that_cannot_be_written_down_keeps_nothing(cache, made):
    class Own:
        pad_token_id = 0

        def __call__(self, texts, **settings):
            return {"input_ids": [[1] * len(text.split()) for text in texts]}

    for _ in range(2):
        captions = Captions(Texts.of(RAW), Own(), 30, 30, cache=cache)
        assert captions.lengths.tolist() == [len(text.replace("-", " ").split()) for text in RAW]
    assert len(made) == 2 and not cache.exists()


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, cache, monkeypatch):
    folder = own_split(tmp_path / "x")
    plain = inputs.pairs.add_pairs

    def changes(*arguments):
        plain(*arguments)
        own_split(folder, TABLE + "9.jpg,a cat,x\n")

    monkeypatch.setattr(inputs.pairs, "add_pairs", changes)
    with pytest.raises(InputError, match="x/train.csv has changed while it was read: start again"):
        read_split("custom", "train", folder, folder, None, COLUMNS, cache)
    assert entries(cache) == []


# --------------------------------------------------------------------------------------- damage


def meta_of(entry, change):
    path = entry / "meta.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "cut short": lambda entry: (entry / "captions").write_bytes(b"A red"),
    "too long": lambda entry: (entry / "images").open("ab").write(b"x"),
    "a flipped bit": lambda entry: flipped(entry / "captions"),
    "a flipped bit in a number": lambda entry: flipped(entry / "captions_ends"),
    "without an array": lambda entry: (entry / "image_of_text").unlink(),
    "without meta": lambda entry: (entry / "meta.json").unlink(),
    "meta cut short": lambda entry: (entry / "meta.json").write_text('{"key":'),
    "meta is a list": lambda entry: (entry / "meta.json").write_text("[]"),
    "empty": lambda entry: [path.unlink() for path in entry.iterdir()],
    "another key": lambda entry: meta_of(entry, lambda meta: meta["key"].update(split="val")),
    "objects": lambda entry: meta_of(entry, lambda meta: meta["arrays"]["images"].__setitem__(
        0, "|O")),
    "a file elsewhere": lambda entry: meta_of(entry, lambda meta: meta["arrays"].update(
        {"../../x/train.csv": ["|u1", len(TABLE), zlib.crc32(TABLE.encode())]})),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_damaged_is_made_anew(tmp_path, cache, made, capsys, kind):
    folder = own_split(tmp_path / "x")

    def read():
        return as_lists(read_split("custom", "train", folder, folder, None, COLUMNS, cache))

    plain, [entry] = read(), entries(cache)
    whole = {path.name: path.read_bytes() for path in entry.iterdir()}
    DAMAGE[kind](entry)
    assert read() == plain and len(made) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{entry} is damaged (" in error and "made anew" in error
    assert {path.name: path.read_bytes() for path in entry.iterdir()} == whole
    assert read() == plain and len(made) == 2 and capsys.readouterr().err == ""


def test_an_error_of_the_data_leaves_nothing(tmp_path, cache):
    folder = own_split(tmp_path / "x", TABLE + "../a.jpg,x,y\n")
    with pytest.raises(InputError, match="row 14: .* must be a path inside the photo folder"):
        read_split("custom", "train", folder, folder, None, COLUMNS, cache)
    with pytest.raises(InputError, match="caption 1 .*has no tokens"):
        Captions(Texts.of(["a", "..."]), word_tokenizer(), 30, 30, cache=cache)
    assert entries(cache) == []


# ------------------------------------------------------------------------- folders that are no use


@contextlib.contextmanager
def small_files(size):
    """Inside, no file grows above `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["full", "full at the end", "a file", "no place for folders"])
def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path, cache, capsys, kind):
    folder = own_split(tmp_path / "x")
    plain = as_lists(read_split("custom", "train", folder, folder, None, COLUMNS))
    if kind == "a file":
        cache.write_text("mine")
    elif kind == "no place for folders":
        cache = cache.parent / "x" / "train.csv" / "cache"
    size = {"full": 10, "full at the end": 300}.get(kind, resource.RLIM_INFINITY)
    with small_files(size):
        found = read_split("custom", "train", folder, folder, None, COLUMNS, cache)
    error = capsys.readouterr().err
    assert as_lists(found) == plain
    assert error.count("\n") == 1 and f"--cache {cache} cannot be used (" in error
    assert not cache.is_dir() or entries(cache) == []


def test_a_folder_that_can_only_be_read_serves(tmp_path, cache, made, monkeypatch):
    folder = own_split(tmp_path / "x")

    def refuse(*arguments, **settings):
        raise PermissionError(13, "Permission denied")

    read_split("custom", "train", folder, folder, None, COLUMNS, cache)
    for name in "Path.mkdir", "shutil.rmtree", "os.rename":
        monkeypatch.setattr(f"inputs.kept.{name}", refuse)
    read_split("custom", "train", folder, folder, None, COLUMNS, cache)
    assert len(made) == 1


# ------------------------------------------------------------------------------ several processes


MAKES = """
import sys, time
from pathlib import Path
import numpy as np
from inputs.kept import kept

folder, log = map(Path, sys.argv[1:])

def fill(parts):
    with open(log, "a") as file:
        file.write("made\\n")
    time.sleep(0.5)
    parts.add("numbers", np.arange(5))

print(kept(folder, "numbers", lambda: {"a": 1}, fill)["numbers"].tolist())
"""


def processes(cache, log, count, code=MAKES):
    """What so many processes print that begin together."""
    started = [subprocess.Popen([sys.executable, "-c", code, str(cache), str(log)], cwd=ROOT,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
               for _ in range(count)]
    return [process.communicate() for process in started]


def test_of_processes_that_begin_together_one_makes_it(tmp_path, cache):
    log = tmp_path / "log"
    for out, error in processes(cache, log, 3):
        assert out == "[0, 1, 2, 3, 4]\n"
        assert error == "" or "waiting for process " in error and error.count("\n") == 1
    assert log.read_text() == "made\n" and len(entries(cache)) == 1


def test_where_no_lock_keeps_others_out_the_first_one_counts(tmp_path, cache, monkeypatch):
    """Both have made it, and both go on with what the faster one has put there."""
    monkeypatch.setattr(inputs.kept, "wait_for_lock", lambda path, told: None)
    log = tmp_path / "log"

    def fill(parts):
        parts.add("numbers", np.arange(5))
        assert processes(cache, log, 1)[0][0] == "[0, 1, 2, 3, 4]\n"

    found = kept(cache, "numbers", lambda: {"a": 1}, fill)["numbers"]
    assert found.tolist() == [0, 1, 2, 3, 4] and log.read_text() == "made\n"
    assert len(entries(cache)) == 1  # and what was made in vain is gone


def test_what_a_killed_process_left_is_taken_away(tmp_path, cache):
    key = dict(kind="numbers", key=lambda: {"a": 1},
               fill=lambda parts: parts.add("numbers", np.arange(5)))
    kept(cache, **key)
    [entry] = entries(cache)
    shutil.rmtree(entry)
    left = cache / f"{entry.name}.elsewhere-1.part"
    left.mkdir()
    (left / "numbers").write_bytes(b"half")
    assert kept(cache, **key)["numbers"].tolist() == [0, 1, 2, 3, 4]
    assert entries(cache) == [entry]


# ------------------------------------------------------------------------------------------- size


def test_a_pair_of_flickr30k_takes_below_150_bytes(shared, tmp_path, cache):
    """Its captions, names of photos and token ids, with a vocabulary of usual size: what is kept is
    all that stays in memory."""
    (tmp_path / "photos").mkdir()
    options, _ = parse("", ["--data_path", str(shared / "json"), "--json_path",
                            str(shared / "json"), "--cache", str(cache)])
    split = read_split("flickr", "val", shared / "json", shared / "json", None, USUAL, cache)
    Captions(split.captions, word_tokenizer(), options.max_words, options.max_tokens, cache=cache)
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    assert 50 < size / len(split.captions) < 150


def test_loaded_splits_are_lazy(data, tmp_path):
    options, _ = parse("", ["--dataset", "shapes", "--data_path", str(data),
                            "--cache", str(tmp_path)])
    loaded = load_split(options, "val", word_tokenizer())
    for sequence in loaded.photos, loaded.split.images, loaded.split.captions:
        assert not isinstance(sequence, list) and len(list(sequence)) == len(sequence)
    assert loaded.photos == [data / name for name in loaded.split.images]
