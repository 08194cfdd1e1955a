"""The pages are true: their commands parse, and what they link to or name is there.

The pages are README.md, CONTRIBUTING.md and docs/.
"""

import argparse
import ast
import functools
import importlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.paths import GOLDEN, ROOT
from helpers.photos import save
from helpers.runs import drawing
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.distributed.run import get_args_parser as torchrun_parser

import train
from common import terminal
from common.options import CheckingOptions, ExportOptions, FindingOptions, ScoringOptions
from common.parser import build_parser
from common.presets import PRESETS
from data import Split
from metrics.embeddings import Embeddings, save_embeddings
from scripts import check_data
from training.options import TrainOptions, check, parse

PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
         for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"))}
FAULTS = "tests/FAULTS.md"  # of it, only links and tests are looked at here
LINKED = PAGES | {FAULTS: (ROOT / FAULTS).read_text(encoding="utf-8")}
README = PAGES["README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page, language):
    """The fenced blocks of a page in one language, "" for plain ones."""
    return [text for kind, text in FENCE.findall(PAGES[page]) if kind == language]


def prose(text):
    """A page without its fenced blocks."""
    return FENCE.sub("", text)


def spans(page):
    """What a page writes as code inside its prose."""
    return re.findall(r"`([^`\n]+)`", prose(PAGES[page]))


# ----------------------------------------------------------------------------------------- commands

COMMANDS = [(page, part.strip()) for page in PAGES for block in blocks(page, "bash")
            for line in block.replace("\\\n", " ").splitlines() for part in line.split("&&")]


class Parsed(Exception):
    """A command's parser took its words."""


def parsed(monkeypatch, module, words):
    """Let `module.main` parse words, and go no further."""
    def stopped(plain):
        def parse_args(parser, *arguments, **more):
            raise Parsed(plain(parser, *arguments, **more))
        return parse_args

    for name in "parse_args", "parse_intermixed_args":
        plain = getattr(argparse.ArgumentParser, name)
        monkeypatch.setattr(argparse.ArgumentParser, name, stopped(plain))
    with pytest.raises(Parsed):
        module.main(words)


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_parses(page, command, monkeypatch):
    words = shlex.split(command.replace("$DATA_PATH", "/data"))
    while re.fullmatch(r"[A-Z_]+=\w+", words[0]):
        words = words[1:]
    if words[0] == "torchrun":
        launched = torchrun_parser().parse_args(words[1:])
        words = ["python", launched.training_script, *launched.training_script_args]
    program, first, *rest = *words, ""
    rest = rest[:-1]
    if program == "pytest":
        assert first in ("", "-k") or words[1:] == ["-m", "quick"] or (ROOT / first).exists()
        assert first != "-k" or any(rest[0] in name for name in names_of_tests())
    elif program != "python":
        assert words in (["pip", "install", "-r", "requirements.txt"], ["ruff", "check", "."],
                         ["pip", "install", "-r", "requirements-dev.txt"],
                         ["pip", "install", "-r", "requirements-export.txt"],
                         ["pip", "install", "-r", "requirements-search.txt"],
                         ["pip", "install", "-r", "requirements-datasets.txt"],
                         ["pip", "install", "-r", "requirements-lora.txt"],
                         ["pip", "install", "-r", "requirements-teacher.txt"],
                         ["tensorboard", "--logdir", "runs"],
                         ["tensorboard", "--logdir", "runs", "--samples_per_plugin", "images=100"])
        assert words[0] != "pip" or (ROOT / words[3]).is_file()
    elif first == "-m":
        parsed(monkeypatch, importlib.import_module(rest[0]), rest[1:])
    else:
        path = ROOT / first
        monkeypatch.syspath_prepend(path.parent)
        if first == "train.py":
            options = parse("", rest)[0]
            if options.data_path or not options.resume:  # whose checkpoint may name the folder
                check(options)
        parsed(monkeypatch, importlib.import_module(path.stem), rest)


def test_the_two_first_commands_stand_at_the_top():
    assert [command for page, command in COMMANDS if page == "README.md"][:4] == [
        "pip install -r requirements.txt", "python train.py --dataset shapes --max_violation",
        "pip install -r requirements-dev.txt", "pytest"]
    assert README.index("```bash") < 1000


# What makes the four commands short enough for a test; the rest of them runs as it stands.
SHORTENED = {
    "scripts.split": ["--val", "6", "--test", "6"],
    "scripts.check_data": ["--workers", "0"],
    "train": ["--num_epochs", "2", "--batch_size_train", "8", "--val_times", "0", "--workers", "0",
              "--no_figures", "--device", "cpu", "--image_res", "64",
              "--image_encoder", "small-convnext", "--text_encoder", "small-bert"],
    "evaluation": ["--workers", "0", "--device", "cpu"],
}


def test_from_own_photos_and_a_csv_to_a_test_table_in_four_commands(tmp_path, monkeypatch, capsys):
    section = README.split("## Train on your own photos\n")[1].split("\n## ")[0]
    [block] = [text for _, text in FENCE.findall(section)]
    commands = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal, "quiet", False)
    save(tmp_path / "photos", [f"{number}.jpg" for number in range(36)])
    Path("captions.csv").write_text("file_name,text\n" + "".join(
        f'{number}.jpg,"Photo {number}, and word {text}."\n'
        for text in range(2) for number in range(36)))
    for words in commands:
        first, *rest = words[2:] if words[1] == "-m" else words[1:]
        name = first.removesuffix(".py")
        try:
            importlib.import_module(name).main([*rest, *SHORTENED[name]])
        except SystemExit as ended:
            assert ended.code == 0, capsys.readouterr().err
        output = capsys.readouterr().out
        if name == "scripts.split":
            assert output.split()[:3] == ["train", "24", "photos"]
        if name == "scripts.check_data":
            assert output.splitlines()[-1] == "every photo can be used"
    assert len(commands) == len(SHORTENED)
    assert output.startswith("custom test, runs/custom_INFONCE/model_best.pth.tar\n")
    assert re.search(r"R@1 .*\n  i -> t .*\n  t -> i .*\n  rsum \d", output)


