"""Measure what a second process gains, and what the processes of a run send each other.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --processes 4 --repeats 5 --save

Whole steps on `shapes`, and the loss alone at the published size of embeddings, are measured on one
process and on several, in turns. Each process has one thread, so the cores of one machine stand for
machines. The same work is also measured with the collective calls left out. What a step takes
beyond that is the share of communication, which includes waiting for the slower process. The bytes
that are sent are counted at each call, and printed beside `bytes_of_a_step`, the formula of
docs/many_machines.md.
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

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

import torch
import torch.distributed as dist
from speed import describe_machine, filled_bank, fitted_loss, save_table, unit_rows
from training_step import SMALL, make_run, random_batch, step

from common import processes
from common.errors import exit_on_input_error
from common.ranks import local_rows, rank, world_size
from data import Batch
from training.exchange import exchange_ids
from training.run import Run

B, M, D = 256, 65_536, 768  # of the loss


def bytes_of_a_step(processes: int, parameters: int, batch: int, dim: int) -> float:
    """Return the bytes that one of N processes sends in an FNE step, with sums made in a ring.

    Args:
        processes: N.
        parameters: P, the number of trained parameters.
        batch: B, the pairs of all processes together.
        dim: D of the embeddings.
    """
    ring = 2 * (processes - 1) / processes  # times the size of what is summed
    gradients = 4 * parameters
    # Embeddings and keys of photo and caption; three ids; the negative and its posterior in each
    # direction.
    bytes_per_pair = 4 * 4 * dim + 8 * 3 + 8 * 4
    # The signal; loss, counts and evidence of both directions.
    bytes_per_process = 8 + 8 * (1 + 4 + 24)
    gathered = batch / processes * bytes_per_pair + bytes_per_process
    return ring * gradients + (processes - 1) * gathered


class SentBytes:
    """Count the bytes that this process sends to the others, as a context manager.

    Args:
        silent: whether to send nothing. The results of collective calls then have the right shape,
            and wrong numbers.

    Attributes:
        bytes: sent so far; counted with `silent` too.
    """

    def __init__(self, silent: bool = False):
        self.bytes, self.silent = 0.0, silent
        self.all_gather, self.all_reduce = dist.all_gather, dist.all_reduce

    def __enter__(self) -> "SentBytes":
        dist.all_gather, dist.all_reduce = self.counted_gather, self.counted_reduce
        return self

    def __exit__(self, *error) -> None:
        dist.all_gather, dist.all_reduce = self.all_gather, self.all_reduce

    def counted_gather(self, outputs, local, **settings):
        """Count an `all_gather`, and do it unless `silent`."""
        self.bytes += (world_size() - 1) * local.nbytes
        if not self.silent:
            return self.all_gather(outputs, local, **settings)
        for output in outputs:
            output.copy_(local)

    def counted_reduce(self, tensor, *operation, **settings):
        """Count an `all_reduce`, and do it unless `silent`."""
        self.bytes += 2 * (world_size() - 1) / world_size() * tensor.nbytes
        if not self.silent:
            return self.all_reduce(tensor, *operation, **settings)
        self.tensor = tensor
        return self

    def get_future(self):
        """Return a finished future of the tensor as it is, for hooks that wait for the sum."""
        future = torch.futures.Future()
        future.set_result([self.tensor])
        return future


# ------------------------------------------------------------------------ what each process does


def seconds(work: Callable[[], None], times: int) -> float:
    """Return the mean seconds of `times` calls, which all processes begin together."""
    work()
    processes.barrier()
    started = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - started) / times


def local_batch(run: Run) -> Batch:
    """Return this process's rows of a random batch, with the ids of all rows."""
    local = local_rows(run.options.batch_size_train)
    batch, _ = exchange_ids(Batch(*(tensor[local] for tensor in random_batch(run))), 0)
    return batch


