"""The README's commands parse, and what it names exists."""

import re
import shlex

import pytest
from conftest import ROOT

from common.options import check, parse, parse_checking, parse_scoring

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [part.strip() for block in BLOCKS
            for line in block.replace("\\\n", " ").splitlines() for part in line.split("&&")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command):
    words = shlex.split(command.replace("$DATA_PATH", "/data"))
    if words[:2] == ["python", "train.py"]:
        check(parse("", words[2:])[0])
    elif words[:2] == ["python", "evaluation.py"]:
        parse_scoring("", words[2:])
    elif words[:2] == ["python", "check_data.py"]:
        parse_checking("", words[2:])
    elif words[:3] == ["pip", "install", "-r"]:
        assert (ROOT / words[3]).is_file()
    else:
        assert words in (["pytest"], ["tensorboard", "--logdir", "runs"]) or (
            words[0] == "python" and (ROOT / words[1]).is_file())


def test_the_two_first_commands_stand_at_the_top():
    assert COMMANDS[:4] == ["pip install -r requirements.txt",
                            "python train.py --dataset shapes --max_violation",
                            "pip install -r requirements-dev.txt", "pytest"]


def test_the_file_table_is_whole():
    table = README[README.index("## Files"):README.index("## Citation")]
    named = set(re.findall(r"^\| `([\w./]+)`", table, re.MULTILINE))
    modules = {path.name for path in ROOT.glob("*.py")}
    assert named == modules | {"benchmarks/", "docs/", "vocab/", "tests/"}


def test_every_test_that_it_names_exists():
    sources = {path.name: path.read_text() for path in (ROOT / "tests").glob("*.py")}
    assert set(re.findall(r"tests/(test_\w+\.py)", README)) <= sources.keys()
    for number in range(1, 10):
        assert f"test_fidelity_note_{number}_..." in README
        assert any(f"def test_fidelity_note_{number}_" in text for text in sources.values())


def test_its_pictures_are_there_and_small():
    pictures = re.findall(r"!\[[^\]]+\]\((\S+)\)", README)
    assert len(pictures) == 2
    assert all(0 < (ROOT / path).stat().st_size < 150_000 for path in pictures)
