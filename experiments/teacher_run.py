"""One run of `experiments.teacher`: trained, tested, and written as a json file.

    python -m experiments.teacher_run '{"run": {"regime": "linear", ...}, ...}'

Each run is a process of its own, so that runs go side by side on one core each. A run that was
stopped goes on. Features of frozen encoders are made by the first run that needs them, and used by
all others.
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
from torch import Tensor

import train
from common import files
from common.errors import exit_on_input_error
from common.version import commit
from data import read_split
from experiments.teacher_plan import (
    RANDOM,
    SENTENCES,
    SHUFFLED,
    WORDS,
    Places,
    TeacherRun,
    command,
    from_json,
)
from fne_loss import excluded_candidates
from metrics import judgements
from teacher.captions import CaptionTeacher
from training import storage
from training.objectives import OBJECTIVES, Entry
from training.objectives.base import Step
from training.objectives.options import TripletOptions
from training.objectives.triplet import TripletObjective

EQUALLY_HARD = 10  # neighbours in the order of similarity, among which the control draws
FREQUENT_WORDS = 2000
REPORTED = ["rsum", *(f"{side}_{key}" for side in ("i2t", "t2i") for key in ("r1", "r5", "r10"))]


class RandomBarObjective(TripletObjective):
    """The triplet loss that leaves out as many candidates as `--match_bar` would, but others.

    Of each anchor's candidates, in the order of their similarity, every `EQUALLY_HARD` neighbours
    are a group. In each group as many are left out as are above the bar, drawn at random.
    """

    def excluded_in_batch(self, step: Step) -> Tensor | None:
        """Draw the pairs that are left out: (B, B) bool, images in rows."""
        excluded = super().excluded_in_batch(step)
        if excluded is None:
            return None
        ids = step.batch.image_ids
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + step.number)
        return shuffle_equally_hard(excluded, step.similarity.detach(),
                                    excluded_candidates(ids, ids), generator)


def shuffle_equally_hard(
    excluded: Tensor, similarity: Tensor, own: Tensor, generator: torch.Generator
) -> Tensor:
    """Exclude as many candidates of each image, at random among those that are equally hard.

    Args:
        excluded: (B, B) bool, images in rows.
        similarity: (B, B) in the same layout.
        own: (B, B) bool, pairs of one photo, which are neither counted nor drawn.
        generator: of the random numbers.

    Returns:
        (B, B) bool.
    """
    order = similarity.masked_fill(own, -torch.inf).argsort(dim=1, descending=True)  # (B, B)
    group = torch.arange(len(order)) // EQUALLY_HARD  # (B,)
    shares = torch.rand(order.shape, generator=generator)  # in [0, 1)
    # Sorted by group, and at random inside each: a permutation that moves nothing out of its group.
    shuffled = (group + shares.to(order.device)).argsort(dim=1)  # (B, B)
    ranked = (excluded & ~own).gather(1, order)  # (B, B)
    # Pairs of one photo stand last. Their group is left as it is, so that none of them is drawn.
    whole_groups = (~own).sum(dim=1, keepdim=True) // EQUALLY_HARD  # (B, 1)
    moved = ranked.gather(1, shuffled).where(group < whole_groups, ranked)
    return torch.zeros_like(excluded).scatter(1, order, moved) | (excluded & own)


@contextlib.contextmanager
def random_bar(run: TeacherRun) -> Iterator[None]:
    """Have `--loss triplet` leave out random candidates inside the `with`, if the run is so."""
    if run.teacher != RANDOM:
        yield
        return
    usual = OBJECTIVES["triplet"]
    OBJECTIVES["triplet"] = Entry("experiments.teacher_run:RandomBarObjective", TripletOptions)
    try:
        yield
    finally:
        OBJECTIVES["triplet"] = usual


# --------------------------------------------------------------------------- what the runs share


def make_teachers(places: Places) -> None:
    """Write the embeddings of the teachers that are files, unless they are there."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    Path(places.work, "teachers").mkdir(parents=True, exist_ok=True)
    captions = list(read_split("flickr8k", "train", Path(places.data_path),
                               Path(places.json_path)).captions)

    def write(name: str, embeds: np.ndarray) -> None:
        files.write(places.teacher_file(name), lambda file: np.savez(file, text_embeds=embeds),
                    "--work")

    if not places.teacher_file(SENTENCES).is_file():
        teacher = CaptionTeacher(places.text_encoder, lambda: captions, torch.device("cpu"))
        write(SENTENCES, teacher.embed(captions).numpy())
    if not places.teacher_file(SHUFFLED).is_file():
        with np.load(places.teacher_file(SENTENCES)) as file:
            embeds = file["text_embeds"]
        write(SHUFFLED, np.random.default_rng(0).permutation(embeds))
    if not places.teacher_file(WORDS).is_file():
        words = TfidfVectorizer(max_features=FREQUENT_WORDS, dtype=np.float32)
        write(WORDS, words.fit_transform(captions).toarray().astype(np.float16))


