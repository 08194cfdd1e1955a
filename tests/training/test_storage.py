"""A run's folder: a former run moves aside; without room or right the good checkpoint stays."""

import os
import resource
import signal
import subprocess

import pytest
import torch
from helpers.runs import command, expect_exit
from helpers.stopping import in_a_child, newest_step, signal_after, status_of

import checkpoint
import train
from common.errors import InputError, exit_on_input_error
from training import storage


def test_a_fresh_run_moves_a_former_one_aside(data, tmp_path):
    arguments = command(data, tmp_path, "--num_epochs", "1")
    train.main(arguments)
    former = (tmp_path / "checkpoint.pth.tar").read_bytes()
    (tmp_path / "notes.txt").write_text("not the run's")
    train.main([*arguments, "--seed", "2"])
    assert (tmp_path / "previous_1" / "checkpoint.pth.tar").read_bytes() == former
    assert (tmp_path / "checkpoint.pth.tar").read_bytes() != former
    assert len(list((tmp_path / "previous_1").iterdir())) == 4 and (tmp_path / "notes.txt").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder],
                          capture_output=True)
    if made.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # its logs may still be open


def test_a_full_disk_leaves_the_last_good_checkpoint(data, small_disk, capsys):
    folder = small_disk / "run"
    arguments = command(data, folder, "--save_step", "1", "--log_step", "2", "--val_step", "0",
                        "--val_times", "1")  # the next save is of no validation
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        signal_after(patch, 2)
        train.main(arguments)
    size = (folder / "checkpoint.pth.tar").stat().st_size
    used = sum(path.stat().st_size for path in folder.iterdir())  # with the best, of step 0
    (small_disk / "others").write_bytes(bytes(2**26 - used - size // 2))
    expect_exit([*arguments, "--resume", "auto"], 2, capsys, [
        "checkpoint.pth.tar cannot be written (no room)", "the last one is untouched"])
    assert newest_step(folder) == 2 and not list(folder.glob("*.part"))


def test_a_file_size_limit_leaves_the_last_good_checkpoint(data, tmp_path):
    """The same wherever this runs: the child may write no file larger than 100 kB."""
    state = {"format": checkpoint.FORMAT, "options": {}, "model": {}, "criterion": {}}
    storage.save(tmp_path / "checkpoint.pth.tar", state | {"global_step": 1})

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with exit_on_input_error():
            storage.save(tmp_path / "checkpoint.pth.tar",
                         state | {"global_step": 2, "weights": torch.zeros(10**6)})

    assert status_of(in_a_child(limited)) == 2
    assert newest_step(tmp_path) == 1 and not list(tmp_path.glob("*.part"))


def test_logs_that_find_no_room_end_in_one_line(data, tmp_path, capfd, monkeypatch):
    """TensorBoard writes in a thread of its own; what it meets is told once."""
    def training_step(run, batch):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train, "training_step", training_step)
    expect_exit(command(data, tmp_path), 2, capfd, [
        f"--logger_name {tmp_path} cannot be written", "No space left", "--resume auto"])


@pytest.mark.parametrize("make", [
    lambda folder: folder.write_text("a file"),
    lambda folder: folder.symlink_to("/proc/nothing")])
def test_a_folder_that_cannot_be_written(data, tmp_path, capsys, make):
    make(tmp_path / "run")
    expect_exit(command(data, tmp_path / "run"), 2, capsys, ["--logger_name", "cannot be written"])


@pytest.mark.parametrize("links", [True, False])
def test_a_checkpoint_with_two_names_is_one_file(tmp_path, monkeypatch, links):
    """Where the disk has links; and a later newest one leaves the best as it is."""
    if not links:
        monkeypatch.setattr(storage.os, "link", lambda *paths: open(tmp_path / "no" / "link"))
    best, newest = tmp_path / storage.BEST, tmp_path / storage.NEWEST
    for number in 1, 2:
        storage.save_twice(best, newest, {"a": number})
        assert best.samefile(newest) == links
        assert storage.load(best) == storage.load(newest) == {"a": number}
    storage.save(newest, {"a": 3})
    assert storage.load(best) == {"a": 2} and storage.load(newest) == {"a": 3}
    assert {path.name for path in tmp_path.iterdir()} == {storage.BEST, storage.NEWEST}


@pytest.mark.parametrize("name", [storage.NEWEST, storage.BEST])
@pytest.mark.parametrize("make", [
    lambda path: path.write_bytes(b"somebody else's" * 100), lambda path: path.mkdir(), os.mkfifo,
    lambda path: path.symlink_to("/etc/passwd"), lambda path: torch.save({"a": 1}, path)])
def test_a_checkpoint_of_somebody_else_is_not_overwritten(tmp_path, name, make):
    """A run that goes on would write over it; a new one moves it aside with the former run."""
    make(tmp_path / name)
    before = (tmp_path / name).lstat()
    with storage.FolderLock() as lock, pytest.raises(InputError, match=name):
        storage.prepare_folder(tmp_path, lock, fresh=False)
    with storage.FolderLock() as lock:
        storage.prepare_folder(tmp_path, lock, fresh=True)
    after = (tmp_path / "previous_1" / name).lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)


def test_only_the_names_of_a_run_are_moved_aside(tmp_path):
    for name in storage.NEWEST, "pretrained.pth.tar", "movie.mkv.part":
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "previous_1").symlink_to("nothing")
    with storage.FolderLock() as lock:
        storage.prepare_folder(tmp_path, lock, fresh=True)
    assert (tmp_path / "previous_2" / storage.NEWEST).is_file()
    assert (tmp_path / "pretrained.pth.tar").is_file() and (tmp_path / "movie.mkv.part").is_file()
