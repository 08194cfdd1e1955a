"""The commands on tar shards: the same bits as on a folder, whatever says what is in a split."""

import json
import shutil

import numpy as np
import pytest
from helpers.runs import CPU, assert_same, command, events, expect_exit, final_state
from helpers.shards import PHOTO, jpeg, pack, write_shard
from helpers.stopping import signal_after
from helpers.together import Processes

import evaluation
import train
from common.flags import flags_of, names_from_checkpoint
from data import check_places, read_split
from inputs.shard_index import FOLDER
from metrics.embeddings import read_embeddings
from scripts import check_data
from training.features import photos_digest
from training.options import TrainOptions, parse

SMALL = ["--dataset", "custom", "--image_encoder", "small-convnext", "--text_encoder", "tiny-bert",
         "--vocab", "vocab/shapes.txt", "--image_res", "64"]


@pytest.fixture(scope="module")
def shards(data, tmp_path_factory):
    """The embedded dataset as shards, whose patterns follow, and its split files as own data."""
    folder = tmp_path_factory.mktemp("shards")
    for part in "train", "val", "test":
        pack(data, part, folder / "tars", 10 if part == "train" else 5, kind="json")
    for part in "train", "val", "test":
        (folder / "splits").mkdir(exist_ok=True)
        shutil.copy(data / f"shapes_{part}.json", folder / "splits" / f"{part}.json")
    return folder


def on_folder(data, shards, folder, *more):
    return command(data, folder, *SMALL, "--json_path", str(shards / "splits"), *more)


def on_shards(shards, folder, *more):
    return command(shards / "tars" / "train-{0..2}.tar", folder, *SMALL, "--val_path",
                   str(shards / "tars" / "val-{0..1}.tar"), "--test_path",
                   str(shards / "tars" / "test-{0..1}.tar"), *more)


def trained(folder):
    """A run's last state, but for where its data lies."""
    state = final_state(folder)
    for name in [name for name, flag in flags_of(TrainOptions).items() if flag.repeat]:
        state["options"].pop(name, None)
    return state


@pytest.fixture(scope="module")
def on_files(data, shards, tmp_path_factory):
    """A run on the folder of photos."""
    folder = tmp_path_factory.mktemp("runs") / "folder"
    train.main(on_folder(data, shards, folder))
    return folder


@pytest.mark.parametrize("workers", ["0", "2"])
def test_training_on_shards_is_training_on_a_folder_to_the_bit(shards, on_files, tmp_path, workers):
    train.main(on_shards(shards, tmp_path / "run", "--workers", workers))
    assert_same(trained(tmp_path / "run"), trained(on_files))
    assert (tmp_path / "run" / "test_results.json").read_text() == (
        on_files / "test_results.json").read_text()


def test_a_run_on_shards_that_was_stopped_goes_on_to_the_bit(shards, on_files, tmp_path,
                                                             monkeypatch, capsys):
    """In the middle of two epochs; with the command that it tells."""
    arguments = on_shards(shards, tmp_path, "--resume", "auto", "--workers", "2")
    for step in 5, 12:
        with monkeypatch.context() as patch:
            signal_after(patch, step)
            line = expect_exit(arguments, 143, capsys, [f"step {step} is done", "'"])
        assert all(f"--{part}_path" in line for part in ("data", "val", "test"))
    train.main(arguments)
    assert_same(trained(tmp_path), trained(on_files))
    assert events(tmp_path).keys() == events(on_files).keys()


