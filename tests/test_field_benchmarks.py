"""The field's own benchmarks give an exported folder the recalls that evaluation.py gives it.

Tests of a benchmark skip where it is not installed; docs/export.md says how to install it.
"""

import io
import json
import re
import shlex
import sys
import tarfile

import numpy as np
import pytest
import torch
from helpers.pairs import save_pair
from helpers.paths import ROOT
from helpers.photos import save

import export
from encoders.folder import read_json_object
from evaluation import retrieval_metrics
from model import DualEncoder

SECTION = (ROOT / "docs" / "export.md").read_text(encoding="utf-8").split(
    "## Score it with the field's benchmarks\n")[1].split("\n## ")[0]
MTEB_LINES, CLIP_BENCHMARK_LINES = re.findall(r"^```python\n(.*?)^```", SECTION,
                                              re.DOTALL | re.MULTILINE)
FOLDER = "models/shapes"  # of the page
KINDS = ["router", "pair"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder of an exported CLIP."""
    place = tmp_path_factory.mktemp("pair")
    export.main([str(save_pair(place / "clip", "clip")), str(place / "out")])
    return place / "out"


@pytest.fixture
def scored(request, tmp_path):
    """Return a function that gives the folder of a kind, and photos with captions for it.

    No two captions are equal, because every program orders ties in its own way.
    """
    def of_kind(kind):
        if kind == "router":
            data = request.getfixturevalue("data")
            captions = {}
            for record in json.loads((data / "shapes_train.json").read_text()):
                captions.setdefault(record["caption"], data / record["image"])
            photos = sorted(set(captions.values()))
            records = [(photo, [text for text in captions if captions[text] == photo])
                       for photo in photos]
            return request.getfixturevalue("exported"), records
        random = np.random.default_rng(0)
        letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
        save(tmp_path, [f"{number}.png" for number in range(20)])
        records = [(tmp_path / f"{number}.png",
                    [" ".join(random.permutation(letters)[:8]) for _ in range(1 + number % 4)])
                   for number in range(20)]
        return request.getfixturevalue("pair"), records

    return of_kind


@torch.no_grad()
def our_recalls(folder, records):
    """Return R@1, R@5 and R@10 of each direction, as shares of the queries."""
    model = DualEncoder.from_pretrained(folder)
    captions = model.preparation.captions([text for _, texts in records for text in texts])
    scores = retrieval_metrics(
        model.encode_image(model.preparation.pixels([path for path, _ in records])),
        model.encode_text(*captions.padded([captions[row] for row in range(len(captions))])),
        np.repeat(np.arange(len(records)), [len(texts) for _, texts in records]))
    recalls = {side: [scores[f"{side}_r{k}"] / 100 for k in (1, 5, 10)] for side in ("i2t", "t2i")}
    assert 0 < recalls["t2i"][1] < 1 and 0 < recalls["i2t"][2] < 1  # there is something to compare
    return recalls


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_names_its_modalities(request, kind):
    """They are those of which sentence-transformers knows."""
    folder = request.getfixturevalue({"router": "exported", "pair": "pair"}[kind])
    config = read_json_object(folder / "sentence_bert_config.json")
    assert config["modality_config"].keys() == {"image", "text"}
    library = pytest.importorskip("sentence_transformers", minversion="6")
    loaded = library.SentenceTransformer(str(folder), device="cpu").modalities
    assert config["modality_config"].keys() <= set(loaded)


@pytest.mark.parametrize("kind", KINDS)
def test_mteb_reads_the_modalities(request, kind):
    """As it does of a model on the Hub, whose files a test cannot have."""
    mteb = pytest.importorskip("mteb", reason="mteb is not installed (docs/export.md)")
    folder = request.getfixturevalue({"router": "exported", "pair": "pair"}[kind])
    config = read_json_object(folder / "sentence_bert_config.json")
    read = mteb.models.ModelMeta._detect_modalities_from_sbert_config(config)
    assert read == ["image", "text"]


def mteb_task(records, category):
    """Return a retrieval task of MTEB from photos and their captions, "t2i" or "i2t"."""
    from datasets import Dataset, Features, Image, Value
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    def table(rows, column, feature):
        return Dataset.from_dict({"id": list(rows), column: list(rows.values())},
                                 features=Features({"id": Value("string"), column: feature}))

    texts = {f"{photo}-{number}": text for photo, (_, captions) in enumerate(records)
             for number, text in enumerate(captions)}
    photos = {f"{photo}": str(path) for photo, (path, captions) in enumerate(records)}
    tables = [table(texts, "text", Value("string")), table(photos, "image", Image())]
    queries, corpus = tables if category == "t2i" else tables[::-1]
    matches = {}
    for text in texts:
        photo = text.split("-")[0]
        query, found = (text, photo) if category == "t2i" else (photo, text)
        matches.setdefault(query, {})[found] = 1

    class LocalTask(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=f"Local-{category}", description="photos and captions of a test",
            dataset={"path": "none", "revision": "none"}, type="Any2AnyRetrieval",
            category=category, modalities=["text", "image"], eval_splits=["test"],
            eval_langs=["eng-Latn"], main_score="hit_rate_at_1")

        def load_data(self, *arguments, **more):
            self.dataset = {"default": {"test": {"corpus": corpus, "queries": queries,
                                                 "relevant_docs": matches, "top_ranked": None}}}
            self.data_loaded = True

    return LocalTask()


@pytest.mark.parametrize("kind", KINDS)
def test_mteb_gives_our_recalls(scored, monkeypatch, capsys, kind):
    """With the lines of docs/export.md, and a task of our own in place of those that they name."""
    mteb = pytest.importorskip("mteb", reason="mteb is not installed (docs/export.md)")
    pytest.importorskip("sentence_transformers", minversion="6")
    folder, records = scored(kind)
    monkeypatch.setattr(mteb, "get_tasks", lambda tasks: [mteb_task(records, "t2i"),
                                                          mteb_task(records, "i2t")])
    names = {}
    assert FOLDER in MTEB_LINES
    exec(MTEB_LINES.replace(FOLDER, str(folder)), names)
    printed = re.findall(r"Local-(\w+) \[(.*)\]", capsys.readouterr().out)
    found = {side: [float(value) for value in values.split(",")] for side, values in printed}
    wanted = our_recalls(folder, records)
    assert found.keys() == wanted.keys()
    for side, values in wanted.items():
        assert found[side] == pytest.approx(values, abs=6e-6)  # MTEB rounds to five digits


def write_shards(folder, records):
    """Write photos and captions as the shards that CLIP_benchmark reads."""
    (folder / "test").mkdir(parents=True)
    (folder / "dataset_type.txt").write_text("retrieval")
    (folder / "test" / "nshards.txt").write_text("1")
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for number, (path, captions) in enumerate(records):
            for ending, content in ((path.suffix, path.read_bytes()),
                                    (".txt", "\n".join(captions).encode())):
                member = tarfile.TarInfo(f"{number:05}{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("kind", KINDS)
def test_clip_benchmark_gives_our_recalls(scored, tmp_path, monkeypatch, kind):
    """With the lines and the command of docs/export.md."""
    pytest.importorskip("clip_benchmark", reason="clip-benchmark is not installed (docs/export.md)")
    folder, records = scored(kind)
    write_shards(tmp_path / "shards", records)
    [command] = re.findall(r"^python (.*?)\n```", SECTION, re.DOTALL | re.MULTILINE)
    words = shlex.split(command.replace("\\\n", " ").replace(FOLDER, str(folder)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [*words, "--num_workers", "0"])
    exec(CLIP_BENCHMARK_LINES, {})
    found = json.loads((tmp_path / "scores.json").read_text())["metrics"]
    wanted = our_recalls(folder, records)
    for side, name in ("t2i", "image"), ("i2t", "text"):
        values = [found[f"{name}_retrieval_recall@{k}"] for k in (1, 5, 10)]
        assert values == pytest.approx(wanted[side], abs=1e-6)
