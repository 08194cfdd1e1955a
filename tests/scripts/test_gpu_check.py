"""The check of a GPU: its commands exist, and its output and status say what they found."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.paths import ROOT
from helpers.runs import expect_exit

from scripts import gpu_check


def test_without_a_gpu_the_status_is_2(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    expect_exit([], 2, capsys, ["GPU"], gpu_check.main)


def test_the_files_of_all_commands_exist():
    for command in gpu_check.CHECKS.values():
        for word in command[1:]:
            assert not word.endswith(".py") or (ROOT / word).is_file()


@pytest.mark.parametrize("code, shown, status", [("print('41 passed')", "tests: ok\n41 passed", 0),
                                                ("import sys; sys.exit('1 failed')",
                                                 "tests: FAILED\n1 failed", 1)])
def test_the_output_shows_what_a_command_found(monkeypatch, tmp_path, capsys, code, shown, status):
    gpu = SimpleNamespace(name="a GPU", total_memory=2**36, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **keywords: True)
    monkeypatch.setattr(gpu_check, "CHECKS", {"tests": [sys.executable, "-c", code]})
    with pytest.raises(SystemExit) as caught:
        gpu_check.main(["--json", str(tmp_path / "found.json")])
    output = capsys.readouterr().out
    assert caught.value.code == status and shown in output and "a GPU, 64 GiB" in output
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["checks"]["tests"]["passed"] == (status == 0)
    expect_exit(["--json", str(tmp_path / "found.json")], 2, capsys, ["--json"], gpu_check.main)
    assert found == json.loads((tmp_path / "found.json").read_text())


def test_a_command_that_takes_too_long_has_failed_and_shows_what_it_printed():
    code = "import time; print('a row', flush=True); time.sleep(60)"
    output, passed = gpu_check.run_check([sys.executable, "-c", code], 0.5)
    assert "0.5 s" in output and not passed and "a row" in output
