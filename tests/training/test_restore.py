"""What a run takes over from a checkpoint is looked at first, whatever the file holds."""

import json
import shutil

import pytest
import torch
from helpers.runs import CPU, copy_of, expect_exit

import checkpoint
import evaluation
import train
from common.errors import InputError
from common.weights import check_weights_match
from training.restore import load_optimizer
from training.storage import check_plain


@pytest.fixture
def refused(finished, data, tmp_path, capsys):
    """Changes the finished run's checkpoint, and goes on from it: the line that ends this."""
    def check(change, *named):
        folder = shutil.copytree(finished, tmp_path / "run")
        state = torch.load(folder / "checkpoint.pth.tar", weights_only=True)
        change(state)
        torch.save(state, folder / "checkpoint.pth.tar")
        path = folder / "checkpoint.pth.tar"
        return expect_exit(["--resume", str(path), "--data_path", str(data), *CPU], 2, capsys,
                           named)

    return check


def moments(state):
    return state["optimizer"]["state"][0]


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "step"])
@pytest.mark.parametrize("spoil", [
    lambda value: torch.zeros(2, 3, 5), lambda value: value.double(), lambda value: value.half(),
    lambda value: value.int(), lambda value: value * torch.nan, lambda value: None,
    lambda value: 1.0, lambda value: value.reshape(-1)[:1].reshape(1, 1, 1, 1, 1)])
def test_moments_that_are_not_the_parameters(refused, name, spoil):
    refused(lambda state: moments(state).update({name: spoil(moments(state)[name])}),
            "checkpoint.pth.tar", "moments of parameter 0")


@pytest.mark.parametrize("change", [
    lambda optimizer: optimizer["state"].update({999: optimizer["state"][0]}),
    lambda optimizer: optimizer["state"].update({"a": optimizer["state"][0]}),
    lambda optimizer: optimizer["state"][0].pop("step"),
    lambda optimizer: optimizer["state"][0].update(exp_avg_sq=-optimizer["state"][0]["exp_avg_sq"]),
    lambda optimizer: optimizer["param_groups"].clear(),
    lambda optimizer: optimizer["param_groups"].append(optimizer["param_groups"][0]),
    *(lambda optimizer, name=name, value=value: optimizer["param_groups"][0].update({name: value})
      for name, value in (("amsgrad", True), ("maximize", True), ("betas", (2.0, 0.9)),
                          ("eps", "x"), ("params", [0]), ("lr", "x"), ("fused", None),
                          ("weight_decay", 1e9), ("capturable", True), ("foreach", True)))])
def test_an_optimizer_of_another_run(refused, change):
    refused(lambda state: change(state["optimizer"]), "checkpoint.pth.tar")


@pytest.mark.parametrize("name, value", [
    ("step", 10**9), ("step", -1), ("step", 7), ("epoch", -1), ("epoch", 10**9),
    ("global_step", 5), ("global_step", -(2**40)), ("best_rsum", float("nan")), ("best_rsum", 1e9),
    ("bad_photos", [10**9]), ("bad_photos", ["a"]), ("logs", [{}]), ("logs", [{"loss": "x"}]),
    ("logs", 5), ("validation_due", 1), ("steps_per_epoch", None), ("processes", 0),
    ("processes", "2")])
def test_a_place_in_the_run_that_cannot_be(refused, name, value):
    refused(lambda state: state.update({name: value}), "checkpoint.pth.tar")


@pytest.mark.parametrize("name, value", [
    ("image_ids", 10**9), ("image_ids", 24), ("image_ids", -101), ("image_ids", -1),
    ("text_ids", 10**9), ("text_ids", -(2**60)), ("text_ids", -1),
    ("pointer", 40), ("pointer", -1)])
def test_a_bank_that_cannot_be(refused, name, value):
    refused(lambda state: state["bank"][name].fill_(value), "checkpoint.pth.tar")