def test_two_processes_on_shards_are_two_on_a_folder(data, shards, tmp_path):
    """One of them indexes, the other one waits."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (shards / "tars").glob("*.tar"):
        shutil.copy(path, copy)
    for name, arguments in ("shards", on_shards(shards, tmp_path / "shards_run")), (
            "folder", on_folder(data, shards, tmp_path / "folder_run")):
        arguments = [word.replace(str(shards / "tars"), str(copy)) for word in arguments]
        group = Processes(2, lambda arguments=arguments: train.main(
            [*arguments, "--num_epochs", "2"]), tmp_path / name)
        assert group.statuses() == [0, 0], group.printed()
    assert_same(trained(tmp_path / "shards_run"), trained(tmp_path / "folder_run"))
    assert {path.suffix for path in copy.iterdir()} == {".tar"}  # nothing is written beside them


def test_split_files_name_photos_inside_shards(data, shards, on_files, tmp_path):
    """All of them in the same shards, by bare name, which the split file writes with a folder."""
    files = [(name.name, name.read_bytes()) for name in sorted((data / "images").iterdir())]
    for number in range(3):
        write_shard(tmp_path / f"{number}.tar", files[number::3])
    train.main(command(tmp_path / "{0..2}.tar", tmp_path / "run", *SMALL, "--json_path",
                       str(shards / "splits")))
    assert_same(trained(tmp_path / "run"), trained(on_files))


def test_a_broken_photo_in_a_shard_is_named_and_replaced(shards, tmp_path, capsys):
    """Its end is whole, so that only decoding finds it."""
    copy = shutil.copytree(shards / "tars", tmp_path / "tars")
    split = read_split("custom", "train", copy / "train-{0..2}.tar")
    photo = split.photos[7]
    name = str(photo)
    content = bytearray((copy / "train-0.tar").read_bytes())
    content[photo.offset + 300 : photo.offset + 400] = bytes(100)
    (copy / "train-0.tar").write_bytes(content)
    train.main(on_shards(tmp_path, tmp_path / "run", "--num_epochs", "2"))
    lines = [line for line in capsys.readouterr().err.splitlines() if "decoded" in line]
    assert len(lines) == 1 and f"photo {name}" in lines[0] and "1 bad so far" in lines[0]
    assert final_state(tmp_path / "run")["bad_photos"] == [7]


def test_scores_and_embeddings_and_report_of_shards(data, shards, on_files, tmp_path, capsys):
    """`evaluation.py` takes the shards as --data_path, and finds their photos by the names that it
    saves."""
    best, pattern = str(on_files / "model_best.pth.tar"), shards / "tars" / "test-{0..1}.tar"
    for name, place in ("shards", ["--data_path", str(pattern)]), ("folder", [
            "--data_path", str(data), "--json_path", str(shards / "splits")]):
        evaluation.main([best, *place, "--output", str(tmp_path / f"{name}.json"), "--workers", "0",
                         "--save_embeddings", str(tmp_path / f"{name}.npz"), *CPU])
    assert (tmp_path / "shards.json").read_text() == (tmp_path / "folder.json").read_text()
    ours, theirs = (read_embeddings(tmp_path / f"{name}.npz") for name in ("shards", "folder"))
    assert np.array_equal(ours.image_embeds, theirs.image_embeds)
    assert list(ours.split.images[:2]) == ["test-0.tar/000000.png", "test-0.tar/000001.png"]
    evaluation.main(["--embeddings", str(tmp_path / "shards.npz"), "--data_path", str(pattern),
                     "--report", str(tmp_path / "report")])
    assert "data:image/jpeg" in (tmp_path / "report" / "report.html").read_text()


def test_features_of_photos_in_shards_are_kept_until_a_shard_changes(shards, tmp_path, capsys):
    once = ["--freeze", "image", "--augment", "none", "--num_epochs", "2"]
    copy = shutil.copytree(shards / "tars", tmp_path / "tars")
    for _ in range(2):
        train.main(on_shards(tmp_path, tmp_path / "run", *once))
    assert "features of 24 photos of train as kept" in capsys.readouterr().out
    pattern = copy / "train-{0..2}.tar"
    digests = []
    for _ in range(2):
        split = read_split("custom", "train", pattern)
        digests.append(photos_digest(split.photos, pattern))
        content = (copy / "train-1.tar").read_bytes()
        (copy / "train-1.tar").write_bytes(content)
    assert digests[0] != digests[1]


def test_the_check_reads_shards(shards, tmp_path, capsys):
    """Also what split files name in them, missing or ambiguous."""
    places = [word for part in ("val", "test") for word in (
        f"--{part}_path", str(shards / "tars" / f"{part}-{{0..1}}.tar"))]
    with pytest.raises(SystemExit) as caught:
        check_data.main(["--dataset", "custom", "--data_path",
                         str(shards / "tars" / "train-{0..2}.tar"), *places, "--workers", "0"])
    told = capsys.readouterr().out
    assert caught.value.code == 0 and "every photo can be used" in told, told
    assert "train       24 photos       120 captions" in told
    write_shard(tmp_path / "s" / "0.tar", [(f"{name}.jpg", jpeg(colour)) for name, colour in (
        ("x/a", "red"), ("y/a", "green"), ("b", "blue"))])
    for part, names in ("train", ["x/a", "gone"]), ("val", ["a"]), ("test", ["b"]):
        (tmp_path / f"{part}.json").write_text(json.dumps(
            [{"image": f"{name}.jpg", "caption": "words"} for name in names]))
    with pytest.raises(SystemExit) as caught:
        check_data.main(["--dataset", "custom", "--data_path", str(tmp_path / "s" / "0.tar"),
                         "--json_path", str(tmp_path), "--workers", "0"])
    told = capsys.readouterr().out
    assert caught.value.code == 2 and "2 photos cannot be used" in told
    assert "train: gone.jpg" in told and "val: a.jpg" in told and "ambiguous" in told


# ------------------------------------------------------------------------------------- what is told


def test_one_photo_in_shards_of_two_splits_stops_a_run(shards, tmp_path, capsys):
    """However the shards are named."""
    (tmp_path / "link.tar").symlink_to(shards / "tars" / "train-1.tar")
    arguments = on_shards(shards, tmp_path / "run", "--val_path", str(tmp_path / "link.tar"))
    expect_exit(arguments, 2, capsys, ["10 photos of", "link.tar", "train-{0..2}.tar", "too"])


def test_val_and_test_need_shards_of_their_own(shards, tmp_path, capsys):
    arguments = command(shards / "tars" / "train-{0..2}.tar", tmp_path / "run", *SMALL)
    expect_exit(arguments, 2, capsys, ["val would be", "as train is", "--val_path"])
    same = str(shards / "tars" / "val-0.tar")
    expect_exit([*arguments, "--val_path", same, "--test_path", same], 2, capsys,
                ["test would be", "as val is", "--test_path"])
    expect_exit([*arguments, "--val_path", str(tmp_path / "none")], 2, capsys,
                ["--val_path", "neither a folder of photos nor tar shards"])
    assert not (tmp_path / "run").exists()


def test_the_shards_that_are_trained_on_are_not_tested_for_want_of_a_flag(shards, on_files, capsys):
    arguments = command(shards / "tars" / "train-{0..2}.tar", on_files, *SMALL, "--test")
    expect_exit(arguments, 2, capsys, ["test would be", "as train is", "--test_path"])


def test_val_in_a_folder_goes_with_training_on_shards(data, shards):
    """The columns of its split file are not asked of the shards."""
    options, _ = parse("", ["--dataset", "custom", "--data_path",
                            str(shards / "tars" / "train-{0..2}.tar"), "--json_path",
                            str(shards / "splits"), "--val_path", str(data), "--test_path",
                            str(data), "--image_column", "image"])
    check_places(options)
    assert len(read_split("custom", "train", options.data_path, image_column="image").images)
    assert read_split("custom", "val", data, shards / "splits").photos[0].is_file()


@pytest.mark.parametrize("files, told", [
    ([("a.jpg", PHOTO[:99]), ("a.txt", "x")], ["1 of 3 samples", "a.jpg", "cut short"]),
    ([("a.jpg", PHOTO), ("a.txt", "")], ["1 of 3 samples", "a.jpg", "caption is empty"])])
def test_a_spoilt_sample_is_left_out_of_training_and_refused_in_a_score(
        shards, finished, tmp_path, capsys, files, told):
    good = [(f"{name}.{kind}", content) for name in "bc"
            for kind, content in (("jpg", PHOTO), ("txt", f"a {name}"))]
    path = write_shard(tmp_path / "0.tar", files + good)
    split = read_split("custom", "train", path)
    assert list(split.captions) == ["a b", "a c"]
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "left out 1 photos" in error and "0.tar: a.jpg" in error
    expect_exit([str(finished / "model_best.pth.tar"), "--dataset", "custom", "--data_path",
                 str(path)], 2, capsys, told, evaluation.main)


def test_no_pair_at_all_is_told_with_the_way_out(tmp_path, capsys):
    path = write_shard(tmp_path / "0.tar", [("a.jpg", PHOTO), ("a.json", '{"alt": "x"}')])
    expect_exit(command(path, tmp_path / "run", *SMALL, "--val_path", str(tmp_path), "--test_path",
                        str(tmp_path), "--json_path", str(tmp_path)), 2, capsys,
                ["no photo has a caption", "--caption_column", "1 photos without a caption"])
    assert [*read_split("custom", "train", path, caption_column="alt").captions] == ["x"]


def test_a_few_captions_of_each_photo(tmp_path):
    path = write_shard(tmp_path / "0.tar", [
        ("a.jpg", PHOTO), ("a.json", '["1", "2", "3"]'), ("b.jpg", PHOTO), ("b.txt", "4")])
    split = read_split("custom", "test", path, captions_per_image=2)
    assert list(split.captions) == ["1", "2", "4"] and split.image_of_text.tolist() == [0, 0, 1]


def test_the_index_lies_in_the_cache_once(data, shards, tmp_path):
    """For each shard one, whichever commands and processes have read it."""
    cache = ["--cache", str(tmp_path / "cache")]
    for folder in "a", "b":
        train.main([*on_shards(shards, tmp_path / folder), "--num_epochs", "1", *cache])
    kept = [path.name for path in (tmp_path / "cache" / FOLDER).iterdir() if path.suffix == ".npy"]
    assert sorted(name.rpartition("-")[0] for name in kept) == sorted(
        path.name for path in (shards / "tars").glob("*.tar"))


def test_a_checkpoint_of_shards_tells_no_place(on_files):
    assert not {"val_path", "test_path"} & names_from_checkpoint(TrainOptions)
