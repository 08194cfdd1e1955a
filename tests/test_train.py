"""The program as a user runs it: train, test, resume, and what users get wrong."""

import json

import pytest
import torch
from helpers.runs import CPU, command, contents, copy_of, events, expect_one_line

import checkpoint
import train
from encoders.processors import load_tokenizer
from model import build_model
from training.options import parse

METRICS = {f"{side}_{key}" for side in ("i2t", "t2i")
           for key in ("r1", "r5", "r10", "medr", "meanr")} | {"rsum"}


def test_a_run_leaves_checkpoints_results_and_logs(finished):
    results = json.loads((finished / "test_results.json").read_text())
    assert results.keys() == METRICS | {"zero_shot"} | {f"{side}_{key}" for side in ("i2t", "t2i")
                                       for key in ("map_at_r", "r_precision")}
    state = checkpoint.read(finished / "checkpoint.pth.tar")
    assert (state["epoch"], state["step"], state["global_step"]) == (3, 0, 21)
    assert int((state["bank"]["image_ids"] >= 0).sum()) == 40
    assert state["best_rsum"] >= checkpoint.read(finished / "model_best.pth.tar")["best_rsum"]
    tags = events(finished)
    assert tags["val/rsum"] == [0, 3, 6, 7, 10, 13, 14, 17, 20, 21]
    assert tags["train/loss"] == list(range(3, 22, 3))
    # What only FNE can tell starts with its epochs, after step 7.
    assert tags["train/posterior_of_drawn"][0] == 9 and "train/cut_share" in tags
    assert {"train/learning_rate", "train/gradient_norm", "train/photos_per_second", "bank/fill",
            "train/false_negative_share", "statistics/positive_mean",
            "statistics/negative_std"} <= tags.keys()


def test_the_warm_up_leaves_the_bank_alone(data, tmp_path):
    train.main(command(data, tmp_path, "--num_epochs", "1"))
    state = checkpoint.read(tmp_path / "checkpoint.pth.tar")
    assert (state["bank"]["image_ids"] == -100).all() and state["bank"]["pointer"] == 0


@pytest.mark.parametrize("more", [
    ["--loss", "triplet", "--lr_update", "1"], ["--loss", "infonce", "--grad_clip", "0"],
    ["--freeze", "image", "--text_pooling", "padded"], ["--freeze", "text", "--lr_warmup", "3"],
    ["--freeze", "both", "--head", "mlp"], ["--freeze", "both", "--augment", "published"],
    ["--image_encoder", "small-vit", "--augment", "published", "--num_epochs", "1"],
])
def test_every_way_of_training_runs_and_can_be_tested(data, tmp_path, more):
    arguments = command(data, tmp_path, "--num_epochs", "2", *more)
    train.main(arguments)
    first = (tmp_path / "test_results.json").read_text()
    (tmp_path / "test_results.json").unlink()
    train.main([*arguments, "--test"])
    assert (tmp_path / "test_results.json").read_text() == first


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_frozen_encoder_stays_and_its_projection_learns(data, tmp_path, side):
    options, _ = parse("", command(data, tmp_path, "--freeze", side))
    torch.manual_seed(options.seed)
    tokenizer = load_tokenizer(options.text_encoder, options.vocab)
    before = build_model(options, tokenizer).state_dict()
    train.main(command(data, tmp_path, "--freeze", side))
    state = checkpoint.read(tmp_path / "checkpoint.pth.tar")
    changed = {key for key, value in state["model"].items() if not torch.equal(value, before[key])}
    assert not any(key.startswith(f"{side}_encoder") for key in changed)
    other = "text" if side == "image" else "image"
    assert f"{side}_projection.weight" in changed
    assert any(key.startswith(f"{other}_encoder") for key in changed)


def spoil(name):
    """How a user's data folder can be wrong; each takes the folder."""
    def edit(folder, change):
        path = folder / "shapes_train.json"
        records = json.loads(path.read_text())
        change(records)
        path.write_text(json.dumps(records))

    def cut_short(folder):
        photo = folder / "images" / "val_00003.png"
        photo.write_bytes(photo.read_bytes()[:200])

    return {
        "shapes_val.json": lambda folder: (folder / "shapes_val.json").write_text("{'a': 1}"),
        "record 3": lambda folder: edit(folder, lambda records: records[3].pop("caption")),
        "record 7": lambda folder: edit(folder, lambda records: records[7].pop("image")),
        "train_00002.png": lambda folder: (folder / "images" / "train_00002.png").unlink(),
        "val_00003.png": cut_short,
        "../../secret.png": lambda folder: edit(
            folder, lambda records: records[0].update(image="../../secret.png")),
        "shapes_test.json": lambda folder: (folder / "shapes_test.json").write_text("[]"),
    }[name]


@pytest.mark.parametrize("named", ["shapes_val.json", "record 3", "record 7", "train_00002.png",
                                   "val_00003.png", "../../secret.png", "shapes_test.json"])
def test_bad_data_ends_in_one_line_before_training(data, tmp_path, capsys, named):
    folder = copy_of(data, tmp_path)
    spoil(named)(folder)
    expect_one_line(command(folder, tmp_path / "run"), named, capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more, named", [
    (["--data_path", "{tmp}/nothing", "--dataset", "flickr8k"], "--data_path"),
    (["--json_path", "{tmp}"], "--json_path"),
    (["--image_encoder", "{tmp}/nothing"], "--image_encoder"),
    (["--text_encoder", "{tmp}/nothing"], "--text_encoder"),
    (["--image_stats", "encoder"], "--image_stats"),
    (["--vocab", "{tmp}/nothing"], "--vocab"),
    (["--embed_size", "0"], "--embed_size"),
    (["--batch_size_train", "1000", "--queue_size", "1000"], "--batch_size_train"),
    (["--queue_size", "8"], "--queue_size"), (["--prior", "1"], "--prior"),
    (["--test"], "--resume"), (["--resume", "{tmp}/nothing"], "--resume"),
])
def test_bad_flags_end_in_one_line(data, tmp_path, capsys, more, named):
    more = [word.format(tmp=tmp_path) for word in more]
    expect_one_line(command(data, tmp_path / "run", *more), named, capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more, named", [
    (["--embed_size", "32"], "--embed_size 32"), (["--loss", "triplet"], "--loss"),
    (["--queue_size", "64"], "--queue_size"), (["--image_encoder", "small-vit"], "--image_encoder"),
])
def test_a_checkpoint_that_does_not_fit_the_flags(finished, capsys, more, named):
    before = contents(finished)
    expect_one_line(["--resume", str(finished / "checkpoint.pth.tar"), *CPU, *more], named, capsys)
    assert contents(finished) == before