def test_a_trained_model_is_used_as_the_readme_says(finished, data, tmp_path, monkeypatch, capsys):
    """Saved embeddings, an export, and a search of its training's photos, as they stand there."""
    section = README.split("## Use of a trained model\n")[1].split("\n## ")[0]
    commands = [shlex.split(line) for line in FENCE.findall(section)[0][1].splitlines()]
    assert [words[1] for words in commands] == ["evaluation.py", "export.py", "search.py"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(finished, "runs/shapes_FNE")
    shutil.copytree(data, "data/shapes")
    for _, program, *words in commands:
        more = [] if program == "export.py" else ["--workers", "0", "--device", "cpu"]
        importlib.import_module(program.removesuffix(".py")).main([*words, *more])
    output = capsys.readouterr().out.splitlines()
    assert len(output[-10:]) == 10 and all("data/shapes/images/" in line for line in output[-10:])
    assert Path("embeddings.npz").is_file() and Path("found.html").read_text().count("<img") == 10


# --------------------------------------------------------------------------------- Python that runs


def test_the_pages_read_embeddings(tmp_path, monkeypatch, capsys):
    [code] = [block for block in blocks("docs/data.md", "python") if "embeddings.npz" in block]
    monkeypatch.chdir(tmp_path)
    split = Split(Path("x.json"), ["far.jpg", "near.jpg"], ["a dog"], np.array([1]))
    save_embeddings(Embeddings(torch.eye(2), torch.eye(2)[1:], split), Path("embeddings.npz"))
    exec(code, {})
    assert capsys.readouterr().out == "a dog near.jpg\n"


@pytest.mark.parametrize("page", ["README.md", "docs/fidelity.md"])
def test_a_released_checkpoint_loads_as_the_pages_say(page, tmp_path, monkeypatch, capsys):
    """With the small released checkpoint of the tests in place of the authors' large one."""
    [code] = [block for block in blocks(page, "python") if "load_released" in block]
    monkeypatch.chdir(shutil.copytree(GOLDEN / "released_checkpoint", tmp_path / "x"))
    Image.new("RGB", (40, 30), "red").save("photo.jpg")
    for published, small in (("google/vit-base-patch16-384", "image_encoder"),
                             ("bert-base-uncased", "text_encoder"), ("384", "32")):
        code = code.replace(published, small)
    names = {}
    exec(code, names)
    assert not names["model"].training
    assert page == "README.md" or re.match(r"tensor\(\[\[-?[01]\.", capsys.readouterr().out)


# -------------------------------------------------------------------------------------------- links


def slug(heading):
    """A heading's anchor, as GitHub makes it."""
    plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading))
    return plain.strip().lower().replace(" ", "-")


