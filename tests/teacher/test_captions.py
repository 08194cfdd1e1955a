"""What a teacher makes of captions: a sentence encoder, their own words, or a file."""

import builtins

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers.paths import ROOT
from helpers.runs import contents

from common.errors import InputError
from encoders.processors import load_tokenizer
from teacher.captions import CaptionTeacher

CPU = torch.device("cpu")
CAPTIONS = ["a small red circle", "a small red square", "two dogs run in the snow",
            "dogs running through snow", "a large black star", "the large star is black",
            "a green triangle", "one green triangle on white"]


def teacher_of(name, corpus=CAPTIONS):
    return CaptionTeacher(str(name), lambda: corpus, CPU)


@pytest.fixture(scope="module")
def sentence_encoder(tmp_path_factory):
    """The folder of a small sentence encoder with a pooling of its own: the class token."""
    library = pytest.importorskip("sentence_transformers")
    folder = tmp_path_factory.mktemp("sentences")
    torch.manual_seed(2)
    tokenizer = load_tokenizer("tiny-bert", ROOT / "vocab" / "shapes.txt")
    tokenizer.save_pretrained(folder / "bert")
    transformers.BertModel(transformers.BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=40, hidden_size=24, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=32, initializer_range=0.3)).save_pretrained(
            folder / "bert")
    words = library.base.modules.transformer.Transformer(str(folder / "bert"))
    pooling = library.sentence_transformer.modules.pooling.Pooling(24, pooling_mode="cls")
    library.SentenceTransformer(modules=[words, pooling], device="cpu").save(str(folder / "whole"))
    return folder


def test_a_sentence_encoder_embeds_with_its_own_pooling(sentence_encoder):
    found = teacher_of(sentence_encoder / "whole").embed(CAPTIONS)
    assert found.dtype == torch.float16 and found.shape == (len(CAPTIONS), 24)
    model = transformers.BertModel.from_pretrained(sentence_encoder / "bert").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(sentence_encoder / "bert")
    for caption, row in zip(CAPTIONS, found):
        with torch.no_grad():
            class_token = model(**tokenizer(caption, return_tensors="pt")).last_hidden_state[0, 0]
        torch.testing.assert_close(row.float(), F.normalize(class_token, dim=0), rtol=0, atol=1e-3)


def test_a_folder_of_an_encoder_alone_is_averaged(sentence_encoder):
    """As sentence-transformers does where a folder says nothing of pooling."""
    found = teacher_of(sentence_encoder / "bert").embed(CAPTIONS)
    assert not torch.allclose(found, teacher_of(sentence_encoder / "whole").embed(CAPTIONS))
    assert torch.allclose(found.float().norm(dim=1), torch.ones(len(CAPTIONS)), atol=1e-3)


def test_the_key_tells_encoders_apart(sentence_encoder, tmp_path):
    key = teacher_of(sentence_encoder / "whole").key
    assert key == teacher_of(sentence_encoder / "whole").key
    model = transformers.BertModel.from_pretrained(sentence_encoder / "bert")
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[7, 3] += 1
    model.save_pretrained(tmp_path)
    load_tokenizer("tiny-bert", ROOT / "vocab" / "shapes.txt").save_pretrained(tmp_path)
    assert teacher_of(tmp_path).key != teacher_of(sentence_encoder / "bert").key


def test_latent_dimensions_are_those_of_tf_idf():
    """With as many dimensions as words, similarities are those of the words themselves."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer().fit_transform(CAPTIONS).toarray()  # unit rows
    found = teacher_of("captions").embed(CAPTIONS).float()
    np.testing.assert_allclose((found @ found.T).numpy(), words @ words.T, atol=2e-3)
    assert teacher_of("captions:3").embed(CAPTIONS).shape == (len(CAPTIONS), 3)


def test_latent_dimensions_are_fitted_to_the_corpus_and_the_same_each_time():
    found = teacher_of("captions:3").embed(["a red star", "words never seen"])
    assert torch.equal(found, teacher_of("captions:3").embed(["a red star", "words never seen"]))
    assert found[0].any() and not found[1].any()  # similar to nothing
    other = teacher_of("captions:3", CAPTIONS[::-1][:6]).embed(["a red star"])
    assert not torch.equal(found[:1], other)


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.float64])
def test_a_file_of_embeddings(tmp_path, kind):
    rows = np.random.default_rng(0).normal(size=(8, 5)).astype(kind)
    np.savez(tmp_path / "mine.npz", text_embeds=rows, other=np.zeros(2))
    found = teacher_of(tmp_path / "mine.npz").embed(CAPTIONS)
    torch.testing.assert_close(found.float(), F.normalize(torch.from_numpy(rows).float(), dim=1),
                               rtol=0, atol=1e-3)


def test_a_file_in_bfloat16(tmp_path):
    rows = F.normalize(torch.randn(8, 5), dim=1).bfloat16()
    np.savez(tmp_path / "mine.npz", text_embeds=rows.view(torch.int16).numpy().view(np.uint16))
    found = teacher_of(tmp_path / "mine.npz").embed(CAPTIONS)
    torch.testing.assert_close(found.float(), F.normalize(rows.float(), dim=1), rtol=0, atol=1e-3)


def spoil_file(folder, **arrays):
    np.savez(folder / "mine.npz", **arrays)
    return folder / "mine.npz"


MISTAKES = {
    "no folder": lambda folder: folder / "nothing",
    "an empty folder": lambda folder: folder,
    "no file": lambda folder: folder / "nothing.npz",
    "no array": lambda folder: spoil_file(folder, image_embeds=np.zeros((8, 3))),
    "texts": lambda folder: spoil_file(folder, text_embeds=np.array(["a"] * 8)),
    "objects": lambda folder: spoil_file(folder, text_embeds=np.array([None] * 8)),
    "one dimension": lambda folder: spoil_file(folder, text_embeds=np.ones(8)),
    "too few rows": lambda folder: spoil_file(folder, text_embeds=np.ones((7, 3))),
    "no numbers": lambda folder: spoil_file(folder, text_embeds=np.full((8, 3), np.nan)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_names_the_flag_in_one_line(tmp_path, mistake):
    name = MISTAKES[mistake](tmp_path)
    before = contents(tmp_path)
    with pytest.raises(InputError) as caught:
        teacher_of(name).embed(CAPTIONS)
    assert "--teacher" in str(caught.value) and "\n" not in str(caught.value)
    assert str(name) in str(caught.value) and contents(tmp_path) == before


def test_captions_without_words_are_refused():
    with pytest.raises(InputError, match="--teacher captions"):
        teacher_of("captions", ["!", "?"]).embed(CAPTIONS)


@pytest.mark.parametrize("name, package", [("captions", "sklearn"),
                                           ("some/encoder", "sentence_transformers")])
def test_a_missing_package_is_named_with_the_file_that_has_it(monkeypatch, name, package):
    whole_import = builtins.__import__

    def without(module, *arguments, **keywords):
        if module.split(".")[0] == package:
            raise ImportError(f"No module named {package}")
        return whole_import(module, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="requirements-teacher.txt"):
        teacher_of(name)
