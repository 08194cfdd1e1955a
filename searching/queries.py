"""What is searched for, sentences and photos, and its embeddings."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import InputError, one_line
from common.files import check_path, is_unicode
from common.terminal import print_note, warn
from evaluation import encode_captions
from inputs.captions import clean_caption
from inputs.photos import Photo
from inputs.records import (
    Columns,
    lines_of,
    numbered_lines,
    read_records,
    read_text,
    text_of,
)
from model import DualEncoder
from searching.encoding import NO_EMBEDDINGS
from searching.exact import are_unit_rows

STDIN = "-"  # a query or file that stands for standard input
MOST_STDIN_BYTES = 2**26  # of standard input
SHOWN_LETTERS = 60  # of a query in a message
LEAST_NORM = 1e-4  # of the sum of a query's unit vectors; below it they cancel each other


class Query(NamedTuple):
    """What one search is for: a sentence, photos, or both."""

    text: str | None
    photos: tuple[Photo, ...] = ()

    def title(self) -> str:
        """Return the query in words, such as "a red car, like photo.jpg"."""
        photos = [f"like {photo.name}" for photo in self.photos]
        sentence = [] if self.text is None else [self.text]
        return ", ".join([*sentence, *photos])


def read_queries(words: list[str], like: list[Path], by_photo: bool = False) -> list[Query]:
    """Return the queries of the command line.

    Each word is a query, and "-" stands for one query for each line of standard input. The photos
    of `like` are added to each query, or are one query of their own where there is no word.

    Args:
        words: sentences, or files of photos.
        like: files of photos.
        by_photo: whether `words` are files of photos, and not sentences.

    Raises:
        InputError: there is no query, or one of them says nothing.
    """
    if words.count(STDIN) > 1:
        raise InputError("'-' stands for standard input, which can be read once: give it once")
    texts = []
    for word in words:
        texts += read_standard_input() if word == STDIN else [word]
    for text in texts:
        if by_photo:
            check_path(Path(text), "photo")
        else:
            check_sentence(text)
    for photo in like:
        check_path(photo, "--like")
    if not texts and not like:
        missing = "a photo's file" if by_photo else "a sentence, or a photo with --like"
        raise InputError(f"nothing to search for: give {missing}")
    if not texts:
        return [Query(None, tuple(like))]
    if by_photo:
        return [Query(None, (Path(text), *like)) for text in texts]
    return [Query(text, tuple(like)) for text in texts]


def check_sentence(text: str) -> None:
    """Raise InputError where nothing of a sentence would reach the model."""
    if not is_unicode(text):
        raise InputError(f"query {text[:SHOWN_LETTERS]!r} is not UTF-8: write it in UTF-8")
    if not clean_caption(text):
        raise InputError(f"query {text[:SHOWN_LETTERS]!r} has no words but for punctuation: say "
                         "what is to be seen")


def read_standard_input() -> list[str]:
    """Return the lines of standard input that are not blank.

    Raises:
        InputError: there is no line, or too many bytes, or they are not UTF-8.
    """
    if sys.stdin is None:
        raise InputError("'-': standard input is closed")
    try:
        content = sys.stdin.buffer.read(MOST_STDIN_BYTES + 1)
    except (OSError, ValueError) as error:  # a folder, or open for writing only, or closed
        raise InputError(f"'-': standard input cannot be read ({one_line(error)}): give it a file "
                         "or a pipe") from error
    if len(content) > MOST_STDIN_BYTES:
        raise InputError(f"standard input has more than {MOST_STDIN_BYTES:,} bytes: give it in "
                         "parts")
    texts = nonblank_lines(text_of(content, "standard input"))
    if not texts:
        raise InputError("standard input has no line to search for")
    return texts


def nonblank_lines(text: str) -> list[str]:
    """Return the lines of a text that are not blank."""
    return [line for _, line in numbered_lines(lines_of(text))]


def read_captions(path: Path, columns: Columns) -> list[str]:
    """Return the captions of a file in their order, each once, without those that have no word.

    Args:
        path: a `.txt` with a caption on each line, "-" for the lines of standard input, or any
            other captions file that `inputs.records` reads.
        columns: names of the columns of a table.

    Raises:
        InputError: the file cannot be read, or holds no caption.
    """
    if str(path) == STDIN:
        texts = read_standard_input()
    elif path.suffix.lower() == ".txt":
        texts = nonblank_lines(read_text(path))
    else:
        records = read_records(path, columns=columns, announce=print_note)
        texts = [text for record in records for text in record.captions]
    unique = dict.fromkeys(texts)
    captions = [text for text in unique if clean_caption(text)]
    if not captions:
        raise InputError(f"--captions {path} holds no caption")
    return captions


# -------------------------------------------------------------------------------------- embeddings


def embed_queries(model: DualEncoder, queries: list[Query]) -> Tensor:
    """Return the embeddings of queries, (Q, D) unit rows.

    The embedding of a query is the sum of the unit rows of its sentence and its photos, scaled to a
    unit row again.

    Args:
        model: a dual encoder with its `preparation`, in evaluation mode.

    Raises:
        InputError: a photo cannot be read, or the rows of a query cancel each other.
    """
    texts = [query.text for query in queries if query.text is not None]
    text_rows = iter(embed_texts(model, texts) if texts else ())
    photo_rows = {}
    for query in queries:
        for photo in query.photos:
            if photo not in photo_rows:
                photo_rows[photo] = embed_photo(model, photo)
    embeds = []
    for query in queries:
        rows = [photo_rows[photo] for photo in query.photos]
        if query.text is not None:
            rows.append(next(text_rows))
        total = torch.stack(rows).sum(dim=0)  # (D,)
        if not total.norm() > LEAST_NORM:
            raise InputError(f"query {query.title()[:SHOWN_LETTERS]!r}: its parts are each other's "
                             "opposites, so that nothing is left to search for")
        embeds.append(F.normalize(total, dim=0) if len(rows) > 1 else total)
    return torch.stack(embeds)


def embed_texts(model: DualEncoder, texts: list[str]) -> Tensor:
    """Return the embeddings (N_t, D) of raw texts, and warn of words that do not count.

    Args:
        model: a dual encoder with its `preparation`, in evaluation mode.
    """
    captions = model.preparation.captions(texts)
    tokenizer = model.preparation.tokenizer
    unknown = getattr(tokenizer, "unk_token_id", None)
    special = set(tokenizer.all_special_ids) - {unknown}
    unknown_texts = []
    for index, text in enumerate(texts):
        if set(captions[index].tolist()) - special == {unknown}:
            unknown_texts.append(text)
    if unknown_texts:
        others = f", and of {len(unknown_texts) - 1:,} others" if len(unknown_texts) > 1 else ""
        warn(f"the model knows no word of {unknown_texts[0][:SHOWN_LETTERS]!r}{others}")
    # Raw captions are cut by tokens alone.
    max_words = sys.maxsize if model.preparation.cleaning == "raw" else model.preparation.max_words
    too_long = sum(len(clean_caption(text, sys.maxsize).split(" ")) > max_words for text in texts)
    if too_long:
        warn(f"only the first {max_words} words count, as in training: {too_long:,} texts have "
             "more")
    return check_unit_rows(encode_captions(model, captions))


@torch.no_grad()
def embed_photo(model: DualEncoder, photo: Photo) -> Tensor:
    """Return the embedding (D,) of a photo.

    Raises:
        InputError: the photo cannot be read.
    """
    if isinstance(photo, Path) and not os.path.isfile(photo):
        raise InputError(f"photo {photo} is no file: name one")
    pixels = model.preparation.pixels([photo])
    embeds = model.encode_image(pixels.to(next(model.parameters()).device))
    return check_unit_rows(embeds.cpu())[0]


def check_unit_rows(embeds: Tensor) -> Tensor:
    """Return embeddings (n, D) in float32; raise InputError where one of them is no unit row."""
    embeds = embeds.float()
    if not are_unit_rows(embeds).all():
        raise InputError(f"the model {NO_EMBEDDINGS}")
    return embeds
