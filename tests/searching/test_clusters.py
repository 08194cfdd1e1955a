"""Approximate search is close to the exact one, and its file is used for its own photos alone."""

import importlib.util

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from common.errors import InputError
from searching import clusters
from searching.clusters import check_faiss, open_clusters
from searching.exact import best_rows
from searching.index import Index, Table, make_table

DIM, COUNT = 16, 3_000


def test_a_missing_library_is_named_with_its_requirements(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="--faiss.*requirements-search.txt"):
        check_faiss()


@pytest.fixture(autouse=True)
def faiss(request):
    if "missing_library" not in request.node.name:
        pytest.importorskip("faiss")


def make_index(count=COUNT, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(40, DIM, generator=generator)
    chosen = torch.randint(40, (count,), generator=generator)
    noise = torch.randn(count, DIM, generator=generator)
    embeds = F.normalize(centres[chosen] + 0.5 * noise, dim=1)
    stats = {f"{number:05}.jpg": (number, number) for number in range(count)}
    return Index(make_table(stats), embeds, Table([], np.empty((0, 2), dtype=np.int64)))


@pytest.fixture
def index():
    return make_index()


def test_most_results_are_those_of_exact_search(index, tmp_path, capsys):
    queries = index.embeds[::100]
    opened = open_clusters(tmp_path / "index", index, queries, 10)
    line = capsys.readouterr().err
    assert line.startswith("--faiss") and "recall@10" in line and line.count("\n") == 1
    found = opened.best_rows(queries, index.embeds, 10)
    shares = []
    for query, best, exact in zip(queries, found, best_rows(queries, index.embeds, 10)):
        assert len(best.rows) == 10 and best.rows[0] == exact.rows[0]
        cosines = index.embeds[best.rows].double() @ query.double()
        assert best.scores == pytest.approx(cosines.numpy())
        shares.append(np.isin(exact.rows, best.rows).mean())
    assert np.mean(shares) > 0.6
    assert f"{np.mean(shares):.3f}" in line


def test_a_search_of_all_clusters_is_exact(index, tmp_path):
    queries = index.embeds[:7]
    opened = open_clusters(tmp_path / "index", index, queries, 10)
    opened.probes = len(opened.centroids)
    for best, exact in zip(opened.best_rows(queries, index.embeds, 50),
                           best_rows(queries, index.embeds, 50)):
        assert np.array_equal(best.rows, exact.rows) and np.array_equal(best.scores, exact.scores)


@pytest.mark.parametrize("count", [1, 5, 300, COUNT, 10**6])
def test_the_number_of_results_is_the_one_asked_for(index, tmp_path, count):
    opened = open_clusters(tmp_path / "index", index, index.embeds[:2], 10)
    for best in opened.best_rows(index.embeds[:2], index.embeds, count):
        assert len(best.rows) == min(count, COUNT) == len(set(best.rows.tolist()))


@pytest.mark.parametrize("count", [1, 2, 50])
def test_few_photos_are_one_cluster(tmp_path, count):
    small = make_index(count)
    [best] = open_clusters(tmp_path / "index", small, small.embeds[:1], 10).best_rows(
        small.embeds[:1], small.embeds, 10)
    assert best.rows.tolist() == best_rows(small.embeds[:1], small.embeds, 10)[0].rows.tolist()


def test_clusters_are_kept_for_the_same_photos_alone(index, tmp_path, capsys):
    first = open_clusters(tmp_path / "index", index, index.embeds[:1], 10)
    capsys.readouterr()
    again = open_clusters(tmp_path / "index", index, index.embeds[:1], 10)
    assert capsys.readouterr().err == "" and torch.equal(first.centroids, again.centroids)
    other = make_index(COUNT - 1)
    open_clusters(tmp_path / "index", other, other.embeds[:1], 10)
    assert "2,999 photos" in capsys.readouterr().err


def test_a_file_of_another_kind_is_not_replaced(index, tmp_path):
    (tmp_path / "index.clusters").write_text("mine")
    with pytest.raises(InputError, match="--faiss.*index.clusters"):
        open_clusters(tmp_path / "index", index, index.embeds[:1], 10)
    assert (tmp_path / "index.clusters").read_text() == "mine"


@pytest.mark.parametrize("change", [
    dict(order=torch.zeros(COUNT, dtype=torch.int64)), dict(order=torch.arange(COUNT) + 1),
    dict(order=torch.arange(5)), dict(ends=torch.tensor([COUNT + 5])),
    dict(ends=torch.tensor([5, 2, COUNT])), dict(centroids=torch.zeros(1, 2)),
    dict(more=torch.ones(1)),
    dict(ends=torch.zeros(0, dtype=torch.int64), centroids=torch.zeros(0, DIM))])
def test_hostile_clusters_are_made_anew(index, tmp_path, capsys, change):
    open_clusters(tmp_path / "index", index, index.embeds[:1], 10)
    path = tmp_path / "index.clusters"
    tensors = safetensors.torch.load_file(path)
    header = {"format": clusters.FORMAT, "index": clusters.index_digest(index)}
    safetensors.torch.save_file(tensors | change, path, header)
    capsys.readouterr()
    opened = open_clusters(tmp_path / "index", index, index.embeds[:1], 10)
    warning, line = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: --faiss") and str(path) in warning and "recall" in line
    assert opened.best_rows(index.embeds[:1], index.embeds, 1)[0].rows[0] == 0
