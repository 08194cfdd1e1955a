"""The posterior by evidence of a scored split, against a slow loop over its pairs."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.presets import PRIOR_OF_EVIDENCE
from data import Split
from metrics import evidence
from metrics.embeddings import Embeddings
from metrics.evidence import fit_evidence, score_by_evidence

IMAGE_OF_TEXT = [0, 0, 0, 1, 1, 2, 3, 3, 3, 3]  # photo 2 has one caption


def small_embeddings(image_of_text):
    """Return random embeddings of a split in which each caption has the given photo."""
    torch.manual_seed(0)
    images = F.normalize(torch.randn(max(image_of_text) + 1, 6), dim=1)
    noise = 0.5 * torch.randn(len(image_of_text), 6)
    texts = F.normalize(images[image_of_text] + noise, dim=1)
    split = Split(Path("test.json"), [f"{n}.png" for n in range(len(images))],
                  [f"text {n}" for n in image_of_text], np.array(image_of_text))
    return Embeddings(images, texts, split)


def slow(images, texts, i, j):
    """Return the evidence (s, r) of photo i and caption j."""
    own_texts = [k for k, image in enumerate(IMAGE_OF_TEXT) if image == i and k != j]
    return images[i] @ texts[j], np.mean([texts[k] @ texts[j] for k in own_texts])


@pytest.mark.parametrize("block", [2**20, 1, 25])
def test_gaussians_are_those_of_all_pairs(monkeypatch, block):
    monkeypatch.setattr(evidence, "BLOCK", block)
    embeddings = small_embeddings(IMAGE_OF_TEXT)
    images, texts = embeddings.image_embeds.numpy(), embeddings.text_embeds.numpy()
    fitted = fit_evidence(embeddings)
    same = [slow(images, texts, image, j) for j, image in enumerate(IMAGE_OF_TEXT) if image != 2]
    different = [slow(images, texts, i, j) for i in range(4)
                 for j, image in enumerate(IMAGE_OF_TEXT) if image != i]
    for gaussian, pairs in ((fitted.same, same), (fitted.different, different)):
        assert gaussian.count == len(pairs)
        np.testing.assert_allclose(gaussian.mean, np.mean(pairs, axis=0), atol=1e-6)
        np.testing.assert_allclose(gaussian.m2 / (len(pairs) - 1), np.cov(np.array(pairs).T),
                                   atol=1e-6)


def test_scores_are_bayes_rule():
    embeddings = small_embeddings(IMAGE_OF_TEXT)
    images, texts = embeddings.image_embeds.numpy(), embeddings.text_embeds.numpy()
    fitted, pairs = fit_evidence(embeddings), [(0, 5), (1, 0), (2, 9), (3, 3)]
    r, posterior = score_by_evidence(embeddings, fitted, *torch.tensor(pairs).T)
    for (i, j), got_r, got in zip(pairs, r.tolist(), posterior.tolist()):
        x = np.array(slow(images, texts, i, j))
        assert got_r == pytest.approx(x[1], abs=1e-6)
        density = []
        for gaussian in fitted.same, fitted.different:
            covariance = (gaussian.m2 / (gaussian.count - 1)).numpy()
            gap = x - gaussian.mean.numpy()
            density.append(np.exp(-0.5 * gap @ np.linalg.inv(covariance) @ gap)
                           / np.sqrt(np.linalg.det(covariance)))
        joint = PRIOR_OF_EVIDENCE * density[0], (1 - PRIOR_OF_EVIDENCE) * density[1]
        wanted = joint[0] / sum(joint)
        assert got == pytest.approx(wanted, rel=1e-3)


def test_photos_with_one_caption_each_have_no_evidence():
    assert fit_evidence(small_embeddings([0, 1, 2, 3])) is None
