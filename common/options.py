"""Flags, the presets of the datasets, and how they layer.

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

# What a number may be, both ends included. The upper ends are far above all that makes sense: they
# keep a slip of the pen from filling the memory, or counting for ever.
COUNT = 2**53
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

# What a dataset changes in the published setting. Flickr30K and COCO change nothing.
PRESETS = {
    "flickr": {},
    "mscoco": {},
    # Small real data for one machine without a GPU: the text encoder is trained from scratch, and
    # a frozen image encoder sees each photo once, since no augmentation changes it.
    "flickr8k": dict(
        text_encoder="small-bert", augment="none", batch_size_train=128, batch_size_test=128,
        num_epochs=8, easy_epochs=4, warmup_epochs=5, learning_rate=5e-4, lr_milestones=[4],
        queue_size=4096, momentum=0.99, val_times=0,
    ),
    # The embedded dataset: both encoders from scratch, in about five minutes on two cores.
    "shapes": dict(
        image_encoder="small-convnext", text_encoder="tiny-bert", vocab="vocab/shapes.txt",
        data_path=Path("data/shapes"), image_res=64, embed_size=128, augment="none",
        batch_size_train=64, batch_size_test=128, num_epochs=10, easy_epochs=5, warmup_epochs=6,
        learning_rate=5e-4, lr_milestones=[5], queue_size=1024, momentum=0.99, prior=0.03,
        val_times=0, workers=1,
    ),
}


# ------------------------------------------------------------------------------------------- fields


class SourceOptions(argparse.Namespace):
    """Where photos and captions are: `add_source_flags`."""

    dataset: str
    data_path: Path  # None on the command line alone: `check` refuses that
    json_path: Path | None
    follow_links: bool
    max_words: int
    workers: int


class DataOptions(argparse.Namespace):
    """How they are read: `add_data_flags`."""

    image_res: int
    image_stats: str
    augment: str
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
    freeze: str | None
    device: str
    precision: str


class MethodOptions(argparse.Namespace):
    """The loss: `add_method_flags`."""

    loss: str
    margin: float
    max_violation: bool
    easy_epochs: int
    warmup_epochs: int
    queue_size: int
    momentum: float
    nums_right_sims: int
    tau: float
    prior: float
    posterior_floor: float


class TrainingOptions(argparse.Namespace):
    """The optimisation: `add_training_flags`."""

    num_epochs: int
    batch_size_train: int
    learning_rate: float
    lr_milestones: list[int]
    lr_update: int
    lr_warmup: int
    grad_clip: float
    grad_checkpointing: bool
    compile: bool
    seed: int


class RunOptions(argparse.Namespace):
    """What a run keeps, says and goes on from: `add_run_flags`."""

    logger_name: Path
    resume: Path | None
    test: bool
    val_times: int
    val_step: int
    save_step: int
    max_bad_photos: int
    log_step: int
    no_figures: bool
    quiet: bool


class TrainOptions(SourceOptions, DataOptions, ModelOptions, MethodOptions, TrainingOptions,
                   RunOptions):
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


# -------------------------------------------------------------------------------------------- flags


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=PRESETS, default="flickr",
                       help="which split files to read and which preset to start from")
    group.add_argument("--data_path", "--image_root", type=Path,
                       help="folder of the photos (shapes: made there, default data/shapes)")
    group.add_argument("--json_path", type=Path,
                       help="folder of the split files (default: json/, or beside the photos)")
    group.add_argument("--follow_links", action="store_true",
                       help="allow photos that links inside --data_path fetch from elsewhere")
    group.add_argument("--max_words", type=int, default=30, help="words kept of a caption")
    group.add_argument("--workers", type=int, default=4, help="processes that load photos")


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("photos and captions")
    group.add_argument("--image_res", type=int, default=384, help="photo side in pixels")
    group.add_argument("--image_stats", choices=["auto", "clip", "encoder"], default="auto",
                       help="mean and std of the pixels: CLIP's, or the image encoder's own; auto: "
                            "its own where it has them, and CLIP's for the published encoder")
    group.add_argument("--augment", choices=["published", "none"], default="published",
                       help="training photos: crop, flip and two random operations, or as in tests")
    group.add_argument("--caption_prefix", default="", metavar="TEXT",
                       help="put before each caption, as some encoders were trained with: "
                            "'query: ', say")
    group.add_argument("--max_tokens", type=int, default=30,
                       help="tokens kept of a caption, special ones included")
    group.add_argument("--all_captions", action="store_true",
                       help="COCO: score all captions of val and test, not five a photo")
    group.add_argument("--judgements", type=Path,
                       help="people's answers on photo-caption pairs of the test split, to score "
                            "the model on: json, or Flickr8k's CrowdFlower or Expert annotations")
    group.add_argument("--batch_size_test", type=int, default=32, help="photos encoded at a time")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--image_encoder", default="google/vit-base-patch16-384",
                       help="Hugging Face name or folder, or small-convnext, small-vit")
    group.add_argument("--text_encoder", default="bert-base-uncased",
                       help="Hugging Face name or folder, or small-bert, tiny-bert")
    group.add_argument("--vocab", default="vocab/flickr30k.txt",
                       help="WordPiece vocabulary of a built-in text encoder")
    group.add_argument("--embed_size", type=int, default=0,
                       help="D of a linear projection of both towers; 0 for none")
    group.add_argument("--image_pooling", choices=["auto", "mean", "cls", "own"], default="auto",
                       help="mean over tokens or places, the class token, or the encoder's own; "
                            "auto: what docs/encoders.md lists first for the encoder")
    group.add_argument("--text_pooling", default="auto",
                       choices=["auto", "tokens", "padded", "cls", "last", "own"],
                       help="mean over real tokens, or over all --max_tokens, as released; the "
                            "first token; the last; or the encoder's own. auto: likewise")
    group.add_argument("--freeze", choices=["image", "text"],
                       help="encoder that is not trained (its projection is)")
    group.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto",
                       help="auto takes a GPU where there is one")
    group.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto",
                       help="of the encoders; similarities, statistics and loss are float32. auto: "
                            "bf16 on a GPU that has it")


def add_method_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("method")
    group.add_argument("--loss", choices=["fne", "triplet", "infonce"], default="fne",
                       help="the method, or a control that uses the batch alone throughout")
    group.add_argument("--margin", type=float, default=0.2, help="margin of the hinge")
    group.add_argument("--max_violation", action="store_true",
                       help="in-batch triplet loss on the hardest negative, not the sum over all")
    group.add_argument("--easy_epochs", type=int, default=0,
                       help="first epochs of the triplet loss that sum over all negatives in spite "
                            "of --max_violation; under the hardest alone an encoder that is "
                            "trained from scratch collapses")
    group.add_argument("--warmup_epochs", type=int, default=1,
                       help="epochs of the in-batch triplet loss before FNE")
    group.add_argument("--queue_size", type=int, default=8224, help="M, slots of the memory bank")
    group.add_argument("--momentum", type=float, default=0.995,
                       help="m, share that the momentum encoders keep in each step")
    group.add_argument("--nums_right_sims", type=int, default=200,
                       help="confident pairs an epoch must exceed before the posterior is used")
    group.add_argument("--tau", type=float, default=0.5, help="tau of the sampling weights")
    group.add_argument("--prior", type=float, default=1e-4,
                       help="P(false negative) of any candidate")
    group.add_argument("--posterior_floor", type=float, default=1e-3,
                       help="posteriors up to this count as true negatives")


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--num_epochs", type=int, default=25, help="epochs, warm-up included")
    group.add_argument("--batch_size_train", type=int, default=32, help="B, pairs in a step")
    group.add_argument("--learning_rate", type=float, default=2e-5, help="of Adam")
    group.add_argument("--lr_milestones", type=int, nargs="*", default=[5, 15],
                       help="epochs at which the learning rate falls to a tenth")
    group.add_argument("--lr_update", type=int, default=0,
                       help="fall every so many epochs instead of at --lr_milestones; 0 for not")
    group.add_argument("--lr_warmup", type=int, default=0,
                       help="steps over which the learning rate rises from 0 at the start")
    group.add_argument("--grad_clip", type=float, default=2.0,
                       help="largest norm of the gradient; 0 for no limit")
    group.add_argument("--grad_checkpointing", action="store_true",
                       help="less memory for a third more computing: activations are made again "
                            "on the way back")
    group.add_argument("--compile", action="store_true",
                       help="torch.compile the encoders: a slow start, then faster steps")
    group.add_argument("--seed", type=int, default=3407, help="of weights, order and draws")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--logger_name", type=Path,
                       help="folder of checkpoints and logs (default: runs/DATASET_LOSS)")
    group.add_argument("--resume", type=Path,
                       help="checkpoint to go on from, or to test; auto: the newest good one of "
                            "the run's own folder, or a fresh start where there is none")
    group.add_argument("--test", action="store_true",
                       help="score the test split with the run's best checkpoint, or --resume's")
    group.add_argument("--val_times", type=int, default=3,
                       help="validations inside an epoch, beside the one at its end")
    group.add_argument("--val_step", type=int, default=0,
                       help="validate every so many steps instead of --val_times; 0 for not")
    group.add_argument("--save_step", type=int, default=0,
                       help="save every so many steps, beside after each validation; 0 for not")
    group.add_argument("--max_bad_photos", type=int, default=100,
                       help="photos of the training split that may turn out broken, and be "
                            "replaced, before the run stops")
    group.add_argument("--log_step", type=int, default=10, help="steps between logged values")
    group.add_argument("--no_figures", action="store_true",
                       help="no figures and galleries in TensorBoard")
    group.add_argument("--quiet", action="store_true",
                       help="no progress bars and no line per validation; results and errors only")


def add_scoring_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, nargs="?", help="ours or a released one")
    group = parser.add_argument_group("scoring")
    group.add_argument("--split", choices=["train", "val", "test"], default="test",
                       help="which split to score")
    group.add_argument("--output", type=Path, help="write the metrics here, as json")
    group.add_argument("--report", type=Path, metavar="DIR",
                       help="write DIR/report.html, one file with figures and photos in it; to "
                            "have photos with --embeddings, give their --data_path")
    group.add_argument("--save_embeddings", type=Path, metavar="NPZ",
                       help="write embeddings, file names and captions here")
    group.add_argument("--embeddings", type=Path, metavar="NPZ",
                       help="score these, of this program or any other, instead of a checkpoint")


# What a checkpoint may say of the run that made it: the options that describe the model and its
# training. No path to write, no path to read and no permission is among them: those come from the
# command line alone.
FROM_CHECKPOINT = (
    {"dataset", "max_words", "val_times", "val_step", "save_step", "max_bad_photos", "log_step",
     "no_figures"}
    | DataOptions.__annotations__.keys() | ModelOptions.__annotations__.keys()
    | MethodOptions.__annotations__.keys() | TrainingOptions.__annotations__.keys()
) - {"judgements", "device"}

# ------------------------------------------------------------------------------- parsers and layers

TRAINING = (add_source_flags, add_data_flags, add_model_flags, add_method_flags,
            add_training_flags, add_run_flags)
SCORING = add_scoring_flags, add_source_flags, add_data_flags, add_model_flags
CHECKING = (add_source_flags,)


def build_parser(description: str, groups, defaults: dict) -> argparse.ArgumentParser:
    """The flags of `groups`, with `defaults` in place of theirs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter,
                                     allow_abbrev=False)
    for add in groups:
        add(parser)
    parser.set_defaults(**defaults)
    return parser


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the line breaks of the launch commands."""


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
        options.logger_name = Path("runs") / f"{options.dataset}_{options.loss.upper()}"
    # An automatic resume stays in the folder in which it looks, wherever that was moved to.
    found_there = {"logger_name"} if options.resume == Path("auto") else set()
    return options, given_flags(parser, argv) | found_there


def parse_scoring(
    description: str, argv: list[str] | None = None
) -> tuple[ScoringOptions, set[str]]:
    """The options of evaluation.py, likewise; what only training uses is at its default."""
    parser = build_parser(description, SCORING, {})
    options = build_parser(description, TRAINING, {}).parse_args([], ScoringOptions())
    options.test = True
    return parser.parse_args(argv, options), given_flags(parser, argv)


def parse_checking(description: str, argv: list[str] | None = None) -> CheckingOptions:
    """The options of scripts/check_data.py; those of the dataset's preset that it has."""
    options = build_parser(description, CHECKING, {}).parse_args(argv)
    own = {name: value for name, value in PRESETS[options.dataset].items() if name in options}
    return build_parser(description, CHECKING, own).parse_args(argv, CheckingOptions())


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
    if not 0 < options.prior < 1:
        raise InputError(f"--prior {options.prior}: must lie between 0 and 1")
    if not 0 <= options.momentum < 1:
        raise InputError(f"--momentum {options.momentum}: must be at least 0 and below 1")
    if options.loss == "fne" and options.queue_size < options.batch_size_train:
        raise InputError(f"--queue_size {options.queue_size}: must hold a batch of "
                         f"{options.batch_size_train} (--batch_size_train)")
    if options.data_path is None:
        raise InputError("--data_path: name the folder of the photos; a checkpoint does not say "
                         "what is read")