def share_features(source: Path, target: Path) -> None:
    """Copy the features that one folder has to another that lacks them."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*_features.pt"):
        if not (target / path.name).exists():
            files.write(target / path.name, path.read_bytes(), "--work")


# ------------------------------------------------------------------------------------- one run


def train_and_record(run: TeacherRun, places: Places) -> None:
    """Train and test a run, and write its result."""
    began, folder = time.process_time(), places.folder(run)
    shared = Path(places.work) / "features"
    share_features(shared, folder)
    flags = command(run, places)
    settings = ["--logger_name", str(folder), "--resume", "auto", "--workers", "0", "--device",
                "cpu", "--no_figures", "--quiet"]
    usual, judgements.RESAMPLES = judgements.RESAMPLES, 1  # no interval is read, and 200 take 18 s
    try:
        with random_bar(run):
            train.main([*flags, *settings])
    finally:
        judgements.RESAMPLES = usual
    share_features(folder, shared)
    metrics = files.read_json(folder / storage.RESULTS, files.MAX_RESULT_BYTES)
    people = metrics["judgements"]["similarity"]
    result = {
        "run": asdict(run), "command": " ".join(["python train.py", *shown(flags, places)]),
        "test": {name: metrics[name] for name in REPORTED}
        | {name: people[name][0] for name in ("ap", "auroc")},
        "left_out": share_left_out(folder),
        "seconds": round(time.process_time() - began, 1), "commit": commit(),
        "torch": torch.__version__, "threads": torch.get_num_threads(),
    }
    files.write(places.result(run), f"{json.dumps(result, indent=1)}\n".encode(), "--results")
    for path in list(folder.iterdir()):  # of a hundred runs they would fill a disk
        path.unlink()
    folder.rmdir()


def shown(flags: list[str], places: Places) -> list[str]:
    """Return flags with file names in place of the paths of this machine."""
    paths = {places.data_path: "$DATA_PATH/flickr8k/images",
             places.json_path: "$DATA_PATH/flickr8k",
             places.judgements: "flickr8k_crowd_judgements.json",
             places.image_encoder: "$DATA_PATH/mobilenet_v2",
             places.text_encoder: "sentence-transformers/all-MiniLM-L6-v2"}
    return [paths.get(flag, flag.replace(places.work, "runs/teacher")) for flag in flags]


def share_left_out(folder: Path) -> float | None:
    """Return the share of the candidates that were no negatives, the mean over the steps."""
    events = EventAccumulator(str(folder)).Reload()
    tag = "train/excluded_share"
    if tag not in events.Tags()["scalars"]:
        return None
    return float(np.mean([event.value for event in events.Scalars(tag)]))


if __name__ == "__main__":
    with exit_on_input_error():
        train_and_record(*from_json(sys.argv[1]))
