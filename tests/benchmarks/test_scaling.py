"""The benchmark of several processes runs, and counts the bytes of its formula."""

import re

import pytest
import scaling

from common import processes


@pytest.mark.parametrize("count, expected", [
    (1, 0), (2, 4 * 10 + 4 * (16 * 3 + 56) + 30 * 8),
    (4, 1.5 * 4 * 10 + 3 * (2 * (16 * 3 + 56) + 30 * 8))])
def test_the_bytes_of_a_step_by_hand(count, expected):
    """The gradients of 10 parameters, 8 pairs of 104 bytes, and 30 numbers of each process."""
    assert scaling.bytes_of_a_step(count, 10, 8, 3) == pytest.approx(expected)


def test_the_table_counts_the_bytes_of_the_formula(monkeypatch, capsys):
    monkeypatch.setattr(scaling, "M", 512)
    monkeypatch.setattr(scaling, "D", 16)
    monkeypatch.setattr(scaling, "SMALL", [*scaling.SMALL, "--batch_size_train", "4",
                                           "--queue_size", "8"])
    print(scaling.table(2, 1, 1))
    printed = capsys.readouterr().out
    counted, formula = re.search(r"sends (\S+) MB .* counted; (\S+) MB", printed).groups()
    assert counted == formula and float(counted) > 0.1
    assert re.search(r"\| the loss, B 256, M 512, D 16 \| \d+ ms \| \d+ ms \| \d", printed)
    assert not processes.dist.is_initialized()
