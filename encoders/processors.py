"""What an encoder reads: its tokenizer, how photos are fitted, and the statistics of their pixels.

All follow from the encoder's name, or come from the checkpoint of a trained model.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from common.errors import InputError, reraise_out_of_memory
from common.options import EncodingOptions
from common.presets import IMAGE_ENCODER, TEXT_ENCODER
from encoders.families import SUPPORTED
from encoders.hub import fetch, fetch_error_message
from encoders.image_processors import load_photo_preparation, load_pixel_statistics
from encoders.loading import BUILT_IN, load_config, unknown_encoder_error
from encoders.tokenizer_checks import check_tokenizer
from inputs.fitting import PUBLISHED_FIT, PhotoFit
from inputs.photos import CLIP_MEAN, CLIP_STD

ROOT = Path(__file__).parent.parent
SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]",
                  "sep_token": "[SEP]", "mask_token": "[MASK]"}
PROCESSOR_FILES = "preprocessor_config.json", "processor_config.json"


def load_tokenizer(name: str, vocab: Path | str, **kwargs):
    """Load the tokenizer of a text encoder.

    The tokenizer always has a padding token. Where its file names none, as GPT-2's does not,
    another token takes its place, which the attention mask hides.

    Args:
        name: The text encoder: a built-in name, a local folder, or a name on the Hub.
        vocab: The WordPiece vocabulary of a built-in encoder; a relative path is looked for in the
            working folder, then beside the code. Other encoders bring their own.
        **kwargs: Further arguments of `from_pretrained`.

    Raises:
        InputError: If there is no such tokenizer, or it has no words.
    """
    if name in BUILT_IN:
        return wordpiece_tokenizer(vocab)
    try:
        tokenizer = fetch(transformers.AutoTokenizer, name, **kwargs)
    except Exception as error:
        reraise_out_of_memory(error)
        raise unknown_encoder_error(name, "text", error) from error
    # transformers 5 makes a tokenizer without words for a folder that has no tokenizer files.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise InputError(f"--text_encoder {name}: has no tokenizer files; save its tokenizer "
                         "there too")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    check_tokenizer(tokenizer, f"--text_encoder {name}: its tokenizer")
    return tokenizer


def wordpiece_tokenizer(vocab: Path | str) -> transformers.PreTrainedTokenizerFast:
    """Build BERT's uncased tokenizer from a WordPiece vocabulary, one token on each line.

    Raises:
        InputError: If the file cannot be read, or lacks one of BERT's special tokens.
    """
    path = Path(vocab) if Path(vocab).is_file() else ROOT / vocab
    try:
        if not path.is_file():
            raise OSError("there is no such file")
        words = models.WordPiece.read_file(str(path))
        core = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    except Exception as error:
        reraise_out_of_memory(error)
        raise InputError(f"--vocab {vocab}: not a WordPiece vocabulary ({error})") from error
    missing = [token for token in SPECIAL_TOKENS.values() if token not in words]
    if missing:
        raise InputError(f"--vocab {vocab}: lacks {', '.join(missing)}; make one with "
                         "vocab/build_vocab.py")
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.BertProcessing(
        ("[SEP]", words["[SEP]"]), ("[CLS]", words["[CLS]"]))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **SPECIAL_TOKENS)


class PixelStatistics(NamedTuple):
    """The mean and standard deviation by which pixels in [0, 1] are standardised.

    Attributes:
        mean: Three numbers, one for each channel.
        std: Three numbers, one for each channel.
        source: Whose statistics they are, in words.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


def pixel_statistics(options: EncodingOptions) -> PixelStatistics:
    """Return the statistics that --image_stats means for the image encoder of the options.

    "auto" takes those of the encoder's own image processor. It takes CLIP's for the published
    encoder, which was trained with them, and for encoders that have no image processor.

    Raises:
        InputError: If the encoder has no image processor, or it cannot be loaded.
    """
    return pixel_statistics_of(options.image_encoder, options.image_stats)


