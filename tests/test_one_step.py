"""One training step: its loss in each phase, the work it does, what it does not wait for."""

import traceback
from collections import Counter

import pytest
import torch
from helpers import oracle
from helpers.spoiling import spoil
from helpers.steps import (
    B,
    clone,
    make_run,
    recorded,
    run_on_its_way,
    run_with_a_bank,
    take_step,
)
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import train
from data import Batch
from training.objectives import base

D = 24  # --embed_size of the tests' runs


# --------------------------------------------------------------------------------------- its losses


@pytest.mark.parametrize(("flags", "epoch", "hardest"), [
    (["--easy_epochs", "0"], 0, True), (["--easy_epochs", "1"], 0, False),
    (["--loss", "triplet"], 5, True), (["--loss", "triplet", "--easy_epochs", "6"], 5, False)])
def test_the_triplet_loss_of_a_step_is_the_oracles(tmp_path, monkeypatch, flags, epoch, hardest):
    run, batch = step_of_epoch(tmp_path, flags, epoch)
    embeds = embeds_of(monkeypatch, run)
    loss = take_step(run, batch)
    wanted = oracle.triplet(*oracle.lists(*embeds()), batch.image_ids.tolist(), 0.2, hardest)
    assert loss.item() == pytest.approx(wanted, abs=1e-5) and wanted > 0.1


def test_the_infonce_loss_of_a_step_is_the_oracles(tmp_path, monkeypatch):
    run, batch = step_of_epoch(tmp_path, ["--loss", "infonce"], 1)
    embeds = embeds_of(monkeypatch, run)
    loss = take_step(run, batch)
    wanted = oracle.infonce(*oracle.lists(*embeds()), batch.image_ids.tolist(), 1 / 0.07)
    assert loss.item() == pytest.approx(wanted, abs=1e-4) and wanted > 0.1


def test_the_fne_loss_of_a_step_is_the_oracles_on_what_was_drawn(tmp_path, monkeypatch):
    run, batch = run_with_a_bank(tmp_path)
    bank = run.objective.bank.text_keys.clone(), run.objective.bank.image_keys.clone()
    draws = recorded(monkeypatch, run.objective.criterion, "draw")
    loss = take_step(run, batch)
    [((images, texts, image_keys, text_keys, *_), (i2t, t2i))] = draws
    wanted = 0.0
    for anchors, keys, stored, draw in ((images, text_keys, bank[0], i2t),
                                        (texts, image_keys, bank[1], t2i)):
        candidates = torch.cat([keys, stored])
        wanted += oracle.hinge(*oracle.lists(anchors, candidates), draw.indices.tolist(), 0.2)
    assert loss.item() == pytest.approx(wanted, abs=1e-5) and wanted > 0.01


def step_of_epoch(folder, flags, epoch):
    """A run at an epoch, without dropout, and a batch."""
    run, batches = make_run(folder, *flags)
    run.epoch = epoch
    run.model.eval()
    return run, batches[0]


def embeds_of(monkeypatch, run):
    """A function that gives the online embeddings (B, D), (B, D) of the one step since."""
    images = recorded(monkeypatch, run.model, "project_image")
    texts = recorded(monkeypatch, run.model, "project_text")

    def embeds():
        [(_, image_embeds)], [(_, text_embeds)] = images, texts
        return image_embeds, text_embeds

    return embeds


# ----------------------------------------------------------------------------------------- its work


class Products(TorchDispatchMode):
    """Counts matrix products inside by the shapes of both sides."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        aten = torch.ops.aten
        if function in (aten.mm.default, aten.addmm.default, aten.addmm_.default):
            left, right = arguments[-2:]
            self.counts[tuple(left.shape), tuple(right.shape)] += 1
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize(("flags", "epoch", "draws"), [
    ([], 0, 0), ([], 1, 2), (["--loss", "triplet"], 1, 0), (["--loss", "infonce"], 1, 0),
    (["--loss", "sigmoid"], 1, 0)])
def test_a_step_computes_one_similarity_of_its_embeddings(
        encoders_as_shipped, tmp_path, monkeypatch, flags, epoch, draws):
    """Every product of (B, D) and (D, B) in it: one of the online embeddings, which serves loss,
    statistics and measurements, and FNE's own of anchors and keys, one for each direction. The
    encoders as they are shipped have no product of such a shape inside."""
    run, batches = make_run(tmp_path, *flags)
    run.epoch = epoch
    of_embeddings = recorded(monkeypatch, base, "cosine")
    with Products() as products:
        take_step(run, batches[0])
    assert products.counts[(B, D), (D, B)] == 1 + draws
    assert products.counts[(B, D), (D, run.options.queue_size)] == draws
    assert len(of_embeddings) == 1


def test_a_good_step_is_that_of_plain_adam(tmp_path):
    """The switch that leaves out a step is off: weights move as without it."""
    run, batch = run_on_its_way(tmp_path, "--loss", "triplet")
    parameters = run.optimizer.param_groups[0]["params"]
    copies = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    plain = torch.optim.Adam(copies, lr=1e-3)
    state = clone(run.optimizer.state_dict())
    state["param_groups"][0].update(fused=None)
    plain.load_state_dict(state)
    take_step(run, batch)
    for copy, parameter in zip(copies, parameters):
        copy.grad = None if parameter.grad is None else parameter.grad.clone()
    plain.step()
    for copy, parameter in zip(copies, parameters):
        torch.testing.assert_close(parameter, copy, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("place", [None, "text"])
def test_no_step_waits_for_the_device(tmp_path, monkeypatch, place):
    """Good or bad: nothing here asks for a tensor's number, which on a GPU would wait for it.
    (transformers does, of an attention mask.)"""
    run, batch = run_on_its_way(tmp_path)

    def watched(name):
        plain = getattr(torch.Tensor, name)

        def ask(*arguments):
            assert any("transformers" in frame.filename for frame in traceback.extract_stack())
            return plain(*arguments)
        return ask

    with monkeypatch.context() as patch:
        if place:
            spoil(patch, run, place, torch.nan)
        for name in "__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy":
            patch.setattr(torch.Tensor, name, watched(name))
        take_step(run, batch)
    assert int(run.skips.count) == bool(place)


@pytest.mark.parametrize("flags", [[], ["--loss", "triplet"], ["--loss", "infonce"],
                                   ["--loss", "sigmoid"],
                                   ["--precision", "bf16"]])
def test_a_step_of_tensors_without_numbers(tmp_path, flags):
    """Fake tensors have shapes and no content: whatever reads a number back fails on them."""
    run, batch = run_on_its_way(tmp_path, *flags)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        loss = train.training_step(run, Batch(*map(mode.from_tensor, batch)))
        with pytest.raises(DataDependentOutputException):
            float(loss)
