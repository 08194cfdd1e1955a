"""The house: who may import whom, no circles, files that say what they are, the method alone."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
METHOD = {"memory_bank", "negative_sampling", "fne_loss"}
# Room or module at the top level: what it may import of ours. Anything not named is forbidden.
MAY_IMPORT = {
    "memory_bank": set(),
    "negative_sampling": {"memory_bank"},
    "fne_loss": {"memory_bank", "negative_sampling"},
    "common": set(),
    "inputs": {"common"},
    "data": {"inputs", "common"},
    "encoders": {"inputs", "common"},
    "model": {"encoders", "common"},
    "teacher": {"encoders", "inputs", "fne_loss", "common"},
    "metrics": {"teacher", "data", "fne_loss", "negative_sampling", "common"},
    "training": {"teacher", "model", "encoders", "data", "inputs", "common"} | METHOD,
    "checkpoint": {"training", "model", "encoders", "memory_bank", "common"},
    "figures": {"teacher", "training", "metrics", "data", "inputs", "common"} | METHOD,
    "evaluation": {"teacher", "checkpoint", "figures", "metrics", "model", "encoders", "data",
                   "inputs", "fne_loss", "common"},
    "train": {"evaluation", "checkpoint", "figures", "metrics", "training", "model", "encoders",
              "data", "inputs", "common"} | METHOD,
    "export": {"checkpoint", "training", "model", "encoders", "common"},
    "searching": {"evaluation", "checkpoint", "figures", "metrics", "training", "model", "encoders",
                  "data", "inputs", "fne_loss", "common"},
    "search": {"searching", "export", "checkpoint", "model", "inputs", "common"},
    "experiments": {"train", "evaluation", "checkpoint", "figures", "metrics", "training",
                    "teacher", "model", "fne_loss", "negative_sampling", "data", "inputs",
                    "common"},
    "scripts": {"teacher", "figures", "metrics", "data", "inputs", "common"},
    "vocab": {"encoders", "data", "inputs", "common"},
}
FOLDERS = [name for name in MAY_IMPORT if (ROOT / name / "__init__.py").is_file()]


def product_files():
    """Module name to file, of all that is neither a test nor a benchmark."""
    files = [*ROOT.glob("*.py"), *(path for name in MAY_IMPORT if (ROOT / name).is_dir()
                                   for path in (ROOT / name).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
            for path in files}


FILES = product_files()


def imported(tree, names):
    """Our modules that a file imports, anywhere in it: inside functions and under `if` as well."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the room"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & names) or {node.module}
    return {name for name in found if name in names}


def graph():
    return {name: imported(ast.parse(path.read_text()), FILES.keys())
            for name, path in FILES.items()}


def room(module):
    return module.split(".")[0]


def forbidden(imports):
    """Arrows that no rule allows, of {module: modules that it imports}."""
    return [f"{module} -> {other}" for module, others in imports.items() for other in sorted(others)
            if room(other) != room(module) and room(other) not in MAY_IMPORT[room(module)]]


def circle(imports):
    """Modules that import each other in a circle, or an empty list."""
    done, path = set(), []

    def visit(module):
        if module in path:
            return path[path.index(module):] + [module]
        if module in done:
            return []
        path.append(module)
        for other in sorted(imports[module]):
            if found := visit(other):
                return found
        path.pop()
        done.add(module)
        return []

    return next((found for module in sorted(imports) if (found := visit(module))), [])


def test_every_module_has_its_rule():
    assert {room(module) for module in FILES} == MAY_IMPORT.keys()
    assert {"train", "training.guard", "figures.report"} <= FILES.keys()


def test_no_arrow_is_forbidden():
    assert forbidden(graph()) == []


def test_no_circle_of_modules_or_of_rooms():
    imports = graph()
    assert circle(imports) == []
    rooms = {name: set() for name in MAY_IMPORT}
    for module, others in imports.items():
        rooms[room(module)] |= {room(other) for other in others} - {room(module)}
    assert circle(rooms) == []


