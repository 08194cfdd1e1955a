"""The flags of each objective that --loss can name."""

from collections.abc import Collection
from dataclasses import dataclass

from common.flags import option
from common.options import LARGEST_COUNT, LARGEST_FLOAT
from common.presets import PRIOR_OF_EVIDENCE


@dataclass(kw_only=True)
class PosteriorOptions:
    """The options of P(match), the probability that a candidate is no negative but a match."""

    title = "P(match) of a candidate"
    posterior: str = option(
        "published", "what tells it: published, which FNE fits to similarities; evidence, for FNE "
        "alone: also the similarity of the captions, fitted to other captions of a photo, which is "
        "ours; teacher: a witness from outside (docs/teacher.md), by which FNE weighs its draws, "
        "and the other losses count a negative times 1 - P(match) (default: published, or teacher "
        "with --teacher)", choices=("published", "evidence", "teacher"),
        from_checkpoint=True, fixed=True, exclusive=True)
    prior: float = option(
        1e-4, "P(match) before anything is known of a candidate (of --posterior evidence and "
        f"teacher {PRIOR_OF_EVIDENCE}, unless given)", above=0, below=1, from_checkpoint=True)
    teacher: str | None = option(
        None, "a sentence encoder, by its name on the Hub or its folder; captions: latent "
        "dimensions of the training captions alone (captions:100 for so many); or an npz file with "
        "text_embeds (N_t, W) of the training captions", metavar="NAME", exclusive=True,
        repeat=True)
    match_bar: float | None = option(
        None, "with --teacher: a candidate whose P(match) is above it is no negative, and all "
        "others count in full", low=0, below=1, from_checkpoint=True, exclusive=True,
        metavar="P")


@dataclass(kw_only=True)
class TripletOptions(PosteriorOptions):
    """The options of the in-batch triplet loss: --loss triplet, and the warm-up of FNE."""

    title = "triplet loss, in the batch"
    margin: float = option(
        0.2, "margin of the hinge; auto: for a pretrained pair, one that fits its "
        "similarities before the first step (docs/fine_tuning.md)", low=0,
        high=LARGEST_FLOAT, from_checkpoint=True, words=("auto",), metavar="MARGIN")
    max_violation: bool = option(
        False, "in-batch triplet loss on the hardest negative, not the sum over all",
        from_checkpoint=True)
    easy_epochs: int = option(
        0, "first epochs of the triplet loss that sum over all negatives in spite of "
        "--max_violation; under the hardest alone an encoder that is trained from scratch "
        "collapses", low=0, high=LARGEST_COUNT, from_checkpoint=True)


@dataclass(kw_only=True)
class FNEOptions(TripletOptions):
    """The options of False Negative Elimination, whose warm-up is the triplet loss."""

    title = "False Negative Elimination (FNE)"
    warmup_epochs: int = option(
        1, "epochs of the in-batch triplet loss before FNE", low=0, high=LARGEST_COUNT,
        from_checkpoint=True)
    queue_size: int = option(
        8224, "M, slots of the memory bank", low=1, high=2**28, from_checkpoint=True, fixed=True)
    bank_dtype: str = option(
        "float32", "of the keys in the bank: bfloat16 takes half the memory, and half the room in "
        "a checkpoint", choices=("float32", "bfloat16"), from_checkpoint=True, fixed=True)
    momentum: float = option(
        0.995, "m, share that the momentum encoders keep in each step", low=0, below=1,
        from_checkpoint=True)
    nums_right_sims: int = option(
        200, "confident pairs an epoch must exceed before the posterior is used", low=0,
        high=LARGEST_COUNT, from_checkpoint=True)
    tau: float = option(
        0.5, "tau of the sampling weights", low=0, high=LARGEST_FLOAT, from_checkpoint=True)
    posterior_floor: float = option(
        1e-3, "posteriors up to this are taken for 0: similarity sets the weight", low=0,
        high=LARGEST_FLOAT, from_checkpoint=True)


@dataclass(kw_only=True)
class InfoNCEOptions(PosteriorOptions):
    """The options of --loss infonce, whose temperature is learned."""

    title = "InfoNCE"
    temperature: float | None = option(
        None, "temperature that the loss begins with; it is learned, down to 0.01 (default: that "
        "of a pretrained pair, which may be lower, else 0.07)", low=1e-3, high=1e3,
        from_checkpoint=True, exclusive=True, fixed=True)


@dataclass(kw_only=True)
class SigmoidOptions(PosteriorOptions):
    """The options of the pairwise sigmoid loss: --loss sigmoid."""

    title = "sigmoid loss"
    sigmoid_scale: float | None = option(
        None, "scale of the similarities that the loss begins with; it is learned, up to 100, or "
        "up to where it begins (default: that of a pretrained pair with a bias, else 10)", above=0,
        high=1e3, from_checkpoint=True, fixed=True)
    sigmoid_bias: float | None = option(
        None, "bias of the similarities that the loss begins with; it is learned (default: that of "
        "a pretrained pair that has one, else -10)", low=-1e3, high=1e3, from_checkpoint=True,
        fixed=True)


def set_posterior(options: PosteriorOptions, given: Collection[str]) -> None:
    """Set `options.posterior` and `options.prior` in place where other flags decide them.

    Args:
        options: of a run.
        given: names of the options that the command line gave.
    """
    if options.teacher is not None and "posterior" not in given:
        options.posterior = "teacher"
    if options.posterior != "published" and "prior" not in given:
        options.prior = PRIOR_OF_EVIDENCE
