"""Scoring a split: how it is encoded and printed, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.captions import word_tokenizer
from helpers.encoders import RES
from helpers.ranks import HAND_METRICS
from PIL import Image

import evaluation
from common.errors import InputError
from common.options import ScoringOptions
from data import LoadedSplit, Split
from encoders.processors import image_statistics
from inputs.captions import Captions

OPTIONS = ScoringOptions(image_encoder="small-convnext", image_stats="clip", image_res=8, workers=0,
                         batch_size_test=3, dataset="flickr")


def test_recalls_are_printed_as_a_table():
    assert evaluation.recall_lines(HAND_METRICS).splitlines() == [
        "           R@1    R@5   R@10   MedR   MeanR",
        "  i -> t   25.0   75.0  100.0      3     3.5",
        "  t -> i   12.5  100.0  100.0      3     2.9",
        "  rsum 412.5",
    ]


class Stub(torch.nn.Module):
    """Embed a photo as its mean colour, and a caption as (real tokens, padding, first id)."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.modes = set()

    def encode_image(self, pixels):
        self.modes.add(self.training)
        return pixels.mean(dim=(2, 3)) * self.scale

    def encode_text(self, input_ids, mask):
        self.modes.add(self.training)
        columns = mask.sum(dim=1), (1 - mask).sum(dim=1), input_ids[:, 0]
        return torch.stack(columns, dim=1) * self.scale


class NumberTokenizer:
    """Turn a caption, which is a number, into 1 to 9 tokens, of which it is the first id."""

    pad_token_id = 0

    def __init__(self, count):
        self.lengths = np.random.default_rng(0).integers(1, 10, size=count)

    def __call__(self, texts, truncation, max_length, padding):
        assert truncation and not padding
        return {"input_ids": [[int(text)] + [1] * (self.lengths[int(text)] - 1) for text in texts]}


def make_eval_set(folder, padded=False):
    """Return a split of seven photos, each of one grey, and 600 captions."""
    photos = [folder / f"{i}.png" for i in range(7)]
    for i, path in enumerate(photos):
        Image.new("RGB", (8, 8), (30 * i, 30 * i, 30 * i)).save(path)
    captions = Captions([str(i) for i in range(600)], NumberTokenizer(600), 30, 12, padded)
    split = Split(folder / "x.json", [path.name for path in photos], [], np.arange(600) % 7)
    return LoadedSplit(split, photos, captions)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_fidelity_note_1_a_split_is_encoded_in_its_order_and_the_mode_is_kept(
        tmp_path, padded, training):
    eval_set, model = make_eval_set(tmp_path, padded), Stub().train(training)
    images, texts = evaluation.encode_split(model, eval_set, OPTIONS)
    assert model.modes == {False} and model.training == training
    greys = torch.arange(7)[:, None] * 30 / 255
    mean, std = (torch.tensor(value) for value in image_statistics(OPTIONS))
    torch.testing.assert_close(images, (greys - mean) / std)
    lengths = torch.from_numpy(eval_set.captions.lengths)
    assert lengths.unique().tolist() == list(range(1, 10))
    assert torch.equal(texts[:, 2], torch.arange(600.0))
    assert torch.equal(texts[:, 0], lengths.float())
    padding = texts[:, 1]
    assert torch.equal(padding, 12.0 - lengths) if padded else padding.max() <= 4
    assert not images.requires_grad and not texts.requires_grad


def test_known_features_give_the_same_embeddings_to_the_bit(dual, tmp_path):
    """And no photo is read."""
    model, options = dual(embed_size=16), dataclasses.replace(OPTIONS, image_res=RES)
    words = "a red blue cat dog runs sits".split()
    captions = [" ".join(words[: number % 7 + 1]) for number in range(600)]
    eval_set = make_eval_set(tmp_path)._replace(
        captions=Captions(captions, word_tokenizer(), 30, 12))
    images = evaluation.encode_photos(model, eval_set.photos, options, project=False)
    texts = evaluation.encode_captions(model, eval_set.captions, project=False)
    assert images.shape == (7, 32) and texts.shape == (600, 32)
    wanted = evaluation.encode_split(model, eval_set, options)
    known = eval_set._replace(photos=[tmp_path / "gone.png"] * 7, image_features=images,
                              text_features=texts)
    for found, expected in zip(evaluation.encode_split(model, known, options), wanted):
        assert torch.equal(found, expected)


def test_embeddings_that_are_not_finite_are_an_input_error(tmp_path):
    model = Stub()
    model.scale.data.fill_(torch.nan)
    with pytest.raises(InputError, match="NaN"):
        evaluation.score(model, make_eval_set(tmp_path), OPTIONS)
