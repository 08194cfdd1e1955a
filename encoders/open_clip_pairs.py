"""Pretrained pairs of open_clip by name: EVA, SigLIP, MobileCLIP and others.

The library has to be installed. A name is one of these:

    hf-hub:timm/ViT-B-16-SigLIP     a repository of the Hub in open_clip's format
    ViT-B-32/laion2b_s34b_b79k      a model and a tag of `open_clip.list_pretrained()`
    a folder with open_clip_config.json

open_clip's cleaning of captions is a part of the tokenizer here, but for the repair of broken
Unicode and of HTML.
"""

import contextlib
import json
import logging
import string
from pathlib import Path
from typing import NamedTuple

import transformers
from huggingface_hub import snapshot_download
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn

from common.errors import InputError, reraise_out_of_memory
from encoders.hub import fetch_error_message, is_hub_name, model_file, use_cache_only
from encoders.image_processors import PhotoPreparation
from encoders.open_clip_halves import OpenClipConfig, check_config, import_open_clip
from encoders.processors import load_tokenizer
from inputs.fitting import RESAMPLINGS, PhotoFit

SCHEME = "hf-hub:"
CONFIG = "open_clip_config.json"
FILES = ["open_clip*", "*.json", "*.txt", "*.model"]  # that are downloaded
FITS = {"shortest": "crop", "longest": "pad", "squash": "squash"}
# How SimpleTokenizer, CLIP's own, parts a caption into words.
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class OpenClipPair(NamedTuple):
    """A whole pair of open_clip: its model, tokenizer, and how its photos are prepared."""

    config: OpenClipConfig
    model: nn.Module
    tokenizer: transformers.PreTrainedTokenizerFast
    photos: PhotoPreparation


def load_open_clip(name: str) -> OpenClipPair | None:
    """Load a pair of open_clip by name, or return None if the name is not one of its.

    Args:
        name: As in the docstring of this module.

    Raises:
        InputError: If open_clip is not installed, or the pair cannot be had or is not supported.
    """
    folder = folder_of(name)
    library_name = f"local-dir:{folder}"
    tag = None
    if folder is None:
        library_name, _, tag = name.partition("/")
        if not is_in_library(library_name, tag):
            return None
    open_clip = import_open_clip(name)
    try:
        with quiet_logging():
            config = (open_clip.get_model_config(library_name) if folder is None
                      else json.loads((folder / CONFIG).read_text("utf-8"))["model_cfg"])
            check_config(config, name)
            if tag is not None:  # some weights were trained with another activation function
                config["quick_gelu"] = bool(
                    open_clip.get_pretrained_cfg(library_name, tag).get("quick_gelu"))
            model = open_clip.create_model(
                library_name, pretrained=tag, force_custom_text=True, require_pretrained=True,
                force_quick_gelu=config.get("quick_gelu", False))
            preprocessing = open_clip.get_model_preprocess_cfg(model)
            tokenizer, pad_id = tokenizer_of_config(open_clip, config["text_cfg"], folder)
    except InputError:
        raise
    except Exception as error:  # of a dozen kinds
        reraise_out_of_memory(error)
        raise InputError(f"{name} cannot be read as a pair of open_clip "
                         f"({fetch_error_message(name, error)[:300]})") from error
    size = preprocessing["size"]
    photos = PhotoPreparation(
        size if isinstance(size, int) else size[0], tuple(preprocessing["mean"]),
        tuple(preprocessing["std"]),
        PhotoFit(FITS[preprocessing.get("resize_mode") or "shortest"],
                 resampling_of(preprocessing), rounds_half_pixels=True))
    return OpenClipPair(OpenClipConfig(config, pad_id), model.eval(), tokenizer, photos)


