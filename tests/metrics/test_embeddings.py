"""Embeddings files: what is written is read again and scored, what is none is refused."""

import json

import numpy as np
import pytest
import torch
from helpers.judged import NAMES, as_json, small_embeddings, small_split
from helpers.runs import CPU

import evaluation
from metrics.embeddings import fitted_gaussians, read_embeddings, save_embeddings
from metrics.retrieval import retrieval_metrics


def test_embeddings_files_round_trip_and_are_scored(tmp_path, capsys):
    as_json(tmp_path / "x.json")
    embeddings = small_embeddings(small_split(tmp_path))
    save_embeddings(embeddings, tmp_path / "e.npz")
    again = read_embeddings(tmp_path / "e.npz")
    assert torch.equal(again.text_embeds, embeddings.text_embeds) and again.prior == 0.01
    assert again.split.images == NAMES and np.array_equal(again.statistics, embeddings.statistics)
    evaluation.main([*CPU, "--embeddings", str(tmp_path / "e.npz"), "--judgements",
                     str(tmp_path / "x.json"), "--output", str(tmp_path / "out.json")])
    results = json.loads((tmp_path / "out.json").read_text())
    wanted = retrieval_metrics(embeddings.image_embeds, embeddings.text_embeds,
                               embeddings.split.image_of_text)
    assert {key: results[key] for key in wanted} == wanted
    assert results["judgements"]["pairs"] == 5 and "posterior" in capsys.readouterr().out


def spoilt(arrays, what):
    changes = {
        "no npz": None,
        "lacks an array": {"captions": ...},
        "do not agree": {"images": arrays["images"][:2]},
        "each of the photos": {"image_of_text": np.array([0, 0, 1, 1, 1, 1])},
        "NaN": {"text_embeds": np.full((6, 5), np.nan, dtype=np.float32)},
        "(3, 4)": {"image_embeds": np.zeros((3, 4), dtype=np.float32)},
    }[what]
    if changes is None:
        return None
    return {name: changes.get(name, array) for name, array in arrays.items()
            if changes.get(name) is not ...}


@pytest.mark.parametrize("what", ["no npz", "lacks an array", "do not agree", "each of the photos",
                                  "NaN", "(3, 4)"])
def test_bad_embeddings_end_in_one_line(tmp_path, capsys, what):
    path = tmp_path / "e.npz"
    save_embeddings(small_embeddings(small_split(tmp_path)), path)
    arrays = spoilt(dict(np.load(path)), what)
    if arrays is None:
        path.write_bytes(b"no npz")
    else:
        np.savez(path, **arrays)
    with pytest.raises(SystemExit) as caught:
        evaluation.main([*CPU, "--embeddings", str(path)])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and what in error and error.count("\n") == 1


def test_fitted_gaussians_are_the_statistics_beside_the_embeddings(tmp_path):
    embeddings = small_embeddings(small_split(tmp_path))
    got = [[gaussian.count.item(), gaussian.mean.item(), gaussian.m2.item()]
           for gaussian in fitted_gaussians(embeddings)]
    assert got == embeddings.statistics.tolist()


@pytest.mark.parametrize("statistics", [
    None, [[0, 0, 0], [0, 0, 0]], [[1, 0.7, 0.0], [2, 0.5, 0.0]], [[2, 0.7, 0.0], [1, 0.5, 0.0]]])
def test_fewer_than_two_values_are_no_gaussian(tmp_path, statistics):
    embeddings = small_embeddings(small_split(tmp_path))
    embeddings.statistics = None if statistics is None else np.array(statistics, dtype=float)
    assert fitted_gaussians(embeddings) == []
