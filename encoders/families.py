"""Which Hugging Face models can be encoders, and how each type is loaded, pooled and resized.

`SUPPORTED` has an entry for each `model_type` of a configuration. docs/encoders.md shows it as a
table, and `tests/encoders/test_families.py` trains one small model of every type. Any other type is
refused: a model that is loaded but read wrongly trains all the same, only worse.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from common.errors import InputError

DOCS = "docs/encoders.md"


class Family(NamedTuple):
    """How all models of one type are loaded, pooled and resized.

    Attributes:
        sides: "image", "text" or both: the sides of a dual encoder that such a model can be.
        poolings: The poolings that make sense for it, see `encoders.pooling.pool`. The first is its
            default.
        excluded_tokens: Function of a configuration that returns how many tokens at the front are
            no patches of the photo, and are left out of "mean".
        own_pooling: Function of encoder and last hidden state that returns features (B, W), for
            the pooling "own"; None if the model has no pooling layers.
        loader_class: Name of the class of transformers that loads it.
        classes: Names of the classes that load it where the type has several; the configuration
            names one of them.
        interpolates_positions: Whether the model needs the argument `interpolate_pos_encoding` for
            photos of another size than in pretraining. Other models take them as they are.
        accepts_4d_mask: Whether every token attends to every real token in all layers, so that a
            mask (B, 1, L, L) made from one of (B, L) means the same.
    """

    sides: tuple[str, ...]
    poolings: tuple[str, ...]
    excluded_tokens: Callable[[object], int] = lambda config: 0
    own_pooling: Callable[[nn.Module, Tensor], Tensor] | None = None
    loader_class: str = "AutoModel"
    classes: tuple[str, ...] = ()
    interpolates_positions: bool = False
    accepts_4d_mask: bool = False


def pooler(encoder: nn.Module, states: Tensor) -> Tensor:
    """Apply a ViT's or BERT's `pooler`, trained with the model's first task, to (B, L, W)."""
    return encoder.pooler(states)


def norm_of_mean(encoder: nn.Module, states: Tensor) -> Tensor:
    """Average a ConvNeXt's feature map (B, W, h, w) and apply the model's final norm: (B, W)."""
    return encoder.layernorm(states.mean(dim=(2, 3)))


def timm_head(encoder: nn.Module, states: Tensor) -> Tensor:
    """Apply the pooling of a timm model's head to its last hidden state: (B, W)."""
    return encoder.timm_model.forward_head(states)


def pair_head(encoder: nn.Module, states: Tensor) -> Tensor:
    """Apply the head of a `pairs.PairHalf` to what its `forward` returned: (B, D)."""
    return encoder.head(states)


def class_token(config) -> int:
    """Return 1: the class token stands before the patches."""
    return 1


def class_and_registers(config) -> int:
    """Return the number of tokens before the patches: the class token and the registers."""
    return 1 + config.num_register_tokens


IMAGE, TEXT, PAIR = ("image",), ("text",), ("image", "text")
VIT = Family(IMAGE, ("mean", "cls", "own"), own_pooling=pooler, interpolates_positions=True)
BEIT = VIT._replace(excluded_tokens=class_token)
DINO = Family(IMAGE, ("mean", "cls"), excluded_tokens=class_and_registers)
SWIN = Family(IMAGE, ("mean",), interpolates_positions=True)
CONVNEXT = Family(IMAGE, ("mean", "own"), own_pooling=norm_of_mean)
CONVOLUTIONS = Family(IMAGE, ("mean",))
TIMM = Family(IMAGE, ("own",), own_pooling=timm_head)
CLIP = Family(PAIR, ("own",), own_pooling=pair_head, interpolates_positions=True)
ALIGN = CLIP._replace(interpolates_positions=False)
BLIP = CLIP._replace(classes=("BlipForImageTextRetrieval", "BlipModel"))
BERT = Family(TEXT, ("tokens", "padded", "cls", "own"), own_pooling=pooler, accepts_4d_mask=True)
DISTILBERT = Family(TEXT, ("tokens", "padded", "cls"), accepts_4d_mask=True)
MODERNBERT = DISTILBERT._replace(accepts_4d_mask=False)  # its layers attend to different spans
T5 = Family(TEXT, ("tokens", "padded"), accepts_4d_mask=True)
DECODER = Family(TEXT, ("last", "tokens", "padded"))

