"""The vocabularies that are shipped, and the script that builds them."""

import json
import subprocess
import sys

import pytest
from helpers.paths import ROOT

from encoders.processors import SPECIAL_TOKENS
from inputs.shapes import DEFAULT_SIZES, make_shapes


@pytest.mark.parametrize("name", ["shapes", "flickr30k"])
def test_a_shipped_vocabulary_is_what_the_script_builds(name, tmp_path, request):
    if name == "shapes":
        # In full, as a user has it: the tests' own size is set after this file was imported.
        split = make_shapes(tmp_path / "data", sizes=DEFAULT_SIZES) / "shapes_train.json"
        size = 400
    else:
        split = request.getfixturevalue("shared") / "json" / "flickr30k_train.json"
        size = 8000
    output = tmp_path / "vocabulary.txt"
    subprocess.run([sys.executable, ROOT / "vocab" / "build_vocab.py", split, output,
                    "--size", str(size)], check=True, cwd=tmp_path)
    assert output.read_text() == (ROOT / "vocab" / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", ["shapes", "flickr30k"])
def test_a_shipped_vocabulary_is_in_order(name):
    tokens = (ROOT / "vocab" / f"{name}.txt").read_text().splitlines()
    assert tokens[:5] == list(SPECIAL_TOKENS.values())
    assert len(tokens) == len(set(tokens)) and all(tokens)


def build(folder, name, content, *more):
    """The script, on a file of this name and content; what it said of an error, and the words."""
    (folder / name).write_text(content)
    done = subprocess.run([sys.executable, ROOT / "vocab" / "build_vocab.py", name, "words.txt",
                           *more], cwd=folder, capture_output=True, text=True)
    words = folder / "words.txt"
    return done.returncode, done.stderr, words.read_text() if words.is_file() else None


def test_a_vocabulary_comes_from_every_format_and_training_photos_alone(tmp_path):
    rows = "".join(f"{number}.jpg,{text}\n" for number, text in enumerate(["red dog"] * 3))
    status, error, words = build(tmp_path, "train.csv", "photo,text\n" + rows,
                                 "--image_column", "photo")
    assert (status, error) == (0, "") and {"red", "dog"} <= {*words.splitlines()}
    images = [{"filename": "1.jpg", "split": part, "sentences": [{"raw": text}] * 3}
              for part, text in (("restval", "red dog"), ("test", "green cat"))]
    assert build(tmp_path, "dataset_x.json", json.dumps({"images": images}))[2] == words


@pytest.mark.parametrize("kept", ["my notes\n", '{"a": 1}\n'])
def test_only_a_vocabulary_is_overwritten(tmp_path, kept):
    (tmp_path / "words.txt").write_text(kept)
    status, error, words = build(tmp_path, "train.csv", "image,text\na.jpg,red\n")
    assert status == 2 and words == kept and error.count("\n") == 1 and "words.txt" in error
    (tmp_path / "words.txt").unlink()
    for _ in range(2):
        assert build(tmp_path, "train.csv", "image,text\na.jpg,red\n")[0] == 0
