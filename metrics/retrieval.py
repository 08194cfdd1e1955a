"""Ranks and recalls, as pure functions of embeddings and of each caption's photo.

"i2t" ranks all captions for a photo, "t2i" all photos for a caption.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from negative_sampling import promote_to_float32

BLOCK = 2**20  # similarities held at a time (4 MiB in float32, which stay in the cache)
WIDTH = 1024  # captions among them
BLOCK_ON_GPU, WIDTH_ON_GPU = 2**24, 2**13  # where each operation has to be launched
ALL_AT_ONCE = 1 / 32  # share of pairs from which a whole product is faster than one by one


def as_tensors(image_embeds, text_embeds, image_of_text) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments of `retrieval_ranks` as tensors, checked.

    Raises:
        ValueError: shapes that do not belong together, a photo number out of range, a photo
            without caption, or an embedding that is not finite.
    """
    images, texts = torch.as_tensor(image_embeds), torch.as_tensor(text_embeds)
    images, texts = promote_to_float32(images, texts.to(images.device))
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
    # The largest entry, since asking each would take a quarter of the memory again. NaN stays one.
    least, most = torch.aminmax(embeds)
    largest = float(torch.maximum(-least, most))
    if not math.isfinite(largest):
        raise ValueError("an embedding holds NaN or infinity")
    exponent = math.frexp(largest)[1]
    return embeds if abs(exponent) < 16 else torch.ldexp(embeds, torch.tensor(-exponent))


def rounding(dtype: torch.dtype) -> float:
    """How far two products of unit rows may differ that would be equal in exact numbers: scores
    this close are a tie until they are told apart in double. A tie counts against the model."""
    return 16 * torch.finfo(dtype).eps


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
    return ranks_and_folds(*as_tensors(image_embeds, text_embeds, image_of_text))[0]