SUPPORTED = {
    "vit": VIT,
    "deit": VIT,
    "vit_msn": VIT._replace(poolings=("mean", "cls"), own_pooling=None),
    "beit": BEIT,
    "data2vec-vision": BEIT._replace(poolings=("mean", "cls"), own_pooling=None),
    "dinov2": DINO._replace(excluded_tokens=class_token),
    "dinov2_with_registers": DINO,
    "dinov3_vit": DINO,
    "dinov3_convnext": DINO._replace(excluded_tokens=class_token),
    "swin": SWIN,
    "swinv2": SWIN,
    "convnext": CONVNEXT,
    "convnextv2": CONVNEXT,
    "resnet": CONVOLUTIONS,
    "regnet": CONVOLUTIONS,
    "mobilenet_v1": CONVOLUTIONS,
    "mobilenet_v2": CONVOLUTIONS,
    "timm_wrapper": TIMM,
    "clip": CLIP,
    "metaclip_2": CLIP,
    "siglip": CLIP,
    "altclip": CLIP,
    "chinese_clip": CLIP,
    "align": ALIGN,
    "blip": BLIP,
    "open_clip": ALIGN._replace(loader_class="CustomTextCLIP"),
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "camembert": BERT,
    "mpnet": BERT._replace(accepts_4d_mask=False),  # adds the mask to its position bias
    "electra": DISTILBERT,
    "albert": DISTILBERT,
    "distilbert": DISTILBERT,
    "modernbert": MODERNBERT,
    "t5": T5._replace(loader_class="T5EncoderModel"),
    "mt5": T5._replace(loader_class="MT5EncoderModel"),
    "umt5": T5._replace(loader_class="UMT5EncoderModel"),
    "gpt2": DECODER,
    "gpt_neox": DECODER,
    "llama": DECODER,
    "mistral": DECODER,
    "qwen2": DECODER,
    "qwen3": DECODER,
}

HALF_OF_A_PAIR = "half of a pair: name the whole checkpoint, and its other half is left out"
# Types that load but cannot work, with the reason that the error gives.
REFUSED = {
    "vit_mae": "it hides patches at random whenever it is asked",
    "siglip2": "its NaFlex photos are patches of any shape; SigLIP 2 of a fixed size is a siglip",
    "funnel": "it pools tokens with the padding beside them",
    "bart": "its last layer is a decoder's, which reads the caption a second time",
    "mbart": "its last layer is a decoder's, which reads the caption a second time",
    "blip-2": "its photos have 32 embeddings each, of which the best one counts",
    "vilt": "it reads photo and caption together, and has no embedding of either alone",
    "clipseg": "it segments photos: name the CLIP that it is made of",
    "owlvit": "it was trained to find objects in photos, not to retrieve photos",
    "owlv2": "it was trained to find objects in photos, not to retrieve photos",
    "xclip": "it reads videos",
    "vision-text-dual-encoder": "name its two encoders, each for its side",
    "clip_vision_model": HALF_OF_A_PAIR,
    "clip_text_model": HALF_OF_A_PAIR,
    "siglip_vision_model": HALF_OF_A_PAIR,
    "siglip_text_model": HALF_OF_A_PAIR,
}


def find_family(config, side: str, name: str = "", source: str | None = None) -> Family:
    """Return the entry of `SUPPORTED` for a configuration, checked for one side.

    Args:
        config: A configuration of transformers, or anything else with a `model_type`.
        side: "image" or "text", the side that the encoder is for.
        name: The encoder's name as the flag gave it, for the error message.
        source: What the error message begins with in place of flag and `name`.

    Raises:
        InputError: If models of this type are not supported, or are for the other side.
    """
    model_type = getattr(config, "model_type", None)
    family = SUPPORTED.get(model_type)
    source = source or f"--{side}_encoder {name}".rstrip()
    if family is None:
        reason = f" ({REFUSED[model_type]})" if model_type in REFUSED else ""
        raise InputError(f"{source}: models of type {model_type} are not supported{reason}; {DOCS} "
                         "lists those that are")
    if side not in family.sides:
        raise InputError(f"{source}: models of type {model_type} are for the other side, "
                         f"--{family.sides[0]}_encoder; {DOCS} lists those for this one")
    return family


def choose_pooling(encoder: nn.Module, side: str, requested: str) -> str:
    """Return the pooling that --image_pooling or --text_pooling means for an encoder.

    Args:
        encoder: The encoder of `side`.
        side: "image" or "text".
        requested: The flag's value. "auto" means the default of the encoder's family.

    Raises:
        InputError: If the family has no such pooling, or the encoder's file has no weights for it.
    """
    model_type = encoder.config.model_type
    family = find_family(encoder.config, side)
    if requested == "auto":
        return family.poolings[0]
    if requested == "tokens" and family.poolings == ("own",):
        # Checkpoints from before the flag had a choice say "tokens" for CLIP's text encoders.
        return "own"
    if requested not in family.poolings:
        raise InputError(f"--{side}_pooling {requested}: models of type {model_type} take "
                         f"{', '.join(family.poolings)}; see {DOCS}")
    missing_weights = getattr(encoder, "missing_weights", ())
    missing_pooler = [name for name in missing_weights if name.startswith("pooler.")]
    if requested == "own" and missing_pooler:
        raise InputError(f"--{side}_pooling own: the file of --{side}_encoder has no weights for "
                         f"it ({', '.join(missing_pooler)}); take another of "
                         f"{', '.join(family.poolings)}")
    return requested
