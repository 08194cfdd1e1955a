"""The check of a GPU: what it runs exists, and what it finds is told."""

import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.paths import ROOT
from helpers.runs import expect_exit

from scripts import gpu_check


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    expect_exit([], 2, capsys, ["no GPU is visible"], gpu_check.main)


def test_what_it_runs_is_there():
    for command in gpu_check.CHECKS.values():
        for word in command[1:]:
            assert not word.endswith(".py") or (ROOT / word).is_file()


@pytest.mark.parametrize("code, told, status", [("print('41 passed')", "tests: ok\n41 passed", 0),
                                                ("import sys; sys.exit('1 failed')",
                                                 "tests: FAILED\n1 failed", 1)])
def test_what_it_finds_is_told(monkeypatch, capsys, code, told, status):
    gpu = SimpleNamespace(name="a GPU", total_memory=2**36, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **keywords: True)
    monkeypatch.setattr(gpu_check, "CHECKS", {"tests": [sys.executable, "-c", code]})
    with pytest.raises(SystemExit) as caught:
        gpu_check.main([])
    output = capsys.readouterr().out
    assert caught.value.code == status and told in output and "a GPU, 64 GiB" in output


def test_a_command_that_does_not_end(monkeypatch):
    monkeypatch.setattr(gpu_check, "LONGEST", 0.2)
    text, good = gpu_check.outcome([sys.executable, "-c", "import time; time.sleep(60)"])
    assert text == "not done after 0.2 s" and not good
