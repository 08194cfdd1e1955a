"""What a second process gains, and what the processes of a run send each other.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --processes 4 --repeats 5 --save

Whole steps on `shapes`, and the loss alone at the published shapes of embeddings, on one process
and on several, in turns, with one thread each: so one machine's cores stand for machines. "Without
sending" is the same work with the collective calls left out: the rest of a step is the share of
communication, waiting for the slower process included. Bytes are counted at each call, beside
`bytes_of_a_step`, the formula of docs/many_machines.md.
"""

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.distributed as dist
from speed import filled_bank, fitted_loss, keep, machine, unit_rows
from training_step import SMALL, make_run, random_batch, step

from common import processes
from common.ranks import local_rows, rank, world_size
from data import Batch
from training.run import Run

B, M, D = 256, 65_536, 768  # of the loss


def bytes_of_a_step(processes: int, parameters: int, batch: int, dim: int) -> float:
    """What one of N processes sends in an FNE step, if sums go round in a ring.

    Args:
        parameters: P, those that are trained.
        batch: B of all processes.
        dim: D.
    """
    ring = 2 * (processes - 1) / processes  # times the size of what is summed
    gradients, sums = 4 * parameters, 8 * 5
    # Embeddings and keys of both sides; three ids; the negatives of both sides and what they tell.
    row = 4 * 4 * dim + 8 * 3 + 8 * 4
    return ring * (gradients + sums) + (processes - 1) * batch / processes * row


class Sent:
    """Counts what this process sends, or with `silent` lets nothing be sent: the answers are then
    of the right shape, and wrong."""

    def __init__(self, silent: bool = False):
        self.bytes, self.silent = 0.0, silent
        self.all_gather, self.all_reduce = dist.all_gather, dist.all_reduce

    def __enter__(self) -> "Sent":
        dist.all_gather, dist.all_reduce = self.gathered, self.reduced
        return self

    def __exit__(self, *error) -> None:
        dist.all_gather, dist.all_reduce = self.all_gather, self.all_reduce

    def gathered(self, parts, own, **settings):
        self.bytes += (world_size() - 1) * own.nbytes
        if not self.silent:
            return self.all_gather(parts, own, **settings)
        for part in parts:
            part.copy_(own)

    def reduced(self, tensor, *operation, **settings):
        self.bytes += 2 * (world_size() - 1) / world_size() * tensor.nbytes
        if not self.silent:
            return self.all_reduce(tensor, *operation, **settings)
        self.tensor = tensor
        return self

    def get_future(self):
        """For the hook that asks a silent `reduced` for its answer: the tensor as it is."""
        future = torch.futures.Future()
        future.set_result([self.tensor])
        return future


# ------------------------------------------------------------------------ what each process does


def seconds(work: Callable[[], None], times: int) -> float:
    """Seconds of a call, all processes beginning together."""
    work()
    processes.barrier()
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times


def share_of(run: Run) -> Batch:
    """A fresh random batch: this process's share of it, with the ids of all."""
    own = local_rows(run.options.batch_size_train)
    return Batch(*(part[own] for part in random_batch(run))).with_all_ids()


def steps(times: int) -> dict:
    run = make_run(SMALL, "cpu")
    work = lambda: step(run, share_of(run))  # noqa: E731
    with Sent() as sent:
        taken = seconds(work, times)
        counted = sent.bytes / (times + 1)
    with Sent(silent=True):
        alone = seconds(work, times)
    parameters = sum(value.numel() for value in run.model.parameters() if value.requires_grad)
    formula = bytes_of_a_step(world_size(), parameters, run.options.batch_size_train,
                              run.model.embed_size)
    return {"seconds": taken, "without": alone, "bytes": counted, "formula": formula}


def losses(times: int) -> dict:
    """Gathering, drawing, hinge and its gradient of this process's anchors; the bank is full."""
    torch.manual_seed(0)
    bank, criterion = filled_bank(M, D, "cpu"), fitted_loss(D, "cpu")
    images = unit_rows(B, D, "cpu")
    texts, ids, own = unit_rows(B, D, "cpu", images), torch.randint(29_000, (B,)), local_rows(B)

    def work():
        mine = [side[own].clone().requires_grad_() for side in (images, texts)]
        keys = [processes.gather(side.detach()) for side in mine]
        draws = criterion.draw_both(*mine, *keys, ids, bank, own.start)
        (criterion.hinge_of(*mine, *draws) / world_size()).backward()

    with Sent():
        taken = seconds(work, times)
    with Sent(silent=True):
        return {"seconds": taken, "without": seconds(work, times)}


# ----------------------------------------------------------------------------------- all of them


def measure(count: int, work: Callable[[int], dict], times: int) -> dict:
    """What the slowest of `count` forked processes measured."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        children = []
        for number in range(count):
            if child := os.fork():
                children.append(child)
                continue
            try:
                os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(count),
                                  LOCAL_WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1",
                                  MASTER_PORT=str(port), TOKENIZERS_PARALLELISM="false")
                with processes.process_group("cpu"):
                    found = work(times)
                (Path(folder) / str(rank())).write_text(json.dumps(found))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        if any(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children):
            sys.exit("error: a process of the benchmark failed")
        found = [json.loads((Path(folder) / str(number)).read_text()) for number in range(count)]
    return max(found, key=lambda values: values["seconds"])


def table(count: int, repeats: int, times: int) -> str:
    lines = ["| work | one process | several | times as fast | share of communication |",
             "|---|---|---|---|---|"]
    sent = {}
    for name, work in (("a step on shapes, B 64", steps),
                       (f"the loss, B {B}, M {M:,}, D {D}", losses)):
        rounds = [(measure(1, work, times), measure(count, work, times)) for _ in range(repeats)]
        gains = sorted(one["seconds"] / many["seconds"] for one, many in rounds)
        middle = [statistics.median(found[side]["seconds"] for found in rounds) for side in (0, 1)]
        share = statistics.median(1 - many["without"] / many["seconds"] for _, many in rounds)
        lines.append(f"| {name} | {1000 * middle[0]:.0f} ms | {1000 * middle[1]:.0f} ms | "
                     f"{statistics.median(gains):.2f} ({gains[0]:.2f} to {gains[-1]:.2f}) | "
                     f"{max(0.0, share):.0%} |")
        sent = sent or rounds[0][1]
    lines += ["", f"A process sends {sent['bytes'] / 1e6:.3f} MB in a step on shapes, counted; "
              f"{sent['formula'] / 1e6:.3f} MB by the formula."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="beside one")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--steps", type=int, default=10, help="of each measurement")
    parser.add_argument("--save", action="store_true", help="keep the table in benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = table(options.processes, options.repeats, options.steps)
    print(text)
    if options.save:
        keep("cpu_scaling", "scaling.py", f"{machine('cpu')}\n\n{text}")


if __name__ == "__main__":
    main()
