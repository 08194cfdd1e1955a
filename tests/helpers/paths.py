"""Where the code, the recorded numbers and the real data are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
GOLDEN = ROOT / "tests" / "golden"  # numbers that the released program computed
SHARED = ROOT.parent / "shared"  # real data beside a checkout, where there is any
