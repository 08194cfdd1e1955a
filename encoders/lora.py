"""Low-rank adapters (LoRA; Hu et al., 2022) beside the frozen weights of encoders, by peft.

An adapter adds the product of two narrow matrices to a linear layer. The linear layers of attention
and MLP get one; what is trained is the adapters and the projections. All other weights are those of
the base, a pretrained model that a checkpoint names and does not hold.
"""

import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from common.errors import InputError
from common.weights import weights_digest
from encoders.families import DOCS
from encoders.loading import BUILT_IN
from encoders.pairs import PairHalf

REQUIREMENTS = "requirements-lora.txt"
SIDES = "image", "text"


class AdapterSettings(NamedTuple):
    """The settings of a model's low-rank adapters.

    Attributes:
        rank: The inner width of an adapter's two matrices.
        alpha: Their product is multiplied by `alpha / rank`.
        dropout: The share of an adapter's inputs that are dropped in training.
        base_dtype: The type that the weights beside an adapter are held in, "float32" or
            "bfloat16".
    """

    rank: int
    alpha: int
    dropout: float
    base_dtype: str = "float32"


def require_peft():
    """Import peft, and return it.

    Raises:
        InputError: If it is not installed.
    """
    try:
        import peft  # takes a second, for --lora alone
    except ImportError as error:
        raise InputError(f"--lora needs peft: pip install -r {REQUIREMENTS}") from error
    return peft


def inner_model(encoder: nn.Module) -> nn.Module:
    """Return the model of transformers in an encoder: inside half a pair, or the encoder itself."""
    return getattr(encoder, "pair", encoder)


def own_projection(encoder: nn.Module) -> str | None:
    """Return the name of the projection that a half of a pair ends with, or None.

    It is trained in full, like the projections of --embed_size.
    """
    name = encoder.half.head if isinstance(encoder, PairHalf) else ""
    is_linear = name and isinstance(encoder.pair.get_submodule(name), nn.Linear)
    return name if is_linear else None


def is_in_a_layer(name: str) -> bool:
    """Return whether a module's name lies in a numbered list of layers, as "layers.0.mlp.fc1"."""
    return any(part.isdigit() for part in name.split("."))


def adapted_layers(encoder: nn.Module, flag: str) -> list[str]:
    """Return the names of the linear layers that get an adapter: those of attention and MLP.

    BLIP's text encoder has cross-attention to a photo, which a dual encoder does not use.

    Args:
        encoder: A model of transformers.
        flag: What names the encoder in an error message: "--image_encoder vit".

    Raises:
        InputError: If the encoder is a convolutional network, or its attention has no such layers.
    """
    modules = {name: module for name, module in encoder.named_modules() if is_in_a_layer(name)}
    if any(isinstance(module, nn.Conv2d) for module in modules.values()):
        raise InputError(f"{flag}: --lora adapts transformers, and this is a convolutional network:"
                         f" freeze it with --freeze, or take a transformer of {DOCS}")
    if any(isinstance(module, nn.MultiheadAttention) for module in modules.values()):
        raise InputError(f"{flag}: --lora adapts linear layers, and attention has none here, as in "
                         "pairs of open_clip: take a pair of transformers")
    return [name for name, module in modules.items()
            if isinstance(module, nn.Linear | Conv1D) and "crossattention" not in name]


