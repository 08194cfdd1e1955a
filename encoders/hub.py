"""Models and tokenizers from a folder, the cache or the Hugging Face Hub: quietly, and at once.

transformers tries a Hub that it cannot reach six times for each file, 23 seconds long, and prints
each try. So it is asked once, whether it answers; where it does not, the cache has to do.
"""

import logging
import os
from pathlib import Path

import huggingface_hub
import transformers
from huggingface_hub.utils import HFValidationError, validate_repo_id

from common.errors import one_line
from common.hub import hub_fault


def fetch(kind, name: str, **settings):
    """`kind.from_pretrained(name)`, without running code that comes along.

    Raises:
        Exception: of a dozen kinds, all of which mean that it cannot be had; see `why_not`.
    """
    quiet_transformers()
    return kind.from_pretrained(name, local_files_only=from_cache(name), trust_remote_code=False,
                                **settings)


def from_cache(name: str) -> bool:
    """Whether a name is not to be asked for: it is none of the Hub's, or the Hub does not answer.
    """
    return not asks_hub(name) or hub_fault() is not None


def why_not(name: str, error: Exception) -> str:
    """In one line, why `fetch` failed with `error`."""
    if asks_hub(name) and hub_fault() is not None:
        return (f"not whole in the cache, and {huggingface_hub.constants.ENDPOINT} does not "
                f"answer: {hub_fault()}")
    return one_line((str(error).strip() or type(error).__name__).splitlines()[0])


def asks_hub(name: str) -> bool:
    """Whether a name can only mean a model of the Hub: no folder, and of the Hub's form."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).is_dir()


def quiet_transformers() -> None:
    """Keep its loading bars and its notes on unused heads off the terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity(logging.ERROR)
    huggingface_hub.utils.logging.set_verbosity(logging.ERROR)
