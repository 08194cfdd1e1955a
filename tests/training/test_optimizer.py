"""The optimizer's groups, AdamW and schedules: by hand, as torch's own, and resumed to the bit."""

import re

import pytest
import torch
from helpers.runs import assert_same, command, expect_exit, final_state
from helpers.spoiling import spoil
from helpers.steps import clone, kept, make_run, run_on_its_way, take_step
from helpers.stopping import signal_after
from torch import nn

import checkpoint
import train
from common.errors import InputError
from common.flags import flags_of
from training.optimizer import layers_above
from training.options import TrainOptions

USUAL = ["--optimizer", "adamw", "--weight_decay", "0.2", "--lr_schedule", "cosine", "--lr_warmup",
         "4", "--image_lr", "2e-4", "--head_lr", "2e-3", "--layer_decay", "0.8"]


def settings_of(run):
    """The learning rate and the weight decay of each parameter of a run's model and objective."""
    found = {parameter: (group["lr"], group["weight_decay"])
             for group in run.optimizer.param_groups for parameter in group["params"]}
    names = {**{f"model.{name}": value for name, value in run.model.named_parameters()},
             **dict(run.objective.named_parameters())}
    return {name: found.pop(value) for name, value in names.items() if value.requires_grad}


def test_without_further_flags_there_is_one_group_in_the_models_order(tmp_path):
    run, _ = make_run(tmp_path, "--loss", "infonce", "--freeze", "image")
    (group,) = run.optimizer.param_groups
    wanted = [*run.model.text_encoder.parameters(), *run.model.image_projection.parameters(),
              *run.model.text_projection.parameters(), run.objective.log_scale]
    assert list(map(id, group["params"])) == list(map(id, wanted))
    plain = torch.optim.Adam(wanted, lr=5e-4, fused=True).param_groups[0]
    assert {name: (value, type(value)) for name, value in group.items() if name != "params"} == {
        name: (value, type(value)) for name, value in plain.items() if name != "params"}


def test_groups_are_those_of_each_parameters_module(tmp_path):
    """Decay is told by the kind of a layer here, and not by the shape of a weight."""
    run, _ = make_run(tmp_path, "--loss", "sigmoid", "--weight_decay", "0.1", "--image_lr", "1e-4",
                      "--head_lr", "1e-2", "--image_encoder", "small-vit")
    settings = settings_of(run)
    rates = {"image_encoder": 1e-4, "text_encoder": 5e-4, "image_projection": 1e-2,
             "text_projection": 1e-2}
    seen = set()
    for name, module in run.model.named_modules():
        for kind, _ in module.named_parameters(recurse=False):
            decays = kind == "weight" and isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding))
            decays = decays or kind in ("cls_token", "position_embeddings")
            assert settings[f"model.{name}.{kind}"] == (
                rates[name.partition(".")[0]], 0.1 * decays), name
            seen.add((type(module), kind, decays))
    assert (nn.LayerNorm, "weight", False) in seen and (nn.Linear, "bias", False) in seen
    assert settings["log_scale"] == settings["bias"] == (1e-2, 0)
    assert len(settings) == sum(
        len(group["params"]) for group in run.optimizer.param_groups)


@pytest.mark.parametrize(("image", "text"), [("clip", "clip"), ("vit", "bert"),
                                             ("siglip", "siglip")])
def test_layer_decay_counts_the_layers_above(dual, image, text):
    """By names that a person has read, for encoders of two layers."""
    model = dual(image, text, embed_size=8)
    above = layers_above(model)
    assert not any("_projection." in name and name.count(".") == 1 for name in above)
    counts = set()
    for name, layers in above.items():
        if re.search(r"\.layers?\.0\.", name):
            wanted = 2
        elif re.search(r"\.layers?\.1\.", name):
            wanted = 1
        elif re.search(r"embedding|pre_layrnorm|logit_", name):
            wanted = 3
        else:
            assert re.search(r"post_layernorm|final_layer_norm|layernorm|pooler|head|_projection",
                             name)
            wanted = 0
        assert layers == wanted, name
        counts.add((name.partition("_")[0], wanted))
    assert len(counts) == 8


def test_layer_decay_lowers_the_rates_of_towers_alone(tmp_path):
    run, _ = make_run(tmp_path, "--layer_decay", "0.5", "--text_lr", "1e-3")
    settings = settings_of(run)
    rates = {rate for name, (rate, _) in settings.items() if name.startswith("model.text_encoder")}
    assert rates == {1e-3, 5e-4, 2.5e-4}  # pooler, the one layer, embeddings
    assert settings["model.text_projection.weight"][0] == 5e-4
    stages = {rate for name, (rate, _) in settings.items()
              if name.startswith("model.image_encoder")}
    assert stages == {5e-4 * 0.5**n for n in range(5)}  # three stages, what is before and after


