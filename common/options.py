"""The options of the commands, and how their values layer.

    default  <  preset of the dataset  <  --recipe  <  checkpoint (--resume, --test)
             <  the command line

The defaults are the published setting. Each group of flags is a dataclass, and each of its fields
declares a flag (`common/flags.py`); the options of a command inherit its groups. This file holds
the groups that several commands share, and the options of the commands that do not train; those of
train.py are in `training/options.py`.

A parser gives what the command line names, so that a checkpoint can fill in the rest.
"""

from collections.abc import Collection
from dataclasses import MISSING, dataclass, field
from pathlib import Path

from common.errors import InputError
from common.files import check_path, is_unicode
from common.flags import check_values, flags_of, option
from common.parser import build_parser, given_values
from common.presets import (
    AMBIGUITIES,
    IMAGE_ENCODER,
    PRESETS,
    TEXT_ENCODER,
    USUAL_AMBIGUITY,
    default_data_path,
    preset_of,
)

# The upper ends of ranges are far above all that makes sense: they keep a slip of the pen from
# filling the memory, or counting for ever.
LARGEST_COUNT = 2**53
LARGEST_BATCH = 2**20
LARGEST_FLOAT = 1e6
# Options that each of several processes may have its own value of.
OPTIONS_OF_A_PROCESS = {"data_path", "val_path", "test_path", "json_path", "cache", "workers",
                        "quiet", "stored_encoders", "init_weights"}
LONGEST_PREFIX = 1000  # letters; a prefix is cleaned and tokenised with each caption

# ------------------------------------------------------------------------------------------- groups


@dataclass(kw_only=True)
class SourceOptions:
    """The options that say where photos and captions are."""

    title = "data"
    dataset: str = option(
        "flickr", "which split files to read; for train.py also which preset to start from; "
        "custom: your own, and hub: of the Hugging Face Hub, in the published setting",
        choices=PRESETS, from_checkpoint=True, fixed=True)
    data_path: Path | None = option(
        None, "folder of the photos (shapes: train.py makes them there; default: data/shapes), or "
        "tar shards, in quotes: 'shards/{00000..00331}.tar'; of own data also a folder or pattern "
        "of .parquet or .arrow files; of hub a name, or name:config", aliases=("--image_root",),
        repeat=True)
    val_path: Path | None = option(
        None, "folder or shards of val's photos, where not under --data_path", repeat=True)
    test_path: Path | None = option(
        None, "folder or shards of test's photos, where not under --data_path", repeat=True)
    ambiguity: str = option(
        USUAL_AMBIGUITY, "of shapes: share, in percent and about, of the other photos that a "
        "caption is true of; each has its own folder, data/shapes_10, say", choices=AMBIGUITIES,
        from_checkpoint=True, fixed=True)
    json_path: Path | None = option(
        None, "folder of the split files (default: json/, or beside the photos)", repeat=True)
    image_column: str | None = option(
        None, "column or key of the photos' files in own data (default: file_name, filepath, "
        "image, or another usual name)", metavar="NAME", repeat=True)
    caption_column: str | None = option(
        None, "column or key of the captions; several are separated by commas (default: text, "
        "caption, title, or another usual name, with numbers behind it or without)",
        metavar="NAME", repeat=True)
    split_column: str | None = option(
        None, "column or key that says train, val or test; none: what the file says of that does "
        "not count (default: split)", metavar="NAME", repeat=True)
    bad_rows: str = option(
        "refuse", "rows or records of a captions file that are not in order and cannot be "
        "repaired: refuse the file, or skip them, with a count", choices=("refuse", "skip"),
        repeat=True)
    missing_photos: str = option(
        "refuse", "photos of the training split that are not there: refuse the split, or skip "
        "them, with a count; those of val and test are never skipped", choices=("refuse", "skip"),
        repeat=True)
    exif: str = option(
        "auto", "orientation that a photo's EXIF data give: apply it, or ignore it; auto: ignore "
        "it for the published data sets, apply it for custom and hub",
        choices=("auto", "apply", "ignore"), from_checkpoint=True, fixed=True)
    captions: str = option(
        "auto", "text of the captions: cleaned as published, to lower case and without "
        "punctuation, or raw, as it is, of which only --max_tokens are kept; auto: raw for the "
        "text encoder of a pretrained pair, such as CLIP's, and published for others",
        choices=("auto", "published", "raw"), from_checkpoint=True, fixed=True)
    follow_links: bool = option(
        False, "allow photos that links inside --data_path fetch from elsewhere")
    cache: Path | None = option(
        None, "where captions and token ids of large splits are kept, to be mapped by the next "
        "run, and the index of shards that cannot be written beside them (default: fne in the "
        "user's cache)", metavar="DIR")
    max_words: int = option(
        30, "words kept of a caption", low=1, high=10**6, from_checkpoint=True)
    workers: int = option(
        4, "processes that load photos, for each process that trains", low=0, high=1024)


