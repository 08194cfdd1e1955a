"""The check of a GPU: its commands exist, and its output and status say what they found."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.paths import ROOT
from helpers.photos import six_photos
from helpers.runs import expect_exit

from scripts import gpu_check


def test_without_a_gpu_the_status_is_2(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    expect_exit([], 2, capsys, ["GPU"], gpu_check.main)


def test_the_files_of_all_commands_exist(tmp_path):
    for command in gpu_check.all_checks(tmp_path, None).values():
        for word in command[1:]:
            assert not word.endswith(".py") or (ROOT / word).is_file()


@pytest.fixture
def a_gpu(monkeypatch):
    """Have PyTorch say that there is a GPU."""
    gpu = SimpleNamespace(name="a GPU", total_memory=2**36, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **keywords: True)


@pytest.mark.parametrize("flags", [["--json_path", "."], ["--photos", "none"],
                                   ["--photos", ".", "--json_path", "none"]], ids=" ".join)
def test_photos_that_are_not_there_are_refused_before_anything_runs(
        monkeypatch, a_gpu, capsys, flags):
    monkeypatch.setattr(gpu_check, "run_check", None)
    expect_exit(flags, 2, capsys, [flags[-2]], gpu_check.main)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_an_epoch_on_photos_runs_by_the_command_that_the_check_starts(
        monkeypatch, a_gpu, tmp_path, capsys):
    """On a CPU, with small encoders: 12 captions are three steps of 4."""
    six_photos(tmp_path, "flickr8k")
    check = gpu_check.photo_check

    def on_a_cpu(*folders):
        command = check(*folders)
        command[command.index("cuda")] = "cpu"
        command[command.index("--workers") + 1] = "1"
        return [*command, "--short"]

    monkeypatch.setattr(gpu_check, "CHECKS", {})
    monkeypatch.setattr(gpu_check, "photo_check", on_a_cpu)
    with pytest.raises(SystemExit) as caught:
        gpu_check.main(["--photos", str(tmp_path), "--json_path", str(tmp_path)])
    output = capsys.readouterr().out
    assert caught.value.code == 0 and "an epoch on photos: ok" in output
    [row] = [line for line in output.splitlines() if line.startswith("| 3 of 3 |")]
    speed, waiting, first, last = (float(cell.split()[0]) for cell in row.split("|")[2:-1])
    assert speed > 0 and 0 < waiting < 100 and first > 0 and last > 0


@pytest.mark.parametrize("code, shown, status", [("print('41 passed')", "tests: ok\n41 passed", 0),
                                                ("import sys; sys.exit('1 failed')",
                                                 "tests: FAILED\n1 failed", 1)])
def test_the_output_shows_what_a_command_found(
        monkeypatch, a_gpu, tmp_path, capsys, code, shown, status):
    monkeypatch.setattr(gpu_check, "CHECKS", {"tests": [sys.executable, "-c", code]})
    with pytest.raises(SystemExit) as caught:
        gpu_check.main(["--json", str(tmp_path / "found.json")])
    output = capsys.readouterr().out
    assert caught.value.code == status and shown in output and "a GPU, 64 GiB" in output
    assert "an epoch on photos: left out" in output
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["checks"]["tests"]["passed"] == (status == 0)
    expect_exit(["--json", str(tmp_path / "found.json")], 2, capsys, ["--json"], gpu_check.main)
    assert found == json.loads((tmp_path / "found.json").read_text())


def test_a_command_that_takes_too_long_has_failed_and_shows_what_it_printed():
    code = "import time; print('a row', flush=True); time.sleep(60)"
    output, passed = gpu_check.run_check([sys.executable, "-c", code], 0.5)
    assert "0.5 s" in output and not passed and "a row" in output
