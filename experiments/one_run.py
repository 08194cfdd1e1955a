"""One run of an experiment: a warm-up, or what comes after it in one of several ways.

    python -m experiments.one_run '{"dose": 10, "seed": 1, ...}'

Each run is a process of its own, so that runs go side by side on one core each. A warm-up leaves
its checkpoint. A branch goes on from that checkpoint, exactly as `train.py --resume` would, with
another loss, with the oracle, or with its batches and draws in another order. At its end val and
test are scored, and a json file holds the result. A run that was stopped goes on.
"""

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import checkpoint
import evaluation
import train
from common import files
from common.errors import exit_on_input_error
from common.presets import PRIOR_OF_EVIDENCE
from common.version import commit
from data import read_split
from experiments.flags import USES
from experiments.plan import (
    AGAIN_OFFSET,
    WARM_UP,
    Configuration,
    Protocol,
    from_json,
    make_data,
    shapes_sizes_of,
)
from experiments.uses import use_in_place, witness_log_odds
from fne_loss import RunningBivariateGaussian
from metrics.judgements import average_precision
from metrics.true_matches import true_match_share
from training import storage

REPORTED = ["rsum", *(f"{side}_{key}" for side in ("i2t", "t2i")
                      for key in ("r1", "r5", "r10", "map_at_r", "r_precision"))]


def warm_up_command(configuration: Configuration, protocol: Protocol) -> list[str]:
    """Return the flags of train.py for a warm-up: the triplet loss trains as that of FNE does."""
    epochs = str(protocol.warmup_epochs)
    loss = "infonce" if configuration.loss == "infonce" else "fne"
    return ["--dataset", "shapes", "--ambiguity", configuration.dose, "--max_violation", "--loss",
            loss, "--warmup_epochs", epochs, "--num_epochs", epochs, "--seed",
            str(configuration.seed), *protocol.more]


def branch_command(configuration: Configuration, protocol: Protocol) -> list[str]:
    """Return the flags of train.py for a branch: the triplet loss goes on by a longer warm-up."""
    epochs = str(protocol.warmup_epochs + protocol.branch_epochs)
    longer = ["--warmup_epochs", epochs] if configuration.loss == "triplet" else []
    return ["--num_epochs", epochs, "--oracle", configuration.oracle, *longer]


