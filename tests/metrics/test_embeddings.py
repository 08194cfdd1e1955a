"""Embeddings files: written, read again and scored; other files are refused."""

import io
import json
import warnings
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.judged import NAMES, as_json, small_embeddings, small_split
from helpers.runs import CPU, expect_exit, expect_one_line

import evaluation
from data import Split
from metrics.embeddings import Embeddings, fitted_gaussians, read_embeddings, save_embeddings
from metrics.retrieval import retrieval_metrics
from metrics.true_matches import multi_positive_metrics


def test_an_embeddings_file_is_read_again_and_scored(tmp_path, capsys):
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


def test_embeddings_in_bfloat16_take_half_and_move_recalls_by_a_tenth_at_most(tmp_path):
    """Of 2,000 random photos and captions, of which a third is found: two of them at most."""
    torch.manual_seed(0)
    images = F.normalize(torch.randn(2000, 256), dim=1)
    texts = F.normalize(images + 0.33 * torch.randn(2000, 256), dim=1)
    names = [f"{number}.jpg" for number in range(2000)]
    split = Split(tmp_path, names, names, np.arange(2000))
    found, sizes = [], []
    for dtype in "float32", "bfloat16":
        save_embeddings(Embeddings(images, texts, split), tmp_path / dtype, dtype)
        again = read_embeddings(tmp_path / dtype)
        assert again.image_embeds.dtype == getattr(torch, dtype)
        again = again.in_full_precision()
        assert torch.allclose(again.image_embeds, images, rtol=2**-8, atol=0)
        found.append(retrieval_metrics(again.image_embeds, again.text_embeds, split.image_of_text))
        with np.load(tmp_path / dtype) as arrays:
            sizes.append(arrays["image_embeds"].nbytes)
    exact, half = found
    assert sizes[0] == 2 * sizes[1] and 20 < exact["t2i_r1"] < 80
    for name in exact:
        if "_r" in name:
            assert abs(exact[name] - half[name]) < 0.101, name


def test_embeddings_in_bfloat16_get_the_metrics_of_their_float32(tmp_path, capsys):
    """Of an embeddings file, whose report and judgements are those of float32 numbers too."""
    as_json(tmp_path / "x.json")
    split = small_split(tmp_path)
    save_embeddings(small_embeddings(split), tmp_path / "half.npz", "bfloat16")
    half = read_embeddings(tmp_path / "half.npz")
    assert half.text_embeds.dtype == torch.bfloat16
    save_embeddings(half, tmp_path / "full.npz")
    assert read_embeddings(tmp_path / "full.npz").text_embeds.dtype == torch.float32
    found = []
    for name in "half", "full":
        evaluation.main([
            *CPU, "--embeddings", str(tmp_path / f"{name}.npz"), "--judgements",
            str(tmp_path / "x.json"), "--output", str(tmp_path / f"{name}.json"), "--report",
            str(tmp_path / name)])
        report = (tmp_path / name / "report.html").read_text()
        found.append((json.loads((tmp_path / f"{name}.json").read_text()),
                      report.replace(f"{name}.npz", "")))
    assert found[0] == found[1] and "posterior" in found[0][0]["judgements"]
    matches = torch.rand(6, 3) < 0.5
    full = half.in_full_precision()
    assert (multi_positive_metrics(half.image_embeds, half.text_embeds, matches)
            == multi_positive_metrics(full.image_embeds, full.text_embeds, matches))


def test_a_type_of_embeddings_that_are_not_saved_is_refused(capsys):
    expect_one_line(["--embeddings", "e.npz", "--embeds_dtype", "bfloat16"], "--embeds_dtype",
                    capsys, evaluation.main)


def spoilt(arrays, fault):
    """Return the arrays of a file with a fault, or None where the file is no npz at all."""
    changes = {
        "no npz": None,
        "captions": {"captions": ...},
        "image_embeds": {"images": arrays["images"][:2]},
        "image_of_text": {"image_of_text": np.array([0, 0, 1, 1, 1, 1])},
        "NaN": {"text_embeds": np.full((6, 5), np.nan, dtype=np.float32)},
        "(3, 4)": {"image_embeds": np.zeros((3, 4), dtype=np.float32)},
    }[fault]
    if changes is None:
        return None
    return {name: changes.get(name, array) for name, array in arrays.items()
            if changes.get(name) is not ...}


@pytest.mark.parametrize("fault", ["no npz", "captions", "image_embeds", "image_of_text", "NaN",
                                   "(3, 4)"])
def test_a_bad_embeddings_file_is_an_error_of_one_line(tmp_path, capsys, fault):
    """The line names what is wrong."""
    path = tmp_path / "e.npz"
    save_embeddings(small_embeddings(small_split(tmp_path)), path)
    arrays = spoilt(dict(np.load(path)), fault)
    if arrays is None:
        path.write_bytes(b"no npz")
    else:
        np.savez(path, **arrays)
    with pytest.raises(SystemExit) as caught:
        evaluation.main([*CPU, "--embeddings", str(path)])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and fault in error and error.count("\n") == 1


def with_array(path, name, content):
    with zipfile.ZipFile(path, "a") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zipfile, on a second file of one name
        file.writestr(name, content)


def header_of(shape, kind="<f4"):
    """The beginning of an array file that claims a shape, and holds no number."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"shape": shape, "fortran_order": False,
                                                  "descr": kind})
    return buffer.getvalue()


@pytest.mark.parametrize("name, content, named", [
    ("image_embeds.npy", header_of((0, 4)), "two arrays 'image_embeds'"),
    ("image_embeds", header_of((0, 4)), "two arrays 'image_embeds'"),
    ("more.npy", header_of((10**12, 4)), "more.npy"),
    ("more.npy", header_of((10**400, 4)), ""), ("more.npy", header_of((-1, 4)), ""),
    ("more.npy", header_of((1,), "<U1") + b"\xff\xff\xff\xff", ""),
    ("more.npy", header_of((1,), "|O"), ""), ("more.npy", b"\x93NUMPY\x09\x09", ""),
    ("more.txt", b"text", "")])
def test_a_hostile_array_is_refused_before_it_is_read(tmp_path, capsys, name, content, named):
    """In a line that speaks of the file, and of no memory."""
    path = tmp_path / "e.npz"
    save_embeddings(small_embeddings(small_split(tmp_path)), path)
    with_array(path, name, content)
    error = expect_exit([*CPU, "--embeddings", str(path)], 2, capsys, [str(path), named],
                        evaluation.main)
    assert "memory" not in error and "batch_size" not in error


def test_fitted_gaussians_are_those_of_the_statistics(tmp_path):
    embeddings = small_embeddings(small_split(tmp_path))
    got = [[gaussian.count.item(), gaussian.mean.item(), gaussian.m2.item()]
           for gaussian in fitted_gaussians(embeddings)]
    assert got == embeddings.statistics.tolist()


@pytest.mark.parametrize("statistics", [
    None, [[0, 0, 0], [0, 0, 0]], [[1, 0.7, 0.0], [2, 0.5, 0.0]], [[2, 0.7, 0.0], [1, 0.5, 0.0]]])
def test_there_is_no_gaussian_of_fewer_than_two_values(tmp_path, statistics):
    embeddings = small_embeddings(small_split(tmp_path))
    embeddings.statistics = None if statistics is None else np.array(statistics, dtype=float)
    assert fitted_gaussians(embeddings) == []
