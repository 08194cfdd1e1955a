"""Killed at any moment, out of room, without the right to write: the last good checkpoint stays.

Children are forked from the test process, which has everything imported, and run the real command.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import time

import pytest
from helpers.runs import assert_same, command, events, expect_exit, final_state
from test_resume import signal_after

import checkpoint
import train
from common.errors import InputError
from inputs.loader import close_workers, make_loader
from training import storage

STEPS = 14


def arguments_of(data, folder):
    return command(data, folder, "--num_epochs", "2", "--save_step", "1", "--resume", "auto",
                   "--no_figures")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train.main(arguments_of(data, folder))
    return folder


def in_a_child(call):
    """Run `call` in a forked child; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
        for descriptor in 1, 2:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        call()
        os._exit(0)
    except SystemExit as stop:
        os._exit(stop.code)
    except BaseException:
        os._exit(99)


def status_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def newest_step(folder):
    """Of the checkpoint that an automatic resume would take: it must be there and whole."""
    path, state = checkpoint.newest(folder)
    return state["global_step"] if state is not None else 0


def assert_same_run(folder, finished):
    assert_same(final_state(folder), final_state(finished))
    logged, whole = events(folder), events(finished)
    for tags in logged, whole:
        del tags["train/photos_per_second"]
    assert logged == whole


def test_killed_at_random_moments(data, finished, tmp_path, capsys):
    """SIGKILL, again and again: what is on the disk always loads, and the end is the same."""
    draw, arguments = random.Random(1), arguments_of(data, tmp_path)
    steps, kills = [0], 0
    while kills < 8:
        child = in_a_child(lambda: train.main(arguments))
        time.sleep(draw.uniform(0.1, 0.9))
        os.kill(child, signal.SIGKILL)
        if status_of(child) != -signal.SIGKILL:
            break  # it was done
        kills += 1
        steps.append(newest_step(tmp_path))
    assert kills >= 3 and steps == sorted(steps)
    assert "passes over" not in capsys.readouterr().err  # no checkpoint was ever damaged
    # Logs are read in the order of their names: second, then process.
    assert status_of(in_a_child(lambda: train.main(arguments))) == 0
    assert_same_run(tmp_path, finished)


def kill_in_save(monkeypatch, moment, save_number):
    """Kill the process in the given save, counted from 1: in the middle of writing the file, before
    it is renamed, or between the best checkpoint and the last."""
    count, plain = 0, {"save": train.torch.save, "replace": os.replace, "storage": storage.save}

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def half(state, file):
        plain["save"](state, file)
        file.truncate(file.tell() // 2)
        file.flush()
        die()

    def save(path, state):
        nonlocal count
        count += 1
        if count == save_number:
            if moment == "writing":
                monkeypatch.setattr(storage.torch, "save", half)
            if moment == "renaming":
                monkeypatch.setattr(storage.os, "replace", lambda *paths: die())
            if moment == "between":
                plain["storage"](path, state)
                die()
        plain["storage"](path, state)

    monkeypatch.setattr(storage, "save", save)


def test_killed_in_a_save(data, finished, tmp_path, monkeypatch):
    """At each of its moments, of the first one to later ones; "between" is after the best is saved
    and before the last is."""
    arguments, steps = arguments_of(data, tmp_path), []
    for moment, number in (("writing", 1), ("renaming", 2), ("writing", 3), ("between", 1),
                           ("renaming", 1), ("between", 4)):
        def killed(moment=moment, number=number):
            kill_in_save(monkeypatch, moment, number)
            train.main(arguments)

        assert status_of(in_a_child(killed)) == -signal.SIGKILL
        steps.append(newest_step(tmp_path))
        assert bool(list(tmp_path.glob("*.part"))) == (moment != "between")
    assert steps[0] == 0 and steps == sorted(steps) and 0 < steps[-1] < STEPS
    assert status_of(in_a_child(lambda: train.main(arguments))) == 0
    assert not list(tmp_path.glob("*.part"))
    assert_same_run(tmp_path, finished)


def test_a_damaged_checkpoint_is_passed_over(data, finished, tmp_path, capsys):
    """One flipped bit in a weight: the best one, from an earlier step, serves."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / "checkpoint.pth.tar"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="checkpoint.pth.tar is no checkpoint, or is cut short"):
        checkpoint.read(path)
    train.main(arguments_of(data, folder))
    assert "--resume auto passes over" in capsys.readouterr().err
    assert_same(final_state(folder), final_state(finished))


def test_nothing_good_is_a_fresh_start(data, finished, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in "checkpoint.pth.tar", "model_best.pth.tar":
        (folder / name).write_bytes((finished / name).read_bytes()[:5000])
    train.main(arguments_of(data, folder))
    output = capsys.readouterr()
    assert output.err.count("passes over") == 2 and "previous_1" in output.out
    assert (folder / "previous_1" / "checkpoint.pth.tar").stat().st_size == 5000
    assert_same_run(folder, finished)


def test_a_finished_run_is_tested_again_and_not_trained(finished, data, capsys):
    before = final_state(finished)
    (finished / "test_results.json").unlink()
    train.main(arguments_of(data, finished))
    assert (finished / "test_results.json").exists()
    assert_same(final_state(finished), before)


# ------------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_whole_group_ends_in_order(data, tmp_path, number, status):
    """As a terminal or a scheduler sends it: workers get it too, and the step is finished."""
    folder = tmp_path / "run"

    def grouped():
        os.setpgid(0, 0)
        train.main(command(data, folder, "--workers", "2", "--num_epochs", "100",
                           "--no_figures"))

    child = in_a_child(grouped)
    deadline = time.monotonic() + 60
    while not (folder / "checkpoint.pth.tar").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    saved = newest_step(folder)
    os.killpg(child, number)
    assert status_of(child) == status
    assert newest_step(folder) > saved


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_outlive_signals(number):
    """What they were asked for still comes, and asked to end they end in order."""
    loader = make_loader(list(range(40)), 1, False, batch_size=4)
    batches, seen = iter(loader), []
    workers = list(loader._iterator._workers)
    for _ in range(10):
        seen += next(batches).tolist()
        for worker in workers:
            os.kill(worker.pid, number)
        time.sleep(0.01)
    close_workers(loader)
    assert seen == list(range(40))
    assert [worker.exitcode for worker in workers] == [0]


def test_a_second_ctrl_c_ends_at_once(data, tmp_path, monkeypatch, capsys):
    """One that comes right after the first is the same, which a launcher passed on."""
    whole_step = train.training_step

    def training_step(run, batch):
        for pause in (0, 0, 1.1):
            time.sleep(pause)
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the step went on")

    monkeypatch.setattr(train, "training_step", training_step)
    before = signal.getsignal(signal.SIGINT)
    expect_exit(command(data, tmp_path), 130, capsys, ["at once"])
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(train, "training_step", whole_step)


# ------------------------------------------------------------------------------------------ no room


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
    arguments = command(data, folder, "--save_step", "1")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        signal_after(patch, 2)
        train.main(arguments)
    size = (folder / "checkpoint.pth.tar").stat().st_size
    (small_disk / "others").write_bytes(bytes(2**26 - 3 * size // 2))
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
        with train.exit_on_input_error():
            storage.save(tmp_path / "checkpoint.pth.tar",
                         state | {"global_step": 2, "weights": train.torch.zeros(10**6)})

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
