"""What an encoder reads: the tokenizer, and mean and std of the pixels, by the encoder's name."""

from pathlib import Path

import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from common.errors import InputError
from common.options import TrainOptions
from encoders.towers import BUILT_IN, NO_CODE, unknown_encoder
from inputs.photos import CLIP_MEAN, CLIP_STD

ROOT = Path(__file__).parent.parent
SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]",
                  "sep_token": "[SEP]", "mask_token": "[MASK]"}


def load_tokenizer(name: str, vocab: Path | str):
    """The tokenizer of text encoder `name`; a built-in one reads the WordPiece file `vocab`."""
    if name not in BUILT_IN:
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, **NO_CODE)
        except Exception as error:
            raise unknown_encoder(name, "text", error) from error
        # transformers 5 makes one without words for a folder that has no tokenizer files.
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise InputError(f"--text_encoder {name}: has no tokenizer files; save its tokenizer "
                             "there too")
        return tokenizer
    path = Path(vocab) if Path(vocab).is_file() else ROOT / vocab
    try:
        if not path.is_file():
            raise OSError("there is no such file")
        words = models.WordPiece.read_file(str(path))
        core = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    except Exception as error:
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


def image_statistics(options: TrainOptions) -> tuple[list[float], list[float]]:
    """Mean and std (3 numbers each) that pixels in [0, 1] are standardised with."""
    if options.image_stats == "clip":
        return list(CLIP_MEAN), list(CLIP_STD)
    try:
        if options.image_encoder in BUILT_IN:
            raise OSError("a built-in encoder has none")
        processor = transformers.AutoImageProcessor.from_pretrained(options.image_encoder,
                                                                    **NO_CODE)
    except Exception as error:
        raise InputError(f"--image_stats encoder: {options.image_encoder} has no image processor "
                         "to take mean and std from; use --image_stats clip") from error
    return list(processor.image_mean), list(processor.image_std)
