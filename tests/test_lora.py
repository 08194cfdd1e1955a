"""--lora: adapters beside frozen weights, in every command that takes a run or its checkpoint."""

import builtins
import functools
import json
import shutil

import pytest
import torch
import transformers
from helpers.paths import ROOT
from helpers.runs import (
    CPU,
    assert_same,
    command,
    contents,
    expect_exit,
    expect_one_line,
    final_state,
)
from helpers.steps import make_run, take_step
from helpers.stopping import signal_after
from helpers.together import bytes_sent, run_together
from safetensors.torch import load_file, save_file

import checkpoint
import evaluation
import export
import search
import train
from encoders.processors import load_tokenizer
from model import DualEncoder

pytest.importorskip("peft")
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
             initializer_range=0.2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Flags that name pretrained encoders: a small ViT and a small BERT with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(5)
    transformers.ViTModel(transformers.ViTConfig(
        image_size=64, patch_size=16, **SMALL), add_pooling_layer=False).save_pretrained(
            folder / "image")
    tokenizer = load_tokenizer("tiny-bert", ROOT / "vocab" / "shapes.txt")
    tokenizer.save_pretrained(folder / "text")
    transformers.BertModel(transformers.BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=40, **SMALL)).save_pretrained(
            folder / "text")
    return ["--image_encoder", str(folder / "image"), "--text_encoder", str(folder / "text"),
            "--image_stats", "clip", "--learning_rate", "1e-3"]


@pytest.fixture(scope="module")
def adapted(data, base, one_thread, tmp_path_factory):
    """The folder of a run with adapters on both encoders, for all to read."""
    folder = tmp_path_factory.mktemp("lora") / "run"
    train.main(command(data, folder, *base, "--lora", "4", "--lora_dropout", "0.1"))
    before = contents(folder)
    yield folder
    assert contents(folder) == before


def steps_of(folder, *flags, steps=6, dropout=True):
    """A run after some steps, of which the first two warm up, and their losses."""
    run, batches = make_run(folder, *flags)
    if not dropout:
        run.model.eval()
        run.objective.eval()
    losses = []
    for number in range(steps):
        run.epoch = int(number >= 2)
        losses.append(take_step(run, batches[number % 2]))
    return run, torch.stack(losses)


# -------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_holds_adapters_and_projections_alone(adapted):
    state = checkpoint.read(adapted / "checkpoint.pth.tar")
    weights = state["model"]
    assert all(".lora_" in name or "_projection." in name for name in weights)
    matrices = 2 * 2 * 6 * 2  # of both encoders, two layers, and six linear layers in each
    assert len(weights) == matrices + 4  # weight and bias of both projections
    assert state["momentum_model"].keys() == weights.keys()
    assert len(state["optimizer"]["state"]) == len(weights)
    assert any(not torch.equal(weights[name], state["momentum_model"][name]) for name in weights)
    assert {side: len(digest) for side, digest in state["base"].items()} == {
        "image": 32, "text": 32}


def test_a_stopped_run_goes_on_to_the_bit(data, base, adapted, tmp_path, monkeypatch, capsys):
    arguments = command(data, tmp_path, *base, "--lora", "4", "--lora_dropout", "0.1")
    with monkeypatch.context() as patch:
        signal_after(patch, 10)
        expect_exit(arguments, 143, capsys, ["step 10 is done and saved"])
    train.main(["--resume", str(tmp_path / "checkpoint.pth.tar"), "--data_path", str(data), *CPU,
                "--workers", "0", "--no_figures"])
    assert_same(final_state(tmp_path), final_state(adapted))
    assert (tmp_path / "test_results.json").read_text() == (
        adapted / "test_results.json").read_text()


def test_it_is_tested_evaluated_and_searched(data, adapted, tmp_path, capsys):
    copy = shutil.copytree(adapted, tmp_path / "run")
    wanted = json.loads((copy / "test_results.json").read_text())
    wanted.pop("zero_shot", None)  # which a run scores before its first step
    (copy / "test_results.json").unlink()
    best = copy / "model_best.pth.tar"
    train.main(["--test", "--resume", str(best), "--data_path", str(data), *CPU, "--workers", "0"])
    found = json.loads((copy / "test_results.json").read_text())
    found.pop("zero_shot", None)
    assert found == wanted
    evaluation.main([str(best), "--data_path", str(data), *CPU, "--workers", "0", "--output",
                     str(tmp_path / "metrics.json")])
    assert json.loads((tmp_path / "metrics.json").read_text()) == wanted
    capsys.readouterr()
    search.main([str(best), "--photos", str(data / "images"), "a red circle", *CPU])
    assert ".png" in capsys.readouterr().out


