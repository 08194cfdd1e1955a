"""Communication between the processes of one run, through `torch.distributed`.

A run on N processes does what one process does with the same global batch. Each process holds the
whole model, memory bank and statistics. They stay equal because each process gets the embeddings
and ids of all B pairs (`gather`) and the sum of all gradients (`with_summed_gradients`). In a run
of one process every function here returns what it is given.

Tensors on a GPU travel through NCCL. Everything that decides what the program does next travels on
the CPU through gloo, so that no step waits for a device, and so that a time limit is kept.
"""

import contextlib
import datetime
import json
import os
import re
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
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_wrapper
from torch.nn.parallel import DistributedDataParallel

from common.device import pick_device
from common.errors import InputError, LostProcess, Stopped, message_and_status, one_line
from common.ranks import is_main, is_number, local_rank, local_world_size, rank, world_size
from common.version import versions

TIME_LIMIT = 600  # seconds that a process waits for the others
MEETING_LIMIT = 60  # seconds that it waits for them at the start, where torchrun does not watch
GRACE = 3.0  # seconds in which all processes learn of a failure
CHECKSUM_CHUNK = 2**22  # numbers of a tensor that `bit_checksum` sums at a time, to save memory
REQUIRED_VARIABLES = "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"
# How torch.distributed says that another process did not answer, where it raises a bare
# RuntimeError. Such a message begins with the place in the library's source.
LOST_PROCESS = re.compile(r"\[[^\]\n]*(gloo|NCCL|Rank \d)[^\]\n]*\]|Gloo |NCCL ")

nccl_group = None  # the process group of NCCL, where the run is on GPUs

# ------------------------------------------------------------------------------ from start to end


class OwnFault(InputError):
    """A mistake in the environment of this process alone, which it prints in any case."""


@contextlib.contextmanager
def process_group(device: str, facts: dict[str, object] | None = None) -> Iterator[None]:
    """Connect the processes of a run for the duration of the body.

    Whatever ends one process ends all of them within seconds, and only the first one to fail
    prints the reason.

    Args:
        device: The value of --device.
        facts: What must be the same in all processes, by name, such as the command line's options.
            Versions of packages and of this code are compared too.

    Raises:
        InputError: If the processes do not find each other, or a fact differs.
        LostProcess: If another process was killed, or hangs.
    """
    check_environment()
    if world_size() == 1:
        yield
        return
    try:
        watcher = FailureWatcher(connect(device))
    except InputError as error:
        if local_rank() == 0 or isinstance(error, OwnFault):
            raise
        sys.exit(2)  # one process of each machine prints the reason
    try:
        require_same(versions() | (facts or {}))
        yield
    except Stopped as stop:  # all processes have agreed on it, see `training.signals`
        barrier()  # the first process saves the run
        watcher.close()
        if not is_main():
            os._exit(128 + stop.number)
        raise
    except BaseException as error:
        first_error = watcher.report(error)
        watcher.finished.set()
        if first_error is error:
            raise
        raise first_error from error
    watcher.close()
    dist.destroy_process_group()


def require_one_process(command: str) -> None:
    """Check that a command that takes one process was not started as one of several.

    Args:
        command: The command's name, with which the error message begins.

    Raises:
        InputError: If the environment names several processes.
    """
    if world_size() > 1:
        raise InputError(f"{command} takes one process, and the environment names {world_size()}: "
                         "start it without torchrun, or unset WORLD_SIZE")


