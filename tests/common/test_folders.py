"""Folders that a command replaces: the former one or the new one, and what others put there."""

import errno
import os
import shutil
import signal
import subprocess

import pytest
from helpers.runs import contents
from helpers.stopping import in_a_child, status_of

from common import folders
from common.errors import InputError
from common.folders import LIST, check_replaceable, folder_place, replaced_folder


def write(place, **files):
    """Write a folder; "__" in a name stands for a slash."""
    with replaced_folder(folder_place(place, "OUT"), "OUT", may_stay=["card"]) as folder:
        for name, content in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)


def texts(place):
    """Content by path in the folder, without the list of what was written."""
    return {path.relative_to(place).as_posix(): content.decode()
            for path, content in contents(place).items() if path.name != LIST}


@pytest.fixture
def place(tmp_path):
    write(tmp_path / "x", a="1", sub__b="1", gone__c="1", card="generated")
    return tmp_path / "x"


def test_a_folder_is_replaced_as_a_whole(place):
    write(place, a="2", sub__b="2", sub__d="2", card="other")
    assert texts(place) == {"a": "2", "sub/b": "2", "sub/d": "2", "card": "other"}
    assert not (place / "gone").exists()
    assert [path.name for path in place.parent.iterdir()] == ["x"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "x").mkdir(mode=0o700)
    write(tmp_path / "x", a="1")
    assert texts(tmp_path / "x") == {"a": "1"}
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o700


def test_what_others_put_there_stays(place):
    (place / "mine").write_text("mine")
    (place / "gone" / "mine").write_text("mine")
    (place / "empty").mkdir(mode=0o750)
    (place / "deep" / "er").mkdir(parents=True)
    (place / "deep" / "er" / "mine").write_text("mine")
    (place / "link").symlink_to("/etc/passwd")
    (place / "folder_link").symlink_to("deep")
    os.mkfifo(place / "pipe")
    (place / "card").write_text("edited")
    (place / "sub" / "b").unlink()
    for number in "2", "3":
        write(place, a=number, card="other")
        assert texts(place).items() >= {"a": number, "card": "edited", "mine": "mine",
                                        "gone/mine": "mine", "deep/er/mine": "mine"}.items()
        assert not (place / "sub").exists() and not (place / "gone" / "c").exists()
        assert os.readlink(place / "link") == "/etc/passwd"
        assert os.readlink(place / "folder_link") == "deep" and (place / "pipe").is_fifo()
        assert (place / "empty").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("change", [
    lambda place: (place / "a").write_text("edited"),
    lambda place: ((place / "a").unlink(), (place / "a").mkdir()),
    lambda place: ((place / "a").unlink(), (place / "a").symlink_to("/etc/passwd")),
    lambda place: (shutil.rmtree(place / "sub"), (place / "sub").write_text("a file")),
    lambda place: (shutil.rmtree(place / "sub"), (place / "sub").symlink_to("/etc")),
    lambda place: (place / "new").write_text("theirs"),
    lambda place: ((place / "card").unlink(), (place / "card").mkdir())])
def test_a_changed_file_is_not_replaced(place, change):
    change(place)
    before = contents(place.parent)
    with pytest.raises(InputError, match="OUT: .*put there or changed"):
        write(place, a="2", sub__b="2", new="2", card="other")
    assert contents(place.parent) == before


@pytest.mark.parametrize("listed", ["[]", "{", '"', None])
def test_a_folder_without_a_list_is_not_replaced(place, listed):
    (place / LIST).unlink() if listed is None else (place / LIST).write_text(listed)
    with pytest.raises(InputError, match="OUT"):
        write(place, a="2")
    assert (place / "a").read_text() == "1"


def test_a_list_names_nothing_outside(place):
    """Names in it are compared with those of the folder's files, and never opened."""
    (place.parent / "victim").write_text("victim")
    (place / LIST).write_text('{"../victim": "x", "/etc/passwd": "x", "": 3, "mine": ["x"]}')
    (place / "mine").write_text("mine")
    shutil.rmtree(place / "sub")
    for name in "a", "card":
        (place / name).unlink()
    write(place, a="2")
    assert (place.parent / "victim").read_text() == "victim"
    assert texts(place) == {"a": "2", "mine": "mine", "gone/c": "1"}


def test_what_fails_leaves_the_former_folder(place):
    before = contents(place.parent)
    with pytest.raises(InputError, match="OUT .*cannot be written .*No space"):
        with replaced_folder(place, "OUT") as folder:
            (folder / "a").write_text("2")
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ZeroDivisionError), replaced_folder(place, "OUT") as folder:
        raise ZeroDivisionError
    assert contents(place.parent) == before


