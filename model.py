"""The dual encoder, its momentum encoder, and what can be switched on for both.

`DualEncoder` maps photos and captions to unit vectors of one space. `momentum_copy` makes its
momentum encoder, and `MomentumUpdate` moves that by the exponential moving average. The rest builds
a model from flags, and adds gradient checkpointing, compiling and a check for --deterministic.
"""

import contextlib
import copy
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from common.errors import (
    InputError,
    nondeterministic_operation,
    one_line,
    reraise_out_of_memory,
)
from common.options import EncodingOptions
from common.terminal import warn
from encoders.chunks import in_chunks
from encoders.families import choose_pooling, find_family
from encoders.folder import read_model, read_preparation, write_folder
from encoders.loading import load_encoder, quiet_transformers
from encoders.memory_trial import check_memory
from encoders.pairs import LogitScale, PairHalf
from encoders.pooling import last_hidden_state, pool
from encoders.preparation import Preparation
from encoders.processors import load_tokenizer
from encoders.stored import SIDES, read_stored_encoders

MAX_GRAPHS_PER_ENCODER = 8  # that --compile makes
HIDDEN_PER_OUTPUT = 2  # width of the hidden layer of --head mlp by that of the output


class DualEncoder(nn.Module, ModelHubMixin):
    """Map photos and captions to unit vectors of one embedding space.

    Each side (image or text) has an encoder, whose last hidden state is pooled to one feature
    vector. A projection follows where `embed_size` > 0, and then L2 normalisation. The dot product
    of an image embedding and a text embedding is their cosine similarity.

    Where both encoders are halves of one pretrained pair, `logit_scale` and `logit_bias` are the
    numbers by which the pair turns cosines into logits; else they are None.

    The encoders compute in bfloat16 autocast if the attribute `bf16` is true. Pooling, projections
    and embeddings are float32 in any case.

    If the attribute `chunk` is above 0, each encoder takes so many photos or captions of a batch
    at a time, and activations for the backward pass are kept of one chunk alone
    (`encoders.chunks.in_chunks`).

    `from_pretrained` and `save_pretrained` read and write the folder of `export.py`
    (docs/export.md). The attribute `preparation` of a model that was read so says how its photos
    and captions are prepared; it is None otherwise.

    Args:
        image_encoder: A vision model without a head, of a type in `encoders.families.SUPPORTED`.
        text_encoder: A language model without a head, of such a type.
        embed_size: D, the width of the projections. 0 means no projection, as published; both
            encoders must then have the same width.
        image_pooling: How the image encoder's last hidden state becomes one vector, see
            `encoders.pooling.pool`. "auto" takes the default of the encoder's type: "mean" for
            the published ViT.
        text_pooling: The counterpart for the text encoder: "auto" is "tokens" for the published
            BERT. The released program averages padding too, which is "padded" (Fidelity note 2).
        freeze: "image" or "text" for an encoder that is not trained, "both" if neither is, or None.
        image_res: R, the side of the square photos in pixels.
        max_tokens: L, the length of the longest caption in tokens.
        head: The form of the projections, "linear" or "mlp", see `build_projection`.

    Raises:
        InputError: If the widths differ without `embed_size`, if the projections are asked to be an
            MLP, or are all that is trained, and there are none, or if an encoder does not take
            photos or captions of that size, or does not have the pooling.
    """

    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module, embed_size: int = 0,
                 image_pooling: str = "auto", text_pooling: str = "auto",
                 freeze: str | None = None, image_res: int = 384, max_tokens: int = 30,
                 head: str = "linear"):
        super().__init__()
        if embed_size == 0 and (freeze == "both" or head != "linear"):
            flag = "--freeze both" if freeze == "both" else f"--head {head}"
            raise InputError(f"{flag}: --embed_size 0 means that there are no projections to "
                             "train; give --embed_size 512, say")
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.image_pooling = choose_pooling(image_encoder, "image", image_pooling)
        self.text_pooling = choose_pooling(text_encoder, "text", text_pooling)
        self.freeze = freeze
        self.head = head
        self.max_tokens = max_tokens
        self.image_encoder_kwargs = interpolation_kwargs(image_encoder, image_res)
        self.channels_last = False
        self.uses_4d_mask = False
        self.bf16 = False
        self.logit_scale: float | None = None
        self.logit_bias: float | None = None
        self.chunk = 0
        self.preparation: Preparation | None = None
        # Of a model with adapters (`encoders.lora.add_adapters`): what its `state_dict` holds.
        self.saved_names: frozenset[str] | None = None
        self.base_digests: dict[str, str] | None = None
        self.saved_dtype = torch.float32  # of the weights that `save_pretrained` writes
        self.eval()
        image_width = self._probe_image_encoder(image_res)
        text_width = self._probe_text_encoder(max_tokens)
        if embed_size == 0 and image_width != text_width:
            raise InputError(f"the image encoder is {image_width} wide and the text encoder "
                             f"{text_width}: give both a projection with --embed_size 256, say")
        self.embed_size = embed_size or image_width  # D
        self.image_projection = build_projection(image_width, embed_size, head)
        self.text_projection = build_projection(text_width, embed_size, head)
        for encoder in self.frozen_encoders:
            encoder.requires_grad_(False)
        self.train()
        scale = getattr(image_encoder, "logit_scale", None)
        if scale == getattr(text_encoder, "logit_scale", None):
            self.set_logit_scale(scale)

    def set_logit_scale(self, value: LogitScale | None) -> None:
        """Set `logit_scale` and `logit_bias` in place; to None where a pair has no scale."""
        has_scale = value is not None and value.scale is not None
        self.logit_scale = value.scale if has_scale else None
        self.logit_bias = value.bias if has_scale else None

    def freezes(self, side: str) -> bool:
        """Return whether the encoder of a side, "image" or "text", is not trained."""
        return self.freeze in (side, "both")

    @property
    def frozen_encoders(self) -> list[nn.Module]:
        """The encoders that are not trained."""
        return [getattr(self, f"{side}_encoder") for side in SIDES if self.freezes(side)]

    @torch.no_grad()
    def _probe_image_encoder(self, image_res: int) -> int:
        """Encode one blank photo, and return the width of the image features.

        An encoder whose last hidden state is a feature map is a convolutional network; it is put
        into the channels-last memory format, in which convolutions are faster.
        """
        check_memory(self.image_encoder, f"--image_res {image_res}: a photo", image_res > 640,
                     pixel_values=(1, 3, image_res, image_res), **self.image_encoder_kwargs)
        pixels = torch.zeros(1, 3, image_res, image_res)
        with as_input_error(f"--image_res {image_res}: the image encoder (--image_encoder) does "
                            "not take such photos"):
            output = self.image_encoder(pixel_values=pixels, **self.image_encoder_kwargs)
            features = pool(self.image_encoder, output, self.image_pooling)  # (1, width)
        if last_hidden_state(output).ndim == 4:
            self.channels_last = True
            self.image_encoder.to(memory_format=torch.channels_last)
        return features.shape[1]

    @torch.no_grad()
    def _probe_text_encoder(self, max_tokens: int) -> int:
        """Encode two captions of `max_tokens` tokens, and return the width of the text features.

        Set `uses_4d_mask` if an attention mask (B, 1, L, L) gives the same features as a mask
        (B, L). Given the latter, transformers reads the mask back to see whether it has zeros, and
        a GPU has to finish its work for that.
        """
        pad_id = getattr(self.text_encoder.config, "pad_token_id", None)
        token = 1 if pad_id == 0 else 0  # any token that is not padding
        check_memory(self.text_encoder, f"--max_tokens {max_tokens}: a caption of that length",
                     max_tokens > 1024, input_ids=(1, max_tokens))
        tokens = torch.full((2, max_tokens), token)
        mask = torch.ones_like(tokens)
        mask[1, max_tokens // 2 :] = 0
        with as_input_error(f"--max_tokens {max_tokens}: the text encoder (--text_encoder) does "
                            "not take captions of that length"):
            features = self.text_features(tokens, mask)  # (2, width)
        if find_family(self.text_encoder.config, "text").accepts_4d_mask:
            self.uses_4d_mask = True
            try:
                same = torch.equal(features, self.text_features(tokens, mask))
            except Exception:  # transformers 4 does not take such a mask
                same = False
            self.uses_4d_mask = same
        return features.shape[1]

    def train(self, mode: bool = True) -> "DualEncoder":
        """Set training mode in place, but keep what must not change in evaluation mode.

        That is a frozen encoder, and the batch norms of the image encoder, which keep the running
        statistics of their pretraining.
        """
        super().train(mode)
        for encoder in self.frozen_encoders:
            encoder.eval()
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
    def from_pretrained(cls, name: str | Path, **kwargs) -> "DualEncoder":
        """Read a model, in evaluation mode, by the name of a folder or of a model on the Hub.

        Args:
            name: A local folder, or the name of a model on the Hugging Face Hub: an export of
                `export.py`, or a pretrained pair of a type in docs/encoders.md.
            **kwargs: `revision`, `token`, `cache_dir`, `force_download` or `local_files_only` of
                the Hub.

        Raises:
            InputError: If there is no such model, or it is neither an export nor such a pair.
        """
        quiet_transformers()
        return model_from_state(read_model(name, **kwargs), str(name))

    @contextlib.contextmanager
    def _encoder_context(self, side: str, device: torch.device) -> Iterator[None]:
        """Turn gradients off for a frozen encoder, and bfloat16 autocast on if `bf16` is set."""
        gradients = torch.is_grad_enabled() and not self.freezes(side)
        with (torch.set_grad_enabled(gradients),
              torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)):
            yield

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Encode photos up to the pooling, before projection and normalisation.

        Args:
            pixel_values: (B, 3, R, R) standardised pixels.

        Returns:
            (B, width) float32, as wide as the image encoder.
        """
        return in_chunks(self._image_features, self.chunk, pixel_values)

    def _image_features(self, pixel_values: Tensor) -> Tensor:
        if self.channels_last:
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        with self._encoder_context("image", pixel_values.device):
            output = self.image_encoder(pixel_values=pixel_values, **self.image_encoder_kwargs)
        return pool(self.image_encoder, output, self.image_pooling)

    def text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode captions up to the pooling, before projection and normalisation.

        Args:
            input_ids: (B, L) token ids.
            attention_mask: (B, L), 1 on real tokens and 0 on padding.

        Returns:
            (B, width) float32, as wide as the text encoder.
        """
        return in_chunks(self._text_features, self.chunk, input_ids, attention_mask)

    def _text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask
        if self.uses_4d_mask:  # (B, 1, L, L): every query token sees the same real tokens
            length = mask.shape[1]
            mask = mask[:, None, None, :].bool().expand(-1, 1, length, -1)
        with self._encoder_context("text", input_ids.device):
            output = self.text_encoder(input_ids=input_ids, attention_mask=mask)
        return pool(self.text_encoder, output, self.text_pooling, attention_mask)

    def forward(
        self, pixel_values: Tensor | None, image_features: Tensor | None, input_ids: Tensor,
        attention_mask: Tensor, text_features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encode B pairs of a photo and a caption for training.

        Args:
            pixel_values: (B, 3, R, R) standardised pixels; None if `image_features` is given.
            image_features: (B, width) features that are known already, as those of a frozen image
                encoder are; None to compute them from `pixel_values`.
            input_ids: (B, L) token ids.
            attention_mask: (B, L), 1 on real tokens.
            text_features: (B, width) features that are known already, as those of a frozen text
                encoder are; None to compute them from `input_ids`.

        Returns:
            Image embeddings (B, D), text embeddings (B, D), image features (B, width) and text
            features (B, width).
        """
        if image_features is None:
            image_features = self.image_features(pixel_values)
        if text_features is None:
            text_features = self.text_features(input_ids, attention_mask)
        image_embeds = self.project_image(image_features)  # (B, D)
        text_embeds = self.project_text(text_features)  # (B, D)
        return image_embeds, text_embeds, image_features, text_features

    def project_image(self, features: Tensor) -> Tensor:
        """Project image features (B, width) and normalise them to unit embeddings (B, D)."""
        return F.normalize(self.image_projection(features), dim=1)

    def project_text(self, features: Tensor) -> Tensor:
        """Project text features (B, width) and normalise them to unit embeddings (B, D)."""
        return F.normalize(self.text_projection(features), dim=1)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Encode standardised pixels (B, 3, R, R) as unit embeddings (B, D)."""
        return self.project_image(self.image_features(pixel_values))

    def logits_per_image(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """Return the logits of photos and captions as a pretrained pair computes them.

        Args:
            image_embeds: (N_i, D) unit embeddings.
            text_embeds: (N_t, D) unit embeddings.

        Returns:
            (N_i, N_t): the cosines, scaled and shifted by `logit_scale` and `logit_bias` where
            these are not None.
        """
        cosines = image_embeds @ text_embeds.T
        if self.logit_scale is None:
            return cosines
        return self.logit_scale * cosines + self.logit_bias

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode token ids (B, L) and their mask (B, L), 1 on real tokens, as embeddings (B, D)."""
        return self.project_text(self.text_features(input_ids, attention_mask))


def model_from_state(state: dict, source: str) -> DualEncoder:
    """Build the model that `encoders.folder.read_model` has read, in evaluation mode.

    Args:
        state: What it returned.
        source: The folder or name, with which error messages begin.

    Raises:
        InputError: If the weights do not fit.
    """
    stored = read_stored_encoders(state, state["model"], source, set())
    options = state["options"]
    tokenizer = stored.read_tokenizer() or load_tokenizer(options["text_encoder"], "")
    model = DualEncoder(
        stored.build_encoder("image", tokenizer), stored.build_encoder("text", tokenizer),
        options["embed_size"], options["image_pooling"], options["text_pooling"],
        freeze=None, image_res=options["image_res"], max_tokens=options["max_tokens"],
        head=options["head"])
    model.set_logit_scale(stored.logit_scale)
    try:
        if not all(value.isfinite().all() for value in state["model"].values()):
            raise ValueError("NaN or infinity")
        model.load_state_dict(state["model"])
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{source}: its weights do not fit ({one_line(error)[:200]})") from error
    check_embeddings(model.eval(), source)
    model.preparation = read_preparation(state, tokenizer, Path(source))
    return model


@torch.no_grad()
def check_embeddings(model: DualEncoder, source: Path | str) -> None:
    """Check that the weights of a model, in evaluation mode, give embeddings that can be compared.

    With a projection of zeros, or of numbers too large to be squared, every cosine is 0. The text
    encoder is tried on two short captions; the image encoder, which would take longer, is not.

    Args:
        model: the dual encoder.
        source: what its weights come from, with which the error message begins.

    Raises:
        InputError: If an embedding has not the length 1, or a projection gives the same one for
            any features.
    """
    random = torch.Generator().manual_seed(0)
    for side in "image", "text":
        layers = [module for module in getattr(model, f"{side}_projection").modules()
                  if isinstance(module, nn.Linear)]
        if layers:
            features = torch.randn(2, layers[0].in_features, generator=random)
            project = model.project_image if side == "image" else model.project_text
            embeds = project(features.to(layers[0].weight.device))  # (2, D)
            if not are_unit_rows(embeds) or (embeds[0] - embeds[1]).abs().max() < 1e-6:
                raise InputError(f"{source}: its {side}_projection maps all {side}s to one point, "
                                 "or to none: its weights are damaged")
    mask = torch.ones(2, min(4, model.max_tokens), dtype=torch.int64)
    if not are_unit_rows(model.encode_text(mask, mask)):
        raise InputError(f"{source}: its text encoder gives embeddings without a length: its "
                         "weights are damaged")


def are_unit_rows(embeds: Tensor) -> bool:
    """Return whether the rows of embeddings (N, D) have the length 1, but for rounding."""
    return bool(((embeds.float().norm(dim=1) - 1).abs() < 1e-2).all())


def build_projection(width: int, embed_size: int, head: str) -> nn.Module:
    """Build the projection of one side, from features (B, width) to vectors (B, D).

    Args:
        width: The width of the features.
        embed_size: D. 0 means no projection.
        head: "linear", or "mlp": two linear layers with a GELU between them. The hidden layer is
            `HIDDEN_PER_OUTPUT` times as wide as the output.
    """
    if embed_size == 0:
        return nn.Identity()
    if head == "linear":
        return nn.Linear(width, embed_size)
    hidden = HIDDEN_PER_OUTPUT * embed_size
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, embed_size))


@contextlib.contextmanager
def as_input_error(message: str) -> Iterator[None]:
    """Turn any error of the body into an `InputError` of one line that begins with `message`.

    Used around the first call of an encoder: what a model raises for sizes that it does not take
    depends on the model.
    """
    try:
        yield
    except Exception as error:
        reraise_out_of_memory(error)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{message} ({reason})") from error


def interpolation_kwargs(encoder: nn.Module, image_res: int) -> dict[str, bool]:
    """Return the keyword arguments with which an image encoder takes photos of `image_res` pixels.

    A transformer with a table of positions interpolates it for photos of another size than in
    pretraining only if it is asked to. Other encoders need no argument.
    """
    vision_config = getattr(encoder.config, "vision_config", encoder.config)
    family = find_family(encoder.config, "image")
    if family.interpolates_positions and vision_config.image_size != image_res:
        return {"interpolate_pos_encoding": True}
    return {}


def momentum_copy(model: DualEncoder) -> DualEncoder:
    """Return the momentum encoder: a copy of `model` whose parameters take no gradient.

    What is not trained is shared instead of copied, since it never changes: a frozen encoder, and
    the weights beside adapters.
    """
    shared = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    shared += model.frozen_encoders
    # A deep copy takes what its memo holds instead of copying it.
    memo = {id(thing): thing for thing in shared}
    return copy.deepcopy(model, memo).requires_grad_(False)


class MomentumUpdate:
    """Move the momentum encoder towards the online model, in place.

    Each parameter becomes m * momentum + (1 - m) * online, the exponential moving average of the
    paper's momentum encoders; buffers are copied. Parameters that both models share stay.

    The object holds lists of both models' tensors, so that a step need not collect them: make it
    once the models are on their device. Weights that are loaded into either model later count.

    Args:
        momentum_model: The model that is moved, from `momentum_copy`.
        model: The online model, which is trained.
    """

    def __init__(self, momentum_model: DualEncoder, model: DualEncoder):
        self.momentum_parameters, self.online_parameters = unshared_tensors(
            momentum_model.parameters(), model.parameters())
        self.momentum_buffers, self.online_buffers = unshared_tensors(
            momentum_model.buffers(), model.buffers())

    @torch.no_grad()
    def __call__(self, m: float, online_moved: Tensor | None = None) -> None:
        """Move the momentum parameters once, in place.

        Args:
            m: The share of the momentum parameters that is kept, in [0, 1].
            online_moved: () bool on the device, whether the online model has changed since the
                last update. Where it is false the momentum parameters stay as they are. None
                means true.
        """
        if online_moved is None:
            torch._foreach_lerp_(self.momentum_parameters, self.online_parameters, 1 - m)
        else:
            weight = (1 - m) * online_moved  # (), without waiting for the device
            weights = [weight] * len(self.momentum_parameters)
            torch._foreach_lerp_(self.momentum_parameters, self.online_parameters, weights)
        if self.online_buffers:
            torch._foreach_copy_(self.momentum_buffers, self.online_buffers)


def unshared_tensors(
    momentum_tensors: Iterable[Tensor], online_tensors: Iterable[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return both models' tensors as two lists in one order, without those that they share."""
    pairs = [(momentum, online)
             for momentum, online in zip(momentum_tensors, online_tensors, strict=True)
             if momentum is not online]
    return [momentum for momentum, _ in pairs], [online for _, online in pairs]


def update_momentum(momentum_model: DualEncoder, model: DualEncoder, m: float) -> None:
    """Move the momentum encoder towards the online model once, in place.

    A loop over steps is faster with one `MomentumUpdate`, which this function makes and calls.

    Args:
        momentum_model: The model that is moved, from `momentum_copy`.
        model: The online model.
        m: The share of the momentum parameters that is kept, in [0, 1].
    """
    MomentumUpdate(momentum_model, model)(m)


def enable_gradient_checkpointing(model: DualEncoder) -> None:
    """Change `model` in place so that its trained encoders recompute activations when they go back.

    Only the inputs of each block are kept, which trades time for memory.

    Raises:
        InputError: If an encoder that is trained does not support gradient checkpointing, or if
            none is trained.
    """
    trained = [side for side in SIDES if not model.freezes(side)]
    if not trained:
        raise InputError("--grad_checkpointing: with --freeze both no gradient goes through an "
                         "encoder; leave the flag out")
    for side in trained:
        encoder = getattr(model, f"{side}_encoder")
        encoder = encoder.pair if isinstance(encoder, PairHalf) else encoder
        if not encoder.supports_gradient_checkpointing:
            raise InputError(f"--grad_checkpointing: the {side} encoder, a "
                             f"{type(encoder).__name__}, has none; leave the flag out")
        enable = (getattr(encoder, "activation_checkpointing_enable", None)  # its newer name
                  or encoder.gradient_checkpointing_enable)
        enable({"use_reentrant": False})


def check_deterministic_gradients(
    model: DualEncoder, options: EncodingOptions, device: torch.device
) -> None:
    """Run both encoders forward and backward once, so that --deterministic fails before training.

    Some operations have no gradient on a GPU that gives the same bits each time, and PyTorch says
    so only when that gradient is computed. The model is left as it was.

    Raises:
        InputError: If an encoder uses such an operation.
    """
    was_training = model.training
    model.eval()  # dropout would draw random numbers, and change the run
    pixels = torch.zeros(1, 3, options.image_res, options.image_res, device=device)
    tokens = torch.ones(1, options.max_tokens, dtype=torch.int64, device=device)
    features = {"image": model.image_features(pixels), "text": model.text_features(tokens, tokens)}
    for side, value in features.items():
        try:
            if value.requires_grad:
                value.sum().backward()
        except RuntimeError as error:
            operation = nondeterministic_operation(error)
            if operation is None:
                raise
            raise InputError(
                f"--deterministic: {operation} of --{side}_encoder has no "
                "gradient on a GPU that is the same each time: leave the flag out, or give photos "
                f"of the encoder's own size, or --freeze {side}") from error
    model.zero_grad()
    model.train(was_training)


def compile_encoders(*models: DualEncoder) -> None:
    """Compile the encoders of `models` with `torch.compile`, in place.

    The names of the weights stay the same, so that checkpoints are those of a run without
    compiling.
    """
    version = transformers.__version__
    major, minor = (int(number) for number in version.split(".")[:2])
    if (5, 9) <= (major, minor) < (5, 18):
        warn(f"--compile: transformers {version} gives a compiled ViT a mask, and its attention is "
             "slow with one on a GPU: pip install 'transformers>=5.18'")
    # PyTorch counts the graphs of all modules together, because the code that it compiles is the
    # one that calls any of them. An encoder past the limit would not be compiled at all.
    dynamo = torch._dynamo.config
    encoders = 2 * len(models)
    dynamo.recompile_limit = max(dynamo.recompile_limit, MAX_GRAPHS_PER_ENCODER * encoders)
    for model in models:
        model.image_encoder.compile()
        model.text_encoder.compile()


def build_model(
    options: EncodingOptions, tokenizer, pretrained: bool = True, freeze: str | None = None
) -> DualEncoder:
    """Build the `DualEncoder` that the flags describe, in training mode.

    Args:
        options: The flags of the run. A checkpoint may have left the configurations of its encoders
            in `options.stored_encoders`.
        tokenizer: The text encoder's tokenizer.
        pretrained: Whether the encoders are to have their pretrained weights. If false, a
            checkpoint will fill them: the encoders are built from `options.stored_encoders` where
            it has them, without any other file.
        freeze: "image" or "text", the encoder that is not trained, or "both"; None for neither.

    Raises:
        InputError: If an encoder cannot be had, or the two do not fit the flags.
    """
    quiet_transformers()
    encoders = {}
    for side, name in ("image", options.image_encoder), ("text", options.text_encoder):
        encoder = None
        if options.stored_encoders is not None and not pretrained:
            encoder = options.stored_encoders.build_encoder(side, tokenizer)
        if encoder is None:
            encoder = load_encoder(name, side, options.image_res, tokenizer, pretrained)
        encoders[side] = encoder
    model = DualEncoder(encoders["image"], encoders["text"], options.embed_size,
                        options.image_pooling, options.text_pooling, freeze,
                        options.image_res, options.max_tokens, options.head)
    if options.stored_encoders is not None:
        model.set_logit_scale(options.stored_encoders.logit_scale)
    return model
