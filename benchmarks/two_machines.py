"""Train one run on two simulated machines, and lose one of them on the way, on one computer:

    sudo python benchmarks/two_machines.py

Two network namespaces, joined by a virtual cable of the kernel (a veth pair), stand for the
machines. In each of them torchrun starts one process of the same run. When a checkpoint is there,
all processes of the second machine are killed and its torchrun is started again, as a scheduler
would do. The run has to go on by itself and to end with the metrics of an undisturbed run, which is
trained first. It takes a few minutes, and root for the namespaces.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

from common.errors import InputError, exit_on_input_error

ROOT = Path(__file__).resolve().parent.parent
MACHINES, ADDRESSES, PORT = ("fne_one", "fne_two"), ("10.83.0.1", "10.83.0.2"), 29507
RUN = ("--dataset", "shapes", "--max_violation", "--num_epochs", "2", "--easy_epochs", "1",
       "--warmup_epochs", "1", "--device", "cpu", "--workers", "0", "--save_step", "20",
       "--no_figures", "--resume", "auto")


def ip(*words: str) -> None:
    """Run the command `ip`, which sets up networks."""
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def two_machines():
    """Make two network namespaces that reach each other, and remove them at the end."""
    try:
        for name in MACHINES:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", "fne0", "netns", MACHINES[0], "type", "veth", "peer", "name", "fne0",
           "netns", MACHINES[1])
        for name, address in zip(MACHINES, ADDRESSES):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "fne0")
            ip("-n", name, "link", "set", "fne0", "up")
        yield
    finally:
        for name in MACHINES:
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)


def start(machine: int, folder: Path, name: str) -> subprocess.Popen:
    """Start torchrun on one of the machines, which starts that machine's process of the run.

    Args:
        machine: 0 or 1.
        folder: of data, runs and logs.
        name: of the run.
    """
    log = open(folder / f"{name}_{machine}.log", "a")
    # torchrun cannot tell by names of namespaces which machine is the host: is_host says so.
    return subprocess.Popen(
        ["ip", "netns", "exec", MACHINES[machine], sys.executable, "-m", "torch.distributed.run",
         "--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d",
         "--rdzv_endpoint", f"{ADDRESSES[0]}:{PORT}", "--rdzv_id", name, "--max_restarts", "3",
         "--rdzv_conf", f"is_host={int(machine == 0)}",
         "--local_addr", ADDRESSES[machine], ROOT / "train.py", *RUN,
         "--data_path", folder / "data", "--logger_name", folder / name],
        stdout=log, stderr=log, start_new_session=True, cwd=ROOT,
        # Without the last variable, PyTorch 2.14 does not tell a machine that comes back where the
        # other one is.
        env={**os.environ, "GLOO_SOCKET_IFNAME": "fne0", "OMP_NUM_THREADS": "1",
             "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})


def train(folder: Path, name: str, limit: int, disturb: bool) -> dict:
    """Train a run on both machines, and return its test results.

    Args:
        folder: of data, runs and logs.
        name: of the run.
        limit: seconds that the run may take.
        disturb: whether to kill the second machine once there is a checkpoint.
    """
    runs = [start(machine, folder, name) for machine in (0, 1)]
    started, checkpoint = time.monotonic(), folder / name / "checkpoint.pth.tar"
    try:
        if disturb:
            while not checkpoint.exists() or time.time() - checkpoint.stat().st_mtime < 2:
                if time.monotonic() - started > limit:
                    raise TimeoutError("no checkpoint in time")
                time.sleep(0.1)
            print(f"killing the second machine {time.monotonic() - started:.0f} s after the start")
            os.killpg(runs[1].pid, signal.SIGKILL)
            subprocess.run(f"ip netns pids {MACHINES[1]} | xargs -r kill -9", shell=True)
            runs[1].wait()
            runs[1] = start(1, folder, name)
        for run in runs:
            run.wait(timeout=max(1, limit - (time.monotonic() - started)))
    finally:
        for machine in MACHINES:
            subprocess.run(f"ip netns pids {machine} | xargs -r kill -9", shell=True)
    print(f"{name}: ended with {[run.returncode for run in runs]} after "
          f"{time.monotonic() - started:.0f} s")
    results = folder / name / "test_results.json"
    if not results.is_file():
        raise InputError(f"the run {name} has no results: its output is in the logs of --folder")
    return json.loads(results.read_text())


def main() -> None:
    """Run the command with the arguments of the process; status 1 where the metrics differ."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=900, help="seconds that a run may take")
    parser.add_argument("--folder", type=Path, help="where runs and logs are kept (default: none)")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("error: only root makes network namespaces: run it with sudo")
    with tempfile.TemporaryDirectory() as folder, two_machines():
        folder = arguments.folder or Path(folder)
        folder.mkdir(exist_ok=True, parents=True)
        whole, disturbed = (train(folder, name, arguments.limit, name == "disturbed")
                            for name in ("undisturbed", "disturbed"))
    print(f"rsum {whole['rsum']:.1f} undisturbed, {disturbed['rsum']:.1f} with the machine lost; "
          f"{'all metrics equal' if whole == disturbed else 'not equal'}")
    sys.exit(whole != disturbed)


if __name__ == "__main__":
    with exit_on_input_error():
        main()
