"""Models and tokenizers from a folder, the local cache or the Hugging Face Hub, without delays.

transformers tries a Hub that cannot be reached six times for each file, for 23 seconds, and prints
each try. Here the Hub is asked once whether it answers; if it does not, only the cache is used.
"""

import logging
import os
from pathlib import Path

import huggingface_hub
import transformers
from huggingface_hub.utils import HFValidationError, validate_repo_id

from common.errors import one_line
from common.hub import hub_error


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
    return loader_class.from_pretrained(name, local_files_only=use_cache_only(name),
                                        trust_remote_code=False, **kwargs)


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
