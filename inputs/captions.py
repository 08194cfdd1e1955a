"""Captions: cleaned as published, tokenised once, padded to a batch."""

import re

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from common.terminal import progress

# Caption cleaning: these go, and those become spaces.
CLEANING = str.maketrans("-/", "  ", ",.'!?\"()*#:;~")


def clean_caption(text: str, max_words: int = 30) -> str:
    """Lower case, punctuation out, hyphens and slashes to spaces, the first `max_words` words.

    Exactly the published cleaning, quirks included: a lone tab or line break inside stays.
    """
    text = text.lower().translate(CLEANING).replace("<person>", "person")
    words = re.sub(r"\s\s+", " ", text).removesuffix("\n").strip(" ").split(" ")
    return " ".join(words[:max_words])


def token_ids(texts: list[str], tokenizer, max_tokens: int) -> list[list[int]]:
    """Token ids of texts, special ones included, at most `max_tokens` each, never padded."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        settings = dict(truncation=True, max_length=max_tokens, padding=False)
        return tokenizer(texts, **settings)["input_ids"]
    core.enable_truncation(max_tokens)  # asked itself, in half the time of its wrapper
    core.no_padding()  # which a tokenizer's own file can ask for
    return [encoding.ids for encoding in core.encode_batch_fast(texts)]


class Captions:
    """Token ids of many captions in one array, which worker processes can share without copying.

    `captions[i]` is an int64 tensor (L_i,). Made by cleaning, then tokenising to `max_tokens`.

    Args:
        texts: (N_t) raw captions.
        tokenizer: of transformers.
        max_words, max_tokens: what is kept of each; special tokens are among the latter.
        padded: a batch is as long as `max_tokens`, not as its longest caption (Fidelity note 2).
        prefix: put before each cleaned caption; it counts as tokens, not as words.

    Raises:
        InputError: a caption has no tokens at all.
    """

    def __init__(self, texts: list[str], tokenizer, max_words: int, max_tokens: int,
                 padded: bool = False, prefix: str = ""):
        rows: list[list[int]] = []
        chunk = 4096
        for start in progress(range(0, len(texts), chunk), "tokenising"):
            cleaned = [prefix + clean_caption(text, max_words)
                       for text in texts[start : start + chunk]]
            rows += token_ids(cleaned, tokenizer, max_tokens)
        if not all(rows):
            empty = rows.index([])
            raise InputError(f"caption {empty} (counted from 0), {texts[empty]!r}, has no tokens: "
                             "take it out of the split")
        self.lengths = np.array([len(row) for row in rows])  # (N_t,)
        self.ends = self.lengths.cumsum()
        self.ids = np.concatenate([np.array(row, dtype=np.int32) for row in rows])
        self.pad_id, self.batch_length = tokenizer.pad_token_id, max_tokens if padded else None

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Tensor:
        end = self.ends[index]
        return torch.from_numpy(self.ids[end - self.lengths[index] : end].astype(np.int64))

    def padded(self, rows: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Some of these captions as a batch: ids (B, L) and mask (B, L), 1 on real tokens."""
        return pad_captions(rows, self.pad_id, self.batch_length)


def pad_captions(rows: list[Tensor], pad_id: int, length: int | None) -> tuple[Tensor, Tensor]:
    """Token ids (B, L) and attention mask (B, L), padded to `length` or to the longest row."""
    length = length or max(map(len, rows))
    input_ids = torch.full((len(rows), length), pad_id)
    mask = torch.zeros_like(input_ids)
    for number, row in enumerate(rows):
        input_ids[number, : len(row)] = row
        mask[number, : len(row)] = 1
    return input_ids, mask
