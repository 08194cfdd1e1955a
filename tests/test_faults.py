"""Malformed input of every kind, through the real commands: one line, status 2, no file harmed.

The table is in `helpers/faults_of_data.py` and its like of files and shards, and for reading in
`FAULTS.md`; below hypothesis looks for more.
"""

import json
import re

import numpy as np
import pytest
import torch
from helpers import (
    faults_of_data,  # noqa: F401  (it fills the table)
    faults_of_files,  # noqa: F401  (likewise)
    faults_of_shards,  # noqa: F401  (likewise)
)
from helpers.faults import FAULTS, Place
from helpers.paths import ROOT
from helpers.runs import contents, expect_exit
from helpers.spoiling_files import FEW, damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import checkpoint
from common.errors import InputError
from data import read_split
from inputs.photos import load_photo, photo_fault
from inputs.records import read_records
from inputs.splits import read_matches
from metrics.embeddings import read_embeddings
from metrics.judgements import read_judgements
from training import storage

# ---------------------------------------------------------------------------------- the table holds


def left_in_the_checkout():
    """What a command without --data_path or --logger_name would leave there."""
    return [sorted((ROOT / folder).rglob("*")) for folder in ("data", "runs")]


@pytest.mark.parametrize("name", FAULTS)
def test_fault(data, finished, tmp_path, capsys, name):
    _, named, make = FAULTS[name]
    place = Place(tmp_path, data, finished)
    make(place)
    before, checkout = contents(tmp_path) | contents(finished), left_in_the_checkout()
    expect_exit(place.arguments, 2, capsys, named, place.main)
    after = contents(tmp_path) | contents(finished)
    assert {path: after[path] for path in before} == before
    assert left_in_the_checkout() == checkout
    assert not (tmp_path / "ran").exists() and not list(tmp_path.rglob("*.tar.part"))


def test_the_table_of_faults_is_that_of_the_tests():
    assert len(FAULTS) >= 122
    table = (ROOT / "tests" / "FAULTS.md").read_text()
    rows = re.findall(r"^\| (.*?) \| .* \| `test_fault\[(.*?)\]` \|$", table, re.MULTILINE)
    assert rows == [(described, name) for name, (described, _, _) in FAULTS.items()]
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for test in re.findall(r"`(test_\w+)(?:\[.*?\])?`", table):
        assert f"def {test}(" in sources


# --------------------------------------------------------------------------------- looking for more

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["image", "caption", "images", "split", "filename", "sentences", "raw",
                         "matches", "caption_of", "caption_no", "yes", "no"]), inner, max_size=4),
    max_leaves=8)
RECORD = st.fixed_dictionaries({"image": st.text(max_size=4) | JSON, "caption": JSON})
JUDGEMENT = st.fixed_dictionaries(dict(image=JSON | st.just("a"), caption_of=JSON | st.just("b"),
                                       caption_no=JSON, yes=JSON, no=JSON))


def loads_or_tells(read, *arguments):
    """Either it loads, or an InputError says why in one line; nothing else."""
    try:
        read(*arguments)
    except InputError as error:
        assert str(error) and "\n" not in str(error).replace("\r", "\n")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@FEW
@given(content=st.lists(RECORD, min_size=1, max_size=3) | JSON | st.fixed_dictionaries(
    {"images": st.lists(JSON, max_size=3)}))
def test_any_json_for_a_split(scratch, content):
    (scratch / "shapes_val.json").write_text(json.dumps(content))
    loads_or_tells(read_split, "shapes", "val", scratch, scratch)


CELL = st.text(alphabet="ab,;\t|\"\n\r [0\0\ufeff\u2028é", max_size=6)


@FEW
@given(header=st.sampled_from(["file_name,text", "image;caption", "filepath\ttitle", "text", ""]),
       rows=st.lists(st.lists(CELL, max_size=3).map(",".join), max_size=5),
       name=st.sampled_from(["val.csv", "val.tsv"]))
def test_any_table(scratch, header, rows, name):
    path = scratch / name
    path.write_bytes("\n".join([header, *rows]).encode())
    loads_or_tells(read_records, path)


