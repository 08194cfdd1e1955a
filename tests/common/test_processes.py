"""Communication between processes, against the same computed by one process."""

import os
import signal
import socket
import time

import pytest
import torch
from helpers.runs import expect_exit, expect_one_line
from helpers.together import Processes, run_together

import export
import search
from common import processes
from common.errors import InputError, exit_on_input_error
from common.ranks import is_main, local_rank, local_rows, rank, world_size
from training.options import check, parse

N = 3
WHOLE = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def results(one_thread, tmp_path_factory):
    """Return what every function returned in each of three processes."""
    def call():
        local = WHOLE[local_rows(6)].clone().requires_grad_()
        gathered = processes.gather(local)
        (gathered @ gathered.T).square().sum().backward()
        layer = torch.nn.ModuleList([torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)])
        processes.broadcast_tensors(*layer.parameters())
        layer.forward = layer[0].forward  # the other has no gradient
        wrapped = processes.with_summed_gradients(layer)
        for _ in range(2):
            layer.zero_grad()
            wrapped(WHOLE[local_rows(6)]).square().sum().backward()
        left, right = torch.zeros(3, dtype=torch.bfloat16), torch.ones(3)
        right[2] += rank() == 1
        order = []
        processes.once_per_machine(lambda: order.append(rank()))
        return {
            "gathered": gathered.detach(), "gradient": local.grad,
            "strided": [processes.gather_strided(WHOLE[rank() : count : N], count)
                        for count in (1, 3, 4, 5)],
            "several": processes.gather_several(
                torch.full((1, 2), rank()), torch.arange(3)[None] + 10 * rank()),
            "largest": processes.max_over_processes(3 - rank()),
            "from_main": processes.broadcast_from_main(rank() + 7),
            "weight": layer[0].weight.detach(), "bias": layer[0].bias.detach(),
            "summed": layer[0].weight.grad,
            "without": layer[1].weight.grad, "order": order,
            "differences": [processes.first_differing_tensor({"left": left, "right": value})
                            for value in (left, right)]}

    return run_together(N, call, tmp_path_factory.mktemp("together"))


def test_gathered_rows_have_the_gradient_of_the_whole(results):
    whole = WHOLE.clone().requires_grad_()
    (whole @ whole.T).square().sum().backward()
    for number, got in enumerate(results):
        assert torch.equal(got["gathered"], WHOLE)
        assert torch.allclose(got["gradient"], whole.grad[2 * number : 2 * number + 2])


def test_gradients_are_summed_and_a_missing_one_stays_missing(results):
    expected = 2 * (WHOLE @ results[0]["weight"].T + results[0]["bias"]).T @ WHOLE
    for got in results:
        assert torch.equal(got["weight"], results[0]["weight"])
        assert torch.equal(got["summed"], results[0]["summed"]) and got["without"] is None
        assert torch.allclose(got["summed"], expected)


def test_every_process_gets_the_same_result(results):
    for got in results:
        for count, rows in zip((1, 3, 4, 5), got["strided"]):
            assert torch.equal(rows, WHOLE[:count])
        assert got["several"][0].tolist() == [[0, 0], [1, 1], [2, 2]]
        assert got["several"][1].tolist() == [[0, 1, 2], [10, 11, 12], [20, 21, 22]]
        assert got["largest"] == 3 and got["from_main"] == 7
        assert got["differences"] == [None, "right"]
    assert [got["order"] for got in results] == [[0], [], []]  # of one machine


def test_one_process_gets_back_its_arguments():
    rows = torch.rand(4, 2, requires_grad=True)
    layer = torch.nn.Linear(2, 2)
    assert world_size() == 1 and processes.gather(rows) is rows
    assert processes.gather_strided(rows, 4) is rows and processes.max_over_processes(5) == 5
    assert processes.with_summed_gradients(layer) is layer
    assert processes.broadcast_from_main(rows) is rows
    assert processes.first_differing_tensor({"a": rows}) is None
    with processes.process_group("cpu"):
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_bit_and_its_position_change_the_checksum(dtype):
    values = torch.tensor([[0, 1, 1], [0, 0, 1]]).to(dtype)
    assert processes.bit_checksum(values) != processes.bit_checksum(values.flip(1))
    assert processes.bit_checksum(values) == processes.bit_checksum(values.clone())


