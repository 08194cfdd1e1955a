"""A number that is not finite reaches nothing that a run keeps, wherever it comes up."""

import traceback

import pytest
import torch
from helpers.runs import assert_same, command
from torch import nn

import checkpoint
import train
import train as run
from common.options import parse
from data import NO_PHOTO, Batch
from encoders.processors import load_tokenizer
from inputs.captions import Captions
from memory_bank import EMPTY, MemoryBank
from training import guard

B = 16
PLACES = "pixels", "text", "keys", "loss", "gradient", "norm"


def make_run(data, tmp_path, *more):
    """A run on its way in its second epoch, and a batch for it."""
    torch.manual_seed(0)
    options, _ = parse("", command(data, tmp_path, *more))
    tokenizer = load_tokenizer(options.text_encoder, options.vocab)
    going = run.build_run(options, tokenizer, None, 7, None,
                          [tmp_path / f"photo_{i}.jpg" for i in range(24)])
    texts = Captions(["a red circle and a square"] * B, tokenizer, 30, 30)
    ids = torch.stack([texts[i] for i in range(B)])
    batches = [Batch(torch.randint(0, 256, (B, 3, 64, 64), dtype=torch.uint8), ids,
                     torch.ones_like(ids), torch.arange(B) + shift, torch.arange(B),
                     torch.full((B,), NO_PHOTO)) for shift in (0, 8)]
    going.epoch = 1
    for batch in batches:
        take_step(going, batch)
    return going, batches[0]


def take_step(going, batch):
    train.training_step(going, batch)
    going.global_step += 1


def kept(going):
    """All that a bad step must leave as it is, but for the counts of such steps."""
    state = checkpoint.pack(going)
    return {name: state[name] for name in ("model", "optimizer", "log_scale")}


def clone(state):
    return torch.utils._pytree.tree_map(
        lambda value: value.clone() if isinstance(value, torch.Tensor) else value, state)


def all_finite(state):
    return all(value.isfinite().all() for value in torch.utils._pytree.tree_leaves(state)
               if isinstance(value, torch.Tensor))


def spoil(patch, going, place, bad):
    """Let a value that is not finite come up once in one place of the step."""
    def spoilt(function, index=None):
        def call(*arguments, **keywords):
            result = function(*arguments, **keywords)
            if index is None:
                return result * bad
            # One row of it: the others are as good as ever.
            rows = torch.ones(len(result), 1)
            rows[index] = bad
            return result * rows
        return call

    if place == "pixels":
        patch.setattr(train, "normalize", lambda *a: spoilt_pixels(a, bad))
    elif place == "text":
        patch.setattr(going.model, "text_features", spoilt(going.model.text_features, 3))
    elif place == "keys":
        features = going.momentum_model.text_features
        patch.setattr(going.momentum_model, "text_features", spoilt(features, 3))
    elif place == "loss":
        patch.setattr(going.criterion, "forward", lambda *a, **k: times(loss_of(going, a, k), bad))
    elif place == "gradient":
        def backward(loss, *arguments):
            torch.autograd.backward(loss, *arguments)
            gradient = going.optimizer.param_groups[0]["params"][0].grad
            gradient[(0,) * gradient.ndim] = bad
        patch.setattr(torch.Tensor, "backward", backward)
    else:
        patch.setattr(nn.utils, "clip_grad_norm_", spoilt(nn.utils.clip_grad_norm_))


def loss_of(going, arguments, keywords):
    return type(going.criterion).forward(going.criterion, *arguments, **keywords)


def times(result, bad):
    loss, *draws = result
    return loss * bad, *draws


NORMALIZE = train.normalize


def spoilt_pixels(arguments, bad):
    pixels = NORMALIZE(*arguments)
    pixels[5, 1, 7, 7] = bad
    return pixels


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", PLACES)
def test_a_step_that_is_not_finite_changes_nothing(data, tmp_path, monkeypatch, place, bad):
    going, batch = make_run(data, tmp_path)
    before = clone(kept(going))
    with monkeypatch.context() as patch:
        spoil(patch, going, place, bad)
        take_step(going, batch)
    assert int(going.skips.count) == int(going.skips.in_a_row) == 1
    assert int(going.skips.step) == going.global_step
    assert going.skips.image_ids.tolist() == batch.image_ids.tolist()
    assert_same(kept(going), before)
    for part in going.momentum_model, going.bank, going.criterion:
        assert all_finite(part.state_dict())
    assert all(value.isnan() for value in going.logs[-1].values())
    take_step(going, batch)  # and it goes on
    assert int(going.skips.count) == 1 and int(going.skips.in_a_row) == 0
    with pytest.raises(AssertionError):
        assert_same(kept(going), before)
    assert all_finite(kept(going)) and going.logs[-1]["loss"].isfinite()


