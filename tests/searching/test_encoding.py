"""Embeddings of photo files are those of `evaluation.py`, and broken photos end nothing."""

import contextlib
import os

import numpy as np
import pytest
import torch
from helpers.photos import noise
from helpers.runs import CPU

import evaluation
import export
from searching.encoding import encode_files


@pytest.fixture(scope="module")
def model(exported):
    return export.read_model(exported)[0]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_embeddings_are_those_of_evaluation(model, exported, data, tmp_path, workers, batch_size):
    evaluation.main([str(exported), "--data_path", str(data), "--workers", "0", *CPU,
                     "--save_embeddings", str(tmp_path / "x.npz")])
    wanted = np.load(tmp_path / "x.npz")
    photos = [data / name for name in wanted["images"]]
    rows = torch.empty(len(photos), model.embed_size)
    for batch in encode_files(model, photos, workers, batch_size):
        assert not batch.faults
        rows[batch.indices] = batch.embeds
    torch.testing.assert_close(rows, torch.from_numpy(wanted["image_embeds"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_photos_are_faults_and_the_others_are_encoded(model, tmp_path, workers):
    good = [tmp_path / "a.png", tmp_path / "z.png"]
    for path in good:
        noise().save(path)
    content = good[0].read_bytes()
    broken = {"cut.png": content[: len(content) // 2], "empty.jpg": b"", "text.jpg": b"text",
              "script.png": b"%!PS\nquit\n"}
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    photos = [good[0], *(tmp_path / name for name in broken), tmp_path / "gone.jpg", good[1]]
    batches = list(encode_files(model, photos, workers, 2))
    assert [number for batch in batches for number in batch.indices] == [0, 6]
    assert torch.equal(batches[0].embeds[0], batches[-1].embeds[0])
    faults = [fault for batch in batches for fault in batch.faults]
    assert [fault.index for fault in faults] == [1, 2, 3, 4, 5]
    assert all(photos[fault.index].name in fault.reason for fault in faults)
    assert [fault.permanent for fault in faults] == [True, True, True, True, False]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_photo_without_read_permission_is_no_permanent_fault(model, tmp_path):
    noise().save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    [batch] = encode_files(model, [tmp_path / "a.png"], 0, 1)
    assert not batch.faults[0].permanent


def test_a_huge_photo_is_a_permanent_fault(model, tmp_path, monkeypatch):
    monkeypatch.setattr("inputs.photos.MAX_PIXELS", 1_000)
    noise(100, 100).save(tmp_path / "a.png")
    [batch] = encode_files(model, [tmp_path / "a.png"], 0, 1)
    assert "100 x 100" in batch.faults[0].reason and batch.faults[0].permanent


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, 0, 2])
def test_a_photo_without_an_embedding_is_a_fault(model, tmp_path, monkeypatch, wrong):
    noise().save(tmp_path / "a.png")
    rows = torch.eye(24)[:2]
    rows[1] *= wrong
    monkeypatch.setattr(type(model), "encode_image", lambda model, pixels: rows)
    [batch] = encode_files(model, [tmp_path / "a.png"] * 2, 0, 2)
    assert batch.indices == [0] and batch.faults[0].index == 1 and batch.embeds.shape == (1, 24)


def test_workers_end_when_the_iteration_is_closed_early(model, tmp_path):
    noise().save(tmp_path / "a.png")
    with contextlib.closing(encode_files(model, [tmp_path / "a.png"] * 40, 2, 1)) as batches:
        next(batches)
    assert not torch.utils.data._utils.worker.get_worker_info()
