"""A number that is not finite reaches nothing that a run keeps, wherever it comes up."""

import pytest
import torch
from helpers.runs import assert_same, command
from helpers.spoiling import PLACES, spoil
from helpers.steps import B, all_finite, clone, kept, make_run, run_on_its_way, take_step
from torch import nn

import checkpoint
import train
from training import guard


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", PLACES)
def test_a_step_that_is_not_finite_changes_nothing(tmp_path, monkeypatch, place, bad):
    run, batch = run_on_its_way(tmp_path)
    before = clone(kept(run))
    with monkeypatch.context() as patch:
        spoil(patch, run, place, bad)
        take_step(run, batch)
    assert int(run.skips.count) == int(run.skips.in_a_row) == 1
    assert int(run.skips.step) == run.global_step
    assert run.skips.image_ids.tolist() == batch.image_ids.tolist()
    assert_same(kept(run), before)
    for part in run.objective.entries().values():
        assert all_finite(part.state_dict())
    assert all(value.isnan() for value in run.logs[-1].values())
    take_step(run, batch)  # and it goes on
    assert int(run.skips.count) == 1 and int(run.skips.in_a_row) == 0
    with pytest.raises(AssertionError):
        assert_same(kept(run), before)
    assert all_finite(kept(run)) and run.logs[-1]["loss"].isfinite()


@pytest.mark.parametrize("place", ["text", "gradient"])
def test_it_happens_under_bf16_too(tmp_path, monkeypatch, place):
    run, batch = run_on_its_way(tmp_path, "--precision", "bf16")
    before = clone(kept(run))
    with monkeypatch.context() as patch:
        spoil(patch, run, place, torch.inf)
        take_step(run, batch)
    assert int(run.skips.count) == 1
    assert_same(kept(run), before)


def test_several_in_a_row_end_the_run(data, tmp_path, monkeypatch, capsys):
    """With the step, the learning rate and the photos; the last good checkpoint stays."""
    whole_step = train.training_step

    def training_step(run, batch):
        if run.global_step >= 9:
            next(run.model.parameters()).register_hook(lambda gradient: gradient * torch.nan)
        return whole_step(run, batch)

    monkeypatch.setattr(train, "training_step", training_step)
    with pytest.raises(SystemExit, match="2"):
        train.main(command(data, tmp_path, "--log_step", "2"))
    *warnings, error = capsys.readouterr().err.splitlines()
    assert all("was not finite and left out" in line for line in warnings) and len(warnings) == 2
    assert error.startswith("error: step 14: ") and error.count("train_000") == B
    for told in "not finite in 5 steps in a row", "learning rate of 0.0005", "--learning_rate":
        assert told in error
    state = checkpoint.read(tmp_path / "checkpoint.pth.tar")
    assert state["global_step"] == 13 and all_finite([state["model"], state["optimizer"]])


def spoil_steps(monkeypatch, spoilt, bad):
    """Let a gradient be `bad` in the steps, counted from 0, that `spoilt` says."""
    whole_step = train.training_step

    def training_step(run, batch):
        if not spoilt(run.global_step):
            return whole_step(run, batch)
        hook = next(run.model.parameters()).register_hook(lambda gradient: gradient * bad)
        loss = whole_step(run, batch)
        hook.remove()
        return loss

    monkeypatch.setattr(train, "training_step", training_step)


def test_a_few_are_told_and_counted(data, tmp_path, monkeypatch, capsys):
    spoil_steps(monkeypatch, lambda step: step in (4, 5), torch.inf)
    train.main(command(data, tmp_path, "--num_epochs", "1", "--log_step", "2"))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert lines[0].startswith("warning: --num_epochs 1 is no more than --warmup_epochs 1: ")
    assert lines[1:] == ["warning: step 6 was not finite and left out, 2 so far"]
    assert int(checkpoint.read(tmp_path / "checkpoint.pth.tar")["skips"]["count"]) == 2


def test_a_collapse_is_said_once_and_its_end_too(tmp_path, capsys):
    run, _ = run_on_its_way(tmp_path, "--log_step", "2")
    for spread in 0.2, 1e-5, 1e-5, 0.1, 1e-6:
        guard.warn_or_stop(run, spread, 0.4)
    lines = capsys.readouterr().err.splitlines()
    assert ["no more collapse" in line for line in lines] == [False, True, False]
    assert "all alike" in lines[0] and "loss is 0.4000 (twice the margin: 0.4)" in lines[0]


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_a_collapse_under_a_loss_without_margin(tmp_path, capsys, loss):
    """What is said of it names nothing that this loss does not use."""
    run, _ = make_run(tmp_path, "--loss", loss)
    guard.warn_or_stop(run, 1e-5, 4.2)
    line = capsys.readouterr().err
    assert "the loss is 4.2000. Try a lower --learning_rate" in line
    assert "margin" not in line and "--easy_epochs" not in line


def test_a_collapse_is_measured(tmp_path):
    """All photos on one point and all captions on another: no spread, and twice the margin."""
    run, batch = run_on_its_way(tmp_path, "--loss", "triplet")
    for projection in run.model.image_projection, run.model.text_projection:
        nn.init.zeros_(projection.weight)
        nn.init.ones_(projection.bias)
    take_step(run, batch)
    logs = run.logs[-1]
    assert logs["similarity_spread"] < guard.COLLAPSED < run.logs[0]["similarity_spread"]
    assert logs["loss"] == pytest.approx(2 * run.options.margin, rel=1e-4)


def test_nine_bad_steps_of_every_ten_end_the_run(data, tmp_path, monkeypatch, capsys):
    """Also where the step that is looked at is a good one: the most in a row are remembered."""
    spoil_steps(monkeypatch, lambda step: step % 10 != 9, torch.nan)
    with pytest.raises(SystemExit, match="2"):
        train.main(command(data, tmp_path, "--log_step", "10"))
    assert "not finite in 9 steps in a row" in capsys.readouterr().err.splitlines()[-1]


def test_a_step_left_out_leaves_the_momentum_copy(tmp_path, monkeypatch):
    """Its update answers the optimizer's last step: none was taken, so there is none."""
    run, batch = run_on_its_way(tmp_path)

    def momentum():
        return clone(dict(run.objective.momentum_model.state_dict()))

    with monkeypatch.context() as patch:
        spoil(patch, run, "gradient", torch.nan)
        take_step(run, batch)
        answered = momentum()  # with the step before
        take_step(run, batch)
    assert_same(momentum(), answered)
    take_step(run, batch)
    assert_same(momentum(), answered)  # nothing was taken since
    take_step(run, batch)
    with pytest.raises(AssertionError):
        assert_same(momentum(), answered)
