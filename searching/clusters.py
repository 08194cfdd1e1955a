"""Approximate search: clusters of an index, made and chosen from by the library faiss.

A query looks only into the clusters nearest to it, an inverted file; what is in them is compared
exactly. The clusters are kept beside the index as safetensors, `centroids` (L, D) float32, `order`
(N,) int64, the index's rows by cluster, and `ends` (L,) int64, and not as faiss's own file: that
would hold all embeddings a second time, and is not made to be read from anybody.
"""

import hashlib
import importlib.util
import math
import os
from pathlib import Path

import numpy as np
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from common import files
from common.errors import InputError, one_line
from common.terminal import print_note, warn
from searching.exact import Best, best_rows
from searching.index import Index, header_of

FORMAT = "fne-search-clusters-1"
EXTRAS = "requirements-search.txt"
ROWS = 2**15  # assigned to clusters at a time
OF_A_CLUSTER = 64  # embeddings that k-means sees of each, at most
LEAST = 39  # photos of a cluster, on average
PROBED, FEWEST = 1 / 32, 8  # of the clusters, and at least so many
ASKED = 200  # photos that recall is measured with
TENSORS = {"centroids": torch.float32, "order": torch.int64, "ends": torch.int64}


def check_faiss() -> None:
    """Raise InputError where the library is missing."""
    if importlib.util.find_spec("faiss") is None:
        raise InputError(f"--faiss needs the library faiss: pip install -r {EXTRAS}, or leave the "
                         "flag out; exact search takes a second for a million photos")


class Clusters:
    """Rows of an index by their nearest centroid."""

    def __init__(self, centroids: Tensor, order: Tensor, ends: Tensor):
        import faiss

        self.centroids, self.order, self.ends = centroids, order.numpy(), ends.numpy()
        self.quantizer = faiss.IndexFlatIP(centroids.shape[1])
        self.quantizer.add(np.ascontiguousarray(centroids.numpy()))
        self.probes = max(FEWEST, math.ceil(PROBED * len(centroids)))

    def best_rows(self, queries: Tensor, embeds: Tensor, count: int) -> list[Best]:
        """`exact.best_rows`, of the nearest clusters alone; at least `count` photos are compared.
        """
        _, nearest = self.quantizer.search(queries.numpy(), len(self.centroids))
        found = []
        for query, clusters in zip(queries, nearest):
            sizes = np.diff(self.ends, prepend=0)[clusters]
            enough = int(np.searchsorted(sizes.cumsum(), min(count, len(embeds)))) + 1
            rows = np.sort(np.concatenate([
                self.order[self.ends[cluster] - size : self.ends[cluster]]
                for cluster, size in zip(clusters[: max(self.probes, enough)], sizes)]))
            [best] = best_rows(query[None], embeds[torch.from_numpy(rows)], count)
            found.append(Best(rows[best.rows], best.scores))
        return found


def clusters_of(place: Path, index: Index, queries: Tensor, count: int) -> Clusters:
    """The clusters of an index that is at `place`, read from beside it or made.

    Where they are made, recall@`count` against exact search is told, of `queries` and of photos of
    the index.

    Raises:
        InputError: they cannot be written.
    """
    beside = place.with_name(f"{place.name[:200]}.clusters")
    told = {"format": FORMAT, "index": digest_of(index)}
    clusters = read_clusters(beside, told, index)
    if clusters is not None:
        return clusters
    tensors = make_clusters(index.embeds)
    clusters = Clusters(*tensors.values())
    files.write(beside, save(tensors, told), "--faiss")
    random = torch.Generator().manual_seed(0)
    photos = index.embeds[torch.randperm(len(index.embeds), generator=random)[:ASKED]]
    print_note(f"--faiss: {len(clusters.centroids):,} clusters of {len(index.embeds):,} photos; "
               f"recall@{count} against exact search "
               f"{recall(clusters, queries, index.embeds, count):.3f} of this search, "
               f"{recall(clusters, photos, index.embeds, count):.3f} of {len(photos):,} photos")
    return clusters


def recall(clusters: Clusters, queries: Tensor, embeds: Tensor, count: int) -> float:
    """Share of the exact results that the clusters give, mean over queries."""
    pairs = zip(clusters.best_rows(queries, embeds, count), best_rows(queries, embeds, count))
    return float(np.mean([np.isin(exact.rows, near.rows).mean() for near, exact in pairs]))


def make_clusters(embeds: Tensor) -> dict[str, Tensor]:
    """K-means on the unit sphere, and each row's nearest centroid; always the same."""
    import faiss

    total, dim = embeds.shape
    number = max(1, min(round(2 * math.sqrt(total)), total // LEAST))
    random = torch.Generator().manual_seed(0)
    sample = torch.randperm(total, generator=random)[: OF_A_CLUSTER * number].sort().values
    kmeans = faiss.Kmeans(dim, number, niter=10, seed=1, spherical=True,
                          min_points_per_centroid=1, max_points_per_centroid=OF_A_CLUSTER)
    kmeans.train(embeds[sample].numpy())
    nearest = np.concatenate([kmeans.index.search(embeds[start : start + ROWS].numpy(), 1)[1][:, 0]
                              for start in range(0, total, ROWS)])
    return {"centroids": torch.from_numpy(kmeans.centroids.copy()),
            "order": torch.from_numpy(np.argsort(nearest, kind="stable")),
            "ends": torch.from_numpy(np.bincount(nearest, minlength=number).cumsum())}


def digest_of(index: Index) -> str:
    """Changes with the photos of an index; another model has another file."""
    digest = hashlib.sha256(b"\0".join(map(os.fsencode, index.photos.names)))
    digest.update(index.photos.stats.tobytes())
    return digest.hexdigest()


def read_clusters(path: Path, told: dict[str, str], index: Index) -> Clusters | None:
    """The clusters in a file; None where there are none, or those of other photos.

    Raises:
        InputError: something else is there.
    """
    if not os.path.lexists(path):
        return None
    header = header_of(path)
    if header.get("format") != FORMAT:
        raise InputError(f"--faiss: {path} is none of search.py's files: delete it, or name "
                         "another place with --index")
    if header != told:
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if {name: value.dtype for name, value in tensors.items()} != TENSORS:
            raise ValueError("other tensors")
        centroids, order, ends = (tensors[name] for name in TENSORS)
        total, dim = index.embeds.shape
        if centroids.shape != (len(ends), dim) or order.shape != (total,) or ends.ndim != 1 or (
                ends.diff(prepend=torch.zeros(1, dtype=torch.int64)) < 0).any() or not torch.equal(
                    order.sort().values, torch.arange(total)) or int(ends[-1]) != total:
            raise ValueError("no clusters of these photos")
        return Clusters(centroids, order, ends)
    except Exception as error:  # of several kinds, as bytes come
        warn(f"--faiss: {path} is damaged and made anew ({one_line(error)[:200]})")
        return None
