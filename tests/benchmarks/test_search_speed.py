"""The benchmark of search runs, and its random photos are unit rows around centres."""

import importlib.util

import search_speed
import torch


def test_it_prints_a_line_for_each_thing(capsys):
    more = ["--faiss"] if importlib.util.find_spec("faiss") else []
    search_speed.main(["--photos", "300", "--dims", "8", "16", *more])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 2 * (8 + 3 * len(more))
    assert all(line.endswith(" s") and "    300 photos, D " in line for line in lines)


def test_its_rows_are_unit_rows():
    rows = search_speed.random_rows(100, 16)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(100))
    assert torch.equal(rows, search_speed.random_rows(100, 16))


def test_it_measures_an_encoder(exported, capsys):
    search_speed.main(["--encoder", str(exported), "--batches", "1"])
    assert "photos a second, in batches of 32" in capsys.readouterr().out
