"""The recipe of docs/extending.md for a loss, followed with a made-up one.

It is a class, an entry of the table and the dataclass of its flags, all in this file.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers.runs import assert_same, command, events, expect_exit, final_state
from helpers.steps import make_run, take_step
from helpers.stopping import signal_after
from helpers.together import Processes
from torch import nn

import checkpoint
import evaluation
import export
import train
from common.errors import InputError
from common.flags import option
from common.options import parse_scoring
from encoders.folder import CONFIG
from fne_loss import excluded_candidates
from metrics.embeddings import read_embeddings
from training.objectives import OBJECTIVES, Entry
from training.objectives.base import Objective, Outcome, hardest_negatives
from training.options import check, parse


@dataclass(kw_only=True)
class SquaredOptions:
    """The options of the made-up loss."""

    title = "squared loss"
    pull: float = option(1.0, "weight of the positives", low=0, high=10, from_checkpoint=True)


class SquaredObjective(Objective):
    """Pull positives to 1 and negatives to a learned floor by squared error, and count steps."""

    def __init__(self, options, model, split=None):
        super().__init__(options, model, split)
        self.floor = nn.Parameter(torch.zeros((), device=self.device))
        self.steps = nn.Module()
        self.steps.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @classmethod
    def check_options(cls, options):
        super().check_options(options)
        if options.pull == 0:
            raise InputError("--pull 0: nothing would be pulled")

    @classmethod
    def phase(cls, options, epoch):
        return "squared"

    def forward(self, step):
        similarity, ids = step.similarity, step.batch.image_ids
        excluded = excluded_candidates(ids, ids, self.excluded_in_batch(step))
        pull = self.options.pull * (1 - similarity.diagonal()).square().mean()
        push = (similarity - self.floor).square().masked_fill(excluded, 0.0).mean()
        loss = pull + push
        return Outcome(loss, loss.detach(), hardest_negatives(step.ranking, step.batch))

    def after_step(self, step):
        self.steps.count += 1

    def entries(self):
        return {"squared_floor": self.floor, "squared_steps": self.steps}

    def values(self):
        return {"train/squared_floor": self.floor.detach()}


@pytest.fixture(autouse=True)
def squared(monkeypatch):
    """The line of the table."""
    entry = Entry(f"{__name__}:SquaredObjective", SquaredOptions)
    monkeypatch.setitem(OBJECTIVES, "squared", entry)


def test_the_recipe_adds_a_loss(data, tmp_path, capsys):
    """It trains, is tested, shows its name and curve, and learns what it registered."""
    train.main(command(data, tmp_path, "--loss", "squared", "--pull", "2.5"))
    assert "loss: epochs 1-3 squared" in capsys.readouterr().out
    assert "train/squared_floor" in events(tmp_path)
    state = checkpoint.read(tmp_path / "checkpoint.pth.tar")
    assert state["options"]["loss"] == "squared" and state["options"]["pull"] == 2.5
    assert state["squared_steps"]["count"] == 21 and state["squared_floor"] != 0
    train.main(["--test", "--resume", str(tmp_path / "model_best.pth.tar"), "--data_path",
                str(data), "--workers", "0", "--device", "cpu"])
    assert "rsum" in capsys.readouterr().out


def test_what_it_trains_must_be_kept_under_a_key_of_its_own(tmp_path, monkeypatch):
    """Or a run that goes on would lose it, or something else of the checkpoint, without a word."""
    monkeypatch.setattr(SquaredObjective, "entries", lambda self: {"squared_steps": self.steps})
    with pytest.raises(TypeError, match="SquaredObjective.entries does not name floor"):
        make_run(tmp_path, "--loss", "squared")
    monkeypatch.setattr(SquaredObjective, "entries", lambda self: {"step": self.floor})
    run, _ = make_run(tmp_path, "--loss", "squared")
    with pytest.raises(TypeError, match="'step' is the key of another part"):
        checkpoint.pack(run)


def test_its_checkpoint_is_scored_and_exported_where_it_is_not_known(
    data, tmp_path, monkeypatch, capsys
):
    """By the commands of a program that has no such loss: the model is all that they need."""
    train.main(command(data, tmp_path, "--loss", "squared", "--num_epochs", "1"))
    monkeypatch.delitem(OBJECTIVES, "squared")
    best = str(tmp_path / "model_best.pth.tar")
    capsys.readouterr()
    evaluation.main([best, "--data_path", str(data), "--workers", "0", "--device", "cpu",
                     "--save_embeddings", str(tmp_path / "embeddings.npz")])
    assert "rsum" in capsys.readouterr().out
    assert read_embeddings(tmp_path / "embeddings.npz").facts["loss"] == "squared"
    export.main([best, str(tmp_path / "model")])
    assert (tmp_path / "model" / CONFIG).is_file()
    state = checkpoint.read(Path(best))
    for loss in ("<b>squared</b>", 3, ""):
        state["options"]["loss"] = loss
        with pytest.raises(InputError, match="^--loss"):
            checkpoint.options_of_run(parse_scoring("", [best])[0], state)


def test_it_goes_on_to_the_bit(data, tmp_path, monkeypatch, capsys):
    train.main(command(data, tmp_path / "whole", "--loss", "squared"))
    arguments = command(data, tmp_path / "parts", "--loss", "squared", "--resume", "auto")
    with monkeypatch.context() as patch:
        signal_after(patch, 11)
        expect_exit(arguments, 143, capsys, ["step 11 is done and saved"])
    train.main(arguments)
    assert_same(final_state(tmp_path / "parts"), final_state(tmp_path / "whole"))


def test_two_processes_train_as_one(data, tmp_path):
    """Its learned number too is the same in both, and that of one process but for dropout."""
    def call():
        train.main(command(data, tmp_path / "run", "--loss", "squared", "--num_epochs", "1"))

    group = Processes(2, call, tmp_path)
    assert group.statuses() == [0, 0], group.printed()
    train.main(command(data, tmp_path / "alone", "--loss", "squared", "--num_epochs", "1"))
    floors = [checkpoint.read(tmp_path / name / "checkpoint.pth.tar")["squared_floor"]
              for name in ("run", "alone")]
    assert floors[0] != 0 and floors[0] == pytest.approx(float(floors[1]), rel=0.1)


def test_its_gradient_reaches_encoders_and_number(tmp_path):
    run, batches = make_run(tmp_path, "--loss", "squared")
    before = run.objective.floor.clone()
    take_step(run, batches[0])
    assert run.objective.floor != before and run.logs[-1]["loss"] > 0
    assert any(parameter is run.objective.floor
               for parameter in run.optimizer.param_groups[0]["params"])


def test_its_options_are_checked_and_without_it_they_are_unknown(monkeypatch, capsys):
    flags = ["--data_path", "photos", "--loss", "squared"]
    with pytest.raises(InputError, match="--pull 11"):
        check(parse("", [*flags, "--pull", "11"])[0])
    with pytest.raises(InputError, match="--pull 0"):
        check(parse("", [*flags, "--pull", "0"])[0])
    monkeypatch.delitem(OBJECTIVES, "squared")
    with pytest.raises(SystemExit):
        parse("", flags)
    assert "--loss" in capsys.readouterr().err