@dataclass(kw_only=True)
class DataOptions:
    """The options that say how photos and captions are read."""

    title = "photos and captions"
    image_res: int = option(
        384, "photo side in pixels", low=1, high=8192, from_checkpoint=True, fixed=True)
    image_fit: str = option(
        "auto", "how photos become squares: squash both sides, crop the middle, or pad with black; "
        "auto: as the pretrained pair does it that the image encoder is from, and squash for "
        "other encoders, as published", choices=("auto", "squash", "crop", "pad"),
        from_checkpoint=True, fixed=True)
    image_stats: str = option(
        "auto", "mean and std of the pixels: CLIP's, or the image encoder's own; auto: its own "
        "where it has them, and CLIP's for the published encoder",
        choices=("auto", "clip", "encoder"), from_checkpoint=True)
    caption_prefix: str = option(
        "", "put before each caption, as some encoders were trained with: 'query: ', say",
        metavar="TEXT", from_checkpoint=True, fixed=True)
    max_tokens: int = option(
        30, "tokens kept of a caption, special ones included", low=3, high=10**6,
        from_checkpoint=True)
    all_captions: bool = option(
        False, "COCO: score all captions of val and test, not five a photo", from_checkpoint=True)
    judgements: Path | None = option(
        None, "people's answers on photo-caption pairs of the split (of train.py: test), to score "
        "the model on: json, or Flickr8k's CrowdFlower or Expert annotations")
    batch_size_test: int = option(
        32, "photos encoded at a time", low=1, high=LARGEST_BATCH, from_checkpoint=True)


@dataclass(kw_only=True)
class ModelOptions:
    """The options that say what encodes photos and captions, and where."""

    title = "model"
    image_encoder: str = option(
        IMAGE_ENCODER, "Hugging Face name or folder, or small-convnext, small-vit",
        from_checkpoint=True, fixed=True)
    text_encoder: str = option(
        TEXT_ENCODER, "Hugging Face name or folder, or small-bert, tiny-bert",
        from_checkpoint=True, fixed=True)
    vocab: str = option(
        "vocab/flickr30k.txt", "WordPiece vocabulary of a built-in text encoder",
        from_checkpoint=True, fixed=True)
    embed_size: int = option(
        0, "D of a projection of both towers; 0 for none", low=0, high=2**16,
        from_checkpoint=True, fixed=True)
    head: str = option(
        "linear", "form of the projections: linear, or mlp, which has a hidden layer of twice D",
        choices=("linear", "mlp"), from_checkpoint=True, fixed=True)
    image_pooling: str = option(
        "auto", "mean over tokens or places, the class token, or the encoder's own; auto: what "
        "docs/encoders.md lists first for the encoder", choices=("auto", "mean", "cls", "own"),
        from_checkpoint=True, fixed=True)
    text_pooling: str = option(
        "auto", "mean over real tokens, or over all --max_tokens, as released; the first token; "
        "the last; or the encoder's own; auto: what docs/encoders.md lists first for the encoder",
        choices=("auto", "tokens", "padded", "cls", "last", "own"), from_checkpoint=True,
        fixed=True)
    device: str = option(
        "auto", "auto takes a GPU where there is one", choices=("auto", "cuda", "cpu"))
    precision: str = option(
        "auto", "of the encoders; similarities, statistics and loss are float32. auto: bf16 on a "
        "GPU that has it", choices=("auto", "bf16", "fp32"), from_checkpoint=True)


