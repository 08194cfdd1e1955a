"""Photos that break on the way: named once, counted, replaced, and too many of them stop a run."""

import pytest
import torch
from helpers.photos import break_photos
from helpers.runs import assert_same, command, copy_of, expect_exit, final_state
from helpers.stopping import signal_after

import checkpoint
import train


@pytest.fixture(scope="module")
def spoilt(data, tmp_path_factory):
    folder = copy_of(data, tmp_path_factory.mktemp("spoilt"))
    break_photos(folder, "train_00005.png", "train_00011.png")
    return folder


@pytest.fixture(scope="module")
def finished_on_spoilt(spoilt, tmp_path_factory):
    """The folder of a run on the spoilt photos that was never interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train.main(command(spoilt, folder))
    return folder


def test_a_broken_photo_is_named_once_and_replaced(spoilt, finished_on_spoilt, tmp_path, capsys):
    """By the same one, however many workers look; its captions and its keys never show up."""
    train.main(command(spoilt, tmp_path / "run", "--workers", "2"))
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(lines) == 2 and "2 bad so far" in lines[1]
    for name in "train_00005.png", "train_00011.png":
        assert sum(name in line and "cannot be decoded" in line for line in lines) == 1
    state = final_state(tmp_path / "run")
    assert_same(state, final_state(finished_on_spoilt))
    assert sorted(state["bad_photos"]) == [5, 11]
    assert not torch.isin(state["bank"]["image_ids"], torch.tensor([5, 11])).any()


def test_a_resumed_run_replaces_it_by_the_same(spoilt, finished_on_spoilt, tmp_path, monkeypatch,
                                               capsys):
    arguments = command(spoilt, tmp_path, "--resume", "auto")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        signal_after(patch, 9)
        train.main(arguments)
    assert checkpoint.read(tmp_path / "checkpoint.pth.tar")["bad_photos"]
    capsys.readouterr()
    train.main(arguments)
    assert "cannot be decoded" not in capsys.readouterr().err  # it was named before
    assert_same(final_state(tmp_path), final_state(finished_on_spoilt))


def test_too_many_broken_photos_stop_the_run(spoilt, tmp_path, capsys):
    arguments = command(spoilt, tmp_path / "run", "--max_bad_photos", "0")
    expect_exit(arguments, 2, capsys, [
        "cannot be decoded", "--max_bad_photos 0", "python -m scripts.check_data"])


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_lost_folder_stops_the_run(data, tmp_path, capsys, workers):
    """Nothing can stand in where every photo is broken."""
    folder = copy_of(data, tmp_path)
    break_photos(folder, *(path.name for path in (folder / "images").glob("train_*")))
    expect_exit(command(folder, tmp_path / "run", "--workers", workers), 2, capsys,
                ["train_", "cannot be decoded"])


@pytest.mark.parametrize("more, photo", [
    ([], "val_00003.png"), (["--freeze", "image"], "train_00005.png")])
def test_scores_and_features_kept_for_a_whole_run_need_every_photo(data, tmp_path, capsys, more,
                                                                   photo):
    folder = copy_of(data, tmp_path)
    break_photos(folder, photo)
    expect_exit(command(folder, tmp_path / "run", *more), 2, capsys, [photo, "cannot be decoded"])
