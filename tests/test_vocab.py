"""The vocabularies that are shipped, and the script that builds them."""

import json
import subprocess
import sys

import pytest
from helpers.paths import ROOT
from helpers.shards import pairs, write_shard

from encoders.processors import SPECIAL_TOKENS
from inputs.shapes import DEFAULT_SIZES, make_shapes
from vocab import build_vocab


@pytest.mark.parametrize("name", ["shapes", "flickr30k"])
def test_a_shipped_vocabulary_is_what_the_script_builds(name, tmp_path, request):
    if name == "shapes":
        # The split in full, as a user has it: the tests' own size is set after this file was
        # imported. Its captions depend neither on the other splits nor on the photos' size.
        sizes = DEFAULT_SIZES | {"val": 1, "test": 1}
        split = make_shapes(tmp_path / "data", 0, sizes, image_size=16) / "shapes_train.json"
        size = 400
    else:
        split = request.getfixturevalue("shared") / "json" / "flickr30k_train.json"
        size = 8000
    output = tmp_path / "vocabulary.txt"
    build_vocab.main([str(split), str(output), "--size", str(size)])
    assert output.read_text() == (ROOT / "vocab" / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", ["shapes", "flickr30k"])
def test_a_shipped_vocabulary_is_in_order(name):
    tokens = (ROOT / "vocab" / f"{name}.txt").read_text().splitlines()
    assert tokens[:5] == list(SPECIAL_TOKENS.values())
    assert len(tokens) == len(set(tokens)) and all(tokens)


@pytest.fixture
def build(tmp_path, monkeypatch, capsys):
    """The script, on a file of this name and content in an empty folder; its exit status, what it
    said of an error, and the words."""
    def build(name, content, *more):
        (tmp_path / name).write_text(content)
        status = 0
        try:
            build_vocab.main([name, "words.txt", *more])
        except SystemExit as ended:
            status = ended.code
        words = tmp_path / "words.txt"
        return status, capsys.readouterr().err, words.read_text() if words.is_file() else None

    monkeypatch.chdir(tmp_path)
    return build


def test_it_runs_as_a_script_from_any_folder(tmp_path):
    (tmp_path / "train.csv").write_text("image,text\na.jpg,red\n")
    done = subprocess.run([sys.executable, ROOT / "vocab" / "build_vocab.py", "train.csv",
                           "words.txt"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("words.txt\n") and (tmp_path / "words.txt").is_file()


def test_a_vocabulary_comes_from_every_format_and_training_photos_alone(build):
    rows = "".join(f"{number}.jpg,{text}\n" for number, text in enumerate(["red dog"] * 3))
    status, error, words = build("train.csv", "photo,text\n" + rows, "--image_column", "photo")
    assert (status, error) == (0, "") and {"red", "dog"} <= {*words.splitlines()}
    images = [{"filename": "1.jpg", "split": part, "sentences": [{"raw": text}] * 3}
              for part, text in (("restval", "red dog"), ("test", "green cat"))]
    assert build("dataset_x.json", json.dumps({"images": images}))[2] == words


@pytest.mark.parametrize("size", ["0", "-1", "9" * 25])
def test_a_size_that_no_vocabulary_has(build, size):
    status, error, words = build("train.csv", "image,text\na.jpg,red\n", "--size", size)
    assert status == 2 and error.count("\n") == 1 and "--size" in error and words is None


@pytest.mark.parametrize("kept", ["my notes\n", '{"a": 1}\n'])
def test_only_a_vocabulary_is_overwritten(build, tmp_path, kept):
    (tmp_path / "words.txt").write_text(kept)
    status, error, words = build("train.csv", "image,text\na.jpg,red\n")
    assert status == 2 and words == kept and error.count("\n") == 1 and "words.txt" in error
    (tmp_path / "words.txt").unlink()
    for _ in range(2):
        assert build("train.csv", "image,text\na.jpg,red\n")[0] == 0


def test_captions_in_shards_make_the_same_vocabulary(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps(
        [{"image": f"{number}.jpg", "caption": f"photo {number}"} for number in range(20)]))
    for number in 0, 1:
        write_shard(tmp_path / f"{number}.tar", pairs(10 * number, 10 * number + 10))
    for source in "train.json", "{0..1}.tar":
        build_vocab.main([str(tmp_path / source), str(tmp_path / f"{source}.txt")])
    assert (tmp_path / "train.json.txt").read_text() == (tmp_path / "{0..1}.tar.txt").read_text()
