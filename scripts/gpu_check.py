r"""Run every CUDA test and the tables of speed and memory on this machine's GPU,
in ten minutes at most.

    python -m scripts.gpu_check
    python -m scripts.gpu_check --json found.json
    python -m scripts.gpu_check --photos $DATA_PATH/flickr8k/images \
        --json_path $DATA_PATH/flickr8k

With --photos, a folder of Flickr8k's photos, it also trains an epoch on them.
The output can be pasted into an issue as it is. What is not done in time is
left out, and said. The status is 0 if all of it was done and all tests pass.
"""

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from common.errors import InputError, exit_on_input_error
from common.files import write
from common.parser import Parser
from common.terminal import print_result


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the flags: json, photos and json_path, each a path or None."""
    parser = Parser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="write outputs, seconds and what passed to this new file too")
    parser.add_argument("--photos", type=Path, metavar="DIR",
                        help="folder of Flickr8k's photos, for an epoch at 384; without it there "
                        "is none")
    parser.add_argument("--json_path", type=Path, metavar="DIR",
                        help="folder of their split files (default: beside the photos)")
    return parser.parse_args(argv)


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
PHOTOS = "an epoch on photos"
PHOTOS_SECONDS = 200  # after which the epoch ends early
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


def photo_check(photos: Path, json_path: Path | None) -> list[str]:
    """Return the command that trains an epoch on the photos of a folder.

    Raises:
        InputError: If there is no such folder.
    """
    for flag, folder in ("--photos", photos), ("--json_path", json_path):
        if folder is not None and not folder.is_dir():
            raise InputError(f"{flag} {folder}: no folder is there; name that of Flickr8k")
    names = [] if json_path is None else ["--json_path", str(json_path.resolve())]
    return [sys.executable, "benchmarks/photo_epoch.py", "--device", "cuda", "--workers", "16",
            "--seconds", str(PHOTOS_SECONDS), "--photos", str(photos.resolve()), *names]


def all_checks(photos: Path | None, json_path: Path | None) -> dict[str, list[str]]:
    """Return the commands by title, with that of an epoch on photos after the steps' if asked for.

    Raises:
        InputError: If a folder is not there, or only that of the splits is given.
    """
    if photos is None:
        if json_path is not None:
            raise InputError(f"--json_path {json_path}: belongs to --photos; give both, or none")
        return CHECKS
    checks = list(CHECKS.items())
    return dict([*checks[:2], (PHOTOS, photo_check(photos, json_path)), *checks[2:]])


def main(argv: list[str] | None = None) -> None:
    """Run the command with the arguments `argv`, or with those of the process."""
    arguments = parse(argv)
    file = arguments.json
    with exit_on_input_error():
        if not torch.cuda.is_available():
            raise InputError("no GPU is visible to PyTorch: there is nothing to check; the tests "
                             "that need none are run by: pytest")
        if file is not None and (file.exists() or not file.parent.is_dir()):
            raise InputError(f"--json {file}: name a new file in a folder that exists")
        checks = all_checks(arguments.photos, arguments.json_path)
        found = {"gpu": describe_gpu(), "checks": {}}
        print_result(found["gpu"])
        end = time.monotonic() + TIME_LIMIT
        if arguments.photos is None:
            print_result(f"\n{PHOTOS}: left out, as no --photos are given")
        for title, command in checks.items():
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
