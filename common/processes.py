"""What the processes of one run say to each other, through `torch.distributed`.

A run on N processes does what one process does with the same global batch. Each has the whole of
the model, the bank and the statistics; they stay equal because each gets all B embeddings and ids
(`gather`) and the sum of all gradients (`summing_gradients`). In a run of one process every
function here gives back what it gets.

Tensors on a GPU travel through NCCL. All that decides what the program does next travels on the
CPU, through gloo, so that no step waits for a device; and there a time limit is kept.
"""

import contextlib
import datetime
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.device import pick_device
from common.errors import InputError, LostProcess, Stopped, line_and_status, one_line
from common.ranks import is_main, local_rank, rank, world

TIME_LIMIT = 600  # seconds that a process waits for the others
GRACE = 3.0  # seconds in which all of them learn of a failure
PART = 2**22  # numbers of a tensor that are looked at together, so that it needs little memory
VARIABLES = "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"

on_gpus = None  # the group of NCCL, where the run is on GPUs

# ------------------------------------------------------------------------------ from start to end


@contextlib.contextmanager
def together(device: str) -> Iterator[None]:
    """Inside, the processes of a run act as one; `device` is --device.

    Whatever ends one of them ends all within seconds, and only the first tells why.

    Raises:
        InputError: they do not find each other.
        LostProcess: one was killed, or hangs.
    """
    if world() == 1:
        yield
        return
    try:
        failures = Failures(start(device))
    except InputError:
        if local_rank() == 0:
            raise
        sys.exit(2)  # one of a machine's processes tells it
    try:
        yield
    except Stopped as stop:  # which all of them agreed on
        wait_for_all()  # the first one saves the run
        failures.end()
        if not is_main():
            os._exit(128 + stop.number)
        raise
    except BaseException as error:
        first = failures.first(error)
        failures.done.set()
        if first is error:
            raise
        raise first from error
    failures.end()
    dist.destroy_process_group()


def refuse_others(command: str) -> None:
    """Raise InputError where `command`, which takes one process, was started as one of several."""
    if world() > 1:
        raise InputError(f"{command} takes one process, and the environment names {world()}: start "
                         "it without torchrun, or unset WORLD_SIZE")


def start(device: str) -> dist.Store:
    """Find the other processes; a store of names and values that all of them see."""
    global on_gpus
    gpu = pick_device(device)
    lacking = [name for name in VARIABLES if not os.environ.get(name)]
    if lacking or not 0 <= rank() < world():
        raise InputError(f"the environment names {world()} processes, but "
                         f"{lacking[0] if lacking else 'RANK'} is not as torchrun sets it: start "
                         "with torchrun, or unset WORLD_SIZE")
    limit = datetime.timedelta(seconds=TIME_LIMIT)
    try:
        dist.init_process_group("gloo", timeout=limit, store=open_store(limit), rank=rank(),
                                world_size=world())
        if gpu.type == "cuda":
            torch.cuda.set_device(gpu)
            # The CPU's limit comes first, since NCCL tells of its own in a hundred lines.
            on_gpus = dist.new_group(backend="nccl", timeout=2 * limit)
        return open_store(limit, again=True)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"process {rank()} of {world()} does not find the others "
                         f"({one_line(error)[:200]}): look at the addresses and ports that "
                         "torchrun was given") from error


def open_store(limit: datetime.timedelta, again: bool = False) -> dist.Store:
    """What the processes find each other by: torchrun keeps it, or the first of them. `again` is
    for one who needs a connection of its own."""
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=limit,
        is_master=rank() == 0 and not kept and not again, wait_for_workers=False, multi_tenant=True)
    # torchrun's outlives a restart, with the addresses of the processes that are gone.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if kept else "0"
    return dist.PrefixStore(f"attempt_{attempt}", store)


