"""What an encoder reads: the tokenizer, and mean and std of the pixels, by the encoder's name."""

import functools
from pathlib import Path
from typing import NamedTuple

import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from common.errors import InputError, pass_on
from common.options import EncodingOptions
from common.presets import IMAGE_ENCODER
from encoders.hub import fetch, why_not
from encoders.towers import BUILT_IN, unknown_encoder
from inputs.photos import CLIP_MEAN, CLIP_STD

ROOT = Path(__file__).parent.parent
SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]",
                  "sep_token": "[SEP]", "mask_token": "[MASK]"}
PROCESSOR_FILES = "preprocessor_config.json", "processor_config.json"


def load_tokenizer(name: str, vocab: Path | str):
    """The tokenizer of text encoder `name`; a built-in one reads the WordPiece file `vocab`.

    It has a padding token: where its file names none, as GPT-2's, another, which the mask hides.

    Raises:
        InputError: it cannot be had, or has no words.
    """
    if name not in BUILT_IN:
        try:
            tokenizer = fetch(transformers.AutoTokenizer, name)
        except Exception as error:
            pass_on(error)
            raise unknown_encoder(name, "text", error) from error
        # transformers 5 makes one without words for a folder that has no tokenizer files.
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise InputError(f"--text_encoder {name}: has no tokenizer files; save its tokenizer "
                             "there too")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        return tokenizer
    path = Path(vocab) if Path(vocab).is_file() else ROOT / vocab
    try:
        if not path.is_file():
            raise OSError("there is no such file")
        words = models.WordPiece.read_file(str(path))
        core = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    except Exception as error:
        pass_on(error)
        raise InputError(f"--vocab {vocab}: not a WordPiece vocabulary ({error})") from error
    missing = [token for token in SPECIAL_TOKENS.values() if token not in words]
    if missing:
        raise InputError(f"--vocab {vocab}: lacks {', '.join(missing)}; make one with "
                         "vocab/build_vocab.py")
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, words[token]) for token in ("[SEP]", "[CLS]")]
    core.post_processor = processors.BertProcessing(*ends)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **SPECIAL_TOKENS)


class PixelStatistics(NamedTuple):
    """What pixels in [0, 1] are standardised with, three numbers each, and where that is from."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


def pixel_statistics(options: EncodingOptions) -> PixelStatistics:
    """Of --image_stats: auto is the encoder's own where it has them, but CLIP's as published.

    Raises:
        InputError: the encoder has none, or they cannot be had.
    """
    return statistics_of(options.image_encoder, options.image_stats)


@functools.cache  # each validation asks, and the Hub can be gone by then
def statistics_of(name: str, choice: str) -> PixelStatistics:
    """`pixel_statistics` of encoder `name` under --image_stats `choice`."""
    clip = tuple(CLIP_MEAN), tuple(CLIP_STD)
    if choice == "clip":
        return PixelStatistics(*clip, "CLIP's")
    if choice == "auto" and name == IMAGE_ENCODER:  # was trained with CLIP's, not its own
        return PixelStatistics(*clip, "CLIP's, as published")
    fault = OSError("a built-in encoder has none")
    if name not in BUILT_IN:
        try:
            return PixelStatistics(*own_statistics(name), f"those of {name}")
        except Exception as error:
            pass_on(error)
            fault = error
    if choice == "auto" and (name in BUILT_IN or folder_without_processor(name)):
        return PixelStatistics(*clip, f"CLIP's, since {name} has none of its own")
    raise InputError(f"--image_stats {choice}: {name} has no image processor to take mean and std "
                     f"from; use --image_stats clip ({why_not(name, fault)})") from fault


def folder_without_processor(name: str) -> bool:
    files = [Path(name) / file for file in PROCESSOR_FILES]
    return Path(name).is_dir() and not any(file.is_file() for file in files)


def own_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the image processor of encoder `name`."""
    processor = fetch(transformers.AutoImageProcessor, name)
    if hasattr(processor, "data_config"):  # timm's
        return tuple(processor.data_config["mean"]), tuple(processor.data_config["std"])
    if not getattr(processor, "do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return tuple(processor.image_mean), tuple(processor.image_std)


def tokenizer_of(options: EncodingOptions):
    """The tokenizer that a checkpoint brought along (`encoders.stored`), or that of the names."""
    stored = options.stored_encoders
    own = stored.read_tokenizer() if stored is not None else None
    return load_tokenizer(options.text_encoder, options.vocab) if own is None else own


def image_statistics(options: EncodingOptions) -> tuple[list[float], list[float]]:
    """Mean and std that a checkpoint brought along, or those of `pixel_statistics`."""
    stored = options.stored_encoders
    if stored is not None and stored.pixel_statistics is not None:
        return stored.pixel_statistics
    mean, std, _ = pixel_statistics(options)
    return list(mean), list(std)
