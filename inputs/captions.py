"""Captions: cleaned as published, tokenised once, padded to a batch."""

import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError, reraise_out_of_memory
from common.terminal import progress
from inputs.arrays import Parts, Texts, rows_of
from inputs.kept import kept

MANY = 100_000  # captions whose token ids are kept
CHUNK = 4096  # that are tokenised together

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


def add_tokens(
    texts: Sequence[str], tokenizer, max_words: int, max_tokens: int, prefix: str, parts: Parts
) -> None:
    """Write the token ids of captions to `parts`, in two bytes each where the vocabulary allows it.

    One thread cleans while another one tokenises, which the tokenizer itself does on all cores.

    Raises:
        InputError: a caption has no tokens at all.
    """
    words = getattr(tokenizer, "get_vocab", dict)().values()
    # Special tokens are in a text of nothing, also where a spoilt vocabulary lacks them.
    special = token_ids([""], tokenizer, max_tokens)[0] if words else [2**31 - 1]
    kind = np.uint16 if max([*words, *special]) < 2**16 else np.int32
    starts = progress(range(0, len(texts), CHUNK), "tokenising")

    def cleaned(start: int) -> list[str]:
        return [prefix + clean_caption(text, max_words) for text in texts[start : start + CHUNK]]

    with ThreadPoolExecutor(1) as pool:
        batches = ahead(pool, (functools.partial(token_ids, cleaned(start), tokenizer, max_tokens)
                               for start in starts))
        for start, rows in zip(range(0, len(texts), CHUNK), batches, strict=True):
            if not all(rows):
                empty = start + rows.index([])
                raise InputError(f"caption {empty} (counted from 0), {texts[empty]!r}, has no "
                                 "tokens: take it out of the split")
            lengths = list(map(len, rows))
            ids = np.fromiter(itertools.chain.from_iterable(rows), np.int64, sum(lengths))
            if ids.max() > np.iinfo(kind).max:
                raise InputError(f"the tokenizer gives an id {ids.max()} that is not in its own "
                                 "vocabulary: use another --text_encoder")
            parts.add_rows("ids", ids.astype(kind), lengths)


def ahead(pool: ThreadPoolExecutor, work: Iterable[Callable]) -> Iterator:
    """What each of `work` gives, in order; the next one runs in `pool` while one is looked at."""
    running = None
    for call in work:
        former, running = running, pool.submit(call)
        if former is not None:
            yield former.result()
    if running is not None:
        yield running.result()


def tokenizer_digest(tokenizer, max_tokens: int) -> str | None:
    """A digest of all that a tokenizer is, or None of one that cannot be written down whole."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return None
    core.enable_truncation(max_tokens)  # as `token_ids` does: it is written down too
    core.no_padding()
    try:
        return hashlib.sha256(core.to_str().encode()).hexdigest()
    except Exception as error:  # of parts that are written in Python
        reraise_out_of_memory(error)
        return None


class Captions:
    """Token ids of many captions in one array, which worker processes can share without copying.

    `captions[i]` is an int64 tensor (L_i,). Made by cleaning, then tokenising to `max_tokens`.

    Args:
        texts: (N_t) raw captions.
        tokenizer: of transformers.
        max_words, max_tokens: what is kept of each; special tokens are among the latter.
        padded: a batch is as long as `max_tokens`, not as its longest caption (Fidelity note 2).
        prefix: put before each cleaned caption; it counts as tokens, not as words.
        cache: folder in which the ids of many captions are kept.

    Raises:
        InputError: a caption has no tokens at all.
    """

    def __init__(self, texts: Sequence[str], tokenizer, max_words: int, max_tokens: int,
                 padded: bool = False, prefix: str = "", cache: Path | None = None):
        serial = None
        if cache is not None and len(texts) >= MANY and isinstance(texts, Texts):
            serial = tokenizer_digest(tokenizer, max_tokens)

        def key() -> dict:
            # Neither `padded` nor the padding's id is in the rows.
            return {"texts": texts.digest(), "tokenizer": serial, "max_words": max_words,
                    "max_tokens": max_tokens, "prefix": prefix}

        def fill(parts: Parts) -> None:
            add_tokens(texts, tokenizer, max_words, max_tokens, prefix, parts)

        arrays = kept(cache if serial is not None else None, "token ids", key, fill)
        self.ids, self.ends = rows_of(arrays, "ids")  # one behind the other; (N_t,)
        self.pad_id, self.batch_length = tokenizer.pad_token_id, max_tokens if padded else None

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Tensor:
        index = range(len(self))[index]
        start = int(self.ends[index - 1]) if index else 0
        return torch.from_numpy(self.ids[start : int(self.ends[index])].astype(np.int64))

    @property
    def lengths(self) -> np.ndarray:
        """(N_t,) int64, tokens of each."""
        return np.diff(self.ends.astype(np.int64), prepend=0)

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
