"""--compile and the loss: the same numbers and draws, in one graph that is made once."""

import functools
import shutil

import pytest
import torch
from helpers.runs import assert_same, command, expect_exit, final_state
from helpers.steps import make_run, run_with_a_bank, take_step
from helpers.stopping import in_a_child, signal_after, status_of

import negative_sampling
import train
import training.run
from training.objectives.base import Objective, Outcome, compile_losses
from training.objectives.fne import FNEObjective

VIT = ["--image_encoder", "small-vit"]
OBJECTIVES = [["--loss", "fne"], ["--posterior", "evidence"], ["--loss", "triplet"],
              ["--loss", "triplet", "--max_violation"], ["--loss", "infonce"],
              ["--loss", "sigmoid"]]


@pytest.fixture
def without_a_compiler(monkeypatch):
    """Have what is compiled go through PyTorch's graphs and their gradients, and be run by it."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def outcome_and_gradients(run, batch):
    """What the objective gives for a batch, and the gradients of the embeddings."""
    step = train.encode(run, batch)
    outcome = run.objective(step)
    learned = list(run.objective.parameters())
    learned = [number for number in learned if number.requires_grad]
    return outcome, torch.autograd.grad(
        outcome.loss, [step.image_embeds, step.text_embeds, *learned])


def compare(folder, *flags):
    """Compare a step of a run whose loss alone is compiled with one that is not."""
    found = []
    for compiled in False, True:
        make = make_run if "fne" not in flags and "--posterior" not in flags else run_with_a_bank
        run, batch = make(folder, *flags)
        run.model.eval()
        run.epoch = 1
        if compiled:
            compile_losses(run.objective)
        found.append(outcome_and_gradients(run, batch if make is run_with_a_bank else batch[0]))
    (wanted, gradients), (outcome, compiled_gradients) = found
    assert wanted.loss > 0 and all(gradient.abs().max() > 0 for gradient in gradients)
    torch.testing.assert_close(outcome.loss, wanted.loss, rtol=1e-6, atol=0)
    assert_same(list(outcome.negatives[:2]), list(wanted.negatives[:2]))
    for gradient, other in zip(gradients, compiled_gradients, strict=True):
        assert (gradient - other).norm() <= 1e-6 * gradient.norm()


@pytest.mark.parametrize("flags", OBJECTIVES, ids=" ".join)
def test_a_graph_has_the_loss_the_gradients_and_the_draws_of_plain_calls(
        tmp_path, without_a_compiler, flags):
    compare(tmp_path, *flags)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_code_has_the_loss_the_gradients_and_the_draws_of_plain_calls(tmp_path):
    """In a child process, as compiling starts threads; by other random numbers FNE would fail."""
    def call():
        for flags in ["--loss", "fne"], ["--loss", "infonce"]:
            compare(tmp_path, *flags)

    assert status_of(in_a_child(call)) == 0


def test_no_step_compiles_anew(tmp_path, without_a_compiler):
    """After a step of each phase, with encoders that are compiled too, and without a break."""
    run, batches = make_run(tmp_path, *VIT, "--compile")
    run.train_mode()
    counters, graphs = torch._dynamo.utils.counters, []
    for number in range(7):
        run.epoch = int(number >= 2)
        take_step(run, batches[number % 2])
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and len(set(graphs[:2])) == 1 and len(set(graphs[2:])) == 1
    assert not counters["graph_break"]


def test_a_stopped_run_goes_on_to_the_bit(data, tmp_path, monkeypatch, capsys, without_a_compiler):
    """With encoders that are not compiled, which would take most of the time."""
    monkeypatch.setattr(training.run, "compile_encoders", lambda *models: None)
    train.main(command(data, tmp_path / "whole", "--compile"))
    arguments = command(data, tmp_path / "stopped", "--resume", "auto")
    with monkeypatch.context() as patch:
        signal_after(patch, 10)
        expect_exit([*arguments, "--compile"], 143, capsys, ["step 10 is done and saved"])
    train.main(arguments)  # --compile is among what a checkpoint brings
    assert_same(final_state(tmp_path / "stopped"), final_state(tmp_path / "whole"))


def test_a_draw_by_rejection_is_not_compiled(tmp_path, monkeypatch, without_a_compiler):
    monkeypatch.setattr(negative_sampling, "EXACT_UP_TO", 0)
    run, _ = run_with_a_bank(tmp_path)
    compile_losses(run.objective)
    assert "draw_and_hinge" not in vars(run.objective) and "loss_of" in vars(run.objective.warm_up)


class ForeignObjective(Objective):
    """An objective from outside that names nothing to compile."""

    @classmethod
    def phase(cls, options, epoch):
        return "foreign"

    def forward(self, step):
        loss = 1 - step.similarity.diagonal().mean()
        return Outcome(loss, loss.detach(), FNEObjective.warm_up_class.forward(
            self.other, step).negatives)


class ReadingObjective(FNEObjective):
    """An FNE of one's own, whose weights read a number back."""

    def build_criterion(self):
        criterion = super().build_criterion()
        weigh = criterion.weigh
        criterion.weigh = lambda similarity, *rest: weigh(similarity, *rest) * float(
            1 + (similarity.max().item() > 2))
        return criterion


@pytest.mark.parametrize("objective", [ForeignObjective, ReadingObjective])
def test_an_objective_from_outside_works_as_it_is(
        tmp_path, monkeypatch, without_a_compiler, objective):
    found = []
    for flags in [], ["--compile"]:
        with monkeypatch.context() as patch:
            patch.setattr(training.run, "objective_class", lambda name: objective)
            patch.setattr(training.run, "compile_encoders", lambda *models: None)
            run, batches = make_run(tmp_path, *flags)
        run.objective.other = FNEObjective.warm_up_class(run.options, run.model)
        run.epoch = 1
        found.append([take_step(run, batch) for batch in batches])
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=0)
