"""The version of this code, and of the packages by which it computes."""

import hashlib
import importlib.metadata
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPUTING = "torch", "torchvision", "transformers", "tokenizers", "numpy", "pillow"


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


def versions() -> dict[str, str]:
    """Return a digest of this code, and the versions of the packages that decide its results."""
    digest = hashlib.sha256()
    packages = [path.parent for path in ROOT.glob("*/__init__.py")]
    for path in sorted([*ROOT.glob("*.py"), *(path for package in packages
                                             for path in package.rglob("*.py"))]):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    found = {"the code of this program": digest.hexdigest()[:12]}
    for name in COMPUTING:
        try:
            found[f"the version of {name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # installed without its metadata
            found[f"the version of {name}"] = "unknown"
    return found
