"""What only a GPU can show. All other tests say --device cpu, whatever the machine has."""

import os
import subprocess
import sys

import pytest
import torch
from helpers.cases import step_of_the_method
from helpers.one_process import in_a_new_process
from helpers.paths import ROOT
from helpers.runs import assert_same, command, final_state
from helpers.steps import make_run, run_with_a_bank, take_step

import train
from fne_loss import FNELoss
from memory_bank import MemoryBank
from metrics import retrieval
from training.clock import StepClock

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_a_step_never_waits_for_the_gpu():
    criterion, bank = FNELoss().cuda(), MemoryBank(20, 6).cuda()
    step_of_the_method(criterion, bank, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        step_of_the_method(criterion, bank, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("flags", [[], ["--loss", "triplet"], ["--loss", "infonce"],
                                   ["--precision", "fp32"], ["--posterior", "evidence"]])
def test_a_whole_training_step_never_waits_for_the_gpu(tmp_path, flags):
    """Encoders, normalising, statistics, draw, loss, optimizer and bank; the first step may."""
    run, batches = make_run(tmp_path, "--device", "cuda", *flags)
    run.epoch = 1
    batch = batches[0].to(run.device)
    take_step(run, batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train.training_step(run, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_evidence_is_that_of_the_cpu():
    found = {}
    for device in "cpu", "cuda":
        torch.manual_seed(0)
        criterion = FNELoss(posterior="evidence", min_count=0, prior=0.1).to(device)
        bank, ids = MemoryBank(24, 6).to(device), torch.arange(24) // 3
        bank.enqueue(*(unit(24, 6).to(device) for _ in range(2)), ids.to(device),
                     torch.arange(24, device=device))
        pairs = [unit(8, 6).to(device) for _ in range(4)]
        ids, texts = torch.arange(8, device=device), 100 + torch.arange(8, device=device)
        criterion.update_statistics(*pairs[:2], ids)
        for _ in range(2):
            draws = criterion.draw(*pairs, ids, bank, text_ids=texts)
            criterion.add_evidence(draws[0].evidence + draws[1].evidence)
        grid = torch.linspace(-1, 1, 20, device=device)
        found[device] = [*(draw.evidence.cpu() for draw in draws),
                         criterion.posterior(grid[:, None], grid).cpu()]
    assert found["cpu"][0][:, 0].tolist() == [24, 8 * (7 + 21)] and found["cpu"][-1].max() > 0.5
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-4, atol=1e-6)


def unit(*shape):
    return torch.nn.functional.normalize(torch.randn(shape), dim=1)


@pytest.mark.parametrize("block", [2**24, 2000])
def test_ranks_on_a_gpu_are_those_of_the_cpu(monkeypatch, block):
    """Also where scores are as good as equal."""
    monkeypatch.setattr(retrieval, "GPU_BLOCK", block)
    monkeypatch.setattr(retrieval, "GPU_BLOCK_TEXTS", 100)
    torch.manual_seed(0)
    image_of_text = torch.arange(60).repeat_interleave(5)
    spread = unit(60, 16), unit(300, 16)
    near = [unit(1, 16) + 2e-8 * torch.randn(count, 16) for count in (60, 300)]
    for images, texts in spread, near:
        found = [retrieval.metrics_and_five_fold(images.to(device), texts.to(device), image_of_text)
                 for device in ("cpu", "cuda")]
        assert found[0] == found[1]


def test_the_clock_on_a_gpu():
    clock = StepClock(torch.device("cuda"))
    clock.lap(None)
    torch.randn(2000, 2000, device="cuda").matmul(torch.randn(2000, 2000, device="cuda"))
    clock.lap("loss")
    assert clock.seconds()["loss"] > 0


def test_a_step_of_fne_has_the_loss_of_the_cpu(tmp_path, sampled):
    """In float32, with the heaviest candidates drawn: random numbers differ between devices."""
    losses = {}
    for device in "cpu", "cuda":
        run, batch = run_with_a_bank(tmp_path, "--device", device, "--precision", "fp32")
        assert run.device.type == device and not run.model.bf16
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            losses[device] = take_step(run, batch).item()
        assert int(run.skips.count) == 0 and len(run.objective.bank) == 40
    assert losses["cuda"] == pytest.approx(losses["cpu"], abs=1e-3)
    assert losses["cpu"] > 0.01


@pytest.mark.skipif(
    not (torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)),
    reason="needs a GPU that has bfloat16")
def test_a_step_on_a_gpu_is_in_bf16_if_nobody_says_otherwise(tmp_path):
    run, batch = run_with_a_bank(tmp_path, "--device", "cuda")
    assert run.options.precision == "auto" and run.model.bf16 and run.objective.momentum_model.bf16
    seen = set()
    for encoder in run.model.image_encoder, run.model.text_encoder:
        for module in encoder.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    loss = take_step(run, batch)
    assert seen == {torch.bfloat16}
    assert loss.dtype == torch.float32 and loss.isfinite() and int(run.skips.count) == 0


def test_steps_of_one_process_through_nccl_are_those_without():
    """In float32; `test_one_process_that_exchanges_with_itself_trains_the_same` is its counterpart
    on a CPU, over gloo."""
    found = in_a_new_process("cuda")
    assert set(found["sent"]) == {"nccl"} and found["sent"]["nccl"] >= 4 * 2
    assert found["together"] == pytest.approx(found["alone"], rel=1e-3)


# In a process of its own, since cuBLAS reads its variable once. With STOP as the first argument the
# run is stopped in its tenth step, of FNE.
A_RUN = """
import os, signal, sys
from helpers.runs import SIZES
from inputs import shapes
shapes.DEFAULT_SIZES = SIZES
import train
step = train.training_step

def stopping(run, batch):
    if run.global_step == 9:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(run, batch)

if sys.argv[1] == "STOP":
    train.training_step = stopping
train.main(sys.argv[2:])
"""


@pytest.mark.parametrize("flags", [[], ["--precision", "fp32"],
                                   ["--posterior", "evidence", "--oracle"],
                                   ["--image_encoder", "small-vit", "--grad_checkpointing"]])
def test_a_deterministic_run_repeats_and_goes_on_to_the_bit(data, tmp_path, flags):
    """Two runs, and one that was stopped, with dropout and augmentation."""
    def run(name, how, status):
        done = subprocess.run(
            [sys.executable, "-c", A_RUN, how,
             *command(data, tmp_path / name, "--device", "cuda", "--deterministic", "--augment",
                      "published", "--resume", "auto", *flags)],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
            capture_output=True, text=True)
        assert done.returncode == status, done.stderr

    run("one", "WHOLE", 0)
    run("two", "WHOLE", 0)
    run("stopped", "STOP", 143)
    run("stopped", "WHOLE", 0)
    one = final_state(tmp_path / "one")
    assert_same(one, final_state(tmp_path / "two"))
    assert_same(one, final_state(tmp_path / "stopped"))
