"""Which package is to blame for an error that arose while modules were imported."""

from collections.abc import Iterator
from pathlib import Path
from types import FrameType, ModuleType

from common.errors import is_out_of_memory, one_line

ROOT = Path(__file__).resolve().parent.parent
INSTALL = "pip install -r requirements.txt"


def import_error_message(error: BaseException) -> str | None:
    """Return one line about a package that cannot be imported; None for any other error."""
    while isinstance(error, ImportError) and error.__cause__ is not None:
        error = error.__cause__  # transformers raises an error of its own from the true one
    name = failing_module(error)
    if name is None:
        return None
    if is_out_of_memory(error):
        return "out of memory while packages are loaded: raise the limit (ulimit -v)"
    if name and is_ours(name):
        is_missing = isinstance(error, ModuleNotFoundError) and "." in name
        return (f"this program lacks its file {name.replace('.', '/')}.py: get it anew"
                if is_missing else None)
    if isinstance(error, ModuleNotFoundError):
        return f"no Python package {name}: {INSTALL}"
    package = f"the Python package {name.partition('.')[0]}" if name else "a Python package"
    return (f"{package} cannot be loaded ({type(error).__name__}: "
            f"{one_line(error)[:200]}): look at its variables in the environment, or install it "
            f"anew: {INSTALL}")


def failing_module(error: BaseException) -> str | None:
    """Return the name of the module whose import failed with `error`, "" if it is not known.

    Returns:
        The name, or None if the error did not arise while a module was imported.
    """
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return None
    frames = list(frames_of(error))
    imported = [frame for frame in frames if frame.f_code.co_name == "<module>"]
    innermost = imported[-1].f_globals.get("__name__", "") if imported else ""
    if isinstance(error, ImportError) and error.name:
        return error.name
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        # A package of which files are missing: what our modules take from it is not there.
        return error.obj.__name__ if imported and frames[-1] is imported[-1] else None
    if isinstance(error, SyntaxError) and error.filename:
        return module_of_file(error.filename)
    if innermost and not is_ours(innermost):
        return innermost
    at_import = bool(imported) and frames[-1] is imported[-1]
    return "" if isinstance(error, ImportError) or (
        at_import and isinstance(error, EOFError | MemoryError | SyntaxError | OSError)) else None


def frames_of(error: BaseException) -> Iterator[FrameType]:
    """Yield the frames of an error's traceback, the outermost first."""
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def module_of_file(path: str) -> str:
    """Return the name of the module in a file, of a package by its folder in site-packages."""
    parts = Path(path).with_suffix("").parts
    installed = [number for number, part in enumerate(parts)
                 if part in ("site-packages", "dist-packages")]
    if installed:
        return ".".join(parts[installed[-1] + 1:])
    if Path(path).is_relative_to(ROOT):
        return ".".join(Path(path).relative_to(ROOT).with_suffix("").parts)
    return parts[-1]


def is_ours(name: str) -> bool:
    """Return whether a module is one of this repository, by its name."""
    first = name.partition(".")[0]
    folders = ROOT, ROOT / "benchmarks"
    return (first == "__main__" or (ROOT / first / "__init__.py").is_file()
            or any((folder / f"{first}.py").is_file() for folder in folders))