@torch.no_grad()
def ranks_and_folds(
    images: Tensor, texts: Tensor, image_of_text: Tensor, folds: int = 1, only_folds: bool = False
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The pair of `retrieval_ranks`, and that pair where each photo and caption is ranked within
    its own of `folds` equal folds of the photos alone: both from one product.

    Args:
        images: (N_i, D); texts: (N_t, D); image_of_text: (N_t,), as `as_tensors` gives them.
        only_folds: compute the folds' parts of the product alone; the first pair is the second.
    """
    scale = float(images.norm(dim=1).max() * texts.norm(dim=1).max())
    tie = 64 * torch.finfo(torch.float64).eps * scale  # between sums in double, in any order
    # A product of matrices sums its edges in another order than its middle, so that equal rows may
    # differ in the last bits. What comes this close to its bar is compared again, in double.
    close = max(tie, rounding(images.dtype) * scale)
    fold_of = image_of_text // (len(images) // folds)  # (N_t,)
    order = fold_of.argsort(stable=True)  # the captions fold by fold
    copied = bool((fold_of.diff() < 0).any())  # they are not in that order as they are
    owners = image_of_text[order]
    # (N_t,) in that order
    texts_bar = paired_products(images, texts, owners, order if copied else None)
    images_bar = texts_bar.new_full((len(images),), -torch.inf).scatter_reduce(
        0, owners, texts_bar, "amax")  # (N_i,) the best own caption
    i2t = torch.zeros(2, len(images), dtype=torch.int64, device=images.device)  # all, within folds
    t2i = torch.zeros(2, len(texts), dtype=torch.int64, device=images.device)
    size, width = (BLOCK_ON_GPU, WIDTH_ON_GPU) if images.is_cuda else (BLOCK, min(BLOCK, WIDTH))
    room = images.new_empty(size)
    for fold, columns in parts(fold_of.bincount().tolist(), width):
        some = texts[order[columns] if copied else columns]  # (c, D)
        inside = len(images) // folds
        around = [fold * inside, inside, (folds - fold - 1) * inside]  # photos before, in and after
        for part, rows in parts(around, size // width):
            if only_folds and part != 1:
                continue
            into = slice(0, 2 if part == 1 else 1)
            own = owners[columns] - rows.start  # (c,) the row of each caption's photo
            there = ((own >= 0) & (own < rows.stop - rows.start)).nonzero()[:, 0]
            block = Block(images[rows], some, images[rows] @ some.T, own, there, room)
            for ranks, bar, along in ((i2t[into, rows], images_bar[rows, None], 1),
                                      (t2i[into, columns], texts_bar[None, columns], 0)):
                ranks += better(block, bar, along, close, tie)
    back = order.argsort()
    return [(photos.cpu().numpy(), captions[back].cpu().numpy())
            for photos, captions in zip(i2t, t2i)][1 if only_folds else 0:]


class Block(NamedTuple):
    """Scores of b photos and c captions, which serve both directions."""

    images: Tensor  # (b, D)
    texts: Tensor  # (c, D)
    similarity: Tensor  # (b, c)
    own: Tensor  # (c,) the row of each caption's photo, which may be none of the b
    there: Tensor  # (n,) the captions whose photo is one of the b
    room: Tensor  # (b c,) or more, to work in


def better(block: Block, bar: Tensor, along: int, close: float, tie: float) -> Tensor:
    """How many wrong candidates along a dimension of a block reach the `bar`, (b, 1) or (1, c) in
    double, of its rows or columns: (b,) or (c,) int64."""
    similarity, own = block.similarity, block.own
    low, high = (bar - close).to(similarity.dtype), (bar + close).to(similarity.dtype)
    # As floats: bools compare and add up far more slowly.
    flags = block.room[: similarity.numel()].view_as(similarity)
    found = torch.gt(similarity, high, out=flags).sum(along)  # never the own one
    near = torch.ge(similarity, low, out=flags).sum(along) - found  # with the own ones
    rows = own[block.there]  # (n,)
    lines, score = (block.there, rows)[along], similarity[rows, block.there]  # (n,), (n,)
    at_bar = (score >= low.flatten()[lines]) & (score <= high.flatten()[lines])
    near.index_add_(0, lines, at_bar.to(near.dtype), alpha=-1)
    found, lines = found.long(), near.nonzero()[:, 0]
    if len(lines):  # which is seldom: they are told apart in double
        some = similarity.index_select(1 - along, lines)
        low, high = low.index_select(1 - along, lines), high.index_select(1 - along, lines)
        rows, columns = ((some >= low) & (some <= high)).nonzero(as_tuple=True)  # (n,), (n,)
        rows, columns = (lines[rows], columns) if along else (rows, lines[columns])
        wrong = own[columns] != rows
        rows, columns = rows[wrong], columns[wrong]
        lines = (columns, rows)[along]
        products = paired_products(block.images, block.texts, rows, columns)
        found.index_add_(0, lines, (products >= bar.flatten()[lines] - tie).long())
    return found


def parts(sizes: list[int], step: int) -> Iterator[tuple[int, slice]]:
    """(number, slice) of at most `step` items, one after the other, each of one of the groups of
    these sizes."""
    start = 0
    for number, size in enumerate(sizes):
        for first in range(start, start + size, step):
            yield number, slice(first, min(first + step, start + size))
        start += size


def paired_products(
    images: Tensor, texts: Tensor, rows: Tensor, columns: Tensor | None = None
) -> Tensor:
    """(P,) products images[rows] . texts[columns] in float64; of all `texts` (P, D) without any."""
    if columns is not None and len(rows) > ALL_AT_ONCE * len(images) * len(texts):
        return (images.double() @ texts.double().T)[rows, columns]  # of a collapsed model
    some = texts.split(64) if columns is None else (texts[part] for part in columns.split(64))
    return torch.cat([(images[part].double() * others.double()).sum(dim=1)
                      for part, others in zip(rows.split(64), some)])


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
    case = in_folds(image_embeds, text_embeds, image_of_text, folds)
    return mean_of_folds(ranks_and_folds(*case, folds, only_folds=True)[0], case[2], folds)


def metrics_and_five_fold(
    image_embeds, text_embeds, image_of_text, folds: int = 5
) -> tuple[dict[str, float], dict[str, float]]:
    """`retrieval_metrics` and `five_fold`, from one product."""
    case = in_folds(image_embeds, text_embeds, image_of_text, folds)
    whole, within = ranks_and_folds(*case, folds)
    return metrics_of_ranks(*whole), mean_of_folds(within, case[2], folds)


def in_folds(
    image_embeds, text_embeds, image_of_text, folds: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`as_tensors`, of photos that make equal folds.

    Raises:
        ValueError: they do not, or see `as_tensors`.
    """
    case = as_tensors(image_embeds, text_embeds, image_of_text)
    if len(case[0]) % folds:
        raise ValueError(f"{len(case[0])} photos do not make {folds} equal folds")
    return case


def mean_of_folds(
    ranks: tuple[np.ndarray, np.ndarray], image_of_text: Tensor, folds: int
) -> dict[str, float]:
    """The mean of each fold's `metrics_of_ranks`."""
    i2t, t2i = ranks
    fold_of = (image_of_text // (len(i2t) // folds)).cpu().numpy()
    found = [metrics_of_ranks(photos, t2i[fold_of == fold])
             for fold, photos in enumerate(np.split(i2t, folds))]
    return {key: float(np.mean([one[key] for one in found])) for key in found[0]}
