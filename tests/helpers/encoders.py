"""Small encoders of several types, made and saved here, and a batch for them."""

import functools

import torch
import transformers

from encoders.loading import BUILT_IN, load_encoder
from model import DualEncoder

WIDTH, WORDS, RES = 32, 40, 32
PAD, FIRST, LAST = 1, 2, 3
IDS = torch.tensor([[FIRST, 5, 6, 7, LAST], [FIRST, 8, LAST, PAD, PAD], [FIRST, 9, 8, LAST, PAD]])
MASK = (IDS != PAD).long()
SIZES = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
             initializer_range=0.3)
VISION = dict(image_size=RES, patch_size=8, **SIZES)
TEXT = dict(vocab_size=WORDS, max_position_embeddings=12, **SIZES)
IMAGE_KINDS = ["vit", "clip", "siglip", "resnet", "mobilenet"]
TEXT_KINDS = ["bert", "clip", "siglip"]
AS_SHIPPED = dict(BUILT_IN)
SMALL_BERT = dict(hidden_size=40, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                  hidden_dropout_prob=0.1)  # so that what must be random is seen to be
SMALLER = {
    "small-convnext": dict(hidden_sizes=[8, 16, 32], depths=[1, 1, 1]),
    "small-vit": dict(hidden_size=24, num_hidden_layers=2, intermediate_size=48),
    "small-bert": SMALL_BERT, "tiny-bert": SMALL_BERT,
}


def make(kind):
    """Return a model of a type with random weights, without a head; a whole pair for CLIP's."""
    if kind == "vit":
        return transformers.ViTModel(transformers.ViTConfig(**VISION))
    if kind == "bert":
        return transformers.BertModel(transformers.BertConfig(**TEXT))
    if kind == "clip":
        tokens = dict(pad_token_id=PAD, bos_token_id=FIRST, eos_token_id=LAST)
        return transformers.CLIPModel(transformers.CLIPConfig(
            text_config=TEXT | tokens, vision_config=VISION, projection_dim=24))
    if kind == "siglip":
        return transformers.SiglipModel(transformers.SiglipConfig(
            text_config=TEXT | dict(projection_size=WIDTH), vision_config=VISION))
    if kind == "resnet":
        return transformers.ResNetModel(transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[16, WIDTH], depths=[1, 1], layer_type="basic"))
    return transformers.MobileNetV2Model(transformers.MobileNetV2Config(depth_multiplier=0.25))


def shrink_built_in(patch):
    """Have commands build the built-in encoders with fewer and narrower layers."""
    def shrunk(make_config, sizes, *given):
        config = make_config(*given)
        config.update(sizes)
        return config

    for name, sizes in SMALLER.items():
        patch.setitem(BUILT_IN, name, functools.partial(shrunk, AS_SHIPPED[name], sizes))


def save_all(root):
    """Save a model of each type as a Hugging Face folder; batch norms have running statistics."""
    torch.manual_seed(0)
    for kind in sorted({*IMAGE_KINDS, *TEXT_KINDS}):
        model = make(kind).train()
        if kind in ("resnet", "mobilenet"):
            model(pixel_values=torch.randn(8, 3, RES, RES) + 1)
        model.save_pretrained(root / kind)
    return root


def build(folders, image, text, res, **settings):
    """Return a `DualEncoder` of two types that `save_all` saved, in evaluation mode."""
    encoders = (load_encoder(str(folders / kind), side, res, pretrained=True)
                for kind, side in ((image, "image"), (text, "text")))
    torch.manual_seed(1)
    return DualEncoder(*encoders, image_res=res, max_tokens=12, **settings).eval()


def photos(number=3, res=RES):
    """Return standardised pixels (number, 3, res, res), the same in each call."""
    return torch.randn(number, 3, res, res, generator=torch.Generator().manual_seed(2))


def same(got, wanted, tolerance=1e-5):
    """Check that two tensors are equal but for rounding."""
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
