"""The options of train.py. Loads no torch, so that --help is printed at once.

The flags of an objective are declared in `training/objectives/options.py`; `options_class` adds
those of every entry of `OBJECTIVES`.
"""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import common.options
from common.errors import InputError
from common.flags import flags_of, option
from common.options import (
    LARGEST_BATCH,
    LARGEST_COUNT,
    LARGEST_FLOAT,
    EncodingOptions,
    set_data_path,
    with_preset,
)
from common.parser import Parser, build_parser, given_values
from common.presets import RECIPES, USUAL_AMBIGUITY, presets_help
from common.ranks import world_size
from training.objectives import OBJECTIVES, objective_class
from training.objectives.options import (
    FNEOptions,
    InfoNCEOptions,
    SigmoidOptions,
    set_posterior,
)

# ------------------------------------------------------------------------------------------- groups


@dataclass(kw_only=True)
class ObjectiveOptions:
    """The options that every objective has."""

    title = "objective"
    loss: str = option(
        "fne", "the method, or a loss that uses the batch alone throughout", choices=OBJECTIVES,
        from_checkpoint=True, fixed=True)
    oracle: str = option(
        "off", "exclude all true matches from the candidates of the loss, where they are known "
        "(shapes, or train's _matches.json); positives: InfoNCE takes those of the batch as "
        "further positives; a bound, no method", choices=("off", "exclude", "positives"),
        const="exclude", from_checkpoint=True)


@dataclass(kw_only=True)
class TrainingOptions:
    """The options of the optimisation."""

    title = "training"
    recipe: str | None = option(
        None, "a way of training, over the preset of the dataset; clip: fine-tune a pretrained "
        "pair as is usual; frozen: projections on frozen encoders (docs/fine_tuning.md)",
        choices=RECIPES, from_checkpoint=True, fixed=True)
    augment: str = option(
        "published", "training photos: crop, flip and two random operations, or as in tests",
        choices=("published", "none"), from_checkpoint=True)
    freeze: str | None = option(
        None, "encoder that is not trained (its projection is); its features are made once, those "
        "of photos under --augment none", choices=("image", "text", "both"),
        from_checkpoint=True, fixed=True)
    lora: int = option(
        0, "rank of low-rank adapters (LoRA, of peft) of the linear layers in attention and MLP: "
        "they and the projections are trained, and the encoders' own weights stay; 0 for all "
        "weights", low=0, high=2**16, from_checkpoint=True, fixed=True)
    lora_alpha: int = option(
        8, "of --lora: adapters count alpha / rank times", low=1, high=10**6,
        from_checkpoint=True, fixed=True)
    lora_dropout: float = option(
        0.0, "of --lora: share of an adapter's inputs that are dropped", low=0, below=1,
        from_checkpoint=True, fixed=True)
    base_dtype: str = option(
        "float32", "of --lora: type of the weights beside the adapters; bfloat16 halves their "
        "memory, and the encoders then compute in it (--precision bf16)",
        choices=("float32", "bfloat16"), from_checkpoint=True, fixed=True)
    num_epochs: int = option(
        25, "epochs, warm-up included", low=1, high=10**6, from_checkpoint=True)
    batch_size_train: int = option(
        32, "B, pairs in a step of all processes together", low=1, high=LARGEST_BATCH,
        from_checkpoint=True, fixed=True)
    optimizer: str = option(
        "adam", "Adam, or AdamW, whose weight decay does not pass through the moments",
        choices=("adam", "adamw"), from_checkpoint=True, fixed=True)
    weight_decay: float = option(
        0.0, "of all trained weights but biases, norms and other vectors, and numbers such as the "
        "logit scale", low=0, high=LARGEST_FLOAT, from_checkpoint=True, fixed=True)
    learning_rate: float = option(
        2e-5, "of the optimizer", low=0, high=LARGEST_FLOAT, from_checkpoint=True)
    image_lr: float | None = option(
        None, "learning rate of the image encoder (default: --learning_rate)", low=0,
        high=LARGEST_FLOAT, from_checkpoint=True, fixed=True)
    text_lr: float | None = option(
        None, "learning rate of the text encoder (default: --learning_rate)", low=0,
        high=LARGEST_FLOAT, from_checkpoint=True, fixed=True)
    head_lr: float | None = option(
        None, "learning rate of the projections of --embed_size and of the loss's own parameters "
        "(default: --learning_rate)", low=0, high=LARGEST_FLOAT, from_checkpoint=True, fixed=True)
    layer_decay: float = option(
        1.0, "factor between the learning rates of a layer and of the next one in an encoder; what "
        "comes after its last layer has the encoder's own rate", above=0, high=1,
        from_checkpoint=True, fixed=True)
    lr_milestones: list[int] = option(
        [5, 15], "with --lr_schedule steps, after these many epochs the learning rate falls to a "
        "tenth", low=0, high=LARGEST_COUNT, from_checkpoint=True)
    lr_update: int = option(
        0, "fall every so many epochs instead of at --lr_milestones; 0 for not", low=0,
        high=LARGEST_COUNT, from_checkpoint=True)
    lr_warmup: int = option(
        0, "steps over which the learning rate rises from 0 at the start", low=0,
        high=LARGEST_COUNT, from_checkpoint=True)
    lr_schedule: str = option(
        "steps", "fall of the learning rate after --lr_warmup: by --lr_milestones or --lr_update, "
        "or to 0 at the end of the run, as half a cosine or as a line",
        choices=("steps", "cosine", "linear"), from_checkpoint=True)
    grad_clip: float = option(
        2.0, "largest norm of the gradient; 0 for no limit", low=0, high=1e30,
        from_checkpoint=True)
    grad_checkpointing: bool = option(
        False, "less memory for a third more computing: activations are made again on the way back",
        from_checkpoint=True)
    chunk: int = option(
        0, "gradient caching: pairs that a process encodes at a time, so that activations take the "
        "memory of so few, whatever B is, for one more forward pass; 0 for all at once", low=0,
        high=LARGEST_BATCH, from_checkpoint=True)
    shard: bool = option(
        False, "of several processes each keeps a share of Adam's moments, for one more sending of "
        "the weights in a step", from_checkpoint=True)
    comm_dtype: str = option(
        "float32", "of several processes: type in which gradients are sent and added up; bfloat16 "
        "sends half the bytes", choices=("float32", "bfloat16"), from_checkpoint=True)
    compile: bool = option(
        False, "torch.compile encoders and loss: a slow start, then steps that may be faster "
        "(docs/speed.md)", from_checkpoint=True)
    deterministic: bool = option(
        False, "on a GPU: a run that is repeated, or goes on, ends in the same bits; slower",
        from_checkpoint=True)
    seed: int = option(
        3407, "of weights, order and draws", low=0, high=2**63 - 1, from_checkpoint=True,
        fixed=True)