def test_an_encoder_without_numbered_layers_has_no_layer_decay(dual):
    model = dual(embed_size=8)
    model.image_encoder = nn.Linear(3, 3)
    with pytest.raises(InputError, match="--layer_decay: the encoder of --image_encoder"):
        layers_above(model)
    model.image_encoder.requires_grad_(False)
    assert all(name.startswith("text_encoder.") for name in layers_above(model))


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_a_step_of_several_groups_is_that_of_plain_torch(tmp_path, name):
    """Fused and with the switch that leaves out a step, against a plain optimizer for each."""
    flags = [*USUAL[2:], "--optimizer", name.lower(), "--loss", "infonce"]
    run, batch = run_on_its_way(tmp_path, *flags)
    copies = [[nn.Parameter(parameter.detach().clone()) for parameter in group["params"]]
              for group in run.optimizer.param_groups]
    state = clone(run.optimizer.state_dict())
    run.set_learning_rate()
    assert len(copies) > 8
    plain = getattr(torch.optim, name)([
        {"params": parameters, "weight_decay": group["weight_decay"]}
        for parameters, group in zip(copies, run.optimizer.param_groups)])
    for saved, group in zip(state["param_groups"], run.optimizer.param_groups):
        saved.update(fused=None, lr=group["lr"])
    plain.load_state_dict(state)
    take_step(run, batch)
    pairs = [pair for group, parameters in zip(run.optimizer.param_groups, copies)
             for pair in zip(parameters, group["params"])]
    for copy, parameter in pairs:
        copy.grad = None if parameter.grad is None else parameter.grad.clone()
    plain.step()
    assert any(parameter.grad is not None for _, parameter in pairs)
    for copy, parameter in pairs:
        torch.testing.assert_close(parameter, copy, rtol=1e-5, atol=1e-7)


def test_the_gradients_of_all_groups_are_clipped_together(tmp_path):
    run, batch = run_on_its_way(tmp_path, *USUAL, "--grad_clip", "0.01")
    take_step(run, batch)
    gradients = [parameter.grad for parameter in run.model.parameters()
                 if parameter.grad is not None]
    assert torch.cat([gradient.flatten() for gradient in gradients]).norm() == pytest.approx(
        0.01, rel=1e-3)


def test_a_step_that_is_not_finite_changes_nothing_with_weight_decay(tmp_path, monkeypatch):
    run, batch = run_on_its_way(tmp_path, *USUAL)
    before = clone(kept(run))
    with monkeypatch.context() as patch:
        spoil(patch, run, "gradient", torch.nan)
        take_step(run, batch)
    after = kept(run)
    for state in before, after:
        for group in state["optimizer"]["param_groups"]:
            del group["lr"]  # which is set before the step, and at the next one again
    assert_same(before, after)
    assert int(run.skips.count) == 1


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The folder of a run with all these flags that was never interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "groups"
    train.main(command(data, folder, *USUAL))
    return folder


@pytest.mark.parametrize("step", [2, 7, 12])
def test_a_run_with_groups_goes_on_to_the_bit(data, whole, tmp_path, monkeypatch, capsys, step):
    arguments = command(data, tmp_path, *USUAL, "--resume", "auto")
    with monkeypatch.context() as patch:
        signal_after(patch, step)
        expect_exit(arguments, 143, capsys, [f"step {step} is done"])
    train.main(arguments)
    assert_same(final_state(tmp_path), final_state(whole))
    assert len(final_state(tmp_path)["optimizer"]["param_groups"]) > 8


def test_a_checkpoint_of_an_earlier_version_goes_on(data, finished, tmp_path, monkeypatch, capsys):
    """One that lacks the options of this optimizer, and what the first validation showed."""
    arguments = command(data, tmp_path, "--resume", "auto")
    with monkeypatch.context() as patch:
        signal_after(patch, 9)
        expect_exit(arguments, 143, capsys, ["step 9 is done"])
    path = tmp_path / "checkpoint.pth.tar"
    state = torch.load(path, weights_only=True)
    names = ["recipe", "optimizer", "weight_decay", "image_lr", "text_lr", "head_lr", "layer_decay",
             "lr_schedule", "temperature"]
    for name in names:
        del state["options"][name]
    del state["zero_shot"]
    torch.save(state, path)
    expect_exit([*arguments, "--optimizer", "adamw"], 2, capsys, ["--optimizer adamw"])
    train.main(arguments)
    left, right = final_state(tmp_path), final_state(finished)
    assert left.pop("zero_shot") is None and right.pop("zero_shot")["rsum"] > 0
    assert_same(left, right)


def test_what_a_run_must_keep_of_the_optimizer_is_fixed():
    flags = flags_of(TrainOptions)
    assert all(flags[name].fixed for name in (
        "optimizer", "weight_decay", "image_lr", "text_lr", "head_lr", "layer_decay", "recipe"))
    assert not flags["learning_rate"].fixed and not flags["lr_schedule"].fixed


def test_another_learning_rate_keeps_the_groups(data, whole, tmp_path):
    """Also one that is equal to that of a tower."""
    train.main(command(data, tmp_path / "run", "--resume", str(whole / "checkpoint.pth.tar"),
                       "--learning_rate", "2e-4", "--num_epochs", "4"))
    assert checkpoint.read(tmp_path / "run" / "checkpoint.pth.tar")["global_step"] == 28
