"""Frozen encoders' features: kept in the run's folder, and used only where they still hold."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from helpers.captions import word_tokenizer
from helpers.runs import assert_same, command, copy_of, expect_exit, final_state
from helpers.stopping import signal_after

import checkpoint
import data as data_module
import train
from inputs.captions import Captions
from training import features

PHOTOS, CAPTIONS = "train_photo_features.pt", "train_caption_features.pt"
# Photos and captions of train, val and test, in the order in which they are encoded.
ALL = [24, 8, 8, 120, 40, 40]


def frozen(data, folder, *more):
    return command(data, folder, "--freeze", "both", "--num_epochs", "2", *more)


@pytest.fixture
def encoded(monkeypatch):
    """How many photos or captions were encoded by each call that makes features."""
    calls = []

    def counted(encode):
        def call(model, items, *rest, **settings):
            calls.append(len(items))
            return encode(model, items, *rest, **settings)
        return call

    for name in "encode_photos", "encode_captions":
        monkeypatch.setattr(train, name, counted(getattr(train, name)))
    return calls


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train.main(frozen(data, folder))
    return folder


def stopped(data, folder, monkeypatch, capsys):
    """A run that was stopped in its third step; its arguments."""
    arguments = frozen(data, folder, "--resume", "auto")
    with monkeypatch.context() as patch:
        signal_after(patch, 3)
        expect_exit(arguments, 143, capsys, ["step 3 is done"])
    return arguments


def test_a_resumed_run_does_not_make_them_anew(data, finished, tmp_path, monkeypatch, capsys,
                                               encoded):
    arguments = stopped(data, tmp_path, monkeypatch, capsys)
    assert encoded == ALL and len(list(tmp_path.glob("*_features.pt"))) == 6
    train.main(arguments)
    assert encoded == ALL
    out = capsys.readouterr().out
    assert f"features of 24 photos of train as kept in {tmp_path / PHOTOS}" in out
    assert f"features of 120 captions of train as kept in {tmp_path / CAPTIONS}" in out
    assert_same(final_state(tmp_path), final_state(finished))


def test_a_run_that_goes_on_in_a_new_folder_finds_and_keeps_them(data, tmp_path, monkeypatch,
                                                                 capsys, encoded):
    stopped(data, tmp_path / "old", monkeypatch, capsys)
    train.main(frozen(data, tmp_path / "new", "--resume",
                      str(tmp_path / "old" / "checkpoint.pth.tar")))
    assert encoded == ALL
    for path in (tmp_path / "old").glob("*_features.pt"):
        assert (tmp_path / "new" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("loss", ["fne", "triplet", "infonce", "sigmoid"])
def test_training_on_them_is_training_with_encoding_in_each_step(data, tmp_path, monkeypatch, loss):
    """Captions are padded to another length in each batch, so that their features differ by
    rounding. At the published learning rate Adam makes no large step of that."""
    def trained(folder):
        train.main(frozen(data, folder, "--loss", loss, "--learning_rate", "2e-5"))
        return checkpoint.read(folder / "checkpoint.pth.tar")

    kept = trained(tmp_path / "kept")
    for name in "sees_photos_once", "sees_captions_once":
        for module in data_module, features:
            monkeypatch.setattr(module, name, lambda options: False)
    encoded = trained(tmp_path / "encoded")
    assert not (tmp_path / "encoded" / PHOTOS).exists()
    start = checkpoint.model_for_training(
        train.parse("", frozen(data, tmp_path))[0], None, None,
        train.tokenizer_of(train.parse("", frozen(data, tmp_path))[0])).state_dict()
    for name, value in kept["model"].items():
        torch.testing.assert_close(value, encoded["model"][name], rtol=0, atol=1e-6)
        assert torch.equal(value, start[name]) == ("projection" not in name)
    assert kept["best_rsum"] == encoded["best_rsum"]


@pytest.mark.parametrize("flags, wanted", [
    ("image --augment none", [24, 8, 8]), ("image --augment published", [8, 8]),
    ("text --augment published", [120, 40, 40]),
    ("both --augment published", [8, 8, 120, 40, 40])])
def test_each_frozen_side_is_encoded_once_but_for_augmented_photos(data, tmp_path, encoded, flags,
                                                                   wanted):
    train.main(frozen(data, tmp_path, "--freeze", *flags.split()))
    assert encoded == wanted
    assert len(list(tmp_path.glob("*_features.pt"))) == len(wanted)


def test_no_validation_encodes_anything(data, tmp_path, monkeypatch):
    """The best checkpoint is tested from features too; --test encodes again, and finds the same."""
    calls = []
    for name in "image_features", "text_features":
        whole = getattr(train.checkpoint.DualEncoder, name)

        def counted(self, *inputs, whole=whole):
            if len(inputs[0]) > 2:  # a model that is built tries its text encoder on two captions
                calls.append(len(inputs[0]))
            return whole(self, *inputs)

        monkeypatch.setattr(train.checkpoint.DualEncoder, name, counted)
    train.main(frozen(data, tmp_path))
    assert calls == ALL
    first = json.loads((tmp_path / "test_results.json").read_text())
    train.main(frozen(data, tmp_path, "--test"))
    assert calls == [*ALL, 8, 40]
    assert json.loads((tmp_path / "test_results.json").read_text()) == first


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def with_state(change):
    def edit(path):
        state = dict(torch.load(path))
        change(state)
        torch.save(state, path)
    return edit


DAMAGE = {
    "cut short": cut_short, "a bit": flip_a_bit, "empty": lambda path: path.write_bytes(b""),
    "no features": with_state(lambda state: state.pop("features")),
    "nan": with_state(lambda state: state["features"].fill_(torch.nan)),
    "fewer": with_state(lambda state: state.update(features=state["features"][1:].clone())),
    "flat": with_state(lambda state: state.update(features=state["features"].flatten())),
    "half": with_state(lambda state: state.update(features=state["features"].half())),
    "other key": with_state(lambda state: state["key"].update(bf16=True)),
}


@pytest.fixture(scope="module")
def stopped_once(data, tmp_path_factory):
    """The folder of a run that was stopped in its third step, for all to copy."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        signal_after(patch, 3)
        train.main(frozen(data, folder))
    return folder


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name, count", [(PHOTOS, 24), (CAPTIONS, 120)])
def test_a_file_that_is_not_whole_is_made_anew(data, finished, stopped_once, tmp_path, capsys,
                                               encoded, damage, name, count):
    shutil.copytree(stopped_once, tmp_path, dirs_exist_ok=True)
    wanted = torch.load(tmp_path / name)["features"]
    DAMAGE[damage](tmp_path / name)
    capsys.readouterr()
    train.main(frozen(data, tmp_path, "--resume", "auto"))
    assert encoded == [count]
    output = capsys.readouterr()
    assert f"{name} is" in output.out and "and not used" in output.out and output.err == ""
    assert torch.equal(features.storage.load(tmp_path / name)["features"], wanted)
    assert_same(final_state(tmp_path), final_state(finished))


