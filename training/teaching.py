"""The teacher of a run: embeddings of the training captions, kept in the run's folder.

Making them takes minutes. They are used again where all that they depend on is unchanged: the
teacher and the captions.
"""

import hashlib
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from common.processes import broadcast_from_main, gather_strided
from common.ranks import is_main, rank, world_size
from common.terminal import print_status
from data import Split
from teacher.captions import FILE_SUFFIX, CaptionTeacher
from teacher.posterior import TeacherPosterior
from training.features import Features, read_features
from training.options import TrainOptions

FILE = "train_teacher_embeds.pt"
WHAT = "captions of train, as the teacher sees them"


def prepare(
    options: TrainOptions, split: Split, device: torch.device
) -> tuple[TeacherPosterior | None, list[Features]]:
    """Build the P(match) of `--teacher` for a training split.

    Args:
        options: the run's options.
        split: the training split.
        device: where the run computes.

    Returns:
        P(match) on `device`, and what `training.features.save` shall keep; None and an empty list
        without `--teacher`.

    Raises:
        InputError: the teacher cannot be loaded, or the split has too few captions for it.
    """
    if options.teacher is None:
        return None, []
    teacher = CaptionTeacher(options.teacher, lambda: split.captions, device)
    path = options.logger_name / FILE
    key = embeds = None
    is_kept = False
    if is_main():
        key = teacher.key | {"captions": texts_digest(split.captions)}
        embeds = read_features(path, key, len(split.captions), WHAT, torch.float16)
        is_kept = embeds is not None
        if embeds is None and options.resume and options.resume.parent != path.parent:
            embeds = read_features(options.resume.parent / FILE, key, len(split.captions), WHAT,
                                   torch.float16)
    embeds = broadcast_from_main(embeds)
    if embeds is None:
        start = time.monotonic()
        embeds = embed_together(teacher, split.captions)
        print_status(f"{len(split.captions):,} captions shown to the teacher in "
                     f"{time.monotonic() - start:.1f} s")
    posterior = TeacherPosterior.of_split(embeds, split, options.prior)
    return posterior.to(device), [Features(path, key, embeds, is_kept)]


def embed_together(teacher: CaptionTeacher, captions: Sequence[str]) -> Tensor:
    """Embed captions, of which each process of a run takes its share: (N_t, W) float16."""
    if not teacher.is_encoder:
        return broadcast_from_main(teacher.embed(captions) if is_main() else None)
    local = [captions[number] for number in range(rank(), len(captions), world_size())]
    return gather_strided(teacher.embed(local or [captions[0]]), len(captions))


def teacher_of_test(options: TrainOptions) -> str | None:
    """Name the teacher that a test compares with people's judgements as well.

    Returns:
        What `--teacher` names; None without it, and where a file has embeddings of the training
        captions alone.
    """
    if options.teacher is None or options.teacher.endswith(FILE_SUFFIX):
        return None
    return options.teacher


def texts_digest(captions: Sequence[str]) -> str:
    """Compute a digest of the texts of captions."""
    digest = hashlib.blake2b(digest_size=16)
    for text in captions:
        digest.update(f"{text!r}\n".encode())
    return digest.hexdigest()