@dataclass(kw_only=True)
class LoadedParts:
    """Parts of a checkpoint, or of the folder of --init, that building the model needs.

    They are no flags: `checkpoint.merge_options` and `checkpoint.begin_from` set them. They travel
    with the options, and no checkpoint saves them.
    """

    # An `encoders.stored.StoredEncoders`, and the weights of --init by name.
    stored_encoders: object | None = field(default=None, repr=False, compare=False)
    init_weights: dict | None = field(default=None, repr=False, compare=False)
    init_base: dict | None = field(default=None, repr=False, compare=False)


@dataclass(kw_only=True)
class EncodingOptions(SourceOptions, DataOptions, ModelOptions, LoadedParts):
    """The options of every command that encodes a split."""


@dataclass(kw_only=True)
class ScoringOptions(EncodingOptions):
    """The options of evaluation.py."""

    title = "scoring"
    checkpoint: Path | None = option(
        None, "ours or a released one; a folder of export.py; or a pretrained pair, by its name on "
        "the Hub or its folder", positional=True)
    split: str = option("test", "which split to score", choices=("train", "val", "test"))
    output: Path | None = option(None, "write the metrics here, as json")
    report: Path | None = option(
        None, "write DIR/report.html, one file with figures and photos in it; to have photos with "
        "--embeddings, give their --data_path", metavar="DIR")
    save_embeddings: Path | None = option(
        None, "write embeddings, file names and captions here", metavar="NPZ")
    embeds_dtype: str = option(
        "float32", "of --save_embeddings: type of the embeddings in the file; bfloat16 halves them",
        choices=("float32", "bfloat16"))
    embeddings: Path | None = option(
        None, "score these, of this program or any other, instead of a checkpoint", metavar="NPZ")
    teacher: str | None = option(
        None, "judge pairs by a teacher as well, in --judgements, --report and --save_embeddings: "
        "a sentence encoder, by its name on the Hub or its folder; captions: latent dimensions of "
        "the training captions (captions:100 for so many); or an npz file with text_embeds "
        "(N_t, W) of the split's captions (docs/teacher.md)", metavar="NAME")


@dataclass(kw_only=True)
class CheckingOptions(SourceOptions):
    """The options of scripts/check_data.py."""


@dataclass(kw_only=True)
class FindingOptions(SourceOptions):
    """The options of scripts/find_matches.py."""

    title = "matches to find"
    split: str = option(
        MISSING, "split to look through: train, val or test", choices=("train", "val", "test"),
        positional=True)
    teacher: str | None = option(
        None, "who tells P(match): a sentence encoder, by its name on the Hub or its folder; "
        "captions: latent dimensions of the training captions (captions:100 for so many); or an "
        "npz file with text_embeds (N_t, W) of the split's captions", metavar="NAME")
    out: Path | None = option(
        None, "write the pairs here, as json, and beside it a page to look at, .html",
        metavar="FILE.json")
    top: int | None = option(
        None, "the so many likeliest pairs (default: 1000, or all with --at_least)", low=1,
        high=LARGEST_COUNT, metavar="N")
    at_least: float | None = option(
        None, "only pairs whose P(match) is this or more", above=0, high=1, metavar="P")
    per_photo: int = option(5, "most pairs of a photo", low=1, high=1000)
    judgements: Path | None = option(
        None, "people's answers, as of evaluation.py, to compare the pairs with")


@dataclass(kw_only=True)
class ConfigurationOptions:
    """The options of the commands that take a model and nothing else that describes it."""

    title = "configurations"
    image_encoder: str | None = option(
        None, "folder or Hub name of the configuration, for a checkpoint that has none: a released "
        f"one (default: {IMAGE_ENCODER}), or an old one", metavar="NAME")
    text_encoder: str | None = option(
        None, "folder or Hub name of the configuration, for a checkpoint that has none: a released "
        f"one (default: {TEXT_ENCODER}), or an old one", metavar="NAME")