@pytest.mark.parametrize("make", [
    lambda path: path.write_text("features"), lambda path: path.mkdir(), os.mkfifo,
    lambda path: torch.save([torch.zeros(24, 192)], path),
    lambda path: torch.save({"features": torch.zeros(24, 192)}, path),
    lambda path: path.symlink_to(path.with_name("theirs"))])
def test_features_of_somebody_else_are_not_overwritten(data, finished, stopped_once, tmp_path,
                                                       capsys, encoded, make):
    """The run goes on without keeping its own, and says so."""
    shutil.copytree(stopped_once, tmp_path, dirs_exist_ok=True)
    (tmp_path / PHOTOS).unlink()
    (tmp_path / "theirs").write_text("features")
    make(tmp_path / PHOTOS)
    before = [path.lstat() for path in (tmp_path / PHOTOS, tmp_path / "theirs")]
    capsys.readouterr()
    train.main(frozen(data, tmp_path, "--resume", "auto"))
    assert encoded == [24] and PHOTOS in capsys.readouterr().err
    after = [path.lstat() for path in (tmp_path / PHOTOS, tmp_path / "theirs")]
    assert [(state.st_ino, state.st_mtime_ns) for state in after] == [
        (state.st_ino, state.st_mtime_ns) for state in before]
    assert_same(final_state(tmp_path), final_state(finished))


