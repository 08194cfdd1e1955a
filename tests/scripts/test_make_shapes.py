"""The command that makes the embedded dataset."""

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