def check_environment() -> None:
    """Check the variables by which processes know of each other.

    Raises:
        OwnFault: If WORLD_SIZE names several processes and another variable is missing, or if one
            of them holds no number, or one that does not go with the others.
    """
    names = ("WORLD_SIZE",) if world_size() == 1 else (
        "WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    way_out = "start with torchrun, or unset WORLD_SIZE"
    for name in names:
        text = os.environ.get(name, "")
        if text and not is_number(text):
            raise OwnFault(f"{name} {text[:40]!r} in the environment is no number: {way_out}")
    if os.environ.get("WORLD_SIZE") and int(os.environ["WORLD_SIZE"]) < 1:
        raise OwnFault(f"WORLD_SIZE 0 in the environment: at least 1 process; {way_out}")
    if world_size() == 1:
        return
    missing = [name for name in REQUIRED_VARIABLES if not os.environ.get(name)]
    if missing:
        raise OwnFault(f"the environment names {world_size()} processes, but {missing[0]} is not "
                       f"as torchrun sets it: {way_out}")
    for name, value, count in (("RANK", rank(), world_size()),
                               ("LOCAL_RANK", local_rank(), local_world_size())):
        if value >= count and (name == "RANK" or os.environ.get("LOCAL_WORLD_SIZE")):
            raise OwnFault(f"{name} {value} in the environment: the number of this process must be "
                           f"below {count}, that of all; {way_out}")
    if not 1 <= int(os.environ["MASTER_PORT"]) < 2**16:
        raise OwnFault(f"MASTER_PORT {os.environ['MASTER_PORT']} in the environment: must be at "
                       f"least 1 and at most 65535; {way_out}")


def torchrun_serves() -> bool:
    """Return whether torchrun serves the store of this run, and watches its processes."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def connect(device: str) -> dist.Store:
    """Find the other processes of the run, and set up the process groups.

    Args:
        device: The value of --device.

    Returns:
        A store of names and values that all processes see.

    Raises:
        InputError: If a process is not found.
    """
    global nccl_group
    gpu = pick_device(device)
    limit = datetime.timedelta(seconds=TIME_LIMIT)
    try:
        if torchrun_serves():  # all processes are started, or started again, together
            store = open_store(limit)
        else:
            store = meet_others()
            store.set_timeout(limit)
        dist.init_process_group("gloo", timeout=limit, store=store, rank=rank(),
                                world_size=world_size())
        if gpu.type == "cuda":
            torch.cuda.set_device(gpu)
            # The CPU's limit comes first, because NCCL reports its own in a hundred lines.
            nccl_group = dist.new_group(backend="nccl", timeout=2 * limit)
        return open_store(limit, may_serve=False)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"process {rank()} of {world_size()} does not find the others "
                         f"({one_line(error)[:200]}): look at the addresses and ports that "
                         "torchrun was given") from error


def meet_others() -> dist.Store:
    """Wait until all processes of a run that torchrun did not start have come to one store.

    Returns:
        The store.

    Raises:
        InputError: If one of them does not come in time, or two of them do not go together.
    """
    if rank() != 0:
        wait_for_server()
    try:
        store = open_store_in_time()
    except RuntimeError as error:
        if rank() == 0:
            raise OwnFault(f"RANK 0, MASTER_PORT {os.environ['MASTER_PORT']}: the port cannot be "
                           "served; another process has RANK 0 too, or another program uses it "
                           f"({one_line(error)[:200]})") from error
        raise
    try:
        find_all(store)
    except InputError as error:
        # The others need not wait; and the store goes away with the first process.
        store.set("given up", str(error))
        time.sleep(GRACE / 2 if rank() == 0 else 0)
        raise
    return store


def find_all(store: dist.Store) -> None:
    """Say in the store that this process is there, and wait until all others are.

    Raises:
        InputError: If one does not come in time, or two of them do not go together.
    """
    here = json.dumps([world_size(), socket.gethostname(), os.getpid()])
    found = store.compare_set(f"here/{rank()}", "", here).decode()
    if found != here:
        _, host, pid = json.loads(found)
        raise OwnFault(f"RANK {rank()} in the environment: process {pid} on {host} has this number "
                       "already; give each process its own")
    missing, deadline = set(range(world_size())), time.monotonic() + MEETING_LIMIT
    while missing:
        for number in [number for number in missing if store.check([f"here/{number}"])]:
            count = json.loads(store.get(f"here/{number}").decode())[0]
            if count != world_size():
                raise InputError(f"WORLD_SIZE is {count} in process {number} and {world_size()} in "
                                 f"process {rank()}: give all processes the same")
            missing.remove(number)
        if store.check(["given up"]):
            raise InputError(store.get("given up").decode())
        if missing and time.monotonic() > deadline:
            lacking = ", ".join(map(str, sorted(missing)))
            raise InputError(f"process {lacking} of {world_size()} did not come within "
                             f"{MEETING_LIMIT} s: start all at about the same time, each with its "
                             "own RANK and the same WORLD_SIZE, MASTER_ADDR and MASTER_PORT")
        time.sleep(0.05)


def open_store_in_time() -> dist.Store:
    """Open a connection to the store, as `open_store` does, and give up after `MEETING_LIMIT`.

    PyTorch itself waits for ever for a server of another kind that never answers.

    Raises:
        OwnFault: If there is no answer in time.
    """
    opened: list[dist.Store | RuntimeError] = []

    def open_or_fail() -> None:
        try:
            opened.append(open_store(datetime.timedelta(seconds=MEETING_LIMIT)))
        except RuntimeError as error:
            opened.append(error)

    thread = threading.Thread(target=open_or_fail, daemon=True)
    thread.start()
    thread.join(MEETING_LIMIT + GRACE)
    if not opened:
        raise OwnFault(f"MASTER_ADDR {os.environ['MASTER_ADDR'][:80]}, MASTER_PORT "
                       f"{os.environ['MASTER_PORT']}: what listens there is no process of this run")
    if isinstance(opened[0], RuntimeError):
        raise opened[0]
    return opened[0]


def wait_for_server() -> None:
    """Wait until the first process of the run can be reached.

    PyTorch would print several lines for each time that it does not answer.

    Raises:
        OwnFault: If it cannot be reached in time.
    """
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    deadline = time.monotonic() + MEETING_LIMIT
    while True:
        try:
            socket.create_connection(place, timeout=5).close()
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() > deadline:
                raise OwnFault(f"MASTER_ADDR {place[0][:80]}, MASTER_PORT {place[1]}: process 0 "
                               f"could not be reached there within {MEETING_LIMIT} s "
                               f"({one_line(error)})") from error
            time.sleep(0.2)


def open_store(limit: datetime.timedelta, may_serve: bool = True) -> dist.Store:
    """Open a connection to the store by which the processes find each other.

    Args:
        limit: How long to wait for an answer.
        may_serve: Whether the first process may start the server of the store, where torchrun does
            not. False for a second connection.
    """
    serves = may_serve and rank() == 0 and not torchrun_serves()
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=limit,
        is_master=serves, wait_for_workers=False, multi_tenant=True)
    # torchrun's store outlives a restart, with the addresses of the processes that are gone.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if torchrun_serves() else "0"
    return dist.PrefixStore(f"attempt_{attempt}", store)


def require_same(facts: dict[str, object]) -> None:
    """Check that all processes of the run have the same facts; every process has to call this.

    Args:
        facts: Values by name, which are compared as the text that `str` makes of them.

    Raises:
        InputError: If a fact differs, in all processes; the message names the first such fact.
    """
    if world_size() == 1:
        return
    texts = {name: str(value) for name, value in facts.items()}
    all_texts = [None] * world_size()
    dist.all_gather_object(all_texts, texts)
    for number, others in enumerate(all_texts):
        for name in sorted(all_texts[0].keys() | others.keys()):
            values = [known.get(name, "not there") for known in (all_texts[0], others)]
            if values[0] != values[1]:
                raise InputError(
                    f"the processes are not alike: {name} is {values[0][:80]} in process 0 and "
                    f"{values[1][:80]} in process {number}; give all of them one command line, "
                    "one version of everything and the same data")


class FailureWatcher:
    """End all processes of a run when one of them fails, and have the reason printed once.

    A thread of each process looks for a failure of another one.

    Args:
        store: Names and values that all processes see. The first process may be the one that
            serves it, so the store can go away with it.

    Attributes:
        finished: Set once this process need not hear of failures any more.
        status: The exit status of the run once another process has failed, else None.
    """

    def __init__(self, store: dist.Store):
        self.store = store
        self.finished = threading.Event()
        self.status: int | None = None
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        """Wait in a thread for a failure of another process, and then end this one.

        The process ends whatever it is waiting for. It has `GRACE` seconds to end by itself.
        """
        try:
            while not self.finished.wait(0.5):
                if self.store.check(["status"]):
                    self.status = int(self.store.get("status"))
                    self.leave()
                    break
        except RuntimeError:  # the store is gone, with the process that served it
            self.status = self.status or 1
        if not self.finished.wait(GRACE):
            os._exit(self.status)

    def report(self, error: BaseException) -> BaseException:
        """Tell the other processes that this one fails, and return the error to raise.

        Only the first process that fails returns. The errors of the others are the same one, or
        follow from it, so these processes end here without a word.

        Args:
            error: The error of this process.

        Returns:
            `error`, or a `LostProcess` if `error` says that another process did not answer.
        """
        known = message_and_status(error)
        status = known[1] if known else 1
        is_lost = is_lost_process(error)
        lost_ranks = []
        if self.status is not None:
            os._exit(self.status)
        try:
            if is_lost:
                self.store.set(f"waits/{rank()}", "")
            if self.store.add("failures", 1) > 1:
                if self.store.check(["status"]):
                    status = int(self.store.get("status"))
                self.leave()
                os._exit(status)
            if threading.current_thread() is threading.main_thread():
                # A launcher ends all processes with the first that fails; this one prints first.
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if is_lost:
                # Every process that still runs comes to wait for the lost one too.
                time.sleep(GRACE / 2)
                lost_ranks = [number for number in range(world_size())
                              if not self.store.check([f"waits/{number}"])]
            self.store.set("status", str(status))
            self.leave()
        except RuntimeError:  # the store is gone with the process that served it
            lost_ranks = lost_ranks or [0]
        return lost_process_error(lost_ranks) if is_lost else error

    def close(self) -> None:
        """Stop watching, because this process comes to a good end."""
        self.finished.set()
        self.thread.join()
        with contextlib.suppress(RuntimeError):
            self.leave()

    def leave(self) -> None:
        """Say in the store that this process needs it no more.

        The first process, which may serve the store, waits until all others have said so, but at
        most `GRACE` seconds.
        """
        others = [f"left/{number}" for number in range(1, world_size())]
        deadline = time.monotonic() + GRACE
        while is_main() and time.monotonic() < deadline:
            if all(self.store.check([name]) for name in others):
                break
            time.sleep(0.05)
        self.store.set(f"left/{rank()}", "")


def lost_process_error(lost_ranks: list[int]) -> LostProcess:
    """Return the error for processes that do not answer; an empty list if it is not known which."""
    which = f"process {', '.join(map(str, lost_ranks))}" if lost_ranks else "a process"
    return LostProcess(f"{which} of {world_size()} is gone, or gave no answer for {TIME_LIMIT} s; "
                       "its own error, if it printed one, is above. What was last saved is whole: "
                       f"go on with --resume auto (seen by {socket.gethostname()})")


def is_lost_process(error: BaseException) -> bool:
    """Return whether an error says that another process did not answer."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and bool(LOST_PROCESS.match(str(error)))


# ----------------------------------------------------------------------------------- communication


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
    if world_size() == 1:
        return local
    message = torch.cat([tensor.detach().reshape(-1) for tensor in local])
    messages = [torch.empty_like(message) for _ in range(world_size())]
    dist.all_gather(messages, message, group=group_of(message))
    sizes = [tensor.numel() for tensor in local]
    # For each process, its part of each tensor; the local parts are replaced by those with a graph.
    parts = [[part.view(tensor.shape) for part, tensor in zip(received.split(sizes), local)]
             for received in messages]
    parts[rank()] = local
    return tuple(map(torch.cat, zip(*parts)))


def gather_strided(local: Tensor, count: int) -> Tensor:
    """Return the rows of all processes, of which each process has every Nth.

    Args:
        local: The rows of this process, on the CPU: rows r, r + N, r + 2 N, ... of the result,
            where r is the process's rank.
        count: The number of rows of all processes together.

    Returns:
        (count, ...) rows, the same in every process.
    """
    if world_size() == 1:
        return local
    most = -(-count // world_size())  # rows of the process that has most
    padded = local.new_zeros(most, *local.shape[1:])  # all processes send the same shape
    padded[: len(local)] = local
    rows = gather(padded).view(world_size(), most, *local.shape[1:])
    return rows.transpose(0, 1).reshape(-1, *local.shape[1:])[:count]


def group_of(tensor: Tensor) -> dist.ProcessGroup | None:
    """Return the process group for a tensor's device; None is the default one, gloo on the CPU."""
    return nccl_group if tensor.is_cuda else None


def with_summed_gradients(module: nn.Module, comm_dtype: str = "float32") -> nn.Module:
    """Return `module` with a `forward` after which gradients are summed over all processes.

    Every process computes the gradient of the loss, or of its share of it, with respect to its
    local rows. So the sum over processes is the gradient of the global batch; the mean, which
    `DistributedDataParallel` takes by itself, would be N times too small. The sums are sent in
    buckets while the backward pass goes on. A parameter without gradient keeps none.

    Args:
        module: The model that is trained.
        comm_dtype: The type in which gradients are sent and added up, "float32" or "bfloat16".
    """
    if world_size() == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch 2.14 renames `broadcast_buffers`, 2.11 has it
        wrapped = DistributedDataParallel(
            module, process_group=nccl_group, broadcast_buffers=False, init_sync=False,
            static_graph=True, gradient_as_bucket_view=True)
    in_bf16 = comm_dtype == "bfloat16"
    wrapped.register_comm_hook(None, bf16_compress_wrapper(sum_bucket) if in_bf16 else sum_bucket)
    return wrapped


def sum_bucket(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Sum a bucket of gradients over all processes: a hook of `DistributedDataParallel`."""
    buffer = bucket.buffer()
    work = dist.all_reduce(buffer, group=group_of(buffer), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def make_optimizer(
    optimizer_class: type, groups: list, shard: bool, **settings
) -> torch.optim.Optimizer:
    """Return an optimizer, whose state may be shared out among the processes.

    Args:
        optimizer_class: A class of `torch.optim`.
        groups: The parameters that are trained, or groups of them as `torch.optim` takes them.
        shard: Whether each process keeps the state of an Nth of the parameters only. Call
            `consolidate_state` before such an optimizer's state is read.
        **settings: Further arguments of the class.
    """
    if not shard or world_size() == 1:
        return optimizer_class(groups, **settings)
    from torch.distributed.optim import ZeroRedundancyOptimizer  # half a second, for --shard alone

    return ZeroRedundancyOptimizer(groups, optimizer_class=optimizer_class,
                                   process_group=nccl_group, **settings)


def local_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer that updates this process's share of the parameters, or all of them."""
    return getattr(optimizer, "optim", optimizer)  # an attribute of ZeroRedundancyOptimizer


def consolidate_state(optimizer: torch.optim.Optimizer) -> None:
    """Bring an optimizer's whole state to the first process, so that its `state_dict()` has it."""
    if local_optimizer(optimizer) is not optimizer:
        optimizer.consolidate_state_dict(to=0)


def max_over_processes(number: int) -> int:
    """Return the largest of the numbers that the processes give."""
    if world_size() == 1:
        return number
    largest = torch.tensor(number)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def broadcast_from_main(value):
    """Return the first process's value, any object that can be pickled, in all processes."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


def broadcast_tensors(*tensors: Tensor) -> None:
    """Overwrite tensors in place with those of the first process."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0, group=group_of(tensor))


def barrier() -> None:
    """Wait until every process has called this function."""
    if world_size() > 1:
        dist.barrier()


def once_per_machine(function: Callable[[], None]) -> None:
    """Call `function` in one process of each machine, while the others wait.

    The first process of all calls it before those of the other machines do: these may see the
    files that it writes, or not.
    """
    for is_my_turn in is_main(), local_rank() == 0 and not is_main():
        if is_my_turn:
            function()
        barrier()


def first_differing_tensor(tensors: dict[str, Tensor]) -> str | None:
    """Return the name of a tensor whose bits are not the same in all processes, or None.

    The call waits for the device.

    Args:
        tensors: Tensors by name, in one order in all processes.
    """
    if world_size() == 1:
        return None
    checksums = torch.stack([bit_checksum(tensor) for tensor in tensors.values()]).cpu()  # (n,)
    all_checksums = gather(checksums[None])  # (N, n)
    differs = (all_checksums != all_checksums[0]).any(dim=0)  # (n,)
    for name, is_different in zip(tensors, differs.tolist()):
        if is_different:
            return name
    return None


def bit_checksum(tensor: Tensor) -> Tensor:
    """Return a checksum of a tensor's bits, to which each element counts by its position.

    Returns:
        () int64, on the tensor's device.
    """
    integer_types = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    integers = tensor.detach().reshape(-1).view(integer_types[tensor.element_size()])
    chunk = min(CHECKSUM_CHUNK, tensor.numel())
    positions = torch.arange(1, chunk + 1, device=tensor.device)
    sums = [(part.long() * positions[: len(part)]).sum() for part in integers.split(CHECKSUM_CHUNK)]
    return torch.stack(sums).sum()