@pytest.mark.parametrize("size, time, name", [(0, 0, 0), (8, 0, 0), (0, 10**9, 0), (0, 0, 1)])
def test_they_depend_on_each_photos_size_time_and_name(tmp_path, size, time, name):
    """All else being equal; no photo is read."""
    photos = [tmp_path / f"{number}.png" for number in range(3)]
    for path in photos:
        path.write_bytes(b"x" * 100)
        os.utime(path, ns=(0, 10**18))
    before = features.photos_digest(photos, tmp_path)
    photos[1].write_bytes(b"x" * (100 + size))
    os.utime(photos[1], ns=(0, 10**18 + time))
    if name:
        photos[1] = photos[1].rename(tmp_path / "other.png")
    same = features.photos_digest(photos, tmp_path) == before
    assert same == (size == time == name == 0)


def test_they_depend_on_the_tokens_of_each_caption_and_on_the_padding():
    def digest(*texts, padded=False):
        return features.captions_digest(Captions(texts, word_tokenizer(), 30, 12, padded))

    before = digest("a red", "cat dog")
    assert digest("a red", "cat dog") == before
    others = [digest("a red", "cat runs"), digest("cat dog", "a red"), digest("a", "red cat dog"),
              digest("a red"), digest("a red", "cat dog", padded=True)]
    assert len({before, *others}) == 6


def test_a_photo_that_changed_makes_them_stale(data, tmp_path, capsys, encoded):
    own = copy_of(data, tmp_path)
    train.main(frozen(own, tmp_path / "run"))
    train.main(frozen(own, tmp_path / "run"))  # a fresh start: photos and captions are the same
    assert encoded == ALL
    photo = own / "images" / "train_00003.png"
    photo.write_bytes((own / "images" / "train_00004.png").read_bytes())
    train.main(frozen(own, tmp_path / "run"))
    assert encoded == [*ALL, 24]
    assert f"{PHOTOS} is of other photos" in capsys.readouterr().out


def test_a_caption_that_changed_makes_them_stale(data, tmp_path, capsys, encoded):
    own = copy_of(data, tmp_path)
    train.main(frozen(own, tmp_path / "run"))
    path = own / "shapes_train.json"
    records = json.loads(path.read_text())
    records[3]["caption"] = "a small red circle above a large green star"
    path.write_text(json.dumps(records))
    train.main(frozen(own, tmp_path / "run"))
    assert encoded == [*ALL, 120]
    assert f"{CAPTIONS} is of other captions" in capsys.readouterr().out


@pytest.mark.parametrize("more, wanted", [
    (["--seed", "2"], ALL), (["--precision", "bf16"], ALL), (["--image_res", "48"], ALL[:3]),
    (["--max_tokens", "6"], ALL[3:]), (["--text_pooling", "cls"], ALL[3:])])
def test_another_encoder_or_another_way_to_read_makes_them_stale(data, tmp_path, encoded, more,
                                                                 wanted):
    """A built-in encoder's weights follow from the seed."""
    train.main(frozen(data, tmp_path))
    names = [name for name, count in zip((PHOTOS, CAPTIONS), (24, 120)) if count in wanted]
    first = [torch.load(tmp_path / name)["features"] for name in names]
    train.main(frozen(data, tmp_path, *more))
    assert encoded == [*ALL, *wanted]
    for name, before in zip(names, first):
        assert not np.array_equal(torch.load(tmp_path / name)["features"], before)


def test_what_they_do_not_depend_on_leaves_them(data, tmp_path, encoded):
    train.main(frozen(data, tmp_path))
    train.main(frozen(data, tmp_path, "--learning_rate", "1e-3", "--tau", "1", "--num_epochs", "1",
                      "--batch_size_train", "8"))
    assert encoded == ALL


def test_a_full_disk_costs_the_features_and_not_the_run(data, tmp_path, monkeypatch, capsys):
    write = features.files.write

    def full(path, content, what):
        if path.name.endswith("_features.pt"):
            raise features.InputError(f"{what} {path} cannot be written (no room)")
        return write(path, content, what)

    monkeypatch.setattr(features.files, "write", full)
    train.main(frozen(data, tmp_path))
    assert capsys.readouterr().err.count("features.pt cannot be written") == 6
    assert checkpoint.read(tmp_path / "checkpoint.pth.tar")["global_step"] == 14
