"""What a new user meets: what a run says at its start and on the way, and where it writes."""

import io
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.runs import command, expect_exit

import checkpoint
import train
from common.errors import InputError
from common.presets import RECIPES
from figures.tensorboard import validation_lines
from training import outline, schedule
from training.objectives import objective_class
from training.objectives.base import phases
from training.options import parse
from training.run import Run

ALL_NEGATIVES, HARDEST_NEGATIVE = "triplet, all negatives", "triplet, hardest negative"
METRICS = {f"{side}_r{k}": float(k) for side in ("i2t", "t2i") for k in (1, 5, 10)}


def options(*argv):
    return parse("", ["--data_path", "photos", *argv])[0]


def lines_of(capsys, arguments):
    train.main(arguments)
    output = capsys.readouterr()
    return output.out.splitlines(), output.err


@pytest.fixture(scope="module")
def told(data, tmp_path_factory):
    """Lines of a run of three epochs: one of warm-up, two of FNE; and its folder."""
    folder = tmp_path_factory.mktemp("runs") / "told"
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        train.main(command(data, folder))
    return out.getvalue().splitlines(), folder


# ------------------------------------------------------------------------------------ at the start


def test_the_start_tells_what_lies_ahead(told, data):
    lines, folder = told
    start = lines[:next(n for n, line in enumerate(lines) if line.startswith("before the first"))]
    assert start[0] == "data: shapes, 120 pairs of 24 photos in"
    assert start[1] == f"  {data}"
    text = " ".join(" ".join(start).split())
    assert re.search(r"model: \d\.\d million parameters; on the CPU, 1 thread, encoders in fp32",
                     text)
    assert "steps: 7 of 16 pairs an epoch, 3 epochs, 21 in all" in text
    assert "loss: epochs 1 triplet, all negatives; 2-3 FNE" in text
    assert f"writes to: {folder}" in text


def test_the_start_tells_what_the_preset_changed_and_no_more(told):
    """Not what the command line set otherwise, be it to the preset's own value."""
    text = " ".join(" ".join(told[0]).split())
    preset = text[text.index("preset of shapes: "):text.index("writes to")]
    assert "image_encoder small-convnext" in preset and "prior 0.03" in preset
    for given in "num_epochs", "queue_size", "batch_size_train", "embed_size", "data_path":
        assert given not in preset


def test_a_preset_that_changes_nothing_is_not_told():
    plain = options("--image_fit", "squash", "--captions", "published")
    run = SimpleNamespace(options=plain, steps_per_epoch=5, photos=[], captions=10, device=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outline, "parameters_text", lambda run: "a model")
        patch.setattr(outline, "device_text", lambda run: "a device")
        assert not any("preset" in line for line in outline.outline(run, set(), None))


def test_a_borrowed_name_brings_its_preset_along_and_says_so():
    own = options("--dataset", "flickr8k", "--queue_size", "8224", "--image_fit", "squash",
                  "--captions", "published")
    run = SimpleNamespace(options=own, steps_per_epoch=5, photos=[], captions=10,
                          device=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outline, "parameters_text", lambda run: "a model")
        patch.setattr(outline, "device_text", lambda run: "a device")
        text = " ".join(outline.outline(run, {"dataset", "queue_size"}, None))
    assert "preset of flickr8k: text_encoder small-bert, augment none" in text
    assert "queue_size" not in text


def test_the_start_tells_what_the_recipe_changed_and_not_as_the_presets():
    argv = ("--dataset", "flickr8k", "--recipe", "clip", "--lr_warmup", "7", "--image_fit",
            "squash", "--captions", "published")
    run = SimpleNamespace(options=options(*argv), steps_per_epoch=5, photos=[], captions=10,
                          device=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outline, "parameters_text", lambda run: "a model")
        patch.setattr(outline, "device_text", lambda run: "a device")
        lines = outline.outline(run, {"dataset", "recipe", "lr_warmup"}, None)
        resumed = outline.outline(run, {"dataset"}, None)
    [preset] = [line for line in lines if line.startswith("preset of flickr8k: ")]
    [recipe] = [line for line in lines if line.startswith("recipe clip: ")]
    for name in RECIPES["clip"]:
        assert (name in recipe) == (name != "lr_warmup") and name not in preset.replace("\n ", "")
    assert "text_encoder small-bert" in preset and len(resumed) == len(lines)
    assert all(len(line) <= 80 for line in f"{preset}\n{recipe}".splitlines())


