"""Captions: cleaned as published, tokenised once, padded to a batch."""

import contextlib
import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
import tokenizers
import torch
from torch import Tensor

from common import files
from common.errors import InputError, one_line, reraise_out_of_memory
from common.locks import wait_for_lock
from common.temporary import remove_left_overs
from common.terminal import print_note, progress, warn

MANY = 100_000  # captions whose token ids are kept
CHUNK = 4096  # captions that are tokenised together
VERSION = 1  # goes up whenever the same caption gives other tokens

# Caption cleaning: these go, and those become spaces.
CLEANING = str.maketrans("-/", "  ", ",.'!?\"()*#:;~")


def clean_caption(text: str, max_words: int = 30) -> str:
    """Return a caption in lower case, without punctuation, with spaces for hyphens and slashes, cut
    to the first `max_words` words.

    This is exactly the published cleaning, quirks included: a lone tab or line break inside stays.
    """
    text = text.lower().translate(CLEANING).replace("<person>", "person")
    words = re.sub(r"\s\s+", " ", text).removesuffix("\n").strip(" ").split(" ")
    return " ".join(words[:max_words])


def prepared(text: str, max_words: int, cleaning: str) -> str:
    """Return a caption as the tokenizer gets it: cleaned as published, or as it is."""
    return text if cleaning == "raw" else clean_caption(text, max_words)


def token_ids(texts: list[str], tokenizer, max_tokens: int) -> list[list[int]]:
    """Return the token ids of texts, special ones included, at most `max_tokens` each, not padded.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        settings = dict(truncation=True, max_length=max_tokens, padding=False)
        return tokenizer(texts, **settings)["input_ids"]
    core.enable_truncation(max_tokens)  # asked itself, in half the time of its wrapper
    core.no_padding()  # which a tokenizer's own file can ask for
    return [encoding.ids for encoding in core.encode_batch_fast(texts)]


def token_arrays(
    texts: Sequence[str], tokenizer, max_words: int, max_tokens: int, prefix: str, cleaning: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the token ids of captions, one caption behind the other, in two bytes each where the
    vocabulary allows it; and (N_t,) where each caption ends.

    Raises:
        InputError: a caption has no tokens at all.
    """
    words = getattr(tokenizer, "get_vocab", dict)().values()
    # Special tokens are in a text of nothing, also where a spoilt vocabulary lacks them.
    special = token_ids([""], tokenizer, max_tokens)[0] if words else [2**31 - 1]
    kind = np.uint16 if max([*words, *special]) < 2**16 else np.int32
    parts, lengths = [], []
    for start in progress(range(0, len(texts), CHUNK), "tokenising"):
        cleaned = [prefix + prepared(text, max_words, cleaning)
                   for text in texts[start : start + CHUNK]]
        rows = token_ids(cleaned, tokenizer, max_tokens)
        if not all(rows):
            empty = start + rows.index([])
            raise InputError(f"caption {empty} (counted from 0), {texts[empty]!r}, has no tokens: "
                             "take it out of the split")
        lengths += map(len, rows)
        ids = np.fromiter(itertools.chain.from_iterable(rows), np.int64, sum(lengths[start:]))
        if ids.max() > np.iinfo(kind).max:
            raise InputError(f"the tokenizer gives an id {ids.max()} that is not in its own "
                             "vocabulary: use another --text_encoder")
        parts.append(ids.astype(kind))
    ends = np.cumsum(lengths, dtype=np.int64)
    ids = np.concatenate(parts) if parts else np.empty(0, kind)
    return ids, ends.astype(np.uint32) if len(ids) < 2**32 else ends


