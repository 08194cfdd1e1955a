"""Where the encoders compute, and in what precision."""

import os

import torch
from torch import nn

from common.errors import InputError
from common.memory import keep_freed_memory
from common.options import ModelOptions
from common.ranks import local_rank, local_world, world


def pick_device(name: str) -> torch.device:
    """The device of --device; of several processes each has a GPU of its own.

    Raises:
        InputError: CUDA is asked for and not there, or not for every process.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no GPU is visible to PyTorch; use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if world() == 1:
        return torch.device("cuda")
    gpus = torch.cuda.device_count()
    if local_world() > gpus:
        raise InputError(f"{local_world()} processes on a machine with {gpus} GPUs: start torchrun "
                         f"with --nproc_per_node {gpus}, or use --device cpu")
    return torch.device("cuda", local_rank())


def be_deterministic(deterministic: bool) -> None:
    """Have PyTorch compute the same bits each time, for --deterministic, or as it likes.

    Call it before anything is on a GPU: cuBLAS reads its variable once.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(deterministic)


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether --precision means bfloat16 on `device`: auto does on a GPU that has it.

    Raises:
        InputError: bf16 is asked for on a GPU without it.
    """
    able = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not able:
        raise InputError("--precision bf16: this GPU has no bfloat16; use --precision fp32")
    return precision == "bf16" or precision == "auto" and device.type == "cuda" and able


def place(model: nn.Module, options: ModelOptions) -> torch.device:
    """Move a `DualEncoder` to --device and give its encoders --precision; the device."""
    device = pick_device(options.device)
    if device.type == "cuda":  # float32 shall be that: else convolutions round to 10 bits, as TF32
        torch.backends.cudnn.allow_tf32 = False
    else:
        keep_freed_memory()
    model.to(device)
    model.bf16 = use_bf16(options.precision, device)
    return device
