"""What is right beyond the annotated pairs: all true matches of a split, ECCV Caption and CxC.

The usual recalls count a true match that nobody annotated as a mistake. Where all matches of a
photo or caption are known, mAP@R and R-Precision over them do not.
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

# How a metric is called, by the end of its key.
LABELS = {"map_at_r": "mAP@R", "r_precision": "R-Precision", "r1": "R@1", "r5": "R@5",
          "r10": "R@10"}
SOURCES = {"eccv": "ECCV", "cxc": "CxC"}
TOP = 256  # retrieved items that the COCO metrics look at; no query there has as many matches


def metric_label(key: str) -> str:
    """A metric as people write it: "ECCV mAP@R" for `eccv_map_at_r`."""
    source, _, rest = key.partition("_")
    if source in SOURCES:
        return f"{SOURCES[source]} {LABELS.get(rest, rest)}"
    return LABELS.get(key, key)


@torch.no_grad()
def multi_positive_metrics(image_embeds: Tensor, text_embeds: Tensor, matches) -> dict[str, float]:
    """`{i2t,t2i}_{map_at_r,r_precision}` in percent over all true matches (Musgrave et al., 2020).

    A query with R matches is judged by its first R items: R-Precision is the share of them that are
    matches, mAP@R the mean over k <= R of the precision at k where item k is a match, else 0. A tie
    counts against the model. Queries without a match are left out.

    Args:
        image_embeds: (N_i, D); text_embeds: (N_t, D) unit rows.
        matches: (N_t, N_i) bool, all true matches.
    """
    matches = torch.as_tensor(matches, device=image_embeds.device)
    metrics = {}
    for name, queries, gallery, relevant in (("i2t", image_embeds, text_embeds, matches.T),
                                             ("t2i", text_embeds, image_embeds, matches)):
        precisions = [
            precision_at_r(block @ gallery.T, rows) for block, rows in zip(
                queries.split(max(1, BLOCK // len(gallery))),
                relevant.split(max(1, BLOCK // len(gallery))))]
        mean = torch.cat(precisions).mean(dim=0) * 100
        metrics[f"{name}_map_at_r"], metrics[f"{name}_r_precision"] = mean.tolist()
    return metrics


def true_share(matches) -> float:
    """In percent, of how many photos other than its own a caption is true, on average.

    Args:
        matches: (N_t, N_i) bool, all true matches, N_i > 1.
    """
    captions, images = matches.shape
    return 100 * float(matches.sum() - captions) / captions / (images - 1)


def precision_at_r(similarity: Tensor, relevant: Tensor) -> Tensor:
    """(Q, 2) average precision at R and R-Precision of the rows (b, N_g) that have a match."""
    some = relevant.any(dim=1)
    similarity, relevant = similarity[some], relevant[some]
    # A match that ties with a wrong item, to rounding, comes after it.
    lowered = similarity - relevant * rounding_tolerance(similarity.dtype)
    r = relevant.sum(dim=1, keepdim=True)  # (Q, 1)
    order = lowered.topk(int(r.max()) if len(r) else 0, dim=1).indices  # (Q, max R)
    position = torch.arange(1, order.shape[1] + 1, device=order.device)  # (max R,)
    hits = (relevant.gather(1, order) & (position <= r)).double()  # (Q, max R)
    precision = hits.cumsum(dim=1) / position
    return torch.cat([(precision * hits).sum(1, keepdim=True), hits.sum(1, keepdim=True)], 1) / r


def coco_image_ids(images: list[str]) -> list[int] | None:
    """COCO's ids from file names such as `val2014/COCO_val2014_000000391895.jpg`, or None."""
    found = [re.search(r"(\d{6,12})\.\w+$", name) for name in images]
    return [int(match.group(1)) for match in found] if all(found) else None


@torch.no_grad()
def coco_metrics(
    image_embeds: Tensor, text_embeds: Tensor, split: Split
) -> dict[str, float] | None:
    """ECCV Caption (mAP@R, R-Precision, R@1) and CxC recalls, in percent, through `eccv_caption`.

    Args:
        image_embeds: (5000, D); text_embeds: (25000, D); split: COCO's Karpathy test split, five
            captions a photo.

    Returns:
        `{i2t,t2i}_eccv_{map_at_r,r_precision,r1}` and `{i2t,t2i}_cxc_{r1,r5,r10}`, or None where
        the split is another one, which its file names tell.

    Raises:
        InputError: `eccv_caption` is not installed.
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
    annotated = [truth.coco_gts["t2i"][caption][0] for caption in caption_ids.tolist()]
    if annotated != [image_ids[image] for image in split.image_of_text]:
        return None
    retrieved = {
        "i2t": retrieved_ids(image_embeds, text_embeds, np.array(image_ids), caption_ids),
        "t2i": retrieved_ids(text_embeds, image_embeds, caption_ids, np.array(image_ids)),
    }
    metrics = {}
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars cannot be turned off
        eccv = truth.eccv_metrics(retrieved, "all")
    for name, scores in eccv.items():
        short = {"eccv_rprecision": "eccv_r_precision"}.get(name, name)
        metrics |= {f"{side}_{short}": 100 * float(value) for side, value in scores.items()}
    for k in 1, 5, 10:
        for side, value in truth.cxc_recalls(retrieved, "all", K=k).items():
            metrics[f"{side}_cxc_r{k}"] = 100 * float(value)
    return metrics


def retrieved_ids(
    queries: Tensor, gallery: Tensor, query_ids: np.ndarray, item_ids: np.ndarray
) -> dict[int, list[int]]:
    """For each query's id, the ids of its `TOP` most similar items, best first."""
    result = {}
    step = max(1, BLOCK // len(gallery))
    for start in range(0, len(queries), step):
        best = (queries[start : start + step] @ gallery.T).topk(TOP, dim=1).indices.cpu().numpy()
        for query, items in zip(query_ids[start : start + step].tolist(), best):
            result[query] = item_ids[items].tolist()
    return result
