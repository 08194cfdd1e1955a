"""The tables of growth: a row for each size; nothing here asserts a time."""

import growth


def test_growth_gives_a_row_for_each_size(capsys):
    growth.main(["--banks", "32", "64", "--photos", "20", "--batch", "8", "--dim", "4",
                 "--repeats", "1"])
    printed = capsys.readouterr().out
    assert "| 32 |" in printed and "| 64 |" in printed and "| 20 x 100 |" in printed