@functools.cache  # each validation needs them, and the Hub may not answer any more by then
def pixel_statistics_of(name: str, choice: str) -> PixelStatistics:
    """Return the statistics that --image_stats `choice` means for the image encoder `name`.

    Raises:
        InputError: If the encoder has no image processor, or it cannot be loaded.
    """
    clip = tuple(CLIP_MEAN), tuple(CLIP_STD)
    if choice == "clip":
        return PixelStatistics(*clip, "CLIP's")
    if choice == "auto" and name == IMAGE_ENCODER:
        return PixelStatistics(*clip, "CLIP's, as published")
    load_error = OSError("a built-in encoder has none")
    if name not in BUILT_IN:
        try:
            return PixelStatistics(*load_pixel_statistics(name), f"those of {name}")
        except Exception as error:
            reraise_out_of_memory(error)
            load_error = error
    if choice == "auto" and (name in BUILT_IN or is_folder_without_processor(name)):
        return PixelStatistics(*clip, f"CLIP's, since {name} has none of its own")
    reason = fetch_error_message(name, load_error)
    raise InputError(f"--image_stats {choice}: {name} has no image processor to take mean and std "
                     f"from; use --image_stats clip ({reason})") from load_error


def is_folder_without_processor(name: str) -> bool:
    """Return whether `name` is a local folder that has no file of an image processor."""
    files = [Path(name) / file for file in PROCESSOR_FILES]
    return Path(name).is_dir() and not any(file.is_file() for file in files)


def tokenizer_of(options: EncodingOptions):
    """Return the tokenizer of the text encoder that the options name.

    A checkpoint's own tokenizer (`options.stored_encoders`) comes before that of the name.

    Raises:
        InputError: If there is no such tokenizer.
    """
    stored = options.stored_encoders
    tokenizer = stored.read_tokenizer() if stored is not None else None
    if tokenizer is None:
        tokenizer = load_tokenizer(options.text_encoder, options.vocab)
    return tokenizer


def image_statistics(options: EncodingOptions) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of the pixels' three channels for the options.

    A checkpoint's own statistics (`options.stored_encoders`) come before those of --image_stats.

    Raises:
        InputError: If the encoder has no image processor, or it cannot be loaded.
    """
    stored = options.stored_encoders
    if stored is not None and stored.pixel_statistics is not None:
        return stored.pixel_statistics
    statistics = pixel_statistics(options)
    return list(statistics.mean), list(statistics.std)


def photo_fit(options: EncodingOptions) -> PhotoFit:
    """Return how photos are fitted into a square for the options.

    A checkpoint's own way (`options.stored_encoders`) comes before that of the image encoder's
    name. --image_fit replaces both where it is another.

    Raises:
        InputError: If the encoder is half of a pair whose image processor cannot be read.
    """
    stored = options.stored_encoders
    fit = stored.photo_fit if stored is not None else None
    if fit is None:
        fit = photo_fit_of_name(options.image_encoder)
    return fit if options.image_fit in ("auto", fit.fit) else PhotoFit(options.image_fit)


@functools.cache
def photo_fit_of_name(name: str) -> PhotoFit:
    """Return how photos are fitted for an image encoder: as its pair does it, or as published."""
    if not is_half_of_pair(name, "image"):
        return PUBLISHED_FIT
    try:
        return load_photo_preparation(name).fit
    except InputError:
        raise
    except Exception as error:
        reraise_out_of_memory(error)
        if is_folder_without_processor(name):
            return PUBLISHED_FIT
        raise InputError(f"--image_encoder {name} has no image processor that says how photos are "
                         f"fitted: give --image_fit ({fetch_error_message(name, error)})"
                         ) from error


def is_half_of_pair(name: str, side: str) -> bool:
    """Return whether an encoder's name is that of a whole pretrained pair.

    Args:
        name: A built-in name, a local folder, or a name on the Hub.
        side: "image" or "text", for the error message.
    """
    if name in {*BUILT_IN, IMAGE_ENCODER, TEXT_ENCODER}:
        return False
    return len(SUPPORTED[load_config(name, side).model_type].sides) == 2


def resolve_preparation(options: EncodingOptions) -> None:
    """Replace "auto" of --image_fit and --captions in `options`, in place, by what it means.

    Both mean the way of the pretrained pair that the encoder is half of, and else the published
    one: photos are squashed, and captions are cleaned.

    Raises:
        InputError: If an encoder cannot be had by its name.
    """
    if options.image_fit == "auto":
        options.image_fit = photo_fit(options).fit
    if options.captions == "auto":
        is_pair = is_half_of_pair(options.text_encoder, "text")
        options.captions = "raw" if is_pair else "published"