@dataclass(kw_only=True)
class RunOptions:
    """The options that say where a run is kept, what it goes on from, and what it prints."""

    title = "run"
    logger_name: Path | None = option(
        None, "folder of checkpoints and logs (default: runs/DATASET_LOSS)")
    resume: Path | None = option(
        None, "checkpoint to go on from, or to test; auto: the newest good one of the run's own "
        "folder, or a fresh start where there is none")
    init: Path | None = option(
        None, "start a new run from a model: a pretrained pair, by its name on the Hub or its "
        "folder, or a folder of export.py", metavar="MODEL")
    test: bool = option(
        False, "score the test split with the run's best checkpoint, or --resume's")
    val_times: int = option(
        3, "validations an epoch, evenly spread, the last at its end (0 as 1); the run begins with "
        "one more", low=0, high=10**6, from_checkpoint=True)
    val_step: int = option(
        0, "validate every so many steps instead of --val_times; 0 for not", low=0,
        high=LARGEST_COUNT, from_checkpoint=True)
    save_step: int = option(
        0, "save every so many steps, beside after each validation; 0 for not", low=0,
        high=LARGEST_COUNT, from_checkpoint=True)
    max_bad_photos: int = option(
        100, "photos of the training split that may turn out broken, and be replaced, before the "
        "run stops", low=0, high=LARGEST_COUNT, from_checkpoint=True)
    log_step: int = option(
        10, "steps between logged values", low=1, high=LARGEST_COUNT, from_checkpoint=True)
    no_figures: bool = option(False, "no figures and galleries in TensorBoard", repeat=True)
    quiet: bool = option(
        False, "no progress bars and no line per validation; results and errors only")


@dataclass(kw_only=True)
class TrainOptions(EncodingOptions, ObjectiveOptions, FNEOptions, InfoNCEOptions, SigmoidOptions,
                   TrainingOptions, RunOptions):
    """The options of train.py. `options_class` adds the flags of further objectives."""


def options_class() -> type[TrainOptions]:
    """Return the class of train.py's options, with the flags of every entry of `OBJECTIVES`.

    That is `TrainOptions` itself, or where an entry brings flags that it lacks, a class that
    inherits both.
    """
    added = [flags for flags in dict.fromkeys(entry.flags for entry in OBJECTIVES.values())
             if not issubclass(TrainOptions, flags)]
    # A class that another one inherits comes with that one.
    bases = [flags for flags in added
             if not any(issubclass(other, flags) for other in added if other is not flags)]
    if not bases:
        return TrainOptions
    return dataclasses.make_dataclass("TrainOptions", [], bases=(TrainOptions, *bases),
                                      kw_only=True)


