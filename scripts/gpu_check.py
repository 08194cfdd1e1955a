"""Run every CUDA test and the tables of speed and memory on this machine's GPU,
in ten minutes at most.

    python -m scripts.gpu_check
    python -m scripts.gpu_check --json found.json

The output can be pasted into an issue as it is. What is not done in time is
left out, and said. The status is 0 if all of it was done and all tests pass.
"""

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

import json
import subprocess
import sys
import time
from pathlib import Path

from common.errors import InputError, exit_on_input_error
from common.files import write
from common.parser import Parser
from common.terminal import print_result


def parse(argv: list[str] | None) -> Path | None:
    """Return the file that --json names, if it is given."""
    parser = Parser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="write outputs, seconds and what passed to this new file too")
    return parser.parse_args(argv).json


if __name__ == "__main__":
    parse(None)  # --help need not wait for the import below

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SPEED = [sys.executable, "benchmarks/speed.py", "--device", "cuda", "--repeats", "5", "--sections"]
# Commands by title, the most important first. The speed of a wrong program is worth nothing.
CHECKS = {
    "tests": [sys.executable, "-m", "pytest", "-q", "-rs", "tests/test_cuda.py"],
    "steps and the card's rate": [*SPEED, "training"],
    "loss": [*SPEED, "loss"],
    "chunks and adapters": [sys.executable, "benchmarks/memory.py", "--device", "cuda",
                            "--repeats", "1"],
    "compile": [*SPEED, "compile"],
    "evaluation, captions and photos": [*SPEED, "evaluation", "captions", "input"],
}
TIME_LIMIT = 580  # seconds of all commands together


def describe_gpu() -> str:
    """Return the GPU and the versions of what drives it, in three lines."""
    gpu = torch.cuda.get_device_properties(0)
    return (f"GPU      {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute capability "
            f"{gpu.major}.{gpu.minor}\n"
            f"torch    {torch.__version__}, CUDA {torch.version.cuda}\n"
            f"bfloat16 {torch.cuda.is_bf16_supported(including_emulation=False)}")


def run_check(command: list[str], limit: float) -> tuple[str, bool]:
    """Run a command for at most `limit` seconds.

    Returns:
        Its output, and whether it ended in time with status 0. Standard error is part of the output
        only where the status is another one.
    """
    try:
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                                  timeout=limit)
    except subprocess.TimeoutExpired as error:
        return f"{(error.stdout or b'').decode()}not done after {limit:.1f} s".strip(), False
    if finished.returncode == 0:
        return finished.stdout.strip(), True
    return (finished.stdout + finished.stderr).strip(), False


def main(argv: list[str] | None = None) -> None:
    """Run the command with the arguments `argv`, or with those of the process."""
    file = parse(argv)
    with exit_on_input_error():
        if not torch.cuda.is_available():
            raise InputError("no GPU is visible to PyTorch: there is nothing to check; the tests "
                             "that need none are run by: pytest")
        if file is not None and (file.exists() or not file.parent.is_dir()):
            raise InputError(f"--json {file}: name a new file in a folder that exists")
        found = {"gpu": describe_gpu(), "checks": {}}
        print_result(found["gpu"])
        end = time.monotonic() + TIME_LIMIT
        for title, command in CHECKS.items():
            started = time.monotonic()
            output, passed = run_check(command, max(end - started, 0))
            found["checks"][title] = {"passed": passed, "seconds": time.monotonic() - started,
                                      "output": output}
            print_result(f"\n{title}: {'ok' if passed else 'FAILED'}\n{output}")
            if file is not None:  # after each command, for a machine that stops
                write(file, (json.dumps(found, indent=1) + "\n").encode(), "what was found")
        sys.exit(0 if all(check["passed"] for check in found["checks"].values()) else 1)


if __name__ == "__main__":
    main()
