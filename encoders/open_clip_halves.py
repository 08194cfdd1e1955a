"""The halves of a pair of open_clip, as encoders of a dual encoder. `open_clip_pairs` loads them.

They are built by the library itself from the configuration in a checkpoint or folder.
"""

import transformers
from torch import Tensor, nn

from common.errors import InputError, one_line
from encoders.pairs import LogitScale, logit_scale_of, pad_to_length

MODEL_TYPE = "open_clip"
REQUIREMENTS = "requirements-pairs.txt"


class OpenClipConfig(transformers.PretrainedConfig):
    """The configuration of a pair of open_clip, in the form in which configurations are stored.

    Args:
        model_cfg: What open_clip_config.json holds under that name.
        pad_id: The token with which captions are padded.
    """

    model_type = MODEL_TYPE

    def __init__(self, model_cfg: dict | None = None, pad_id: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.model_cfg = model_cfg or {}
        self.pad_id = pad_id


class OpenClipHalf(nn.Module):
    """One half of a pair of open_clip, with the pooling and projection that it was trained with.

    Args:
        config: The pair's configuration.
        tower: The `visual` or the `text` of open_clip's model.
        side: "image" or "text", the half that it is.
        logit_scale: The pair's.
    """

    supports_gradient_checkpointing = True

    def __init__(self, config: OpenClipConfig, tower: nn.Module, side: str,
                 logit_scale: LogitScale):
        super().__init__()
        self.config = config
        self.tower = tower
        self.side = side
        self.logit_scale = logit_scale

    def forward(self, **inputs) -> Tensor:
        """Encode photos or captions.

        Args:
            **inputs: `pixel_values` (B, 3, R, R) on the image side; `input_ids` and
                `attention_mask` (B, L), padded on the right, on the text side.

        Returns:
            (B, D) features.
        """
        if self.side == "image":
            return self.tower(inputs["pixel_values"])
        return self.tower(pad_to_length(inputs["input_ids"], inputs["attention_mask"],
                                        self.tower.context_length, self.config.pad_id, "right"))

    def head(self, states: Tensor) -> Tensor:
        """Return the features (B, D) as they are: the tower has its projection in it."""
        return states

    def vocabulary_size(self) -> int:
        """Return the number of rows in the table of token embeddings of a text half."""
        return self.tower.vocab_size

    def gradient_checkpointing_enable(self, settings: dict) -> None:
        """Have the tower recompute activations when it goes back, in place."""
        self.tower.set_grad_checkpointing(True)


def import_open_clip(name: str):
    """Return the library open_clip.

    Raises:
        InputError: If it is not installed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise InputError(f"{name} is a pair of open_clip, which is not installed "
                         f"({one_line(error)}): pip install -r {REQUIREMENTS}") from error
    return open_clip


def check_config(config: dict, name: str) -> None:
    """Raise InputError where a configuration of open_clip is of a kind that is not supported."""
    text = config["text_cfg"]
    reason = None
    if "multimodal_cfg" in config:
        reason = "its text encoder writes captions as well"
    elif text.get("hf_model_name"):
        reason = "its text encoder is a model of transformers with a file of its own"
    elif text.get("tokenizer_mode") or (text.get("tokenizer_kwargs") or {}).keys() - {"clean"}:
        reason = "its tokens are made in a way of its own"
    if reason:
        raise InputError(f"{name}: this pair of open_clip is not supported: {reason}")


def split_open_clip(config: OpenClipConfig, model: nn.Module) -> dict[str, OpenClipHalf]:
    """Return the halves of a pair of open_clip, by side."""
    scale = logit_scale_of(model)
    return {"image": OpenClipHalf(config, model.visual, "image", scale),
            "text": OpenClipHalf(config, model.text, "text", scale)}


def open_clip_from_config(config: OpenClipConfig, side: str) -> OpenClipHalf:
    """Build one half of a pair of open_clip with random weights.

    Args:
        config: The pair's configuration.
        side: "image" or "text".

    Raises:
        InputError: If open_clip is not installed, or the configuration is not supported.
    """
    import_open_clip("the model")
    from open_clip.model import CustomTextCLIP

    check_config(config.model_cfg, "the model")
    settings = {name: value for name, value in config.model_cfg.items() if name != "custom_text"}
    vision = dict(settings["vision_cfg"]) | {"timm_model_pretrained": False}
    model = CustomTextCLIP(**settings | {"vision_cfg": vision})
    return split_open_clip(config, model)[side]
