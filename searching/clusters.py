"""Approximate search: clusters of an index, which the library faiss makes and chooses from.

A query is compared only with the photos of the clusters nearest to it (an inverted file), and with
those exactly. The clusters are kept in a file beside the index, as safetensors: `centroids` (L, D)
float32, `order` (N,) int64, the rows of the index sorted by cluster, and `ends` (L,) int64, where
each cluster ends in `order`. faiss's own file format is not used: it would hold all embeddings a
second time, and is not made to be read from untrusted sources.
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
from searching.index import Index, read_header

FORMAT = "fne-search-clusters-1"
REQUIREMENTS = "requirements-search.txt"
ROWS_PER_BLOCK = 2**15  # rows assigned to clusters at a time
SAMPLES_PER_CLUSTER = 64  # most embeddings that k-means is fitted to, for each cluster
LEAST_CLUSTER_SIZE = 39  # photos of a cluster, on average
PROBED_SHARE, LEAST_PROBED = 1 / 32, 8  # of the clusters a query looks into, and at least so many
RECALL_PHOTOS = 200  # photos of the index that recall is measured with
TENSORS = {"centroids": torch.float32, "order": torch.int64, "ends": torch.int64}


def check_faiss() -> None:
    """Raise InputError where the library faiss is missing."""
    if importlib.util.find_spec("faiss") is None:
        raise InputError(f"--faiss needs the library faiss: pip install -r {REQUIREMENTS}, or "
                         "leave the flag out; exact search takes a second for a million photos")


class Clusters:
    """The rows of an index, grouped by their nearest centroid.

    Args:
        centroids: (L, D) unit rows, float32.
        order: (N,) rows of the index, sorted by cluster.
        ends: (L,) where each cluster ends in `order`; it begins where the one before ends.
    """

    def __init__(self, centroids: Tensor, order: Tensor, ends: Tensor):
        import faiss

        self.centroids, self.order, self.ends = centroids, order.numpy(), ends.numpy()
        self.quantizer = faiss.IndexFlatIP(centroids.shape[1])
        self.quantizer.add(np.ascontiguousarray(centroids.numpy()))
        self.probes = max(LEAST_PROBED, math.ceil(PROBED_SHARE * len(centroids)))

    def best_rows(self, queries: Tensor, embeds: Tensor, count: int) -> list[Best]:
        """Return the best rows of the clusters nearest to each query, as `exact.best_rows` would.

        A query looks into as many clusters as are needed for `count` rows, if those are more than
        `probes`.

        Args:
            queries: (Q, D) unit rows.
            embeds: (N, D) unit rows of the index.
            count: results of a query.
        """
        _, nearest = self.quantizer.search(queries.numpy(), len(self.centroids))  # (Q, L)
        sizes = np.diff(self.ends, prepend=0)  # (L,)
        result = []
        for query, clusters in zip(queries, nearest):
            rows_reached = sizes[clusters].cumsum()  # (L,) with so many clusters and one more
            needed = int(np.searchsorted(rows_reached, min(count, len(embeds)))) + 1
            probed = clusters[: max(self.probes, needed)]
            rows = np.sort(np.concatenate([self.rows_of(cluster) for cluster in probed]))
            [best] = best_rows(query[None], embeds[torch.from_numpy(rows)], count)
            result.append(Best(rows[best.rows], best.scores))
        return result

    def rows_of(self, cluster: int) -> np.ndarray:
        """Return the rows of the index that are in a cluster."""
        start = self.ends[cluster - 1] if cluster > 0 else 0
        return self.order[start : self.ends[cluster]]


def open_clusters(index_path: Path, index: Index, queries: Tensor, count: int) -> Clusters:
    """Return the clusters of an index, from the file beside it, which is made if need be.

    Where the file is made, a line on standard error tells recall@`count` against exact search, of
    `queries` and of some photos of the index.

    Args:
        index_path: the file of the index.
        index: what that file holds.
        queries: (Q, D) unit rows.
        count: results of a query.

    Raises:
        InputError: the file cannot be written, or is something else.
    """
    path = index_path.with_name(f"{index_path.name[:200]}.clusters")
    header = {"format": FORMAT, "index": index_digest(index)}
    clusters = read_clusters(path, header, index)
    if clusters is not None:
        return clusters
    tensors = make_clusters(index.embeds)
    clusters = Clusters(*tensors.values())
    files.write(path, save(tensors, header), "--faiss")
    random = torch.Generator().manual_seed(0)
    photos = index.embeds[torch.randperm(len(index.embeds), generator=random)[:RECALL_PHOTOS]]
    print_note(f"--faiss: {len(clusters.centroids):,} clusters of {len(index.embeds):,} photos; "
               f"recall@{count} against exact search "
               f"{recall(clusters, queries, index.embeds, count):.3f} of this search, "
               f"{recall(clusters, photos, index.embeds, count):.3f} of {len(photos):,} photos")
    return clusters


def recall(clusters: Clusters, queries: Tensor, embeds: Tensor, count: int) -> float:
    """Return the share of the exact results that the clusters find, averaged over queries (Q, D).
    """
    pairs = zip(clusters.best_rows(queries, embeds, count), best_rows(queries, embeds, count))
    return float(np.mean([np.isin(exact.rows, found.rows).mean() for found, exact in pairs]))


def make_clusters(embeds: Tensor) -> dict[str, Tensor]:
    """Return the tensors of a clusters file, by k-means on the unit sphere.

    The same embeddings give the same clusters.

    Args:
        embeds: (N, D) unit rows.
    """
    import faiss

    total, dim = embeds.shape
    clusters = max(1, min(round(2 * math.sqrt(total)), total // LEAST_CLUSTER_SIZE))  # L
    random = torch.Generator().manual_seed(0)
    shuffled = torch.randperm(total, generator=random)
    sample = shuffled[: SAMPLES_PER_CLUSTER * clusters].sort().values
    kmeans = faiss.Kmeans(dim, clusters, niter=10, seed=1, spherical=True,
                          min_points_per_centroid=1,
                          max_points_per_centroid=SAMPLES_PER_CLUSTER)
    kmeans.train(embeds[sample].numpy())
    nearest = []
    for start in range(0, total, ROWS_PER_BLOCK):
        _, centroids = kmeans.index.search(embeds[start : start + ROWS_PER_BLOCK].numpy(), 1)
        nearest.append(centroids[:, 0])
    nearest = np.concatenate(nearest)  # (N,)
    return {"centroids": torch.from_numpy(kmeans.centroids.copy()),
            "order": torch.from_numpy(np.argsort(nearest, kind="stable")),
            "ends": torch.from_numpy(np.bincount(nearest, minlength=clusters).cumsum())}


def index_digest(index: Index) -> str:
    """Return a hash of the names, sizes and times of an index's photos.

    The model is not in it: each model has an index file of its own.
    """
    digest = hashlib.sha256(b"\0".join(map(os.fsencode, index.photos.names)))
    digest.update(index.photos.stats.tobytes())
    return digest.hexdigest()


def read_clusters(path: Path, header: dict[str, str], index: Index) -> Clusters | None:
    """Return the clusters in a file.

    Args:
        path: the file beside the index.
        header: what the file must say of itself.
        index: the index whose rows are clustered.

    Returns:
        The clusters; None where there is no file, or it belongs to other photos, or it is damaged,
        of which a warning tells.

    Raises:
        InputError: something else is there.
    """
    if not os.path.lexists(path):
        return None
    found_header = read_header(path)
    if found_header.get("format") != FORMAT:
        raise InputError(f"--faiss: {path} is none of search.py's files: delete it, or name "
                         "another place with --index")
    if found_header != header:
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        check_clusters(tensors, *index.embeds.shape)
        return Clusters(*(tensors[name] for name in TENSORS))
    except Exception as error:  # damaged bytes raise errors of several kinds
        warn(f"--faiss: {path} is damaged and made anew ({one_line(error)[:200]})")
        return None


def check_clusters(tensors: dict[str, Tensor], total: int, dim: int) -> None:
    """Raise ValueError where tensors are not the clusters of `total` rows of `dim` numbers."""
    if {name: value.dtype for name, value in tensors.items()} != TENSORS:
        raise ValueError("other tensors")
    centroids, order, ends = (tensors[name] for name in TENSORS)
    right_shapes = (ends.ndim == 1 and centroids.shape == (len(ends), dim)
                    and order.shape == (total,))
    if not right_shapes:
        raise ValueError("no clusters of these photos")
    ascending = (ends.diff(prepend=torch.zeros(1, dtype=torch.int64)) >= 0).all()
    each_row_once = torch.equal(order.sort().values, torch.arange(total))
    if not (ascending and each_row_once and int(ends[-1]) == total):
        raise ValueError("no clusters of these photos")
