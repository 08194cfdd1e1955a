"""The dual encoder, its momentum copy, and encoders by name.

An encoder is any Hugging Face vision or text model by Hub name or local folder, a tower of a
CLIP-style checkpoint, or one of the small built-in configurations, trained from scratch.
"""

import copy
import inspect
import logging
import os
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from errors import InputError
from photos import CLIP_MEAN, CLIP_STD

SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]",
                  "sep_token": "[SEP]", "mask_token": "[MASK]"}
BUILT_IN = {
    "small-convnext": lambda size, words: transformers.ConvNextConfig(
        patch_size=4, num_stages=3, hidden_sizes=[48, 96, 192], depths=[1, 1, 2],
        layer_scale_init_value=0.0),
    "small-vit": lambda size, words: transformers.ViTConfig(
        image_size=size, patch_size=8, hidden_size=192, num_hidden_layers=6,
        num_attention_heads=3, intermediate_size=768),
    "small-bert": lambda size, words: transformers.BertConfig(
        vocab_size=words, hidden_size=256, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=512, max_position_embeddings=128, attention_probs_dropout_prob=0.0),
    "tiny-bert": lambda size, words: transformers.BertConfig(
        vocab_size=words, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=256, max_position_embeddings=128, attention_probs_dropout_prob=0.0),
}


class ClipTower(nn.Module):
    """One side of a CLIP-style model, with the pooling and projection that it was trained with."""

    def __init__(self, clip: nn.Module, side: str, pad_id: int | None):
        super().__init__()
        self.clip, self.side, self.config = clip, side, clip.config
        setattr(clip, "text_model" if side == "image" else "vision_model", None)  # the other half
        # SigLIP reads its last token, so its captions always had one length, and no mask.
        fixed = side == "text" and clip.config.model_type.startswith("siglip")
        self.length = clip.config.text_config.max_position_embeddings if fixed else None
        self.pad_id = clip.config.text_config.pad_token_id if pad_id is None else pad_id

    def forward(self, **inputs) -> Tensor:
        if self.length:
            ids = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, self.pad_id)
            padding = 0, max(0, self.length - ids.shape[1])
            inputs = {"input_ids": F.pad(ids, padding, value=self.pad_id)}
        output = getattr(self.clip, f"get_{self.side}_features")(**inputs)
        # transformers 4 gives the (B, D) features, 5 wraps them.
        return output if isinstance(output, Tensor) else output.pooler_output


