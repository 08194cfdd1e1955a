"""The options of the commands: their fields, how their values layer, and what cannot work.

    default  <  preset of the dataset  <  checkpoint (--resume, --test)  <  the command line

The defaults are the published setting. `parse` gives the options and the set of flags that the
command line itself named, so that a checkpoint can fill in the rest.

The options of a command are a typed namespace: a class for each group of flags, with a field for
each flag, so that an editor leads from a use to the flag. `tests/common/test_options.py` compares
the fields with the parser.
"""

import argparse
from pathlib import Path

from common.errors import InputError
from common.files import check_path, is_unicode
from common.flags import (
    AMBIGUITIES,
    CHECKING,
    PRESETS,
    PRIOR_OF_EVIDENCE,
    SCORING,
    TRAINING,
    USUAL_AMBIGUITY,
    build_parser,
    default_data_path,
)
from common.ranks import world_size

# What a number may be, both ends included. The upper ends are far above all that makes sense: they
# keep a slip of the pen from filling the memory, or counting for ever.
COUNT = 2**53
LONGEST_PREFIX = 1000  # letters, which are cleaned and tokenised with each caption
RANGES = {
    "image_res": (1, 8192), "max_words": (1, 10**6), "max_tokens": (3, 10**6),
    "batch_size_train": (1, 2**20), "batch_size_test": (1, 2**20), "queue_size": (1, 2**28),
    "num_epochs": (1, 10**6), "log_step": (1, COUNT), "embed_size": (0, 2**16),
    "warmup_epochs": (0, COUNT), "easy_epochs": (0, COUNT), "nums_right_sims": (0, COUNT),
    "workers": (0, 1024), "val_times": (0, 10**6), "val_step": (0, COUNT), "lr_update": (0, COUNT),
    "lr_warmup": (0, COUNT), "save_step": (0, COUNT), "max_bad_photos": (0, COUNT),
    "seed": (0, 2**63 - 1), "grad_clip": (0, 1e30), "margin": (0, 1e6), "tau": (0, 1e6),
    "posterior_floor": (0, 1e6), "learning_rate": (0, 1e6),
}

# ------------------------------------------------------------------------------------------- fields


class SourceOptions(argparse.Namespace):
    """Where photos and captions are: `add_source_flags`."""

    dataset: str
    ambiguity: str
    data_path: Path  # None on the command line alone: `check` refuses that
    val_path: Path | None
    test_path: Path | None
    json_path: Path | None
    image_column: str | None
    caption_column: str | None
    follow_links: bool
    cache: Path | None
    max_words: int
    workers: int


class DataOptions(argparse.Namespace):
    """How they are read: `add_data_flags`."""

    image_res: int
    image_stats: str
    caption_prefix: str
    max_tokens: int
    all_captions: bool
    judgements: Path | None
    batch_size_test: int


class ModelOptions(argparse.Namespace):
    """What encodes them: `add_model_flags`."""

    image_encoder: str
    text_encoder: str
    vocab: str
    embed_size: int
    image_pooling: str
    text_pooling: str
    device: str
    precision: str


class MethodOptions(argparse.Namespace):
    """The loss: `add_method_flags`."""

    loss: str
    oracle: str
    posterior: str
    margin: float
    max_violation: bool
    easy_epochs: int
    warmup_epochs: int
    queue_size: int
    bank_dtype: str
    momentum: float
    nums_right_sims: int
    tau: float
    prior: float
    posterior_floor: float


class TrainingOptions(argparse.Namespace):
    """The optimisation: `add_training_flags`."""

    augment: str
    freeze: str | None
    num_epochs: int
    batch_size_train: int
    learning_rate: float
    lr_milestones: list[int]
    lr_update: int
    lr_warmup: int
    grad_clip: float
    grad_checkpointing: bool
    shard: bool
    compile: bool
    deterministic: bool
    seed: int


class RunOptions(argparse.Namespace):
    """What a run keeps, says and goes on from: `add_run_flags`."""

    logger_name: Path
    resume: Path | None
    init: Path | None
    test: bool
    val_times: int
    val_step: int
    save_step: int
    max_bad_photos: int
    log_step: int
    no_figures: bool
    quiet: bool


