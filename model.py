"""The dual encoder and its momentum copy."""

import contextlib
import copy
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from huggingface_hub import ModelHubMixin, snapshot_download
from torch import Tensor, nn

from common.errors import NOT_DETERMINISTIC, InputError, one_line, pass_on
from common.options import EncodingOptions
from common.terminal import warn
from encoders.families import choose_pooling, find_family
from encoders.folder import PATTERNS, preparation_of, read_folder, write_folder
from encoders.hub import from_cache, why_not
from encoders.pooling import hidden, pool
from encoders.preparation import Preparation
from encoders.stored import read_stored
from encoders.towers import load_encoder, quiet_transformers

GRAPHS = 8  # that --compile makes of one encoder, at most


class DualEncoder(nn.Module, ModelHubMixin):
    """An image and a text encoder onto one unit sphere.

    Each encoder's last layer is pooled to features, then `embed_size` > 0 projects them linearly,
    then unit norm.

    Args:
        image_encoder, text_encoder: of a type in `encoders.families.SUPPORTED`, without a head.
        embed_size: D, or 0 for no projection; then the encoders' widths must agree.
        image_pooling, text_pooling: see `encoders.pooling`; "auto" is what suits the encoder:
            "mean" and "tokens" for the published ones, whose captions the released program
            averages "padded" (Fidelity note 2).
        freeze: None, "image" or "text": an encoder that stays as it is.
        image_res, max_tokens: side of the photos in pixels and longest caption, to try out the
            encoders with.

    `from_pretrained` and `save_pretrained` read and write a folder, or a name on the Hub, as
    `export.py` does (docs/export.md); `preparation` then holds what photos and captions need.
    Set `bf16` to run the encoders under bfloat16 autocast; pooling, features, projections and
    embeddings are float32 all the same.

    Raises:
        InputError: the widths differ without `embed_size`, or an encoder cannot take such photos or
            captions, or has no such pooling.
    """

    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module, embed_size: int = 0,
                 image_pooling: str = "auto", text_pooling: str = "auto",
                 freeze: str | None = None, image_res: int = 384, max_tokens: int = 30):
        super().__init__()
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.image_pooling = choose_pooling(image_encoder, "image", image_pooling)
        self.text_pooling = choose_pooling(text_encoder, "text", text_pooling)
        self.freeze = freeze
        self.image_call = resolution_arguments(image_encoder, image_res)
        self.channels_last = self.bf16 = self.whole_mask = False
        self.preparation: Preparation | None = None
        self.saved_dtype = torch.float32  # of the weights that `save_pretrained` writes
        self.eval()
        image_dim, text_dim = self.try_image(image_res), self.try_text(max_tokens)
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
    def try_image(self, image_res: int) -> int:
        """Width of the image encoder's features, by trying; convolutions go to channels last."""
        pixels = torch.zeros(1, 3, image_res, image_res)
        with refusal(f"--image_res {image_res}: the image encoder (--image_encoder) does not take "
                     "such photos"):
            output = self.image_encoder(pixel_values=pixels, **self.image_call)
            width = pool(self.image_encoder, output, self.image_pooling).shape[1]
        if hidden(output).ndim == 4:
            self.channels_last = True
            self.image_encoder.to(memory_format=torch.channels_last)
        return width

    @torch.no_grad()
    def try_text(self, max_tokens: int) -> int:
        """Width of the text encoder's features, by trying; its table of positions may end early.

        Sets `whole_mask` where a mask (B, 1, L, L) serves as well as one of (B, L). Given the
        latter, transformers reads it back to see whether it has zeros, for which a GPU waits.
        """
        word = 1 if getattr(self.text_encoder.config, "pad_token_id", None) == 0 else 0
        tokens = torch.full((2, max_tokens), word)
        mask = torch.ones_like(tokens)
        mask[1, max_tokens // 2 :] = 0
        with refusal(f"--max_tokens {max_tokens}: the text encoder (--text_encoder) does not take "
                     "captions of that length"):
            features = self.text_features(tokens, mask)
        if find_family(self.text_encoder.config, "text").whole_mask:
            self.whole_mask = True
            with contextlib.suppress(Exception):  # transformers 4 refuses it
                if torch.equal(features, self.text_features(tokens, mask)):
                    return features.shape[1]
            self.whole_mask = False
        return features.shape[1]

    def train(self, mode: bool = True) -> "DualEncoder":
        """Training mode, but a frozen encoder and pretrained batch norm keep evaluating."""
        super().train(mode)
        if self.freeze:
            self.frozen_encoder.eval()
        for module in self.image_encoder.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def _save_pretrained(self, save_directory: Path) -> None:
        if self.preparation is None:
            raise InputError("only a model whose `preparation` is set can be saved as a folder: "
                             "use export.py")
        write_folder(Path(save_directory), self, self.preparation, self.saved_dtype)

    @classmethod
    def from_pretrained(cls, name: str | Path, **settings) -> "DualEncoder":
        """The model of a folder that `export.py` wrote, or of a name on the Hub, in evaluation
        mode; `settings` as `huggingface_hub` has them.

        Raises:
            InputError: it cannot be had, or is not what `export.py` writes.
        """
        if Path(name).is_dir():
            return model_from_folder(Path(name))
        quiet_transformers()
        try:
            settings["local_files_only"] = settings.get("local_files_only") or from_cache(str(name))
            return super().from_pretrained(name, **settings)
        except InputError:
            raise
        except Exception as error:  # of a dozen kinds, of the Hub and of files that are none
            pass_on(error)
            raise InputError(f"{name} is no folder, and none can be had from the Hub by that name "
                             f"({why_not(str(name), error)[:200]})") from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, revision=None, cache_dir=None,
                         force_download=False, local_files_only=False, token=None, **ignored):
        return model_from_folder(Path(snapshot_download(
            model_id, revision=revision, cache_dir=cache_dir, force_download=force_download,
            local_files_only=local_files_only, token=token, allow_patterns=PATTERNS)))

    @contextlib.contextmanager
    def computing(self, side: str, device: torch.device) -> Iterator[None]:
        """Around the encoder of `side`: no gradient if it is frozen, bfloat16 if that is set."""
        with (torch.set_grad_enabled(torch.is_grad_enabled() and self.freeze != side),
              torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)):
            yield

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, R, R) standardised pixels to (B, image width) features, before projection."""
        if self.channels_last:
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        with self.computing("image", pixel_values.device):
            output = self.image_encoder(pixel_values=pixel_values, **self.image_call)
        return pool(self.image_encoder, output, self.image_pooling)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L) token ids and mask to (B, text width) features, before projection."""
        mask = attention_mask
        if self.whole_mask:  # (B, 1, L, L), the same for each token that looks
            mask = mask[:, None, None, :].bool().expand(-1, 1, mask.shape[1], -1)
        with self.computing("text", input_ids.device):
            output = self.text_encoder(input_ids=input_ids, attention_mask=mask)
        return pool(self.text_encoder, output, self.text_pooling, attention_mask)

    def forward(
        self, pixel_values: Tensor | None, image_features: Tensor | None, input_ids: Tensor,
        attention_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Both sides of B training pairs: image and text embeddings (B, D) and features, from
        pixels and captions; or from `image_features` (B, width), where they are known already."""
        if image_features is None:
            image_features = self.image_features(pixel_values)
        text_features = self.text_features(input_ids, attention_mask)
        return (self.project_image(image_features), self.project_text(text_features),
                image_features, text_features)

    def project_image(self, features: Tensor) -> Tensor:
        """Image features to (B, D) unit rows."""
        return F.normalize(self.image_projection(features), dim=1)

    def project_text(self, features: Tensor) -> Tensor:
        """Text features to (B, D) unit rows."""
        return F.normalize(self.text_projection(features), dim=1)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, R, R) standardised pixels to (B, D) unit rows."""
        return self.project_image(self.image_features(pixel_values))

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L) token ids and mask (1 on real tokens) to (B, D) unit rows."""
        return self.project_text(self.text_features(input_ids, attention_mask))


def model_from_folder(folder: Path) -> DualEncoder:
    """`DualEncoder.from_pretrained` of a folder."""
    quiet_transformers()
    state = read_folder(folder)
    stored = read_stored(state, state["model"], str(folder), set())
    options, tokenizer = state["options"], stored.read_tokenizer()
    towers = [stored.encoder(side, tokenizer) for side in ("image", "text")]
    model = DualEncoder(*towers, options["embed_size"], options["image_pooling"],
                        options["text_pooling"], None, options["image_res"], options["max_tokens"])
    try:
        if not all(value.isfinite().all() for value in state["model"].values()):
            raise ValueError("NaN or infinity")
        model.load_state_dict(state["model"])
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{folder}: its weights do not fit ({one_line(error)[:200]})") from error
    model.preparation = preparation_of(state, tokenizer, folder)
    return model.eval()


@contextlib.contextmanager
def refusal(told: str) -> Iterator[None]:
    """Around the trial of an encoder: whatever it says, one line that begins with `told`."""
    try:
        yield
    except Exception as error:  # which one depends on the model and on what it does not take
        pass_on(error)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{told} ({reason})") from error


def resolution_arguments(encoder: nn.Module, image_res: int) -> dict:
    """What a transformer needs to be told to take photos of another size than it was made for."""
    vision = getattr(encoder.config, "vision_config", encoder.config)
    if find_family(encoder.config, "image").interpolates and vision.image_size != image_res:
        return {"interpolate_pos_encoding": True}
    return {}


def momentum_copy(model: DualEncoder) -> DualEncoder:
    """A copy without gradients that will follow `model`; a frozen encoder is shared, not copied."""
    memo = {id(model.frozen_encoder): model.frozen_encoder} if model.freeze else {}
    return copy.deepcopy(model, memo).requires_grad_(False)


class MomentumUpdate:
    """momentum <- m momentum + (1 - m) online, for all parameters; buffers are copied.

    It holds lists of both models' tensors, so make it once they are on their device, and call it
    in each step. Weights that are loaded into either model later are seen.
    """

    def __init__(self, momentum_model: DualEncoder, model: DualEncoder):
        self.keys, self.queries = two_lists(momentum_model.parameters(), model.parameters())
        self.key_buffers, self.buffers = two_lists(momentum_model.buffers(), model.buffers())

    @torch.no_grad()
    def __call__(self, m: float, moved: Tensor | None = None) -> None:
        """Move by `m`, the share that the momentum model keeps.

        Where `moved`, a () bool on the device, is false, nothing changes: the online model has not
        moved since the last update.
        """
        if moved is None:
            torch._foreach_lerp_(self.keys, self.queries, 1 - m)
        else:
            torch._foreach_lerp_(self.keys, self.queries, [(1 - m) * moved] * len(self.keys))
        if self.buffers:
            torch._foreach_copy_(self.key_buffers, self.buffers)


def two_lists(keys: Iterable[Tensor], queries: Iterable[Tensor]) -> tuple[list, list]:
    """Tensors of the momentum model, and of the online one; those that they share are left out."""
    pairs = [(k, q) for k, q in zip(keys, queries, strict=True) if k is not q]
    return [k for k, _ in pairs], [q for _, q in pairs]


def update_momentum(momentum_model: DualEncoder, model: DualEncoder, m: float) -> None:
    """One `MomentumUpdate`; `m` is the share that the momentum model keeps."""
    MomentumUpdate(momentum_model, model)(m)


def checkpoint_gradients(model: DualEncoder) -> None:
    """Keep the activations of each block's ends only and compute the rest again going backwards.

    Raises:
        InputError: an encoder that is trained cannot do that.
    """
    for side in {"image", "text"} - {model.freeze}:
        encoder = getattr(model, f"{side}_encoder")
        encoder = getattr(encoder, "clip", encoder)
        if not encoder.supports_gradient_checkpointing:
            raise InputError(f"--grad_checkpointing: the {side} encoder, a "
                             f"{type(encoder).__name__}, has none; leave the flag out")
        enable = (getattr(encoder, "activation_checkpointing_enable", None)  # its newer name
                  or encoder.gradient_checkpointing_enable)
        enable({"use_reentrant": False})


def try_gradients(
    model: DualEncoder, options: EncodingOptions, device: torch.device
) -> None:
    """Go through the encoders and back once, for --deterministic: of some operations a GPU has no
    gradient that is the same each time, and PyTorch tells only where it is asked for one.

    Raises:
        InputError: of one of these.
    """
    training, side = model.training, options.image_res
    model.eval()  # no dropout, which would take random numbers
    tokens = torch.ones(1, options.max_tokens, dtype=torch.int64, device=device)
    features = (model.image_features(torch.zeros(1, 3, side, side, device=device)),
                model.text_features(tokens, tokens))
    for name, value in zip(("image", "text"), features):
        try:
            if value.requires_grad:
                value.sum().backward()
        except RuntimeError as error:
            if NOT_DETERMINISTIC not in str(error):
                raise
            raise InputError(
                f"--deterministic: {str(error).partition(' ')[0]} of --{name}_encoder has no "
                "gradient on a GPU that is the same each time: leave the flag out, or give photos "
                f"of the encoder's own size, or --freeze {name}") from error
    model.zero_grad()
    model.train(training)


def compile_encoders(*models: DualEncoder) -> None:
    """torch.compile the encoders in place; the names of their weights stay."""
    version = transformers.__version__
    if (5, 9) <= tuple(map(int, version.split(".")[:2])) < (5, 18):
        warn(f"--compile: transformers {version} gives a compiled ViT a mask, and its attention is "
             "slow with one on a GPU: pip install 'transformers>=5.18'")
    # PyTorch counts the graphs of all modules together, since what it compiles is the code that
    # calls any of them. Each encoder needs up to `GRAPHS`; past the limit it would not be compiled.
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, GRAPHS * 2 * len(models))
    for model in models:
        model.image_encoder.compile()
        model.text_encoder.compile()


def build_model(
    options: EncodingOptions, tokenizer, pretrained: bool = True, freeze: str | None = None
) -> DualEncoder:
    """Return the `DualEncoder` that the options describe, in training mode.

    Encoders whose configurations a checkpoint brought along (`encoders.stored`) are had from them.

    Args:
        options: `stored_encoders` is what a checkpoint brought along, or None.
        tokenizer: of the text encoder.
        pretrained: load the encoders' pretrained weights, rather than draw random ones.
        freeze: "image" or "text", the encoder that is not trained; None for neither.
    """
    quiet_transformers()
    stored, towers = options.stored_encoders, []
    for side, name in ("image", options.image_encoder), ("text", options.text_encoder):
        tower = stored.encoder(side, tokenizer) if stored is not None and not pretrained else None
        towers.append(tower or load_encoder(name, side, options.image_res, tokenizer, pretrained))
    return DualEncoder(*towers, options.embed_size, options.image_pooling,
                       options.text_pooling, freeze, options.image_res, options.max_tokens)