@torch.no_grad()
def test_an_export_has_the_embeddings_of_the_adapters(adapted, tmp_path):
    path = adapted / "model_best.pth.tar"
    model, _, _ = export.read_model(path, merge=False)
    plain, _, _ = export.read_model(path)
    export.main([str(path), str(tmp_path / "out")])
    merged = DualEncoder.from_pretrained(tmp_path / "out")
    assert model.saved_names is not None and merged.saved_names is None
    pixels, ids = torch.randn(3, 3, 64, 64), torch.randint(5, 40, (3, 9))
    for encode, inputs in ("encode_image", [pixels]), ("encode_text", [ids, torch.ones_like(ids)]):
        wanted = getattr(model, encode)(*inputs)
        for found in merged, plain:
            assert torch.allclose(getattr(found, encode)(*inputs), wanted, rtol=0, atol=1e-5)
    assert_same(dict(plain.state_dict()), dict(merged.state_dict()))


@torch.no_grad()
def test_adapters_are_read_by_peft(adapted, base, tmp_path):
    import peft

    path = adapted / "model_best.pth.tar"
    export.main([str(path), str(tmp_path / "out"), "--adapter"])
    model, _, _ = export.read_model(path, merge=False)
    pixels, ids = torch.randn(3, 3, 64, 64), torch.randint(5, 40, (3, 9))
    loaded = {}
    for side, name in ("image", base[1]), ("text", base[3]):
        plain = transformers.AutoModel.from_pretrained(name)
        loaded[side] = peft.PeftModel.from_pretrained(plain, tmp_path / "out" / side).eval()
    states = loaded["image"](pixel_values=pixels).last_hidden_state
    wanted = model.image_encoder(pixel_values=pixels).last_hidden_state
    assert torch.allclose(states, wanted, rtol=0, atol=1e-5)
    states = loaded["text"](input_ids=ids).last_hidden_state
    wanted = model.text_encoder(input_ids=ids).last_hidden_state
    assert torch.allclose(states, wanted, rtol=0, atol=1e-5)
    projections = load_file(tmp_path / "out" / "projections.safetensors")
    assert torch.equal(projections["text_projection.weight"], model.text_projection.weight)


def test_a_new_run_begins_with_adapters_and_their_base(data, adapted, tmp_path):
    best = adapted / "model_best.pth.tar"
    train.main(command(data, tmp_path, "--init", str(best), "--num_epochs", "1", "--learning_rate",
                       "0"))
    assert_same(final_state(tmp_path)["model"], checkpoint.read(best)["model"])
    assert final_state(tmp_path)["options"]["lora"] == 4


