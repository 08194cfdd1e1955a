"""--chunk, gradient caching: the step of the whole batch, in the memory of a chunk."""

import functools

import pytest
import torch
from helpers.runs import assert_same, command, expect_exit, final_state
from helpers.steps import B, make_run, run_with_a_bank, take_step
from helpers.stopping import signal_after
from helpers.together import bytes_sent, run_together
from torch.autograd.graph import saved_tensors_hooks

import checkpoint
import train
from encoders import chunks
from model import DualEncoder

STEPS = 50
VIT = ["--image_encoder", "small-vit"]
OBJECTIVES = [["--loss", "fne"], ["--loss", "triplet"], ["--loss", "infonce"],
              ["--loss", "sigmoid"], ["--posterior", "evidence"]]
COMPOSED = [[*VIT, "--grad_checkpointing"], ["--freeze", "image"], ["--freeze", "text"]]


def trained(folder, *flags, steps=STEPS, dropout=False):
    """A run after `steps` steps, of which a third warm up, and their losses."""
    run, batches = make_run(folder, "--learning_rate", "2e-5", *flags)
    if not dropout:
        for model in run.model, *run.objective.modules():
            if isinstance(model, DualEncoder):
                model.eval()
    losses = []
    for number in range(steps):
        run.epoch = int(number >= steps // 3)
        losses.append(take_step(run, batches[number % 2]))
    return run, torch.stack(losses)


@pytest.mark.parametrize("flags", OBJECTIVES + COMPOSED, ids=" ".join)
def test_losses_and_weights_are_those_of_whole_batches(tmp_path, flags):
    """After 50 steps. Chunks of five leave one of a single pair."""
    whole, losses = trained(tmp_path, *flags)
    run, losses_in_chunks = trained(tmp_path, *flags, "--chunk", "5")
    assert torch.allclose(losses_in_chunks, losses, rtol=0, atol=1e-5)
    weights, wanted = run.model.state_dict(), whole.model.state_dict()
    for name, value in wanted.items():
        assert torch.allclose(weights[name], value, rtol=0, atol=1e-5), name


def test_in_bfloat16_they_are_so_but_for_its_rounding(tmp_path):
    _, losses = trained(tmp_path, "--precision", "bf16", steps=20)
    _, losses_in_chunks = trained(tmp_path, "--precision", "bf16", "--chunk", "5", steps=20)
    assert torch.allclose(losses_in_chunks, losses, rtol=2**-7, atol=0)


def test_compiled_encoders_take_chunks_too(tmp_path, monkeypatch):
    """Through PyTorch's own gradients of what is compiled, without a compiler behind them."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    _, losses = trained(tmp_path, *VIT, steps=3)
    _, losses_in_chunks = trained(tmp_path, *VIT, "--chunk", "8", "--compile", steps=3)
    torch._dynamo.reset()
    assert torch.allclose(losses_in_chunks, losses, rtol=0, atol=1e-5)


@pytest.mark.parametrize("flags", [[], [*VIT, "--grad_checkpointing"], ["--precision", "bf16"],
                                   ["--freeze", "image"]], ids=" ".join)
def test_the_second_pass_is_the_first_with_its_dropout_to_the_bit(tmp_path, monkeypatch, flags):
    """A run that encodes in the same chunks, and keeps what the backward pass needs instead of
    encoding again, ends in the same bits."""
    run, losses = trained(tmp_path, "--chunk", "5", *flags, steps=6, dropout=True)
    monkeypatch.setattr(chunks, "checkpoint",
                        lambda encode, *rows, use_reentrant: encode(*rows))
    plain, plain_losses = trained(tmp_path, "--chunk", "5", *flags, steps=6, dropout=True)
    assert torch.equal(losses, plain_losses)
    assert_same(checkpoint.pack(run), checkpoint.pack(plain))
    _, without = trained(tmp_path, "--chunk", "5", *flags, steps=6)
    assert not torch.equal(losses, without)  # there is dropout


def test_one_chunk_after_the_other_goes_back():
    """A chunk is encoded again once the one before has gone back, so one is in memory at a time."""
    order, weight = [], torch.randn(4, 3, requires_grad=True)

    def encode(rows):
        order.append(f"encode {len(rows)}")
        hidden = rows @ weight
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: order.append(f"back {len(rows)}"))
        return hidden.tanh().square()

    features = chunks.in_chunks(encode, 3, torch.randn(5, 4))
    assert features.shape == (5, 3) and order == ["encode 3", "encode 2"]
    features.sum().backward()
    assert order[2:] == ["encode 2", "back 2", "encode 3", "back 3"]


def test_nothing_is_kept_of_a_chunk(tmp_path):
    """Bytes that are kept for the backward pass, beside the batch's own pixels in float32."""
    def kept_bytes(*flags):
        run, batch = run_with_a_bank(tmp_path, *flags)
        kept = []
        with saved_tensors_hooks(lambda tensor: kept.append(tensor.nbytes) or tensor,
                                 lambda tensor: tensor):
            train.encode(run, batch)
        return sum(kept) - 4 * batch.pixels.numel()

    assert kept_bytes("--chunk", "5") < 0.02 * kept_bytes()


def test_momentum_encoders_and_frozen_ones_see_chunks_once(tmp_path, monkeypatch):
    """The trained encoder sees each chunk a second time on the way back."""
    run, batch = run_with_a_bank(tmp_path, "--chunk", "6", "--freeze", "image")
    seen = {}
    modules = {"image": run.model.image_encoder, "text": run.model.text_encoder,
               "momentum": run.objective.momentum_model.text_encoder}
    for name, module in modules.items():
        sizes = seen.setdefault(name, [])
        module.register_forward_pre_hook(
            lambda module, inputs, keywords, sizes=sizes: sizes.append(
                len(next(iter(keywords.values())))), with_kwargs=True)
    take_step(run, batch)
    assert B == 16 and seen == {"image": [6, 6, 4], "text": [6, 6, 4, 4, 6, 6],
                                "momentum": [6, 6, 4]}


def test_two_processes_exchange_gradients_once(tmp_path):
    """The losses are those of one process without chunks, and the messages those without."""
    def call(chunk):
        sent = bytes_sent()
        run, losses = trained(tmp_path, "--chunk", str(chunk), steps=20)
        return losses, sent, checkpoint.pack(run)["model"]

    _, wanted = trained(tmp_path, steps=20)
    (losses, sent, weights), (other_losses, _, other_weights) = run_together(
        2, lambda: call(3), tmp_path)
    assert torch.allclose(losses, wanted, rtol=0, atol=1e-5)
    assert_same([losses, weights], [other_losses, other_weights])
    assert sent == run_together(2, lambda: call(0), tmp_path)[0][1] and len(sent) >= 20


def test_a_stopped_run_goes_on_to_the_bit(data, tmp_path, monkeypatch, capsys):
    arguments = command(data, tmp_path / "whole", "--chunk", "5")
    train.main(arguments)
    arguments = command(data, tmp_path / "stopped", "--resume", "auto")
    with monkeypatch.context() as patch:
        signal_after(patch, 10)
        expect_exit([*arguments, "--chunk", "5"], 143, capsys, ["step 10 is done and saved"])
    train.main(arguments)  # --chunk is among what a checkpoint brings
    assert_same(final_state(tmp_path / "stopped"), final_state(tmp_path / "whole"))
