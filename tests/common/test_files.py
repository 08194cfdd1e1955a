"""What a command writes: whole or not at all, and over nothing but its own kind of file."""

import os
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import contents, expect_exit

import evaluation
from common.errors import InputError
from common.files import (
    check_path,
    read_bytes,
    read_json,
    read_start,
    resolve_output,
    write,
)
from common.temporary import remove


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "file"
    write(path, b"first", "--output")
    write(path, lambda file: file.write(b"second"), "--output")
    assert contents(tmp_path) == {path: b"second"}


def test_what_fails_leaves_the_former_file(tmp_path):
    def fails(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    path.write_bytes(b"first")
    with pytest.raises(InputError, match=r"--output .*file cannot be written \(.*No space left"):
        write(path, fails, "--output")
    assert contents(tmp_path) == {path: b"first"}


def test_a_pipe_or_folder_is_not_replaced(tmp_path):
    for make in os.mkfifo, os.mkdir:
        make(tmp_path / "there")
        with pytest.raises(InputError, match="there cannot be written"):
            write(tmp_path / "there", b"new", "--output")
        assert not (tmp_path / "there").is_file() and len(list(tmp_path.iterdir())) == 1
        remove(tmp_path / "there")


def test_a_file_keeps_its_permissions(tmp_path):
    (tmp_path / "private").write_bytes(b"old")
    (tmp_path / "private").chmod(0o600)
    write(tmp_path / "private", b"new", "--output")
    write(tmp_path / "usual", b"new", "--output")
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "usual").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("name", ["file.part", ".file.part", "file.tmp"])
def test_files_under_names_of_old_are_left(tmp_path, name):
    """Which earlier versions took for their own; a link under one was followed."""
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / name).symlink_to(tmp_path / "victim")
    write(resolve_output(tmp_path / "file", "--output", is_own, []), b"new", "--output")
    assert (tmp_path / name).is_symlink() and (tmp_path / "victim").read_bytes() == b"precious"


def test_no_more_is_read_than_a_file_may_have(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", 5) == b"12345"
    assert read_start(tmp_path / "file", 2) == b"12"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_bytes(tmp_path / "file", 4)
    with open(tmp_path / "file", "ab") as file:
        file.truncate(2**43)
    for read in read_bytes, read_json:
        with pytest.raises((OSError, InputError), match="more than"):
            read(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    assert read_start(tmp_path / "pipe") == read_start(tmp_path) == b""


def is_own(path):
    return path.read_bytes() == b"own"


@pytest.mark.parametrize("make", [
    lambda path: path.write_bytes(b"somebody else's"), lambda path: path.mkdir(), os.mkfifo,
    lambda path: path.symlink_to("/dev/null"), lambda path: path.symlink_to("/etc/hostname")])
def test_nothing_else_is_overwritten(tmp_path, make):
    make(tmp_path / "there")
    with pytest.raises(InputError, match="--output .*there cannot be written.*name another one"):
        resolve_output(tmp_path / "there", "--output", is_own, [])


@pytest.mark.parametrize("content", [b"own", b"", None])
def test_its_own_kind_and_an_empty_file_are(tmp_path, content):
    path = tmp_path / "deep" / "there"
    if content is not None:
        path.parent.mkdir()
        path.write_bytes(content)
    assert resolve_output(path, "--output", is_own, []) == path and path.parent.is_dir()


def test_a_link_stays_one(tmp_path):
    (tmp_path / "target").write_bytes(b"own")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write(resolve_output(tmp_path / "link", "--output", is_own, []), b"new", "--output")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"new"


def test_what_is_read_is_not_written(tmp_path):
    (tmp_path / "file").write_bytes(b"own")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for path in tmp_path / "file", tmp_path / "link", tmp_path / "." / "file":
        with pytest.raises(InputError, match="is read or written by this command"):
            resolve_output(path, "--output", is_own, [tmp_path / "file"])


@pytest.mark.parametrize("name", ["a" * 256, "a/" * 2500, "a\0b", "ä" * 128, "\ud800"])
def test_names_that_no_file_can_have(name):
    with pytest.raises(InputError, match="--vocab .*: no file can have this name"):
        check_path(Path(name), "--vocab")


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127, os.fsdecode(b"\xff"), "a/b.c", "."])
def test_names_that_one_can(name):
    check_path(Path(name), "--vocab")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"),
                                  lambda path: path.mkdir()])
def test_only_files_that_end_are_read(tmp_path, make):
    make(tmp_path / "file")
    with pytest.raises(OSError, match="no file"):
        read_bytes(tmp_path / "file")


# ------------------------------------------------------------------------- the outputs of a command


@pytest.fixture
def embeddings(tmp_path):
    path = tmp_path / "embeddings.npz"
    np.savez(path, image_embeds=np.eye(3), text_embeds=np.eye(3), image_of_text=np.arange(3),
             images=np.array(["a", "b", "c"]), captions=np.array(["x", "y", "z"]))
    return path


@pytest.mark.parametrize("flag", ["--output", "--save_embeddings", "--report"])
@pytest.mark.parametrize("what", ["checkpoint", "embeddings", "notes", "folder"])
def test_scoring_overwrites_nothing(finished, embeddings, tmp_path, capsys, flag, what):
    target = {"checkpoint": finished / "model_best.pth.tar", "embeddings": embeddings,
              "notes": tmp_path / "notes.txt", "folder": tmp_path}[what]
    (tmp_path / "notes.txt").write_text("mine")
    if flag == "--report" and what == "folder":
        target = tmp_path / "report"
        target.mkdir()
        (target / "report.html").write_text("<!doctype html>mine")
    before = contents(tmp_path) | contents(finished)
    expect_exit(["--embeddings", str(embeddings), flag, str(target)], 2, capsys, [flag],
                evaluation.main)
    assert contents(tmp_path) | contents(finished) == before


def test_two_outputs_do_not_share_a_file(embeddings, tmp_path, capsys):
    expect_exit(["--embeddings", str(embeddings), "--output", str(tmp_path / "x"),
                 "--save_embeddings", str(tmp_path / "x")], 2, capsys, ["--output"],
                evaluation.main)
    assert not (tmp_path / "x").exists()


def test_outputs_are_written_again(embeddings, tmp_path):
    """Twice the same command; the second replaces the files of the first."""
    arguments = ["--embeddings", str(embeddings), "--output", str(tmp_path / "out.json"),
                 "--save_embeddings", str(tmp_path / "out.npz"), "--report", str(tmp_path / "r")]
    evaluation.main(arguments)
    first = contents(tmp_path)
    evaluation.main(arguments)
    assert contents(tmp_path).keys() == first.keys()


def test_json_has_no_nan(tmp_path):
    path = tmp_path / "out.json"
    evaluation.write_metrics({"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": "x"}}, path)
    assert path.read_text().split() == [
        "{", '"a":', "null,", '"b":', "[", "1.5,", "null", "],", '"c":', "{", '"d":', '"x"', "}",
        "}"]