def anchors(path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


LINKS = [(page, target) for page, text in LINKED.items()
         for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)) if "://" not in target]


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_every_link_leads_somewhere(page, target):
    name, _, anchor = target.partition("#")
    path = (ROOT / page).parent / name if name else ROOT / page
    assert path.resolve().is_relative_to(ROOT) and path.is_file()
    assert not anchor or anchor in anchors(path)


def test_the_readme_leads_to_every_page():
    assert {target for page, target in LINKS if page == "README.md"} >= PAGES.keys() - {"README.md"}


def test_the_pictures_are_there_and_small():
    pictures = [ROOT / "docs" / path for page, text in PAGES.items()
                for path in re.findall(r"!\[[^\]]+\]\((\S+)\)", text) if page.startswith("docs/")]
    assert set(pictures) == {*ROOT.glob("docs/*.png"), *ROOT.glob("docs/*.jpg")}
    assert len(pictures) == 5 and all(0 < path.stat().st_size < 150_000 for path in pictures)


# ------------------------------------------------------------------------------ tests, names, flags


def names_of_tests():
    """Of every test function here."""
    return {name for path in (ROOT / "tests").rglob("test_*.py")
            for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)}


@pytest.mark.parametrize("page", LINKED)
def test_every_test_that_a_page_names_exists(page):
    named = set(re.findall(r"(?<![\w-])test_\w+\b(?!\.json|\.py)", LINKED[page]))
    tests = names_of_tests()
    begun = {name for name in named if name.endswith("_")}  # test_fidelity_note_1_...
    assert not {name for name in begun if not any(test.startswith(name) for test in tests)}
    assert not named - begun - tests


def test_every_fidelity_note_has_its_number_and_its_test():
    rows = re.findall(r"^\| (\d+) \|.*`test_fidelity_note_(\d+)_\.\.\.` \|$",
                      PAGES["docs/fidelity.md"], re.MULTILINE)
    assert rows == [(str(number), str(number)) for number in range(1, 14)]
    tests = {name.split("_")[3] for name in names_of_tests()
             if name.startswith("test_fidelity_note_")}
    assert tests == {number for number, _ in rows}


FILES = ("py", "md", "json", "jsonl", "csv", "tsv", "token", "txt", "npz", "tar", "html", "toml",
         "safetensors", "onnx", "pt")
DOTTED = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\(.*\))?")


def resolved(name):
    """What a dotted name means: a module of this repository, or something in one."""
    parts, found = name.split("."), None
    assert any((ROOT / parts[0]).with_suffix(end).exists() for end in ("", ".py")), name
    for number, part in enumerate(parts, 1):
        path = ROOT.joinpath(*parts[:number])
        if path.is_dir() or path.with_suffix(".py").is_file():
            found = importlib.import_module(".".join(parts[:number]))
        else:
            assert hasattr(found, part) or part in found.__annotations__, name
            found = getattr(found, part, None)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_name_of_the_code_exists(page):
    for span in spans(page):
        match = DOTTED.fullmatch(span)
        if match and match[1].split(".")[-1] not in FILES:
            resolved(match[1])
    for plain in blocks(page, ""):  # the picture of the flow
        for name in re.findall(r"[a-z_]+(?:\.\w+)+", plain):
            assert (ROOT / name).is_file() or resolved(name)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_of_the_code_exists(page):
    for span in spans(page):
        if re.fullmatch(r"[\w./]+\.(py|md|toml)", span) and span != "__init__.py":
            assert (ROOT / span).is_file(), span
        if re.match(r"(tests|benchmarks|docs|vocab|inputs|\.ci)/", span):
            assert (ROOT / span).exists(), span


