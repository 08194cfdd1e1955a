"""Which Hugging Face models can be towers, and how each kind is loaded, pooled and resized.

`SUPPORTED` has an entry for each `model_type` of a configuration. docs/encoders.md shows it, and
`tests/encoders/test_families.py` trains one small model of every kind. What is in neither is
refused: a model that is loaded but read wrongly trains all the same, only worse.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from common.errors import InputError

DOCS = "docs/encoders.md"
# Of a photo and of a caption: the mean over what the family's `left_out` leaves, over real tokens,
# over padding too, the first token, the last real one, and what the model itself makes of them.
IMAGE_POOLINGS = "mean", "cls", "own"
TEXT_POOLINGS = "tokens", "padded", "cls", "last", "own"


class Family(NamedTuple):
    """What is to be known of the models of one type."""

    sides: tuple[str, ...]  # of "image" and "text"
    poolings: tuple[str, ...]  # that make sense for it; the first is its own choice
    left_out: Callable[[object], int] = lambda config: 0  # tokens at the front, of image means
    own: Callable[[nn.Module, Tensor], Tensor] | None = None  # encoder, last layer -> (B, W)
    loader: str = "AutoModel"  # class of transformers
    interpolates: bool = False  # must be told of photos of another size; else it sees for itself
    whole_mask: bool = False  # attends both ways, so that a mask (B, 1, L, L) is easily made


def pooler(encoder: nn.Module, states: Tensor) -> Tensor:
    """(B, L, W) to (B, W): a layer that was trained with the model's own task."""
    return encoder.pooler(states)


def norm_of_mean(encoder: nn.Module, states: Tensor) -> Tensor:
    """(B, W, h, w) to (B, W)."""
    return encoder.layernorm(states.mean(dim=(2, 3)))


def class_token(config) -> int:
    return 1


def class_and_registers(config) -> int:
    return 1 + config.num_register_tokens


IMAGE, TEXT, PAIR = ("image",), ("text",), ("image", "text")
VIT = Family(IMAGE, ("mean", "cls", "own"), own=pooler, interpolates=True)
BEIT = VIT._replace(left_out=class_token)
DINO = Family(IMAGE, ("mean", "cls"), left_out=class_and_registers)
SWIN = Family(IMAGE, ("mean",), interpolates=True)
CONVNEXT = Family(IMAGE, ("mean", "own"), own=norm_of_mean)
CONVOLUTIONS = Family(IMAGE, ("mean",))
TIMM = Family(IMAGE, ("own",), own=lambda encoder, states: encoder.timm_model.forward_head(states))
CLIP = Family(PAIR, ("own",), own=lambda tower, states: tower.head(states), interpolates=True)
BERT = Family(TEXT, ("tokens", "padded", "cls", "own"), own=pooler, whole_mask=True)
DISTILBERT = Family(TEXT, ("tokens", "padded", "cls"), whole_mask=True)
MODERNBERT = DISTILBERT._replace(whole_mask=False)  # layers see different parts
T5 = Family(TEXT, ("tokens", "padded"), whole_mask=True)
DECODER = Family(TEXT, ("last", "tokens", "padded"))

SUPPORTED = {
    "vit": VIT,
    "deit": VIT,
    "vit_msn": VIT._replace(poolings=("mean", "cls"), own=None),
    "beit": BEIT,
    "data2vec-vision": BEIT._replace(poolings=("mean", "cls"), own=None),
    "dinov2": DINO._replace(left_out=class_token),
    "dinov2_with_registers": DINO,
    "dinov3_vit": DINO,
    "dinov3_convnext": DINO._replace(left_out=class_token),
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
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "camembert": BERT,
    "mpnet": BERT._replace(whole_mask=False),  # adds it to positions
    "electra": DISTILBERT,
    "albert": DISTILBERT,
    "distilbert": DISTILBERT,
    "modernbert": MODERNBERT,
    "t5": T5._replace(loader="T5EncoderModel"),
    "mt5": T5._replace(loader="MT5EncoderModel"),
    "umt5": T5._replace(loader="UMT5EncoderModel"),
    "gpt2": DECODER,
    "gpt_neox": DECODER,
    "llama": DECODER,
    "mistral": DECODER,
    "qwen2": DECODER,
    "qwen3": DECODER,
}

HALF = "half of a pair: name the whole checkpoint, and its other half is left out"
REFUSED = {
    "vit_mae": "it hides patches at random whenever it is asked",
    "siglip2": "its NaFlex photos are patches of any shape; SigLIP 2 of a fixed size is a siglip",
    "funnel": "it pools tokens with the padding beside them",
    "bart": "its last layer is a decoder's, which reads the caption a second time",
    "mbart": "its last layer is a decoder's, which reads the caption a second time",
    "clip_vision_model": HALF,
    "clip_text_model": HALF,
    "siglip_vision_model": HALF,
    "siglip_text_model": HALF,
}


def find_family(config, side: str, name: str = "", told: str | None = None) -> Family:
    """The entry of a configuration, for an encoder of `side`; `name` is what the flag said.

    An error begins with `told`, or with the flag and `name`.

    Raises:
        InputError: there is none, or it is for the other side.
    """
    kind = getattr(config, "model_type", None)
    family, flag = SUPPORTED.get(kind), told or f"--{side}_encoder {name}".rstrip()
    if family is None:
        reason = f" ({REFUSED[kind]})" if kind in REFUSED else ""
        raise InputError(f"{flag}: models of type {kind} are not supported{reason}; {DOCS} lists "
                         "those that are")
    if side not in family.sides:
        raise InputError(f"{flag}: models of type {kind} are for the other side, "
                         f"--{family.sides[0]}_encoder; {DOCS} lists those for this one")
    return family


def choose_pooling(encoder: nn.Module, side: str, asked: str) -> str:
    """What --image_pooling or --text_pooling means for an encoder: "auto" is its family's choice.

    Raises:
        InputError: the family has no such pooling, or the encoder no weights for it.
    """
    kind = encoder.config.model_type
    family = find_family(encoder.config, side)
    # "tokens" is what checkpoints of CLIP-style text towers hold from before there was a choice.
    if asked == "auto" or asked == "tokens" and family.poolings == ("own",):
        return family.poolings[0]
    if asked not in family.poolings:
        raise InputError(f"--{side}_pooling {asked}: models of type {kind} take "
                         f"{', '.join(family.poolings)}; see {DOCS}")
    lacking = [name for name in getattr(encoder, "missing", ()) if name.startswith("pooler.")]
    if asked == "own" and lacking:
        raise InputError(f"--{side}_pooling own: the file of --{side}_encoder has no weights for "
                         f"it ({', '.join(lacking)}); take another of {', '.join(family.poolings)}")
    return asked
