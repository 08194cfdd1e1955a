"""A pretrained pair through `--recipe clip`: its weights, its scale, its average."""

import json
import math

import pytest
import torch
from helpers.pairs import make_pair, save_pair
from helpers.runs import CPU, assert_same, expect_exit, final_state
from helpers.stopping import signal_after

import checkpoint
import evaluation
import export
import train
from encoders.folder import read_model
from model import DualEncoder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder of a small CLIP with its tokenizer and image processor."""
    return save_pair(tmp_path_factory.mktemp("pairs") / "clip", "clip")


def fine_tuning(data, folder, pair, *more):
    """A run of 2 epochs of 7 steps; the rest is the recipe's and the pair's."""
    return ["--dataset", "shapes", "--data_path", str(data), "--logger_name", str(folder), "--init",
            str(pair), "--recipe", "clip", "--batch_size_train", "16", "--num_epochs", "2",
            "--lr_warmup", "3", "--workers", "0", "--no_figures", *CPU, *more]


@pytest.fixture(scope="module")
def whole(data, pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "fine_tuned"
    train.main(fine_tuning(data, folder, pair))
    return folder


def test_a_pair_is_fine_tuned_by_the_recipe_from_its_own_scale(whole, pair):
    state = checkpoint.read(whole / "checkpoint.pth.tar")
    options = state["options"]
    assert (options["loss"], options["optimizer"], options["lr_schedule"], options["embed_size"],
            options["weight_decay"], options["learning_rate"]) == (
                "infonce", "adamw", "cosine", 0, 0.1, 1e-5)
    scale = make_pair("clip").logit_scale.exp().item()
    assert options["temperature"] == pytest.approx(1 / scale)
    assert state["log_scale"].exp().item() == pytest.approx(scale, rel=1e-3)
    begun = DualEncoder.from_pretrained(pair).state_dict()
    moved = [name for name, value in state["model"].items()
             if value.is_floating_point() and not torch.equal(value, begun[name])]
    assert len(moved) > 20
    assert all(torch.allclose(value, begun[name], atol=1e-3)
               for name, value in state["model"].items())


def test_what_it_gave_before_training_is_the_pairs_own_score(whole, pair, data, tmp_path):
    results = json.loads((whole / "test_results.json").read_text())
    evaluation.main([str(pair), "--dataset", "shapes", "--data_path", str(data), "--split", "val",
                     "--workers", "0", *CPU, "--output", str(tmp_path / "pair.json")])
    own = json.loads((tmp_path / "pair.json").read_text())
    for name, value in results["zero_shot"].items():
        if name not in ("split", "best_rsum"):
            assert value == pytest.approx(own[name])


def test_it_goes_on_to_the_bit(whole, pair, data, tmp_path, monkeypatch, capsys):
    arguments = fine_tuning(data, tmp_path, pair, "--resume", "auto")
    with monkeypatch.context() as patch:
        signal_after(patch, 9)
        expect_exit(arguments, 143, capsys, ["step 9 is done"])
    train.main(arguments)
    assert_same(final_state(tmp_path), final_state(whole))


def test_it_is_averaged_with_the_pair(whole, pair, tmp_path):
    """The pair is known from the checkpoint; named, it gives the same."""
    path = whole / "checkpoint.pth.tar"
    trained = checkpoint.read(path)["model"]
    begun = DualEncoder.from_pretrained(pair).state_dict()
    for name, more in ("a", []), ("b", ["--average_with", str(pair)]):
        export.main([str(path), str(tmp_path / name), "--average", "0.5", *more])
        found = read_model(tmp_path / name)["model"]
        assert found.keys() == trained.keys()
        for key, value in found.items():
            torch.testing.assert_close(value, 0.5 * trained[key] + 0.5 * begun[key])
        # Of the logit scale, the logarithm is a weight of the pair.
        scales = DualEncoder.from_pretrained(pair).logit_scale, trained_scale(path)
        assert abs(scales[0] / scales[1] - 1) > 1e-5
        assert DualEncoder.from_pretrained(tmp_path / name).logit_scale == pytest.approx(
            math.sqrt(scales[0] * scales[1]), rel=1e-6)


def trained_scale(path):
    return checkpoint.read(path)["log_scale"].exp().item()


def test_the_recipe_of_frozen_encoders_trains_projections_alone(pair, data, tmp_path):
    """On the towers of a pair; the temperature of the loss is trained with them."""
    train.main(["--dataset", "shapes", "--data_path", str(data), "--logger_name", str(tmp_path),
                "--image_encoder", str(pair), "--text_encoder", str(pair), "--image_res", "32",
                "--max_tokens", "12", "--recipe", "frozen", "--embed_size", "8", "--num_epochs",
                "1", "--batch_size_train", "16", "--workers", "0", "--no_figures", *CPU])
    state = checkpoint.read(tmp_path / "checkpoint.pth.tar")
    assert (state["options"]["freeze"], state["options"]["loss"]) == ("both", "infonce")
    [group] = state["optimizer"]["param_groups"]
    assert len(group["params"]) == 5  # weights and biases of two projections, and a temperature
