"""`--help`: at once, whole, and of the command that was asked."""

import re
import subprocess
import sys

import pytest
from helpers.paths import ROOT

from common.options import parse_scoring
from common.presets import PRESETS, RECIPES, preset_lines
from training.options import build_train_parser

COMMANDS = [path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            for folder in (".", "scripts", "vocab", "experiments")
            for path in sorted((ROOT / folder).glob("*.py"))
            if "def main(" in path.read_text()]
# Runs a command as `python -m` would, then tells what it loaded on the way.
ASK = """
import runpy, sys
sys.argv[1:] = sys.argv[2:]
try:
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
except SystemExit as ended:
    print("status", ended.code, "loaded", *sorted({{name.split(".")[0] for name in sys.modules}}))
"""


def ask(module, *arguments):
    done = subprocess.run([sys.executable, "-c", ASK.format(module=module), "x", *arguments],
                          cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "loaded" in done.stdout, done.stderr
    shown, loaded = done.stdout.rsplit("status", 1)
    return shown, done.stderr, loaded.split()


@pytest.fixture(scope="module", params=COMMANDS)
def shown(request):
    return request.param, *ask(request.param, "--help")


def test_help_loads_nothing_that_takes_seconds(shown):
    module, text, _, loaded = shown
    assert loaded[0] == "0" and "usage:" in text
    slow = {"torch", "torchvision", "transformers", "tokenizers", "numpy", "PIL"}
    if module in ("scripts.make_shapes", "experiments.dose"):
        slow -= {"numpy", "PIL"}  # a fifth of a second: it draws
    assert not slow & set(loaded), module


def test_each_command_is_asked():
    assert {"train", "evaluation", "export", "scripts.check_data", "scripts.split",
            "vocab.build_vocab", "experiments.dose"} <= set(COMMANDS)


def test_help_fits_a_terminal_and_says_no_default_that_is_none(shown):
    module, text, _, _ = shown
    assert all(len(line) <= 80 for line in text.splitlines()), module
    words = " ".join(text.split())
    assert not re.search(r"default: (None|False|\[|==SUPPRESS)", words), module
    assert not re.search(r"\(default:[^)]*\) \(default", words), module


def test_example_lines_can_be_pasted(shown):
    """A line that goes on ends in a backslash; none was joined to the next."""
    module, text, _, _ = shown
    examples = [line for line in text.splitlines() if line.startswith("    python ")]
    assert examples and not any("  " in line.strip() for line in examples), module
    for line in examples:
        after = text.splitlines()[text.splitlines().index(line) + 1]
        assert line.endswith(" \\") == after.startswith("        --"), line


def test_a_slip_in_a_flag_is_told_at_once():
    for module in "train", "evaluation", "export", "search", "vocab.build_vocab", "scripts.split":
        text, error, loaded = ask(module, "--nonsense")
        assert text == "" and loaded[0] == "2" and "torch" not in loaded
        assert error.count("\n") == 1 and "error: " in error


def test_a_default_of_zero_is_told():
    text = " ".join(build_train_parser("").format_help().split())
    for flag, told in (("--grad_clip", "2.0"), ("--val_step", "0"), ("--embed_size", "0"),
                       ("--lr_milestones", "5 15"), ("--seed", "3407")):
        told_of = text[text.index(f" {flag} ") + 1:]
        assert told_of[:told_of.index(")") + 1].endswith(f"(default: {told})"), flag


def test_presets_are_listed_whole():
    text = " ".join(build_train_parser("").format_help().split())
    for dataset, values in PRESETS.items():
        told = text[text.index(f"{dataset}: ") if values else 0:]
        for name, value in values.items():
            value = " ".join(map(str, value)) if isinstance(value, list) else value
            assert f"{name} {value}" in told, (dataset, name)
    assert "presets" not in ask("evaluation", "--help")[0]


def test_recipes_are_listed_whole():
    text = build_train_parser("").format_help().split("\nrecipes, ")[1]
    told = " ".join(text.split())
    for recipe, values in RECIPES.items():
        for name, value in values.items():
            assert f"{name} {value}" in told[told.index(f"{recipe}: "):], (recipe, name)


def test_a_name_and_its_value_share_a_line():
    values = {f"name_{number}": [number, number] for number in range(40)}
    lines = preset_lines(values, "preset of x: ", 4).splitlines()
    assert len(lines) > 5 and all(len(line) <= 80 for line in lines)
    assert all(re.fullmatch(r"(preset of x: | {4})(name_\d+ \d+ \d+,? ?)+", line)
               for line in lines)


def test_scoring_gives_no_default_where_the_checkpoint_has_its_own():
    """Its help is of its own flags: none that only training reads."""
    _, text, _, _ = "evaluation", *ask("evaluation", "--help")
    words = " ".join(text.split())
    assert "as the checkpoint has it" in words
    assert "(default: 384)" not in words and "(default: test)" in words
    for flag in "--resume", "--freeze", "--augment", "--logger_name", "--no_figures", "--margin":
        assert flag not in words
    options, given = parse_scoring("", ["x.tar", "--image_res", "96"])
    assert (options.image_res, options.max_words, options.embed_size) == (96, 30, 0)
    assert given == {"checkpoint", "image_res"}
