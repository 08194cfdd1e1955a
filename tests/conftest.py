"""What several test files share."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: tests never use the network

import pytest  # noqa: E402
import torch  # noqa: E402
from helpers.runs import SIZES  # noqa: E402

import fne_loss  # noqa: E402
from inputs import shapes  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Small operations are faster on one thread, and their sums do not depend on the machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared():
    """The folder of real data beside a checkout; tests that need it skip where there is none."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared with real data beside this checkout")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The embedded dataset, in a size for tests."""
    before = dict(shapes.DEFAULT_SIZES)
    shapes.DEFAULT_SIZES.update(SIZES)
    yield shapes.make_shapes(tmp_path_factory.mktemp("data") / "shapes")
    shapes.DEFAULT_SIZES.update(before)


@pytest.fixture
def sampled(monkeypatch):
    """Replace the draw by the heaviest candidate, and keep what it was given."""
    given = []

    def heaviest(weights, fallback):
        given.append((weights, fallback))
        return weights.argmax(dim=1).where(weights.sum(dim=1) > 0, fallback)

    monkeypatch.setattr(fne_loss, "sample_negatives", heaviest)
    return given
