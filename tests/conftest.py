"""What several test files share."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: tests never use the network
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is, and for child processes: see `one_thread`

import huggingface_hub.constants  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from helpers import encoders  # noqa: E402
from helpers.paths import ROOT, SHARED  # noqa: E402
from helpers.quick import QUICK_FILES, is_quick  # noqa: E402
from helpers.runs import SIZES, command, contents  # noqa: E402
from tensorboard.summary.writer import event_file_writer  # noqa: E402

import export  # noqa: E402
import negative_sampling  # noqa: E402
import train  # noqa: E402
from common import terminal  # noqa: E402
from encoders.loading import BUILT_IN  # noqa: E402
from inputs import shapes  # noqa: E402

TESTS = ROOT / "tests"


def is_quick_file(path):
    """Return whether a file of tests holds quick ones."""
    return path.relative_to(TESTS).as_posix() in QUICK_FILES


def pytest_ignore_collect(collection_path, config):
    """Where only quick tests are wanted, other files are not even imported."""
    is_tests = collection_path.match("test_*.py") and collection_path.is_relative_to(TESTS)
    if config.option.markexpr == "quick" and is_tests and not is_quick_file(collection_path):
        return True


@pytest.hookimpl(tryfirst=True)  # before tests without the mark are left out
def pytest_collection_modifyitems(items):
    for item in items:
        path = item.path.relative_to(TESTS).as_posix()
        if is_quick(path, getattr(item, "originalname", item.name)):
            item.add_marker(pytest.mark.quick)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads its options
def pytest_cmdline_main(config):
    """All tests are shared out to two processes; a part, where each would import for longer than it
    tests, runs in this one. `pytest -n 0` or a path keeps to one, `-n 4` takes more."""
    if hasattr(config, "workerinput"):
        return  # one of the two: without this, each would start two more, and those two more
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if whole and config.pluginmanager.hasplugin("xdist") and not config.option.usepdb:
        if config.option.numprocesses is None and not config.option.keyword:
            config.option.numprocesses = 2
            config.option.dist = "worksteal"  # whole files, so that what a file shares is made once


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Small operations are faster on one thread, and their sums do not depend on the machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_quiet_left(monkeypatch):
    """A command with --quiet, which others ran before in this process, quietens no test."""
    monkeypatch.setattr(terminal, "quiet", False)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """What commands keep in the user's cache, also those in processes of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def small_shapes():
    """Wherever a command makes the embedded dataset or looks for it, it has a size for tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "DEFAULT_SIZES", SIZES)
        yield


@pytest.fixture(autouse=True, scope="session")
def events_in_order():
    """TensorBoard reads a folder's files by name, which ends in the second and in a process's count
    of files: of two of one second, as only tests make them, a 10th would be read before a 9th."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(10**6))
        yield


@pytest.fixture(autouse=True, scope="session")
def small_encoders():
    """Runs train a tenth of the built-in encoders: no test looks at how well they learn."""
    with pytest.MonkeyPatch.context() as patch:
        encoders.shrink_built_in(patch)
        yield


@pytest.fixture
def encoders_as_shipped(monkeypatch):
    """The built-in encoders in the size that users have."""
    for name, make_config in encoders.AS_SHIPPED.items():
        monkeypatch.setitem(BUILT_IN, name, make_config)


@pytest.fixture(scope="session")
def shared():
    """The folder of real data beside a checkout; tests that need it skip where there is none."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared with real data beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def data(small_shapes, small_encoders, tmp_path_factory):
    """The embedded dataset, for all to read; `copy_of` makes one to be spoilt."""
    folder = shapes.make_shapes(tmp_path_factory.mktemp("data") / "shapes")
    before = contents(folder)
    yield folder
    assert contents(folder) == before, "a test has changed the dataset that all read"


@pytest.fixture(scope="session")
def finished(data, one_thread, tmp_path_factory):
    """The folder of a run that was never interrupted, for all to read; copy it to change it."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train.main(command(data, folder))
    before = contents(folder)
    yield folder
    assert contents(folder) == before, "a test has changed the run that all read"


@pytest.fixture(scope="session")
def exported(finished, tmp_path_factory):
    """That run's best model as a folder, for all to read."""
    folder = tmp_path_factory.mktemp("export") / "ours"
    export.main([str(finished / "model_best.pth.tar"), str(folder)])
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A small encoder of each kind, saved as Hugging Face folders are."""
    return encoders.save_all(tmp_path_factory.mktemp("encoders"))


@pytest.fixture
def dual(folders):
    """A function that builds a `DualEncoder` of these kinds, in evaluation mode."""
    def build(image="vit", text="bert", res=encoders.RES, **settings):
        return encoders.build(folders, image, text, res, **settings)

    return build


@pytest.fixture
def offline(monkeypatch):
    """The variable serves child processes; this one has read it already."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def sampled(monkeypatch):
    """Replace the draw by the heaviest candidate, and keep what it was given."""
    given = []

    def heaviest(weights, fallback, shares):
        given.append((weights, fallback))
        return weights.argmax(dim=1).where(weights.sum(dim=1) > 0, fallback)

    monkeypatch.setattr(negative_sampling, "sample_negatives", heaviest)
    return given