def measure_steps(times: int) -> dict:
    """Measure whole training steps on `shapes` in this process.

    Returns:
        "seconds" of a step, those "without" sending, and the "bytes" that are sent in a step, with
        those of the "formula".
    """
    run = make_run(SMALL, "cpu")

    def work():
        step(run, local_batch(run))

    with SentBytes() as sent:
        with_sending = seconds(work, times)
        counted = sent.bytes / (times + 1)
    with SentBytes(silent=True):
        without_sending = seconds(work, times)
    parameters = sum(value.numel() for value in run.model.parameters() if value.requires_grad)
    formula = bytes_of_a_step(world_size(), parameters, run.options.batch_size_train,
                              run.model.embed_size)
    return {"seconds": with_sending, "without": without_sending, "bytes": counted,
            "formula": formula}


def measure_loss(times: int) -> dict:
    """Measure the FNE loss of this process's anchors, its gradient, and gathering the keys.

    The memory bank is full.

    Returns:
        "seconds" of a call, and those "without" sending.
    """
    torch.manual_seed(0)
    bank, criterion = filled_bank(M, D, "cpu"), fitted_loss(D, "cpu")
    images = unit_rows(B, D, "cpu")
    texts, ids = unit_rows(B, D, "cpu", images), torch.randint(29_000, (B,))
    local = local_rows(B)

    def work():
        embeds = [rows[local].clone().requires_grad_() for rows in (images, texts)]
        keys = processes.gather_several(*(rows.detach() for rows in embeds))
        draws = criterion.draw(*embeds, *keys, ids, bank, first=local.start)
        (criterion.hinge_of(*embeds, *draws) / world_size()).backward()

    with SentBytes():
        with_sending = seconds(work, times)
    with SentBytes(silent=True):
        without_sending = seconds(work, times)
    return {"seconds": with_sending, "without": without_sending}


# ----------------------------------------------------------------------------------- all of them


def measure(count: int, work: Callable[[int], dict], times: int) -> dict:
    """Run `work` in `count` forked processes, and return what the slowest of them measured.

    Args:
        count: processes, which act as those of one run.
        work: measures, and returns its results by name; it gets `times`.
        times: calls or steps that are measured.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        children = []
        for number in range(count):
            child = os.fork()
            if child:
                children.append(child)
                continue
            try:
                os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(count),
                                  LOCAL_WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1",
                                  MASTER_PORT=str(port), TOKENIZERS_PARALLELISM="false")
                with processes.process_group("cpu"):
                    result = work(times)
                (Path(folder) / str(rank())).write_text(json.dumps(result))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        if any(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children):
            sys.exit("error: a process of the benchmark failed")
        results = [json.loads((Path(folder) / str(number)).read_text()) for number in range(count)]
    return max(results, key=lambda result: result["seconds"])


def table(count: int, repeats: int, times: int) -> str:
    """Measure one process and several in turns, and return a Markdown table.

    Args:
        count: processes beside one.
        repeats: turns.
        times: steps of each measurement.
    """
    lines = ["| work | one process | several | times as fast | share of communication |",
             "|---|---|---|---|---|"]
    sent = {}
    for name, work in (("a step on shapes, B 64", measure_steps),
                       (f"the loss, B {B}, M {M:,}, D {D}", measure_loss)):
        rounds = [(measure(1, work, times), measure(count, work, times)) for _ in range(repeats)]
        gains = sorted(one["seconds"] / many["seconds"] for one, many in rounds)
        one_process = statistics.median(one["seconds"] for one, _ in rounds)
        several = statistics.median(many["seconds"] for _, many in rounds)
        share = statistics.median(1 - many["without"] / many["seconds"] for _, many in rounds)
        lines.append(f"| {name} | {1000 * one_process:.0f} ms | {1000 * several:.0f} ms | "
                     f"{statistics.median(gains):.2f} ({gains[0]:.2f} to {gains[-1]:.2f}) | "
                     f"{max(0.0, share):.0%} |")
        sent = sent or rounds[0][1]
    lines += ["", f"A process sends {sent['bytes'] / 1e6:.3f} MB in a step on shapes, counted; "
              f"{sent['formula'] / 1e6:.3f} MB by the formula."]
    return "\n".join(lines)


def main() -> None:
    """Run the command with the arguments of the process."""
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
        save_table("cpu_scaling", "scaling.py", f"{describe_machine('cpu')}\n\n{text}")


if __name__ == "__main__":
    with exit_on_input_error():
        main()
