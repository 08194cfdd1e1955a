"""Ranks and recalls, as pure functions of embeddings and of each caption's photo.

"i2t" ranks all captions for a photo, "t2i" all photos for a caption. Similarities are computed in
blocks, so that memory grows with N_i + N_t and not with their product.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from negative_sampling import promote_to_float32

BLOCK = 2**20  # similarities held at a time (4 MiB in float32, which stay in the cache)
BLOCK_TEXTS = 1024  # captions of such a block
# On a GPU blocks are larger, because each operation has to be launched.
GPU_BLOCK, GPU_BLOCK_TEXTS = 2**24, 2**13
NORM_ROWS = 2**14  # embeddings whose lengths are computed at a time
# Share of a block's pairs from which the whole product in float64 is faster than pair by pair.
WHOLE_PRODUCT_SHARE = 1 / 32


def as_tensors(image_embeds, text_embeds, image_of_text) -> tuple[Tensor, Tensor, Tensor]:
    """Check the arguments of `retrieval_ranks`, and return them as tensors on one device.

    Returns:
        Images (N_i, D) and texts (N_t, D), scaled into the range of floats: float32 or float64, or
        bfloat16 where both are given so, which `ranks_and_folds` converts block by block; and each
        caption's photo (N_t,).

    Raises:
        ValueError: If shapes do not match, a photo's number is out of range, a photo has no
            caption, or an embedding is not finite.
    """
    images, texts = torch.as_tensor(image_embeds), torch.as_tensor(text_embeds)
    texts = texts.to(images.device)
    if not images.dtype == texts.dtype == torch.bfloat16:
        images, texts = promote_to_float32(images, texts)
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
    return scaled_into_range(images), scaled_into_range(texts), image_of_text


def scaled_into_range(embeds: Tensor) -> Tensor:
    """Return embeddings whose products neither overflow nor vanish.

    Very large or small embeddings are multiplied by a power of two. That is exact, and changes no
    rank.

    Args:
        embeds: (N, D).

    Raises:
        ValueError: If an embedding is not finite.
    """
    # Only the extremes are looked at: a mask of all entries would take a quarter of the memory
    # again. NaN stays NaN.
    least, most = torch.aminmax(embeds)
    largest = float(torch.maximum(-least, most))
    if not math.isfinite(largest):
        raise ValueError("an embedding holds NaN or infinity")
    exponent = math.frexp(largest)[1]
    if abs(exponent) < 16:
        return embeds
    return torch.ldexp(from_bfloat16(embeds), torch.tensor(-exponent))


def from_bfloat16(embeds: Tensor) -> Tensor:
    """Return embeddings (n, D) in float32 where they are bfloat16, else as they are."""
    return embeds.float() if embeds.dtype == torch.bfloat16 else embeds


def rounding_tolerance(dtype: torch.dtype) -> float:
    """Return how far two products of unit rows may differ that are equal in exact numbers.

    Similarities this close count as a tie until they are compared in float64. A tie counts against
    the model.
    """
    return 16 * torch.finfo(dtype).eps


def retrieval_ranks(image_embeds, text_embeds, image_of_text) -> tuple[np.ndarray, np.ndarray]:
    """Return how many wrong candidates are ranked before the right one, for each query.

    A wrong candidate with the same similarity as the right one is ranked before it, so that a
    model that embeds everything at one point gets the worst ranks.

    Args:
        image_embeds: (N_i, D) array or tensor; unit rows for cosine similarity.
        text_embeds: (N_t, D) array or tensor.
        image_of_text: (N_t,) integers, the index of each caption's photo. Every photo has at least
            one caption.

    Returns:
        i2t (N_i,), the number of captions of other photos that are at least as similar to the photo
        as the best of its own captions; and t2i (N_t,), the number of other photos that are at
        least as similar to the caption as its own photo. int64, 0 is best.

    Raises:
        ValueError: If shapes do not match, a photo's number is out of range, a photo has no
            caption, or an embedding is not finite.
    """
    images, texts, image_of_text = as_tensors(image_embeds, text_embeds, image_of_text)
    return ranks_and_folds(images, texts, image_of_text)[0]


class Tolerances(NamedTuple):
    """How close two similarities have to be to count as equal.

    Attributes:
        near: Similarities this close, in the precision of the embeddings, are compared again in
            float64.
        tie: Similarities this close in float64 are a tie.
    """

    near: float
    tie: float


def similarity_tolerances(images: Tensor, texts: Tensor) -> Tolerances:
    """Return the tolerances for images (N_i, D) and texts (N_t, D) of any length.

    A product of matrices sums its edges in another order than its middle, so that equal rows may
    give products that differ in the last bits.
    """
    longest_image, longest_text = (
        max(from_bfloat16(rows).norm(dim=1).max() for rows in embeds.split(NORM_ROWS))
        for embeds in (images, texts))
    scale = float(longest_image * longest_text)
    tie = 64 * torch.finfo(torch.float64).eps * scale
    rounding = rounding_tolerance(torch.promote_types(images.dtype, torch.float32))
    return Tolerances(max(tie, rounding * scale), tie)


@torch.no_grad()
def ranks_and_folds(
    images: Tensor, texts: Tensor, image_of_text: Tensor, folds: int = 1, only_folds: bool = False
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the ranks among all candidates, and those among the candidates of the query's fold.

    Both come from the same blocks of similarities.

    Args:
        images: (N_i, D), from `as_tensors`.
        texts: (N_t, D), from `as_tensors`.
        image_of_text: (N_t,), from `as_tensors`.
        folds: The number of equal folds of consecutive photos; a caption is in its photo's fold.
        only_folds: Whether to compute the ranks within folds alone, in a part of the time.

    Returns:
        Pairs of i2t (N_i,) and t2i (N_t,) as `retrieval_ranks` returns them: among all candidates,
        then within folds; the latter alone with `only_folds`.
    """
    tolerances = similarity_tolerances(images, texts)
    photos_per_fold = len(images) // folds
    fold_of_text = image_of_text // photos_per_fold  # (N_t,)
    # Captions are taken fold by fold: the ones at position j of that order are texts[order[j]].
    order = fold_of_text.argsort(stable=True)  # (N_t,)
    is_ordered = not bool((fold_of_text.diff() < 0).any())
    image_of_text = image_of_text[order]
    text_positive = pair_similarity(images, texts, image_of_text,
                                    None if is_ordered else order)  # (N_t,) float64
    image_positive = text_positive.new_full((len(images),), -torch.inf).scatter_reduce(
        0, image_of_text, text_positive, "amax")  # (N_i,) of the best caption of each photo
    # Row 0 counts among all candidates, row 1 within the fold.
    i2t = torch.zeros(2, len(images), dtype=torch.int64, device=images.device)
    t2i = torch.zeros(2, len(texts), dtype=torch.int64, device=images.device)
    if images.is_cuda:
        block_size, block_texts = GPU_BLOCK, GPU_BLOCK_TEXTS
    else:
        block_size, block_texts = BLOCK, min(BLOCK, BLOCK_TEXTS)
    workspace = from_bfloat16(images[:1]).new_empty(block_size)
    texts_per_fold = fold_of_text.bincount().tolist()
    for fold, text_slice in split_groups(texts_per_fold, block_texts):
        some_texts = from_bfloat16(
            texts[text_slice if is_ordered else order[text_slice]])  # (c, D)
        photos_before = fold * photos_per_fold
        photos_after = (folds - fold - 1) * photos_per_fold
        photo_groups = [photos_before, photos_per_fold, photos_after]
        for group, image_slice in split_groups(photo_groups, block_size // block_texts):
            is_same_fold = group == 1
            if only_folds and not is_same_fold:
                continue
            row_of_text = image_of_text[text_slice] - image_slice.start  # (c,)
            is_inside = (row_of_text >= 0) & (row_of_text < image_slice.stop - image_slice.start)
            some_images = from_bfloat16(images[image_slice])  # (b, D)
            block = SimilarityBlock(some_images, some_texts, some_images @ some_texts.T,
                                    row_of_text, is_inside.nonzero()[:, 0], workspace)
            i2t_counts = count_better(block, image_positive[image_slice, None], 1, tolerances)
            t2i_counts = count_better(block, text_positive[None, text_slice], 0, tolerances)
            i2t[0, image_slice] += i2t_counts
            t2i[0, text_slice] += t2i_counts
            if is_same_fold:
                i2t[1, image_slice] += i2t_counts
                t2i[1, text_slice] += t2i_counts
    position = order.argsort()  # (N_t,) where each caption stands in the order
    ranks = [(i2t_row.cpu().numpy(), t2i_row[position].cpu().numpy())
             for i2t_row, t2i_row in zip(i2t, t2i)]
    return ranks[1:] if only_folds else ranks


class SimilarityBlock(NamedTuple):
    """The similarities of b photos and c captions, which serve both directions.

    Attributes:
        images: (b, D).
        texts: (c, D).
        similarity: (b, c).
        row_of_text: (c,) the row of each caption's photo, outside of 0 to b - 1 if the photo is in
            another block.
        inside: (n,) the captions whose photo is in this block.
        workspace: At least b c numbers of the same type, which may be overwritten.
    """

    images: Tensor
    texts: Tensor
    similarity: Tensor
    row_of_text: Tensor
    inside: Tensor
    workspace: Tensor


def count_better(
    block: SimilarityBlock, positive: Tensor, candidate_dim: int, tolerances: Tolerances
) -> Tensor:
    """Count the wrong candidates of a block that are at least as similar as the query's positive.

    Args:
        block: The similarities; its workspace is overwritten.
        positive: The similarity of each query and its positive in float64: (b, 1) if the queries
            are photos, (1, c) if they are captions.
        candidate_dim: The dimension of `block.similarity` along which the candidates are: 1 if the
            queries are photos, 0 if they are captions.
        tolerances: What counts as equal.

    Returns:
        (b,) or (c,) int64.
    """
    similarity = block.similarity
    query_dim = 1 - candidate_dim
    low = (positive - tolerances.near).to(similarity.dtype)
    high = (positive + tolerances.near).to(similarity.dtype)
    # The flags are floats, because bools compare and add up far more slowly.
    flags = block.workspace[: similarity.numel()].view_as(similarity)
    # No right candidate is above its query's positive by more than rounding.
    count = torch.gt(similarity, high, out=flags).sum(candidate_dim)
    near = torch.ge(similarity, low, out=flags).sum(candidate_dim) - count
    # What is near holds right candidates too. They are taken off again.
    inside_rows = block.row_of_text[block.inside]  # (n,)
    inside_queries = inside_rows if candidate_dim == 1 else block.inside  # (n,)
    inside_similarity = similarity[inside_rows, block.inside]  # (n,)
    is_near = ((inside_similarity >= low.flatten()[inside_queries])
               & (inside_similarity <= high.flatten()[inside_queries]))
    near.index_add_(0, inside_queries, is_near.to(near.dtype), alpha=-1)
    count = count.long()
    queries = near.nonzero()[:, 0]
    if len(queries) == 0:
        return count
    # A few queries have wrong candidates near their positive. These are compared in float64.
    some_similarity = similarity.index_select(query_dim, queries)
    is_near = ((some_similarity >= low.index_select(query_dim, queries))
               & (some_similarity <= high.index_select(query_dim, queries)))
    rows, columns = is_near.nonzero(as_tuple=True)
    if candidate_dim == 1:
        rows = queries[rows]
    else:
        columns = queries[columns]
    is_wrong = block.row_of_text[columns] != rows
    rows, columns = rows[is_wrong], columns[is_wrong]
    near_queries = rows if candidate_dim == 1 else columns
    products = pair_similarity(block.images, block.texts, rows, columns)
    is_better = products >= positive.flatten()[near_queries] - tolerances.tie
    return count.index_add_(0, near_queries, is_better.long())


def split_groups(sizes: list[int], step: int) -> Iterator[tuple[int, slice]]:
    """Split consecutive groups of items into slices, each within one group.

    Args:
        sizes: The number of items of each group.
        step: The largest number of items of a slice.

    Yields:
        The number of the group, and the slice of all items.
    """
    start = 0
    for group, size in enumerate(sizes):
        for first in range(start, start + size, step):
            yield group, slice(first, min(first + step, start + size))
        start += size


def pair_similarity(
    images: Tensor, texts: Tensor, image_rows: Tensor, text_rows: Tensor | None = None
) -> Tensor:
    """Return the similarities of P pairs of a photo and a caption, computed in float64.

    Args:
        images: (N_i, D).
        texts: (N_t, D).
        image_rows: (P,) indices of photos.
        text_rows: (P,) indices of captions; None means all N_t = P captions in order.

    Returns:
        (P,) float64.
    """
    if text_rows is not None and len(image_rows) > (
            WHOLE_PRODUCT_SHARE * len(images) * len(texts)):  # as of a collapsed model
        return (images.double() @ texts.double().T)[image_rows, text_rows]
    if text_rows is None:
        text_parts = iter(texts.split(64))
    else:
        text_parts = (texts[part] for part in text_rows.split(64))
    products = [(images[part].double() * text_part.double()).sum(dim=1)
                for part, text_part in zip(image_rows.split(64), text_parts)]
    return torch.cat(products)


def metrics_of_ranks(i2t: np.ndarray, t2i: np.ndarray) -> dict[str, float]:
    """Return recalls, median and mean rank of both directions, and rsum.

    Args:
        i2t: (N_i,) ranks from 0.
        t2i: (N_t,) ranks from 0.

    Returns:
        `i2t_r1 i2t_r5 i2t_r10` in percent, `i2t_medr i2t_meanr` with ranks from 1, the same keys
        for `t2i`, and `rsum`, the sum of the six recalls. The median is rounded down, as published.
    """
    metrics = {}
    for direction, ranks in ("i2t", i2t), ("t2i", t2i):
        for k in 1, 5, 10:
            metrics[f"{direction}_r{k}"] = 100.0 * float(np.mean(ranks < k))
        metrics[f"{direction}_medr"] = float(np.floor(np.median(ranks)) + 1)
        metrics[f"{direction}_meanr"] = float(ranks.mean() + 1)
    metrics["rsum"] = sum(metrics[f"{direction}_r{k}"]
                          for direction in ("i2t", "t2i") for k in (1, 5, 10))
    return metrics


def retrieval_metrics(image_embeds, text_embeds, image_of_text) -> dict[str, float]:
    """Return recalls, median and mean rank of both directions, and rsum.

    Args:
        image_embeds: (N_i, D) array or tensor; unit rows for cosine similarity.
        text_embeds: (N_t, D) array or tensor.
        image_of_text: (N_t,) integers, the index of each caption's photo. Every photo has at least
            one caption.

    Returns:
        `i2t_r1 i2t_r5 i2t_r10` in percent, `i2t_medr i2t_meanr` with ranks from 1, the same keys
        for `t2i`, and `rsum`, the sum of the six recalls.

    Raises:
        ValueError: If shapes do not match, a photo's number is out of range, a photo has no
            caption, or an embedding is not finite.
    """
    return metrics_of_ranks(*retrieval_ranks(image_embeds, text_embeds, image_of_text))


def five_fold(image_embeds, text_embeds, image_of_text, folds: int = 5) -> dict[str, float]:
    """Return the mean of `retrieval_metrics` over folds of the photos: COCO 1K for 5,000 photos.

    Args:
        image_embeds: (N_i, D) array or tensor.
        text_embeds: (N_t, D) array or tensor.
        image_of_text: (N_t,) integers, the index of each caption's photo.
        folds: The number of equal folds of consecutive photos; it divides N_i.

    Returns:
        The keys of `retrieval_metrics`.

    Raises:
        ValueError: If `folds` does not divide N_i, or `retrieval_metrics` raises it.
    """
    images, texts, image_of_text = as_fold_tensors(image_embeds, text_embeds, image_of_text, folds)
    [within_folds] = ranks_and_folds(images, texts, image_of_text, folds, only_folds=True)
    return mean_fold_metrics(within_folds, image_of_text, folds)


def metrics_and_five_fold(
    image_embeds, text_embeds, image_of_text, folds: int = 5
) -> tuple[dict[str, float], dict[str, float]]:
    """Return `retrieval_metrics` and `five_fold` of the same arguments, in the time of the first.

    Args:
        image_embeds: (N_i, D) array or tensor.
        text_embeds: (N_t, D) array or tensor.
        image_of_text: (N_t,) integers, the index of each caption's photo.
        folds: The number of equal folds of consecutive photos; it divides N_i.

    Raises:
        ValueError: If `folds` does not divide N_i, or `retrieval_metrics` raises it.
    """
    images, texts, image_of_text = as_fold_tensors(image_embeds, text_embeds, image_of_text, folds)
    among_all, within_folds = ranks_and_folds(images, texts, image_of_text, folds)
    return metrics_of_ranks(*among_all), mean_fold_metrics(within_folds, image_of_text, folds)


def as_fold_tensors(
    image_embeds, text_embeds, image_of_text, folds: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Check arguments as `as_tensors` does, and that the photos make equal folds.

    Raises:
        ValueError: If they do not, or `as_tensors` raises it.
    """
    images, texts, image_of_text = as_tensors(image_embeds, text_embeds, image_of_text)
    if len(images) % folds:
        raise ValueError(f"{len(images)} photos do not make {folds} equal folds")
    return images, texts, image_of_text


def mean_fold_metrics(
    ranks: tuple[np.ndarray, np.ndarray], image_of_text: Tensor, folds: int
) -> dict[str, float]:
    """Return the mean of `metrics_of_ranks` over folds.

    Args:
        ranks: i2t (N_i,) and t2i (N_t,) within folds.
        image_of_text: (N_t,) the index of each caption's photo.
        folds: The number of folds.
    """
    i2t, t2i = ranks
    fold_of_text = (image_of_text // (len(i2t) // folds)).cpu().numpy()
    metrics = [metrics_of_ranks(fold_i2t, t2i[fold_of_text == fold])
               for fold, fold_i2t in enumerate(np.split(i2t, folds))]
    return {key: float(np.mean([fold_metrics[key] for fold_metrics in metrics]))
            for key in metrics[0]}