def kept_arrays(
    folder: Path, key: str, make: Callable[[], tuple[np.ndarray, np.ndarray]],
    is_valid: Callable[[np.ndarray, np.ndarray], bool] = lambda *arrays: True,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the two arrays that `make` gives, mapped from files in `folder` where they were kept
    for `key` before.

    The processes of a machine then share them. A folder that cannot be written costs a warning.

    Raises:
        InputError: of `make`.
    """
    arrays = mapped_arrays(folder, key, is_valid)
    if arrays is not None:
        return arrays
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # captions may be private
        lock = wait_for_lock(folder / f"{key}.lock", lambda holder: print_note(
            f"--cache {folder}: waiting for {holder}, which makes the same token ids"))
    except (OSError, InputError) as error:
        warn_of_cache(folder, error)
        return make()
    with lock or contextlib.nullcontext():
        arrays = mapped_arrays(folder, key, is_valid)  # of another process
        if arrays is not None:
            return arrays
        arrays = make()
        try:
            keep_arrays(folder, key, arrays)
        except (OSError, InputError) as error:
            warn_of_cache(folder, error)
            return arrays
    return mapped_arrays(folder, key, is_valid) or arrays


def warn_of_cache(folder: Path, error: Exception) -> None:
    """Warn that token ids are not kept, because of an error."""
    warn(f"--cache {folder} cannot be used ({one_line(error)}): token ids are in memory, for "
         "this run alone")


def keep_arrays(folder: Path, key: str, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    """Write two arrays, in place of damaged ones.

    Raises:
        InputError: they cannot be written.
        OSError: a damaged one cannot be removed.
    """
    remove_left_overs(folder)
    for number, array in enumerate(arrays):
        for damaged in folder.glob(f"{key}-{number}-*.npy"):
            damaged.unlink()
        files.write(folder / f"{key}-{number}-{crc32(array):08x}.npy",
                    functools.partial(np.save, arr=array), "--cache")


def mapped_arrays(
    folder: Path, key: str, is_valid: Callable[[np.ndarray, np.ndarray], bool]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the two arrays that are kept for `key`, mapped; None where there are none, and a
    warning where they are damaged or not valid. Each file has its checksum in its name."""
    arrays = []
    for number in 0, 1:
        path = next(iter(sorted(folder.glob(f"{key}-{number}-*.npy"))), None)
        if path is None:
            return None
        try:
            if not path.is_file():
                raise ValueError("it is no file")
            array = np.load(path, mmap_mode="c", allow_pickle=False)
            if f"{crc32(array):08x}" != path.stem.rpartition("-")[2]:
                raise ValueError("it has changed")
        except Exception as error:  # of many kinds, as bytes come
            reraise_out_of_memory(error)
            warn(f"{path} is damaged ({one_line(error)}), and made anew")
            return None
        arrays.append(array.view(np.ndarray))
    if not is_valid(*arrays):
        warn(f"the arrays of {key} in {folder} are not what was written, and made anew")
        return None
    return arrays[0], arrays[1]


def are_token_ids(
    ids: np.ndarray, ends: np.ndarray, captions: int, max_tokens: int, largest_id: int
) -> bool:
    """Return whether arrays can be what `token_arrays` gives for so many captions."""
    if (ids.dtype not in (np.uint16, np.int32) or ends.dtype not in (np.uint32, np.int64)
            or ids.ndim != 1 or ends.shape != (captions,)):
        return False
    lengths = np.diff(ends.astype(np.int64), prepend=0)
    return bool(lengths.min() >= 1 and lengths.max() <= max_tokens and ends[-1] == len(ids)
                and ids.min() >= 0 and ids.max() <= largest_id)


def texts_digest(texts: Sequence[str]) -> str:
    """Return a digest of texts; a sequence that knows of its own is asked for it."""
    fingerprint = getattr(texts, "fingerprint", None)
    if fingerprint is not None:
        return fingerprint()
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def tokenizer_digest(tokenizer, max_tokens: int) -> str | None:
    """Return a digest of all that a tokenizer is; None of one that cannot be written down whole."""
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
    """Token ids of many captions in one array, which worker processes share without copying.

    `captions[i]` is an int64 tensor (L_i,): the caption cleaned, then cut to `max_tokens`.

    Args:
        texts: (N_t) raw captions.
        tokenizer: of transformers.
        max_words: words kept of each caption, where it is cleaned.
        max_tokens: tokens kept of each caption, special ones among them.
        padded: a batch is as long as `max_tokens`, not as its longest caption (Fidelity note 2).
        prefix: put before each cleaned caption; it counts as tokens, not as words.
        cleaning: "published", or "raw" for the text as it is, of which words are not counted.
        cache: the folder in which the ids of many captions are kept.

    Raises:
        InputError: a caption has no tokens at all.
    """

    def __init__(self, texts: Sequence[str], tokenizer, max_words: int, max_tokens: int,
                 padded: bool = False, prefix: str = "", cleaning: str = "published",
                 cache: Path | None = None):
        def make() -> tuple[np.ndarray, np.ndarray]:
            return token_arrays(texts, tokenizer, max_words, max_tokens, prefix, cleaning)

        serial = None
        if cache is not None and len(texts) >= MANY:
            serial = tokenizer_digest(tokenizer, max_tokens)
        if serial is None:
            self.ids, self.ends = make()  # one caption behind the other; (N_t,)
        else:
            # Neither `padded` nor the padding's id is in the arrays.
            depends_on = (VERSION, texts_digest(texts), serial, max_words, max_tokens, prefix,
                          cleaning, tokenizers.__version__)
            key = f"token-ids-{hashlib.sha256(repr(depends_on).encode()).hexdigest()[:32]}"
            largest_id = max(tokenizer.get_vocab().values(), default=0)
            self.ids, self.ends = kept_arrays(
                cache, key, make,
                lambda ids, ends: are_token_ids(ids, ends, len(texts), max_tokens, largest_id))
        self.pad_id, self.batch_length = tokenizer.pad_token_id, max_tokens if padded else None

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Tensor:
        index = range(len(self))[index]
        start = int(self.ends[index - 1]) if index else 0
        return torch.from_numpy(self.ids[start : int(self.ends[index])].astype(np.int64))

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each caption: (N_t,) int64."""
        return np.diff(self.ends.astype(np.int64), prepend=0)

    def padded(self, rows: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return some of these captions as a batch: ids (B, L) and mask (B, L), 1 on real tokens.
        """
        return pad_captions(rows, self.pad_id, self.batch_length)


def pad_captions(rows: list[Tensor], pad_id: int, length: int | None) -> tuple[Tensor, Tensor]:
    """Return token ids (B, L) and their mask (B, L), padded to `length` or to the longest row."""
    length = length or max(map(len, rows))
    input_ids = torch.full((len(rows), length), pad_id)
    mask = torch.zeros_like(input_ids)
    for number, row in enumerate(rows):
        input_ids[number, : len(row)] = row
        mask[number, : len(row)] = 1
    return input_ids, mask
