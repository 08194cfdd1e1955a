"""Devices and precision by flag; what a GPU has is made up here."""

import os

import pytest
import torch
from torch import nn

from common.device import pick_device, place_on_device, set_deterministic, use_bf16
from common.errors import InputError
from training.options import parse


def test_devices_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="--device cuda: no GPU"):
        pick_device("cuda")


def test_devices_with_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("able", "cpu", "cuda"), [
    (True, {"auto": False, "fp32": False, "bf16": True},
     {"auto": True, "fp32": False, "bf16": True}),
    (False, {"auto": False, "bf16": True}, {"auto": False, "fp32": False, "bf16": None})])
def test_when_bf16_is_used(monkeypatch, able, cpu, cuda):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able)
    for device, wanted in ("cpu", cpu), ("cuda", cuda):
        for precision, answer in wanted.items():
            if answer is None:
                with pytest.raises(InputError, match="--precision bf16: this GPU"):
                    use_bf16(precision, torch.device(device))
            else:
                assert use_bf16(precision, torch.device(device)) == answer


def test_deterministic_mode_is_set_and_left(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    try:
        set_deterministic(True)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert not torch.backends.cudnn.benchmark
    finally:
        set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("precision", "bf16"), [("auto", False), ("fp32", False), ("bf16", True)])
def test_a_model_is_placed_with_its_precision(precision, bf16):
    model = nn.Linear(2, 2)
    options, _ = parse("", ["--device", "cpu", "--precision", precision])
    assert place_on_device(model, options) == model.weight.device == torch.device("cpu")
    assert model.bf16 == bf16
