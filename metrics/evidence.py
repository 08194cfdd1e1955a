"""The posterior by evidence (`--posterior evidence` of the training) for a split that is scored.

Its Gaussians are fitted to the split itself, to what is annotated and without any other label: N+
to each photo with each of its own captions, N- to all photos with the captions of others.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from common.presets import PRIOR_OF_EVIDENCE
from fne_loss import RunningBivariateGaussian, false_negative_posterior
from metrics.embeddings import Embeddings
from metrics.retrieval import BLOCK
from negative_sampling import pair_moments


class FittedEvidence(NamedTuple):
    """The Gaussians of a split, and what similarities of captions are computed from.

    Evidence about a pair is (s, r): s is the similarity of photo and caption, r the mean similarity
    of the caption to the photo's own captions.

    Attributes:
        mean_text_embeds: (N_i, D) the mean embedding of each photo's captions.
        same: N+, the Gaussian of (s, r) of photos with their own captions.
        different: N-, the Gaussian of (s, r) of photos with captions of others.
    """

    mean_text_embeds: Tensor
    same: RunningBivariateGaussian
    different: RunningBivariateGaussian


@torch.no_grad()
def fit_evidence(embeddings: Embeddings) -> FittedEvidence | None:
    """Fit the Gaussians of the posterior by evidence to a split.

    For a photo's own caption, r leaves out the caption itself. So N+ is fitted to photos with
    several captions only.

    Args:
        embeddings: Embeddings of a split.

    Returns:
        The fitted Gaussians; None if fewer than three captions have a photo with several.
    """
    images, texts = embeddings.image_embeds, embeddings.text_embeds
    image_of_text = torch.from_numpy(embeddings.split.image_of_text)  # (N_t,)
    captions_per_image = torch.bincount(image_of_text, minlength=len(images))[:, None]  # (N_i, 1)
    text_sums = torch.zeros_like(images).index_add_(0, image_of_text, texts)  # (N_i, D)
    text_means = text_sums / captions_per_image.clamp(min=1)
    has_siblings = (captions_per_image[:, 0] > 1)[image_of_text]  # (N_t,)
    if has_siblings.sum() < 3:
        return None
    positive_s = (images[image_of_text] * texts).sum(dim=1)  # (N_t,)
    sibling_sums = ((text_sums[image_of_text] - texts) * texts).sum(dim=1)  # (N_t,)
    siblings = (captions_per_image[:, 0] - 1).clamp(min=1)[image_of_text]  # (N_t,)
    positive_r = sibling_sums / siblings
    same, different = RunningBivariateGaussian(), RunningBivariateGaussian()
    same.add(moments_in_float64(positive_s[has_siblings], positive_r[has_siblings]))
    step = max(1, BLOCK // len(texts))
    for start in range(0, len(images), step):
        rows = slice(start, start + step)
        is_other = image_of_text != torch.arange(len(images))[rows, None]  # (b, N_t)
        s = (images[rows] @ texts.T)[is_other]
        r = (text_means[rows] @ texts.T)[is_other]
        different.add(moments_in_float64(s, r))
    return FittedEvidence(text_means, same, different)


def moments_in_float64(s: Tensor, r: Tensor) -> Tensor:
    """Return `negative_sampling.pair_moments` (6,) of evidence (n,) and (n,), summed in float64."""
    return pair_moments(s.double(), r.double(), len(s))


def score_by_evidence(
    embeddings: Embeddings, evidence: FittedEvidence, images: Tensor, texts: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the similarity of captions and the posterior by evidence for pairs of a split.

    Args:
        embeddings: The split's embeddings.
        evidence: What `fit_evidence` returned for them.
        images: (J,) indices of photos.
        texts: (J,) indices of captions, each of another photo.

    Returns:
        r (J,), the mean similarity of the caption to the photo's own captions, and the posterior
        (J,), in float64.
    """
    text_embeds = embeddings.text_embeds[texts]  # (J, D)
    s = (embeddings.image_embeds[images] * text_embeds).sum(dim=1).double()
    r = (evidence.mean_text_embeds[images] * text_embeds).sum(dim=1).double()
    return r, posterior_by_evidence(evidence, s, r)


def posterior_by_evidence(evidence: FittedEvidence, s: Tensor, r: Tensor) -> Tensor:
    """Return P(false negative | s, r) for pairs of a photo and a caption of another photo.

    Args:
        evidence: What `fit_evidence` returned.
        s: (J,) similarities of photo and caption.
        r: (J,) mean similarities of the caption to the photo's own captions.

    Returns:
        (J,) probabilities.
    """
    return false_negative_posterior(s, evidence.same, evidence.different, PRIOR_OF_EVIDENCE, r)