class Brought(argparse.Namespace):
    """What goes with the options and is no flag: what a checkpoint, or the folder of --init, brings
    along. `checkpoint.merge_options` and `checkpoint.begin_from` set it; it is never saved."""

    stored: object | None = None  # `encoders.stored.StoredEncoders`, of the encoders
    first_weights: dict | None = None  # of --init


class TrainOptions(SourceOptions, DataOptions, ModelOptions, MethodOptions, TrainingOptions,
                   RunOptions, Brought):
    """Of train.py."""


class ScoringOptions(TrainOptions):
    """Of evaluation.py: `add_scoring_flags`, those of data and model, and what only training uses
    at its default or as the scored checkpoint has it."""

    checkpoint: Path | None
    split: str
    output: Path | None
    report: Path | None
    save_embeddings: Path | None
    embeddings: Path | None


class CheckingOptions(SourceOptions):
    """Of scripts/check_data.py."""


# What a checkpoint may say of the run that made it: the options that describe the model and its
# training. No path to write, no path to read and no permission is among them: those come from the
# command line alone.
FROM_CHECKPOINT = (
    {"dataset", "ambiguity", "max_words", "val_times", "val_step", "save_step", "max_bad_photos",
     "log_step", "no_figures"}
    | DataOptions.__annotations__.keys() | ModelOptions.__annotations__.keys()
    | MethodOptions.__annotations__.keys() | TrainingOptions.__annotations__.keys()
) - {"judgements", "device"}

# What a command that goes on must be told again, where it was given.
SOURCES = "data_path", "val_path", "test_path", "json_path", "image_column", "caption_column"

# ------------------------------------------------------------------------------- parsers and layers


def given_flags(parser: argparse.ArgumentParser, argv: list[str] | None) -> set[str]:
    """The options that the command line itself gives."""
    marker = object()
    marked = argparse.Namespace(**dict.fromkeys(vars(parser.parse_args(argv)), marker))
    return {name for name, value in vars(parser.parse_args(argv, marked)).items()
            if value is not marker}


def parse(description: str, argv: list[str] | None = None) -> tuple[TrainOptions, set[str]]:
    """The options of train.py, and the names of those that the command line itself gave."""
    dataset = build_parser(description, TRAINING, {}).parse_args(argv).dataset
    parser = build_parser(description, TRAINING, PRESETS[dataset])
    options = parser.parse_args(argv, TrainOptions())
    if options.logger_name is None:
        options.logger_name = default_folder(options)
    given = given_flags(parser, argv)
    settle_data_path(options, given)
    if options.posterior == "evidence" and "prior" not in given:
        options.prior = PRIOR_OF_EVIDENCE
    # An automatic resume stays in the folder in which it looks, wherever that was moved to.
    found_there = {"logger_name"} if options.resume == Path("auto") else set()
    return options, given | found_there


def settle_data_path(options: SourceOptions, given: set[str]) -> None:
    """Where nobody has `given` --data_path, set it to the folder that the dataset has by itself."""
    known = options.dataset in list(PRESETS) and options.ambiguity in AMBIGUITIES
    if known and "data_path" not in given:  # a checkpoint may say anything
        options.data_path = default_data_path(options.dataset, options.ambiguity)


def default_folder(options: TrainOptions) -> Path:
    """Where a run is kept that nobody has named a folder for."""
    return Path("runs") / f"{options.dataset}_{options.loss.upper()}"


def parse_scoring(
    description: str, argv: list[str] | None = None
) -> tuple[ScoringOptions, set[str]]:
    """The options of evaluation.py, likewise; what only training uses is at its default."""
    options = build_parser(description, TRAINING, {}).parse_args([], ScoringOptions())
    options.test = True
    parser = build_parser(description, SCORING, {})
    for action in parser._actions:
        if action.dest in FROM_CHECKPOINT:
            action.default = argparse.SUPPRESS  # in `options` already; a checkpoint has its own
    return parser.parse_args(argv, options), given_flags(parser, argv)


