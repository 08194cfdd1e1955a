"""Locks: only on files, without waiting for a pipe, and without a byte of the file changed."""

import os
import signal

import pytest
from helpers.stopping import in_a_child, status_of

from common.errors import InputError
from common.locks import LockHeld, lock, wait_for_lock


@pytest.mark.parametrize("make", [
    os.mkfifo, lambda path: path.mkdir(), lambda path: path.symlink_to("/dev/null"),
    lambda path: path.symlink_to(path.with_name("victim")),
    lambda path: path.symlink_to(path.name)])
def test_what_is_no_file_is_not_locked(tmp_path, make):
    """A pipe would be waited for, and a link followed."""
    make(tmp_path / "x.lock")
    signal.alarm(5)
    try:
        for call in lock, lambda path: wait_for_lock(path, pytest.fail):
            with pytest.raises(InputError, match="x.lock is no file"):
                call(tmp_path / "x.lock")
    finally:
        signal.alarm(0)
    assert [path.name for path in tmp_path.iterdir()] == ["x.lock"]


def test_a_file_of_somebody_else_is_locked_as_it_is(tmp_path):
    (tmp_path / "x.lock").write_text("precious")
    with lock(tmp_path / "x.lock"):
        assert (tmp_path / "x.lock").read_text() == "precious"


def test_one_process_has_it(tmp_path):
    def second():
        try:
            lock(tmp_path / "x.lock")
        except LockHeld:
            os._exit(7)

    with lock(tmp_path / "x.lock"):
        assert status_of(in_a_child(second)) == 7
    assert status_of(in_a_child(second)) == 0


def test_a_folder_that_takes_no_file_has_no_lock(tmp_path):
    assert lock(tmp_path / "none" / "x.lock") is None
