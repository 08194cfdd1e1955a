"""How long a search takes: an index file of random photos is written, read and searched.

    python benchmarks/search_speed.py --photos 1000000 --dims 256 512 768
    python benchmarks/search_speed.py --photos 1000000 --dims 512 --faiss
    python benchmarks/search_speed.py --encoder models/flickr_FNE

Beside the time of a search stands that of the bare product on embeddings in memory. --encoder
tells how many photos a second the image encoder alone takes, its pixels being there.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.memory import keep_freed_memory
from export import read_model
from searching import clusters
from searching.exact import best_rows
from searching.index import Index, Origin, read_index, write_index
from searching.update import is_current

TOP, CENTRES = 10, 2_000


def random_rows(count: int, dim: int) -> torch.Tensor:
    """(count, dim) unit rows around random centres: k-means finds nothing in plain noise."""
    generator = torch.Generator().manual_seed(count)
    centres = torch.randn(CENTRES, dim, generator=generator)
    rows = torch.empty(count, dim)
    for part in rows.split(2**16):
        which = torch.randint(CENTRES, (len(part),), generator=generator)
        noise = torch.randn(part.shape, generator=generator)
        part.copy_(F.normalize(centres[which] + noise, dim=1))
    return rows


def seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """Median time of a call, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def written(folder: Path, embeds: torch.Tensor) -> tuple[Path, Origin, dict]:
    """An index file of as many photos as there are embeddings."""
    found = {f"photos/{number:07}.jpg": (number, number) for number in range(len(embeds))}
    place, marks = folder / "index.safetensors", Origin("random", folder)
    row_of = {name: row for row, name in enumerate(found)}
    write_index(place, marks, found, [embeds], row_of, {})
    return place, marks, found


def measure(count: int, dim: int, with_faiss: bool) -> None:
    """Print a line for each thing that a search does."""
    embeds = random_rows(count, dim)
    one, ten = (F.normalize(embeds[:n] + 0.5 * F.normalize(torch.randn(n, dim), dim=1), dim=1)
                for n in (1, 10))

    def line(what: str, value: float) -> None:
        print(f"{count:9,} photos, D {dim:4}: {what:45} {value:8.3f} s", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        place, marks, found = written(Path(folder), embeds)
        line("writing the index", time.perf_counter() - begun)
        columns = embeds.T
        line("the bare product, one query, in memory", seconds(partial(torch.matmul, one, columns)))
        line("the bare product, ten queries", seconds(partial(torch.matmul, ten, columns)))
        del embeds, columns
        begun = time.perf_counter()
        index: Index = read_index(place, marks, dim)
        line("reading names, sizes and times", time.perf_counter() - begun)
        line("comparing them with the folder's", seconds(lambda: is_current(index, found), 1))
        begun = time.perf_counter()
        best_rows(one, index.embeds, TOP)
        line("exact search, one query, the first time", time.perf_counter() - begun)
        line("exact search, one query", seconds(lambda: best_rows(one, index.embeds, TOP)))
        line("exact search, ten queries", seconds(lambda: best_rows(ten, index.embeds, TOP)))
        if with_faiss:
            begun = time.perf_counter()
            near = clusters.open_clusters(place, index, ten, TOP)
            line("making clusters, and measuring recall", time.perf_counter() - begun)
            line("reading clusters", seconds(
                lambda: clusters.open_clusters(place, index, ten, TOP), 1))
            line("approximate search, one query", seconds(
                lambda: near.best_rows(one, index.embeds, TOP)))


def measure_encoder(model: Path, batches: int) -> None:
    """Print the rate of a model's image encoder on random pixels."""
    encoder, options, _ = read_model(model)
    keep_freed_memory()
    pixels = torch.randn(32, 3, options.image_res, options.image_res)
    with torch.no_grad():
        value = seconds(lambda: encoder.encode_image(pixels), batches)
    print(f"{model}: {len(pixels) / value:,.1f} photos a second, in batches of {len(pixels)}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--dims", type=int, nargs="+", default=[256, 512, 768])
    parser.add_argument("--faiss", action="store_true", help="approximate search too")
    parser.add_argument("--encoder", type=Path, metavar="MODEL",
                        help="measure this model's image encoder instead")
    parser.add_argument("--batches", type=int, default=50, help="of --encoder")
    arguments = parser.parse_args(argv)
    print(f"{torch.get_num_threads()} threads")
    if arguments.encoder:
        return measure_encoder(arguments.encoder, arguments.batches)
    for dim in arguments.dims:
        for count in arguments.photos:
            measure(count, dim, arguments.faiss)


if __name__ == "__main__":
    main()
