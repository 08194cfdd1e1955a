"""What millions of pairs cost before a run begins and while it goes: for `growth.py --pairs`.

The pairs are simulated: captions of random words, one a photo, and names of photos that are all
different but end in one of 100 bare names, so that 100 small files serve for all. Reading, checking
and tokenising are a run's own. Every figure is of a process of its own, so that none has the memory
of another. Of a machine that does other work too, CPU seconds say more than seconds.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

import numpy as np
import torch
from PIL import Image
from timing import resident

import inputs.loader
from common.errors import exit_on_input_error
from data import LoadedSplit, check_apart, load_eval_set, load_train_set, make_train_loader
from encoders.processors import load_tokenizer, tokenizer_of
from inputs.loader import EpochSampler, close_workers
from training.options import TrainOptions, parse

FILES = 100  # photos on the disk, 32 x 32
HELD_OUT = 1000  # pairs of val, and of test
BLOCK = 100_000  # pairs that are written together
ORDER = 12_000_000  # pairs of the epoch whose order is made
WORKERS = 4
BATCHES = 250  # that are loaded before memory is looked at, 128 pairs each
PLACE = "{:05}/{:08}/"  # of a photo, before its bare name


def write_data(folder: Path, pairs: int) -> None:
    """A folder of photos and the splits of `--dataset custom`."""
    photos = folder / "photos"
    photos.mkdir()
    numbers = np.random.default_rng(0)
    for part in "train", "val", "test":
        for number in range(FILES):
            pixels = numbers.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((32, 32)).save(photos / f"{part}{number:02}.jpg")
    words = load_tokenizer("small-bert", "vocab/flickr30k.txt").get_vocab()
    # Up to five letters, so that a caption has 62 bytes: of Flickr30K's it is 63.
    words = np.array([word for word in sorted(words) if word.isalpha() and len(word) <= 5])
    for part, count in ("train", pairs), ("val", HELD_OUT), ("test", HELD_OUT):
        with open(folder / f"{part}.jsonl", "w") as file:
            for start in range(0, count, BLOCK):
                rows = range(start, min(start + BLOCK, count))
                lengths = 5 + numbers.binomial(19, 0.37, size=len(rows))  # 12 on average
                chosen = iter(words[numbers.integers(len(words), size=lengths.sum())].tolist())
                for number, length in zip(rows, lengths.tolist()):
                    name = f"{PLACE.format(number // 1000, number)}{part}{number % FILES:02}.jpg"
                    text = " ".join(next(chosen) for _ in range(length)).capitalize() + " ."
                    file.write(json.dumps({"file_name": name, "text": text}) + "\n")


def options_of(folder: Path, workers: int = 0) -> TrainOptions:
    return parse("", ["--dataset", "custom", "--data_path", str(folder / "photos"), "--json_path",
                      str(folder), "--cache", str(folder / "cache"), "--text_encoder", "small-bert",
                      "--image_res", "32", "--batch_size_train", "128", "--augment", "none",
                      "--workers", str(workers)])[0]


# ------------------------------------------------------------------- what a process of its own does


def start(folder: Path) -> tuple[TrainOptions, LoadedSplit]:
    """What a run reads, checks and makes before its first step, the model apart."""
    options = options_of(folder)
    tokenizer = tokenizer_of(options)
    train_set = load_train_set(options, tokenizer)
    check_apart(train_set, *(load_eval_set(options, part, tokenizer) for part in ("val", "test")))
    return options, train_set


def started(folder: Path) -> dict[str, float]:
    """Seconds of a start, CPU seconds of all threads, and MiB on top, at most."""
    before, bare, began = used(), highest(), time.perf_counter()
    start(folder)
    return {"seconds": time.perf_counter() - began, "cpu": used() - before,
            "peak": highest() - bare}


def loaded(folder: Path, workers: int) -> dict[str, float]:
    """MiB while `workers` load: of this process and of all workers, and before anything was read.
    What processes share counts in each of them by its part (the kernel's Pss), so that the sum is
    what the machine gives."""
    bare, bare_mapped = (memory_of(os.getpid(), kind) for kind in ("Pss:", "Pss_File:"))
    options, train_set = start(folder)
    options.workers = workers
    inputs.loader.usable_cores = lambda: max(1, workers)  # as many also where there are fewer
    loader = make_train_loader(options, train_set, pin=False)
    for _, _batch in zip(range(BATCHES), loader):
        pass
    processes = [] if loader._iterator is None else [
        worker.pid for worker in loader._iterator._workers]
    result = {"own": memory_of(os.getpid()), "workers": sum(map(memory_of, processes)),
              "count": len(processes), "bare": bare,
              "mapped": sum(memory_of(process, "Pss_File:")
                            for process in [os.getpid(), *processes]) - bare_mapped}
    close_workers(loader)
    return result


def ordered(plain: bool) -> dict[str, float]:
    """Seconds to the first batch of an epoch of `ORDER` pairs, and MiB on top, at most."""
    sampler, before = EpochSampler(ORDER, 32, 3407), highest()
    began, cpu = time.perf_counter(), used()
    next(iter(plain_order(sampler) if plain else sampler))
    return {"seconds": time.perf_counter() - began, "cpu": used() - cpu,
            "peak": highest() - before}


def plain_order(sampler: EpochSampler):
    """The same batches from lists of all pairs."""
    generator = torch.Generator().manual_seed((sampler.seed * 1_000_003 + sampler.epoch) % 2**63)
    order = torch.randperm(sampler.size, generator=generator).tolist()
    seeds = torch.randint(2**62, (sampler.size,), generator=generator).tolist()
    pairs = list(zip(order, seeds, strict=True))
    for batch in range(sampler.start, len(sampler)):
        rows = slice(batch * sampler.batch_size, (batch + 1) * sampler.batch_size)
        yield pairs[rows][sampler.local_rows]


def used() -> float:
    """CPU seconds of this process."""
    times = resource.getrusage(resource.RUSAGE_SELF)
    return times.ru_utime + times.ru_stime


def highest() -> float:
    """The highest resident memory of this process, in MiB."""
    return resident("VmHWM")


def memory_of(process: int, kind: str = "Pss:") -> float:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(kind))


WORK = {"started": lambda folder, _: started(folder),
        "loaded": lambda folder, workers: loaded(folder, int(workers)),
        "ordered": lambda folder, plain: ordered(plain == "plain")}


def alone(work: str, folder: Path, argument: object = "") -> dict[str, float]:
    """What a function of `WORK` gives in a process of its own."""
    command = [sys.executable, __file__, work, str(folder), str(argument)]
    done = subprocess.run(command, capture_output=True, text=True,
                          cwd=Path(__file__).resolve().parent.parent)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------------------------------- the table


def pair_rows(pairs: int) -> list[str]:
    """A table, and a line for each figure."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_data(folder, pairs)
        first, second = alone("started", folder), alone("started", folder)
        files = [path for path in (folder / "cache").rglob("*") if path.is_file()]
        kept = sum(path.stat().st_size for path in files)
        text = (folder / "train.jsonl").stat().st_size
        none, some = (alone("loaded", folder, workers) for workers in (0, WORKERS))
        short, plain = (alone("ordered", folder, kind) for kind in ("", "plain"))
    lines = ["| of simulated pairs | |", "|---|---|",
             f"| pairs, one a photo; the split file | {pairs:,}; {text / 1e6:,.0f} MB |",
             f"| kept and mapped, bytes a pair | {kept / pairs:.1f} |"]
    lines += [f"| {name} start: seconds, CPU seconds, memory on top | {took['seconds']:.1f} s, "
              f"{took['cpu']:.1f} s, {took['peak']:,.0f} MiB |"
              for name, took in (("first", first), ("second", second))]
    lines.append(f"| memory of the process before it reads anything | {none['bare']:,.0f} MiB |")
    lines += [f"| memory while {took['count']} workers load: the process, its workers, together; "
              f"of it mapped files | {took['own']:,.0f}, {took['workers']:,.0f}, "
              f"{took['own'] + took['workers']:,.0f} MiB; {took['mapped']:,.0f} MiB |"
              for took in (none, some)]
    lines += [f"| order of an epoch of {ORDER:,} pairs{name}: seconds, CPU seconds, memory on top "
              f"| {took['seconds']:.2f} s, {took['cpu']:.2f} s, {took['peak']:,.0f} MiB |"
              for name, took in (("", short), (", from lists", plain))]
    return lines


if __name__ == "__main__":
    with exit_on_input_error():
        name, folder, argument = sys.argv[1:]
        print(json.dumps(WORK[name](Path(folder), argument)))
