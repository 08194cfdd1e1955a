"""Run every CUDA test and the speed tables on this machine's GPU, in about ten
minutes.

    python -m scripts.gpu_check

What it prints can be pasted into an issue as it is. Status 0 where all tests
pass.
"""

import subprocess
import sys
from pathlib import Path

from common.errors import InputError, exit_on_import_error, exit_on_input_error
from common.flags import Parser
from common.terminal import print_result

if __name__ == "__main__":
    exit_on_import_error()
    Parser(description=__doc__).parse_args()  # --help need not wait for the import below

import torch

ROOT = Path(__file__).resolve().parent.parent
# Title to command. The tests come first: figures of a program that is wrong are worth nothing.
CHECKS = {
    "tests": [sys.executable, "-m", "pytest", "-q", "-rs", "tests/test_cuda.py"],
    "speed": [sys.executable, "benchmarks/speed.py", "--device", "cuda", "--repeats", "5"],
}
LONGEST = 540  # seconds of one command


def machine() -> str:
    """The GPU and what drives it, in lines."""
    gpu = torch.cuda.get_device_properties(0)
    return (f"GPU      {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute capability "
            f"{gpu.major}.{gpu.minor}\n"
            f"torch    {torch.__version__}, CUDA {torch.version.cuda}\n"
            f"bfloat16 {torch.cuda.is_bf16_supported(including_emulation=False)}")


def outcome(command: list[str]) -> tuple[str, bool]:
    """What a command printed, and whether it ended well and in time."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return f"not done after {LONGEST} s", False
    text = done.stdout.strip() if done.returncode == 0 else (done.stdout + done.stderr).strip()
    return text, done.returncode == 0


def main(argv: list[str] | None = None) -> None:
    Parser(description=__doc__).parse_args(argv)
    with exit_on_input_error():
        if not torch.cuda.is_available():
            raise InputError("no GPU is visible to PyTorch: there is nothing to check; the tests "
                             "that need none are run by: pytest")
        print_result(machine())
        good = True
        for title, command in CHECKS.items():
            text, ended_well = outcome(command)
            good &= ended_well
            print_result(f"\n{title}: {'ok' if ended_well else 'FAILED'}\n{text}")
        sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
