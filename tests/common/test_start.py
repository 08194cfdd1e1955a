"""The start of every command: packages that are missing or broken, and Ctrl-C meanwhile."""

import ast
import os
import re
import subprocess
import sys

import pytest
from helpers.paths import ROOT

from common import interrupt, packages, start

PACKAGES = ("torch", "torchvision", "transformers", "tokenizers", "numpy", "PIL", "tqdm", "scipy",
            "matplotlib", "tensorboard")
COMMANDS = [path.relative_to(ROOT).as_posix()
            for folder in (".", "scripts", "vocab", "experiments", "figures", "benchmarks")
            for path in sorted((ROOT / folder).glob("*.py"))
            if '\nif __name__ == "__main__":' in path.read_text()]
WITH_PACKAGES = [name for name in COMMANDS if name != "benchmarks/two_machines.py"]
REQUIRED = {  # arguments without which a command ends before it imports anything
    "export.py": ["x", "y"], "experiments/posterior.py": ["x.npz"],
    "experiments/uses.py": ["filter"], "scripts/find_matches.py": ["test"],
    "figures/opening.py": ["x.npz", "--data_path", "x", "--output", "x.jpg"]}
FIRST = ast.dump(ast.parse(
    'if __name__ == "__main__":\n'
    "    from common.start import begin_command\n    begin_command()").body[0])
# Python reads a module of this name before anything else.
HIDE = "import sys\nsys.modules |= dict.fromkeys({names})"
INTERRUPT = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(10**8):
                    pass
            except BaseException:  # as some packages do
                raise ImportError("no " + name)

sys.meta_path.insert(0, Finder())
"""


def ended(name, folder, **environment):
    """Return status and standard error of a command that finds the modules of `folder` first."""
    module = name.removesuffix(".py").replace("/", ".")
    arguments = [name] if "/" not in name or name.startswith(("vocab", "bench")) else ["-m", module]
    done = subprocess.run(
        [sys.executable, *arguments, *REQUIRED.get(name, [])], cwd=ROOT, capture_output=True,
        text=True, timeout=120, env=os.environ | {"PYTHONPATH": f"{folder}:{ROOT}"} | environment)
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_begins_in_one_way(name):
    """Nothing is imported before, but for what finds the repository from a subfolder."""
    statements = ast.parse((ROOT / name).read_text()).body[1:]
    first = next(number for number, statement in enumerate(statements)
                 if ast.dump(statement) == FIRST)
    for statement in statements[:first]:
        module = getattr(statement, "module", None) or statement.names[0].name if isinstance(
            statement, ast.Import | ast.ImportFrom) else None
        assert (ast.unparse(statement).startswith("sys.path.insert")
                or module.partition(".")[0] in sys.stdlib_module_names), name
    assert re.search(r"with \(?exit_on_input_error\(\)", (ROOT / name).read_text())


@pytest.mark.parametrize("name", WITH_PACKAGES)
def test_a_command_names_a_missing_package(name, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDE.format(names=PACKAGES))
    status, error = ended(name, tmp_path)
    assert (status, error.count("\n")) == (2, 1), error
    assert "no Python package" in error and "pip install -r requirements.txt" in error


@pytest.mark.parametrize("name", WITH_PACKAGES)
def test_ctrl_c_while_packages_are_imported_ends_in_one_line(name, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT.format(names=PACKAGES))
    status, error = ended(name, tmp_path)
    assert (status, error.count("\n")) == (130, 1), error
    assert error.startswith("stopped at once")
    status, error = ended(name, tmp_path, RANK="1", WORLD_SIZE="2")  # the first process tells it
    assert (status, error) == (130, "")


@pytest.mark.parametrize("content, reason", [
    ("", "ImportError"), ("def (", "SyntaxError"), ("\0", "SyntaxError"),
    ("raise OSError('libcudart.so: cannot open shared object file')", "libcudart.so"),
    ("raise RuntimeError('operator torchvision::nms does not exist')", "torchvision::nms"),
    ("{}['x']", "KeyError"),
    ("def __getattr__(name):\n    if name != '__path__':\n        raise ImportError('cut short')",
     "cut short"),
])
@pytest.mark.parametrize("package", ["tqdm", "torch"])
def test_a_broken_package_is_told_with_the_reason(tmp_path, package, content, reason):
    (tmp_path / f"{package}.py").write_text(content)
    status, error = ended("train.py", tmp_path)
    if package == "torch":  # after a sound command line
        status, error = run_python(tmp_path, "begin_command()\nfrom torch import Tensor")
    assert (status, error.count("\n")) == (2, 1), error
    assert reason in error and "pip install -r requirements.txt" in error


def run_python(folder, code, **environment):
    """Return status and standard error of a program that begins as a command does."""
    done = subprocess.run(
        [sys.executable, "-c", f"from common.start import begin_command\n{code}"], cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{folder}:{ROOT}"} | environment, capture_output=True,
        text=True, timeout=120)
    return done.returncode, done.stderr


def test_only_an_import_is_a_packages_fault():
    """Neither an error of the program's own modules, nor one that a package raises in use."""
    for code in "import json\njson.loads('x')", "1 / 0", "from common.files import none":
        with pytest.raises(Exception) as caught:
            exec(code, {"__name__": "__main__"})
        assert packages.import_error_message(caught.value) is None, code


def test_importing_these_modules_changes_nothing():
    assert not interrupt.raise_on_interrupt() and sys.excepthook is not start.end_in_one_line


def test_a_fault_of_the_program_keeps_its_traceback(tmp_path):
    (tmp_path / "fne_fault.py").write_text("def f():\n    raise KeyError('x')")
    status, error = run_python(tmp_path, "begin_command()\nimport fne_fault\nfne_fault.f()")
    assert status == 1 and "Traceback" in error and "KeyError" in error
    status, error = run_python(tmp_path, "begin_command()\nfrom common.files import none")
    assert status == 1 and "Traceback" in error


def test_a_file_of_the_program_that_is_missing_is_named(tmp_path):
    status, error = run_python(tmp_path, "begin_command()\nimport inputs.lost_file")
    assert (status, error.count("\n")) == (2, 1) and "inputs/lost_file.py" in error


def test_any_mplbackend_is_harmless(tmp_path):
    code = "begin_command()\nimport figures.plots, matplotlib\nassert matplotlib.rcParams"
    assert run_python(tmp_path, code, MPLBACKEND="nonsense") == (0, "")


def test_an_ignored_ctrl_c_stays_ignored(tmp_path):
    code = ("import os, signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nbegin_command()\n"
            "os.kill(os.getpid(), signal.SIGINT)")
    assert run_python(tmp_path, code) == (0, "")


def test_ctrl_c_is_an_exception_while_a_command_works_and_none_afterwards(tmp_path):
    code = """
import os, signal
from common.errors import exit_on_input_error
begin_command()
try:
    with exit_on_input_error():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            while True: pass
        finally:
            print("cleared away", flush=True)
finally:
    {}
"""
    status, error = run_python(tmp_path, code.format("pass"))
    assert status == 130 and error.startswith("stopped at once: what was last saved is whole")
    late = "os.kill(os.getpid(), signal.SIGINT)"
    status, error = run_python(tmp_path, code.format(late))
    assert status == 130 and error.count("\n") == 2 and "all is done" in error