@pytest.mark.parametrize("refused", [errno.EBUSY, errno.EACCES])
def test_a_refused_exchange_leaves_the_former_folder(place, monkeypatch, refused):
    def exchange(left, right):
        raise OSError(refused, os.strerror(refused))

    (place / "mine").write_text("mine")
    before = contents(place.parent)
    monkeypatch.setattr(folders, "exchange_names", exchange)
    with pytest.raises(InputError, match="OUT .*cannot be written"):
        write(place, a="2")
    assert contents(place.parent) == before


@pytest.mark.parametrize("fails", [False, True])
def test_a_file_system_that_cannot_exchange(place, monkeypatch, fails):
    """The former folder is renamed first, and comes back if the new one cannot take its place."""
    def exchange(left, right):
        raise OSError(errno.EINVAL, "Invalid argument")

    def rename(path, target):
        if fails and path.name.startswith(".fne-") and target == place:
            raise OSError(errno.EIO, "Input/output error")
        return plain(path, target)

    plain, before = type(place).rename, contents(place)
    monkeypatch.setattr(folders, "exchange_names", exchange)
    monkeypatch.setattr(type(place), "rename", rename)
    if fails:
        with pytest.raises(InputError, match="OUT .*Input/output error"):
            write(place, a="2")
        assert contents(place) == before
    else:
        write(place, a="2")
        assert texts(place) == {"a": "2"}
    assert [path.name for path in place.parent.iterdir()] == ["x"]


def test_a_mount_point_is_left(place):
    made = subprocess.run(["mount", "--bind", place, place], capture_output=True)
    if made.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        before = contents(place.parent)
        with pytest.raises(InputError, match="OUT .*mounted"):
            write(place, a="2")
        assert contents(place.parent) == before
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("moment", ["finish", "carry_over", "exchange", "remove"])
def test_killed_at_any_moment_one_of_both_is_there(place, monkeypatch, moment):
    """And the next command clears away what the killed one left."""
    (place / "mine").write_text("mine")

    def killed():
        monkeypatch.setattr(folders, moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        write(place, a="2", card="other")

    assert status_of(in_a_child(killed)) == -signal.SIGKILL
    assert texts(place)["a"] == ("2" if moment == "remove" else "1")
    assert texts(place)["mine"] == "mine" and len(list(place.parent.iterdir())) == 2
    write(place, a="3", card="other")
    assert texts(place) == {"a": "3", "card": "other", "mine": "mine"}
    assert [path.name for path in place.parent.iterdir()] == ["x"]


def test_of_several_at_once_one_is_there_as_a_whole(place):
    (place / "mine").write_text("mine")

    def replace(number):
        for _ in range(10):
            write(place, a=str(number), sub__b=str(number), card="generated")

    children = [in_a_child(lambda number=number: replace(number)) for number in range(3)]
    assert [status_of(child) for child in children] == [0, 0, 0]
    found = texts(place)
    assert found.pop("mine") == "mine" and found.pop("card") == "generated"
    assert set(found) == {"a", "sub/b"} and len(set(found.values())) == 1
    assert [path.name for path in place.parent.iterdir()] == ["x"]


def test_several_that_make_a_new_folder_at_once_make_one(tmp_path):
    children = [in_a_child(lambda number=number: write(tmp_path / "x", a=str(number)))
                for number in range(3)]
    assert [status_of(child) for child in children] == [0, 0, 0]
    assert texts(tmp_path / "x")["a"] in "012"


def test_another_process_is_waited_for_a_while_only(place, monkeypatch):
    monkeypatch.setattr(folders, "LONGEST_WAIT", 0.2)
    with folders.locked(place.parent):
        with pytest.raises(InputError, match="OUT .*another process"):
            write(place, a="2")
    assert texts(place)["a"] == "1"


def test_the_working_folder_is_not_replaced(place, monkeypatch):
    for working in place, place / "sub":
        monkeypatch.chdir(working)
        with pytest.raises(InputError, match="OUT .*working folder"):
            check_replaceable(place, "OUT")


def test_links_are_copied_where_a_file_system_has_one_name_for_a_file(place, monkeypatch):
    def link(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    (place / "mine").write_text("mine")
    (place / "link").symlink_to("nothing")
    monkeypatch.setattr(folders.os, "link", link)
    write(place, a="2", card="generated")
    assert texts(place) == {"a": "2", "card": "generated", "mine": "mine"}
    assert os.readlink(place / "link") == "nothing"
