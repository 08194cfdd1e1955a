"""What is searched for: sentences and photos, and their embeddings."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import InputError
from common.files import check_path, is_unicode
from common.terminal import warn
from evaluation import encode_captions
from inputs.captions import clean_caption
from inputs.records import (
    Columns,
    lines_of,
    numbered_lines,
    read_records,
    read_text,
    text_of,
)
from model import DualEncoder

STDIN = "-"
MOST = 2**26  # bytes of standard input
SHOWN = 60  # letters of a query in a message


class Query(NamedTuple):
    """A sentence, photos, or both."""

    text: str | None
    photos: tuple[Path, ...] = ()

    def title(self) -> str:
        """In one line, for people."""
        photos = [f"like {photo.name}" for photo in self.photos]
        return ", ".join([*([self.text] if self.text is not None else []), *photos])


def read_queries(words: list[str], like: list[Path], by_photo: bool = False) -> list[Query]:
    """Queries of the command line; "-" stands for the lines of standard input.

    Each word is a query. The photos of `like` are added to each, or are one query of their own
    where there is no word.

    Args:
        by_photo: words are files of photos, not sentences.

    Raises:
        InputError: there is none, or one says nothing.
    """
    if words.count(STDIN) > 1:
        raise InputError("'-' stands for standard input, which can be read once: give it once")
    texts = [text for word in words
             for text in (standard_input() if word == STDIN else [word])]
    for text in texts:
        if by_photo:
            check_path(Path(text), "photo")
        else:
            check_sentence(text)
    for photo in like:
        check_path(photo, "--like")
    if by_photo:
        queries = [Query(None, (Path(text), *like)) for text in texts]
    else:
        queries = [Query(text, tuple(like)) for text in texts]
    if not queries and not like:
        what = "a photo's file" if by_photo else "a sentence, or a photo with --like"
        raise InputError(f"nothing to search for: give {what}")
    return queries or [Query(None, tuple(like))]


def check_sentence(text: str) -> None:
    """Raise InputError where nothing of a query would reach the model."""
    if not is_unicode(text):
        raise InputError(f"query {text[:SHOWN]!r} is not UTF-8: write it in UTF-8")
    if not clean_caption(text):
        raise InputError(f"query {text[:SHOWN]!r} has no words but for punctuation: say what is "
                         "to be seen")


def standard_input() -> list[str]:
    """The lines of standard input that are not blank.

    Raises:
        InputError: there are none, they are not UTF-8, or too many.
    """
    if sys.stdin is None:
        raise InputError("'-': standard input is closed")
    content = sys.stdin.buffer.read(MOST + 1)
    if len(content) > MOST:
        raise InputError(f"standard input has more than {MOST:,} bytes: give it in parts")
    texts = lines(text_of(content, "standard input"))
    if not texts:
        raise InputError("standard input has no line to search for")
    return texts


def lines(text: str) -> list[str]:
    """The lines of a text that are not blank."""
    return [line for _, line in numbered_lines(lines_of(text))]


def read_captions(path: Path, columns: Columns) -> list[str]:
    """The captions of a file, each once, in its order: the lines of a `.txt`, of "-" those of
    standard input, and what `inputs.records` reads of any other file.

    Raises:
        InputError: it cannot be read, or holds none.
    """
    if str(path) == STDIN:
        texts = standard_input()
    elif path.suffix.lower() == ".txt":
        texts = lines(read_text(path))
    else:
        texts = [text for record in read_records(path, columns=columns)
                 for text in record.captions]
    kept = [text for text in dict.fromkeys(texts) if clean_caption(text)]
    if not kept:
        raise InputError(f"--captions {path} holds no caption")
    return kept


# -------------------------------------------------------------------------------------- embeddings


def embed_queries(model: DualEncoder, queries: list[Query]) -> Tensor:
    """Unit rows (Q, D): the sum of the unit rows of a query's sentence and photos, made a unit row
    again.

    Raises:
        InputError: a photo cannot be read, or the parts of a query cancel each other.
    """
    texts = [query.text for query in queries if query.text is not None]
    rows = iter(embed_texts(model, texts) if texts else ())
    photos = {photo: embed_photo(model, photo) for query in queries for photo in query.photos}
    embeds = []
    for query in queries:
        parts = [photos[photo] for photo in query.photos]
        parts += [next(rows)] if query.text is not None else []
        total = torch.stack(parts).sum(dim=0)  # (D,)
        if not total.norm() > 1e-4:
            raise InputError(f"query {query.title()[:SHOWN]!r}: its parts are each other's "
                             "opposites, so that nothing is left to search for")
        embeds.append(F.normalize(total, dim=0) if len(parts) > 1 else total)
    return torch.stack(embeds)


def embed_texts(model: DualEncoder, texts: list[str]) -> Tensor:
    """Embeddings (N_t, D) of raw texts; of those that the model knows no word of, a warning."""
    captions = model.preparation.captions(texts)
    unknown = getattr(model.preparation.tokenizer, "unk_token_id", None)
    special = set(model.preparation.tokenizer.all_special_ids) - {unknown}
    lost = [text for text, row in zip(texts, map(captions.__getitem__, range(len(texts))))
            if {*row.tolist()} - special == {unknown}]
    if lost:
        warn(f"the model knows no word of {lost[0][:SHOWN]!r}"
             + (f", and of {len(lost) - 1:,} others" if len(lost) > 1 else ""))
    longest = model.preparation.max_words
    cut = sum(len(clean_caption(text, sys.maxsize).split(" ")) > longest for text in texts)
    if cut:
        warn(f"only the first {longest} words count, as in training: {cut:,} texts have more")
    return check_finite(encode_captions(model, captions))


@torch.no_grad()
def embed_photo(model: DualEncoder, photo: Path) -> Tensor:
    """(D,) of a photo's file."""
    if not os.path.isfile(photo):
        raise InputError(f"photo {photo} is no file: name one")
    pixels = model.preparation.pixels([photo])
    embeds = model.encode_image(pixels.to(next(model.parameters()).device))
    return check_finite(embeds.float().cpu())[0]


def check_finite(embeds: Tensor) -> Tensor:
    """The same embeddings; InputError where a model gives what is no number."""
    if not embeds.isfinite().all():
        raise InputError("the model's embeddings hold NaN or infinity: it is damaged, or was not "
                         "trained well")
    return embeds.float()