def test_a_good_step_is_that_of_plain_adam(data, tmp_path):
    """The switch is off: weights move as without it."""
    going, batch = make_run(data, tmp_path, "--loss", "triplet")
    parameters = going.optimizer.param_groups[0]["params"]
    copies = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    plain = torch.optim.Adam(copies, lr=1e-3)
    state = clone(going.optimizer.state_dict())
    state["param_groups"][0].update(fused=None)
    plain.load_state_dict(state)
    take_step(going, batch)
    for copy, parameter in zip(copies, parameters):
        copy.grad = None if parameter.grad is None else parameter.grad.clone()
    plain.step()
    for copy, parameter in zip(copies, parameters):
        torch.testing.assert_close(parameter, copy, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("place", ["text", "gradient"])
def test_it_happens_under_bf16_too(data, tmp_path, monkeypatch, place):
    going, batch = make_run(data, tmp_path, "--precision", "bf16")
    before = clone(kept(going))
    with monkeypatch.context() as patch:
        spoil(patch, going, place, torch.inf)
        take_step(going, batch)
    assert int(going.skips.count) == 1
    assert_same(kept(going), before)


@pytest.mark.parametrize("place", [None, "text"])
def test_no_step_waits_for_the_device(data, tmp_path, monkeypatch, place):
    """Good or bad: nothing here asks for a tensor's number, which on a GPU would wait for it.
    (transformers does, of an attention mask.)"""
    going, batch = make_run(data, tmp_path)

    def watched(name):
        plain = getattr(torch.Tensor, name)

        def ask(*arguments):
            assert any("transformers" in frame.filename for frame in traceback.extract_stack())
            return plain(*arguments)
        return ask

    with monkeypatch.context() as patch:
        if place:
            spoil(patch, going, place, torch.nan)
        for name in "__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy":
            patch.setattr(torch.Tensor, name, watched(name))
        take_step(going, batch)
    assert int(going.skips.count) == bool(place)


def test_the_bank_leaves_the_slot_of_a_bad_key_empty():
    bank, ids = MemoryBank(6, 3), torch.arange(4)
    images, texts = torch.ones(4, 3), torch.ones(4, 3)
    images[1, 2], texts[3, 0] = torch.nan, torch.inf
    bank.enqueue(images, texts, ids, ids + 10)
    assert bank.image_ids.tolist() == [0, EMPTY, 2, EMPTY, EMPTY, EMPTY]
    assert bank.text_ids.tolist() == [10, EMPTY, 12, EMPTY, EMPTY, EMPTY]
    assert int(bank.pointer) == 4 and len(bank) == 2
    assert all_finite(bank.state_dict())


def test_several_in_a_row_end_the_run(data, tmp_path, monkeypatch, capsys):
    """With the step, the learning rate and the photos; the last good checkpoint stays."""
    whole_step = train.training_step

    def training_step(going, batch):
        if going.global_step >= 9:
            next(going.model.parameters()).register_hook(lambda gradient: gradient * torch.nan)
        return whole_step(going, batch)

    monkeypatch.setattr(train, "training_step", training_step)
    with pytest.raises(SystemExit, match="2"):
        train.main(command(data, tmp_path, "--no_figures"))
    *warnings, error = capsys.readouterr().err.splitlines()
    assert all("was not finite and left out" in line for line in warnings) and len(warnings) == 2
    assert error.startswith("error: step 14: ") and error.count("train_000") == B
    for told in "not finite in 5 steps in a row", "learning rate of 0.0005", "--learning_rate":
        assert told in error
    state = checkpoint.read(tmp_path / "checkpoint.pth.tar")
    assert state["global_step"] == 13 and all_finite([state["model"], state["optimizer"]])


def test_a_few_are_told_and_counted(data, tmp_path, monkeypatch, capsys):
    whole_step = train.training_step

    def training_step(going, batch):
        if going.global_step in (4, 5):
            hook = next(going.model.parameters()).register_hook(lambda grad: grad * torch.inf)
            loss = whole_step(going, batch)
            hook.remove()
            return loss
        return whole_step(going, batch)

    monkeypatch.setattr(train, "training_step", training_step)
    train.main(command(data, tmp_path, "--num_epochs", "1", "--no_figures"))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert lines == ["warning: step 6 was not finite and left out, 2 so far"]
    assert int(checkpoint.read(tmp_path / "checkpoint.pth.tar")["skips"]["count"]) == 2


def test_a_collapse_is_said_once_and_its_end_too(data, tmp_path, capsys):
    going, _ = make_run(data, tmp_path)
    for spread in 0.2, 1e-5, 1e-5, 0.1, 1e-6:
        guard.watch(going, spread, 0.4)
    lines = capsys.readouterr().err.splitlines()
    assert ["no more collapse" in line for line in lines] == [False, True, False]
    assert "all alike" in lines[0] and "loss is 0.4000 (twice the margin: 0.4)" in lines[0]


def test_a_collapse_is_measured(data, tmp_path):
    """All photos on one point and all captions on another: no spread, and twice the margin."""
    going, batch = make_run(data, tmp_path, "--loss", "triplet")
    for projection in going.model.image_projection, going.model.text_projection:
        nn.init.zeros_(projection.weight)
        nn.init.ones_(projection.bias)
    take_step(going, batch)
    logs = going.logs[-1]
    assert logs["similarity_spread"] < guard.COLLAPSED < going.logs[0]["similarity_spread"]
    assert logs["loss"] == pytest.approx(2 * going.options.margin, rel=1e-4)
