"""The posterior by evidence (`--posterior evidence` of the training) of a split that is scored.

Its Gaussians are fitted to the split itself, to what is annotated and without any label: N+ to each
photo with each of its captions, N- to all photos with the captions of others.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from common.presets import PRIOR_OF_EVIDENCE
from fne_loss import RunningBivariateGaussian, false_negative_posterior
from metrics.embeddings import Embeddings
from metrics.retrieval import BLOCK
from negative_sampling import pair_moments


class Evidence(NamedTuple):
    """The similarity of captions in a split, and the Gaussians of (s, r)."""

    mean_texts: Tensor  # (N_i, D) mean of the embeddings of each photo's captions
    same: RunningBivariateGaussian
    different: RunningBivariateGaussian


@torch.no_grad()
def fit_evidence(embeddings: Embeddings) -> Evidence | None:
    """Of embeddings whose photos have several captions; else there is nothing to fit N+ to.

    s is the similarity of photo and caption, r the mean similarity of the caption to all captions
    of the photo, itself left out.
    """
    images, texts = embeddings.image_embeds, embeddings.text_embeds
    owners = torch.from_numpy(embeddings.split.image_of_text)  # (N_t,)
    counts = torch.bincount(owners, minlength=len(images))[:, None]  # (N_i, 1)
    sums = torch.zeros_like(images).index_add_(0, owners, texts)  # (N_i, D)
    mean = sums / counts.clamp(min=1)
    several = (counts[:, 0] > 1)[owners]  # (N_t,)
    if several.sum() < 3:
        return None
    own_s = (images[owners] * texts).sum(dim=1)  # (N_t,)
    others = ((sums[owners] - texts) * texts).sum(dim=1)  # (N_t,) to all but itself
    own_r = others / (counts[:, 0] - 1).clamp(min=1)[owners]
    same, different = RunningBivariateGaussian(), RunningBivariateGaussian()
    same.add(doubles(own_s[several], own_r[several]))
    step = max(1, BLOCK // len(texts))
    for start in range(0, len(images), step):
        rows = slice(start, start + step)
        other = owners != torch.arange(len(images))[rows, None]  # (b, N_t)
        different.add(doubles((images[rows] @ texts.T)[other], (mean[rows] @ texts.T)[other]))
    return Evidence(mean, same, different)


def doubles(s: Tensor, r: Tensor) -> Tensor:
    """(6,) `moments` of (n,) and (n,), summed in doubles."""
    return pair_moments(s.double(), r.double(), len(s))


def score_by_evidence(
    embeddings: Embeddings, evidence: Evidence, images: Tensor, texts: Tensor
) -> tuple[Tensor, Tensor]:
    """r and P(false negative), (J,) and (J,), of photos (J,) and captions (J,) of others."""
    captions = embeddings.text_embeds[texts]  # (J, D)
    s = (embeddings.image_embeds[images] * captions).sum(dim=1).double()
    r = (evidence.mean_texts[images] * captions).sum(dim=1).double()
    return r, posterior_by_evidence(evidence, s, r)


def posterior_by_evidence(evidence: Evidence, s: Tensor, r: Tensor) -> Tensor:
    """P(false negative) of similarities (J,) of photo and caption, and of captions (J,)."""
    return false_negative_posterior(s, evidence.same, evidence.different, PRIOR_OF_EVIDENCE, r)
