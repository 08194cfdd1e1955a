"""The command that splits a captions file: by photo, the same everywhere, nothing overwritten."""

import json
import subprocess
import sys

import pytest
from helpers.paths import ROOT
from helpers.runs import contents, expect_exit

from data import read_split
from scripts import split

PARTS = "train", "val", "test"


@pytest.fixture
def table(tmp_path):
    """Three captions of each of 20 photos, those of a photo far apart."""
    path = tmp_path / "captions.csv"
    path.write_text("file_name,text\n" + "".join(
        f"sub/{photo}.jpg,Caption {number} of {photo}.\n" for number in range(3)
        for photo in range(20)))
    return path


def split_of(path, out, *more):
    """Part to its photos, once the command has run."""
    split.main([str(path), "--out", str(out), *more])
    return {part: read_split("custom", part, out, out).images for part in PARTS}


SIZES = "--val", "4", "--test", "5"


def test_every_photo_is_on_one_side_with_all_its_captions(table, tmp_path, capsys):
    parts = split_of(table, tmp_path / "new" / "out", *SIZES)
    assert [len(parts[part]) for part in PARTS] == [11, 4, 5]
    assert sorted(sum(parts.values(), [])) == sorted(f"sub/{number}.jpg" for number in range(20))
    for part in PARTS:
        records = json.loads((tmp_path / "new" / "out" / f"{part}.json").read_text())
        assert [record["image"] for record in records] == parts[part]
        assert all(record["caption"] == [f"Caption {number} of {record['image'][4:-4]}."
                                         for number in range(3)] for record in records)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["train", "11", "photos", "33", "captions",
                                str(tmp_path / "new" / "out" / "train.json")] and len(lines) == 3


def test_a_seed_is_a_split(table, tmp_path):
    """These names were drawn once and written down: another machine must draw them too."""
    first = split_of(table, tmp_path / "a", *SIZES)
    assert {part: " ".join(sorted(name[4:-4] for name in first[part])) for part in PARTS[1:]} == {
        "val": "10 18 19 2", "test": "12 13 14 17 7"}
    assert split_of(table, tmp_path / "b", *SIZES, "--seed", "0") == first
    assert split_of(table, tmp_path / "c", *SIZES, "--seed", "1") != first


def test_neither_the_order_of_the_rows_nor_the_format_counts(table, tmp_path):
    first = split_of(table, tmp_path / "a", *SIZES)
    rows = table.read_text().splitlines()
    turned = tmp_path / "turned.jsonl"
    turned.write_text("\n".join(json.dumps(dict(zip(("image", "title"), row.split(","))))
                                for row in reversed(rows[1:])))
    second = split_of(turned, tmp_path / "b", *SIZES)
    assert {part: set(names) for part, names in first.items()} == {
        part: set(names) for part, names in second.items()}


def test_few_photos_move_when_some_are_added(table, tmp_path):
    first = split_of(table, tmp_path / "a", *SIZES)
    table.write_text(table.read_text() + "sub/20.jpg,new\nsub/21.jpg,new\n")
    second = split_of(table, tmp_path / "b", *SIZES)
    assert all(len({*first[part]} - {*second[part]}) <= 2 for part in PARTS)


def test_two_ways_to_write_a_path_are_one_photo(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(
        [{"image": name, "caption": "x"} for name in ("a.jpg", "./a.jpg", "b.jpg", "c.jpg")]))
    parts = split_of(tmp_path / "x.json", tmp_path / "out", "--val", "1", "--test", "1")
    assert sorted(sum(parts.values(), [])) == ["a.jpg", "b.jpg", "c.jpg"]


@pytest.mark.parametrize("words", [("train", "val", "test"), ("restval", "validation", "test"),
                                   ("TRAIN", " dev", "Test ")])
def test_a_file_may_say_itself_what_goes_where(tmp_path, words):
    path = tmp_path / "x.csv"
    path.write_text("image,caption,Split\n" + "".join(
        f"{number}.jpg,x,{word}\n" for number, word in enumerate([*words, *words])))
    assert split_of(path, tmp_path / "out") == {
        "train": ["0.jpg", "3.jpg"], "val": ["1.jpg", "4.jpg"], "test": ["2.jpg", "5.jpg"]}
    drawn = split_of(path, tmp_path / "other", "--val", "2", "--test", "3", "--split_column",
                     "none")
    assert len(drawn["test"]) == 3