# ---------------------------------------------------------------------------------- layers, checks


def build_train_parser(description: str) -> Parser:
    """Return the parser of train.py."""
    return build_parser(options_class(), description, presets_help())


def parse(description: str, argv: list[str] | None = None) -> tuple[TrainOptions, set[str]]:
    """Return the options of train.py, and the names of those that the command line itself gave.

    A checkpoint may then set the others: `checkpoint.merge_options`.

    Args:
        description: the text that --help begins with.
        argv: the command line; None for that of the process.
    """
    given = given_values(build_train_parser(description), argv)
    options = with_preset(options_class(), given)
    if options.logger_name is None:
        options.logger_name = default_folder(options)
    set_data_path(options, given)
    set_posterior(options, given)
    set_precision(options, given)
    # An automatic resume stays in the folder in which it looks, wherever that was moved to.
    found_there = {"logger_name"} if options.resume == Path("auto") else set()
    return options, set(given) | found_there


def set_precision(options: TrainOptions, given: Collection[str]) -> None:
    """Set `options.precision` in place to bf16 where --base_dtype needs it, unless it is given."""
    if options.base_dtype == "bfloat16" and "precision" not in given:
        options.precision = "bf16"


def default_folder(options: TrainOptions) -> Path:
    """Return the folder of a run whose --logger_name is not given."""
    return Path("runs") / f"{options.dataset}_{options.loss.upper()}"


def check(options: TrainOptions) -> None:
    """Raise InputError where a value cannot work; called once all layers are in place."""
    common.options.check(options)
    if options.ambiguity != USUAL_AMBIGUITY and options.dataset != "shapes" and not options.test:
        raise InputError(f"--ambiguity {options.ambiguity}: --dataset {options.dataset} has the "
                         "captions that it has; leave the flag out, or give --dataset shapes")
    check_exclusive(options)
    check_optimizer(options)
    check_lora(options)
    if not options.test and options.batch_size_train % world_size():
        below = options.batch_size_train // world_size() * world_size()
        sizes = f"{below} or {below + world_size()}" if below else str(world_size())
        raise InputError(f"--batch_size_train {options.batch_size_train}: {world_size()} processes "
                         f"cannot share it alike; make it {sizes}")
    objective_class(options.loss).check_options(options)


def check_optimizer(options: TrainOptions) -> None:
    """Raise InputError where a flag asks for a learning rate that nothing would have."""
    for side in "image", "text":
        rate = getattr(options, f"{side}_lr")
        if rate is not None and options.freeze in (side, "both"):
            raise InputError(f"--{side}_lr {rate}: --freeze {options.freeze} does not train the "
                             f"{side} encoder; leave one of the two out")
    if options.lr_update and options.lr_schedule != "steps":
        raise InputError(f"--lr_update {options.lr_update}: --lr_schedule {options.lr_schedule} "
                         "has no steps; leave one of the two out")


def check_lora(options: TrainOptions) -> None:
    """Raise InputError where a flag of --lora is given without it, or against another flag."""
    flags = flags_of(TrainingOptions)
    for name in "lora_alpha", "lora_dropout", "base_dtype":
        value = getattr(options, name)
        if not options.lora and value != flags[name].default:
            raise InputError(f"--{name} {value}: belongs to --lora; leave the flag out, or give "
                             "--lora 16")
    if options.lora and options.freeze == "both":
        raise InputError(f"--lora {options.lora}: --freeze both leaves no encoder to adapt; leave "
                         "one of the two out")
    if options.base_dtype == "bfloat16" and options.precision == "fp32":
        raise InputError("--base_dtype bfloat16: the encoders then compute in bf16; leave out "
                         "--precision fp32")


def check_exclusive(options: TrainOptions) -> None:
    """Raise InputError where a flag asks for what only another objective than `--loss` has."""
    declared = flags_of(OBJECTIVES[options.loss].flags)
    for name, flag in flags_of(type(options)).items():
        value = getattr(options, name)
        unused = flag.exclusive and value != flag.default or value in flag.words
        if unused and name not in declared:
            losses = [loss for loss, entry in OBJECTIVES.items() if name in flags_of(entry.flags)]
            raise InputError(f"--{name} {value}: --loss {options.loss} does not use it; leave the "
                             f"flag out, or give --loss {' or '.join(losses)}")
