"""Models and tokenizers from a folder, the local cache or the Hugging Face Hub, without delays.

transformers tries a Hub that cannot be reached six times for each file, for 23 seconds, and prints
each try. Here the Hub is asked once whether it answers; if it does not, only the cache is used.
"""

import logging
import os
from pathlib import Path

import huggingface_hub
import torch
import transformers
from huggingface_hub.utils import HFValidationError, validate_repo_id
from torch import nn

from common.errors import one_line, reraise_out_of_memory
from common.hub import hub_error

MAX_TEXT_BYTES = 2**27  # of a configuration, tokenizer or vocabulary


def fetch(loader_class, name: str, **kwargs):
    """Return `loader_class.from_pretrained(name)`, without running code that the model brings.

    Args:
        loader_class: A class of transformers, such as `AutoModel`.
        name: A local folder, or the name of a model on the Hub.
        **kwargs: Further arguments of `from_pretrained`.

    Raises:
        Exception: Of a dozen types, all of which mean that the model cannot be had;
            `fetch_error_message` puts them into words.
    """
    quiet_transformers()
    check_texts(Path(name))
    kwargs = {"local_files_only": use_cache_only(name)} | kwargs
    return loader_class.from_pretrained(name, trust_remote_code=False, **kwargs)


def check_texts(folder: Path) -> None:
    """Check that the texts of a local folder are files, and none too large to be read as a whole.

    Nothing is checked where there is no such folder.

    Raises:
        OSError: If one is a pipe or device, or has more than `MAX_TEXT_BYTES`.
    """
    for pattern in "*.json", "*.txt", "*.jinja":
        for path in folder.glob(pattern):
            if not path.is_file():
                raise OSError(f"{path.name} is no file")
            if path.stat().st_size > MAX_TEXT_BYTES:
                raise OSError(f"{path.name} has more than {MAX_TEXT_BYTES:,} bytes")


def fetch_weights(loader_class, name: str, **kwargs) -> tuple[nn.Module, dict]:
    """Return a model of transformers in float32, and what transformers tells of its loading.

    transformers 5 would keep a half precision that the weights were saved in. Where peft is
    installed, it would also ask the Hub for adapters, whatever else it is told.

    Args:
        loader_class: A model class of transformers, such as `AutoModel`.
        name: A local folder, or the name of a model on the Hub.
        **kwargs: Further arguments of `from_pretrained`.

    Raises:
        Exception: As `fetch` does.
    """
    if int(transformers.__version__.partition(".")[0]) >= 5:  # before, it cannot be told apart
        kwargs["adapter_kwargs"] = {"local_files_only": use_cache_only(name)}
    return fetch(loader_class, name, dtype=torch.float32, output_loading_info=True, **kwargs)


def model_file(name: str, file: str, **kwargs) -> Path | None:
    """Return one file of a model, or None if the model has no such file, or cannot be had.

    Args:
        name: A local folder, or the name of a model on the Hub.
        file: The file's name inside the model.
        **kwargs: Further arguments of `huggingface_hub.hf_hub_download`, such as `revision`.
    """
    if Path(name).is_dir() or not is_hub_name(name):
        path = Path(name) / file
        return path if path.is_file() else None
    quiet_transformers()
    try:
        return Path(huggingface_hub.hf_hub_download(
            name, file, **{"local_files_only": use_cache_only(name)} | kwargs))
    except Exception as error:  # the Hub's client raises errors of a dozen kinds
        reraise_out_of_memory(error)
        return None


def use_cache_only(name: str) -> bool:
    """Return whether the Hub is not to be asked for `name`.

    That is so if the name cannot be one of the Hub's, or if the Hub does not answer.
    """
    return not is_hub_name(name) or hub_error() is not None


def fetch_error_message(name: str, error: Exception) -> str:
    """Return one line that says why `fetch` of `name` failed with `error`."""
    if is_hub_name(name) and hub_error() is not None:
        return (f"not whole in the cache, and {huggingface_hub.constants.ENDPOINT} does not "
                f"answer: {hub_error()}")
    return one_line((str(error).strip() or type(error).__name__).splitlines()[0])


def is_hub_name(name: str) -> bool:
    """Return whether `name` can only mean a model of the Hub: it has that form, and is no folder.
    """
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).is_dir()


def quiet_transformers() -> None:
    """Keep the progress bars of transformers, and its notes on unused weights, off the terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity(logging.ERROR)
    huggingface_hub.utils.logging.set_verbosity(logging.ERROR)
