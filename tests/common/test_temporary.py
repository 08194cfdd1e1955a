"""Temporary files and folders: new names, and left-overs that are known by their own inode."""

import os
import shutil
import signal

import pytest
from helpers.runs import contents
from helpers.stopping import in_a_child, status_of

from common.temporary import (
    check_writable,
    remove_left_overs,
    temporary_file,
    temporary_folder,
    temporary_path,
)


def left_over(folder, make):
    """The file or folder that a process leaves which is killed inside of `make`."""
    def killed():
        with make(folder) as made:
            path = made if make is temporary_folder else made[1]
            if make is temporary_folder:
                (path / "inside").write_bytes(b"x")
            os.kill(os.getpid(), signal.SIGKILL)

    before = set(folder.iterdir())
    assert status_of(in_a_child(killed)) == -signal.SIGKILL
    [path] = set(folder.iterdir()) - before
    return path


BOTH = pytest.mark.parametrize("make", [temporary_file, temporary_folder])


@BOTH
def test_nothing_is_left_without_a_kill(tmp_path, make):
    with make(tmp_path):
        assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError), make(tmp_path):
        raise ValueError
    check_writable(tmp_path)
    assert not list(tmp_path.iterdir())


@BOTH
def test_what_was_renamed_stays(tmp_path, make):
    with make(tmp_path) as made:
        (made if make is temporary_folder else made[1]).rename(tmp_path / "result")
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


@BOTH
def test_permissions_are_those_of_any_other(tmp_path, make):
    former = os.umask(0o027)
    try:
        with make(tmp_path) as made:
            path = made if make is temporary_folder else made[1]
            assert path.stat().st_mode & 0o777 == (0o750 if make is temporary_folder else 0o640)
    finally:
        os.umask(former)


@BOTH
def test_what_a_killed_process_left_is_removed(tmp_path, make):
    path = left_over(tmp_path, make)
    remove_left_overs(tmp_path)
    assert not path.exists()


@BOTH
def test_what_a_living_process_uses_is_left(tmp_path, make):
    with make(tmp_path) as made:
        status = in_a_child(lambda: remove_left_overs(tmp_path))
        assert status_of(status) == 0
        remove_left_overs(tmp_path)
        assert (made if make is temporary_folder else made[1]).exists()


@BOTH
def test_a_name_alone_makes_no_left_over(tmp_path, make):
    """Files under the name of a left-over, or copied or linked from one, are not removed."""
    path = left_over(tmp_path, make)
    for number, copy in enumerate([
            lambda to: to.write_bytes(b"a"), lambda to: to.mkdir(), os.mkfifo,
            lambda to: to.symlink_to(path), lambda to: to.symlink_to("nothing"),
            lambda to: (shutil.copytree if path.is_dir() else shutil.copy)(path, to)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        copy(folder / path.name)
        remove_left_overs(folder)
        assert os.path.lexists(folder / path.name)
    path.rename(tmp_path / "movie.part")
    (tmp_path / "movie.mkv.part").write_bytes(b"a")
    remove_left_overs(tmp_path)
    assert (tmp_path / "movie.part").exists() and (tmp_path / "movie.mkv.part").exists()


def test_a_left_over_of_somebody_else_is_left(tmp_path, monkeypatch):
    path = left_over(tmp_path, temporary_file)
    monkeypatch.setattr("common.temporary.os.geteuid", lambda: os.getuid() + 1)
    remove_left_overs(tmp_path)
    assert path.exists()


def test_a_file_is_named_after_its_inode(tmp_path):
    with temporary_file(tmp_path) as (_, path):
        name = temporary_path(tmp_path, path.stat().st_ino).name
        assert path.name.split("-")[:2] == name.split("-")[:2] and path.name != name


def test_no_link_is_followed(tmp_path, monkeypatch):
    """Not even under the very name that a temporary file would have."""
    monkeypatch.setattr("common.temporary.secrets.token_hex", lambda count: "0" * 2 * count)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / f".fne-{'0' * 16}.part").symlink_to(victim)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError), temporary_file(tmp_path):
        pass
    assert contents(tmp_path) == before