class DualEncoder(nn.Module):
    """An image and a text encoder onto one unit sphere.

    Features are the mean over the last layer's tokens (convolutional encoders: over places;
    CLIP-style ones: their own), then `embed_size` > 0 projects them linearly, then unit norm.

    Args:
        image_encoder, text_encoder: Hugging Face models without a head.
        embed_size: D, or 0 for no projection; then the encoders' widths must agree.
        text_pooling: "tokens" averages real tokens, "padded" all of them (Fidelity note 2).
        freeze: None, "image" or "text": an encoder that stays as it is.
        image_res: side of the photos in pixels, needed to try the encoder out.

    Raises:
        InputError: the widths differ without `embed_size`, or an encoder cannot take the photos.
    """

    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module, embed_size: int = 0,
                 text_pooling: str = "tokens", freeze: str | None = None, image_res: int = 384):
        super().__init__()
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.text_pooling, self.freeze = text_pooling, freeze
        self.image_call = resolution_arguments(image_encoder, image_res)
        self.channels_last = False
        image_dim, text_dim = self.feature_dims(image_res)
        if embed_size == 0 and image_dim != text_dim:
            raise InputError(f"the image encoder is {image_dim} wide and the text encoder "
                             f"{text_dim}: give both a projection with --embed_size 256, say")
        self.embed_size = embed_size or image_dim  # D
        self.image_projection = nn.Linear(image_dim, embed_size) if embed_size else nn.Identity()
        self.text_projection = nn.Linear(text_dim, embed_size) if embed_size else nn.Identity()
        if freeze:
            self.frozen_encoder.requires_grad_(False)
        self.train()

    @property
    def frozen_encoder(self) -> nn.Module | None:
        return getattr(self, f"{self.freeze}_encoder") if self.freeze else None

    @torch.no_grad()
    def feature_dims(self, image_res: int) -> tuple[int, int]:
        """Width of both encoders' features, found by trying; convolutions go to channels last."""
        self.eval()
        pixels = torch.zeros(1, 3, image_res, image_res)
        tokens = torch.zeros(1, 2, dtype=torch.int64)
        try:
            side, flag = "image", f"photos of --image_res {image_res}"
            image = self.image_encoder(pixel_values=pixels, **self.image_call)
            side, flag = "text", "captions"
            text = self.text_encoder(input_ids=tokens, attention_mask=tokens + 1)
        except Exception as error:  # which one depends on the model that is on the wrong side
            raise InputError(f"the {side} encoder (--{side}_encoder) does not take {flag}: "
                             f"{(str(error) or type(error).__name__).splitlines()[0]}") from error
        if hidden(image).ndim == 4:
            self.channels_last = True
            self.image_encoder.to(memory_format=torch.channels_last)
        return pool(image).shape[1], pool(text).shape[1]

    def train(self, mode: bool = True) -> "DualEncoder":
        """Training mode, but a frozen encoder and pretrained batch norm keep evaluating."""
        super().train(mode)
        if self.freeze:
            self.frozen_encoder.eval()
        for module in self.image_encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, R, R) standardised pixels to (B, image width) features, before projection."""
        if self.channels_last:
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.freeze != "image"):
            return pool(self.image_encoder(pixel_values=pixel_values, **self.image_call))

    def text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L) token ids and mask to (B, text width) features, before projection."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.freeze != "text"):
            output = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask)
            return pool(output, attention_mask if self.text_pooling == "tokens" else None)

    def project_image(self, features: Tensor) -> Tensor:
        """Image features to (B, D) unit rows."""
        return F.normalize(self.image_projection(features).float(), dim=1)

    def project_text(self, features: Tensor) -> Tensor:
        """Text features to (B, D) unit rows."""
        return F.normalize(self.text_projection(features).float(), dim=1)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, R, R) standardised pixels to (B, D) unit rows."""
        return self.project_image(self.image_features(pixel_values))

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L) token ids and mask (1 on real tokens) to (B, D) unit rows."""
        return self.project_text(self.text_features(input_ids, attention_mask))


def hidden(output) -> Tensor:
    """The last layer: (B, L, W) tokens, (B, W, h, w) places, or (B, W) where already pooled."""
    return output if isinstance(output, Tensor) else output.last_hidden_state


def pool(output, mask: Tensor | None = None) -> Tensor:
    """Mean over tokens or places, (B, W); over the tokens where `mask` (B, L) is 1, if given."""
    states = hidden(output)
    if states.ndim == 2:
        return states
    if states.ndim == 4:
        return states.mean(dim=(2, 3))
    if mask is None:
        return states.mean(dim=1)
    mask = mask[:, :, None].to(states.dtype)  # (B, L, 1)
    return (states * mask).sum(dim=1) / mask.sum(dim=1)


def resolution_arguments(encoder: nn.Module, image_res: int) -> dict:
    """What a transformer needs to be told to take photos of another size than it was made for."""
    vision = getattr(encoder.config, "vision_config", encoder.config)
    target = encoder.clip.get_image_features if isinstance(encoder, ClipTower) else encoder.forward
    resizable = "interpolate_pos_encoding" in inspect.signature(target).parameters
    if resizable and getattr(vision, "image_size", image_res) != image_res:
        return {"interpolate_pos_encoding": True}
    return {}


def momentum_copy(model: DualEncoder) -> DualEncoder:
    """A copy without gradients that will follow `model`; a frozen encoder is shared, not copied."""
    memo = {id(model.frozen_encoder): model.frozen_encoder} if model.freeze else {}
    return copy.deepcopy(model, memo).requires_grad_(False)


@torch.no_grad()
def update_momentum(momentum_model: DualEncoder, model: DualEncoder, m: float) -> None:
    """momentum <- m momentum + (1 - m) online, for all parameters; buffers are copied."""
    pairs = [(k, q) for k, q in zip(momentum_model.parameters(), model.parameters(), strict=True)
             if k is not q]
    keys, queries = [k for k, _ in pairs], [q.detach() for _, q in pairs]
    torch._foreach_lerp_(keys, queries, 1 - m)
    for key, query in zip(momentum_model.buffers(), model.buffers(), strict=True):
        key.copy_(query)


def load_encoder(
    name: str, side: str, image_res: int, tokenizer=None, pretrained: bool = True
) -> nn.Module:
    """The encoder `name` for `side` "image" or "text", in float32.

    `pretrained=False` makes the architecture with random weights, for a checkpoint to fill. The
    tokenizer decides a built-in text encoder's number of words, and SigLIP's padding.

    Raises:
        InputError: `name` is no built-in, no folder and cannot be had from the Hub.
    """
    if name in BUILT_IN:
        words = len(tokenizer) if tokenizer is not None else 0
        return AutoModel.from_config(BUILT_IN[name](image_res, words))
    config = load_config(name, side)
    try:
        if pretrained:  # transformers 5 would keep a half precision that the weights were saved in
            model = AutoModel.from_pretrained(name, dtype=torch.float32)
        else:
            model = AutoModel.from_config(config, dtype=torch.float32)
    except Exception as error:
        raise unknown_encoder(name, side, error) from error
    if not hasattr(config, "vision_config"):
        return model
    return ClipTower(model, side, tokenizer.pad_token_id if tokenizer is not None else None)


def load_config(name: str, side: str):
    """The configuration of encoder `name`, no built-in one; InputError where it cannot be had."""
    try:
        return AutoConfig.from_pretrained(name)
    except Exception as error:  # the Hub client has a dozen kinds, and all mean the same here
        raise unknown_encoder(name, side, error) from error


def unknown_encoder(name: str, side: str, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(f"--{side}_encoder {name}: not one of {', '.join(BUILT_IN)}, and no local "
                      f"folder or reachable Hugging Face model ({reason})")


def load_tokenizer(name: str, vocab: Path | str):
    """The tokenizer of text encoder `name`; a built-in one reads the WordPiece file `vocab`."""
    if name not in BUILT_IN:
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        except Exception as error:
            raise unknown_encoder(name, "text", error) from error
        # transformers 5 makes one without words for a folder that has no tokenizer files.
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise InputError(f"--text_encoder {name}: has no tokenizer files; save its tokenizer "
                             "there too")
        return tokenizer
    path = Path(vocab) if Path(vocab).is_file() else Path(__file__).parent / vocab
    try:
        words = models.WordPiece.read_file(str(path))
        core = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    except Exception as error:
        raise InputError(f"--vocab {vocab}: not a WordPiece vocabulary ({error})") from error
    missing = [token for token in SPECIAL_TOKENS.values() if token not in words]
    if missing:
        raise InputError(f"--vocab {vocab}: lacks {', '.join(missing)}; make one with "
                         "vocab/build_vocab.py")
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, words[token]) for token in ("[SEP]", "[CLS]")]
    core.post_processor = processors.BertProcessing(*ends)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **SPECIAL_TOKENS)


def pick_device(name: str) -> torch.device:
    """The device of --device; InputError where CUDA is asked for and not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no GPU is visible to PyTorch; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def build_model(options, tokenizer, pretrained: bool = True) -> DualEncoder:
    """The `DualEncoder` that the options describe, in training mode."""
    quiet_transformers()
    image = load_encoder(options.image_encoder, "image", options.image_res, tokenizer, pretrained)
    text = load_encoder(options.text_encoder, "text", options.image_res, tokenizer, pretrained)
    return DualEncoder(image, text, options.embed_size, options.text_pooling, options.freeze,
                       options.image_res)


def image_statistics(options) -> tuple[list[float], list[float]]:
    """Mean and std (3 numbers each) that pixels in [0, 1] are standardised with."""
    if options.image_stats == "clip":
        return list(CLIP_MEAN), list(CLIP_STD)
    try:
        if options.image_encoder in BUILT_IN:
            raise OSError("a built-in encoder has none")
        processor = transformers.AutoImageProcessor.from_pretrained(options.image_encoder)
    except Exception as error:
        raise InputError(f"--image_stats encoder: {options.image_encoder} has no image processor "
                         "to take mean and std from; use --image_stats clip") from error
    return list(processor.image_mean), list(processor.image_std)


def quiet_transformers() -> None:
    """Keep its loading bars and its notes on unused heads off the terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity(logging.ERROR)
