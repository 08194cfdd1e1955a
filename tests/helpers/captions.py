"""Captions as they were published, and a tokenizer and a dataset of pairs to try things with."""

import json

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data import PairDataset, Split
from helpers.paths import GOLDEN
from helpers.photos import save
from inputs.captions import Captions

# Raw captions and what the released program made of them: {"raw", "clean"}.
PUBLISHED = json.loads((GOLDEN / "captions.json").read_text())


def word_tokenizer(words="[PAD] [UNK] a red blue cat dog runs sits"):
    """One id a word, counted from 0 in this order, without special tokens."""
    ids = {word: number for number, word in enumerate(words.split())}
    core = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")


def pair_dataset(folder):
    """Eight pairs of four photos, which are written into `folder`, augmented to 16 x 16."""
    names = [f"{number}.png" for number in range(4)]
    save(folder, names)
    split = Split(folder / "x.json", names, ["a cat"] * 8, np.arange(8) % 4)
    captions = Captions(split.captions, word_tokenizer(), 30, 30)
    return PairDataset(split, [folder / name for name in names], captions, 16, augment=True)
