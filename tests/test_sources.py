"""Every source of pairs: training, going on to the bit, val and test, and an error in a line.

| source | photos | captions and splits |
|---|---|---|
| json | folder | triples, a file for each split |
| csv | folder | a table for each split |
| jsonl | folder | an object a line, a file for each split |
| karpathy | folder | Karpathy's object |
| imagefolder | a folder for each split | `metadata.csv` beside the photos |
| large | folder | triples that are mapped from the cache |
| shards | tar files | `.json` beside the photos |
| parquet | inside | columns of files that are named for the splits |
| save_to_disk | inside | columns of the library's own folder |
| hub | inside | a column that says the split |

All of them hold the embedded data set, so each has to end in the bits of the first.
"""

import csv
import json
import shutil

import pytest
from helpers.runs import assert_same, command, expect_exit, final_state
from helpers.shards import pack
from helpers.stopping import signal_after

import train
from common.flags import flags_of
from data import read_split
from inputs import arrow, sources

PARTS = "train", "val", "test"
MODEL = ["--image_encoder", "small-convnext", "--text_encoder", "tiny-bert", "--vocab",
         "vocab/shapes.txt", "--image_res", "64", "--num_epochs", "2"]


class Pairs:
    """The embedded data set: of each split (photo, its path, its captions)."""

    def __init__(self, data):
        self.data = data
        self.of = {}
        for part in PARTS:
            split = read_split("shapes", part, data)
            texts = [[] for _ in split.images]
            for text, image in zip(split.captions, split.image_of_text.tolist()):
                texts[image].append(text)
            self.of[part] = list(zip(split.images, map(data.joinpath, split.images), texts))


def write_json(pairs, folder):
    for part, rows in pairs.of.items():
        (folder / f"{part}.json").write_text(json.dumps(
            [{"image": name, "caption": texts} for name, _, texts in rows]))
    return ["--data_path", pairs.data, "--json_path", folder]


def write_csv(pairs, folder):
    for part, rows in pairs.of.items():
        with open(folder / f"{part}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image_name", "comment"])
            writer.writerows((name, text) for name, _, texts in rows for text in texts)
    return ["--data_path", pairs.data, "--json_path", folder]


def write_jsonl(pairs, folder):
    for part, rows in pairs.of.items():
        (folder / f"{part}.jsonl").write_text("".join(
            json.dumps({"file_name": name, "captions": texts}) + "\n" for name, _, texts in rows))
    return ["--data_path", pairs.data, "--json_path", folder]


def write_karpathy(pairs, folder):
    content = {"images": [
        {"filename": name, "split": part, "sentences": [{"raw": text} for text in texts]}
        for part, rows in pairs.of.items() for name, _, texts in rows]}
    for part in PARTS:  # the object holds all three, and own data has a file for each
        (folder / f"{part}.json").write_text(json.dumps(content))
    return ["--data_path", pairs.data, "--json_path", folder]


def write_imagefolder(pairs, folder):
    for part, rows in pairs.of.items():
        (folder / part).mkdir()
        with open(folder / part / "metadata.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", "text"])
            for _, path, texts in rows:
                shutil.copy(path, folder / part)
                writer.writerows((path.name, text) for text in texts)
    return ["--data_path", folder]


def write_shards(pairs, folder):
    patterns = [pack(pairs.data, part, folder, 10, kind="json") for part in PARTS]
    return [word for flag, pattern in zip(("--data_path", "--val_path", "--test_path"), patterns)
            for word in (flag, pattern)]


def as_table(pairs, part):
    datasets = pytest.importorskip("datasets")
    rows = pairs.of[part]
    return datasets.Dataset.from_dict(
        {"image": [{"bytes": path.read_bytes(), "path": path.name} for _, path, _ in rows],
         "caption": [texts for _, _, texts in rows], "split": [part] * len(rows)},
        features=datasets.Features({"image": datasets.Image(), "split": datasets.Value("string"),
                                    "caption": datasets.List(datasets.Value("string"))}))


def write_parquet(pairs, folder):
    for part in PARTS:
        as_table(pairs, part).to_parquet(folder / f"{part}-00000-of-00001.parquet")
    return ["--data_path", folder]


def write_saved(pairs, folder):
    tables = {part: as_table(pairs, part) for part in PARTS}
    pytest.importorskip("datasets").DatasetDict(tables).save_to_disk(folder / "saved")
    return ["--data_path", folder / "saved"]


def write_hub(pairs, folder):
    datasets = pytest.importorskip("datasets")
    whole = datasets.concatenate_datasets([as_table(pairs, part) for part in PARTS])
    whole.to_parquet(folder / "copy" / "test-00000-of-00001.parquet")
    return ["--dataset", "hub", "--data_path", folder / "copy"]


# Of each source: what writes it, what takes something away from it, and what the error names.
SOURCES = {
    "json": (write_json, "val.json", "no val.json"),
    "csv": (write_csv, "test.csv", "no test.json"),
    "jsonl": (write_jsonl, "train.jsonl", "no train.json"),
    "karpathy": (write_karpathy, "val.json", "no val.json"),
    "imagefolder": (write_imagefolder, "val/metadata.csv", "no val.json"),
    "large": (write_json, "train.json", "no train.json"),
    "shards": (write_shards, "val-0.tar", "val-0.tar"),
    "parquet": (write_parquet, "val-00000-of-00001.parquet", "has no split val"),
    "save_to_disk": (write_saved, "saved/val/data-00000-of-00001.arrow", "saved"),
    "hub": (write_hub, "copy/test-00000-of-00001.parquet", "copy"),
}


def trained(folder):
    """A run's last state, but for where its data lie."""
    state = final_state(folder)
    flags = flags_of(train.TrainOptions).items()
    for name in "dataset", "cache", "resume", *(name for name, flag in flags if flag.repeat):
        state["options"].pop(name, None)
    return state


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    """A run on json triples that never stopped."""
    folder = tmp_path_factory.mktemp("reference")
    where = write_json(Pairs(data), folder)
    train.main(command(data, folder / "run", *MODEL, "--dataset", "custom", *map(str, where)))
    return folder / "run"


@pytest.mark.parametrize("name", SOURCES)
def test_each_source_trains_goes_on_and_scores_to_the_bit(data, reference, tmp_path, monkeypatch,
                                                          capsys, name):
    write, taken, told = SOURCES[name]
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(arrow, "hub_fault", lambda: "no network")
    if name == "large":
        pytest.importorskip("datasets")
        monkeypatch.setattr(sources, "LARGE", 0)
    where = [*map(str, write(Pairs(data), tmp_path / "data")), "--cache", str(tmp_path / "cache")]
    arguments = command(data, tmp_path / "run", *MODEL, "--dataset", "custom", *where, "--resume",
                        "auto", "--workers", "1" if name in ("parquet", "large") else "0")
    with monkeypatch.context() as patch:
        signal_after(patch, 5)
        expect_exit(arguments, 143, capsys, ["step 5 is done"])
    train.main(arguments)
    assert_same(trained(tmp_path / "run"), trained(reference))
    assert (tmp_path / "run" / "test_results.json").read_text() == (
        reference / "test_results.json").read_text()
    (tmp_path / "data" / taken).unlink()
    capsys.readouterr()
    expect_exit(command(data, tmp_path / "other", *MODEL, "--dataset", "custom", *where), 2, capsys,
                [told])


def test_the_table_above_is_that_of_the_tests():
    rows = [line.split("|")[1].strip() for line in __doc__.splitlines() if line.startswith("|")]
    assert rows[2:] == list(SOURCES)
