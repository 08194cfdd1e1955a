"""Train one epoch on real photos with encoders of the published size, and measure its input.

    python benchmarks/photo_epoch.py --photos $DATA_PATH/images --json_path $DATA_PATH
    python benchmarks/photo_epoch.py --photos $DATA_PATH/images --device cuda --workers 16
    python benchmarks/photo_epoch.py --photos $DATA_PATH/images --short

The photos are those of Flickr8k's training split, augmented as published, in steps of FNE at 384
with a ViT-B/16 and a BERT base of random weights. It prints photos a second, the share of the time
in which the device waits for the loader, and the most memory of a step in the first and in the last
quarter of the steps, which do not differ unless something grows. Memory is what is allocated on a
GPU, or what this process holds on a CPU. It runs on Linux only.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

from memory import peak, start_peak
from timing import now
from training_step import PUBLISHED_ENCODERS

from checkpoint import model_for_training
from common.device import pick_device
from common.errors import InputError, exit_on_input_error
from data import load_train_set, make_train_loader
from encoders import loading
from encoders.processors import load_tokenizer, photo_fit, resolve_preparation
from inputs.loader import close_workers
from train import training_step
from training.options import parse
from training.run import Run, build_run

PUBLISHED = ["--image_encoder", "vit-base", "--text_encoder", "bert-base", "--image_res", "384",
             "--augment", "published", "--batch_size_train", "32", "--queue_size", "8224",
             "--embed_size", "0"]
SHORT = ["--image_encoder", "small-vit", "--text_encoder", "small-bert", "--image_res", "32",
         "--batch_size_train", "4", "--queue_size", "8", "--embed_size", "16"]


class Epoch(NamedTuple):
    """What was measured of an epoch, or of as many of its steps as there was time for."""

    steps: int  # done
    of_steps: int  # of the whole epoch
    photos_per_second: float
    waiting_share: float  # of the time, for the loader
    first_peak: float  # MiB, the most in a step of the first quarter
    last_peak: float  # of the last quarter


def make_run(flags: list[str]):
    """Return a run at the start of FNE on the training split that `flags` of train.py name, and the
    loader of its photos."""
    options, _ = parse("", ["--dataset", "flickr8k", "--warmup_epochs", "0", "--easy_epochs", "0",
                            *flags])
    tokenizer = load_tokenizer("small-bert", options.vocab)
    with mock.patch.dict(loading.BUILT_IN, PUBLISHED_ENCODERS):
        resolve_preparation(options)
        train_set = load_train_set(options, tokenizer)
        model = model_for_training(options, None, None, tokenizer)
    loader = make_train_loader(options, train_set, pick_device(options.device).type == "cuda",
                               photo_fit(options))
    return build_run(options, model, tokenizer, len(loader.batch_sampler), train_set), loader


def train_epoch(run: Run, loader, seconds: float) -> Epoch:
    """Train one epoch, which changes `run` in place.

    Args:
        run: A run at its start.
        loader: Of its training pairs; closed at the end.
        seconds: The time after which no further step is begun.
    """
    device, peaks, started = run.device.type, [], now()
    run.train_mode()
    run.clock.lap(None)
    start_peak(device)
    try:
        for batch in loader:
            training_step(run, batch.to(run.device))
            run.logs.clear()
            run.global_step += 1
            peaks.append(peak(device))
            start_peak(device)
            if now() - started > seconds:
                break
    finally:
        close_workers(loader)
    laps, quarter = run.clock.seconds(), max(1, len(peaks) // 4)
    photos = len(peaks) * run.options.batch_size_train
    return Epoch(len(peaks), run.steps_per_epoch, photos / laps.total(),
                 laps["data"] / laps.total(), max(peaks[:quarter]), max(peaks[-quarter:]))


def main(argv: list[str] | None = None) -> Epoch:
    """Run the benchmark with the arguments `argv`, or with those of the process."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, metavar="DIR", required=True,
                        help="folder of Flickr8k's photos")
    parser.add_argument("--json_path", type=Path, metavar="DIR",
                        help="folder of its split files (default: beside the photos)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--workers", type=int, default=4, help="processes that load photos")
    parser.add_argument("--seconds", type=float, default=600, help="after which it ends early")
    parser.add_argument("--short", action="store_true",
                        help="small encoders and photos, to see that it runs")
    arguments = parser.parse_args(argv)
    with exit_on_input_error():
        if sys.platform != "linux":
            raise InputError("memory is read from /proc, which only Linux has")
        flags = ["--data_path", str(arguments.photos), "--device", arguments.device,
                 "--workers", str(arguments.workers), *(SHORT if arguments.short else PUBLISHED)]
        if arguments.json_path is not None:
            flags += ["--json_path", str(arguments.json_path)]
        found = train_epoch(*make_run(flags), arguments.seconds)
    print("| steps | photos a second | waiting for the loader | memory, first quarter | last |")
    print("|---|---|---|---|---|")
    print(f"| {found.steps:,} of {found.of_steps:,} | {found.photos_per_second:,.1f} | "
          f"{100 * found.waiting_share:.0f} % | {found.first_peak:,.0f} MiB | "
          f"{found.last_peak:,.0f} MiB |")
    return found


if __name__ == "__main__":
    main()
