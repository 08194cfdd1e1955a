"""Before the first step: metrics that are kept, a pair's similarities, its scale and its margin."""

import json
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.runs import assert_same, command, expect_exit, final_state
from helpers.steps import make_run, recorded
from helpers.stopping import signal_after
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import checkpoint
import evaluation
import train
from common.errors import InputError
from metrics.embeddings import read_embeddings
from training import zero_shot
from training.options import check, parse

# ------------------------------------------------------------------------------ the scale of a pair


def run_of_a_pair(monkeypatch, folder, scale, bias, *flags):
    """A run whose model has the logit scale and bias of a pretrained pair."""
    build = checkpoint.model_for_training

    def pair(*given):
        model = build(*given)
        model.logit_scale, model.logit_bias = scale, bias
        return model

    monkeypatch.setattr(checkpoint, "model_for_training", pair)
    return make_run(folder, *flags)[0]


@pytest.mark.parametrize(("flags", "scale", "wanted"), [
    ([], None, 1 / 0.07), ([], 50.0, 50.0), ([], 117.5, 117.5),
    (["--temperature", "0.1"], 50.0, 10.0), (["--temperature", "0.1"], None, 10.0)])
def test_infonce_begins_with_the_pairs_temperature(tmp_path, monkeypatch, flags, scale, wanted):
    run = run_of_a_pair(monkeypatch, tmp_path, scale, None, "--loss", "infonce", *flags)
    assert run.objective.log_scale.exp().item() == pytest.approx(wanted, rel=1e-5)
    assert 1 / checkpoint.pack(run)["options"]["temperature"] == pytest.approx(wanted)
    assert check_after_a_step(run, wanted)


@pytest.mark.parametrize(("flags", "pair", "wanted"), [
    ([], (None, None), (10, -10)), ([], (117.5, -12.9), (117.5, -12.9)),
    (["--sigmoid_scale", "5"], (117.5, -12.9), (5, -12.9)),
    (["--sigmoid_bias", "-3"], (117.5, -12.9), (117.5, -3)),
    ([], (40.0, 0.0), (10, -10)),  # a pair without bias
    (["--sigmoid_scale", "5"], (40.0, 0.0), (5, -10))])
def test_the_sigmoid_loss_begins_with_the_pairs_scale_and_bias(tmp_path, monkeypatch, flags, pair,
                                                               wanted):
    run = run_of_a_pair(monkeypatch, tmp_path, *pair, "--loss", "sigmoid", *flags)
    found = run.objective.log_scale.exp().item(), run.objective.bias.item()
    assert found == pytest.approx(wanted, rel=1e-5)
    saved = checkpoint.pack(run)["options"]
    assert (saved["sigmoid_scale"], saved["sigmoid_bias"]) == pytest.approx(wanted)
    assert check_after_a_step(run, wanted[0])


def check_after_a_step(run, first):
    """Whether the bound of the learned scale is 100, or what it began with if that is more."""
    run.objective.log_scale.data.fill_(9.0)
    run.objective.after_step(None)
    return run.objective.log_scale.exp().item() == pytest.approx(max(100, first), rel=1e-5)


def test_a_run_of_a_pair_goes_on_with_its_scale_to_the_bit(data, tmp_path, monkeypatch, capsys):
    """The bound on the scale is that of the pair, also where the run that goes on has no pair."""
    def arguments(folder, *more):
        return command(data, folder, "--loss", "sigmoid", "--head_lr", "1e-5", *more)

    def ended(folder, *more):
        with monkeypatch.context() as patch:
            build = checkpoint.model_for_training

            def pair(options, state, *given):
                model = build(options, state, *given)
                if state is None:
                    model.logit_scale, model.logit_bias = 130.0, -9.0
                return model

            patch.setattr(checkpoint, "model_for_training", pair)
            train.main(arguments(folder, *more))
        return final_state(folder)

    whole = ended(tmp_path / "whole")
    with monkeypatch.context() as patch:
        signal_after(patch, 9)
        with pytest.raises(SystemExit):
            ended(tmp_path / "stopped", "--resume", "auto")
    capsys.readouterr()
    assert_same(ended(tmp_path / "stopped", "--resume", "auto"), whole)
    assert 129 < whole["log_scale"].exp() < 130.1


# --------------------------------------------------------------------------------- the similarities