@FEW
@given(records=st.lists(RECORD | JSON, max_size=3), ends=st.sampled_from(["\n", "\r\n", "\r"]))
def test_any_lines(scratch, records, ends):
    path = scratch / "val.jsonl"
    path.write_bytes(ends.join(map(json.dumps, records)).encode())
    loads_or_tells(read_records, path)
    path.write_bytes(ends.join(f"{record}#{n}\t{record}" for n, record in enumerate(records))
                     .encode(errors="surrogatepass"))
    loads_or_tells(read_records, path)


@FEW
@given(images=st.lists(st.fixed_dictionaries({"id": JSON, "file_name": JSON | st.just("a")})
                       | JSON, max_size=3) | JSON,
       annotations=st.lists(st.fixed_dictionaries({"image_id": JSON, "caption": JSON}) | JSON,
                            max_size=3) | JSON)
def test_any_captions_of_coco(scratch, images, annotations):
    path = scratch / "coco.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    loads_or_tells(read_records, path)


@FEW
@given(choice=st.data(), content=st.sampled_from([
    ("x.csv", 'file_name,text\na.jpg,"A dog, ""Rex"""\nb.jpg,"[""x"", ""y""]"\n'),
    ("x.jsonl", '{"file_name": "a.jpg", "text": ["A dog", "x"]}\n{"file_name": "b", "text": "y"}'),
    ("x.token", "a.jpg#0\tA dog .\na.jpg#1\tRex .\n"),
    ("x.json", '{"images": [{"id": 1, "file_name": "a"}], "annotations": '
               '[{"image_id": 1, "caption": "x"}]}')]))
def test_any_damage_to_captions(scratch, choice, content):
    name, text = content
    (scratch / name).write_bytes(damaged(choice.draw, text.encode()))
    loads_or_tells(read_records, scratch / name)


@FEW
@given(content=st.fixed_dictionaries({"matches": st.lists(JSON, min_size=2, max_size=2)}) | JSON)
def test_any_json_for_matches(scratch, content):
    (scratch / "shapes_test_matches.json").write_text(json.dumps(content))
    loads_or_tells(read_matches, scratch / "shapes_test.json", 2, 3)


@FEW
@given(content=st.lists(JUDGEMENT, min_size=1, max_size=2) | JSON)
def test_any_json_for_judgements(scratch, content):
    (scratch / "judgements.json").write_text(json.dumps(content))
    (scratch / "shapes_val.json").write_text('[{"image": "a", "caption": "x"}, '
                                             '{"image": "b", "caption": ["y", "z"]}]')
    split = read_split("shapes", "val", scratch, scratch)
    loads_or_tells(read_judgements, scratch / "judgements.json", split)


@FEW
@given(lines=st.lists(st.lists(st.text(max_size=4) | st.sampled_from(["a", "b#0", "1", "nan"]),
                               max_size=6).map("\t".join), max_size=3))
def test_any_text_for_judgements(scratch, lines):
    (scratch / "judgements.txt").write_text("\n".join(lines), encoding="utf-8",
                                            errors="surrogatepass")
    (scratch / "shapes_val.json").write_text('[{"image": "a", "caption": "x"}, '
                                             '{"image": "b", "caption": ["y", "z"]}]')
    split = read_split("shapes", "val", scratch, scratch)
    loads_or_tells(read_judgements, scratch / "judgements.txt", split)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@settings(FEW, max_examples=25)
@given(choice=st.data())
def test_any_damage_to_a_photo(scratch, kind, choice):
    path = scratch / "photo"
    values = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(values).save(path, kind)
    path.write_bytes(damaged(choice.draw, path.read_bytes()))
    loads_or_tells(load_photo, path)
    assert isinstance(photo_fault(path), str | None)


@FEW
@given(choice=st.data())
def test_any_damage_to_a_checkpoint(scratch, choice):
    path = scratch / "small.pth.tar"
    storage.save(path, {"format": checkpoint.FORMAT, "options": {"seed": 1},
                        "model": {"weight": torch.ones(3)}, "criterion": {}})
    path.write_bytes(damaged(choice.draw, path.read_bytes()))
    loads_or_tells(checkpoint.read, path)


@FEW
@given(choice=st.data())
def test_any_damage_to_embeddings(scratch, choice):
    path = scratch / "small.npz"
    np.savez(path, image_embeds=np.eye(2), text_embeds=np.eye(2), image_of_text=np.arange(2),
             images=np.array(["a", "b"]), captions=np.array(["x", "y"]))
    path.write_bytes(damaged(choice.draw, path.read_bytes()))
    loads_or_tells(read_embeddings, path)
