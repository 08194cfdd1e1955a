"""Which code this is."""

import subprocess
from pathlib import Path


def commit() -> str:
    """The commit that this code is at, and whether it was changed since; where git knows."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=Path(__file__).parent,
            capture_output=True, text=True, timeout=10, check=True)
        return answer.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
