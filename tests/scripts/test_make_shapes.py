"""The command that makes the embedded dataset."""

import json

import pytest
from PIL import Image

from inputs import shapes
from scripts import make_shapes

SMALL = {"train": 12, "val": 2, "test": 3}


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shapes, "DEFAULT_SIZES", SMALL)
    (tmp_path / "made").mkdir()  # an empty folder will do
    command = ["make_shapes.py", str(tmp_path / "made"), "--image_size", "32"]
    monkeypatch.setattr("sys.argv", command)
    make_shapes.main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "made")
    with Image.open(tmp_path / "made" / "images" / "test_00002.png") as image:
        assert image.size == (32, 32)
    monkeypatch.setattr("sys.argv", [*command, "--seed", "4"])
    with pytest.raises(SystemExit):
        make_shapes.main()
    assert "another folder" in capsys.readouterr().err.splitlines()[-1]


def test_the_dial_of_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shapes, "DEFAULT_SIZES", SMALL)
    make_shapes.main([str(tmp_path / "made"), "--ambiguity", "25"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "made")
    same = shapes.make_shapes(tmp_path / "made", ambiguity=25)
    shares = [json.loads((same / f"shapes_{split}_matches.json").read_text())["share"]
              for split in SMALL]
    assert all(0.05 < share < 0.6 for share in shares)
    with pytest.raises(SystemExit):
        make_shapes.main([str(tmp_path / "made"), "--ambiguity", "10"])
    assert "another folder" in capsys.readouterr().err
