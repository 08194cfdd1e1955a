"""The tables of growth have a row for each size. No time is asserted."""

import growth
import large_data


def test_growth_gives_a_row_for_each_size(capsys):
    growth.main(["--banks", "32", "64", "--photos", "20", "--batch", "8", "--dim", "4",
                 "--repeats", "1"])
    printed = capsys.readouterr().out
    assert "| 32 |" in printed and "| 64 |" in printed and "| 20 x 100 |" in printed


def test_pairs_are_simulated_read_and_loaded(monkeypatch, capsys):
    """Every line of the table is printed, also of far fewer pairs than are ever cached."""
    monkeypatch.setattr(large_data, "BATCHES", 2)
    growth.main(["--banks", "--photos", "--pairs", "300"])
    printed = capsys.readouterr().out
    for line in ("| pairs, one a photo; the split file | 300; ", "| first start", "| second start",
                 "| memory while 0 workers load", "| memory while 4 workers load",
                 "12,000,000 pairs: ", "12,000,000 pairs, from lists: "):
        assert line in printed


def test_simulated_photos_are_found_by_their_bare_names(tmp_path):
    large_data.write_data(tmp_path, 250)
    _, train_set = large_data.start(tmp_path)
    assert len(set(train_set.split.images)) == len(train_set.captions) == 250
    assert all(photo.is_file() for photo in train_set.photos) and len(set(train_set.photos)) == 100


def test_shards_are_written_indexed_and_read(capsys):
    growth.main(["--banks", "--photos", "--shards", "30"])
    printed = capsys.readouterr().out
    assert "| samples, shards; processes that index | 30, 1; " in printed
    assert printed.count("| a photo at random from ") == 4
