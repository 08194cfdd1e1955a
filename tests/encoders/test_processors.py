"""Tokenizers and pixel statistics by an encoder's name: which are loaded, and which refused."""

import json
from argparse import Namespace

import pytest
import transformers
from helpers.captions import PUBLISHED
from helpers.paths import ROOT

from common.errors import InputError
from common.presets import IMAGE_ENCODER
from encoders.loading import BUILT_IN
from encoders.processors import image_statistics, load_tokenizer, pixel_statistics
from inputs.photos import CLIP_MEAN, CLIP_STD
from training.options import TrainOptions, parse

pytestmark = pytest.mark.usefixtures("offline")

SIZES = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
VOCABULARIES = ["vocab/flickr30k.txt", "vocab/shapes.txt"]
BUILT_IN_TEXT = [name for name in BUILT_IN if name.endswith("bert")]
BUILT_IN_IMAGE = [name for name in BUILT_IN if name not in BUILT_IN_TEXT]
CAPTIONS = [pair["clean"] for pair in PUBLISHED] + [
    "Café  NAÏVE, zebra-striped!", "a 狗 runs 🐕", ""]


# --------------------------------------------------------------------------------------- tokenizers


@pytest.mark.parametrize("name", BUILT_IN_TEXT)
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_shipped_vocabularies_give_the_token_ids_of_bert(tmp_path, monkeypatch, name, vocab):
    """A relative --vocab is found beside the code from any working folder."""
    monkeypatch.chdir(tmp_path)
    tokenizer = load_tokenizer(name, vocab)
    words = (ROOT / vocab).read_text(encoding="utf-8").splitlines()
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    reference = transformers.BertTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == len(words) == len(set(words)) and tokenizer.pad_token_id == 0
    got, wanted = tokenizer(CAPTIONS)["input_ids"], reference(CAPTIONS)["input_ids"]
    assert got == wanted
    cut = tokenizer(CAPTIONS, truncation=True, max_length=6)["input_ids"]
    assert cut == reference(CAPTIONS, truncation=True, max_length=6)["input_ids"]
    assert max(map(len, cut)) == 6 and all(row[-1] == tokenizer.sep_token_id for row in cut)


def test_a_caption_is_encoded_and_decoded_again():
    tokenizer = load_tokenizer("small-bert", "vocab/flickr30k.txt")
    text = "a man in an orange hat stares at something"
    ids = tokenizer(text)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert (tokens[0], tokens[-1], tokens.count("[UNK]")) == ("[CLS]", "[SEP]", 0)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokens[1:3] == ["a", "man"]
    ids = sum(tokenizer([pair["clean"] for pair in PUBLISHED])["input_ids"], [])
    assert ids.count(tokenizer.unk_token_id) < 0.005 * len(ids)


@pytest.mark.parametrize(("content", "named"), [
    (None, "WordPiece"),
    ("a\nman\n", r"\[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]"),
    ("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n", r" \[MASK\]")])
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path, content, named):
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=f"--vocab .*words.txt: .*{named}") as caught:
        load_tokenizer("small-bert", path)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_is_loaded_from_the_folder_of_its_encoder(tmp_path):
    load_tokenizer("small-bert", "vocab/shapes.txt").save_pretrained(tmp_path / "encoder")
    transformers.BertConfig().save_pretrained(tmp_path / "encoder")
    tokenizer = load_tokenizer(str(tmp_path / "encoder"), "no matter")
    assert tokenizer(CAPTIONS)["input_ids"] == load_tokenizer(
        "small-bert", "vocab/shapes.txt")(CAPTIONS)["input_ids"]
    with pytest.raises(InputError, match="--text_encoder .*nothing") as caught:
        load_tokenizer(str(tmp_path / "nothing"), "no matter")
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_vocabulary_is_refused(tmp_path):
    """transformers 5 makes a tokenizer of special tokens for it, for which every word is [UNK]."""
    model = transformers.BertModel(transformers.BertConfig(vocab_size=40, **SIZES))
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="--text_encoder"):
        load_tokenizer(str(tmp_path), "no matter")


# --------------------------------------------------------------------------------- pixel statistics

CLIP = tuple(CLIP_MEAN), tuple(CLIP_STD)


def statistics(stats, name):
    return pixel_statistics(Namespace(image_stats=stats, image_encoder=str(name)))


def write_processor(folder, **content):
    (folder / "preprocessor_config.json").write_text(json.dumps(
        {"image_processor_type": "ViTImageProcessor", **content}))


def test_pixel_statistics_are_those_of_the_flag(tmp_path):
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    write_processor(tmp_path, image_mean=mean, image_std=std)
    for stats in "encoder", "auto":
        assert statistics(stats, tmp_path) == (mean, std, f"those of {tmp_path}")
    assert statistics("clip", tmp_path) == (*CLIP, "CLIP's")
    options = TrainOptions(image_stats="encoder", image_encoder=str(tmp_path))
    assert image_statistics(options) == (list(mean), list(std))


def test_a_processor_that_does_not_standardise_has_mean_0_and_deviation_1(tmp_path):
    write_processor(tmp_path, do_normalize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    assert statistics("encoder", tmp_path)[:2] == ((0, 0, 0), (1, 1, 1))


def test_the_published_encoder_keeps_clips_statistics(monkeypatch):
    """It is known by its name. Its own statistics on the Hub, 0.5, are not asked for."""
    assert parse("", ["--data_path", "x"])[0].image_encoder == IMAGE_ENCODER
    monkeypatch.delattr(transformers.AutoImageProcessor, "from_pretrained")
    assert statistics("auto", IMAGE_ENCODER) == (*CLIP, "CLIP's, as published")


def test_an_encoder_without_image_processor_has_clips_statistics_or_is_refused(tmp_path):
    """A folder is known to have none; a model that cannot be had from the Hub is refused."""
    assert statistics("auto", tmp_path) == (*CLIP, f"CLIP's, since {tmp_path} has none of its own")
    for stats, name in ("encoder", tmp_path), ("auto", "nobody/nothing"):
        with pytest.raises(InputError, match=f"--image_stats {stats}: {name} .*clip") as caught:
            statistics(stats, name)
        assert "\n" not in str(caught.value)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(InputError, match=f"--image_stats auto: {tmp_path}/. .*clip"):
        statistics("auto", f"{tmp_path}/.")


@pytest.mark.parametrize("name", BUILT_IN_IMAGE)
def test_built_in_encoders_have_no_pixel_statistics(monkeypatch, name):
    """The Hub is not asked for a model that happens to have their name."""
    requests = []

    def request(*arguments, **settings):
        requests.append(arguments)
        raise OSError

    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", request)
    with pytest.raises(InputError, match=f"--image_stats encoder: {name} .*clip"):
        statistics("encoder", name)
    assert statistics("auto", name) == (*CLIP, f"CLIP's, since {name} has none of its own")
    assert not requests


def test_pixel_statistics_are_loaded_once(tmp_path):
    """Each validation needs them, and the Hub may not answer any more by then."""
    write_processor(tmp_path, image_mean=[0.1] * 3, image_std=[0.2] * 3)
    first = statistics("encoder", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    assert statistics("encoder", tmp_path) == first


def test_pixel_statistics_of_the_real_mobilenet(shared):
    folder = shared / "encoders" / "mobilenet_v2"
    assert statistics("auto", folder)[:2] == statistics("encoder", folder)[:2] == (
        (0.5,) * 3, (0.5,) * 3)
