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

OWNERS = [0, 0, 0, 1, 1, 2, 3, 3, 3, 3]  # photo 2 has one caption


def scored(owners):
    torch.manual_seed(0)
    images = F.normalize(torch.randn(max(owners) + 1, 6), dim=1)
    texts = F.normalize(images[owners] + 0.5 * torch.randn(len(owners), 6), dim=1)
    split = Split(Path("test.json"), [f"{n}.png" for n in range(len(images))],
                  [f"text {n}" for n in owners], np.array(owners))
    return Embeddings(images, texts, split)


def slow(images, texts, i, j):
    """(s, r) of photo i and caption j."""
    known = [k for k, owner in enumerate(OWNERS) if owner == i and k != j]
    return images[i] @ texts[j], np.mean([texts[k] @ texts[j] for k in known])


@pytest.mark.parametrize("block", [2**20, 1, 25])
def test_gaussians_are_those_of_all_pairs(monkeypatch, block):
    monkeypatch.setattr(evidence, "BLOCK", block)
    embeddings = scored(OWNERS)
    images, texts = embeddings.image_embeds.numpy(), embeddings.text_embeds.numpy()
    fitted = fit_evidence(embeddings)
    same = [slow(images, texts, owner, j) for j, owner in enumerate(OWNERS) if owner != 2]
    different = [slow(images, texts, i, j) for i in range(4) for j, owner in enumerate(OWNERS)
                 if owner != i]
    for gaussian, pairs in ((fitted.same, same), (fitted.different, different)):
        assert gaussian.count == len(pairs)
        np.testing.assert_allclose(gaussian.mean, np.mean(pairs, axis=0), atol=1e-6)
        np.testing.assert_allclose(gaussian.m2 / (len(pairs) - 1), np.cov(np.array(pairs).T),
                                   atol=1e-6)


def test_scores_are_bayes_rule():
    embeddings = scored(OWNERS)
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


def test_without_other_captions_there_is_no_evidence():
    assert fit_evidence(scored([0, 1, 2, 3])) is None