def add_adapters(model, names: dict[str, str], settings: AdapterSettings) -> None:
    """Give the encoders of a `DualEncoder` adapters, in place, and freeze all else of them.

    An encoder that is frozen gets none. The model's `state_dict` then has the trained weights
    alone, and `load_state_dict` asks for no others. `base_digests` becomes the digest of each
    encoder's own weights.

    Args:
        model: The `DualEncoder`, with the pretrained weights of its encoders.
        names: The encoders' names by side, as --image_encoder and --text_encoder give them.
        settings: What adapters the model gets.

    Raises:
        InputError: If peft is missing, an encoder takes no adapters, or it has random weights.
    """
    peft = require_peft()
    flags = {side: f"--{side}_encoder {names[side]}" for side in SIDES}
    model.base_digests = {side: base_digest(getattr(model, f"{side}_encoder"), names[side],
                                            flags[side]) for side in SIDES}
    for side in SIDES:
        if model.freezes(side):
            continue
        projection = own_projection(getattr(model, f"{side}_encoder"))
        encoder = inner_model(getattr(model, f"{side}_encoder"))
        layers = adapted_layers(encoder, flags[side])
        encoder.requires_grad_(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of GPT-2's transposed layers, which peft sees
            peft.inject_adapter_in_model(lora_config(peft, settings, layers), encoder)
        if projection is not None:
            encoder.get_submodule(projection).requires_grad_(True)
        if settings.base_dtype == "bfloat16":
            for name in layers:
                encoder.get_submodule(name).base_layer.to(torch.bfloat16)
    model.saved_names = frozenset(name for name, parameter in model.named_parameters()
                                  if parameter.requires_grad)
    model.register_state_dict_post_hook(leave_out_base)
    model.register_load_state_dict_post_hook(ask_for_no_base)


def lora_config(peft, settings: AdapterSettings, layers: list[str], **more):
    """Return peft's configuration of the adapters of one encoder.

    Args:
        peft: The package.
        settings: What adapters they are.
        layers: Names of the layers that have one.
        **more: Further arguments of `peft.LoraConfig`.
    """
    return peft.LoraConfig(r=settings.rank, lora_alpha=settings.alpha,
                           lora_dropout=settings.dropout, target_modules=layers, **more)


def base_digest(encoder: nn.Module, name: str, flag: str) -> str:
    """Return the digest of a pretrained encoder's weights, by which a checkpoint knows its base.

    Weights of a pooler that the encoder's file lacks are not used. They become 0 in place, so that
    they are the same each time that the encoder is loaded.

    Args:
        encoder: The encoder as it was loaded.
        name: Its name.
        flag: What names the encoder in an error message.

    Raises:
        InputError: If other weights are random, as those of a built-in encoder are.
    """
    weights = inner_model(encoder).state_dict()
    missing = [weight for weight in getattr(encoder, "missing_weights", []) if weight in weights]
    random = [weight for weight in missing if not weight.startswith("pooler.")]
    if name in BUILT_IN or random:
        which = "its weights are" if name in BUILT_IN else f"{random[0]} is"
        raise InputError(f"{flag}: {which} random, and --lora trains adapters of pretrained "
                         "weights; take a pretrained encoder, or leave --lora out")
    for weight in missing:
        weights[weight].zero_()
    return weights_digest(weights)


def check_base(model, digests: object, path: Path) -> None:
    """Check that a model with adapters has the base weights that a checkpoint was made with.

    Args:
        model: The `DualEncoder`, of `add_adapters`.
        digests: What the checkpoint holds of its base.
        path: The checkpoint, for the error message.

    Raises:
        InputError: If an encoder has other weights, or the checkpoint names none.
    """
    for side, digest in model.base_digests.items():
        wanted = digests.get(side) if isinstance(digests, dict) else None
        if wanted != digest:
            raise InputError(f"{path} holds adapters of another --{side}_encoder than this one, "
                             f"whose digest is {digest} and not {str(wanted)[:32]}; name the one "
                             "that it was trained with")


def leave_out_base(model, state: dict[str, Tensor], prefix: str, metadata: dict) -> None:
    """Remove the base weights of a `DualEncoder` from `state` in place: a hook of `state_dict`."""
    if model.saved_names is not None:
        for name in [name for name in state if name.startswith(prefix)]:
            if name.removeprefix(prefix) not in model.saved_names:
                del state[name]


def ask_for_no_base(model, incompatible) -> None:
    """Remove base weights from the missing ones in place: a hook of `load_state_dict`."""
    if model.saved_names is not None:
        incompatible.missing_keys[:] = [
            name for name in incompatible.missing_keys if name in model.saved_names]


def remove_adapters(model, merge: bool) -> None:
    """Make a `DualEncoder` with adapters a plain one, in place.

    Args:
        model: The `DualEncoder`; one without adapters stays as it is.
        merge: Whether to add the adapters to the weights beside them. If false they are dropped.
    """
    if model.saved_names is None:
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for encoder in model.image_encoder, model.text_encoder:
        adapted = [(name, module) for name, module in encoder.named_modules()
                   if isinstance(module, BaseTunerLayer)]
        for name, module in adapted:
            base = module.base_layer.float()
            if merge:
                module.merge()
            encoder.set_submodule(name, base)
    model.saved_names = model.base_digests = None


def write_adapters(model, folder: Path, settings: AdapterSettings) -> None:
    """Write the adapters of a `DualEncoder` as peft's own folders, and its projections beside them.

    `peft.PeftModel.from_pretrained` reads the folders `image` and `text`, of the encoders that have
    adapters. The model is changed in place: it loses its adapters.

    Args:
        model: The `DualEncoder`, on the CPU.
        folder: An existing folder.
        settings: What adapters the model has.
    """
    from safetensors.torch import save_file

    peft = require_peft()
    trained = {name: value.contiguous() for name, value in model.state_dict().items()}
    remove_adapters(model, merge=False)
    for side in SIDES:
        encoder = getattr(model, f"{side}_encoder")
        inner = inner_model(encoder)
        prefix = f"{side}_encoder." + ("" if inner is encoder else "pair.")
        of_side = {name.removeprefix(prefix): value for name, value in trained.items()
                   if name.startswith(prefix)}
        layers = list(dict.fromkeys(name.partition(".lora_")[0] for name in of_side
                                    if ".lora_" in name))
        if not layers:
            continue
        projection = own_projection(encoder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = peft.get_peft_model(inner, lora_config(
                peft, settings, layers, modules_to_save=[projection] if projection else None))
            adapters = {name: value for name, value in of_side.items() if ".lora_" in name}
            adapted.base_model.model.load_state_dict(adapters, strict=False)
            adapted.save_pretrained(str(folder / side), save_embedding_layers=False)
    projections = {name: value for name, value in trained.items()
                   if name.partition(".")[0].endswith("_projection")}
    if projections:
        save_file(projections, folder / "projections.safetensors")