def test_the_checksum_of_a_large_tensor_is_computed_in_chunks(monkeypatch):
    monkeypatch.setattr(processes, "CHECKSUM_CHUNK", 5)
    values = torch.arange(12.0)
    moved = values.flip(0)[[0, *range(1, 12)]]
    assert processes.bit_checksum(values) != processes.bit_checksum(moved)


@pytest.mark.parametrize("lacking", ["MASTER_ADDR", "MASTER_PORT", "RANK"])
def test_half_an_environment_is_refused(monkeypatch, capsys, tmp_path, lacking):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(lacking)
    line = expect_one_line(["--dataset", "shapes", "--data_path", str(tmp_path)], lacking, capsys)
    assert "torchrun" in line


@pytest.mark.parametrize("count, sizes", [(3, "63 or 66"), (7, "63 or 70"), (100, "make it 100")])
def test_a_batch_that_the_processes_do_not_divide_is_refused(monkeypatch, count, sizes):
    options, _ = parse("", ["--dataset", "shapes", "--batch_size_train", "64"])
    check(options)
    monkeypatch.setenv("WORLD_SIZE", str(count))
    with pytest.raises(InputError, match=f"batch_size_train 64: {count} processes .* {sizes}"):
        check(options)
    options.test = True  # which trains on no batch
    check(options)


@pytest.mark.parametrize("main, arguments", [
    (search.main, ["model", "--photos", ".", "a dog"]), (export.main, ["model.pth.tar", "out"])])
def test_a_command_of_one_process_refuses_to_be_several(monkeypatch, capsys, main, arguments):
    monkeypatch.setenv("WORLD_SIZE", "8")
    expect_exit(arguments, 2, capsys, ["takes one process", "names 8", "without torchrun"], main)


# ---------------------------------------------------------------------------------- how they end


def ending(call, folder, count=N):
    """Return statuses, lines on stderr and seconds of processes in which `call` raises."""
    def guarded():
        with exit_on_input_error(), processes.process_group("cpu"):
            call()

    start = time.monotonic()
    group = Processes(count, guarded, folder)
    return group.statuses(), group.printed().splitlines(), time.monotonic() - start


def test_an_error_of_all_processes_is_printed_once(tmp_path):
    def call():
        raise InputError("--flag: no")

    statuses, lines, _ = ending(call, tmp_path)
    assert statuses == [2] * N and lines == ["error: --flag: no"]


def test_an_error_before_the_processes_connect_is_printed_once(tmp_path):
    def call():
        with exit_on_input_error(), processes.process_group("cuda"):
            raise AssertionError("there is no GPU")

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    group = Processes(2, call, tmp_path)
    assert group.statuses() == [2, 2]
    assert group.printed().splitlines() == [
        "error: --device cuda: no GPU is visible to PyTorch; use --device cpu"]


@pytest.mark.parametrize("where", [0, 1])
def test_an_error_of_one_process_ends_all_within_seconds(tmp_path, where):
    def call():
        if rank() == where:
            raise InputError("photo 7 is broken")
        processes.barrier()

    statuses, lines, seconds = ending(call, tmp_path)
    assert statuses == [2] * N and lines == ["error: photo 7 is broken"], lines
    assert seconds < 30


def test_an_error_ends_a_process_that_is_busy(tmp_path):
    def call():
        if rank() == 1:
            raise InputError("no room")
        time.sleep(600)

    statuses, lines, seconds = ending(call, tmp_path)
    assert statuses == [2] * N and lines == ["error: no room"] and seconds < 30


def test_a_fault_of_the_program_shows_its_traceback_once(tmp_path):
    def call():
        if rank() == 1:
            raise ZeroDivisionError("a fault")
        processes.barrier()

    statuses, lines, _ = ending(call, tmp_path)
    assert 0 not in statuses and lines.count("ZeroDivisionError: a fault") == 1, lines
    assert sum(line.startswith("Traceback") for line in lines) == 1


def test_a_killed_process_is_named(tmp_path):
    def call():
        if rank() == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        processes.barrier()

    statuses, lines, seconds = ending(call, tmp_path)
    assert statuses == [1, 1, -signal.SIGKILL] and len(lines) == 1 and seconds < 30, lines
    assert lines[0].startswith("error: process 2 of 3 is gone") and "--resume auto" in lines[0]


