"""The benchmark of search runs, and its random embeddings are unit rows."""

import importlib.util

import search_speed
import torch


def test_each_step_of_a_search_has_a_line(capsys):
    more = ["--faiss"] if importlib.util.find_spec("faiss") else []
    search_speed.main(["--photos", "300", "--dims", "8", "16", *more])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 2 * (8 + 3 * len(more))
    assert all(line.endswith(" s") and "    300 photos, D " in line for line in lines)


def test_random_rows_are_unit_rows_and_always_the_same():
    rows = search_speed.random_rows(100, 16)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(100))
    assert torch.equal(rows, search_speed.random_rows(100, 16))


def test_an_encoder_has_a_rate(exported, capsys):
    search_speed.main(["--encoder", str(exported), "--batches", "1"])
    assert "photos a second, in batches of 32" in capsys.readouterr().out
