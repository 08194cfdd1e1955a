"""A frozen encoder's features: kept in the run's folder, and used only where they still hold."""

import os
import shutil

import pytest
import torch
from helpers.runs import assert_same, command, copy_of, expect_exit, final_state
from helpers.stopping import signal_after

import checkpoint
import train
from training import features
from training.features import FEATURES


def frozen(data, folder, *more):
    return command(data, folder, "--freeze", "image", "--num_epochs", "2", *more)


@pytest.fixture
def encoded(monkeypatch):
    """How many photos were encoded for each call that makes features."""
    calls, encode = [], train.encode_photos

    def counted(model, photos, options, project=True):
        calls.append(len(photos))
        return encode(model, photos, options, project)

    monkeypatch.setattr(train, "encode_photos", counted)
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
    assert encoded == [24] and (tmp_path / FEATURES).is_file()
    train.main(arguments)
    assert encoded == [24]
    assert f"features of 24 photos as kept in {tmp_path / FEATURES}" in capsys.readouterr().out
    left, right = final_state(tmp_path), final_state(finished)
    assert_same(left, right)


def test_a_run_that_goes_on_in_a_new_folder_finds_and_keeps_them(data, tmp_path, monkeypatch,
                                                                 capsys, encoded):
    stopped(data, tmp_path / "old", monkeypatch, capsys)
    train.main(frozen(data, tmp_path / "new", "--resume",
                      str(tmp_path / "old" / "checkpoint.pth.tar")))
    assert encoded == [24]
    assert (tmp_path / "new" / FEATURES).read_bytes() == (
        tmp_path / "old" / FEATURES).read_bytes()


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
def test_a_file_that_is_not_whole_is_made_anew(data, finished, stopped_once, tmp_path, capsys,
                                               encoded, damage):
    shutil.copytree(stopped_once, tmp_path, dirs_exist_ok=True)
    whole = (tmp_path / FEATURES).read_bytes()
    DAMAGE[damage](tmp_path / FEATURES)
    capsys.readouterr()
    train.main(frozen(data, tmp_path, "--resume", "auto"))
    assert encoded == [24]
    output = capsys.readouterr()
    assert "and not used" in output.out and output.err == ""
    again = features.storage.load(tmp_path / FEATURES)
    (tmp_path / "whole.pt").write_bytes(whole)
    assert torch.equal(again["features"], features.storage.load(tmp_path / "whole.pt")["features"])
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
    (tmp_path / FEATURES).unlink()
    (tmp_path / "theirs").write_text("features")
    make(tmp_path / FEATURES)
    before = [path.lstat() for path in (tmp_path / FEATURES, tmp_path / "theirs")]
    capsys.readouterr()
    train.main(frozen(data, tmp_path, "--resume", "auto"))
    assert encoded == [24] and FEATURES in capsys.readouterr().err
    after = [path.lstat() for path in (tmp_path / FEATURES, tmp_path / "theirs")]
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


def test_a_photo_that_changed_makes_them_stale(data, tmp_path, capsys, encoded):
    own = copy_of(data, tmp_path)
    train.main(frozen(own, tmp_path / "run"))
    train.main(frozen(own, tmp_path / "run"))  # a fresh start: the photos are the same
    assert encoded == [24]
    photo = own / "images" / "train_00003.png"
    photo.write_bytes((own / "images" / "train_00004.png").read_bytes())
    train.main(frozen(own, tmp_path / "run"))
    assert encoded == [24, 24] and "other photos or another encoder" in capsys.readouterr().out


@pytest.mark.parametrize("more", [["--seed", "2"], ["--precision", "bf16"],
                                  ["--image_res", "48"]])
def test_another_encoder_or_another_way_to_read_makes_them_stale(data, tmp_path, encoded, more):
    """A built-in encoder's weights follow from the seed."""
    train.main(frozen(data, tmp_path))
    first = features.storage.load(tmp_path / FEATURES)["features"]
    train.main(frozen(data, tmp_path, *more))
    assert encoded == [24, 24]
    assert not torch.equal(features.storage.load(tmp_path / FEATURES)["features"], first)


def test_what_they_do_not_depend_on_leaves_them(data, tmp_path, encoded):
    train.main(frozen(data, tmp_path))
    train.main(frozen(data, tmp_path, "--learning_rate", "1e-3", "--tau", "1", "--num_epochs", "1"))
    assert encoded == [24]


def test_a_full_disk_costs_the_features_and_not_the_run(data, tmp_path, monkeypatch, capsys):
    write = features.files.write

    def full(path, content, what):
        if path.name == FEATURES:
            raise features.InputError(f"{what} {path} cannot be written (no room)")
        return write(path, content, what)

    monkeypatch.setattr(features.files, "write", full)
    train.main(frozen(data, tmp_path))
    assert capsys.readouterr().err.count("photo features") == 1
    assert checkpoint.read(tmp_path / "checkpoint.pth.tar")["global_step"] == 14


def test_nothing_is_kept_where_photos_are_seen_again(data, tmp_path):
    train.main(frozen(data, tmp_path, "--augment", "published"))
    assert not (tmp_path / FEATURES).exists()