def test_another_base_is_refused(data, base, adapted, tmp_path, capsys):
    other = shutil.copytree(base[1], tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1e-3
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    run = shutil.copytree(adapted, tmp_path / "run")
    before = contents(run)
    more = ["--image_encoder", str(other), "--data_path", str(data), *CPU]
    for main, arguments in (
            (evaluation.main, [str(run / "model_best.pth.tar"), *more]),
            (train.main, ["--resume", str(run / "checkpoint.pth.tar"), *more])):
        expect_exit(arguments, 2, capsys, ["--image_encoder", "pth.tar"], main)
    assert contents(run) == before


# ---------------------------------------------------------------------------------------- its steps


def test_one_encoder_may_have_adapters(data, base, tmp_path):
    train.main(command(data, tmp_path, *base, "--lora", "4", "--freeze", "image", "--num_epochs",
                       "2"))
    weights = final_state(tmp_path)["model"]
    assert not any(name.startswith("image_encoder") for name in weights)
    assert sum(".lora_" in name for name in weights) == 2 * 6 * 2
    evaluation.main([str(tmp_path / "model_best.pth.tar"), "--data_path", str(data), *CPU])


@pytest.mark.parametrize("flags", [["--chunk", "5"], ["--chunk", "5", "--grad_checkpointing"],
                                   ["--grad_checkpointing"], ["--compile"]], ids=" ".join)
def test_it_composes_with_what_saves_memory_or_time(base, tmp_path, monkeypatch, flags):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    steps = 2 if "--compile" in flags else 20
    _, losses = steps_of(tmp_path, *base, "--lora", "4", steps=steps, dropout=False)
    _, found = steps_of(tmp_path, *base, "--lora", "4", *flags, steps=steps, dropout=False)
    torch._dynamo.reset()
    assert torch.allclose(found, losses, rtol=0, atol=1e-5)


def test_a_base_in_bfloat16_has_the_bits_of_the_bf16_step(base, tmp_path):
    """Autocast would round the weights beside the adapters the same way, in each step."""
    plain, losses = steps_of(tmp_path, *base, "--lora", "4", "--precision", "bf16")
    run, found = steps_of(tmp_path, *base, "--lora", "4", "--base_dtype", "bfloat16")
    assert torch.equal(found, losses)
    assert_same(dict(run.model.state_dict()), dict(plain.model.state_dict()))
    dtypes = {name: weight.dtype for name, weight in run.model.named_parameters()}
    assert dtypes["image_encoder.layers.0.mlp.fc1.base_layer.weight"] == torch.bfloat16
    assert all(dtypes[name] == torch.float32 for name in run.model.state_dict())


def test_two_processes_send_the_gradients_of_adapters_alone(base, tmp_path):
    def call():
        sent = bytes_sent()
        run, losses = steps_of(tmp_path, *base, "--lora", "4", steps=6, dropout=False)
        trained = sum(value.numel() for value in run.model.state_dict().values())
        return losses, sum(sent) / 6, trained, dict(run.model.state_dict())

    _, wanted = steps_of(tmp_path, *base, "--lora", "4", steps=6, dropout=False)
    (losses, sent, trained, weights), (*_, other) = run_together(2, call, tmp_path)
    assert torch.allclose(losses, wanted, rtol=0, atol=1e-5)
    assert_same(weights, other)
    assert sent == 4 * trained


# ------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("flags, named", [
    (["--lora_alpha", "16"], "--lora_alpha"), (["--lora_dropout", "0.1"], "--lora_dropout"),
    (["--base_dtype", "bfloat16"], "--base_dtype"),
    (["--lora", "4", "--base_dtype", "bfloat16", "--precision", "fp32"], "--base_dtype"),
    (["--lora", "4", "--freeze", "both"], "--lora"),
    (["--lora", "4", "--text_encoder", "tiny-bert"], "--text_encoder tiny-bert"),
    (["--lora", "4", "--init", "{exported}"], "--init"),
    (["--lora", "0", "--init", "{adapted}"], "--init")])
def test_flags_that_do_not_go_with_adapters(data, base, adapted, exported, tmp_path, capsys, flags,
                                            named):
    flags = [word.format(exported=exported, adapted=adapted / "model_best.pth.tar")
             for word in flags]
    expect_one_line(command(data, tmp_path / "run", *base, *flags), named, capsys)
    assert not (tmp_path / "run").exists()


def test_adapters_of_another_run_are_refused(adapted, finished, tmp_path, capsys):
    for arguments in ([str(finished / "model_best.pth.tar"), str(tmp_path / "x"), "--adapter"],
                      [str(adapted / "model_best.pth.tar"), str(tmp_path / "x"), "--adapter",
                       "--onnx"]):
        expect_one_line(arguments, "--adapter", capsys, export.main)
    assert not (tmp_path / "x").exists()


def test_a_missing_package_is_named(data, base, tmp_path, capsys, monkeypatch):
    own_import = builtins.__import__

    def without_peft(name, *more):
        if name.partition(".")[0] == "peft":
            raise ImportError(name)
        return own_import(name, *more)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    expect_one_line(command(data, tmp_path / "run", *base, "--lora", "4"), "requirements-lora.txt",
                    capsys)
    assert not (tmp_path / "run").exists()
