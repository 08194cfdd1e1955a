"""Encoders by name: which weights are loaded, and which names and folders are refused."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers.encoders import IDS, MASK, PAD, TEXT, photos, same
from helpers.paths import ROOT

from common.errors import InputError
from encoders.loading import BUILT_IN, load_encoder
from encoders.processors import load_tokenizer
from model import DualEncoder, build_model
from training.options import TrainOptions

pytestmark = pytest.mark.usefixtures("offline")

SIZES = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
TOKENIZER = load_tokenizer("small-bert", ROOT / "vocab" / "shapes.txt")
BUILT_IN_TEXT = [name for name in BUILT_IN if name.endswith("bert")]
BUILT_IN_IMAGE = [name for name in BUILT_IN if name not in BUILT_IN_TEXT]


@pytest.mark.parametrize("side", ["image", "text"])
def test_an_unknown_name_is_refused_with_the_built_in_ones(tmp_path, side):
    name = str(tmp_path / "nothing")
    with pytest.raises(InputError, match=f"--{side}_encoder .*nothing") as caught:
        load_encoder(name, side, 32, None, pretrained=True)
    assert "\n" not in str(caught.value)
    assert all(built_in in str(caught.value) for built_in in BUILT_IN)


@pytest.mark.parametrize("content", ["{", "{}", '{"model_type": "vit"}', '{"model_type": "x"}'])
def test_a_folder_without_an_encoder_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match="--image_encoder") as caught:
        load_encoder(str(tmp_path), "image", 32, None, pretrained=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pretrained", [True, False])
def test_pretrained_weights_are_loaded_only_where_requested(tmp_path, pretrained):
    saved = transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=8, **SIZES))
    saved.save_pretrained(tmp_path)
    got = load_encoder(str(tmp_path), "image", 32, None, pretrained)
    pairs = list(zip(got.parameters(), saved.parameters(), strict=True))
    assert all(torch.equal(*pair) for pair in pairs) == pretrained
    assert len(pairs) > 10


def test_an_encoder_saved_in_half_precision_is_loaded_in_float32(tmp_path):
    model = transformers.BertModel(transformers.BertConfig(vocab_size=40, **SIZES))
    model.half().save_pretrained(tmp_path)
    got = load_encoder(str(tmp_path), "text", 32, None, pretrained=True)
    assert {parameter.dtype for parameter in got.parameters()} == {torch.float32}


def built_in_options(image, text):
    return TrainOptions(image_encoder=image, text_encoder=text, image_res=64, embed_size=16,
                        image_pooling="auto", text_pooling="auto", freeze=None, max_tokens=30)


@pytest.mark.parametrize("image", BUILT_IN_IMAGE)
@pytest.mark.parametrize("text", BUILT_IN_TEXT)
def test_built_in_encoders(encoders_as_shipped, image, text):
    model = build_model(built_in_options(image, text), TOKENIZER)
    assert model.text_encoder.get_input_embeddings().num_embeddings == len(TOKENIZER)
    assert model.encode_image(torch.randn(2, 3, 64, 64)).shape == (2, 16)
    ids = torch.randint(50, (2, 30))
    assert model.encode_text(ids, torch.ones_like(ids)).shape == (2, 16)
    (model.encode_image(torch.randn(2, 3, 64, 64)) * model.encode_text(ids, ids * 0 + 1)
     ).sum().backward()  # trainable, from scratch
    assert all(p.grad is not None for p in model.image_projection.parameters())


def test_a_photo_size_that_the_image_encoder_does_not_take_is_refused(tmp_path):
    """A photo smaller than one patch has no token."""
    vit = transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=8, **SIZES))
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=40, **SIZES))
    with pytest.raises(InputError, match="--image_res 4") as caught:
        DualEncoder(vit, bert, image_res=4)
    assert "\n" not in str(caught.value)


def test_an_encoder_of_the_other_side_is_refused():
    for image, text in (("small-bert", "small-bert"), ("small-vit", "small-vit"),
                        ("small-vit", "small-convnext")):
        options = built_in_options(image, text)
        side = "image" if image == "small-bert" else "text"
        with pytest.raises(InputError, match=f"{side}[_ ]encoder"):
            build_model(options, TOKENIZER)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.no_grad()
def test_both_halves_of_a_pair_give_the_embeddings_of_the_whole_model(dual, folders, kind):
    """SigLIP was trained without a mask, on captions padded to its greatest length."""
    whole = transformers.AutoModel.from_pretrained(folders / kind).eval()
    text = ({"input_ids": IDS, "attention_mask": MASK} if kind == "clip" else
            {"input_ids": F.pad(IDS, (0, TEXT["max_position_embeddings"] - 5), value=PAD)})
    wanted = [whole.get_image_features(pixel_values=photos()), whole.get_text_features(**text)]
    wanted = [F.normalize(output if isinstance(output, torch.Tensor) else output.pooler_output)
              for output in wanted]  # transformers 4 gives the features, 5 wraps them
    model = dual(kind, kind)
    same(model.encode_image(photos()), wanted[0])
    same(model.encode_text(IDS, MASK), wanted[1])
    for encoder in model.image_encoder, model.text_encoder:  # each has its half only
        parts = {name.split(".")[1] for name, _ in encoder.named_parameters()}
        assert not {"vision_model", "text_model"} <= parts


def test_attention_is_fused(dual):
    for encoder in dual().image_encoder, dual().text_encoder:
        assert encoder.config._attn_implementation == "sdpa"
