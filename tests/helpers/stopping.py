"""Ways to stop a run: a signal in the middle of a step, a child process that can be killed."""

import os
import signal
import sys

import checkpoint
import train


def signal_after(monkeypatch, step, number=signal.SIGTERM):
    """Send the process a signal in the middle of a step, counted from 1."""
    whole_step = train.training_step

    def training_step(run, batch):
        if run.global_step + 1 == step:
            os.kill(os.getpid(), number)
        return whole_step(run, batch)

    monkeypatch.setattr(train, "training_step", training_step)


def in_a_child(call):
    """Run `call` in a forked child, which has everything imported; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
        for descriptor in 1, 2:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        call()
        os._exit(0)
    except SystemExit as stop:
        os._exit(stop.code)
    except BaseException:
        os._exit(99)


def in_a_pipe(call):
    """Run `call` in a child whose standard output and error go into pipes; both, to be read."""
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()

    def child():
        os.dup2(out_end, 1)
        os.dup2(err_end, 2)
        for end in out, err, out_end, err_end:
            os.close(end)
        sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)
        call()
        sys.stdout.flush()

    number = in_a_child(child)
    os.close(out_end)
    os.close(err_end)
    return number, open(out, "rb"), open(err, "rb")


def status_of(child):
    """How a child ended; it is waited for."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def newest_step(folder):
    """Of the checkpoint that an automatic resume would take: it must be there and whole."""
    path, state = checkpoint.newest(folder)
    return state["global_step"] if state is not None else 0
