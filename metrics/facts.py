"""Facts: what an embeddings file says about the run behind it, for the report.

Facts are plain values by name, all of them optional. Where a file says nothing, nothing is assumed.
"""

import json
import math

import numpy as np

from common.errors import InputError

MAX_JSON_CHARACTERS = 100_000  # of all facts of a file
MAX_TEXT_CHARACTERS = 500  # of a fact that is text
# Names and types. `float` includes whole numbers, and no number may be negative.
FACT_TYPES = {
    "dataset": str, "split": str, "date": str, "commit": str,  # of the encoding
    "checkpoint": str, "phase": str, "epoch": int, "num_epochs": int, "step": int,
    "loss": str, "oracle": str, "posterior": str, "margin": float, "tau": float,
    "posterior_floor": float, "nums_right_sims": int,
    "teacher": str,  # of the array `teacher_embeds`, whatever the run learned from
    "batch_size_train": int, "queue_size": int, "warmup_epochs": int, "seed": int,
    "image_encoder": str, "text_encoder": str, "embed_size": int, "image_res": int,
}
# The facts with which a report draws negatives on a split as FNE did in training.
METHOD_FACTS = "margin", "tau", "posterior_floor", "nums_right_sims", "batch_size_train"


def facts_array(facts: dict[str, object]) -> np.ndarray:
    """Return facts as an array that `read_facts` reads.

    Facts that `read_facts` would refuse are left out, such as an encoder's path that no terminal
    can show.

    Args:
        facts: Values by names of `FACT_TYPES`.

    Returns:
        () text, JSON.
    """
    valid = {name: value for name, value in facts.items()
             if is_valid_fact(value, FACT_TYPES[name])}
    return np.array(json.dumps(valid))


def read_facts(array: np.ndarray | None, source: str) -> dict[str, object]:
    """Return the facts in an array of `facts_array`, as far as their names are in `FACT_TYPES`.

    Args:
        array: () text, JSON; None means no facts.
        source: What error messages begin with.

    Raises:
        InputError: If the text is no JSON object, or a value is not of its type.
    """
    if array is None:
        return {}
    text = str(array)
    try:
        if len(text) > MAX_JSON_CHARACTERS:
            raise ValueError(f"{len(text)} characters")
        content = json.loads(text)
        facts = {name: content[name] for name in FACT_TYPES if content.get(name) is not None}
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{source}: facts are no json object: leave them out") from error
    for name, value in facts.items():
        if not is_valid_fact(value, FACT_TYPES[name]):
            raise InputError(f"{source}: of its facts {name} is {str(value)[:60]!r}, which cannot "
                             "be: leave it out")
    return facts


def is_valid_fact(value: object, kind: type) -> bool:
    """Return whether a value is of a type of `FACT_TYPES`, and can be shown.

    Text must be printable and short; numbers must be finite and not negative.
    """
    if kind is str:
        return (isinstance(value, str) and value.isprintable()
                and len(value) <= MAX_TEXT_CHARACTERS)
    if isinstance(value, bool) or not isinstance(value, int | kind):
        return False
    return 0 <= value < 2**63 and math.isfinite(value)


def run_summary(facts: dict[str, object]) -> str:
    """Return where a checkpoint stands in its run, as far as facts say: "epoch 9/10, FNE".

    The oracle is named too, if one took part in the training. Without facts the text is empty.
    """
    parts = []
    if "checkpoint" in facts:
        parts.append(facts["checkpoint"])
    if "epoch" in facts:
        total = f"/{facts['num_epochs']}" if "num_epochs" in facts else ""
        parts.append(f"epoch {facts['epoch']}{total}")
    parts += [facts[name] for name in ("phase", "oracle") if name in facts]
    return ", ".join(parts)
