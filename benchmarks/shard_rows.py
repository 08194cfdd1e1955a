"""What an index of tar shards costs, and reading at random from shards beside a folder of files:
for `growth.py --shards`.

One shard of `IN_SHARD` small photos with captions is written, and copied as often as it takes: each
copy is read as any other shard. The folder has as many files as one shard, in folders of 1,000. All
of it is in the machine's page cache, so it is the program that is measured and no disk.
"""

import io
import random
import resource
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image
from timing import resident

from data import LoadedSplit, read_split
from inputs.loader import usable_cores
from inputs.photos import Photos, load_photo
from inputs.shard_index import FOLDER

IN_SHARD = 10_000  # samples, as img2dataset has it
SIDE = 64  # of a photo, in pixels
READS = 20_000


def write_shards(folder: Path, samples: int) -> Path:
    """Write shards of `samples` in all, and return the pattern that names them."""
    numbers = np.random.default_rng(0)
    first = folder / "shards" / "00000.tar"
    first.parent.mkdir()
    in_shard = min(samples, IN_SHARD)
    with tarfile.open(first, "w") as tar:
        for number in range(in_shard):
            pixels = numbers.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            photo = io.BytesIO()
            Image.fromarray(pixels).resize((SIDE, SIDE)).save(photo, "JPEG")
            text = f"A caption of about sixty bytes that is unlike others, {number:06d} ."
            for suffix, content in ("jpg", photo.getvalue()), ("txt", text.encode()):
                member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                if suffix == "jpg":
                    place = folder / "files" / f"{number // 1000:03d}" / member.name
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(content)
    last = -(-samples // in_shard) - 1
    for number in range(1, last + 1):
        shutil.copyfile(first, first.with_name(f"{number:05d}.tar"))
    return first.with_name(f"{{00000..{last:05d}}}.tar")


def opened(pattern: Path) -> LoadedSplit:
    """Return the pairs of the shards, as a run finds them before it tokenises."""
    split = read_split("custom", "train", pattern)
    return LoadedSplit(split, split.photos, None)


def used(who: int) -> float:
    """Return the CPU seconds of this process, or of its children."""
    times = resource.getrusage(who)
    return times.ru_utime + times.ru_stime


def cpu() -> float:
    """Return the CPU seconds of this process and of those that it has ended."""
    return used(resource.RUSAGE_SELF) + used(resource.RUSAGE_CHILDREN)


def reads_a_second(read: Callable[[object], object], photos: Sequence) -> tuple[float, float]:
    """Return how many photos are read in random order in a second, by the clock and by the CPU."""
    order = random.Random(0).choices(range(len(photos)), k=READS)
    began, before = time.perf_counter(), cpu()
    for number in order:
        read(photos[number])
    return READS / (time.perf_counter() - began), READS / (cpu() - before)


def shard_rows(samples: int) -> list[str]:
    """Return a table with a line for each figure."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pattern = write_shards(folder, samples)
        shards = len(list(pattern.parent.glob("*.tar")))
        times = []
        for _ in range(2):
            bare, began, before = resident("VmRSS"), time.perf_counter(), cpu()
            loaded = opened(pattern)
            times.append((time.perf_counter() - began, cpu() - before, resident("VmRSS") - bare))
        count = len(loaded.photos)
        kept = sum(path.stat().st_size for path in (pattern.parent / FOLDER).rglob("*")
                   if path.is_file())
        names = [str(path.relative_to(folder / "files"))
                 for path in sorted((folder / "files").rglob("*.jpg"))]
        reads = [(f"{name}, {what}", reads_a_second(read, photos))
                 for what, of_shard, of_file in (
                     ("its bytes", lambda photo: photo.open().read(), Path.read_bytes),
                     ("its pixels", load_photo, load_photo))
                 for name, read, photos in (("shards", of_shard, loaded.photos),
                                            ("folder", of_file, Photos(names, folder / "files")))]
    (seconds, first_cpu, _), (again, _, memory) = times
    return ["| of tar shards | |", "|---|---|",
            f"| samples, shards; processes that index | {count:,}, {shards:,}; {usable_cores()} |",
            f"| first start, index made: seconds, shards a second | {seconds:.1f} s, "
            f"{shards / seconds:.2f} |",
            f"| the same: seconds, CPU seconds for 1,000 samples | {1000 * seconds / count:.3f} s, "
            f"{1000 * first_cpu / count:.3f} s |",
            f"| index, bytes a sample | {kept / count:.1f} |",
            f"| second start: seconds, memory on top | {again:.2f} s, {memory:,.0f} MiB |",
            *(f"| a photo at random from {what}: a second, a CPU second | {clock:,.0f}, {busy:,.0f}"
              " |" for what, (clock, busy) in reads)]
