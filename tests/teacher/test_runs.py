"""Runs with a teacher: kept embeddings, exact resume, several processes, and mistakes of users."""

import json

import numpy as np
import pytest
import torch
from helpers.runs import (
    CPU,
    assert_same,
    command,
    events,
    expect_exit,
    expect_one_line,
    final_state,
)
from helpers.stopping import signal_after
from helpers.together import run_together

import checkpoint
import evaluation
import train
from data import read_split
from training import teaching

pytest.importorskip("sklearn")
TEACHER = "--teacher", "captions:8"
WAYS = [["--loss", "fne"], ["--loss", "fne", "--match_bar", "0.2"],
        ["--loss", "triplet", "--match_bar", "0.2"], ["--loss", "triplet"],
        ["--loss", "infonce"], ["--loss", "sigmoid", "--match_bar", "0.05"]]


def trained(data, folder, *more):
    train.main(command(data, folder, *TEACHER, *more))
    return final_state(folder)


@pytest.mark.parametrize("flags", WAYS, ids=" ".join)
def test_stopped_it_goes_on_to_the_bit(data, tmp_path, monkeypatch, capsys, flags):
    whole = trained(data, tmp_path / "whole", *flags)
    assert {"digest", "positive.mean", "negative.m2"} < whole["teacher"].keys()
    arguments = command(data, tmp_path / "parts", *TEACHER, *flags)
    with monkeypatch.context() as patch:
        signal_after(patch, 10)
        expect_exit(arguments, 143, capsys)
    train.main([*arguments, "--resume", "auto"])
    assert_same(final_state(tmp_path / "parts"), whole)
    logged = events(tmp_path / "whole")
    assert ("train/excluded_share" in logged) is ("--match_bar" in flags)


def test_it_changes_what_is_trained(data, tmp_path):
    plain = tmp_path / "plain"
    train.main(command(data, plain, "--loss", "triplet"))
    with_teacher = trained(data, tmp_path / "taught", "--loss", "triplet", "--match_bar", "0.05")
    assert not torch.equal(with_teacher["model"]["text_projection.weight"],
                           final_state(plain)["model"]["text_projection.weight"])


def test_embeddings_are_kept_and_used_again(data, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    first = trained(data, folder, "--loss", "infonce", "--num_epochs", "1")
    file = folder / teaching.FILE
    kept = torch.load(file)["features"]
    assert kept.dtype == torch.float16 and len(kept) == len(
        read_split("shapes", "train", data).captions)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(teaching.CaptionTeacher, "embed", lambda *_: pytest.fail("embedded again"))
        train.main([*command(data, tmp_path / "on", *TEACHER, "--loss", "infonce"), "--resume",
                    str(folder / "checkpoint.pth.tar")])
    assert f"as kept in {file}" in capsys.readouterr().out
    file.write_bytes(file.read_bytes()[:100])
    train.main([*command(data, folder, *TEACHER, "--loss", "infonce"), "--resume", "auto"])
    assert "is damaged, and not used" in capsys.readouterr().out
    assert_same(final_state(folder), final_state(tmp_path / "on"))
    assert first["teacher"]["digest"].shape == (16,)


def test_other_embeddings_are_not_gone_on_with(data, tmp_path, capsys):
    folder = tmp_path / "run"
    trained(data, folder, "--loss", "infonce", "--num_epochs", "1")
    again = command(data, folder, "--loss", "infonce", "--resume", "auto", "--teacher",
                    "captions:9")
    expect_one_line(again, "--teacher", capsys)
    expect_one_line(command(data, folder, "--loss", "infonce", "--resume", "auto"),
                    "--posterior teacher", capsys)


@pytest.mark.parametrize("is_encoder", [True, False])
def test_several_processes_share_the_captions(tmp_path, is_encoder):
    """Of three processes two have captions of their own."""
    class Teacher:
        def embed(self, captions):
            return torch.tensor([[float(text), 1.0] for text in captions]).half()

    def call():
        teacher = Teacher()
        teacher.is_encoder = is_encoder
        return [teaching.embed_together(teacher, [str(number) for number in range(count)])
                for count in (2, 7)]

    for found in run_together(3, call, tmp_path):
        for count, rows in zip((2, 7), found):
            assert torch.equal(rows[:, 0], torch.arange(count).half())


def test_it_is_tested_without_the_teacher(data, tmp_path, capsys):
    folder = tmp_path / "run"
    trained(data, folder, "--loss", "fne")
    train.main([*command(data, folder, "--test")])
    evaluation.main([str(folder / "model_best.pth.tar"), "--data_path", str(data), *CPU,
                     "--workers", "0"])
    assert capsys.readouterr().out.count("rsum") >= 2


def test_one_caption_a_photo(data, tmp_path):
    """The captions of such a split tell of a match by their similarity alone."""
    for name in "train", "val", "test":
        split = read_split("shapes", name, data)
        first = [list(split.image_of_text).index(number) for number in range(len(split.images))]
        (tmp_path / f"{name}.json").write_text(json.dumps(
            [{"image": image, "caption": split.captions[text]}
             for image, text in zip(split.images, first)]))
    train.main([*command(data, tmp_path / "run", *TEACHER, "--match_bar", "0.2", "--dataset",
                         "custom", "--json_path", str(tmp_path), "--image_encoder",
                         "small-convnext", "--text_encoder", "tiny-bert", "--vocab",
                         "vocab/shapes.txt", "--image_res", "64", "--augment", "none")])
    assert checkpoint.read(tmp_path / "run" / "checkpoint.pth.tar")["teacher"]["positive.m2"] > 0


MISTAKES = [
    (["--posterior", "teacher"], "--posterior teacher"),
    (["--match_bar", "0.2"], "--match_bar"),
    (["--posterior", "published", *TEACHER], "--teacher"),
    (["--posterior", "evidence", *TEACHER], "--teacher"),
    (["--posterior", "evidence", "--match_bar", "0.2"], "--match_bar"),
    (["--posterior", "evidence", "--loss", "infonce"], "--posterior evidence"),
    ([*TEACHER, "--match_bar", "1.5"], "--match_bar"),
    ([*TEACHER, "--loss", "infonce", "--oracle", "positives"], "--oracle positives"),
    (["--teacher", "no/such/encoder/at/all"], "--teacher"),
    (["--teacher", "captions:0"], "--teacher"),
    (["--teacher", "{folder}/mine.npz"], "mine.npz"),
]


@pytest.mark.parametrize("flags, named", MISTAKES)
def test_a_mistake_is_told_in_one_line_before_training(data, tmp_path, capsys, flags, named):
    np.savez(tmp_path / "mine.npz", text_embeds=np.ones((3, 2)))
    flags = [flag.format(folder=tmp_path) for flag in flags]
    expect_one_line(command(data, tmp_path / "run", *flags), named, capsys)
    assert not list((tmp_path / "run").glob("*.tar"))