def test_a_column_that_says_it_goes_before_sizes(tmp_path, capsys):
    (tmp_path / "x.csv").write_text("image,caption,split\na.jpg,x,train\nb.jpg,x,test\n")
    expect_exit([str(tmp_path / "x.csv"), "--out", str(tmp_path / "out"), "--val", "1", "--test",
                 "1"], 2, capsys, ["x.csv says itself", "row 2: split 'train'", "--split_column"],
                split.main)
    assert not (tmp_path / "out").exists()


def test_karpathys_file_says_it_too(tmp_path):
    path = tmp_path / "dataset_x.json"
    path.write_text(json.dumps({"images": [
        {"filename": f"{part}.jpg", "split": part, "sentences": [{"raw": "x"}]}
        for part in ("restval", "test", "val", "train")]}))
    assert split_of(path, tmp_path / "out") == {
        "train": ["restval.jpg", "train.jpg"], "val": ["val.jpg"], "test": ["test.jpg"]}


def test_letters_of_every_language_and_names_of_none_come_back(tmp_path):
    names = ["日本.jpg", "\udce9.jpg", "c.jpg"]
    (tmp_path / "x.json").write_text(json.dumps(
        [{"image": name, "caption": 'Ein "süßer" Hund\n'} for name in names]))
    parts = split_of(tmp_path / "x.json", tmp_path / "out", "--val", "1", "--test", "1")
    assert sorted(sum(parts.values(), [])) == sorted(names)
    assert any("süßer" in path.read_text() for path in (tmp_path / "out").iterdir())


def test_a_split_made_before_is_made_anew(table, tmp_path):
    split_of(table, tmp_path / "out", *SIZES)
    second = split_of(table, tmp_path / "out", *SIZES, "--seed", "1")
    assert second == split_of(table, tmp_path / "other", *SIZES, "--seed", "1")


OTHERS = {"train.json": "my notes", "val.json": '[{"image": "a.jpg", "caption": "made by hand"}]',
          "test.csv": "image,text\n", "dev.jsonl": "{}", "validation.tsv": "image\ttext\n"}


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_else_is_overwritten_or_made_ambiguous(table, tmp_path, capsys, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(OTHERS[name])
    before = contents(tmp_path)
    expect_exit([str(table), "--out", str(tmp_path / "out"), *SIZES], 2, capsys,
                ["--out", name, "name another"], split.main)
    assert contents(tmp_path) == before


def test_the_file_that_is_split_stays(table, tmp_path, capsys):
    split_of(table, tmp_path, *SIZES)
    before = contents(tmp_path)
    expect_exit([str(tmp_path / "train.json"), "--out", str(tmp_path), "--val", "1", "--test",
                 "1"], 2, capsys, ["train.json", "read or written"], split.main)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("more", "told"), [
    (["--val", "10", "--test", "10"], "leave no photo for training: there are 20"),
    (["--val", "0", "--test", "10"], "each must be at least 1"),
    (["--val", "-1", "--test", "10"], "each must be at least 1"),
    (["--val", "1"], "--val and --test go together"), (["--test", "1"], "go together"),
    ([], "no column 'split': say with --val and --test"),
    ([*SIZES, "--caption_column", "words"], "none is called 'words'")])
def test_what_cannot_be_split(table, tmp_path, capsys, more, told):
    expect_exit([str(table), "--out", str(tmp_path / "out"), *more], 2, capsys, [told], split.main)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("rows", "told"), [
    ("a.jpg,x,train\nb.jpg,x,holdout\n", "row 3: split 'holdout' is none of train, val and test"),
    ("a.jpg,x,train\nb.jpg,x,\n", "row 3: split '' is none of"),
    ("a.jpg,x,train\nb.jpg,x,val\na.jpg,x,test\n", "row 4: photo 'a.jpg' is in test, and in train"),
    ("a.jpg,x,train\nb.jpg,x,val\n", "column 'split' has no photo for test"),
    ("a.jpg,x,\n", "no column 'split'")])
def test_a_column_that_is_not_in_order(tmp_path, capsys, rows, told):
    (tmp_path / "x.csv").write_text("image,text,split\n" + rows)
    expect_exit([str(tmp_path / "x.csv"), "--out", str(tmp_path / "out")], 2, capsys,
                ["x.csv", told], split.main)


def test_the_command_runs_as_the_page_says(table, tmp_path):
    done = subprocess.run([sys.executable, "-m", "scripts.split", table, "--out", tmp_path / "out",
                           *SIZES], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr and len(done.stdout.splitlines()) == 3
