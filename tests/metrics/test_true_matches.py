"""Metrics over all true matches, and COCO's through `eccv_caption`, against slow computations."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data import read_split
from evaluation import all_metrics
from metrics import true_matches
from metrics.embeddings import Embeddings
from metrics.retrieval import retrieval_metrics
from metrics.true_matches import coco_image_ids, coco_metrics, multi_positive_metrics


def slow_metrics(similarity, relevant):
    """Return mAP@R and R-Precision in percent, one query at a time; ties count as wrong."""
    maps, precisions = [], []
    for row, right in zip(similarity.tolist(), relevant.tolist()):
        r = sum(right)
        if not r:
            continue
        order = sorted(range(len(row)), key=lambda item: (-row[item], right[item]))[:r]
        hits = [right[item] for item in order]
        maps.append(sum(sum(hits[: k + 1]) / (k + 1) for k in range(r) if hits[k]) / r)
        precisions.append(sum(hits) / r)
    return [100 * np.mean(maps), 100 * np.mean(precisions)]


def random_case(seed, images=9, texts=23, dim=4):
    generator = torch.Generator().manual_seed(seed)
    embeds = [F.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=1)
              for count in (images, texts)]
    return *embeds, torch.rand(texts, images, generator=generator) < 0.2


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block", [2**23, 10])
def test_metrics_over_all_matches_are_those_of_a_loop(seed, block, monkeypatch):
    monkeypatch.setattr(true_matches, "BLOCK", block)
    images, texts, matches = random_case(seed)
    images[1], texts[2] = images[0], texts[5]  # ties
    got = multi_positive_metrics(images, texts, matches.numpy())
    similarity = images @ texts.T
    assert [got["i2t_map_at_r"], got["i2t_r_precision"]] == pytest.approx(
        slow_metrics(similarity, matches.T))
    assert [got["t2i_map_at_r"], got["t2i_r_precision"]] == pytest.approx(
        slow_metrics(similarity.T, matches))


def test_metrics_of_a_hand_ranked_query():
    """Two of three photos match, and are ranked first and third: precision 1 of 2."""
    images = torch.tensor([[0.9, 0.0], [0.6, 0.0], [0.3, 0.0]])
    texts, matches = torch.tensor([[1.0, 0.0]]), np.array([[True, False, True]])
    got = multi_positive_metrics(images, texts, matches)
    assert (got["t2i_map_at_r"], got["t2i_r_precision"]) == (50, 50)


def test_a_collapsed_model_scores_zero():
    """All ties count against the model."""
    point = F.normalize(torch.ones(1, 48), dim=1)
    matches = np.eye(10, dtype=bool)
    got = multi_positive_metrics(point.expand(10, 48), point.expand(10, 48), matches)
    assert set(got.values()) == {0.0}


def test_coco_ids_are_read_from_file_names():
    assert coco_image_ids(["val2014/COCO_val2014_000000391895.jpg", "000000000009.jpg"]) == [
        391895, 9]
    assert coco_image_ids(["3385593926_d3e9c21170.jpg"]) is None


@pytest.fixture(scope="module")
def coco(shared):
    """Return noisy embeddings of COCO's test split, in float64 so that nothing ties."""
    split = read_split("mscoco", "test", shared / "json", None, captions_per_image=5)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5000, 16, generator=generator, dtype=torch.float64)
    noise = torch.randn(25000, 16, generator=generator, dtype=torch.float64)
    texts = images[torch.from_numpy(split.image_of_text)] + 0.8 * noise
    return F.normalize(images, dim=1), F.normalize(texts, dim=1), split


def test_captions_are_in_the_order_of_the_annotations(coco):
    """The package's ids name five captions for each photo, in the order of the split."""
    eccv_caption = pytest.importorskip("eccv_caption")
    truth = eccv_caption.Metrics()
    photos = [truth.coco_gts["t2i"][caption][0] for caption in truth.coco_ids.tolist()]
    ids = coco_image_ids(coco[2].images)
    assert photos == [ids[image] for image in coco[2].image_of_text]
    assert max(map(len, [*truth.eccv_gts["i2t"].values(), *truth.eccv_gts["t2i"].values()])
               ) <= true_matches.TOP_ITEMS


def test_recalls_are_those_of_the_package(coco):
    """5K and 1K, in both directions."""
    eccv_caption = pytest.importorskip("eccv_caption")
    images, texts, split = coco
    truth, ids = eccv_caption.Metrics(), np.array(coco_image_ids(split.images))
    retrieved = {
        "i2t": true_matches.retrieved_ids(images, texts, ids, truth.coco_ids),
        "t2i": true_matches.retrieved_ids(texts, images, truth.coco_ids, ids)}
    options = SimpleNamespace(dataset="mscoco", judgements=None)
    metrics, text = all_metrics(Embeddings(images, texts, split), options)
    for k in 1, 10:
        for theirs, ours in ((truth.coco_5k_recalls(retrieved, "all", K=k), metrics),
                             (truth.coco_1k_recalls(retrieved, "all", K=k), metrics["five_fold"])):
            for direction in "i2t", "t2i":
                assert ours[f"{direction}_r{k}"] == pytest.approx(100 * theirs[direction],
                                                                  abs=1e-9)
    assert "ECCV Caption" in text and 0 < metrics["i2t_eccv_map_at_r"] < 100
    assert metrics["t2i_cxc_r5"] > metrics["t2i_cxc_r1"] > 0


def test_perfect_embeddings_score_100_and_another_split_has_no_coco_metrics(coco):
    """Embeddings that rank each annotated pair first do so for CxC, which adds pairs."""
    _, _, split = coco
    images = F.normalize(torch.randn(5000, 64, generator=torch.Generator().manual_seed(1)), dim=1)
    texts = images[torch.from_numpy(split.image_of_text)]
    got = coco_metrics(images, texts, split)
    assert got["i2t_cxc_r1"] > 99 and got["t2i_cxc_r1"] > 99  # CxC drops 28 of COCO's own pairs
    assert retrieval_metrics(images, texts, split.image_of_text)["t2i_r1"] == 100
    shuffled = SimpleNamespace(images=split.images[::-1], captions=split.captions,
                               image_of_text=split.image_of_text)
    assert coco_metrics(images, texts, shuffled) is None


def test_the_share_of_true_matches_leaves_out_annotated_pairs():
    """Three captions of four photos, true of none, one and two others: (0 + 1 + 2) / 3 / 3."""
    matches = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 1]], dtype=bool)
    assert true_matches.true_match_share(matches) == pytest.approx(100 / 3)
    assert true_matches.true_match_share(torch.from_numpy(matches)) == pytest.approx(100 / 3)
