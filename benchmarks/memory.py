"""Measure memory and time of a training step in chunks, with checkpointing, and with adapters.

    python benchmarks/memory.py
    python benchmarks/memory.py --batches 32 128 --repeats 1
    python benchmarks/memory.py --device cuda

Each row is a process of its own: a small ViT and a small BERT, and their momentum
encoders, in a step of FNE on random photos and captions. Memory is the most that is resident, or on
a GPU allocated, beside what was before the first step; time is the best of the repeats, which are
taken in turns. It runs on Linux only. Rows with adapters need peft, and are left out without it.
"""

import argparse
import importlib.util
import multiprocessing
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

import torch
import transformers
from timing import now, resident
from training_step import random_batch, step

from checkpoint import model_for_training
from common.errors import exit_on_input_error
from encoders.processors import load_tokenizer
from training.options import parse
from training.run import build_run

SIZES = dict(hidden_size=192, num_hidden_layers=2, num_attention_heads=3, intermediate_size=768)
VISION = dict(image_size=64, patch_size=16, **SIZES)
TEXT = dict(vocab_size=30_000, **SIZES)
# What each row adds to the flags; an empty text is the step as it is.
SETTINGS = ["", "--chunk 32", "--grad_checkpointing", "--chunk 32 --grad_checkpointing",
            "--lora 16", "--lora 16 --chunk 32"]


def make_base(folder: Path) -> None:
    """Save a ViT and a BERT with random weights, as pretrained encoders are saved."""
    torch.manual_seed(0)
    photos = transformers.ViTModel(transformers.ViTConfig(**VISION), add_pooling_layer=False)
    photos.save_pretrained(folder / "image")
    load_tokenizer("small-bert", "vocab/shapes.txt").save_pretrained(folder / "text")
    captions = transformers.BertModel(transformers.BertConfig(**TEXT), add_pooling_layer=False)
    captions.save_pretrained(folder / "text")


def measure(folder: Path, batch: int, flags: list[str], device: str) -> dict[str, float]:
    """Return what two steps take, in a process of their own.

    Args:
        folder: of `make_base`.
        batch: B.
        flags: of train.py.
        device: "cpu" or "cuda".

    Returns:
        "before", MiB that are held before the first step; "extra", the most MiB above that;
        "seconds" of the faster step; and "trained", the number of parameters that are trained.
    """
    options, _ = parse("", [
        "--dataset", "shapes", "--image_encoder", str(folder / "image"), "--text_encoder",
        str(folder / "text"), "--image_stats", "clip", "--device", device, "--batch_size_train",
        str(batch), "--queue_size", "4096", "--warmup_epochs", "0", "--easy_epochs", "0", *flags])
    tokenizer = load_tokenizer(options.text_encoder, options.vocab)
    run = build_run(options, model_for_training(options, None, None, tokenizer), tokenizer, 1000)
    run.train_mode()
    work = random_batch(run)
    before = start_peak(device)
    seconds = []
    for _ in range(2):
        started = now()
        step(run, work)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(now() - started)
    trained = sum(weight.numel() for weight in run.model.parameters() if weight.requires_grad)
    return {"before": before, "extra": peak(device) - before, "seconds": min(seconds),
            "trained": trained}


def start_peak(device: str) -> float:
    """Count the peak of memory from here on, and return the MiB that are held."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def peak(device: str) -> float:
    """Return the most MiB that were held since `start_peak`."""
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else resident("VmHWM")


def measure_all(batches: list[int], repeats: int, device: str) -> None:
    """Print a table with a row for each batch size and setting; of adapters where peft is there.

    Args:
        batches: The sizes B.
        repeats: Turns of each row, of which the least is printed.
        device: "cpu" or "cuda".
    """
    has_peft = importlib.util.find_spec("peft") is not None
    settings = [flags for flags in SETTINGS if has_peft or "--lora" not in flags]
    torch.set_num_threads(1)
    print("| B | flags | trained, million | memory before | a step, beside that | seconds |")
    print("|---|---|---|---|---|---|")
    processes = multiprocessing.get_context("fork")  # what is imported is so for each row
    with tempfile.TemporaryDirectory() as folder:
        make_base(Path(folder))
        for batch in batches:
            found = {flags: [] for flags in settings}
            for _ in range(repeats):
                for flags, rows in found.items():
                    with processes.Pool(1) as pool:
                        rows.append(pool.apply(measure, (Path(folder), batch, flags.split(),
                                                         device)))
            for flags, rows in found.items():
                least = {name: min(row[name] for row in rows) for name in rows[0]}
                print(f"| {batch:,} | {f'`{flags}`' if flags else ''} | "
                      f"{least['trained'] / 1e6:.2f} | {least['before']:,.0f} MiB | "
                      f"{least['extra']:,.0f} MiB | {least['seconds']:.2f} |", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark with the arguments `argv`, or with those of the process."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128, 512, 2048])
    parser.add_argument("--repeats", type=int, default=3, help="turns of each row")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args(argv)
    with exit_on_input_error():
        measure_all(arguments.batches, arguments.repeats, arguments.device)


if __name__ == "__main__":
    main()
