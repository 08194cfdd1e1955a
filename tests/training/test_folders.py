"""A run's folder: nothing of another run is overwritten, and a checkpoint decides no path."""

import os
import shutil
import zipfile

import pytest
import torch
from helpers.runs import command, contents, expect_exit, final_state
from helpers.stopping import in_a_child, status_of

import checkpoint
import evaluation
import train
from common.errors import InputError
from training import storage

NEWEST, BEST = storage.NEWEST, storage.BEST


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run, to be gone on with."""
    return shutil.copytree(finished, tmp_path / "run")


def rewrite(path, change):
    state = checkpoint.read(path)
    state = {**state, "options": dict(state["options"])}  # the tensors stay mapped
    change(state)
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


def go_on(path, data, *more):
    return ["--resume", str(path), "--data_path", str(data), "--num_epochs", "4", "--device", "cpu",
            *more]


@pytest.mark.parametrize("name", ["save_embeddings", "output", "report", "embeddings", "resume",
                                  "logger_name", "checkpoint", "judgements", "data_path",
                                  "json_path"])
def test_a_checkpoint_chooses_no_path(run, data, tmp_path, name):
    target = tmp_path / "precious"
    target.write_text("untouched")
    rewrite(run / NEWEST, lambda state: state["options"].update({name: str(target)}))
    evaluation.main([str(run / NEWEST), "--data_path", str(data), "--device", "cpu"])
    assert target.read_text() == "untouched"


@pytest.mark.parametrize("name, value", [("follow_links", True), ("split", "train"),
                                         ("quiet", True), ("test", True), ("workers", 7)])
def test_a_checkpoint_gives_no_permission_and_no_command(run, name, value):
    rewrite(run / NEWEST, lambda state: state["options"].update({name: value}))
    assert name not in checkpoint.stored_options(checkpoint.read(run / NEWEST))


def test_without_a_folder_of_photos_one_is_asked_for(run, capsys):
    """Which the checkpoint may know, but does not decide."""
    rewrite(run / NEWEST, lambda state: state["options"].update(dataset="flickr"))
    expect_exit([str(run / NEWEST)], 2, capsys, ["--data_path"], evaluation.main)


def test_going_on_over_another_run_is_refused(run, data, tmp_path, capsys):
    other = tmp_path / "other"
    train.main(command(data, other, "--num_epochs", "1", "--seed", "5"))
    before = contents(other)
    expect_exit(go_on(run / NEWEST, data, "--logger_name", str(other)), 2, capsys,
                [f"--logger_name {other} holds another run"])
    assert {path: path.read_bytes() for path in before} == before
    expect_exit([*go_on(run / NEWEST, data, "--logger_name", str(other)), "--test"], 2, capsys,
                ["holds another run"])


@pytest.mark.parametrize("place", ["run", "moved", "previous_1"])
def test_a_run_goes_on_where_its_checkpoint_lies(run, data, finished, place):
    """Copied, moved, or moved aside; what the checkpoint remembers of its folder counts nothing."""
    folder = run.parent / place if place == "moved" else run / place if place != "run" else run
    if folder != run:
        files = list(run.iterdir())
        folder.mkdir()
        for path in files:
            path.rename(folder / path.name)
    before = contents(finished)
    train.main(go_on(folder / NEWEST, data))
    assert checkpoint.read(folder / NEWEST)["epoch"] == 4
    assert contents(finished) == before
    if place == "previous_1":
        assert not (run / NEWEST).exists()


def test_a_run_that_goes_on_elsewhere_brings_its_best_along(run, data, tmp_path):
    """Where it is not beaten, it is what is tested at the end."""
    rewrite(run / NEWEST, lambda state: state.update(best_rsum=599.0))
    best = (run / BEST).read_bytes()
    new = tmp_path / "new"
    train.main(go_on(run / NEWEST, data, "--logger_name", str(new)))
    assert (new / BEST).read_bytes() == best
    assert (new / storage.RESULTS).read_text() == (run / storage.RESULTS).read_text()
    assert checkpoint.read(run / NEWEST)["epoch"] == 3  # and the old folder is as it was


def test_a_run_without_its_best_finds_another(run, data, capsys):
    rewrite(run / NEWEST, lambda state: state.update(best_rsum=599.0))
    (run / BEST).unlink()
    train.main(go_on(run / NEWEST, data))
    assert "without its best checkpoint" in capsys.readouterr().err
    assert 0 <= checkpoint.read(run / BEST)["best_rsum"] < 599


# -------------------------------------------------------------------------------------------- locks


def test_two_runs_in_one_folder(data, tmp_path, capsys):
    """The second ends in a line that names the first; the first ends as if alone."""
    ready, going = os.pipe()
    hold, let_go = os.pipe()

    def first():
        step = train.training_step

        def training_step(run, batch):
            if run.global_step == 2:
                os.write(going, b"x")
                os.read(hold, 1)
            return step(run, batch)

        train.training_step = training_step
        train.main(command(data, tmp_path / "run"))

    child = in_a_child(first)
    os.read(ready, 1)
    expect_exit(command(data, tmp_path / "run"), 2, capsys, [f"process {child} trains in"])
    expect_exit(command(data, tmp_path / "run", "--resume", "auto"), 2, capsys, ["trains in"])
    os.write(let_go, b"x")
    assert status_of(child) == 0
    assert final_state(tmp_path / "run")["epoch"] == 3
    assert not (tmp_path / "run" / "previous_1").exists()


def test_a_lock_is_gone_with_its_process(tmp_path):
    def take():
        storage.FolderLock().take(tmp_path)
        os.kill(os.getpid(), 9)

    assert status_of(in_a_child(take)) == -9
    with storage.FolderLock() as lock:
        lock.take(tmp_path)
        lock.take(tmp_path)
        assert lock.file is not None


def test_a_folder_that_is_not_there_needs_no_lock(tmp_path):
    with storage.FolderLock() as lock:
        lock.take(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


# --------------------------------------------------------------------------------------- permission


def test_permission_is_not_damage(run, data, monkeypatch, capsys):
    """A newest checkpoint that may not be read now is not replaced from an older one."""
    def refused(path, *arguments, **keywords):
        if str(path).endswith(NEWEST):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, *arguments, **keywords)

    before, plain = contents(run), open
    monkeypatch.setattr("builtins.open", refused)
    expect_exit([*command(data, run), "--resume", "auto"], 2, capsys,
                [NEWEST, "cannot be read", "Permission denied"])
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in before} == before


def test_a_compressed_checkpoint_is_refused(run):
    """Its weights would be mapped as they lie in the file, packed."""
    with zipfile.ZipFile(run / NEWEST) as old, zipfile.ZipFile(
            run / "packed.pth.tar", "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    with pytest.raises(InputError, match="no checkpoint, or is cut short or damaged"):
        checkpoint.read(run / "packed.pth.tar")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "bomb.pth.tar"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(50_000_000))
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda file: pytest.fail("it was unpacked"))
    with pytest.raises(InputError, match="damaged"):
        checkpoint.read(path)
