"""On which device the encoders compute, and in what precision."""

import os

import torch
from torch import nn

from common.errors import InputError
from common.memory import keep_freed_memory
from common.options import ModelOptions
from common.ranks import local_rank, local_world_size, world_size


def pick_device(name: str) -> torch.device:
    """Return the device that --device means for this process.

    Args:
        name: "auto", "cuda" or "cpu". Of several processes on a machine each has its own GPU.

    Raises:
        InputError: If CUDA is requested and there is no GPU, or not one for every process.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no GPU is visible to PyTorch; use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if world_size() == 1:
        return torch.device("cuda")
    gpus = torch.cuda.device_count()
    if local_world_size() > gpus:
        raise InputError(f"{local_world_size()} processes on a machine with {gpus} GPUs: start "
                         f"torchrun with --nproc_per_node {gpus}, or use --device cpu")
    return torch.device("cuda", local_rank())


def set_deterministic(deterministic: bool) -> None:
    """Have PyTorch compute the same bits in each run, or choose its algorithms freely.

    Call it before anything is on a GPU, because cuBLAS reads its variable once.

    Args:
        deterministic: The value of --deterministic.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(deterministic)


def use_bf16(precision: str, device: torch.device) -> bool:
    """Return whether --precision means that encoders run in bfloat16 on `device`.

    Args:
        precision: "auto", "bf16" or "fp32". "auto" is bfloat16 on a GPU that has it.
        device: The device of the encoders.

    Raises:
        InputError: If bfloat16 is requested on a GPU without it.
    """
    is_gpu = device.type == "cuda"
    has_bf16 = not is_gpu or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not has_bf16:
        raise InputError("--precision bf16: this GPU has no bfloat16; use --precision fp32")
    return precision == "bf16" or (precision == "auto" and is_gpu and has_bf16)


def place_on_device(model: nn.Module, options: ModelOptions) -> torch.device:
    """Move a `DualEncoder` in place to the device of --device, and set its precision.

    Args:
        model: The `DualEncoder`; its attribute `bf16` is set.
        options: Their --device and --precision count.

    Returns:
        The device.

    Raises:
        InputError: If there is no such device, or it does not have the precision.
    """
    device = pick_device(options.device)
    if device.type == "cuda":
        # Convolutions would round float32 to TF32's 10 bits.
        torch.backends.cudnn.allow_tf32 = False
    else:
        keep_freed_memory()
    model.to(device)
    model.bf16 = use_bf16(options.precision, device)
    return device
