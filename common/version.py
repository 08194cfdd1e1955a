"""The version of this code."""

import subprocess
from pathlib import Path


def commit() -> str:
    """Return the commit of this code, with "-dirty" if files were changed; "unknown" without git.
    """
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=Path(__file__).parent,
            capture_output=True, text=True, timeout=10, check=True)
        return answer.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