class Failures:
    """How an error in one process ends all of them, and is told once.

    `store` holds names and values that all of them see; the first process may be the one that keeps
    it. `done` is set once this process needs to hear of no error any more.
    """

    def __init__(self, store: dist.Store):
        self.store, self.done, self.status = store, threading.Event(), None
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        """In a thread: end this process when another has failed, whatever it is waiting for."""
        try:
            while not self.done.wait(0.5):
                if self.store.check(["status"]):
                    self.status = int(self.store.get("status"))
                    self.take_leave()
                    break
        except RuntimeError:  # the store is gone, with the process that kept it
            self.status = self.status or 1
        if not self.done.wait(GRACE):  # in which it mostly ends by itself
            os._exit(self.status)

    def first(self, error: BaseException) -> BaseException:
        """Tell the others of an error here; the error to raise. Only the first process that has one
        comes back: the others' are the same, or follow from it, and they end in silence."""
        told = line_and_status(error)
        status, lost, gone = told[1] if told else 1, lost_a_process(error), []
        if self.status is not None:
            os._exit(self.status)
        try:
            if lost:
                self.store.set(f"waits/{rank()}", "")
            if self.store.add("failures", 1) > 1:
                if self.store.check(["status"]):
                    status = int(self.store.get("status"))
                self.take_leave()
                os._exit(status)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher ends all with the first
            if lost:
                time.sleep(GRACE / 2)
                gone = [number for number in range(world())
                        if not self.store.check([f"waits/{number}"])]
            self.store.set("status", str(status))
            self.take_leave()
        except RuntimeError:  # the store is gone with the process that kept it
            gone = gone or [0]
        return lost_process(gone) if lost else error

    def end(self) -> None:
        """This process comes to a good end, and hears of no error any more."""
        self.done.set()
        self.thread.join()
        with contextlib.suppress(RuntimeError):
            self.take_leave()

    def take_leave(self) -> None:
        """Say that this process has heard all. The first one waits until all others have said so,
        or for a while."""
        others, deadline = range(1, world()), time.monotonic() + GRACE
        while is_main() and time.monotonic() < deadline and not all(
                self.store.check([f"left/{number}"]) for number in others):
            time.sleep(0.05)
        self.store.set(f"left/{rank()}", "")


def lost_process(gone: list[int]) -> LostProcess:
    """The error where the processes `gone` do not answer."""
    which = f"process {', '.join(map(str, gone))}" if gone else "a process"
    return LostProcess(f"{which} of {world()} is gone, or gave no answer for {TIME_LIMIT} s; where "
                       "it has told why, it is above. What was last saved is whole: go on with "
                       f"--resume auto (told by {socket.gethostname()})")


def lost_a_process(error: BaseException) -> bool:
    """Whether an error says that another process did not answer: torch has no one type for it."""
    told = "gloo", "NCCL", "Connection closed by peer", "Connection reset", "Broken pipe"
    return isinstance(error, dist.DistError) or isinstance(error, RuntimeError) and any(
        words in str(error) for words in told)


# ------------------------------------------------------------------------------------- what is said


def gather(local: Tensor) -> Tensor:
    """Gather the rows of all processes, in the order of their ranks.

    The local rows keep their graph. The rows of other processes are constants here: their gradient
    is computed there.

    Args:
        local: (B / N, ...) rows of this process.

    Returns:
        (B, ...) rows.
    """
    return gather_several(local)[0]


def gather_several(*local: Tensor) -> tuple[Tensor, ...]:
    """Gather several tensors of one type like `gather`, in a single exchange.

    Args:
        local: tensors (B / N, ...), whose trailing sizes may differ.

    Returns:
        A tensor (B, ...) for each.
    """
    if world() == 1:
        return local
    message = torch.cat([tensor.detach().reshape(-1) for tensor in local])
    messages = [torch.empty_like(message) for _ in range(world())]
    dist.all_gather(messages, message, group=group_of(message))
    sizes = [tensor.numel() for tensor in local]
    # For each process, its part of each tensor; the local parts are replaced by those with a graph.
    parts = [[part.view(tensor.shape) for part, tensor in zip(received.split(sizes), local)]
             for received in messages]
    parts[rank()] = local
    return tuple(map(torch.cat, zip(*parts)))


