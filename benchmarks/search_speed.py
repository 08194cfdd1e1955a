"""Time a search: an index file of random photos is written, read and searched.

    python benchmarks/search_speed.py --photos 1000000 --dims 256 512 768
    python benchmarks/search_speed.py --photos 1000000 --dims 512 --faiss
    python benchmarks/search_speed.py --encoder models/flickr_FNE

The time of a search is printed beside that of the bare matrix product on embeddings in memory.
--encoder measures how many photos a second the image encoder alone embeds, from pixels in memory.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

import torch
import torch.nn.functional as F

from common.errors import exit_on_input_error
from common.memory import keep_freed_memory
from export import read_model
from searching import clusters
from searching.exact import best_rows
from searching.index import Index, Origin, read_index, write_index
from searching.update import is_current

TOP = 10  # results of a query
CENTRES = 2_000  # directions around which the random embeddings lie


def random_rows(count: int, dim: int) -> torch.Tensor:
    """Return (count, dim) random unit rows around `CENTRES` random directions.

    Rows without any structure would give k-means nothing to find. The same arguments give the same
    rows.
    """
    generator = torch.Generator().manual_seed(count)
    centres = torch.randn(CENTRES, dim, generator=generator)
    rows = torch.empty(count, dim)
    for block in rows.split(2**16):
        chosen = torch.randint(CENTRES, (len(block),), generator=generator)
        noise = torch.randn(block.shape, generator=generator)
        block.copy_(F.normalize(centres[chosen] + noise, dim=1))
    return rows


def seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """Return the median seconds of `repeats` calls, after a first one that does not count."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def write_random_index(folder: Path, embeds: torch.Tensor) -> tuple[Path, Origin, dict]:
    """Write an index file with an invented photo for each row of `embeds` (N, D).

    Returns:
        The file, the model and folder that it belongs to, and the size and time of each photo.
    """
    stats = {f"photos/{number:07}.jpg": (number, number) for number in range(len(embeds))}
    place, origin = folder / "index.safetensors", Origin("random", folder)
    row_of = {name: row for row, name in enumerate(stats)}
    write_index(place, origin, stats, [embeds], row_of, {})
    return place, origin, stats


def measure(count: int, dim: int, with_faiss: bool) -> None:
    """Print the seconds of each step of a search, a line each.

    Args:
        count: N, photos in the index.
        dim: D, the length of an embedding.
        with_faiss: whether to measure approximate search too.
    """
    embeds = random_rows(count, dim)
    one, ten = (F.normalize(embeds[:n] + 0.5 * F.normalize(torch.randn(n, dim), dim=1), dim=1)
                for n in (1, 10))

    def print_line(step: str, value: float) -> None:
        print(f"{count:9,} photos, D {dim:4}: {step:45} {value:8.3f} s", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        place, origin, stats = write_random_index(Path(folder), embeds)
        print_line("writing the index", time.perf_counter() - started)
        columns = embeds.T
        print_line("the bare product, one query, in memory",
                   seconds(partial(torch.matmul, one, columns)))
        print_line("the bare product, ten queries", seconds(partial(torch.matmul, ten, columns)))
        del embeds, columns
        started = time.perf_counter()
        index: Index = read_index(place, origin, dim)
        print_line("reading names, sizes and times", time.perf_counter() - started)
        print_line("comparing them with the folder's", seconds(lambda: is_current(index, stats), 1))
        started = time.perf_counter()
        best_rows(one, index.embeds, TOP)
        print_line("exact search, one query, the first time", time.perf_counter() - started)
        print_line("exact search, one query", seconds(lambda: best_rows(one, index.embeds, TOP)))
        print_line("exact search, ten queries", seconds(lambda: best_rows(ten, index.embeds, TOP)))
        if with_faiss:
            started = time.perf_counter()
            opened = clusters.open_clusters(place, index, ten, TOP)
            print_line("making clusters, and measuring recall", time.perf_counter() - started)
            print_line("reading clusters", seconds(
                lambda: clusters.open_clusters(place, index, ten, TOP), 1))
            print_line("approximate search, one query", seconds(
                lambda: opened.best_rows(one, index.embeds, TOP)))


def measure_encoder(model: Path, batches: int) -> None:
    """Print how many photos a second a model's image encoder embeds, from random pixels.

    Args:
        model: folder or checkpoint.
        batches: batches of 32 photos that are measured.
    """
    encoder, options, _ = read_model(model)
    keep_freed_memory()
    pixels = torch.randn(32, 3, options.image_res, options.image_res)
    with torch.no_grad():
        value = seconds(lambda: encoder.encode_image(pixels), batches)
    print(f"{model}: {len(pixels) / value:,.1f} photos a second, in batches of {len(pixels)}")


def main(argv: list[str] | None = None) -> None:
    """Run the command with the arguments `argv`, or with those of the process."""
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
    with exit_on_input_error():
        main()