def parse_checking(description: str, argv: list[str] | None = None) -> CheckingOptions:
    """The options of scripts/check_data.py; those of the dataset's preset that it has."""
    options = build_parser(description, CHECKING, {}).parse_args(argv)
    own = {name: value for name, value in PRESETS[options.dataset].items() if name in options}
    parser = build_parser(description, CHECKING, own)
    options = parser.parse_args(argv, CheckingOptions())
    settle_data_path(options, given_flags(parser, argv))
    return options


def check_paths(options: argparse.Namespace) -> None:
    """Raise InputError where a path is none that a file can have; called before any is looked at.
    """
    for name, value in vars(options).items():
        if isinstance(value, Path):
            check_path(value, name if name == "checkpoint" else f"--{name}")
            if name == "logger_name" and not is_unicode(str(value)):
                raise InputError(f"--logger_name {value}: TensorBoard writes only where a name is "
                                 "UTF-8")
    for name in "vocab", "image_encoder", "text_encoder":
        if name in options:
            check_path(Path(getattr(options, name)), f"--{name}")


def check_kinds(options: TrainOptions) -> None:
    """Raise InputError where a value is none that its flag could give: a checkpoint can hold
    anything."""
    for action in build_parser("", TRAINING, {})._actions[1:]:  # but for --help
        value = getattr(options, action.dest)
        kinds = {int: int, float: (int, float), Path: Path, None: (str, bool)}[action.type]
        if isinstance(action.default, bool):
            kinds = bool
        values = value if action.nargs == "*" and isinstance(value, list) else [value]
        may_be_none = value is None and action.default is None
        if not may_be_none and (
                not all(isinstance(value, kinds) for value in values)
                or isinstance(value, bool) and kinds is not bool
                or action.choices and value not in action.choices):
            choices = f", one of {', '.join(action.choices)}" if action.choices else ""
            raise InputError(f"--{action.dest} {value}: not of its kind{choices}")


def check(options: TrainOptions) -> None:
    """Raise InputError where a value cannot work; called once all layers are in place."""
    check_kinds(options)
    for name, (low, high) in RANGES.items():
        value = getattr(options, name)
        if not low <= value <= high:  # nor NaN
            least = f"at least {low}" if low else "finite, not negative"
            raise InputError(f"--{name} {str(value)[:30]}: must be {least}, and at most {high:g}")
    if any(not 0 <= milestone <= COUNT for milestone in options.lr_milestones):
        raise InputError(f"--lr_milestones {options.lr_milestones}: must not be negative")
    if len(options.caption_prefix) > LONGEST_PREFIX:
        raise InputError(f"--caption_prefix {options.caption_prefix[:30]}...: may have "
                         f"{LONGEST_PREFIX} letters at most, as it is put before each caption")
    if not 0 < options.prior < 1:
        raise InputError(f"--prior {options.prior}: must lie between 0 and 1")
    if not 0 <= options.momentum < 1:
        raise InputError(f"--momentum {options.momentum}: must be at least 0 and below 1")
    if options.ambiguity != USUAL_AMBIGUITY and options.dataset != "shapes" and not options.test:
        raise InputError(f"--ambiguity {options.ambiguity}: --dataset {options.dataset} has the "
                         "captions that it has; leave the flag out, or give --dataset shapes")
    if options.oracle == "positives" and options.loss != "infonce":
        raise InputError(f"--oracle positives: --loss {options.loss} takes one match of an anchor; "
                         "give --loss infonce, or --oracle alone, which excludes the others")
    if options.posterior != "published" and options.loss != "fne":
        raise InputError(f"--posterior {options.posterior}: --loss {options.loss} asks for no "
                         "P(false negative); leave the flag out, or give --loss fne")
    if options.loss == "fne" and options.queue_size < options.batch_size_train:
        raise InputError(f"--queue_size {options.queue_size}: must hold a batch of "
                         f"{options.batch_size_train} (--batch_size_train)")
    if not options.test and options.batch_size_train % world_size():
        below = options.batch_size_train // world_size() * world_size()
        sizes = f"{below} or {below + world_size()}" if below else str(world_size())
        raise InputError(f"--batch_size_train {options.batch_size_train}: {world_size()} processes "
                         f"cannot share it alike; make it {sizes}")
    if options.data_path is None:
        raise InputError("--data_path: name the folder of the photos; a checkpoint does not say "
                         "what is read")
