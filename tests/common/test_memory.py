"""Too little memory, and packages that are missing: one line, whoever notices it first."""

import errno
import os
import platform
import resource
import subprocess
import sys
import time

import pytest
from helpers.paths import ROOT

from common.errors import InputError, is_out_of_memory
from inputs.photos import load_photo
from training import storage

MIB = 2**20


def ended(arguments, limit=None, path=""):
    """Status and standard error of a command that may take so many bytes of addresses."""
    def lower():
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, preexec_fn=lower, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{path}:{ROOT}:{ROOT / 'tests'}"}, timeout=300)
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", [
    ["train.py"], ["evaluation.py", "x"], ["export.py", "x", "y"], ["search.py", "x"],
    ["-m", "scripts.check_data"]])
@pytest.mark.parametrize("limit", [600, 3900])
def test_too_few_addresses_are_told_at_once(arguments, limit):
    """PyTorch alone maps gigabytes; with a little less it may wait for ever."""
    start = time.monotonic()
    status, error = ended(arguments, limit * MIB)
    assert (status, error.count("\n")) == (2, 1), error
    assert f"error: ulimit -v {limit * 1024}: " in error and time.monotonic() - start < 20


def test_a_package_that_finds_no_memory_is_told(tmp_path):
    """As where a limit is set that counts what is used, or the machine has no more."""
    (tmp_path / "torch.py").write_text(
        "raise ImportError('libtorch.so: failed to map segment from shared object')")
    status, error = ended(["train.py", "--dataset", "shapes"], path=str(tmp_path))
    assert (status, error.count("\n")) == (2, 1), error
    assert "out of memory while packages are loaded" in error


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_a_package_that_is_missing_is_named(tmp_path, name):
    hidden = tmp_path / "sitecustomize.py"
    hidden.write_text(f"import sys; sys.modules[{name!r}] = None")
    status, error = ended(["train.py", "--dataset", "shapes"], path=str(tmp_path))
    assert (status, error.count("\n")) == (2, 1), error
    assert "pip install -r requirements.txt" in error


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("could not create a primitive"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
    RuntimeError("unable to mmap 12 bytes from file <x>: Cannot allocate memory (12)"),
    OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_no_file_is_called_damaged_for_want_of_memory(tmp_path, monkeypatch, error):
    """Else --resume auto would go on from an older checkpoint, and a photo be replaced."""
    assert is_out_of_memory(error)

    def fails(*arguments, **keywords):
        raise error

    path = tmp_path / "x.pth.tar"
    storage.save(path, {"a": 1})
    monkeypatch.setattr(storage.torch, "load", fails)
    with pytest.raises((type(error), storage.NotReadable)):
        storage.load(path)
    monkeypatch.setattr("inputs.photos.Image.open", fails)
    with pytest.raises(type(error)) as caught:
        load_photo(path)
    assert not isinstance(caught.value, InputError)


# ---------------------------------------------------------------------- what freed memory does


COUNTED = """
import ctypes, resource
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: no huge pages, which count as one
from common.memory import MMAP_BYTES, keep_freed_memory
{placement}

def fresh(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    filled(size)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return faults * resource.getpagesize() / size

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

size = 48 * 2**20
without = min(fresh(size) for _ in range(6))
place()
kept, before = min(fresh(size) for _ in range(6)), resident()
filled(2 * MMAP_BYTES)
print(without, kept, (resident() - before) / MMAP_BYTES, keep_freed_memory())
"""
A_MODEL = """
import torch
from common.device import place_on_device
from training.options import parse

def filled(size):
    torch.ones(size, dtype=torch.uint8)

def place():
    place_on_device(torch.nn.Linear(2, 2), parse("", ["--dataset", "shapes", "--device", "cpu"])[0])
"""
# As quick as it can be: without PyTorch.
NO_MODEL = """
filled, place = bytearray, keep_freed_memory
"""


def fills(placement, **environment):
    done = subprocess.run(
        [sys.executable, "-c", COUNTED.format(placement=placement)], cwd=ROOT, capture_output=True,
        text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})
    without, kept, left, changed = done.stdout.split()
    return float(without), float(kept), float(left), changed == "True"


glibc = pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="another C library")


@glibc
def test_freed_memory_is_used_again_where_a_model_is_on_a_cpu():
    """Of a block that is asked for, the part that the system fills with zeros: all, or nothing.

    The least of several, since a system may take pages back that a process does not use. Without a
    model it is all, however often a block is asked for."""
    without, kept, left, changed = fills(A_MODEL)
    assert without > 0.9 and kept < 0.1 and changed
    assert left < 0.1  # what is larger goes back


@glibc
@pytest.mark.parametrize("variable", [
    "MALLOC_MMAP_THRESHOLD_=65536", "MALLOC_TOP_PAD_=0",
    "GLIBC_TUNABLES=glibc.malloc.mmap_threshold=65536", "NOTHING_OF_MEMORY=1"])
def test_what_a_user_says_of_freed_memory_holds(variable):
    name, value = variable.split("=", 1)
    without, kept, _, changed = fills(NO_MODEL, **{name: value})
    assert without > 0.9
    assert (kept < 0.1 and changed) if name == "NOTHING_OF_MEMORY" else (kept > 0.9 and not changed)
