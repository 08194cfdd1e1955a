"""The flags of every command and their defaults, the published setting, and the presets of the
datasets. `common/options.py` layers them.
"""

import argparse
import textwrap
from pathlib import Path
from typing import NoReturn

from common.errors import one_line
from common.ranks import is_main

IMAGE_ENCODER, TEXT_ENCODER = "google/vit-base-patch16-384", "bert-base-uncased"  # published

# Of the captions of `shapes`: shares of other photos that they are true of, in percent.
AMBIGUITIES, USUAL_AMBIGUITY = ("0.5", "3", "10", "25"), "3"

PRIOR_OF_EVIDENCE = 0.01  # about what people's judgements of Flickr8k say

# What a dataset changes in the published setting. Flickr30K and COCO change nothing.
PRESETS = {
    "flickr": {},
    "mscoco": {},
    # Small real data for one machine without a GPU: the text encoder is trained from scratch, and
    # a frozen image encoder sees each photo once, since no augmentation changes it.
    "flickr8k": dict(
        text_encoder="small-bert", augment="none", batch_size_train=128, batch_size_test=128,
        num_epochs=8, easy_epochs=4, warmup_epochs=5, learning_rate=5e-4, lr_milestones=[4],
        queue_size=4096, momentum=0.99, val_times=1,
    ),
    # The embedded dataset: both encoders from scratch, in about five minutes on two cores.
    "shapes": dict(
        image_encoder="small-convnext", text_encoder="tiny-bert", vocab="vocab/shapes.txt",
        data_path=Path("data/shapes"), image_res=64, embed_size=128, augment="none",
        batch_size_train=64, batch_size_test=128, num_epochs=8, easy_epochs=4, warmup_epochs=5,
        learning_rate=5e-4, lr_milestones=[4], queue_size=1024, momentum=0.99, prior=0.03,
        val_times=1, workers=1,
    ),
    # Anybody's own photos, in the published setting too: no other is known to suit them.
    "custom": {},
}


def default_data_path(dataset: str, ambiguity: str) -> Path | None:
    """Where the photos of a dataset are that nobody has named a folder for, or None."""
    path = PRESETS[dataset].get("data_path")
    other = dataset == "shapes" and ambiguity != USUAL_AMBIGUITY
    return path.with_name(f"{path.name}_{ambiguity}") if other else path


def preset_lines(values: dict[str, object], start: str, indent: int) -> str:
    """Options and their values, "image_res 64, lr_milestones 5 15", in lines for a terminal.

    Args:
        start: what the first line begins with; the others are indented so far.
    """
    # A space that is no place to break keeps a name and its value together.
    pairs = ", ".join(f"{name} {value_text(value)}".replace(" ", "\xa0")
                      for name, value in values.items())
    return textwrap.fill(pairs, 80, initial_indent=start, subsequent_indent=" " * indent,
                         break_on_hyphens=False).replace("\xa0", " ")


