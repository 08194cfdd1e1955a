"""Errors of the machine are told apart by type and number, whatever a file is called."""

import errno
import os

import pytest
import torch
from helpers.runs import expect_exit
from PIL import Image
from torch.utils.data import DataLoader

from common.errors import (
    InputError,
    LostWorker,
    exit_on_input_error,
    is_lost_worker,
    is_out_of_memory,
    message_and_status,
    nondeterministic_operation,
)
from common.processes import is_lost_process
from inputs.fitting import PhotoDataset
from inputs.photos import TooLarge, load_photo

WORDS = [
    "out of memory", "can't allocate memory", "Cannot allocate memory", "not enough memory",
    "could not create a primitive", "std::bad_alloc", "failed to map segment",
    "can't start new thread", "DataLoader worker (pid 5) was killed",
    "DataLoader timed out after 5 seconds", "unable to mmap", "received 0 items of ancdata",
    "errors.InputError: x", "gloo NCCL Connection reset by peer Broken pipe",
    "a does not have a deterministic implementation, but you set x",
    "CUDA out of memory. Tried", "Cannot allocate memory (os error 12)",
    "DefaultCPUAllocator: can't allocate memory"]


@pytest.mark.parametrize("words", WORDS)
def test_a_broken_photo_of_any_name_is_a_broken_photo(tmp_path, words):
    path = tmp_path / f"{words}.jpg"
    for content in b"none", b"", b"\xff\xd8\xff\xe0" + bytes(90):
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            load_photo(path)
        message, status = message_and_status(caught.value)
        assert status == 2 and message.startswith("error: photo ") and str(path) in message


@pytest.mark.parametrize("words", WORDS)
def test_the_name_of_a_file_makes_no_other_error(tmp_path, words):
    """As system and libraries put names into their messages; each is a fault of the program."""
    for error in (FileNotFoundError(errno.ENOENT, "No such file or directory", f"/x/{words}"),
                  RuntimeError(f"Parent directory /x/{words} does not exist."),
                  RuntimeError(f"open file failed, file path: {words}"),
                  RuntimeError(f"unable to mmap 5 bytes from file <{words}>: No such device (19)"),
                  ImportError(f"/x/{words}/lib.so: cannot open shared object file"),
                  ValueError(words)):
        assert not is_out_of_memory(error) and not is_lost_worker(error)
        assert not is_lost_process(error) and nondeterministic_operation(error) is None
        assert message_and_status(error) is None


@pytest.mark.parametrize("error", [
    MemoryError("x"), OSError(errno.ENOMEM, "Cannot allocate memory"),
    OSError("Cannot allocate memory (os error 12)"), RuntimeError("can't start new thread"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ImportError("libx.so: cannot create shared object descriptor: Cannot allocate memory"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory\nCompile with"), RuntimeError("std::bad_alloc"),
    RuntimeError("could not create a primitive"), torch.OutOfMemoryError("CUDA out of memory. X")])
def test_short_memory_is_recognised(error):
    assert is_out_of_memory(error)
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [
    RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by "
                 "peer [127.0.0.1]:4567"),
    RuntimeError("[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting "
                 "600000ms for recv operation to complete"),
    RuntimeError("Gloo connectFullMesh failed with [...]"),
    RuntimeError("NCCL communicator was aborted on rank 1."),
    torch.distributed.DistBackendError("NCCL error in ...")])
def test_a_process_that_went_away_is_recognised(error):
    assert is_lost_process(error)


class Raises(list):
    """A data set whose only item raises an error."""

    def __getitem__(self, index):
        raise super().__getitem__(index)


def error_of_worker(error):
    """Return the error as it arrives from the worker process in which it was raised."""
    with pytest.raises(type(error)) as caught:
        next(iter(DataLoader(Raises([error]), num_workers=1)))
    return caught.value


@pytest.mark.parametrize("text", ["photo a.jpg: fetch it again", "photo errors.InputError: b.jpg",
                                  "photo \ncommon.errors.InputError: c.jpg"])
@pytest.mark.parametrize("kind", [InputError, TooLarge])
def test_the_mistake_that_a_worker_tells_is_told_whole(capsys, text, kind):
    def main(arguments):
        with exit_on_input_error():
            raise error_of_worker(kind(text))

    line = expect_exit([], 2, capsys, main=main)
    assert line == f"error: {' '.join(text.split())}\n"


def test_a_photo_of_too_many_pixels_is_told_by_a_worker(tmp_path, capsys):
    Image.new("1", (11_000, 11_000)).save(tmp_path / "x.png")

    def main(arguments):
        with exit_on_input_error():
            list(DataLoader(PhotoDataset([tmp_path / "x.png"], 8), num_workers=1))

    line = expect_exit([], 2, capsys, ["x.png"], main)
    assert "make it smaller" in line and "Traceback" not in line


def test_short_memory_of_a_worker_is_short_memory_and_its_fault_is_no_lost_worker():
    assert is_out_of_memory(error_of_worker(MemoryError("x")))
    assert is_out_of_memory(error_of_worker(RuntimeError("can't start new thread")))
    fault = error_of_worker(RuntimeError("shapes do not match, out of memory"))
    assert not is_out_of_memory(fault) and not is_lost_worker(fault)
    assert message_and_status(fault) is None
    assert is_lost_worker(LostWorker("x"))


@pytest.mark.parametrize("number, way_out", [
    (errno.ENOSPC, "free some space"), (errno.EFBIG, "free some space"),
    (errno.EACCES, "permission"), (errno.EROFS, "another folder")])
def test_a_full_disk_is_no_missing_permission(number, way_out):
    message, status = message_and_status(OSError(number, os.strerror(number), "/x/y"))
    assert status == 2 and "/x/y" in message and way_out in message
    assert ("free some space" in message) is (way_out == "free some space")
