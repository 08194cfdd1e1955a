"""Run every CUDA test and the speed tables on this machine's GPU, in about ten
minutes.

    python -m scripts.gpu_check

The output can be pasted into an issue as it is. The status is 0 if all tests
pass.
"""

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

import subprocess
import sys
from pathlib import Path

from common.errors import InputError, exit_on_input_error
from common.parser import Parser
from common.terminal import print_result

if __name__ == "__main__":
    Parser(description=__doc__).parse_args()  # --help need not wait for the import below

import torch

ROOT = Path(__file__).resolve().parent.parent
# Commands by title. The tests come first: the speed of a wrong program is worth nothing.
CHECKS = {
    "tests": [sys.executable, "-m", "pytest", "-q", "-rs", "tests/test_cuda.py"],
    "speed": [sys.executable, "benchmarks/speed.py", "--device", "cuda", "--repeats", "5"],
}
TIME_LIMIT = 540  # seconds of one command


def describe_gpu() -> str:
    """Return the GPU and the versions of what drives it, in three lines."""
    gpu = torch.cuda.get_device_properties(0)
    return (f"GPU      {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute capability "
            f"{gpu.major}.{gpu.minor}\n"
            f"torch    {torch.__version__}, CUDA {torch.version.cuda}\n"
            f"bfloat16 {torch.cuda.is_bf16_supported(including_emulation=False)}")


def run_check(command: list[str]) -> tuple[str, bool]:
    """Run a command, and return its output and whether it ended in time with status 0.

    Standard error is part of the output only where the status is another one.
    """
    try:
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                                  timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        return f"not done after {TIME_LIMIT} s", False
    if finished.returncode == 0:
        return finished.stdout.strip(), True
    return (finished.stdout + finished.stderr).strip(), False


def main(argv: list[str] | None = None) -> None:
    """Run the command with the arguments `argv`, or with those of the process."""
    Parser(description=__doc__).parse_args(argv)
    with exit_on_input_error():
        if not torch.cuda.is_available():
            raise InputError("no GPU is visible to PyTorch: there is nothing to check; the tests "
                             "that need none are run by: pytest")
        print_result(describe_gpu())
        all_passed = True
        for title, command in CHECKS.items():
            output, passed = run_check(command)
            all_passed = all_passed and passed
            print_result(f"\n{title}: {'ok' if passed else 'FAILED'}\n{output}")
        sys.exit(0 if all_passed else 1)


if __name__ == "__main__":
    main()
