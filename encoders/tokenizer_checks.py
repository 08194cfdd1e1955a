"""Checks of a tokenizer that comes from a folder or a checkpoint, before it is used.

A `tokenizer.json` is a small program. Some take all memory or time for a caption of a few words,
some raise an error, or end the process, only when a caption is tokenised, and some give other
tokens in each call. So a tokenizer first has to tokenise a few texts in a child process, with
limits of memory and time.
"""

import faulthandler
import json
import os
import resource
import select
import signal
import string
import time
import warnings
from collections.abc import Iterator

from common.errors import InputError, one_line, reraise_out_of_memory
from inputs.captions import token_ids

MAX_GROWTH = 10_000  # letters that all replacements together may make of one
MAX_TOKENS_PER_LETTER = 64
EXTRA_MEMORY = 2**29  # bytes that the trial may take beside what the process has
CPU_SECONDS = 5
WALL_SECONDS = 120  # of a machine that has much else to do
SHORT_TEXT = "a dog"
# Every printable letter of ASCII, letters and signs of other scripts, and rare ones.
LONG_TEXT = " ".join([
    "two young people and an excellent eel feel free", string.digits, string.ascii_letters,
    string.punctuation, "áéíóúäöüßñçøåœ ¿¡«»“”‘’–—…€£°½²™", "Ελληνικά Русский עברית العربية",
    "हिन्दी ไทย 日本語 中文 한국어", "\u0301\u200b\ufeff\ufdfa\U0001f600\U0010ffff",
    "\t\r\n  \x00\x7f", "x" * 300, "e" * 300])


def check_tokenizer(tokenizer, source: str) -> None:
    """Check that a tokenizer tokenises any text, alike each time, in little time and memory.

    Args:
        tokenizer: A tokenizer of transformers.
        source: The flag or file, with which the error message begins.

    Raises:
        InputError: If it does not.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    literals = []
    if core is not None:
        parts = list(objects_in([content_of(core.normalizer), content_of(core.pre_tokenizer)]))
        literals = [text for part in parts for text in pattern_texts(part)]
        check_dropout(getattr(core.model, "dropout", None), source)
        check_growth(parts, source)
    texts = ["", " ", SHORT_TEXT, " ".join([LONG_TEXT, *literals])[:100_000]]
    fault = fault_in_child(lambda: fault_in_use(tokenizer, core, texts))
    if fault is not None:
        raise InputError(f"{source}: {fault}")


def content_of(part) -> object:
    """Return a part of a fast tokenizer as JSON content; None where it has none.

    The whole tokenizer would take half a second, with a vocabulary of 250,000 words.
    """
    try:
        return None if part is None else json.loads(part.__getstate__())
    except Exception as error:  # of parts that are written in Python
        reraise_out_of_memory(error)
        return None


def objects_in(value: object) -> Iterator[dict]:
    """Yield all objects in JSON content, at any depth."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def pattern_texts(part: dict) -> Iterator[str]:
    """Yield the texts of the patterns that a part of a tokenizer looks for; a regex as it is."""
    pattern = part.get("pattern")
    if isinstance(pattern, dict):
        yield from (text for text in pattern.values() if isinstance(text, str))
    elif isinstance(pattern, str):
        yield pattern


def check_dropout(dropout: float | None, source: str) -> None:
    """Raise InputError if a tokenizer leaves out merges at random, with probability `dropout`."""
    if dropout:
        raise InputError(f"{source}: it has a dropout of {str(dropout)[:20]}, with which a caption "
                         "has other tokens each time: set \"dropout\" to null in its file")


def check_growth(parts: list[dict], source: str) -> None:
    """Raise InputError if replacements, one after the other, can make a text far longer.

    Args:
        parts: The objects of the tokenizer's JSON.
        source: What the error message begins with.
    """
    growth = 1.0
    for part in parts:
        if part.get("type") != "Replace" or not isinstance(part.get("content"), str):
            continue
        pattern = part.get("pattern")
        literal = pattern.get("String") if isinstance(pattern, dict) else None
        length = len(literal) if isinstance(literal, str) and literal else 1
        growth *= max(1.0, len(part["content"]) / length)
        if growth > MAX_GROWTH:
            raise InputError(f"{source}: its replacements may make more than {MAX_GROWTH:,} "
                             "letters of one: take out those that repeat what they find")


def fault_in_use(tokenizer, core, texts: list[str]) -> str | None:
    """Tokenise texts, and return what is wrong with the result, or None.

    Args:
        tokenizer: A tokenizer of transformers.
        core: Its fast tokenizer, or None.
        texts: The texts, the longest last.
    """
    longest = len(texts[-1])
    normalizer = getattr(core, "normalizer", None)
    if normalizer is not None:
        length = len(normalizer.normalize_str(texts[-1]))
        if length > MAX_TOKENS_PER_LETTER * longest:
            return f"it makes {length:,} letters of {longest:,}"
    rows = token_ids(texts, tokenizer, 2**20)
    if rows != token_ids(texts, tokenizer, 2**20) or rows != [
            token_ids([text], tokenizer, 2**20)[0] for text in texts]:
        return "it gives other tokens for the same text each time"
    if len(rows[-1]) > MAX_TOKENS_PER_LETTER * longest:
        return f"it makes {len(rows[-1]):,} tokens of {longest:,} letters"
    if not all(type(number) is int and 0 <= number < 2**31 for row in rows for number in row):
        return "it gives tokens that are no numbers from 0 on"
    return None


def fault_in_child(work) -> str | None:
    """Call `work` in a child process with limits of memory and time.

    Args:
        work: Returns a fault in words, or None.

    Returns:
        What `work` returned, or a sentence about what it raised or how the child ended.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child = os.fork()
    if child == 0:
        os.close(reading)
        run_in_child(work, writing)  # never returns
    os.close(writing)
    answer, deadline = b"", time.monotonic() + WALL_SECONDS
    try:
        while select.select([reading], [], [], max(0, deadline - time.monotonic()))[0]:
            part = os.read(reading, 4096)
            if not part:
                break
            answer += part
    finally:
        os.close(reading)
        if not answer:  # it may hang; one that has answered ends by itself
            kill_if_alive(child, wait=1.0)
        _, status = os.waitpid(child, 0)
    if answer:
        return answer[1:].decode("utf-8", "replace") or None
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return f"it does not tokenise a text within {CPU_SECONDS} s"
    return f"it does not tokenise a text within {EXTRA_MEMORY // 2**20} MiB, or ends the program"


def kill_if_alive(child: int, wait: float) -> None:
    """Kill a child that does not end within `wait` seconds. It is left to be waited for."""
    deadline = time.monotonic() + wait
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)


def run_in_child(work, writing: int) -> None:
    """Set the limits, call `work`, write the fault it returns or raises, and end the process."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends, and this process with it
        # The threads of `tokenizers` are not in this process, so it must not wait for them.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        faulthandler.disable()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        for limit, value in ((resource.RLIMIT_AS, size + EXTRA_MEMORY),
                             (resource.RLIMIT_CPU, CPU_SECONDS), (resource.RLIMIT_CORE, 0)):
            _, hard = resource.getrlimit(limit)
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (value, value))
        fault = work()
    except BaseException as error:  # a panic of `tokenizers` is no Exception
        fault = f"it does not tokenise a text ({one_line(error)[:200]})"
    os.write(writing, b"." + (fault or "").encode("utf-8", "replace")[:2000])
    os._exit(0)
