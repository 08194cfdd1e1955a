"""Metrics beyond the annotated pairs: over all true matches of a split, ECCV Caption and CxC.

The usual recalls count a true match that nobody annotated as a mistake. mAP@R and R-Precision do
not, where all matches of a photo or caption are known.
"""

import contextlib
import io
import re
import warnings

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from data import Split
from metrics.retrieval import BLOCK, rounding_tolerance
from negative_sampling import promote_to_float32

# How metrics are printed, by the end and by the start of their key.
LABELS = {"map_at_r": "mAP@R", "r_precision": "R-Precision", "r1": "R@1", "r5": "R@5",
          "r10": "R@10"}
SOURCES = {"eccv": "ECCV", "cxc": "CxC"}
# Retrieved items of a query that the COCO metrics look at; no query there has as many matches.
TOP_ITEMS = 256


def metric_label(key: str) -> str:
    """Return a metric's key, without its direction, as it is printed.

    `eccv_map_at_r` becomes "ECCV mAP@R".
    """
    source, _, metric = key.partition("_")
    if source in SOURCES:
        return f"{SOURCES[source]} {LABELS.get(metric, metric)}"
    return LABELS.get(key, key)


@torch.no_grad()
def multi_positive_metrics(image_embeds: Tensor, text_embeds: Tensor, matches) -> dict[str, float]:
    """Return mAP@R and R-Precision of both directions over all true matches.

    A query with R matches is judged by its first R items (Musgrave et al., 2020). R-Precision is
    the share of them that are matches. mAP@R is the mean over k <= R of the precision at k if item
    k is a match, else 0. A tie counts against the model. Queries without a match are left out.

    Args:
        image_embeds: (N_i, D) unit rows.
        text_embeds: (N_t, D) unit rows.
        matches: (N_t, N_i) bool, all true matches.

    Returns:
        `{i2t,t2i}_{map_at_r,r_precision}` in percent.
    """
    image_embeds, text_embeds = promote_to_float32(image_embeds, text_embeds)
    matches = torch.as_tensor(matches, device=image_embeds.device)
    directions = {"i2t": (image_embeds, text_embeds, matches.T),
                  "t2i": (text_embeds, image_embeds, matches)}
    metrics = {}
    for direction, (queries, gallery, is_match) in directions.items():
        step = max(1, BLOCK // len(gallery))
        precisions = [precisions_at_r(some_queries @ gallery.T, some_matches)
                      for some_queries, some_matches in zip(queries.split(step),
                                                            is_match.split(step))]
        map_at_r, r_precision = (torch.cat(precisions).mean(dim=0) * 100).tolist()
        metrics[f"{direction}_map_at_r"] = map_at_r
        metrics[f"{direction}_r_precision"] = r_precision
    return metrics


def true_match_share(matches) -> float:
    """Return of how many photos other than its own a caption is true, in percent, on average.

    Args:
        matches: (N_t, N_i) bool, all true matches, with N_i > 1.
    """
    captions, images = matches.shape
    return 100 * float(matches.sum() - captions) / captions / (images - 1)


def precisions_at_r(similarity: Tensor, is_match: Tensor) -> Tensor:
    """Return average precision at R and R-Precision of each query that has a match.

    Args:
        similarity: (b, N_g) of queries and gallery items.
        is_match: (b, N_g) bool.

    Returns:
        (Q, 2) float64, for the Q queries with a match.
    """
    has_match = is_match.any(dim=1)
    similarity, is_match = similarity[has_match], is_match[has_match]
    # A match that ties with a wrong item, to rounding, comes after it.
    lowered = similarity - is_match * rounding_tolerance(similarity.dtype)
    r = is_match.sum(dim=1, keepdim=True)  # (Q, 1)
    order = lowered.topk(int(r.max()) if len(r) else 0, dim=1).indices  # (Q, max R)
    position = torch.arange(1, order.shape[1] + 1, device=order.device)  # (max R,)
    hits = (is_match.gather(1, order) & (position <= r)).double()  # (Q, max R)
    precision = hits.cumsum(dim=1) / position
    return torch.cat([(precision * hits).sum(1, keepdim=True), hits.sum(1, keepdim=True)], 1) / r


def coco_image_ids(images: list[str]) -> list[int] | None:
    """Return COCO's ids of photos, from names such as `val2014/COCO_val2014_000000391895.jpg`.

    Returns:
        The ids in the order of `images`; None if a name has none.
    """
    found = [re.search(r"(\d{6,12})\.\w+$", name) for name in images]
    return [int(match.group(1)) for match in found] if all(found) else None


@torch.no_grad()
def coco_metrics(
    image_embeds: Tensor, text_embeds: Tensor, split: Split
) -> dict[str, float] | None:
    """Return ECCV Caption and CxC metrics of COCO's Karpathy test split, through `eccv_caption`.

    Args:
        image_embeds: (5000, D).
        text_embeds: (25000, D), five captions a photo.
        split: Names the photos, whose order tells whether it is that split.

    Returns:
        `{i2t,t2i}_eccv_{map_at_r,r_precision,r1}` and `{i2t,t2i}_cxc_{r1,r5,r10}` in percent; None
        for any other split.

    Raises:
        InputError: If the package `eccv_caption` is not installed.
    """
    image_ids = coco_image_ids(split.images)
    if len(split.images) != 5000 or len(split.captions) != 25000 or image_ids is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it recommends a faster json parser
            from eccv_caption import Metrics
    except ImportError as error:
        raise InputError("COCO's ECCV Caption and CxC metrics need: pip install eccv_caption"
                         ) from error
    truth = Metrics()
    caption_ids = truth.coco_ids  # (25000,), five for each photo in the order of the split
    photo_of_caption = [truth.coco_gts["t2i"][caption][0] for caption in caption_ids.tolist()]
    if photo_of_caption != [image_ids[image] for image in split.image_of_text]:
        return None
    image_embeds, text_embeds = promote_to_float32(image_embeds, text_embeds)
    retrieved = {
        "i2t": retrieved_ids(image_embeds, text_embeds, np.array(image_ids), caption_ids),
        "t2i": retrieved_ids(text_embeds, image_embeds, caption_ids, np.array(image_ids)),
    }
    metrics = {}
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars cannot be turned off
        eccv_metrics = truth.eccv_metrics(retrieved, "all")
    for name, scores in eccv_metrics.items():
        key = "eccv_r_precision" if name == "eccv_rprecision" else name
        for direction, value in scores.items():
            metrics[f"{direction}_{key}"] = 100 * float(value)
    for k in 1, 5, 10:
        for direction, value in truth.cxc_recalls(retrieved, "all", K=k).items():
            metrics[f"{direction}_cxc_r{k}"] = 100 * float(value)
    return metrics


def retrieved_ids(
    queries: Tensor, gallery: Tensor, query_ids: np.ndarray, item_ids: np.ndarray
) -> dict[int, list[int]]:
    """Return the ids of the `TOP_ITEMS` most similar items of each query, best first.

    Args:
        queries: (N_q, D).
        gallery: (N_g, D).
        query_ids: (N_q,), the keys of the result.
        item_ids: (N_g,).
    """
    retrieved = {}
    step = max(1, BLOCK // len(gallery))
    for start in range(0, len(queries), step):
        similarity = queries[start : start + step] @ gallery.T
        best = similarity.topk(TOP_ITEMS, dim=1).indices.cpu().numpy()
        for query_id, items in zip(query_ids[start : start + step].tolist(), best):
            retrieved[query_id] = item_ids[items].tolist()
    return retrieved
