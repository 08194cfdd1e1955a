"""Ranks and recalls, as pure functions of embeddings and of each caption's photo.

"i2t" ranks all captions for a photo, "t2i" all photos for a caption.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fne_loss import at_least_float32

BLOCK = 2**22  # similarities held at a time (16 MiB in float32)
ALL_AT_ONCE = 1 / 32  # share of pairs from which a whole product is faster than one by one


def as_tensors(image_embeds, text_embeds, image_of_text) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments of `retrieval_ranks` as tensors, checked.

    Raises:
        ValueError: shapes that do not belong together, a photo number out of range, a photo
            without caption, or an embedding that is not finite.
    """
    images, texts = torch.as_tensor(image_embeds), torch.as_tensor(text_embeds)
    images, texts = at_least_float32(images, texts.to(images.device))
    image_of_text = torch.as_tensor(image_of_text, device=images.device)
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1]:
        raise ValueError(f"embeddings must be (N_i, D) and (N_t, D), got {tuple(images.shape)} "
                         f"and {tuple(texts.shape)}")
    if image_of_text.shape != (len(texts),):
        raise ValueError(f"image_of_text must give a photo to each of {len(texts)} captions, got "
                         f"shape {tuple(image_of_text.shape)}")
    if len(texts) == 0 or not torch.equal(image_of_text.unique().cpu(), torch.arange(len(images))):
        raise ValueError(f"image_of_text must name each of the photos 0 to {len(images) - 1}, and "
                         "no other")
    return in_range(images), in_range(texts), image_of_text


def in_range(embeds: Tensor) -> Tensor:
    """The same rows (N, D), times a power of two where their products would leave the numbers that
    floats have: that is exact, and changes no rank.

    Raises:
        ValueError: an embedding is not finite.
    """
    # The largest entry, since asking each would take a quarter of the memory again.
    largest = float(torch.linalg.vector_norm(embeds, torch.inf))
    if not math.isfinite(largest):
        raise ValueError("an embedding holds NaN or infinity")
    exponent = math.frexp(largest)[1]
    return embeds if abs(exponent) < 16 else torch.ldexp(embeds, torch.tensor(-exponent))


def rounding(dtype: torch.dtype) -> float:
    """How far two products of unit rows may differ that would be equal in exact numbers: scores
    this close are a tie until they are told apart in double. A tie counts against the model."""
    return 16 * torch.finfo(dtype).eps


@torch.no_grad()
def retrieval_ranks(image_embeds, text_embeds, image_of_text) -> tuple[np.ndarray, np.ndarray]:
    """How many wrong candidates come before the right one.

    Args:
        image_embeds: (N_i, D); text_embeds: (N_t, D); unit rows for cosines.
        image_of_text: (N_t,) int, each caption's photo; every photo has at least one caption.

    Returns:
        i2t (N_i,), captions of other photos that score at least as high as the photo's best own;
        t2i (N_t,), other photos that score at least as high as the caption's own. 0 = best, int64.
        A tie counts against the model.

    Raises:
        ValueError: see `as_tensors`.
    """
    images, texts, image_of_text = as_tensors(image_embeds, text_embeds, image_of_text)
    scale = float(images.norm(dim=1).max() * texts.norm(dim=1).max())
    tie = 64 * torch.finfo(torch.float64).eps * scale  # between sums in double, in any order
    # A product of matrices sums its edges in another order than its middle, so that equal rows may
    # differ in the last bits. What comes this close to its bar is compared again, in double.
    close = max(tie, rounding(images.dtype) * scale)
    texts_bar = paired_products(images, texts, image_of_text,
                                torch.arange(len(texts), device=texts.device))  # (N_t,)
    images_bar = texts_bar.new_full((len(images),), -torch.inf).scatter_reduce(
        0, image_of_text, texts_bar, "amax")  # (N_i,) the best own caption
    i2t = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    t2i = torch.zeros(len(texts), dtype=torch.int64, device=images.device)
    numbers = torch.arange(len(images), device=images.device)
    for rows, columns in blocks(len(images), len(texts)):
        part = images[rows], texts[columns]
        similarity = part[0] @ part[1].T  # (b, c), for both directions
        wrong = numbers[rows, None] != image_of_text[columns]  # (b, c)
        for ranks, bar, along in ((i2t[rows], images_bar[rows, None], 1),
                                  (t2i[columns], texts_bar[None, columns], 0)):
            above = similarity > (bar + close).to(similarity.dtype)  # never the own one
            ranks += above.float().sum(along).long()  # of floats: bools add up far more slowly
            near = wrong & (above ^ (similarity >= (bar - close).to(similarity.dtype)))
            pairs = near.nonzero(as_tuple=True)  # (P,), (P,)
            reached = paired_products(*part, *pairs) >= bar.expand_as(near)[pairs] - tie
            ranks.index_add_(0, pairs[1 - along], reached.long())
    return i2t.cpu().numpy(), t2i.cpu().numpy()


def blocks(images: int, texts: int) -> Iterator[tuple[slice, slice]]:
    """Parts of the (images, texts) similarity matrix of at most `BLOCK` entries, all of them."""
    width = min(texts, BLOCK, 8192)
    height = BLOCK // width
    for start in range(0, images, height):
        for column in range(0, texts, width):
            yield slice(start, start + height), slice(column, column + width)


def paired_products(images: Tensor, texts: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(P,) products images[rows] . texts[columns] in float64."""
    if len(rows) > ALL_AT_ONCE * len(images) * len(texts):  # a collapsed model's
        return (images.double() @ texts.double().T)[rows, columns]
    return torch.cat([(images[r].double() * texts[c].double()).sum(dim=1)
                      for r, c in zip(rows.split(4096), columns.split(4096))])


def metrics_of_ranks(i2t: np.ndarray, t2i: np.ndarray) -> dict[str, float]:
    """Recalls in percent, median and mean rank from 1, and rsum, the sum of the six recalls."""
    metrics = {}
    for name, ranks in ("i2t", i2t), ("t2i", t2i):
        for k in 1, 5, 10:
            metrics[f"{name}_r{k}"] = 100.0 * float(np.mean(ranks < k))
        metrics[f"{name}_medr"] = float(np.floor(np.median(ranks)) + 1)
        metrics[f"{name}_meanr"] = float(ranks.mean() + 1)
    metrics["rsum"] = sum(metrics[f"{name}_r{k}"] for name in ("i2t", "t2i") for k in (1, 5, 10))
    return metrics


def retrieval_metrics(image_embeds, text_embeds, image_of_text) -> dict[str, float]:
    """`i2t_r1 i2t_r5 i2t_r10 i2t_medr i2t_meanr`, the same for `t2i`, and `rsum`.

    Arguments and errors as for `retrieval_ranks`. Recalls in percent, ranks from 1.
    """
    return metrics_of_ranks(*retrieval_ranks(image_embeds, text_embeds, image_of_text))


def five_fold(image_embeds, text_embeds, image_of_text, folds: int = 5) -> dict[str, float]:
    """The mean of `retrieval_metrics` over consecutive folds of the photos (COCO 1K: 5 x 1,000)."""
    images, texts, image_of_text = as_tensors(image_embeds, text_embeds, image_of_text)
    if len(images) % folds:
        raise ValueError(f"{len(images)} photos do not make {folds} equal folds")
    size = len(images) // folds
    parts = []
    for first in range(0, len(images), size):
        inside = (image_of_text >= first) & (image_of_text < first + size)
        parts.append(retrieval_metrics(
            images[first : first + size], texts[inside], image_of_text[inside] - first))
    return {key: float(np.mean([part[key] for part in parts])) for key in parts[0]}
