"""The experiment of the dose in its quick form: its runs, its resumption, table and figure."""

import itertools
import json
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
import torch
from helpers.paths import ROOT
from helpers.runs import assert_same, expect_exit, expect_one_line

import checkpoint
import train
from experiments import dose, one_run
from experiments.plan import AGAIN_OFFSET, WARM_UP, Configuration, make_data, shapes_sizes_of
from experiments.summary import COMPARED, comparison_table, interval, summary

FEW = ["--quick", "--jobs", "0", "--doses", "10", "--seeds", "1", "2"]


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The work folder of a finished quick experiment with two losses."""
    folder = tmp_path_factory.mktemp("dose")
    dose.main([*FEW, "--work", str(folder), "--losses", "fne", "infonce"])
    return folder


def results_of(folder):
    """Return the results in a work folder, by the names of the runs."""
    return {path.stem: json.loads(path.read_text()) for path in (folder / "results").glob("*.json")}


# ----------------------------------------------------------------------------------------- the runs


def test_the_plan_has_every_loss_and_oracle_at_every_dose_and_seed(tmp_path):
    """24 warm-ups, 84 runs and 28 repeated ones, seed by seed, each after its warm-up. The repeated
    runs, which measure the noise, are those of the first seed and come first."""
    options = dose.build_parser().parse_args(
        ["--work", str(tmp_path), "--results", str(tmp_path)])
    dose.make_protocol(options)
    stages = dose.plan(options)
    runs = [run for stage in stages for run in stage]
    assert len(set(runs)) == len(runs) == 3 * (4 * 2 + 4 * 7) + 4 * 7
    for loss, oracle in itertools.product(dose.LOSSES, ("off", "exclude")):
        found = [run for run in runs if (run.loss, run.oracle, run.again) == (loss, oracle, False)]
        assert {(run.dose, run.seed) for run in found} == {
            (share, seed) for share in ("0.5", "3", "10", "25") for seed in (3407, 1, 2)}
    assert [run.loss for run in runs if run.oracle == "positives" and not run.again] == [
        "infonce"] * 12
    for number, stage in enumerate(stages):
        before = {run for earlier in stages[:number] for run in earlier}
        assert all(run.oracle == WARM_UP or run.warm_up in before for run in stage)
    assert all(run.again for run in stages[1][:28]) and not any(
        run.again for stage in stages[2:] for run in stage)


def test_a_quick_experiment_from_end_to_end(few):
    """The json file of each run holds its configuration, its commands and its scores."""
    results = results_of(few)
    branches = {f"dose10_seed{seed}_{way}" for seed in (1, 2) for way in (
        "fne_plain", "fne_oracle", "infonce_plain", "infonce_oracle", "infonce_positives")}
    again = {f"{name}_again" for name in branches if "seed1" in name}
    assert results.keys() == branches | again
    for name, result in results.items():
        assert name == Configuration(**result["configuration"]).name
        assert "--ambiguity 10" in result["warm_up_command"]
        assert ("--oracle off" in result["command"]) == ("plain" in name)
        assert {"rsum", "i2t_map_at_r", "t2i_r_precision"} <= result["test"].keys()
        assert result["val"].keys() == result["test"].keys() and result["seconds"] > 0
        assert result["commit"] and result["threads"] == torch.get_num_threads()
        assert 3 < result["true_matches"] < 30
        assert (result["false_negatives"] > 0) == ("plain" in name)
    for ending in "json", "md", "svg", "png":
        assert (few / f"results.{ending}").stat().st_size > 500
    rows = json.loads((few / "results.json").read_text())["rows"]
    assert [(row["loss"], row["oracle"]) for row in rows] == [
        ("infonce", "exclude"), ("infonce", "positives"), ("fne", "exclude")]
    assert all(row["seeds"] == [1, 2] for row in rows)


def test_the_same_command_trains_lost_results_again_and_nothing_else(few, monkeypatch):
    ran, run = [], one_run.run
    monkeypatch.setattr(one_run, "run", lambda *given: ran.append(given[0].name) or run(*given))
    again = [*FEW, "--work", str(few), "--losses", "fne", "infonce"]
    before = {path: path.read_bytes() for path in (few / "results").glob("*.json")}
    dose.main(again)
    assert ran == []
    lost = few / "results" / "dose10_seed2_fne_oracle.json"
    lost.unlink()
    dose.main(again)
    assert ran == ["dose10_seed2_triplet_warm-up", "dose10_seed2_fne_oracle"]
    timed = {"seconds", "commit"}
    for path, content in before.items():
        old, new = json.loads(content), json.loads(path.read_text())
        assert {name: old[name] for name in old.keys() - timed} == {
            name: new[name] for name in old.keys() - timed}


def test_a_branch_is_the_run_that_never_stopped(few, tmp_path):
    """FNE after a warm-up of its own ends in the same bits as one run of `train.py`."""
    warm_up = few / "dose10_seed2_triplet_warm-up"
    protocol = dose.make_protocol(dose.build_parser().parse_args(
        [*FEW, "--work", str(few), "--results", str(tmp_path / "results")]))
    branch = Configuration("10", 2, "fne", "off")
    data = str(make_data(branch, protocol))
    how = ["--data_path", data, "--workers", "0", "--device", "cpu", "--no_figures"]
    flags = one_run.warm_up_command(branch.warm_up, protocol)
    at = flags.index("--num_epochs")
    whole = [*flags[:at], "--num_epochs", "2", *flags[at + 2 :]]
    with shapes_sizes_of(protocol):
        train.main([*whole, "--logger_name", str(tmp_path / "whole"), *how])
        train.main(["--resume", str(warm_up / "checkpoint.pth.tar"), "--logger_name",
                    str(tmp_path / "branch"), *one_run.branch_command(branch, protocol), *how])
    states = [checkpoint.read(tmp_path / name / "checkpoint.pth.tar") for name in
              ("whole", "branch")]
    for name in "model", "momentum_model", "bank", "criterion", "optimizer":
        assert_same(states[0][name], states[1][name], name)


def test_another_order_starts_from_the_same_weights_and_ends_elsewhere(few, tmp_path):
    protocol = dose.make_protocol(dose.build_parser().parse_args(
        [*FEW, "--work", str(few), "--results", str(tmp_path)]))
    runs = [Configuration("10", 1, "fne", "off", again) for again in (False, True)]
    states = []
    for run in runs:
        path = run.folder(protocol) / "checkpoint.pth.tar"
        assert not path.exists()  # a finished run keeps none
        one_run.start(run, protocol)
        states.append(checkpoint.read(path))
        path.unlink()
    for name in "model", "optimizer", "epoch", "best_rsum":
        assert_same(states[0][name], states[1][name], name)
    assert states[1]["options"]["seed"] - states[0]["options"]["seed"] == AGAIN_OFFSET
    results = results_of(few)
    assert results["dose10_seed1_fne_plain"]["test"] != (
        results["dose10_seed1_fne_plain_again"]["test"])


def test_runs_side_by_side_are_the_same_as_one_after_the_other(
        few, tmp_path, monkeypatch, capsys):
    """Runs in processes of their own, with the small encoders of the tests. Then two runs fail: the
    command names them and ends with status 2."""
    small = tmp_path / "small.py"
    small.write_text("import sys\nimport pytest\nfrom helpers import encoders\n"
                     "encoders.shrink_built_in(pytest.MonkeyPatch())\n"
                     "from experiments import one_run\none_run.run_words(sys.argv[1])\n")
    monkeypatch.setattr(dose, "COMMAND", [sys.executable, str(small)])
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    command = ["--quick", "--jobs", "2", "--doses", "10", "--seeds", "1", "--again", "0",
               "--losses", "fne", "--work", str(tmp_path / "work")]
    dose.main(command)
    printed = capsys.readouterr().out
    assert "| FNE |" in printed and "3/3 dose10_seed1" in printed
    side_by_side, one_by_one = results_of(tmp_path / "work"), results_of(few)
    assert side_by_side.keys() == {"dose10_seed1_fne_plain", "dose10_seed1_fne_oracle"}
    assert all(result["test"] == one_by_one[name]["test"]
               for name, result in side_by_side.items())
    (tmp_path / "work/results/dose10_seed1_fne_plain.json").unlink()
    small.write_text("print('it is broken')\nraise SystemExit(1)\n")
    expect_exit(command, 2, capsys, ["2 of 2 runs", "dose10_seed1_fne_plain"], dose.main, lines=3)
    assert "it is broken" in (tmp_path / "work/dose10_seed1_fne_plain.log").read_text()


def test_a_stopped_experiment_ends_its_runs_and_goes_on(tmp_path, monkeypatch, capsys):
    """SIGTERM to the command alone: status 130, no process is left, and no run counts as done."""
    slow = tmp_path / "slow.py"
    slow.write_text("import os, sys, time\nopen(sys.argv[0] + str(os.getpid()), 'w').close()\n"
                    "time.sleep(60)\n")
    monkeypatch.setattr(dose, "COMMAND", [sys.executable, str(slow)])

    def stop():
        while len(list(tmp_path.glob("slow.py?*"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    expect_exit(["--quick", "--jobs", "2", "--work", str(tmp_path / "work")], 130, capsys,
                ["stopped"], dose.main)
    thread.join()
    for path in tmp_path.glob("slow.py?*"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name.removeprefix("slow.py")), 0)
    assert results_of(tmp_path / "work") == {}


# --------------------------------------------------------------------------------- table and figure


def result(share, seed, loss, oracle, rsum, again=False):
    metrics = dict.fromkeys(one_run.REPORTED, 10.0) | {"rsum": rsum}
    return {"configuration": {"dose": share, "seed": seed, "loss": loss, "oracle": oracle,
                              "again": again},
            "test": metrics, "true_matches": float(share), "false_negatives": 5.0}


def test_differences_are_paired_by_seed_and_intervals_are_students():
    """By hand: differences 2, 4 and 9 have mean 5 and deviation 3.6056; t(.975, 2) = 4.3027."""
    results = [result("3", seed, "fne", "off", 100 * seed) for seed in (1, 2, 3, 4)]
    results += [result("3", seed, "fne", "exclude", 100 * seed + more)
                for seed, more in ((1, 2), (2, 4), (3, 9), (5, 1000))]
    [row] = summary(results)["rows"]
    assert row["seeds"] == [1, 2, 3]
    assert row["rsum"]["difference"] == pytest.approx(5)
    assert row["rsum"]["interval"] == pytest.approx(4.3027 * 3.6056 / 3**0.5, rel=1e-4)
    assert row["t2i_map_at_r"]["difference"] == row["t2i_map_at_r"]["interval"] == 0
    assert interval(np.array([3.0])) is None
    text = comparison_table(summary(results))
    assert "| 3.0 % | FNE | 3 | 5.0 % → 5.0 % | 200.0 → 205.0 | +5.0 ± 9.0 |" in text
    assert "**" not in text  # the interval holds 0


def test_noise_is_of_runs_that_differ_in_order_alone():
    """Differences of 3 and -4 have a root mean square of sqrt(12.5)."""
    results = [result("3", 1, "fne", "off", 100), result("3", 1, "fne", "exclude", 107),
               result("3", 1, "fne", "off", 103, True), result("3", 1, "fne", "exclude", 103, True)]
    assert summary(results)["noise"]["rsum"] == {"runs": 2, "rms": pytest.approx(12.5**0.5)}
    assert "differ in rsum by 3.5 (root mean square of 2)" in comparison_table(summary(results))


def test_the_report_shows_existing_results_without_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(one_run, "run", None)
    folder = tmp_path / "results"
    folder.mkdir()
    for share in ("0.5", "10"):
        for seed in (1, 2):
            for loss, oracle in [*COMPARED, ("triplet", "off"), ("infonce", "off"), ("fne", "off")]:
                one = result(share, seed, loss, oracle, 100 + seed * (oracle == "exclude"))
                (folder / f"{share}_{seed}_{loss}_{oracle}.json").write_text(json.dumps(one))
    dose.main(["--report", "--work", str(tmp_path / "work"), "--results", str(folder)])
    printed = capsys.readouterr().out
    assert (tmp_path / "results.md").read_text().strip() == printed.strip()
    assert printed.count("| hardest in the batch |") == 2 and "+1.5 ± 6.4" in printed
    assert (tmp_path / "results.svg").read_text().startswith("<svg")
    first = (tmp_path / "results.svg").read_bytes()
    dose.main(["--report", "--work", str(tmp_path / "work"), "--results", str(folder)])
    assert (tmp_path / "results.svg").read_bytes() == first


def test_runs_without_the_oracle_are_kept_and_make_no_table(tmp_path, monkeypatch, capsys):
    """`--losses --uses ...` leaves such runs in a new folder, which is no mistake. A report of them
    is one."""
    monkeypatch.setattr(dose, "train_all", lambda options, protocol: None)
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "one.json").write_text(json.dumps(result("10", 1, "fne", "off", 100)))
    places = ["--work", str(tmp_path / "work"), "--results", str(folder)]
    dose.main(places)
    assert capsys.readouterr().out.startswith("No table: ")
    expect_one_line([*places, "--report"], f"--results {folder}", capsys, dose.main)
    assert not (tmp_path / "results.md").exists()


# ----------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("more, named", [
    (["--report"], "--report"), (["--jobs", "-1"], "--jobs -1"),
    (["--branch_epochs", "0"], "--branch_epochs 0"), (["--seeds", "-4"], "--seeds"),
    (["--doses", "4"], "--doses"), (["--work", "{tmp}/file"], "--work")])
def test_a_mistake_is_one_line(tmp_path, capsys, more, named):
    (tmp_path / "file").write_text("x")
    more = [word.format(tmp=tmp_path) for word in more]
    expect_one_line(["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results"),
                     *more], named, capsys, dose.main)


def test_results_of_another_protocol_and_what_is_no_result_are_refused(few, tmp_path, capsys):
    arguments = ["--work", str(tmp_path), "--results", str(few / "results"), "--doses", "10",
                 "--seeds", "1", "--losses", "fne"]
    expect_one_line(arguments, f"--results {few / 'results'}", capsys, dose.main)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text('{"rsum": 1}')
    expect_one_line(["--report", "--work", str(tmp_path), "--results",
                     str(tmp_path / "results")], "x.json", capsys, dose.main)