def folder_of(name: str) -> Path | None:
    """Return the folder of a pair in open_clip's format, downloaded if need be; None for others.

    Raises:
        InputError: If the name begins with "hf-hub:", and there is no such pair.
    """
    wanted = name.startswith(SCHEME)
    repository = name.removeprefix(SCHEME)
    if Path(repository).is_dir():
        return Path(repository) if (Path(repository) / CONFIG).is_file() else None
    if not is_hub_name(repository) or not (wanted or model_file(repository, CONFIG)):
        return None
    try:
        return Path(snapshot_download(repository, allow_patterns=FILES,
                                      local_files_only=use_cache_only(repository)))
    except Exception as error:  # the Hub's client raises errors of a dozen kinds
        reraise_out_of_memory(error)
        raise InputError(f"{name} cannot be had from the Hub "
                         f"({fetch_error_message(repository, error)[:300]})") from error


def is_in_library(model_name: str, tag: str) -> bool:
    """Return whether open_clip is installed and knows pretrained weights of a model by a tag."""
    try:
        import open_clip
    except ImportError:
        return False
    return tag in open_clip.list_pretrained_tags_by_model(model_name)


@contextlib.contextmanager
def quiet_logging():
    """Keep open_clip's notes, which it writes to the root logger, off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def resampling_of(preprocessing: dict) -> str:
    """Return the resampling of photos that a configuration of open_clip says."""
    resampling = preprocessing.get("interpolation") or "bicubic"
    return resampling if resampling in RESAMPLINGS else "bicubic"  # "random" of training


def tokenizer_of_config(open_clip, text_config: dict, folder: Path | None
                        ) -> tuple[transformers.PreTrainedTokenizerFast, int]:
    """Return the tokenizer of a pair of open_clip, and the token with which captions are padded.

    Args:
        open_clip: The library.
        text_config: The `text_cfg` of the pair's configuration.
        folder: The pair's folder; None where open_clip itself has the configuration.
    """
    length = text_config.get("context_length", 77)
    name = text_config.get("hf_tokenizer_name")
    cleaning = (text_config.get("tokenizer_kwargs") or {}).get("clean")
    if name:
        tokenizer = load_tokenizer(str(folder or name), "")
        core, pad_id = tokenizer.backend_tokenizer, tokenizer.pad_token_id
    else:
        core, pad_id = clip_tokenizer(open_clip.SimpleTokenizer()), text_config.get("pad_id", 0)
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=core, bos_token="<start_of_text>", eos_token="<end_of_text>",
            unk_token="<end_of_text>", pad_token="<end_of_text>")
        cleaning = cleaning or "lower"
    steps = cleaning_steps(cleaning or "whitespace")
    if core.normalizer is not None:
        steps.append(core.normalizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.model_max_length = length
    tokenizer.padding_side = "right"
    return tokenizer, pad_id


def cleaning_steps(cleaning: str) -> list:
    """Return the steps of a tokenizer's normaliser that clean a caption as open_clip does.

    Args:
        cleaning: "whitespace", "lower", or "canonicalize", which takes punctuation out as well.
    """
    steps = []
    if cleaning == "canonicalize":
        punctuation = "".join(f"\\x{ord(mark):02x}" for mark in string.punctuation if mark != "_")
        steps = [normalizers.Replace("_", " "), normalizers.Replace(Regex(f"[{punctuation}]"), "")]
    if cleaning in ("lower", "canonicalize"):
        steps.append(normalizers.Lowercase())
    return [*steps, normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]


def clip_tokenizer(simple) -> Tokenizer:
    """Return CLIP's tokenizer as one of the library tokenizers, but for its cleaning.

    Args:
        simple: open_clip's `SimpleTokenizer`, whose words and merges are taken.
    """
    core = Tokenizer(models.BPE(
        vocab=simple.encoder, merges=list(simple.bpe_ranks), end_of_word_suffix="</w>",
        unk_token="<end_of_text>"))
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    core.post_processor = processors.TemplateProcessing(
        "<start_of_text> $A <end_of_text>", special_tokens=[
            (token, simple.encoder[token]) for token in ("<start_of_text>", "<end_of_text>")])
    return core