def test_all_lines_fit_a_terminal(told):
    """Only a path may be longer; it then has a line to itself."""
    for line in told[0]:
        assert len(line) <= 80 or "/" in line.split()[-1], line


def test_the_result_says_how_far_its_checkpoint_was_trained(told):
    lines, folder = told
    at = lines.index(f"shapes test, {folder / 'model_best.pth.tar'}")
    best = checkpoint.read(folder / "model_best.pth.tar")
    epoch, _ = schedule.position(best["epoch"], best["step"], 7)
    loss = "FNE" if epoch > 1 else "triplet, all negatives"
    assert lines[at + 1] == f"  epoch {epoch}/3, {loss}"


def test_quiet_says_none_of_it(data, tmp_path, capsys):
    lines, error = lines_of(capsys, command(data, tmp_path, "--num_epochs", "2", "--quiet"))
    assert lines[0].startswith("shapes test, ") and error == ""


def test_a_run_without_fne_is_warned_of_even_if_quiet(data, tmp_path, capsys):
    _, error = lines_of(capsys, command(data, tmp_path, "--num_epochs", "1", "--quiet"))
    assert error.count("\n") == 1
    for words in "--num_epochs 1", "--warmup_epochs 1", "FNE never trains", "--num_epochs 2":
        assert words in error


@pytest.mark.parametrize("epochs, loss", [("2", "fne"), ("1", "triplet")])
def test_nobody_else_is_warned(data, tmp_path, capsys, epochs, loss):
    arguments = command(data, tmp_path, "--num_epochs", epochs, "--loss", loss)
    assert lines_of(capsys, arguments)[1] == ""


def test_a_resumed_run_says_where_it_goes_on(data, tmp_path, capsys):
    train.main(command(data, tmp_path, "--num_epochs", "1"))
    capsys.readouterr()
    lines, _ = lines_of(capsys, command(data, tmp_path, "--num_epochs", "2", "--resume", "auto"))
    text = " ".join(" ".join(lines).split())
    assert ("checkpoint.pth.tar: epoch 1/2, step 7/7, FNE comes next" in text
            and "preset of" not in text)
    lines, _ = lines_of(capsys, command(data, tmp_path, "--num_epochs", "2", "--resume", "auto"))
    text = " ".join(" ".join(lines).split())
    assert "epoch 2/2, step 7/7, and only the test is left" in text and "comes next" not in text


# -------------------------------------------------------------------------------------- on the way


def test_a_change_of_phase_has_a_line(told):
    changes = [line for line in told[0] if "from here on" in line]
    assert changes == ["epoch 2/3: from here on FNE"]
    after = told[0][told[0].index(changes[0]) + 1]
    assert after.startswith("epoch 2/3, step 3/7")


def test_a_validation_has_two_lines_that_agree_with_the_bar(told):
    heads = [line for line in told[0] if re.match(r"epoch \d/\d, step|before the first", line)]
    steps = [f"epoch {epoch}/3, step {step}/7" for epoch in (1, 2, 3) for step in (3, 6, 7)]
    assert [line.split(":")[0] for line in heads] == ["before the first step", *steps]
    for head in heads:
        assert re.fullmatch(r"  val R@1/5/10: i2t [\d./]+, t2i [\d./]+",
                            told[0][told[0].index(head) + 1])


