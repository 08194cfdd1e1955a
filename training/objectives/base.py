"""The interface of an objective: its inputs in a step, its result, and the state that it holds.

A run has one objective, chosen by `--loss` from `training.objectives.OBJECTIVES`. It receives the
embeddings of a step and computes the loss. Everything that belongs to the loss alone, such as a
memory bank or a learned temperature, belongs to the objective too: the training step, the
checkpoint and the logs ask the objective for it and know no loss by name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from common.errors import InputError
from data import Batch, Split
from fne_loss import BatchRanking, FNELoss, cosine, rank_batch
from memory_bank import MemoryBank
from model import DualEncoder
from teacher.posterior import TeacherPosterior
from training.true_matches import TrueMatches


@dataclass
class Step:
    """The inputs of an objective in one training step on a batch of B pairs.

    In a run of N processes each encodes its local b = B / N pairs and receives the embeddings of
    all B. In a single process b = B. D is the width of the embeddings, W of the features.
    """

    batch: Batch  # ids of all B pairs; pixels and tokens of the local b
    pixels: Tensor | None  # (b, 3, R, R) standardised; None where a frozen encoder has seen them
    image_features: Tensor  # (b, W) before the projection
    text_features: Tensor  # (b, W)
    image_embeds: Tensor  # (b, D) local rows, with gradient
    text_embeds: Tensor  # (b, D)
    all_image_embeds: Tensor  # (B, D); the gradient reaches the local rows alone
    all_text_embeds: Tensor  # (B, D)
    local: slice  # the local rows of the batch
    epoch: int  # epochs done before this step
    number: int  # steps done before this step
    previous_taken: Tensor  # () bool, whether the step before this one changed the weights
    lap: Callable[[str], None]  # books the time since its last call under a name

    @cached_property
    def similarity(self) -> Tensor:
        """(B, B) cosines of online embeddings, images in rows and texts in columns."""
        return cosine(self.all_image_embeds, self.all_text_embeds)

    @cached_property
    def ranking(self) -> BatchRanking:
        """Each pair's hardest negatives in the batch, and the confident pairs."""
        return rank_batch(self.similarity, self.batch.image_ids)


class Negatives(NamedTuple):
    """Pairs of an image and a text that a loss treated as negatives, each with its weight.

    The three shapes broadcast: (P,) each for a list of pairs; (B, 1), (1, B) and (B, B) for all
    pairs of a batch.
    """

    image_ids: Tensor  # int64, photo in the training split; negative where unknown
    text_ids: Tensor  # int64, caption in the training split; negative where unknown
    weights: Tensor  # share of the pair in the loss, not negative


class Outcome(NamedTuple):
    """The result of an objective for one step."""

    loss: Tensor  # () with gradient; gradients of it are summed over the processes
    batch_loss: Tensor  # () detached, of the whole batch, the same in all processes
    negatives: Negatives  # of the whole batch
    logs: dict[str, Tensor] = {}  # () values for TensorBoard, beside the loss, by name


class NegativeSampler(NamedTuple):
    """The parts that an objective draws negatives with, for figures that draw as it does."""

    criterion: FNELoss
    bank: MemoryBank
    momentum_model: DualEncoder
    similarity_counts: Tensor | None  # (2, bins) int64 histograms of N+ and N-, where counted
    # `Objective.match_posterior`: (A,) photos and (c,) captions -> (A, c) P(match), or None
    match_posterior: Callable[[Tensor, Tensor], Tensor | None]
    match_bar: float | None  # P(match) above which a candidate is no negative