def value_text(value: object) -> str:
    """A value as the command line would give it."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


# -------------------------------------------------------------------------------------------- flags


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=PRESETS, default="flickr",
                       help="which split files to read; for train.py also which preset to start "
                            "from; custom: your own, in the published setting")
    group.add_argument("--data_path", "--image_root", type=Path,
                       help="folder of the photos (shapes: train.py makes them there; default: "
                            "data/shapes), or tar shards, in quotes: 'shards/{00000..00331}.tar'")
    group.add_argument("--val_path", type=Path,
                       help="folder or shards of val's photos, where not under --data_path")
    group.add_argument("--test_path", type=Path,
                       help="folder or shards of test's photos, likewise")
    group.add_argument("--ambiguity", choices=AMBIGUITIES, default=USUAL_AMBIGUITY,
                       help="of shapes: share, in percent and about, of the other photos that a "
                            "caption is true of; each has its own folder, data/shapes_10, say")
    group.add_argument("--json_path", type=Path,
                       help="folder of the split files (default: json/, or beside the photos)")
    add_column_flags(group)
    group.add_argument("--follow_links", action="store_true",
                       help="allow photos that links inside --data_path fetch from elsewhere")
    group.add_argument("--cache", type=Path, metavar="DIR",
                       help="where captions and token ids of large splits are kept, to be mapped "
                            "by the next run, and the index of shards that cannot be written "
                            "beside them (default: fne in the user's cache)")
    group.add_argument("--max_words", type=int, default=30, help="words kept of a caption")
    group.add_argument("--workers", type=int, default=4,
                       help="processes that load photos, for each process that trains")


def add_column_flags(group: argparse._ActionsContainer) -> None:
    group.add_argument("--image_column", metavar="NAME",
                       help="column or key of the photos' files in own data (default: file_name, "
                            "filepath or image)")
    group.add_argument("--caption_column", metavar="NAME",
                       help="column or key of the captions (default: text, caption or title)")


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("photos and captions")
    group.add_argument("--image_res", type=int, default=384, help="photo side in pixels")
    group.add_argument("--image_stats", choices=["auto", "clip", "encoder"], default="auto",
                       help="mean and std of the pixels: CLIP's, or the image encoder's own; auto: "
                            "its own where it has them, and CLIP's for the published encoder")
    group.add_argument("--caption_prefix", default="", metavar="TEXT",
                       help="put before each caption, as some encoders were trained with: "
                            "'query: ', say")
    group.add_argument("--max_tokens", type=int, default=30,
                       help="tokens kept of a caption, special ones included")
    group.add_argument("--all_captions", action=OnOff,
                       help="COCO: score all captions of val and test, not five a photo")
    group.add_argument("--judgements", type=Path,
                       help="people's answers on photo-caption pairs of the split (of train.py: "
                            "test), to score the model on: json, or Flickr8k's CrowdFlower or "
                            "Expert annotations")
    group.add_argument("--batch_size_test", type=int, default=32, help="photos encoded at a time")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--image_encoder", default=IMAGE_ENCODER,
                       help="Hugging Face name or folder, or small-convnext, small-vit")
    group.add_argument("--text_encoder", default=TEXT_ENCODER,
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
    add_device_flags(group)


def add_device_flags(group: argparse._ActionsContainer) -> None:
    group.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto",
                       help="auto takes a GPU where there is one")
    group.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto",
                       help="of the encoders; similarities, statistics and loss are float32. auto: "
                            "bf16 on a GPU that has it")


def add_configuration_flags(parser: argparse.ArgumentParser) -> None:
    """Of the commands that take a model and nothing else that describes it."""
    for side, name in ("image", IMAGE_ENCODER), ("text", TEXT_ENCODER):
        parser.add_argument(f"--{side}_encoder", metavar="NAME",
                            help="folder or Hub name of the configuration, for a checkpoint that "
                                 f"has none: a released one (default: {name}), or an old one")


def add_method_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("method")
    group.add_argument("--loss", choices=["fne", "triplet", "infonce"], default="fne",
                       help="the method, or a control that uses the batch alone throughout")
    group.add_argument("--oracle", nargs="?", choices=["off", "exclude", "positives"],
                       const="exclude", default="off",
                       help="exclude all true matches from the candidates of the loss, where they "
                            "are known (shapes, or train's _matches.json); positives: InfoNCE "
                            "takes those of the batch as further positives; a bound, no method")
    group.add_argument("--margin", type=float, default=0.2, help="margin of the hinge")
    group.add_argument("--max_violation", action=OnOff,
                       help="in-batch triplet loss on the hardest negative, not the sum over all")
    group.add_argument("--easy_epochs", type=int, default=0,
                       help="first epochs of the triplet loss that sum over all negatives in spite "
                            "of --max_violation; under the hardest alone an encoder that is "
                            "trained from scratch collapses")
    group.add_argument("--warmup_epochs", type=int, default=1,
                       help="epochs of the in-batch triplet loss before FNE")
    group.add_argument("--queue_size", type=int, default=8224, help="M, slots of the memory bank")
    group.add_argument("--bank_dtype", choices=["float32", "bfloat16"], default="float32",
                       help="of the keys in the bank: bfloat16 takes half the memory, and half the "
                            "room in a checkpoint")
    group.add_argument("--momentum", type=float, default=0.995,
                       help="m, share that the momentum encoders keep in each step")
    group.add_argument("--nums_right_sims", type=int, default=200,
                       help="confident pairs an epoch must exceed before the posterior is used")
    group.add_argument("--tau", type=float, default=0.5, help="tau of the sampling weights")
    group.add_argument("--posterior", choices=["published", "evidence"], default="published",
                       help="evidence: P(false negative) also from the similarity of the captions, "
                            "fitted to other captions of a photo, which is ours; --prior is then "
                            f"{PRIOR_OF_EVIDENCE} unless given")
    group.add_argument("--prior", type=float, default=1e-4,
                       help="P(false negative) of any candidate")
    group.add_argument("--posterior_floor", type=float, default=1e-3,
                       help="posteriors up to this are taken for 0: similarity sets the weight")


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--augment", choices=["published", "none"], default="published",
                       help="training photos: crop, flip and two random operations, or as in tests")
    group.add_argument("--freeze", choices=["image", "text"],
                       help="encoder that is not trained (its projection is)")
    group.add_argument("--num_epochs", type=int, default=25, help="epochs, warm-up included")
    group.add_argument("--batch_size_train", type=int, default=32,
                       help="B, pairs in a step of all processes together")
    group.add_argument("--learning_rate", type=float, default=2e-5, help="of Adam")
    group.add_argument("--lr_milestones", type=int, nargs="*", default=[5, 15],
                       help="after these many epochs the learning rate falls to a tenth")
    group.add_argument("--lr_update", type=int, default=0,
                       help="fall every so many epochs instead of at --lr_milestones; 0 for not")
    group.add_argument("--lr_warmup", type=int, default=0,
                       help="steps over which the learning rate rises from 0 at the start")
    group.add_argument("--grad_clip", type=float, default=2.0,
                       help="largest norm of the gradient; 0 for no limit")
    group.add_argument("--grad_checkpointing", action=OnOff,
                       help="less memory for a third more computing: activations are made again "
                            "on the way back")
    group.add_argument("--shard", action=OnOff,
                       help="of several processes each keeps a share of Adam's moments, for one "
                            "more sending of the weights in a step")
    group.add_argument("--compile", action=OnOff,
                       help="torch.compile the encoders: a slow start, then steps that may be "
                            "faster (docs/speed.md)")
    group.add_argument("--deterministic", action=OnOff,
                       help="on a GPU: a run that is repeated, or goes on, ends in the same bits; "
                            "slower")
    group.add_argument("--seed", type=int, default=3407, help="of weights, order and draws")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--logger_name", type=Path,
                       help="folder of checkpoints and logs (default: runs/DATASET_LOSS)")
    group.add_argument("--resume", type=Path,
                       help="checkpoint to go on from, or to test; auto: the newest good one of "
                            "the run's own folder, or a fresh start where there is none")
    group.add_argument("--init", type=Path, metavar="FOLDER",
                       help="start a new run from the model that export.py wrote there")
    group.add_argument("--test", action="store_true",
                       help="score the test split with the run's best checkpoint, or --resume's")
    group.add_argument("--val_times", type=int, default=3,
                       help="validations an epoch, evenly spread, the last at its end (0 as 1); "
                            "the run begins with one more")
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
    group.add_argument("--figures", action="store_false", dest="no_figures", default=False,
                       help="figures and galleries after all, where a checkpoint has --no_figures")
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


# ------------------------------------------------------------------------------------------ parsers

TRAINING = (add_source_flags, add_data_flags, add_model_flags, add_method_flags,
            add_training_flags, add_run_flags)
SCORING = add_scoring_flags, add_source_flags, add_data_flags, add_model_flags
CHECKING = (add_source_flags,)


def build_parser(description: str, groups, defaults: dict) -> argparse.ArgumentParser:
    """The flags of `groups`, with `defaults` in place of theirs."""
    checkpoint, epilog = "", None
    if add_training_flags in groups:
        epilog = presets_help()
    elif add_scoring_flags in groups:
        checkpoint = "[checkpoint] "
        epilog = "What is given no default here is as the checkpoint has it."
    # A usage that lists every flag would fill the screen before an error is told.
    parser = Parser(
        HelpFormatter, usage=f"%(prog)s {checkpoint}[flags]", description=description,
        epilog=epilog)
    for add in groups:
        add(parser)
    parser.set_defaults(**defaults)
    return parser


class Parser(argparse.ArgumentParser):
    """The parser of every command: a slip is told in a line, and no flag may be abbreviated."""

    def __init__(self, formatter_class=argparse.RawDescriptionHelpFormatter, **settings):
        super().__init__(formatter_class=formatter_class, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments") and ".tar" in message:
            message = "put the pattern of shards into quotes: 'shards/{00000..00331}.tar'"
        self.exit(2, f"error: {one_line(message)}; see --help\n")

    def _print_message(self, message: str, file=None) -> None:
        if is_main():  # each process of a run has the same command line
            super()._print_message(message, file)


class OnOff(argparse.BooleanOptionalAction):
    """`--name` and `--no_name`: what a checkpoint has switched on can be switched off."""

    def __init__(self, option_strings: list[str], dest: str, help: str):
        super().__init__(option_strings, dest, default=False, help=help)
        self.option_strings = [option_strings[0], f"--no_{dest}"]

    def __call__(self, parser, options, values, option_string) -> None:
        setattr(options, self.dest, not option_string.startswith("--no_"))


def presets_help() -> str:
    """A paragraph for each dataset."""
    unchanged = ", ".join(dataset for dataset, values in PRESETS.items() if not values)
    lines = ["presets, what --dataset changes in these defaults:",
             f"  {unchanged}: nothing, they have the published setting"]
    lines += [preset_lines(values, f"  {dataset}: ", 4)
              for dataset, values in PRESETS.items() if values]
    return "\n".join(lines)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the launch commands, and shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str:
        default = action.default
        # Not `in`: 0 equals False, and is a default worth telling.
        told = default is None or default is False or default == argparse.SUPPRESS
        if told or "default:" in action.help:
            return action.help
        return f"{action.help} (default: {value_text(default).replace('%', '%%')})"


def build_export_parser(description: str) -> Parser:
    """Of export.py."""
    parser = Parser(HelpFormatter, description=description)
    parser.add_argument("checkpoint", type=Path, help="ours or a released one")
    parser.add_argument("out", type=Path, help="a new folder, an empty one or an earlier export")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32",
                        help="of the weights; whoever loads them computes in float32 either way")
    parser.add_argument("--onnx", action="store_true", help="also an ONNX file for each encoder")
    add_configuration_flags(parser)
    return parser