@functools.cache
def flags_that_exist():
    """Of every command here, as its options declare them or its source adds them."""
    found = set()
    for path in (*ROOT.glob("*/*.py"), *ROOT.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                found |= {word.value for word in node.args if isinstance(word, ast.Constant)}
    for options_class in (TrainOptions, ScoringOptions, CheckingOptions, FindingOptions,
                          ExportOptions):
        found |= build_parser(options_class, "")._option_string_actions.keys()
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_exists(page):
    others = {"--help", "--logdir", "--samples_per_plugin"}  # of argparse and TensorBoard
    others |= torchrun_parser()._option_string_actions.keys()
    others |= {"--nodes", "--ntasks", "--gpus", "--requeue", "--signal"}  # of SLURM
    others |= {"--model", "--model_type", "--pretrained", "--dataset_root", "--task", "--recall_k",
               "--no_amp", "--output"}  # of CLIP_benchmark
    flags = set(re.findall(r"(?<![\w-])--[a-z]\w*", PAGES[page]))
    assert not flags - flags_that_exist() - others


# ------------------------------------------------------------------------------------ whole tables


def first_column(page, heading):
    """The code in the first column of the table, or tables, under a heading."""
    section = PAGES[page].split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`|]+)`", section, re.MULTILINE)


def test_the_file_table_is_whole():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git here to tell which folders are ours")
    folders = {f"{name.split('/')[0]}/" for name in listed.stdout.splitlines() if "/" in name}
    modules = {path.name for path in ROOT.glob("*.py")}
    named = first_column("README.md", "Files")
    assert len(named) == len(set(named)) and set(named) == modules | folders


def test_every_data_set_has_its_row():
    assert first_column("README.md", "Data") == ["--dataset", *PRESETS]


def test_every_finding_of_the_check_is_told():
    table = PAGES["docs/data.md"].split("## What the check finds\n")[1]
    told = {kind for row in re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)
            for kind in row.split(", ")}
    kinds = {kind for group in (check_data.FATAL, check_data.ODD, check_data.BETWEEN,
                                check_data.CAPTIONS) for kind in group}
    assert told - {"found", "---"} == kinds


def unfolded(tag):
    """`a/{b,c}_d` as a/b_d and a/c_d."""
    match = re.search(r"\{([^}]*)\}", tag)
    if not match:
        return {tag}
    return {name for word in match[1].split(",")
            for name in unfolded(tag[:match.start()] + word + tag[match.end():])}


def test_every_logged_metric_is_told(data, tmp_path, monkeypatch):
    """As a small run with figures logs them; the learned numbers are of other losses."""
    section = PAGES["docs/logged_metrics.md"].split("\n## ")[0]
    told = {tag for row in re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)
            for part in re.findall(r"`([^`]+)`", row) for tag in unfolded(part)}
    monkeypatch.setattr(terminal, "quiet", False)  # --quiet sets it; as before at the end
    train.main(drawing(data, tmp_path, "--num_epochs", "2", "--nums_right_sims", "1", "--oracle",
                       "--posterior", "evidence",
                       "--quiet"))
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()
    texts = {tag.removesuffix("/text_summary") for tag in tags["tensors"]}
    others = {"train/temperature", "train/sigmoid_bias"}
    assert {*tags["scalars"], *tags["images"], *texts} == told - others
