"""Standard output and error that are closed, that nobody reads, or that take few letters."""

import io
import os
import subprocess
import sys

import pytest
from helpers.paths import ROOT
from helpers.runs import CPU, command, final_state
from helpers.stopping import in_a_pipe, status_of

import evaluation
import train
from common import terminal
from common.errors import exit_on_input_error


def test_a_run_goes_on_when_nobody_reads(data, finished, tmp_path):
    """As `train.py | head -1` does: the reader is gone after a line, the run is whole."""
    child, out, err = in_a_pipe(lambda: train.main(command(data, tmp_path / "run")))
    assert out.readline().startswith(b"data: shapes, ")
    out.close()
    err.close()
    assert status_of(child) == 0
    assert final_state(tmp_path / "run")["epoch"] == 3
    assert (tmp_path / "run" / "test_results.json").read_text() == (
        finished / "test_results.json").read_text()


def test_a_mistake_is_told_where_nobody_listens(data, tmp_path):
    child, out, err = in_a_pipe(lambda: train.main(
        command(data, tmp_path / "run", "--prior", "2")))
    out.close()
    err.close()
    assert status_of(child) == 2


def test_standard_output_on_a_full_disk_is_named_and_the_rest_is_written(data, finished, tmp_path):
    """Status 2, and one line on standard error, at the end of the command."""
    def score():
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        evaluation.main([str(finished / "model_best.pth.tar"), "--data_path", str(data), *CPU,
                         "--output", str(tmp_path / "x.json"), "--workers", "0"])

    child, _, err = in_a_pipe(score)
    text = err.read().decode()
    assert status_of(child) == 2
    assert text.startswith("error: standard output cannot be written") and text.count("\n") == 1
    assert "rsum" in (tmp_path / "x.json").read_text()


def test_a_run_goes_on_where_standard_error_is_full(data, tmp_path):
    def run():
        os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
        train.main(command(data, tmp_path / "run", "--num_epochs", "1"))

    child, out, err = in_a_pipe(run)
    assert b"rsum" in out.read() and status_of(child) == 0


def test_a_working_folder_that_is_gone_is_told(tmp_path):
    (tmp_path / "gone").mkdir()
    done = subprocess.run(
        ["bash", "-c", f"cd gone && rmdir ../gone && {sys.executable} {ROOT}/search.py m x"],
        cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "working folder is gone" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", [["stdout"], ["stderr"], ["stdout", "stderr"]])
def test_closed_streams_are_no_error(monkeypatch, closed):
    """Python has None in place of a stream that was closed before it started."""
    for name in closed:
        monkeypatch.setattr(sys, name, None)
    with exit_on_input_error():
        terminal.print_status("a line")
        terminal.print_result("a result")
        terminal.warn("a warning")
        list(terminal.progress([1], "counting"))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_text_is_written_in_any_encoding(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    with exit_on_input_error():
        terminal.print_result("✓ ± a\udcffb")
    assert raw.getvalue().endswith(b"a\\udcffb\n")


@pytest.mark.parametrize("write, stream", [(terminal.print_status, 0), (terminal.print_result, 0),
                                           (terminal.warn, 1)])
def test_a_name_moves_no_cursor(capsys, write, stream):
    """What a terminal would obey is shown as text."""
    write("photo \x1b[31mred\x07\x9b2J.png")
    assert "photo \\x1b[31mred\\x07\\x9b2J.png\n" in capsys.readouterr()[stream]


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you "
                                "tried"), RuntimeError("CUDA out of memory. Tried to allocate")])
def test_too_little_memory_is_told_in_a_line(capsys, error):
    with pytest.raises(SystemExit) as caught, exit_on_input_error():
        raise error
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: out of memory: make --batch_size_train")


def test_another_runtime_error_is_a_fault_of_the_program():
    with pytest.raises(RuntimeError, match="sizes"), exit_on_input_error():
        raise RuntimeError("sizes do not match")
