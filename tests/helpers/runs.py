"""A run small enough for tests, and how two runs are compared."""

import shutil

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import checkpoint
import train

SIZES = {"train": 24, "val": 8, "test": 8}  # photos of the embedded dataset, in a size for tests
# A GPU would round otherwise, and compute in bfloat16: what is compared to the bit runs here.
CPU = ("--device", "cpu")


def command(data, folder, *more):
    """A run of 3 epochs of 7 steps: easy warm-up, then FNE, validating after steps 3 and 7; without
    figures, which would take as long as all of it."""
    return ["--dataset", "shapes", "--max_violation", "--data_path", str(data), "--logger_name",
            str(folder), "--num_epochs", "3", "--easy_epochs", "1", "--warmup_epochs", "1",
            "--batch_size_train", "16", "--queue_size", "40", "--val_step", "3", "--workers", "0",
            "--nums_right_sims", "2", "--log_step", "3", "--seed", "1", "--embed_size", "24",
            "--no_figures", *CPU, *more]


def drawing(data, folder, *more):
    """The same run with figures."""
    return [word for word in command(data, folder, *more) if word != "--no_figures"]


def events(folder):
    """Tag to the steps that TensorBoard has it of."""
    accumulator = EventAccumulator(str(folder)).Reload()
    return {tag: [event.step for event in accumulator.Scalars(tag)]
            for tag in accumulator.Tags()["scalars"]}


def assert_same(left, right, where="state"):
    """Equal to the bit, through dictionaries and lists."""
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for number, (a, b) in enumerate(zip(left, right)):
            assert_same(a, b, f"{where}[{number}]")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    else:
        assert left == right, where


def final_state(folder):
    """A run's last checkpoint, but for the folder that it lies in."""
    state = checkpoint.read(folder / "checkpoint.pth.tar")
    for name in "logger_name", "workers", "no_figures":
        del state["options"][name]
    return state


def expect_exit(arguments, status, capsys, named=(), main=train.main, lines=1):
    """Run a command that ends in `status`, and return what it writes on standard error.

    Args:
        arguments: The words of the command.
        status: Its exit status.
        capsys: The fixture of the test.
        named: Flags and files that the message names.
        main: The command's function.
        lines: The number of lines of the message.
    """
    assert not isinstance(named, str), "a list of names, not the letters of one"
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    error = capsys.readouterr().err
    assert caught.value.code == status and error.count("\n") == lines, error
    assert all(word in error for word in named), error
    return error


def expect_one_line(arguments, named, capsys, main=train.main):
    """Run a command with a user's mistake: status 2 and one line, which names a flag or file."""
    return expect_exit(arguments, 2, capsys, [named], main)


def contents(folder):
    """Path to bytes, of all files in a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copy_of(data, folder):
    """A copy of the dataset, to be spoilt."""
    return shutil.copytree(data, folder / "data")
