"""Captions: the published cleaning, tokens as if one by one, padding."""

import pytest
import torch
from helpers.captions import PUBLISHED, word_tokenizer

from common.errors import InputError
from inputs.captions import Captions, clean_caption, pad_captions


def test_cleaning_is_the_published_one():
    assert len(PUBLISHED) > 200
    cleaned = [clean_caption(pair["raw"]) for pair in PUBLISHED]
    assert cleaned == [pair["clean"] for pair in PUBLISHED]


def test_cleaning_by_hand():
    assert clean_caption("  A well-lit <Person>, on/off: 'Hi!'  ") == "a well lit person on off hi"
    assert clean_caption("a b c d", max_words=2) == "a b"
    assert clean_caption(" ".join("x" * 31)) == " ".join("x" * 30)
    assert clean_caption("") == ""


@pytest.mark.parametrize(("max_words", "max_tokens"), [(30, 30), (2, 30), (30, 3), (3, 2)])
def test_captions_are_those_tokenised_one_by_one(max_words, max_tokens):
    tokenizer = word_tokenizer()
    texts = ["A red cat, runs.", "dog", "a BLUE dog sits; a red cat runs", "zebra-cat"] * 1100
    captions = Captions(texts, tokenizer, max_words, max_tokens)
    assert len(captions) == len(texts)
    for index in (0, 1, 2, 3, 4095, 4096, 4399):
        ids = tokenizer(clean_caption(texts[index], max_words))["input_ids"][:max_tokens]
        assert captions[index].tolist() == ids and captions.lengths[index] == len(ids)
        assert captions[index].dtype == torch.int64


@pytest.mark.parametrize(("length", "width"), [(None, 3), (5, 5)])
def test_padding(length, width):
    ids, mask = pad_captions([torch.tensor(row) for row in ([4, 5, 6], [7])], 9, length)
    rest = [0] * (width - 3)
    assert ids.tolist() == [[4, 5, 6] + [9 for _ in rest], [7, 9, 9] + [9 for _ in rest]]
    assert mask.tolist() == [[1, 1, 1] + rest, [1, 0, 0] + rest]
    assert ids.dtype == mask.dtype == torch.int64


@pytest.mark.parametrize(("padded", "length"), [(False, None), (True, 7)])
def test_captions_know_their_padding(padded, length):
    """The tokenizer's own pad id, here 3; as long as the longest of the batch, or as max_tokens."""
    tokenizer = word_tokenizer("[UNK] a cat [PAD] dog")
    assert tokenizer.pad_token_id == 3
    captions = Captions(["a cat a dog", "dog", "a dog"], tokenizer, 30, 7, padded)
    rows = [captions[2], captions[1]]
    ids, mask = captions.padded(rows)
    wanted = pad_captions(rows, 3, length)
    assert torch.equal(ids, wanted[0]) and torch.equal(mask, wanted[1])
    assert ids[1].tolist() == [4] + [3] * ((length or 2) - 1)


def test_a_caption_without_tokens_is_named():
    with pytest.raises(InputError, match=r"caption 1 \(counted from 0\), '...', has no tokens"):
        Captions(["a cat", "...", "dog"], word_tokenizer(), 30, 30)
