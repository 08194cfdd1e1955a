"""Whether the Hugging Face Hub answers."""

import functools
import threading

import huggingface_hub
from huggingface_hub.utils import get_session

from common.errors import one_line

HUB_TIMEOUT = 5  # seconds that the Hub has to answer


@functools.cache
def hub_error() -> str | None:
    """Return why the Hub does not answer, or None where it does, whatever it says; it is asked once
    a process."""
    answers = [f"nothing in {HUB_TIMEOUT} seconds"]

    def ask() -> None:
        try:
            get_session().head(huggingface_hub.constants.ENDPOINT, timeout=HUB_TIMEOUT)
            answers.append(None)
        except Exception as error:  # of the client that huggingface_hub has in this version
            cause: BaseException = error
            while cause.__cause__ or cause.__context__:
                cause = cause.__cause__ or cause.__context__
            answers.append(one_line(cause))

    # No limit of the client's counts the time that a name server keeps it waiting.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_TIMEOUT)
    return answers[-1]
