"""SIGTERM and Ctrl-C: the step is finished and saved, unless somebody insists."""

import os
import signal
import time

import pytest
from helpers.runs import command, expect_exit
from helpers.stopping import in_a_child, newest_step, status_of

import train
from common.errors import Stopped
from training.signals import Signals, stop_on_signals


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_whole_group_ends_in_order(data, tmp_path, number, status):
    """As a terminal or a scheduler sends it: workers get it too, and the run is saved."""
    folder = tmp_path / "run"

    def grouped():
        os.setpgid(0, 0)
        train.main(command(data, folder, "--workers", "2", "--num_epochs", "100", "--save_step",
                           "1"))

    child = in_a_child(grouped)
    deadline = time.monotonic() + 60
    while not ((folder / "checkpoint.pth.tar").exists() and newest_step(folder) > 1):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    saved = newest_step(folder)
    os.killpg(child, number)
    assert status_of(child) == status
    assert newest_step(folder) >= saved > 1


def test_a_second_ctrl_c_ends_at_once(data, tmp_path, monkeypatch, capsys):
    """One that comes right after the first is the same, which a launcher passed on."""
    whole_step = train.training_step

    def training_step(run, batch):
        for pause in (0, 0, 1.1):
            time.sleep(pause)
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the step went on")

    monkeypatch.setattr(train, "training_step", training_step)
    before = signal.getsignal(signal.SIGINT)
    expect_exit(command(data, tmp_path), 130, capsys, ["at once"])
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(train, "training_step", whole_step)


def test_a_second_ctrl_c_ends_at_once_after_a_sigterm_too(monkeypatch):
    """The run would stop by the SIGTERM; whoever presses Ctrl-C twice does not wait for that."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    signals = Signals()
    signals.catch(signal.SIGTERM, None)
    now[0] += 60
    signals.catch(signal.SIGINT, None)
    now[0] += 0.5
    signals.catch(signal.SIGINT, None)  # passed on by a launcher
    assert signals.number == signal.SIGTERM
    now[0] += 1
    with pytest.raises(KeyboardInterrupt):
        signals.catch(signal.SIGINT, None)


def test_a_signal_waits_until_the_run_may_stop():
    """Then the run is saved, and what that says is told; the former handler is back."""
    before, done = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(Stopped, match="how to go on") as caught:
        with stop_on_signals(lambda: "how to go on") as signals:
            signals.stop_if_asked()  # nobody has
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("the step")
            signals.stop_if_asked()
            done.append("the next one")
    assert done == ["the step"] and caught.value.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_in_the_last_step_stops_it_as_well():
    with pytest.raises(Stopped, match="saved"):
        with stop_on_signals(lambda: "saved"):
            os.kill(os.getpid(), signal.SIGTERM)
