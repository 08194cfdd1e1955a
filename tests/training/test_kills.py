"""Killed at any moment: the last good checkpoint stays, and the end is that of a whole run.

Children are forked from the test process, which has everything imported, and run the real command.
"""

import os
import random
import shutil
import signal
import time

import pytest
import torch
from helpers.runs import assert_same, command, events, final_state
from helpers.stopping import in_a_child, newest_step, status_of

import checkpoint
import train
from common.errors import InputError
from training import storage

STEPS = 21


def arguments_of(data, folder):
    """The run of `finished`, saved after each step. That changes nothing else of it."""
    return command(data, folder, "--save_step", "1", "--resume", "auto")


def state_of(folder):
    state = final_state(folder)
    del state["options"]["save_step"]
    return state


def assert_same_run(folder, finished):
    assert_same(state_of(folder), state_of(finished))
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
        time.sleep(draw.uniform(0.1, 0.4))
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
    count, plain = 0, {"save": torch.save, "replace": os.replace, "storage": storage.save}

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
    assert checkpoint.read(finished / "model_best.pth.tar")["global_step"] < STEPS
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
    assert_same(state_of(folder), state_of(finished))


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


def test_a_finished_run_is_tested_again_and_not_trained(data, finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "test_results.json").unlink()
    train.main(arguments_of(data, folder))
    assert (folder / "test_results.json").exists()
    assert_same(final_state(folder), final_state(finished))
