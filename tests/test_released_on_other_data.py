"""A released checkpoint, fine-tuned on another data set than its own."""


import pytest
import torch
from helpers.paths import ROOT
from helpers.photos import released_of_six, six_photos
from helpers.runs import expect_exit

import checkpoint
import train
from training.options import parse

FOLDER = ROOT / "tests" / "golden" / "released_checkpoint"
RELEASED = FOLDER / "model_best.pth.tar"  # of dataset flickr, with a bank of 64 slots, all full
PREFIX = {"flickr": "flickr30k", "mscoco": "coco", "flickr8k": "flickr8k"}


@pytest.fixture
def photos(tmp_path):
    return six_photos(tmp_path / "images", *PREFIX.values())


def command(photos, folder, *more):
    return ["--data_path", str(photos), "--resume", str(RELEASED), "--image_encoder",
            str(FOLDER / "image_encoder"), "--text_encoder", str(FOLDER / "text_encoder"),
            "--workers", "0", "--logger_name", str(folder), "--num_epochs", "1",
            "--batch_size_train", "4", "--no_figures", *more]


@pytest.mark.parametrize("dataset", ["flickr", "mscoco"])
def test_the_bank_comes_along_on_its_own_data_set_alone(photos, tmp_path, capsys, dataset):
    """Its numbers are of Flickr30K's photos: on others they would exclude what they must not."""
    path = released_of_six(RELEASED, tmp_path / "six.pth.tar")
    train.main(command(photos, tmp_path / "run", "--dataset", dataset, "--resume", path))
    state = checkpoint.read(tmp_path / "run" / "checkpoint.pth.tar")
    released = checkpoint.read(RELEASED)["model"][0]
    theirs = (released["image_queue"].T[:, None] == state["bank"]["image_keys"]).all(2).any(0)
    ids, told = state["bank"]["image_ids"], " ".join(capsys.readouterr().out.split())
    assert state["options"]["dataset"] == dataset and state["global_step"] == 3
    if dataset == "flickr":
        assert int((ids >= 0).sum()) == 64 and int(theirs.sum()) == 52  # 12 were replaced
        assert "weights, momentum weights and memory bank carry over" in told
    else:
        assert int((ids >= 0).sum()) == 12 and not theirs.any()
        assert set(ids[:12].tolist()) <= set(range(6)) and int(state["bank"]["pointer"]) == 12
        assert "the memory bank, of flickr, starts empty" in told
    momentum = state["momentum_model"]["text_encoder.embeddings.word_embeddings.weight"]
    before = released["text_encoder_m.embeddings.word_embeddings.weight"]
    online = released["text_encoder.embeddings.word_embeddings.weight"]
    assert (momentum - before).abs().max() < (online - before).abs().max()


def test_a_bank_of_other_photos_does_not_come_along(photos, tmp_path, capsys):
    """Of the same data set by name, but of 96 photos where the split has six."""
    train.main(command(photos, tmp_path / "run", "--dataset", "flickr"))
    told = " ".join(capsys.readouterr().out.split())
    assert "the memory bank, of other photos than the training split's, starts empty" in told
    ids = checkpoint.read(tmp_path / "run" / "checkpoint.pth.tar")["bank"]["image_ids"]
    assert sorted(set(ids.tolist())) == [-100, *range(6)] and int((ids >= 0).sum()) == 12


def test_such_a_run_goes_on_and_is_tested_as_any_other(photos, tmp_path, capsys):
    train.main(command(photos, tmp_path / "run", "--dataset", "mscoco"))
    own = ["--data_path", str(photos), "--workers", "0"]
    path = tmp_path / "run" / "checkpoint.pth.tar"
    train.main(["--resume", str(path), "--num_epochs", "2", *own])
    state = checkpoint.read(path)
    assert state["global_step"] == 6 and int((state["bank"]["image_ids"] >= 0).sum()) == 24
    expect_exit(["--resume", str(path), "--dataset", "flickr", *own], 2, capsys,
                ["--dataset flickr does not fit"])


def test_other_things_than_the_data_set_stay_fixed(photos, tmp_path, capsys):
    for more in ["--queue_size", "128"], ["--loss", "triplet"], ["--embed_size", "8"]:
        expect_exit(command(photos, tmp_path / "run", "--dataset", "mscoco", *more), 2, capsys,
                    [f"{more[0]} {more[1]} does not fit"])


def test_a_presets_encoders_are_not_those_of_a_released_checkpoint(photos):
    """Flickr8k's preset trains a small text encoder; its weights are BERT's."""
    options, given = parse("", ["--data_path", str(photos), "--dataset", "flickr8k", "--resume",
                                str(RELEASED)])
    assert options.text_encoder == "small-bert"
    checkpoint.merge_options(options, given, checkpoint.read(RELEASED), RELEASED)
    assert (options.dataset, options.text_encoder) == ("flickr8k", "bert-base-uncased")
    assert options.batch_size_train == 128  # the rest of the preset holds
    options, given = parse("", command(photos, "run", "--dataset", "flickr8k"))
    checkpoint.merge_options(options, given, checkpoint.read(RELEASED), RELEASED)
    assert options.text_encoder == str(FOLDER / "text_encoder")


def test_a_bank_that_is_not_whole_matters_only_where_it_is_used(photos, tmp_path, capsys):
    state = checkpoint.read(RELEASED)
    state["model"][0] = {key: value for key, value in state["model"][0].items()
                         if key != "idx_queue"}
    torch.save(state, tmp_path / "cut.pth.tar")
    for dataset in "flickr", "mscoco":
        arguments = command(photos, tmp_path / dataset, "--dataset", dataset)
        arguments[arguments.index("--resume") + 1] = str(tmp_path / "cut.pth.tar")
        if dataset == "flickr":
            expect_exit(arguments, 2, capsys, ["without a whole memory bank"])
        else:
            train.main(arguments)
