"""When a run validates: before its first step, at each third of an epoch, never twice."""

import os
import signal

import pytest
import torch
from helpers.runs import assert_same, command, drawing, events, expect_exit, final_state
from helpers.stopping import signal_after

import checkpoint
import train
from training.options import check, parse
from training.schedule import validation_steps


def steps(number, *more):
    return sorted(validation_steps(parse("", ["--dataset", "flickr", *more])[0], number))


def test_validations_are_spread_over_an_epoch():
    assert steps(99) == [33, 66, 99]  # the published setting: at each third, the last at the end
    assert steps(100) == [33, 66, 100]
    assert steps(4531) == [1510, 3020, 4531]
    assert steps(100, "--val_times", "1") == [100]
    assert steps(2) == [1, 2] and steps(1) == [1]
    assert steps(100, "--val_step", "40") == [40, 80, 100]


@pytest.mark.parametrize("dataset", ["flickr8k", "shapes"])
def test_the_small_presets_validate_at_the_end(dataset):
    options = parse("", ["--dataset", dataset, "--data_path", "photos"])[0]
    check(options)
    assert validation_steps(options, 50) == {50}


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """The folder of a run that was never interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train.main(command(data, folder))
    return folder


def test_a_run_begins_with_one(finished):
    assert events(finished)["val/rsum"] == [0, 3, 6, 7, 10, 13, 14, 17, 20, 21]


def scoring(monkeypatch, rsums, at=None, number=signal.SIGTERM):
    """Have validations find these values of rsum, and a signal come after number `at`; the steps
    that they were made at."""
    made, score = [], train.score

    def found(model, *rest):
        metrics, embeds = score(model, *rest)
        if len(made) == at:
            os.kill(os.getpid(), number)
        made.append(metrics)
        return metrics | ({"rsum": rsums[len(made) - 1]} if rsums else {}), embeds

    monkeypatch.setattr(train, "score", found)
    return made


def test_it_changes_nothing_of_the_training(data, finished, tmp_path, monkeypatch):
    """A run without it has every bit the same, random state included."""
    build = train.build_run

    def without(*arguments, **keywords):
        run = build(*arguments, **keywords)
        run.validation_due = False
        return run

    monkeypatch.setattr(train, "build_run", without)
    train.main(command(data, tmp_path))
    assert events(tmp_path)["val/rsum"][0] == 3
    left, right = final_state(tmp_path), final_state(finished)
    for state in left, right:
        del state["best_rsum"], state["zero_shot"]  # it may have been the best
    assert_same(left, right)


@pytest.mark.parametrize("start", [command, drawing])
def test_stopped_in_it_the_run_begins_with_it_again(data, tmp_path, monkeypatch, capsys, start):
    arguments = start(data, tmp_path, "--resume", "auto", "--num_epochs", "2")
    with monkeypatch.context() as patch:
        scoring(patch, None, at=0)
        expect_exit(arguments, 143, capsys, ["SIGTERM", "step 0"])
    state = checkpoint.read(tmp_path / "checkpoint.pth.tar")
    assert state["validation_due"] and state["global_step"] == 0
    assert not (tmp_path / "model_best.pth.tar").exists()
    made = scoring(monkeypatch, None)
    train.main(arguments)
    assert len(made) == 7 and events(tmp_path)["val/rsum"] == [0, 3, 6, 7, 10, 13, 14]


def test_once_done_it_is_never_repeated(data, finished, tmp_path, monkeypatch, capsys):
    """Stopped in the first step, and taken up again: the bits of a run that never stopped."""
    arguments = command(data, tmp_path, "--resume", "auto")
    with monkeypatch.context() as patch:
        signal_after(patch, 1)
        expect_exit(arguments, 143, capsys, ["step 1 is done and saved"])
    made = scoring(monkeypatch, None)
    train.main(arguments)
    assert len(made) == 9
    assert events(tmp_path)["val/rsum"] == events(finished)["val/rsum"]
    assert_same(final_state(tmp_path), final_state(finished))


def test_a_checkpoint_of_step_0_goes_on(data, finished, tmp_path, monkeypatch):
    """Killed between its validation and the first save after it."""
    saved = []
    save = train.save_run

    def keep(run, *rest):
        save(run, *rest)
        saved.append(run.global_step)
        if len(saved) == 1:
            raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(train, "save_run", keep)
        train.main(command(data, tmp_path))
    state = checkpoint.read(tmp_path / "checkpoint.pth.tar")
    assert saved == [0] and state["global_step"] == 0 and not state["validation_due"]
    train.main(command(data, tmp_path, "--resume", "auto"))
    assert events(tmp_path)["val/rsum"] == events(finished)["val/rsum"]
    assert_same(final_state(tmp_path), final_state(finished))


def test_a_best_of_step_0_is_told_of(data, tmp_path, monkeypatch, capsys):
    """A run that only ever got worse does not pass the untrained model off as its own."""
    scoring(monkeypatch, [100.0] + [50.0] * 6)
    train.main(command(data, tmp_path, "--num_epochs", "2"))
    best, last = (checkpoint.read(tmp_path / f"{name}.pth.tar")
                  for name in ("model_best", "checkpoint"))
    assert best["global_step"] == 0 and last["global_step"] == 14
    assert not torch.equal(best["model"]["image_projection.weight"],
                           last["model"]["image_projection.weight"])
    output = capsys.readouterr()
    assert output.err.count("\n") == 1 and "before training" in output.err
    assert "  epoch 0/2, not trained yet" in output.out.splitlines()


def test_a_run_that_got_better_is_not(data, tmp_path, monkeypatch, capsys):
    scoring(monkeypatch, [50.0, 60.0] + [50.0] * 5)
    train.main(command(data, tmp_path, "--num_epochs", "2"))
    assert capsys.readouterr().err == ""
    assert checkpoint.read(tmp_path / "model_best.pth.tar")["global_step"] == 3


def test_a_checkpoint_of_an_earlier_version_goes_on(data, tmp_path):
    """There --val_times 0 was what 1 is now."""
    train.main(command(data, tmp_path, "--num_epochs", "1"))
    path = tmp_path / "checkpoint.pth.tar"
    state = checkpoint.read(path)
    state["options"] |= {"val_times": 0, "val_step": 0}
    torch.save(dict(state), tmp_path / "new.pth.tar")
    (tmp_path / "new.pth.tar").replace(path)
    train.main(["--resume", str(path), "--data_path", str(data), "--num_epochs", "2",
                "--workers", "0"])
    state = checkpoint.read(path)
    assert state["global_step"] == 14
    assert events(tmp_path)["val/rsum"][-1] == 14 and 10 not in events(tmp_path)["val/rsum"]