def test_a_bank_of_other_captions_where_matches_are_not_known(finished, data, tmp_path, capsys):
    """The galleries look its captions up."""
    own = copy_of(data, tmp_path)
    (own / "shapes_train_matches.json").unlink()
    captions = len(json.loads((own / "shapes_train.json").read_text()))
    folder = shutil.copytree(finished, tmp_path / "run")
    path = folder / "checkpoint.pth.tar"
    for value, status in (captions, 2), (captions - 1, 0):
        state = torch.load(finished / "checkpoint.pth.tar", weights_only=True)
        state["bank"]["text_ids"].fill_(value)
        torch.save(state, path)
        arguments = ["--resume", str(path), "--data_path", str(own), *CPU]
        if status:
            expect_exit(arguments, 2, capsys, ["captions that the training split does not have"])
        else:
            train.main(arguments)


@pytest.mark.parametrize("part", ["model", "momentum_model", "bank", "criterion"])
@pytest.mark.parametrize("spoil", [
    lambda value: value.to(torch.complex64), lambda value: value.bool(),
    lambda value: value.to(torch.float16), lambda value: torch.zeros(7, 1, 7),
    lambda value: torch.zeros(3, 3).to_sparse(), lambda value: torch.zeros(2, device="meta")])
def test_weights_of_another_kind(refused, part, spoil):
    name = {"bank": "image_keys", "criterion": "positive.mean"}.get(part, "text_projection.weight")
    refused(lambda state: state[part].update({name: spoil(state[part][name])}),
            "checkpoint.pth.tar")


def test_weights_that_are_not_finite(refused):
    refused(lambda state: state["model"]["text_projection.weight"].fill_(torch.nan),
            "checkpoint.pth.tar", "text_projection.weight")


@pytest.mark.parametrize("name, value", [
    ("margin", 10**400), ("seed", 2**64), ("lr_milestones", None), ("lr_milestones", ["a"]),
    ("dataset", None), ("batch_size_train", None), ("image_encoder", 5), ("vocab", None),
    ("max_violation", "yes"), ("num_epochs", True), ("tau", [1]), ("momentum", float("nan"))])
def test_options_that_no_flag_could_give(refused, name, value):
    refused(lambda state: state["options"].update({name: value}))


@pytest.mark.parametrize("value", [
    torch.zeros(2, 2).to_sparse(), [{"a": (torch.zeros(1, device="meta"),)}], {"a": 2**63},
    {2**64: 1}, torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8)])
def test_only_plain_values_are_taken(value):
    with pytest.raises(ValueError):
        check_plain(value)


def test_moments_are_copies():
    """A fused step writes into them: not into memory that is mapped from the file."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([parameter], fused=True)
    mapped = {"step": torch.ones(()), "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}
    load_optimizer(optimizer, {"param_groups": optimizer.state_dict()["param_groups"],
                               "state": {0: mapped}})
    parameter.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(mapped["exp_avg"], torch.ones(3)) and mapped["step"] == 1


def test_what_a_run_saves_is_plain(finished):
    check_plain(checkpoint.read(finished / "checkpoint.pth.tar"))


def test_a_checkpoint_in_half_precision_is_converted(finished, data, tmp_path, capsys):
    """Its scores are those of its weights in float32; a line says so."""
    state = torch.load(finished / "model_best.pth.tar", weights_only=True)
    state["model"] = {name: value.half() for name, value in state["model"].items()}
    torch.save(state, tmp_path / "half.pth.tar")
    state["model"] = {name: value.float() for name, value in state["model"].items()}
    torch.save(state, tmp_path / "float.pth.tar")
    results = []
    for name in "half", "float":
        capsys.readouterr()
        evaluation.main([str(tmp_path / f"{name}.pth.tar"), "--data_path", str(data), *CPU,
                         "--output", str(tmp_path / f"{name}.json")])
        assert ("half precision" in capsys.readouterr().err) == (name == "half")
        results.append((tmp_path / f"{name}.json").read_text())
    assert results[0] == results[1]


def test_of_many_weights_that_differ_the_first_are_named():
    names = [f"weight{number}" for number in range(1000)]
    with pytest.raises(InputError, match="missing: weight0, .* and 992 more; other") as caught:
        check_weights_match("x.pth.tar", names, [], names)
    assert len(str(caught.value)) < 500