def test_a_wrong_arrow_and_a_circle_are_found():
    """Also inside a function, and under `if TYPE_CHECKING`."""
    code = "def f():\n    from figures import plots\nif TYPE_CHECKING:\n    import checkpoint\n"
    arrows = imported(ast.parse(code), FILES.keys())
    assert arrows == {"figures.plots", "checkpoint"}
    assert forbidden({"training.guard": arrows}) == ["training.guard -> checkpoint",
                                                     "training.guard -> figures.plots"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_nothing_but_benchmarks_tests_and_experiments_imports_train():
    assert {room(module) for module, others in graph().items() if "train" in others} == {
        "experiments"}
    assert not any("experiments" in map(room, others) and room(module) != "experiments"
                   for module, others in graph().items())


# What writes a file that others may see; `open` counts where its mode does.
WRITERS = {"write_text", "write_bytes", "mkstemp", "mkdtemp", "NamedTemporaryFile",
           "TemporaryDirectory", "savefig", "copyfile", "copy2", "copytree", "rmtree", "touch",
           "save_file", "symlink", "link", "symlink_to", "hardlink_to"}
# Where these are called: the writer itself, and folders that are made under a new name first.
MAY_WRITE = {
    "common.temporary": {"open", "rmtree"}, "common.files": {"open"}, "common.locks": {"open"},
    "common.folders": {"write_text", "link", "copy2"},  # inside of the new folder
    "encoders.folder": {"write_text", "save_file"},  # inside of `export.py`'s new folder
    "encoders.lora": {"save_file"},
    "inputs.shapes": {"write_text"},  # inside of the new folder
    "training.storage": {"link"},  # a second name for a file, new
    "figures.plots": {"savefig"},  # into memory
    "common.errors": {"open"},  # /dev/null
}


def writing_calls(tree):
    """The names of calls in a file that write, create or remove files."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        modes = [value.value for value in [*node.args, *(word.value for word in node.keywords)]
                 if isinstance(value, ast.Constant) and isinstance(value.value, str)]
        if name in WRITERS or name == "open" and any(
                re.fullmatch("[rwaxbt+]*[wax+][rwaxbt+]*", mode) for mode in modes):
            found.add(name)
    return found


def test_files_are_written_by_one_writer():
    """Everything else hands its content to `common.files.write`, or a folder to `replaced_folder`.
    """
    for name, path in FILES.items():
        found = writing_calls(ast.parse(path.read_text()))
        assert found <= MAY_WRITE.get(name, set()), f"{name}: {found}"
    assert writing_calls(ast.parse("open(x, 'wb'); p.write_text(y)")) == {"open", "write_text"}
    assert not writing_calls(ast.parse("open(x, 'rb'); open(x); photo.open()"))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_says_its_rules_and_nothing_else(name):
    tree = ast.parse((ROOT / name / "__init__.py").read_text())
    assert len(tree.body) == 1
    text = " ".join(ast.get_docstring(tree).split())
    told = re.search(r"May import (.*?)\.( |$)", text)
    told = set(re.findall(r"`(\w+)`", told.group(1))) if told else set()
    assert told == MAY_IMPORT[name], text
    assert "ever import" in text or "Nothing imports" in text or "everything else may" in text


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_file_is_described(module):
    assert ast.get_docstring(ast.parse(FILES[module].read_text()))


THREE_STEPS = """
import torch
from fne_loss import FNELoss
from memory_bank import MemoryBank

torch.manual_seed(0)
image, text = torch.nn.Linear(6, 4), torch.nn.Linear(5, 4)
criterion, bank = FNELoss(min_count=2), MemoryBank(20, 4)
optimizer = torch.optim.Adam([*image.parameters(), *text.parameters()], lr=0.01)
base, ids = torch.randn(8, 3), torch.arange(8)
inputs = base @ torch.randn(3, 6), base @ torch.randn(3, 5)
for step in range(3):
    embeds = [torch.nn.functional.normalize(layer(x)) for layer, x in zip((image, text), inputs)]
    keys = [embed.detach() for embed in embeds]
    criterion.update_statistics(*embeds, ids)
    loss = criterion(*embeds, *keys, ids, bank)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    bank.enqueue(*keys, ids)
    print(float(loss), len(bank), float(image.weight.grad.norm()))
"""


def test_the_method_stands_alone(tmp_path):
    """The three files in an empty folder, and somebody else's loop."""
    for name in METHOD:
        shutil.copy(ROOT / f"{name}.py", tmp_path)
    (tmp_path / "loop.py").write_text(THREE_STEPS)
    done = subprocess.run([sys.executable, "-I", "-c", "import sys; sys.path.insert(0, '.'); "
                           "import runpy; runpy.run_path('loop.py')"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [[float(value) for value in line.split()] for line in done.stdout.splitlines()]
    assert [row[1] for row in rows] == [8, 16, 20]
    assert all(row[0] > 0 and row[2] > 0 for row in rows)
