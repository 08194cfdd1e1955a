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
from huggingface_hub import ModelHubMixin, snapshot_download
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.errors import NOT_DETERMINISTIC, InputError, one_line, reraise_out_of_memory
from common.memory import available_memory
from common.options import EncodingOptions
from common.terminal import warn
from encoders.families import choose_pooling, find_family
from encoders.folder import PATTERNS, read_folder, read_preparation, write_folder
from encoders.hub import fetch_error_message, use_cache_only
from encoders.loading import load_encoder, quiet_transformers
from encoders.pooling import last_hidden_state, pool
from encoders.preparation import Preparation
from encoders.stored import read_stored_encoders

MUCH_MEMORY = 2 * 10**9  # bytes for one photo or caption, of which a warning speaks
MANY_SCORES = 2**36  # of one attention: about a minute on a CPU
MAX_GRAPHS_PER_ENCODER = 8  # that --compile makes


class DualEncoder(nn.Module, ModelHubMixin):
    """Map photos and captions to unit vectors of one embedding space.

    Each side (image or text) has an encoder, whose last hidden state is pooled to one feature
    vector. A linear projection follows where `embed_size` > 0, and then L2 normalisation. The dot
    product of an image embedding and a text embedding is their cosine similarity.

    The encoders compute in bfloat16 autocast if the attribute `bf16` is true. Pooling, projections
    and embeddings are float32 in any case.

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
        freeze: "image" or "text" for an encoder that is not trained, or None.
        image_res: R, the side of the square photos in pixels.
        max_tokens: L, the length of the longest caption in tokens.

    Raises:
        InputError: If the widths differ without `embed_size`, or if an encoder does not take
            photos or captions of that size, or does not have the pooling.
    """

    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module, embed_size: int = 0,
                 image_pooling: str = "auto", text_pooling: str = "auto",
                 freeze: str | None = None, image_res: int = 384, max_tokens: int = 30):
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.image_pooling = choose_pooling(image_encoder, "image", image_pooling)
        self.text_pooling = choose_pooling(text_encoder, "text", text_pooling)
        self.freeze = freeze
        self.max_tokens = max_tokens
        self.image_encoder_kwargs = interpolation_kwargs(image_encoder, image_res)
        self.channels_last = False
        self.uses_4d_mask = False
        self.bf16 = False
        self.preparation: Preparation | None = None
        self.saved_dtype = torch.float32  # of the weights that `save_pretrained` writes
        self.eval()
        image_width = self._probe_image_encoder(image_res)
        text_width = self._probe_text_encoder(max_tokens)
        if embed_size == 0 and image_width != text_width:
            raise InputError(f"the image encoder is {image_width} wide and the text encoder "
                             f"{text_width}: give both a projection with --embed_size 256, say")
        self.embed_size = embed_size or image_width  # D
        if embed_size:
            self.image_projection = nn.Linear(image_width, embed_size)
            self.text_projection = nn.Linear(text_width, embed_size)
        else:
            self.image_projection = nn.Identity()
            self.text_projection = nn.Identity()
        if freeze:
            self.frozen_encoder.requires_grad_(False)
        self.train()

    @property
    def frozen_encoder(self) -> nn.Module | None:
        """The encoder that is not trained, or None if both are trained."""
        return getattr(self, f"{self.freeze}_encoder") if self.freeze else None

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
    def from_pretrained(cls, name: str | Path, **kwargs) -> "DualEncoder":
        """Read a model, in evaluation mode, from a folder of `export.py` or from the Hub.

        Args:
            name: A local folder, or the name of a model on the Hugging Face Hub.
            **kwargs: Those of `huggingface_hub.ModelHubMixin.from_pretrained`.

        Raises:
            InputError: If there is no such folder or model, or it is not what `export.py` writes.
        """
        if Path(name).is_dir():
            return model_from_folder(Path(name))
        quiet_transformers()
        try:
            kwargs["local_files_only"] = (kwargs.get("local_files_only")
                                          or use_cache_only(str(name)))
            return super().from_pretrained(name, **kwargs)
        except InputError:
            raise
        except Exception as error:  # the Hub's client and broken files raise a dozen kinds
            reraise_out_of_memory(error)
            reason = fetch_error_message(str(name), error)[:200]
            raise InputError(f"{name} is no folder, and none can be had from the Hub by that name "
                             f"({reason})") from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, revision=None, cache_dir=None,
                         force_download=False, local_files_only=False, token=None, **ignored):
        folder = snapshot_download(
            model_id, revision=revision, cache_dir=cache_dir, force_download=force_download,
            local_files_only=local_files_only, token=token, allow_patterns=PATTERNS)
        return model_from_folder(Path(folder))

    @contextlib.contextmanager
    def _encoder_context(self, side: str, device: torch.device) -> Iterator[None]:
        """Turn gradients off for a frozen encoder, and bfloat16 autocast on if `bf16` is set."""
        gradients = torch.is_grad_enabled() and self.freeze != side
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
        mask = attention_mask
        if self.uses_4d_mask:  # (B, 1, L, L): every query token sees the same real tokens
            length = mask.shape[1]
            mask = mask[:, None, None, :].bool().expand(-1, 1, length, -1)
        with self._encoder_context("text", input_ids.device):
            output = self.text_encoder(input_ids=input_ids, attention_mask=mask)
        return pool(self.text_encoder, output, self.text_pooling, attention_mask)

    def forward(
        self, pixel_values: Tensor | None, image_features: Tensor | None, input_ids: Tensor,
        attention_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encode B pairs of a photo and a caption for training.

        Args:
            pixel_values: (B, 3, R, R) standardised pixels; None if `image_features` is given.
            image_features: (B, width) features that are known already, as those of a frozen image
                encoder are; None to compute them from `pixel_values`.
            input_ids: (B, L) token ids.
            attention_mask: (B, L), 1 on real tokens.

        Returns:
            Image embeddings (B, D), text embeddings (B, D), image features (B, width) and text
            features (B, width).
        """
        if image_features is None:
            image_features = self.image_features(pixel_values)
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

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode token ids (B, L) and their mask (B, L), 1 on real tokens, as embeddings (B, D)."""
        return self.project_text(self.text_features(input_ids, attention_mask))


def model_from_folder(folder: Path) -> DualEncoder:
    """Read the model in a local folder of `export.py`, in evaluation mode.

    Raises:
        InputError: If the folder is not what `export.py` writes, or its weights do not fit.
    """
    quiet_transformers()
    state = read_folder(folder)
    stored = read_stored_encoders(state, state["model"], str(folder), set())
    options = state["options"]
    tokenizer = stored.read_tokenizer()
    model = DualEncoder(
        stored.build_encoder("image", tokenizer), stored.build_encoder("text", tokenizer),
        options["embed_size"], options["image_pooling"], options["text_pooling"],
        freeze=None, image_res=options["image_res"], max_tokens=options["max_tokens"])
    try:
        if not all(value.isfinite().all() for value in state["model"].values()):
            raise ValueError("NaN or infinity")
        model.load_state_dict(state["model"])
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{folder}: its weights do not fit ({one_line(error)[:200]})") from error
    check_embeddings(model.eval(), folder)
    model.preparation = read_preparation(state, tokenizer, folder)
    return model


class LargestOperation(TorchDispatchMode):
    """Remember how much memory the largest operation needs, of those that run inside the `with`.

    Attributes:
        bytes: of the arguments and results of one operation.
    """

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = {id(leaf): leaf for leaf in tree_leaves((args, kwargs, result))
                   if isinstance(leaf, Tensor)}
        self.bytes = max(self.bytes, sum(tensor.numel() * tensor.element_size()
                                         for tensor in tensors.values()))
        return result


class AttentionWithoutScores(TorchFunctionMode):
    """Have attention count as its result alone, as the kernels that do not keep its L x L scores.

    On the meta device it would be computed by the other ones.

    Attributes:
        scores: the largest number of scores of one attention.
    """

    def __init__(self):
        super().__init__()
        self.scores = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention and len(args) >= 3:
            query, key, value = args[:3]
            self.scores = max(self.scores, query.shape[:-1].numel() * key.shape[-2])
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def check_memory(
    encoder: nn.Module, what: str, is_large: bool, **inputs: tuple[int, ...] | bool
) -> None:
    """Say what an encoder will take for one large input before it is tried.

    The encoder is run on the meta device, which computes nothing and takes no memory. An encoder
    that does not run there is not checked.

    Args:
        encoder: of transformers, or a `ClipEncoder`.
        what: names the flag and the input, with which messages begin.
        is_large: whether the input is large enough to ask.
        inputs: shapes of its inputs by name, of float32 pixels or int64 tokens, and flags.

    Raises:
        InputError: If one operation alone takes more memory than is free, or if attention would
            take minutes.
    """
    if not is_large:
        return
    tensors = {name: torch.zeros(
        value, dtype=torch.float32 if name == "pixel_values" else torch.int64, device="meta")
        if isinstance(value, tuple) else value for name, value in inputs.items()}
    weights = {name: value.to("meta") for named in (
        encoder.named_parameters(), encoder.named_buffers()) for name, value in named}
    largest, attention = LargestOperation(), AttentionWithoutScores()
    try:
        with largest, attention:
            torch.func.functional_call(encoder, weights, (), tensors)
    except Exception:  # it reads values, which are not there, or does not take this size
        pass
    if attention.scores > MANY_SCORES:
        raise InputError(f"{what} makes so many tokens that its encoder would compare "
                         f"{attention.scores:,} pairs of them in each layer: make it smaller")
    free = available_memory()
    if free is not None and largest.bytes > free:
        raise InputError(f"{what} takes at least {largest.bytes / 1e9:,.1f} GB in its encoder, and "
                         f"{free / 1e9:,.1f} GB are free: make it smaller")
    if largest.bytes > MUCH_MEMORY:
        warn(f"{what} takes at least {largest.bytes / 1e9:,.1f} GB in its encoder")


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
        projection = getattr(model, f"{side}_projection")
        if isinstance(projection, nn.Linear):
            features = torch.randn(2, projection.in_features, generator=random)
            project = model.project_image if side == "image" else model.project_text
            embeds = project(features.to(projection.weight.device))  # (2, D)
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

    A frozen encoder is shared instead of copied, since it never changes.
    """
    # A deep copy takes what its memo holds instead of copying it.
    memo = {id(model.frozen_encoder): model.frozen_encoder} if model.freeze else {}
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
        InputError: If an encoder that is trained does not support gradient checkpointing.
    """
    for side in {"image", "text"} - {model.freeze}:
        encoder = getattr(model, f"{side}_encoder")
        encoder = getattr(encoder, "clip", encoder)  # the model of transformers in a `ClipEncoder`
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
            if NOT_DETERMINISTIC not in str(error):
                raise
            operation = str(error).partition(" ")[0]
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
        freeze: "image" or "text", the encoder that is not trained; None for neither.

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
    return DualEncoder(encoders["image"], encoders["text"], options.embed_size,
                       options.image_pooling, options.text_pooling, freeze,
                       options.image_res, options.max_tokens)
