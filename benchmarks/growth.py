"""Measure how time and memory grow with the memory bank, the test set, an embeddings file, the
pairs of the training split, and the samples in tar shards.

    python benchmarks/growth.py --save
    python benchmarks/growth.py --photos 1000 10000 100000 --banks
    python benchmarks/growth.py --files 20000 --dim 512 --banks --photos
    python benchmarks/growth.py --pairs 3000000 --banks --photos
    python benchmarks/growth.py --shards 1000000 --banks --photos

"extra memory" is the highest resident memory during the work, less that before it: what the work
needs beside the bank or the embeddings themselves; of an embeddings file it holds them too. It is
read from Linux's /proc.
"""

import argparse
import ctypes
import datetime
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

import numpy as np
import torch
import torch.nn.functional as F
from large_data import pair_rows
from shard_rows import shard_rows
from speed import describe_machine, filled_bank, fitted_loss, save_table, unit_rows
from timing import resident

from common.errors import exit_on_input_error
from data import Split
from metrics.embeddings import Embeddings, read_embeddings, save_embeddings
from metrics.retrieval import retrieval_metrics


def measure(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of a call, and the MiB of resident memory that it took on top."""
    ctypes.CDLL(None).malloc_trim(0)  # memory that earlier work freed counts again if it is used
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far becomes the present one
    before, started = resident("VmRSS"), time.perf_counter()
    work()
    return time.perf_counter() - started, resident("VmHWM") - before


def bank_rows(sizes: list[int], batch: int, dim: int, repeats: int) -> list[str]:
    """Return the table of the FNE loss and its gradient at several sizes of the memory bank.

    Args:
        sizes: M, slots of the bank.
        batch: B, pairs in a step.
        dim: D of the embeddings.
        repeats: steps measured at each size, of which the fastest counts.

    Returns:
        The lines of a Markdown table.
    """
    lines = ["| bank M | bank's own memory | loss and gradient | per slot | extra memory |",
             "|---|---|---|---|---|"]
    criterion = fitted_loss(dim, "cpu")
    for size in sizes:
        bank = filled_bank(size, dim, "cpu")

        def step(bank=bank):
            base = unit_rows(batch, dim, "cpu")
            images, texts, *keys = (unit_rows(batch, dim, "cpu", base) for _ in range(4))
            criterion(images.requires_grad_(), texts.requires_grad_(), *keys,
                      torch.randint(29_000, (batch,)), bank).backward()

        step()
        seconds, extra = zip(*(measure(step) for _ in range(repeats)))
        lines.append(f"| {size:,} | {2 * size * dim * 4 / 2**20:,.0f} MiB | "
                     f"{1000 * min(seconds):,.1f} ms | {1e9 * min(seconds) / size:,.0f} ns | "
                     f"{max(extra):,.0f} MiB |")
    return lines


def test_set_rows(photos: list[int], dim: int) -> list[str]:
    """Return the table of all retrieval metrics at several sizes of the test set.

    Args:
        photos: N_i, with five captions for each photo.
        dim: D of the embeddings.

    Returns:
        The lines of a Markdown table.
    """
    lines = ["| photos x captions | embeddings' own memory | all metrics | per similarity | "
             "extra memory |", "|---|---|---|---|---|"]
    retrieval_metrics(*test_set(100, dim))
    for count in photos:
        case = test_set(count, dim)
        seconds, extra = measure(lambda case=case: retrieval_metrics(*case))
        lines.append(f"| {count:,} x {5 * count:,} | {6 * count * dim * 4 / 2**20:,.0f} MiB | "
                     f"{seconds:,.1f} s | {1e9 * seconds / (5 * count**2):.1f} ns | "
                     f"{extra:,.0f} MiB |")
    return lines


def test_set(count: int, dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return random embeddings of `count` photos and of five captions for each.

    Returns:
        (N_i, D) and (N_t, D) unit rows, and the photo of each caption, (N_t,).
    """
    images, image_of_text = unit_rows(count, dim, "cpu"), torch.arange(5 * count) // 5
    texts = torch.empty(5 * count, dim)
    for start in range(0, len(texts), 8192):  # in blocks, which leave no mark on the peak memory
        rows = images[image_of_text[start : start + 8192]]
        texts[start : start + 8192] = F.normalize(rows + 0.3 * torch.randn_like(rows))
    return images, texts, image_of_text


def file_rows(photos: list[int], dim: int) -> list[str]:
    """Return the table of reading and scoring an embeddings file, in both types that it may have.

    Args:
        photos: N_i, with five captions for each photo.
        dim: D of the embeddings.

    Returns:
        The lines of a Markdown table.
    """
    lines = ["| photos x captions | type | embeddings in the file | read | read and scored | "
             "extra memory to read | to read and score |", "|---|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for count in photos:
            for dtype, size in ("float32", 4), ("bfloat16", 2):
                path = Path(folder, f"{dtype}.npz")
                write_test_set(count, dim, path, dtype)
                read_seconds, read_extra = measure(lambda path=path: read_embeddings(path))
                seconds, extra = measure(lambda path=path: score_file(path))
                lines.append(f"| {count:,} x {5 * count:,} | {dtype} | "
                             f"{6 * count * dim * size / 2**20:,.0f} MiB | {read_seconds:.1f} s | "
                             f"{seconds:.1f} s | {read_extra:,.0f} MiB | {extra:,.0f} MiB |")
    return lines


def write_test_set(count: int, dim: int, path: Path, dtype: str) -> None:
    """Write the embeddings file of a `test_set` in a type, with short names and captions."""
    images, texts, image_of_text = test_set(count, dim)
    names, captions = np.arange(count).astype(str), np.arange(5 * count).astype(str)
    split = Split(path, names.tolist(), captions.tolist(), image_of_text.numpy())
    save_embeddings(Embeddings(images, texts, split), path, dtype)


def score_file(path: Path) -> None:
    """Read an embeddings file, and compute its recalls, as `evaluation.py --embeddings` does."""
    embeddings = read_embeddings(path)
    retrieval_metrics(embeddings.image_embeds, embeddings.text_embeds,
                      embeddings.split.image_of_text)


def main(argv: list[str] | None = None) -> str:
    """Run the command with the arguments `argv`, or with those of the process; return its output.
    """
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--banks", type=int, nargs="*", default=[8192, 65_536, 262_144, 1_048_576],
                        help="sizes of the memory bank")
    parser.add_argument("--photos", type=int, nargs="*", default=[1000, 5000, 20_000],
                        help="sizes of the test set; 100,000 takes a quarter of an hour")
    parser.add_argument("--files", type=int, nargs="*", default=[], metavar="PHOTOS",
                        help="photos of embeddings files that are read and scored")
    parser.add_argument("--pairs", type=int, help="simulated pairs of a training split, for what "
                        "benchmarks/large_data.py measures")
    parser.add_argument("--shards", type=int, metavar="SAMPLES", help="samples in tar shards, for "
                        "what benchmarks/shard_rows.py measures")
    parser.add_argument("--batch", type=int, default=32, help="B, pairs in a step")
    parser.add_argument("--dim", type=int, default=768, help="D of the embeddings")
    parser.add_argument("--repeats", type=int, default=3, help="steps measured, the best counts")
    parser.add_argument("--save", action="store_true", help="keep tables in benchmarks/results/")
    options = parser.parse_args(argv)
    tables = []
    if options.banks:
        tables.append(bank_rows(options.banks, options.batch, options.dim, options.repeats))
    if options.photos:
        tables.append(test_set_rows(options.photos, options.dim))
    if options.files:
        tables.append(file_rows(options.files, options.dim))
    if options.pairs:
        tables.append(pair_rows(options.pairs))
    if options.shards:
        tables.append(shard_rows(options.shards))
    text = "\n\n".join([f"{datetime.date.today()}, {describe_machine('cpu')}, D {options.dim}",
                        *("\n".join(lines) for lines in tables)])
    print(text)
    if options.save:
        arguments = sys.argv[1:] if argv is None else argv
        save_table("cpu_growth", " ".join(["growth.py", *arguments]), text)
    return text


if __name__ == "__main__":
    with exit_on_input_error():
        main()
