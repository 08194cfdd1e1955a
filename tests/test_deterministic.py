"""--deterministic: no operation of a step is one of which a GPU has no deterministic kernel.

Without a GPU this is shown by names: every operation of a whole step, forward and back, is compared
with those that the documentation of `torch.use_deterministic_algorithms` lists. What a GPU then
does is in `test_cuda.py`.
"""

import pytest
import torch
import torch.nn.functional as F
from helpers.runs import assert_same, command, expect_exit, final_state
from helpers.steps import make_run, run_on_its_way, take_step
from torch.utils._python_dispatch import TorchDispatchMode

import model
import negative_sampling
import train
from common.device import set_deterministic
from common.errors import exit_on_input_error

# "will throw a RuntimeError" (PyTorch 2.14), by the names that operations have below Python.
# `cumsum` is not one of them any more, but was; then it took memory that grows with C squared.
WITHOUT_KERNEL = (
    "avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward", "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward", "max_unpool2d", "max_unpool3d", "upsample_linear1d_backward",
    "upsample_bilinear2d_backward", "upsample_bicubic2d_backward", "upsample_trilinear3d_backward",
    "_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward",
    "reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward",
    "nll_loss_forward", "nll_loss2d_forward", "_ctc_loss_backward", "_embedding_bag_dense_backward",
    "put_", "histc", "bincount", "median", "grid_sampler_2d_backward", "grid_sampler_3d_backward",
    "scatter_reduce", "cumsum")


@pytest.fixture
def deterministic():
    set_deterministic(True)
    yield
    set_deterministic(False)


class Operations(TorchDispatchMode):
    """Collects the names of all operations inside, of the way back too."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.names.add(function._schema.name.removeprefix("aten::"))
        return function(*arguments, **(keywords or {}))


def test_they_are_found_where_there_are_some():
    """What is looked for below would be seen: each of these is done by one of the list."""
    image, ids = torch.rand(1, 1, 4, 4, requires_grad=True), torch.zeros(2, dtype=torch.int64)
    for work in (lambda: F.interpolate(image, (6, 6), mode="bicubic").sum().backward(),
                 lambda: F.adaptive_avg_pool2d(image, 2).sum().backward(),
                 lambda: F.cross_entropy(torch.rand(2, 3), ids),
                 lambda: torch.rand(2, 3).cumsum(1), lambda: torch.rand(3).median(0)):
        with Operations() as seen:
            work()
        assert len(seen.names & {*WITHOUT_KERNEL}) == 1, seen.names


@pytest.mark.parametrize("flags", [
    [], ["--loss", "triplet"], ["--loss", "infonce"], ["--easy_epochs", "9"], ["--augment", "none"],
    ["--image_encoder", "small-vit"], ["--grad_checkpointing", "--image_encoder", "small-vit"],
    ["--precision", "bf16"], ["--freeze", "image"], ["--text_encoder", "small-bert"]])
def test_no_step_uses_one(tmp_path, deterministic, flags):
    """The warm-up and FNE; the photo size of the built-in encoders is their own."""
    run, batches = make_run(tmp_path, "--deterministic", *flags)
    with Operations() as seen:
        for epoch in 0, 1:
            run.epoch = epoch
            take_step(run, batches[epoch])
    assert {"native_layer_norm_backward", "embedding_dense_backward"} <= seen.names
    assert not seen.names & {*WITHOUT_KERNEL}
    assert "_fused_adam_" in seen.names and int(run.skips.count) == 0


@pytest.mark.parametrize("columns", [1, 2, 3, 7, 64, 1000, 8256])
def test_running_sums_by_doubling(deterministic, columns):
    values = torch.rand(3, columns) * (torch.rand(3, columns) < 0.3)
    sums = negative_sampling.running_sums(values)
    assert sums.dtype == torch.float64 and sums.shape == values.shape
    wanted = values.double().cumsum(1)
    torch.testing.assert_close(sums, wanted, rtol=1e-12, atol=0)
    assert (sums.diff(dim=1) >= -1e-12).all()


def test_a_draw_is_as_likely_as_its_weight(deterministic):
    weights = torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0, 4.0]]).expand(40_000, -1)
    drawn = negative_sampling.sample_negatives(weights, torch.full((40_000,), 9))
    shares = torch.bincount(drawn, minlength=6) / 40_000
    torch.testing.assert_close(shares, torch.tensor([0, 0.125, 0, 0.375, 0, 0.5]), rtol=0,
                               atol=0.012)


def test_a_run_with_the_flag_repeats_and_goes_on_with_it(data, tmp_path, capsys):
    """And leaves it set for nobody else in this process."""
    try:
        for name in "one", "two":
            train.main(command(data, tmp_path / name, "--deterministic", "--num_epochs", "2"))
            assert torch.are_deterministic_algorithms_enabled()
        assert_same(final_state(tmp_path / "one"), final_state(tmp_path / "two"))
        assert "deterministic" in capsys.readouterr().out
        path = str(tmp_path / "one" / "checkpoint.pth.tar")
        train.main(["--resume", path, "--data_path", str(data), "--num_epochs", "3"])
        assert torch.are_deterministic_algorithms_enabled()
        train.main(["--resume", path, "--data_path", str(data), "--no_deterministic", "--test"])
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        set_deterministic(False)


def refuses(*arguments, **keywords):
    raise RuntimeError("upsample_bicubic2d_backward_out_cuda does not have a deterministic "
                       "implementation, but you set 'torch.use_deterministic_algorithms(True)'. "
                       "You can ...")


def test_an_encoder_without_such_a_gradient_is_refused_before_the_first_step(
        data, tmp_path, monkeypatch, capsys):
    """As a GPU says it; here the way back is made to."""
    monkeypatch.setattr(torch.Tensor, "backward", refuses)
    try:
        line = expect_exit(command(data, tmp_path, "--deterministic"), 2, capsys,
                           ["--deterministic: upsample_bicubic2d_backward_out_cuda of "
                            "--image_encoder", "--freeze image"])
        assert "You can" not in line and not (tmp_path / "checkpoint.pth.tar").exists()
    finally:
        set_deterministic(False)


def test_the_trial_leaves_no_trace(tmp_path):
    run, _ = run_on_its_way(tmp_path)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    random = torch.get_rng_state()
    model.check_deterministic_gradients(run.model, run.options, run.device)
    assert_same(before, dict(run.model.state_dict()))
    assert torch.equal(random, torch.get_rng_state()) and run.model.training
    assert all(parameter.grad is None for parameter in run.model.parameters())


def test_an_operation_without_one_ends_in_a_line_wherever_it_comes_up(capsys):
    with pytest.raises(SystemExit) as caught, exit_on_input_error():
        refuses()
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1
    assert "--deterministic: upsample_bicubic2d_backward_out_cuda does not have" in error


def test_another_error_of_the_trial_is_not_taken_for_that(tmp_path, monkeypatch):
    run, _ = run_on_its_way(tmp_path)
    monkeypatch.setattr(torch.Tensor, "backward", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.check_deterministic_gradients(run.model, run.options, run.device)