class Objective(nn.Module):
    """A loss that `--loss` can name, with the state that belongs to it alone.

    A subclass implements `phase` and `forward`. Parameters that it registers are trained; modules
    and parameters that `entries` names are saved in the checkpoint.

    In a run of several processes each computes `forward` on the same batch, and the processes'
    gradients are summed. A loss of all embeddings (`Step.all_image_embeds`) is computed whole in
    each process: the gradient reaches the local rows alone, so that the sum is that of the batch. A
    loss of the local rows alone is divided by the number of processes. Only the gradients of the
    model are summed: parameters that the objective itself registers need a loss of all embeddings,
    whose gradient with respect to them is whole in each process.

    Args:
        options: the run's options.
        model: the online model, on its device.
        split: the training split, whose true matches may be known; None in a trial without data.

    Raises:
        InputError: `--oracle` asks for true matches that are not known.
    """

    def __init__(self, options, model: DualEncoder, split: Split | None = None):
        super().__init__()
        self.options = options
        self.teacher: TeacherPosterior | None = None  # until `set_teacher`
        self.device = next(model.parameters()).device
        self.matches = TrueMatches.of_split(split, self.device)
        self.matches.check_known(options.oracle, split)

    @classmethod
    def check_options(cls, options) -> None:
        """Check that the options can work with this objective.

        Raises:
            InputError: they cannot.
        """
        check_teacher(options)
        if options.posterior == "evidence" and options.loss != "fne":
            raise InputError(f"--posterior evidence: --loss {options.loss} does not use it; leave "
                             "the flag out, or give --loss fne")
        if options.oracle == "positives":
            raise InputError(f"--oracle positives: --loss {options.loss} takes one match of an "
                             "anchor; give --loss infonce, or --oracle alone, which excludes the "
                             "others")

    def set_teacher(self, teacher: TeacherPosterior | None) -> None:
        """Set the teacher that computes P(match), in place; None for no teacher."""
        self.teacher = teacher

    @classmethod
    def phase(cls, options, epoch: int) -> str:
        """Name the loss of an epoch, counted from 0, as it is shown to the user."""
        raise NotImplementedError

    def forward(self, step: Step) -> Outcome:
        """Compute the loss of a step."""
        raise NotImplementedError

    def excluded_in_batch(self, step: Step) -> Tensor | None:
        """Find pairs of the batch that are no negatives, beside those of one photo.

        Returns:
            (B, B) bool, images in rows and texts in columns; None if there are none. By default the
            true matches, where `--oracle` asks for that, and the pairs whose P(match) is above
            `--match_bar`.
        """
        batch, excluded = step.batch, None
        if self.options.oracle != "off":
            excluded = self.matches.in_batch(batch)  # (B, B)
        if self.options.match_bar is not None:
            posterior = self.match_posterior(batch.image_ids, batch.text_ids)  # (B, B)
            excluded = exclude_above(self.options.match_bar, posterior, excluded)
        return excluded

    def negative_weights(self, step: Step) -> Tensor | None:
        """Compute the weights 1 - P(match) of the negatives of a batch, if a teacher is asked.

        Returns:
            (B, B) in [0, 1], images in rows and texts in columns; None without a teacher, and where
            `--match_bar` decides instead.
        """
        if self.options.match_bar is not None:
            return None
        posterior = self.match_posterior(step.batch.image_ids, step.batch.text_ids)  # (B, B)
        return None if posterior is None else 1 - posterior

    def match_posterior(self, image_ids: Tensor, text_ids: Tensor) -> Tensor | None:
        """Compute P(match) of each photo with each caption by the teacher.

        This is the one place that asks the teacher: a subclass may take another witness.

        Args:
            image_ids: (A,) int64 photos in the training split; negative where unknown.
            text_ids: (c,) int64 captions in the training split; negative where unknown.

        Returns:
            (A, c) in [0, 1], 0 where unknown; None without a teacher.
        """
        return None if self.teacher is None else self.teacher.posterior(image_ids, text_ids)

    def set_margin(self, margin: float) -> None:
        """Set the margin in place, which `--margin auto` left open when the objective was made."""
        self.options.margin = margin

    def start_epoch(self) -> None:
        """Reset, in place, the state of one epoch. Called before the first step of each epoch."""

    def after_step(self, step: Step) -> None:
        """Update state in place after the optimizer's step, also if that step was left out."""

    def compiled_methods(self) -> tuple[str, ...]:
        """Name the methods that `--compile` compiles; none by default.

        They compute with tensors: what sends tensors to other processes or reads a number back
        stays outside of them.
        """
        return ()

    def entries(self) -> dict[str, nn.Module | Tensor]:
        """Name the modules and tensors that a checkpoint keeps, by their key.

        All parameters that are trained must be among them. No key may be one that
        `checkpoint.pack` uses itself.
        """
        return {}

    def check_entries(self, photos: int | None, captions: int | None) -> None:
        """Check what was loaded into `entries` from a checkpoint.

        Args:
            photos, captions: size of the training split; None where it is not known.

        Raises:
            ValueError: a value that no run can have.
        """

    def values(self) -> dict[str, Tensor | float]:
        """Give the values that TensorBoard shows of the state, by tag. May wait for the device."""
        return {}

    def sampler(self) -> NegativeSampler | None:
        """Give the parts that this objective draws negatives with; None if it draws none."""
        return None