def pairs(photos, spread, seed=0):
    """Embeddings of photos with two captions each, as those of CLIP in a cone; and their split."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(photos, 16, generator=random) + 1.0
    texts = images.repeat_interleave(2, 0) + spread * torch.randn(2 * photos, 16, generator=random)
    split = SimpleNamespace(image_of_text=np.arange(photos).repeat(2))
    return F.normalize(images, dim=1), F.normalize(texts, dim=1), split


def slow_similarities(images, texts, batch):
    """Lists of confident positives, their hardest negatives and all other pairs, by loops."""
    positive, negative, others = [], [], []
    for start in range(0, len(images) - batch + 1, batch):
        rows = range(start, start + batch)
        s = {(i, t): float(images[i] @ texts[2 * t]) for i in rows for t in rows}
        others += [s[i, t] for i in rows for t in rows if i != t]
        for i in rows:
            of_image = max(s[i, t] for t in rows if t != i)
            of_text = max(s[j, i] for j in rows if j != i)
            if s[i, i] > of_image and s[i, i] > of_text:
                positive.append(s[i, i])
                negative += [of_image, of_text]
    return positive, negative, others


@pytest.mark.parametrize(("photos", "batch", "used"), [(20, 8, 8), (5, 8, 5)])
def test_similarities_are_those_of_a_loop(photos, batch, used):
    images, texts, split = pairs(photos, 0.8)
    found = zero_shot.measure(images, texts, split, batch)
    slow = slow_similarities(images, texts, used)
    assert found.batch == used and found.count == photos // used * used
    for gaussian, values in zip((found.positive, found.negative, found.others), slow):
        assert gaussian.count == len(values) > 2
        assert gaussian.mean.item() == pytest.approx(np.mean(values), abs=1e-5)
        # The published estimator of the variance, over batches, is a little low.
        assert gaussian.variance.sqrt().item() == pytest.approx(np.std(values, ddof=1), rel=0.1)
    margin = zero_shot.auto_margin(found)
    lower_end = found.negative.mean - 2 * found.negative.variance.sqrt()
    assert margin == pytest.approx(np.mean(slow[0]) - float(lower_end), abs=1e-5) and margin > 0


def kept_line(monkeypatch, tmp_path, capsys, images, texts, split, *flags):
    run, _ = make_run(tmp_path, *flags)
    monkeypatch.setattr("common.terminal.quiet", False)
    capsys.readouterr()
    zero_shot.keep(run, {"rsum": 12.0}, (images, texts), split)
    assert run.zero_shot == {"rsum": 12.0}
    return run, *capsys.readouterr()


def test_a_margin_wider_than_a_pairs_similarities_is_warned_of(tmp_path, monkeypatch, capsys):
    """And one that fits is not; the bound is where the loss puts it."""
    given = pairs(32, 0.5)
    run, out, err = kept_line(monkeypatch, tmp_path, capsys, *given, "--margin", "0.9")
    assert err.startswith("warning: --margin 0.9") and err.count("\n") == 1
    assert "N+ 0." in out and "cut-down at" in out
    suggested = float(err.partition("which is ")[2].split()[0])
    run, out, err = kept_line(monkeypatch, tmp_path, capsys, *given, "--margin", str(suggested))
    assert err == "" and "N+ 0." in out
    _, out, err = kept_line(monkeypatch, tmp_path, capsys, *given, "--loss", "triplet",
                            "--margin", "0.9")
    assert "--margin 0.9" in err and "cut-down at" not in out
    assert kept_line(monkeypatch, tmp_path, capsys, *given, "--loss", "infonce")[1:] == ("", "")


def test_nothing_is_said_of_encoders_that_are_no_pair(tmp_path, monkeypatch, capsys):
    images, _, split = pairs(32, 0.5)
    _, texts, _ = pairs(32, 0.5, seed=1)
    assert kept_line(monkeypatch, tmp_path, capsys, images, texts, split)[1:] == ("", "")
    with pytest.raises(InputError, match="--margin auto: .*no pretrained pair"):
        kept_line(monkeypatch, tmp_path, capsys, images, texts, split, "--margin", "auto")


@pytest.mark.parametrize("loss", ["fne", "triplet"])
def test_the_loss_has_the_margin_that_was_found(tmp_path, monkeypatch, capsys, loss):
    given = pairs(32, 0.5)
    run, out, _ = kept_line(monkeypatch, tmp_path, capsys, *given, "--margin", "auto", "--loss",
                            loss)
    wanted = zero_shot.auto_margin(zero_shot.measure(*given, 16))
    assert run.options.margin == wanted and f"--margin auto: {wanted:.4f}" in out
    if loss == "fne":
        assert run.objective.criterion.margin == wanted
        assert run.objective.warm_up.options.margin == wanted
    else:
        assert run.objective.options.margin == wanted


def test_margin_auto_needs_a_loss_with_a_margin():
    for flags in ["--margin", "auto"], ["--margin", "auto", "--loss", "triplet"]:
        check(parse("", ["--data_path", "x", *flags])[0])
    with pytest.raises(InputError, match="--margin auto: --loss infonce does not use it"):
        check(parse("", ["--data_path", "x", "--margin", "auto", "--loss", "infonce"])[0])


@pytest.mark.parametrize("step", [2, 9])
def test_a_run_with_margin_auto_goes_on_with_its_number(data, tmp_path, monkeypatch, capsys, step):
    """From the same command line: the number is made once, and is in the checkpoint."""
    found = zero_shot.measure(*pairs(32, 0.5), 16)  # the run's own model is no pair
    monkeypatch.setattr(zero_shot, "measure", lambda *given: found)
    made = recorded(monkeypatch, zero_shot, "auto_margin")

    def arguments(name):
        return command(data, tmp_path / name, "--margin", "auto", "--resume", "auto")

    train.main(arguments("whole"))
    with monkeypatch.context() as patch:
        signal_after(patch, step)
        expect_exit(arguments("stopped"), 143, capsys, [f"step {step} is done"])
    margin = checkpoint.read(tmp_path / "stopped" / "checkpoint.pth.tar")["options"]["margin"]
    assert type(margin) is float and 0 < margin < 1 and margin != 0.2
    before = len(made)
    train.main(arguments("stopped"))
    assert len(made) == before
    left, right = final_state(tmp_path / "stopped"), final_state(tmp_path / "whole")
    assert_same(left, right)
    assert right["options"]["margin"] == margin


def test_a_run_that_is_stopped_before_its_margin_is_found_finds_it_later(
        data, tmp_path, monkeypatch, capsys):
    """Its checkpoint has no number yet, and can be scored all the same."""
    found = zero_shot.measure(*pairs(32, 0.5), 16)
    monkeypatch.setattr(zero_shot, "measure", lambda *given: found)
    arguments = command(data, tmp_path / "run", "--margin", "auto", "--resume", "auto",
                        "--num_epochs", "2")
    with monkeypatch.context() as patch:
        patch.setattr(train, "score", lambda *given: os.kill(os.getpid(), signal.SIGTERM)
                      or evaluation.score(*given))
        expect_exit(arguments, 143, capsys, ["step 0 is done"])
    path = tmp_path / "run" / "checkpoint.pth.tar"
    state = checkpoint.read(path)
    assert state["options"]["margin"] == "auto" and state["zero_shot"] is None
    evaluation.main([str(path), "--data_path", str(data), "--workers", "0", "--device", "cpu",
                     "--save_embeddings", str(tmp_path / "x.npz")])
    assert "margin" not in read_embeddings(tmp_path / "x.npz").facts
    train.main(arguments)
    state = checkpoint.read(path)
    assert state["options"]["margin"] == zero_shot.auto_margin(found) and state["zero_shot"]


# -------------------------------------------------------------------------------------- the metrics


def test_results_have_what_the_model_gave_before_training(finished):
    """As the curve of the validations has it; the test's numbers are others."""
    results = json.loads((finished / "test_results.json").read_text())
    first = results["zero_shot"]
    curves = EventAccumulator(str(finished)).Reload()
    for name, value in first.items():
        if name not in ("split", "best_rsum"):
            assert curves.Scalars(f"val/{name}")[0].value == pytest.approx(value)
            assert curves.Scalars(f"val/{name}")[0].step == 0
    rsums = [event.value for event in curves.Scalars("val/rsum")]
    assert first["split"] == "val" and first["best_rsum"] == pytest.approx(max(rsums))
    assert first["best_rsum"] > first["rsum"] and first.keys() - {"split", "best_rsum"} <= (
        results.keys())


@pytest.mark.parametrize("spoilt", [{"rsum": "many"}, {1: 2.0}, [1.0], "many"])
def test_metrics_that_no_run_can_have_are_refused(finished, data, tmp_path, capsys, spoilt):
    state = torch.load(finished / "checkpoint.pth.tar", weights_only=True)
    state["zero_shot"] = spoilt
    torch.save(state, tmp_path / "checkpoint.pth.tar")
    expect_exit(["--resume", str(tmp_path / "checkpoint.pth.tar"), "--data_path", str(data),
                 "--device", "cpu"], 2, capsys, ["checkpoint.pth.tar"])
