"""The table of memory: a row for each setting; no number of it is asserted."""

import sys

import memory
import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_each_setting_has_a_row(monkeypatch, capsys):
    settings = ["", "--chunk 2"]
    monkeypatch.setattr(memory, "SETTINGS", settings)
    narrow = dict(hidden_size=8, num_attention_heads=2, intermediate_size=8, num_hidden_layers=1)
    monkeypatch.setattr(memory, "VISION", {**memory.VISION, **narrow})
    monkeypatch.setattr(memory, "TEXT", {**memory.TEXT, **narrow})
    memory.main(["--batches", "4", "--repeats", "1"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [[" 4 ", "  "], [" 4 ", " `--chunk 2` "]]
    assert all(float(row[2]) > 0 and float(row[5]) > 0 for row in rows)
