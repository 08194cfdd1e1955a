"""The table of speeds: each section runs in its short form. No time is asserted."""

import speed
import torch


def test_each_section_gives_a_table_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    with monkeypatch.context() as quick:  # compiling takes longer than all the rest
        compiled = []
        quick.setattr(torch, "compile", lambda call, **_: compiled.append(call) or call)
        rows = speed.main(["--short", "--repeats", "2", "--device", "cpu", "--save",
                           "--sections", *speed.SECTIONS])
        assert compiled
    assert {row.section for row in rows} == set(speed.SECTIONS)
    assert all(len(row.ratios) == 2 and min(row.ratios) > 0 and row.value > 0 for row in rows)
    printed = capsys.readouterr().out
    assert printed.count("\n| ") == len(rows) + 1
    [saved] = tmp_path.iterdir()
    assert printed.strip() in saved.read_text() and "speed.py --short" in saved.read_text()