def start(configuration: Configuration, protocol: Protocol) -> None:
    """Put the warm-up's last state into a branch's folder, unless the branch has one already."""
    path = configuration.folder(protocol) / storage.NEWEST
    if path.is_file():
        return
    state = checkpoint.read(configuration.warm_up.folder(protocol) / storage.NEWEST)
    # The branch takes over neither the warm-up's best rsum nor its steps since the last log.
    state["best_rsum"], state["logs"] = -1.0, []
    if configuration.again:
        # From the seed follow the order of pairs, dropout and draws of all steps to come.
        state["options"]["seed"] += AGAIN_OFFSET
    if configuration.use and configuration.loss == "fne":
        # A warm-up has no statistics of the evidence yet, and is the same without.
        state["options"] |= {"posterior": "evidence", "prior": PRIOR_OF_EVIDENCE}
        for name in "same", "different":
            state["criterion"] |= {f"{name}.{key}": value for key, value in
                                   RunningBivariateGaussian().state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.save(path, state)


def run(configuration: Configuration, protocol: Protocol) -> None:
    """Train, and of a branch measure and write the result."""
    began, folder = time.monotonic(), configuration.folder(protocol)
    data = make_data(configuration, protocol)
    if configuration.use:
        remove_run(folder, storage.RUN_FILES)  # a use's state is in no checkpoint
    if configuration.oracle == WARM_UP:
        command = warm_up_command(configuration, protocol)
    else:
        start(configuration, protocol)
        command = branch_command(configuration, protocol)
    folders = ["--data_path", str(data), "--logger_name", str(folder), "--resume", "auto"]
    settings = ["--workers", "0", "--device", "cpu", "--no_figures", "--quiet"]
    loss = "infonce" if configuration.loss == "infonce" else "fne"  # whose warm-up is triplet
    use = use_in_place(configuration.use, loss) if configuration.use else no_use()
    with shapes_sizes_of(protocol), use as use_flags:
        train.main([*command, *folders, *settings, *use_flags])
    if configuration.oracle == WARM_UP:
        return
    result = {
        "configuration": asdict(configuration),
        "protocol": protocol.record,
        "warm_up_command": command_text(warm_up_command(configuration.warm_up, protocol)),
        "command": ("python -m experiments.dose --losses --again 0 --doses "
                    f"{configuration.dose} --seeds {configuration.seed} --uses {configuration.use}"
                    if configuration.use else command_text(command)),
        "true_matches": true_match_share(read_split("shapes", "train", data).matches),
        "witness_ap": witness_precision(configuration, data),
        "false_negatives": false_negatives(configuration, folder),
        "val": scores(folder, data, "val"), "test": scores(folder, data, "test"),
        "seconds": round(time.monotonic() - began, 1),
        "commit": commit(), "torch": torch.__version__, "threads": torch.get_num_threads(),
    }
    text = json.dumps(result, indent=2)
    files.write(configuration.result(protocol), f"{text}\n".encode(), "--results")
    remove_run(folder, (storage.NEWEST, storage.BEST))  # a hundred of them would fill a disk


def witness_precision(configuration: Configuration, data: Path) -> float | None:
    """Return the average precision of a witness's word on the training split; None without one."""
    distance = USES[configuration.use].witness if configuration.use else None
    if distance is None:
        return None
    split = read_split("shapes", "train", data)
    log_odds = witness_log_odds(torch.from_numpy(split.matches), distance)
    other = split.image_of_text[:, None] != np.arange(len(split.images))  # (N_t, N_i)
    return average_precision(split.matches[other], log_odds.numpy()[other])


def remove_run(folder: Path, patterns: tuple[str, ...]) -> None:
    """Remove the files of a run from its folder whose names fit one of the patterns."""
    for pattern in patterns:
        for path in list(folder.glob(pattern)):
            path.unlink()


@contextlib.contextmanager
def no_use() -> Iterator[list[str]]:
    """Leave the objectives as they are; yields no flags."""
    yield []


def command_text(flags: list[str]) -> str:
    """Return a command as it could be typed, without the folders that it reads and writes."""
    return " ".join(["python train.py", *flags])


def scores(folder: Path, data: Path, split: str) -> dict[str, float]:
    """Score the last state of a run on a split, not its best, which would favour lucky moments."""
    output = folder / f"{split}.json"
    evaluation.main([str(folder / storage.NEWEST), "--data_path", str(data), "--split", split,
                     "--output", str(output), "--workers", "0", "--device", "cpu"])
    metrics = files.read_json(output, files.MAX_RESULT_BYTES)
    return {name: metrics[name] for name in REPORTED}


def false_negatives(configuration: Configuration, folder: Path) -> float | None:
    """Return the share of true matches among the negatives of a run, in percent.

    It is the mean over the steps; None where a use in InfoNCE weighs negatives otherwise than the
    measurement does, or nothing was logged.
    """
    if configuration.use and configuration.loss == "infonce":
        return None
    accumulator = EventAccumulator(str(folder)).Reload()
    tag = "train/false_negative_share"
    if tag not in accumulator.Tags()["scalars"]:
        return None
    values = [event.value for event in accumulator.Scalars(tag)]
    known = [value for value in values if value == value]
    return 100 * sum(known) / len(known) if known else None


def run_words(text: str) -> None:
    """Run what the command's one argument describes, which `plan.to_json` made."""
    with exit_on_input_error():
        run(*from_json(text))


if __name__ == "__main__":
    run_words(sys.argv[1])