def compile_losses(objective: Objective) -> None:
    """Compile, in place, the `compiled_methods` of an objective and of the objectives in it.

    Random numbers stay those of PyTorch: the compiler's own would draw other negatives.
    """
    for part in objective.modules():
        if isinstance(part, Objective):
            for name in part.compiled_methods():
                setattr(part, name, torch.compile(getattr(part, name), dynamic=False,
                                                  options={"fallback_random": True}))


def phases(objective: type[Objective], options) -> list[tuple[int, int, str]]:
    """List the phases of a run as (first epoch, last epoch, name), epochs counted from 1."""
    found = []
    for epoch in range(options.num_epochs):
        name = objective.phase(options, epoch)
        if found and found[-1][2] == name:
            found[-1] = found[-1][0], epoch + 1, name
        else:
            found.append((epoch + 1, epoch + 1, name))
    return found


def check_teacher(options) -> None:
    """Check that `--teacher` and the flags of its use are given together.

    A test may be given a `--teacher` that the run did without, to compare it with `--judgements`.

    Raises:
        InputError: they are not.
    """
    if options.posterior == "teacher" and options.teacher is None and not options.test:
        raise InputError("--posterior teacher: no --teacher is given; name a sentence encoder, "
                         "captions, or a file of embeddings (docs/teacher.md)")
    if options.posterior != "teacher":
        for name in "teacher", "match_bar":
            value = getattr(options, name)
            if value is not None and not (name == "teacher" and options.test):
                raise InputError(f"--{name} {value}: belongs to --posterior teacher, and the run "
                                 f"has --posterior {options.posterior}; leave one of the two out")


def other_photos(image_ids: Tensor, candidate_ids: Tensor) -> Tensor:
    """Find the candidates that show another photo than the anchor: (A, C) bool.

    Args:
        image_ids: (A,) int64, photo of each anchor.
        candidate_ids: (C,) int64, photo of each candidate; negative in an empty slot.
    """
    return (image_ids[:, None] != candidate_ids) & (candidate_ids >= 0)


def excluded_share(excluded: Tensor | None, image_ids: Tensor) -> dict[str, Tensor]:
    """Compute which share of a batch's pairs of different photos is excluded, for the logs.

    Args:
        excluded: (B, B) bool, pairs that `--oracle` or `--match_bar` excludes; None if neither is
            given.
        image_ids: (B,) int64, photo of each pair.

    Returns:
        The () share, by its name; nothing where `excluded` is None.
    """
    if excluded is None:
        return {}
    other = other_photos(image_ids, image_ids)  # (B, B)
    return {"excluded_share": (excluded & other).sum() / other.sum()}


def exclude_above(
    bar: float, posterior: Tensor | None, excluded: Tensor | None
) -> Tensor | None:
    """Add the candidates whose P(match) is above a bar to the excluded ones.

    Args:
        bar: P(match) above which a candidate is excluded.
        posterior: P(match), (A, C); None where nobody tells it.
        excluded: (A, C) bool, or None if nothing is excluded yet.

    Returns:
        (A, C) bool; None if nothing is excluded.
    """
    if posterior is None:
        return excluded
    above = posterior > bar
    return above if excluded is None else excluded | above


def hardest_negatives(ranking: BatchRanking, batch: Batch) -> Negatives:
    """Give the hardest negative of each anchor of a batch: 2 B pairs, those of i2t first."""
    texts, images = ranking.hardest_at  # (B,), (B,)
    return Negatives(
        image_ids=torch.cat([batch.image_ids, batch.image_ids[images]]),
        text_ids=torch.cat([batch.text_ids[texts], batch.text_ids]),
        weights=ranking.hardest.isfinite().flatten().float())


def weighted_pairs(weights: Tensor, batch: Batch) -> Negatives:
    """Give all pairs of a batch with `weights` (B, B), images in rows and texts in columns."""
    return Negatives(batch.image_ids[:, None], batch.text_ids[None, :], weights)
