"""Steps of a run of one process that takes part in every exchange, as one of several would.

    python -m helpers.one_process cuda

On a GPU all tensors of the run then travel through NCCL, which needs no second GPU. It prints the
losses as json, and how often something was sent through which backend.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from common import processes
from helpers.paths import ROOT
from helpers.steps import make_run, take_step
from helpers.together import free_port
from training.objectives import fne


class Several(int):
    """A number of processes that is not told from more than one."""

    def __eq__(self, other):
        return False

    __hash__ = int.__hash__


def losses_of_steps(device: str) -> list[float]:
    """The losses of four steps, of which two warm up, without dropout."""
    with tempfile.TemporaryDirectory() as folder:
        run, batches = make_run(Path(folder), "--device", device, "--precision", "fp32")
    run.model.eval()
    run.objective.eval()
    losses = []
    for number in range(4):
        run.epoch = number // 2
        losses.append(take_step(run, batches[number % 2]).item())
    return losses


def losses_and_exchanges(device: str) -> tuple[list[float], Counter]:
    """The same losses where the only process exchanges, and the number of exchanges by backend."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(free_port())}
    processes.connect(device)
    exchanges = Counter()

    def counted(exchange):
        def call(*tensors, group=None, **settings):
            exchanges[dist.get_backend(group)] += 1
            return exchange(*tensors, group=group, **settings)
        return call

    with (mock.patch.object(processes, "world_size", lambda: Several(1)),
          mock.patch.object(fne, "world_size", lambda: Several(1)),
          mock.patch.object(dist, "all_gather", counted(dist.all_gather)),
          mock.patch.object(dist, "all_reduce", counted(dist.all_reduce))):
        losses = losses_of_steps(device)
    dist.destroy_process_group()
    return losses, exchanges


def in_a_new_process(device: str) -> dict:
    """What `python -m helpers.one_process` prints: "alone", "together" and "sent"."""
    done = subprocess.run(
        [sys.executable, "-m", "helpers.one_process", device], cwd=ROOT, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    alone = losses_of_steps(sys.argv[1])
    together, sent = losses_and_exchanges(sys.argv[1])
    print(json.dumps({"alone": alone, "together": together, "sent": sent}))
