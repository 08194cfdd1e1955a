"""Several processes that act as one run, forked from a test, so that nothing is imported anew."""

import os
import signal
import socket
import sys
import time
import traceback

import torch
import torch.distributed as dist

from common import processes, ranks
from helpers.stopping import status_of

PATIENCE = 90  # seconds after which processes that still run have hung


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Processes:
    """`count` children that call `call()`, each with the environment that torchrun would give it;
    what they print is kept in `folder`."""

    def __init__(self, count, call, folder):
        folder.mkdir(exist_ok=True, parents=True)
        self.folder, port = folder, free_port()
        self.children = [self.fork(call, {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TOKENIZERS_PARALLELISM": "false",
        }) for rank in range(count)]

    def fork(self, call, variables):
        child = os.fork()
        if child:
            return child
        status = 99
        try:
            os.environ |= {name: str(value) for name, value in variables.items()}
            torch.set_num_threads(1)
            for descriptor, name in (1, "out"), (2, "err"):
                path = self.folder / f"{name}_{variables['RANK']}"
                os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
            sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)
            call()
            status = 0
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def statuses(self):
        """How they ended, in order."""
        deadline, found = time.monotonic() + PATIENCE, {}
        while len(found) < len(self.children):
            for child in self.children:
                if child not in found and os.waitid(
                        os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    found[child] = status_of(child)
            if time.monotonic() > deadline:
                for child in set(self.children) - found.keys():
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.02)
        return [found[child] for child in self.children]

    def printed(self, name="err"):
        """What all of them printed to "out" or "err"."""
        return "".join((self.folder / f"{name}_{rank}").read_text()
                       for rank in range(len(self.children)))


def bytes_sent():
    """Have this process count what it sends for sums: a list that gets each message's bytes."""
    sent, all_reduce = [], dist.all_reduce

    def counting(tensor, *arguments, **keywords):
        sent.append(tensor.nbytes)
        return all_reduce(tensor, *arguments, **keywords)

    dist.all_reduce = counting
    return sent


def run_together(count, call, folder):
    """Let them run to their end, which has to be a good one; what each `call()` gave."""
    def keep():
        with processes.process_group("cpu"):
            value = call()
        torch.save(value, folder / f"value_{ranks.rank()}")

    group = Processes(count, keep, folder)
    statuses = group.statuses()
    assert statuses == [0] * count, group.printed()
    return [torch.load(folder / f"value_{rank}", weights_only=False) for rank in range(count)]
