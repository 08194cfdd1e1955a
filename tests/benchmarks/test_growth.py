"""The tables of growth: a row for each size; nothing here asserts a time."""

import growth
import large_data
import pytest
import shard_rows
from helpers.together import run_together


@pytest.fixture
def small(monkeypatch):
    """Give the constants of the simulated data sizes for tests."""
    monkeypatch.setattr(large_data, "BATCHES", 2)
    monkeypatch.setattr(large_data, "HELD_OUT", 100)
    monkeypatch.setattr(large_data, "ORDER", 12_000)
    monkeypatch.setattr(shard_rows, "READS", 200)


def test_growth_gives_a_row_for_each_size(capsys):
    growth.main(["--banks", "32", "64", "--photos", "20", "--batch", "8", "--dim", "4",
                 "--repeats", "1"])
    printed = capsys.readouterr().out
    assert "| 32 |" in printed and "| 64 |" in printed and "| 20 x 100 |" in printed


def test_an_embeddings_file_has_a_row_for_each_type(capsys):
    growth.main(["--banks", "--photos", "--files", "20", "--dim", "512"])
    printed = capsys.readouterr().out
    assert "| 20 x 100 | float32 | 0 MiB |" in printed and "| 20 x 100 | bfloat16 |" in printed


def test_pairs_are_simulated_read_and_loaded(small, tmp_path, monkeypatch, capsys):
    """Enough to be kept would be 100,000; here it is seen that every line is there.

    Forks stand in for the new processes, which would import everything six times.
    """
    folders = iter(tmp_path / str(number) for number in range(6))

    def forked(work, folder, argument=""):
        [result] = run_together(1, lambda: large_data.WORK[work](folder, argument), next(folders))
        return result

    monkeypatch.setattr(large_data, "alone", forked)
    growth.main(["--banks", "--photos", "--pairs", "300"])
    printed = capsys.readouterr().out
    for line in ("| pairs, one a photo; the split file | 300; ", "| first start", "| second start",
                 "| memory while 0 workers load", "| memory while 4 workers load",
                 "12,000 pairs: ", "12,000 pairs, from lists: "):
        assert line in printed


def test_simulated_photos_are_found_by_their_bare_names(small, tmp_path):
    large_data.write_data(tmp_path, 250)
    _, train_set = large_data.start(tmp_path)
    assert len(set(train_set.split.images)) == len(train_set.captions) == 250
    assert all(photo.is_file() for photo in train_set.photos) and len(set(train_set.photos)) == 100
    took = large_data.alone("started", tmp_path)
    assert took["seconds"] > 0 and took["peak"] > 0


def test_shards_are_written_indexed_and_read(small, capsys):
    growth.main(["--banks", "--photos", "--shards", "30"])
    printed = capsys.readouterr().out
    assert "| samples, shards; processes that index | 30, 1; " in printed
    assert printed.count("| a photo at random from ") == 4
