"""The vocabularies that are shipped, and the script that builds them."""

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
