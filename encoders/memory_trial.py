"""How much memory an encoder takes for one large photo or caption, before it is tried."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from common.errors import InputError
from common.memory import available_memory
from common.terminal import warn

MUCH_MEMORY = 2 * 10**9  # bytes for one photo or caption, of which a warning speaks
MANY_SCORES = 2**36  # of one attention: about a minute on a CPU


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
        encoder: of transformers, or half of a pretrained pair.
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