@dataclass(kw_only=True)
class ExportOptions(ConfigurationOptions):
    """The options of export.py."""

    title = "export"
    checkpoint: Path = option(
        MISSING, "ours or a released one; or a pretrained pair, by its name on the Hub or its "
        "folder", positional=True)
    out: Path = option(MISSING, "a new folder, an empty one or an earlier export", positional=True)
    dtype: str = option(
        "float32", "of the weights; whoever loads them computes in float32 either way",
        choices=("float32", "bfloat16"))
    onnx: bool = option(False, "also an ONNX file for each encoder")
    average: float | None = option(
        None, "share of the trained weights in an average with those that training began with, the "
        "rest being theirs; 1 is the model as it is (WiSE-FT, docs/fine_tuning.md)", low=0, high=1,
        metavar="ALPHA")
    average_with: Path | None = option(
        None, "model that --average takes the other weights from (default: the pretrained encoders "
        "that the checkpoint names)", metavar="MODEL")
    adapter: bool = option(
        False, "of a run with --lora: peft's own folder of the adapters, instead of the model with "
        "the adapters merged into it")


# ----------------------------------------------------------------------------- layers and commands


def with_preset(options_class: type, given: dict[str, object]):
    """Return options: the defaults, over them the preset of the dataset and that of the recipe, if
    one is given, and `given` over all."""
    flags = flags_of(options_class)
    preset = preset_of(given.get("dataset", flags["dataset"].default), given.get("recipe"))
    preset = {name: value for name, value in preset.items() if name in flags}
    return options_class(**preset | given)


def shared_options(options: object) -> dict[str, object]:
    """Return the options that all processes of a run must have the same, by their flags."""
    return {f"--{name}": value for name, value in vars(options).items()
            if name not in OPTIONS_OF_A_PROCESS}


def set_data_path(options: SourceOptions, given: Collection[str]) -> None:
    """Set `options.data_path` in place to the dataset's own folder, unless --data_path is given."""
    known = options.dataset in list(PRESETS) and options.ambiguity in AMBIGUITIES
    if known and "data_path" not in given:  # a checkpoint may say anything
        options.data_path = default_data_path(options.dataset, options.ambiguity)


def parse_scoring(
    description: str, argv: list[str] | None = None
) -> tuple[ScoringOptions, set[str]]:
    """Return the options of evaluation.py, and the names of those that the command line gave.

    No preset is used: the checkpoint that is scored brings its own values.
    """
    parser = build_parser(
        ScoringOptions, description, checkpoint_sets_defaults=True,
        epilog="What is given no default here is as the checkpoint has it.")
    given = given_values(parser, argv)
    return ScoringOptions(**given), set(given)


def parse_checking(description: str, argv: list[str] | None = None) -> CheckingOptions:
    """Return the options of scripts/check_data.py."""
    given = given_values(build_parser(CheckingOptions, description), argv)
    options = with_preset(CheckingOptions, given)
    set_data_path(options, given)
    return options


def parse_finding(description: str, argv: list[str] | None = None) -> FindingOptions:
    """Return the options of scripts/find_matches.py."""
    given = given_values(build_parser(FindingOptions, description), argv)
    options = with_preset(FindingOptions, given)
    set_data_path(options, given)
    return options


def parse_export(description: str, argv: list[str] | None = None) -> ExportOptions:
    """Return the options of export.py."""
    return ExportOptions(**given_values(build_parser(ExportOptions, description), argv))


# ------------------------------------------------------------------------------------------- checks


def check_paths(options: object) -> None:
    """Raise InputError where a path cannot be one; called before any file is looked at."""
    for name, flag in flags_of(type(options)).items():
        value = getattr(options, name)
        if isinstance(value, Path):
            check_path(value, flag.title)
            if name == "logger_name" and not is_unicode(str(value)):
                raise InputError(f"--logger_name {value}: TensorBoard writes only where a name is "
                                 "UTF-8")
        elif name in ("vocab", "image_encoder", "text_encoder", "teacher") and value is not None:
            check_path(Path(value), flag.title)


def check(options: EncodingOptions) -> None:
    """Raise InputError where a value cannot work; called once all layers are in place.

    This is the check of every command that encodes a split; `training.options.check` adds what
    concerns training alone.
    """
    check_values(options)
    if len(options.caption_prefix) > LONGEST_PREFIX:
        raise InputError(f"--caption_prefix {options.caption_prefix[:30]}...: may have "
                         f"{LONGEST_PREFIX} letters at most, as it is put before each caption")
    if options.data_path is None:
        raise InputError("--data_path: name the folder of the photos; a checkpoint does not say "
                         "what is read")