def test_a_process_that_hangs_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "TIME_LIMIT", 4)

    def call():
        if rank() == 1:
            time.sleep(600)
        processes.barrier()

    statuses, lines, seconds = ending(call, tmp_path)
    assert 0 not in statuses and len(lines) == 1 and seconds < 40, lines
    assert lines[0].startswith("error: process 1 of 3 is gone, or gave no answer for 4 s")


# -------------------------------------------------------------------------------- how they meet


def meeting(folder, *environments, facts=None):
    """Return statuses and lines on stderr of processes with these changes of their environment."""
    def call():
        number = int(os.environ["RANK"])
        for name, value in environments[number].items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        with exit_on_input_error(), processes.process_group("cpu", facts and facts(number)):
            processes.barrier()

    group = Processes(len(environments), call, folder)
    return group.statuses(), group.printed().splitlines()


@pytest.mark.parametrize("facts, named", [
    (lambda number: {"--seed": 1 + (number == 2), "--margin": 0.2}, "--seed is 1 in process 0 and"),
    (lambda number: {"--freeze": None if number else "image"}, "--freeze is image"),
    (lambda number: {"--new": 1} if number == 1 else {}, "--new is not there in process 0"),
    (lambda number: {"--prefix": "x" * 10**6 + str(number)}, "--prefix"),
])
def test_processes_that_are_not_alike_end_in_one_line(tmp_path, facts, named):
    statuses, lines = meeting(tmp_path, {}, {}, {}, facts=facts)
    assert statuses == [2, 2, 2] and len(lines) == 1 and named in lines[0], lines


def test_processes_of_other_versions_end_in_one_line(tmp_path, monkeypatch):
    known = processes.versions()
    monkeypatch.setattr(processes, "versions", lambda: known | {
        "the version of torch": f"2.{os.environ['RANK']}"})
    statuses, lines = meeting(tmp_path, {}, {})
    assert statuses == [2, 2] and len(lines) == 1 and "the version of torch is 2.0" in lines[0]


@pytest.mark.parametrize("name, value", [
    ("RANK", "x"), ("RANK", "-1"), ("RANK", "2"), ("RANK", "0"), ("RANK", "1.0"), ("RANK", None),
    ("LOCAL_RANK", "x"), ("LOCAL_RANK", "2"), ("WORLD_SIZE", "x"), ("WORLD_SIZE", "0"),
    ("WORLD_SIZE", "-2"), ("WORLD_SIZE", "3"), ("MASTER_PORT", "x"), ("MASTER_PORT", "0"),
    ("MASTER_PORT", "70000"), ("MASTER_ADDR", "no.such.host.invalid"), ("MASTER_ADDR", "a..b"),
    ("MASTER_ADDR", None), ("MASTER_PORT", "1")])
def test_a_process_with_another_environment_is_told_and_nobody_waits_for_long(
        tmp_path, monkeypatch, name, value):
    monkeypatch.setattr(processes, "MEETING_LIMIT", 1)
    start = time.monotonic()
    statuses, lines = meeting(tmp_path, {}, {name: value})
    assert statuses == [2, 2] and time.monotonic() - start < 30, lines
    assert len(lines) <= 2 and all(line.startswith("error: ") for line in lines), lines
    assert any(name in line for line in lines), lines


def test_processes_that_do_not_come_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "MEETING_LIMIT", 2)
    statuses, lines = meeting(tmp_path, {"WORLD_SIZE": "4"}, {"WORLD_SIZE": "4"})
    assert statuses == [2, 2] and len(lines) == 1, lines
    assert "process 2, 3 of 4 did not come within 2 s" in lines[0]


def test_a_server_of_another_kind_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "MEETING_LIMIT", 2)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        statuses, lines = meeting(tmp_path, {"MASTER_PORT": port}, {"MASTER_PORT": port})
    assert statuses == [2, 2] and any("MASTER_PORT" in line for line in lines), lines


def test_a_rank_without_a_number_of_processes_means_nothing(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "x")
    with processes.process_group("cpu"):
        assert (world_size(), rank(), local_rank()) == (1, 0, 0) and is_main()