def test_the_bar_counts_epochs_likewise(data, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("sys.stdout", screen)
    train.main(command(data, tmp_path, "--num_epochs", "2"))
    frames = [frame for frame in screen.getvalue().split("\r") if frame.startswith("epoch ")]
    assert {frame[:9] for frame in frames} == {"epoch 1/2", "epoch 2/2"}


@pytest.mark.parametrize("epoch, step, told", [
    (0, 0, (1, 0)), (0, 3, (1, 3)), (1, 0, (1, 7)), (1, 6, (2, 6)), (3, 0, (3, 7))])
def test_a_position_is_of_the_last_step(epoch, step, told):
    assert schedule.position(epoch, step, 7) == told


@pytest.mark.parametrize("best, change", [
    (-1.0, "new best"), (150.0, "new best, +20.5"), (180.0, "-9.5 from best"),
    (170.5, "+0.0 from best")])
def test_a_validations_lines(best, change):
    run = SimpleNamespace(global_step=30, position="epoch 3/9, step 4/13", best_rsum=best)
    lines = validation_lines(run, METRICS | {"rsum": 170.5}, 0.25).splitlines()
    assert lines == [f"epoch 3/9, step 4/13: loss 0.2500, rsum 170.5 ({change})",
                     "  val R@1/5/10: i2t 1.0/5.0/10.0, t2i 1.0/5.0/10.0"]
    assert "loss" not in validation_lines(run, METRICS | {"rsum": 170.5}, None)


def test_the_longest_lines_fit():
    """COCO with the published setting: 17,710 steps in each of 25 epochs."""
    own = options("--dataset", "mscoco")
    run = SimpleNamespace(options=own, steps_per_epoch=17_710, epoch=25, step=0,
                          global_step=25 * 17_710, best_rsum=0.0)
    run.position = Run.position.fget(run)
    lines = validation_lines(run, dict.fromkeys(METRICS, 100.0) | {"rsum": 600.0}, 12.3456)
    assert run.position == "epoch 25/25, step 17,710/17,710"
    assert max(map(len, lines.splitlines())) <= 80


@pytest.mark.parametrize("more, found", [
    ([], [(1, 1, ALL_NEGATIVES), (2, 25, "FNE")]),
    (["--max_violation", "--easy_epochs", "2", "--warmup_epochs", "3", "--num_epochs", "4"],
     [(1, 2, ALL_NEGATIVES), (3, 3, HARDEST_NEGATIVE), (4, 4, "FNE")]),
    (["--loss", "infonce", "--num_epochs", "1"], [(1, 1, "InfoNCE")])])
def test_phases_by_epoch(more, found):
    run_options = options(*more)
    objective = objective_class(run_options.loss)
    assert phases(objective, run_options) == found
    for first, last, name in found:
        names = {objective.phase(run_options, epoch - 1) for epoch in range(first, last + 1)}
        assert names == {name}


# ------------------------------------------------------------------------------ where it is written


def test_nothing_is_made_in_the_root_unasked(monkeypatch, capsys):
    monkeypatch.chdir("/")
    error = expect_exit(["--dataset", "shapes"], 2, capsys,
                        ["--data_path", "--logger_name", "/data/shapes", "/runs/shapes_FNE"])
    assert len(error.splitlines()) == 1
    assert not Path("/data/shapes").exists() and not Path("/runs/shapes_FNE").exists()


def test_a_folder_that_is_named_is_never_refused(monkeypatch, tmp_path):
    monkeypatch.chdir("/")
    outline.check_default_places(options("--dataset", "shapes", "--logger_name", str(tmp_path)))
    with pytest.raises(InputError, match="^--logger_name: nothing was named"):
        outline.check_default_places(options("--dataset", "shapes"))


def test_a_current_folder_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    own = parse("", ["--dataset", "shapes"])[0]
    outline.check_default_places(own)
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: (
        Path(path) != tmp_path and allowed(path, mode)))
    with pytest.raises(InputError, match="--data_path and --logger_name: nothing was named"):
        outline.check_default_places(own)
    (tmp_path / "runs").mkdir()  # where there is a place for runs already, it is asked
    with pytest.raises(InputError, match="^--data_path: nothing was named"):
        outline.check_default_places(own)


def test_scoring_names_no_flag_that_it_lacks(data, tmp_path, capsys):
    import evaluation
    error = expect_exit([str(tmp_path / "none.tar"), "--data_path", str(data)], 2, capsys,
                        ["no checkpoint"], evaluation.main)
    assert "--resume" not in error
    train.main(command(data, tmp_path, "--num_epochs", "2"))
    best = str(tmp_path / "model_best.pth.tar")
    error = expect_exit([best, "--data_path", str(data), "--embed_size", "32"], 2, capsys,
                        ["--embed_size 32 does not fit", "leave the flag out"], evaluation.main)
    assert "new run" not in error
    assert checkpoint.read(Path(best))["options"]["embed_size"] == 24
