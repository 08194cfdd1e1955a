"""Nothing is lost: stopped after any step, or killed at any moment, and taken up again."""

import json
import os
import random
import shlex
import signal
from pathlib import Path

import pytest
from helpers.paths import ROOT
from helpers.runs import (
    CPU,
    assert_same,
    command,
    drawing,
    events,
    expect_exit,
    expect_one_line,
    final_state,
)
from helpers.stopping import signal_after

import checkpoint
import evaluation
import train

STEPS = 21  # of which the first 7 warm up


def assert_same_run(folder, finished):
    assert_same(final_state(folder), final_state(finished))
    logged, whole = events(folder), events(finished)
    for tags in logged, whole:
        for tag in [tag for tag in tags if "_per_second" in tag or tag.startswith("time/")]:
            del tags[tag]  # of one process: nobody knows it of two
    assert logged == whole  # no gap and no repeat
    assert (folder / "test_results.json").read_text() == (
        finished / "test_results.json").read_text()


def drawn_steps(seed, each):
    """So many of the warm-up, its last, and as many of the FNE epochs."""
    draw = random.Random(seed)
    early, late = draw.sample(range(1, 7), each), draw.sample(range(8, STEPS), each)
    return [*sorted(early), 7, *sorted(late)]


@pytest.mark.parametrize("workers, each, start", [("0", 3, drawing), ("2", 1, command)])
def test_stopped_after_any_step_it_goes_on_to_the_bit(data, finished, tmp_path, monkeypatch, capsys,
                                                      workers, each, start):
    """The same command line each time, as in a job that is requeued."""
    arguments = start(data, tmp_path, "--workers", workers, "--resume", "auto")
    for step in drawn_steps(int(workers), each):
        with monkeypatch.context() as patch:
            signal_after(patch, step)
            expect_exit(arguments, 143, capsys, [
                "SIGTERM", f"step {step} is done and saved", "--resume auto"])
        assert checkpoint.read(tmp_path / "checkpoint.pth.tar")["global_step"] == step
    train.main(arguments)
    assert_same_run(tmp_path, finished)


def test_the_command_that_a_stopped_run_tells_reads_the_same_data(data, tmp_path, monkeypatch,
                                                                  capsys):
    """Own data too, whose folder and columns no checkpoint says."""
    splits = tmp_path / "my splits"
    splits.mkdir()
    for part in "train", "val", "test":
        records = json.loads((data / f"shapes_{part}.json").read_text())
        (splits / f"{part}.jsonl").write_text("\n".join(
            json.dumps({"photo": record["image"], "words": record["caption"]})
            for record in records))
    own = ["--dataset", "custom", "--json_path", str(splits), "--image_column", "photo",
           "--caption_column", "words", "--image_encoder", "small-convnext", "--text_encoder",
           "tiny-bert", "--image_res", "64", "--num_epochs", "1", "--warmup_epochs", "0"]
    with monkeypatch.context() as patch:
        signal_after(patch, 2)
        line = expect_exit(command(data, tmp_path / "run", *own), 143, capsys, ["step 2 is done"])
    words = shlex.split(line.partition(" or with: python train.py ")[2])
    train.main([*words, "--workers", "0", *CPU])
    assert checkpoint.read(tmp_path / "run" / "checkpoint.pth.tar")["global_step"] == 7


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_validation_that_is_stopped_is_made_up_for(data, finished, tmp_path, monkeypatch, capsys,
                                                     when):
    """Before its end or after; the steps between are trained meanwhile."""
    arguments = command(data, tmp_path, "--resume", "auto")
    score, calls = train.score, []  # at steps 0, 3, 6, 7 and 10

    def stopped(*given):
        calls.append(when)
        if len(calls) == 5 and when == "before":
            os.kill(os.getpid(), signal.SIGINT)
        metrics = score(*given)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return metrics

    monkeypatch.setattr(train, "score", stopped)
    expect_exit(arguments, 130, capsys, ["SIGINT", "step 10 is done and saved"])
    state = checkpoint.read(tmp_path / "checkpoint.pth.tar")
    assert state["validation_due"] and state["global_step"] == 10
    train.main(arguments)
    assert_same_run(tmp_path, finished)


def test_a_run_keeps_its_ambiguity_and_with_it_its_folder(tmp_path, monkeypatch, capsys):
    """A checkpoint says where its photos are made, and goes on with no other captions."""
    vocab = str(ROOT / "vocab" / "shapes.txt")
    monkeypatch.chdir(tmp_path)
    arguments = command("left out", "run", "--num_epochs", "1", "--vocab", vocab, "--ambiguity",
                        "10")
    at = arguments.index("--data_path")
    train.main(arguments[:at] + arguments[at + 2 :])
    assert Path("data/shapes_10/shapes_info.json").is_file() and not Path("data/shapes").exists()
    path = "run/checkpoint.pth.tar"
    evaluation.main([path, *CPU, "--workers", "0"])
    expect_one_line(["--resume", path, *CPU, "--ambiguity", "25"],
                    "--ambiguity 25 does not fit run/checkpoint.pth.tar", capsys)
    train.main(["--resume", path, *CPU, "--num_epochs", "2", "--workers", "0"])
    assert checkpoint.read(Path(path))["epoch"] == 2
    assert [folder.name for folder in Path("data").iterdir()] == ["shapes_10"]