def gather_strided(own: Tensor, count: int) -> Tensor:
    """(count, ...) rows of which each process has every Nth, from its rank on; on the CPU."""
    if world() == 1:
        return own
    most = -(-count // world())
    padded = own.new_zeros(most, *own.shape[1:])  # only what travels is of one size
    padded[: len(own)] = own
    rows = gather(padded).view(world(), most, *own.shape[1:])
    return rows.transpose(0, 1).reshape(-1, *own.shape[1:])[:count]


def group_of(tensor: Tensor) -> dist.ProcessGroup | None:
    """The group that a tensor travels in."""
    return on_gpus if tensor.is_cuda else None  # None is the first one, gloo


def summing_gradients(module: nn.Module) -> nn.Module:
    """`module` behind a `forward` whose gradients are summed over all processes, in buckets, while
    the rest of them is still computed. A parameter without gradient stays so.

    Every process takes the gradient of the whole loss, or of its share of it, with respect to its
    own rows; so the sum is the gradient, where a mean would be N times too small.
    """
    if world() == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch 2.14 renames `broadcast_buffers`, 2.11 has it
        wrapped = DistributedDataParallel(
            module, process_group=on_gpus, broadcast_buffers=False, init_sync=False,
            static_graph=True, gradient_as_bucket_view=True)
    wrapped.register_comm_hook(None, summed)
    return wrapped


def adam(parameters: list[nn.Parameter], shard: bool, **settings) -> torch.optim.Optimizer:
    """Adam; with `shard` its moments are shared out among the processes until `bring_together`."""
    if not shard or world() == 1:
        return torch.optim.Adam(parameters, **settings)
    from torch.distributed.optim import ZeroRedundancyOptimizer  # half a second, for this alone

    return ZeroRedundancyOptimizer(parameters, optimizer_class=torch.optim.Adam,
                                   process_group=on_gpus, **settings)


def own_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The one that computes in this process: it has a share of the parameters, or all."""
    return getattr(optimizer, "optim", optimizer)  # so ZeroRedundancyOptimizer names it


def bring_together(optimizer: torch.optim.Optimizer) -> None:
    """Have the first process's `optimizer.state_dict()` be that of the whole."""
    if own_optimizer(optimizer) is not optimizer:
        optimizer.consolidate_state_dict(to=0)


def summed(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The communication hook: a bucket's sum, where the built-in one takes the mean."""
    buffer = bucket.buffer()
    work = dist.all_reduce(buffer, group=group_of(buffer), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def agree(number: int) -> int:
    """The largest of the processes' numbers."""
    if world() == 1:
        return number
    largest = torch.tensor(number)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def from_main(value):
    """What the first process has, for all."""
    if world() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


def spread(*tensors: Tensor) -> None:
    """Copy the first process's tensors into those of the others."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0, group=group_of(tensor))


def wait_for_all() -> None:
    """Come back once every process has come here."""
    if world() > 1:
        dist.barrier()


def once_per_machine(function: Callable[[], None]) -> None:
    """Call `function` in the first process, then in the first one of every other machine, where
    another process's files may be seen or not; the others wait."""
    for turn in is_main(), local_rank() == 0 and not is_main():
        if turn:
            function()
        wait_for_all()


def first_difference(tensors: dict[str, Tensor]) -> str | None:
    """The name of a tensor that is not the same to the bit in all processes, or None. It waits for
    the device."""
    if world() == 1:
        return None
    sums = torch.stack([bit_sum(tensor) for tensor in tensors.values()]).cpu()  # (n,)
    everyones = gather(sums[None])  # (N, n)
    differing = (everyones != everyones[0]).any(dim=0)  # (n,)
    return next((name for name, other in zip(tensors, differing.tolist()) if other), None)


def bit_sum(tensor: Tensor) -> Tensor:
    """() int64, the sum of a tensor's bits, taken as whole numbers that weigh by their place."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    places = torch.arange(1, min(PART, tensor.numel()) + 1, device=tensor.device)
    return torch.stack([(part.long() * places[: len(part)]).sum() for part in
                        tensor.detach().reshape(-1).view(words).split(PART)]).sum()
