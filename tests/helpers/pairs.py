"""Small pretrained pairs of every supported type, made and saved here with their processors."""

import numpy as np
import torch
import transformers as T
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", ".", ",",
         "Two", "dogs", "two", "play", "in", "the", "snow", "A", "red", "car"]
PAD, FIRST, LAST = 0, 1, 2
RES, PATCH, LENGTH = 32, 8, 12
SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
             initializer_range=0.3)
VISION = dict(image_size=RES, patch_size=PATCH, **SIZES)
TEXT = dict(vocab_size=len(WORDS), max_position_embeddings=LENGTH + 4, pad_token_id=PAD,
            bos_token_id=FIRST, eos_token_id=LAST, **SIZES)
PAIR = dict(text_config=TEXT, vision_config=VISION, projection_dim=10, initializer_range=0.3,
            initializer_factor=1.0)
NETWORK = dict(image_size=RES, width_coefficient=0.25, depth_coefficient=0.2, hidden_dim=16,
               kernel_sizes=[3, 3], in_channels=[32, 16], out_channels=[16, 24],
               depthwise_padding=[], strides=[1, 2], num_block_repeats=[1, 1],
               expand_ratios=[1, 4], initializer_range=0.3)
MODELS = {
    "clip": lambda: T.CLIPModel(T.CLIPConfig(**PAIR)),
    "metaclip_2": lambda: T.MetaClip2Model(T.MetaClip2Config(**PAIR)),
    "siglip": lambda: T.SiglipModel(T.SiglipConfig(
        text_config=TEXT | {"projection_size": 16, "max_position_embeddings": LENGTH},
        vision_config=VISION)),
    "altclip": lambda: T.AltCLIPModel(T.AltCLIPConfig(**PAIR | dict(
        text_config=TEXT | {"project_dim": 14, "type_vocab_size": 1}))),
    "chinese_clip": lambda: T.ChineseCLIPModel(T.ChineseCLIPConfig(**PAIR)),
    "align": lambda: T.AlignModel(T.AlignConfig(
        text_config=TEXT, vision_config=NETWORK, projection_dim=8, temperature_init_value=0.2)),
    "blip": lambda: T.BlipModel(T.BlipConfig(**PAIR)),
    "blip_retrieval": lambda: T.BlipForImageTextRetrieval(T.BlipConfig(
        **PAIR, image_text_hidden_size=10)),
}
SIDE = dict(size={"height": RES, "width": RES})
IMAGE_PROCESSORS = {
    "siglip": lambda: T.SiglipImageProcessor(resample=2, **SIDE),
    "chinese_clip": lambda: T.ChineseCLIPImageProcessor(do_center_crop=False, **SIDE),
    "align": lambda: T.EfficientNetImageProcessor(
        size={"height": 38, "width": 38}, crop_size={"height": RES, "width": RES},
        do_center_crop=True, include_top=False, rescale_offset=True, rescale_factor=1 / 127.5),
    "blip": lambda: T.BlipImageProcessor(**SIDE),
    "blip_retrieval": lambda: T.BlipImageProcessor(**SIDE),
}


def clip_processor():
    """Return CLIP's image processor for small photos: the short side is resized, then cropped."""
    return T.CLIPImageProcessor(size={"shortest_edge": RES},
                                crop_size={"height": RES, "width": RES})


def make_tokenizer(length=LENGTH, padding_side="right", lower=False):
    """Return a tokenizer of `WORDS` that keeps first and last token where it cuts a caption."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    if lower:
        core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", FIRST), ("</s>", LAST)])
    return T.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", model_max_length=length, padding_side=padding_side)


def make_pair(kind, seed=0):
    """Return a pair of a kind of `MODELS` with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    pair = MODELS[kind]()
    with torch.no_grad():  # so that nothing is zero or one that a mistake could then leave out
        for name, weight in pair.named_parameters():
            if weight.ndim <= 1 and name != "temperature":
                weight.add_(0.1 * torch.randn_like(weight))
    return pair.eval()


def save_pair(folder, kind, tokenizer=None):
    """Save a pair with its tokenizer and image processor as a folder of the Hub's format."""
    pair = make_pair(kind)
    if kind == "align":  # its batch norms have seen photos
        pair.train()
        pair.vision_model(torch.randn(8, 3, RES, RES) + 1)
        pair.eval()
    pair.save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    IMAGE_PROCESSORS.get(kind, clip_processor)().save_pretrained(folder)
    return folder


CAPTIONS = ["Two dogs play in the snow.", "A red car",
            "two dogs, two dogs, play in the snow. a b c d e f g h i j k"]


def save_photos(folder):
    """Save three photos of several shapes, and return their files."""
    random = np.random.default_rng(0)
    for number, (width, height) in enumerate([(61, 45), (40, 77), (33, 32)]):
        noise = random.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((width, height)).save(folder / f"{number}.png")
    return [folder / f"{number}.png" for number in range(3)]


@torch.no_grad()
def embed(model, photos, texts=CAPTIONS):
    """Return the embeddings that a `DualEncoder` gives photo files and raw captions."""
    captions = model.preparation.captions(texts)
    return (model.encode_image(model.preparation.pixels(photos)),
            model.encode_text(*captions.padded([captions[i] for i in range(len(captions))])))


def same(got, wanted):
    """Check that vectors equal those of a pair's own library, within 1e-5."""
    torch.testing.assert_close(torch.as_tensor(got), wanted, rtol=0, atol=1e-5)
