"""Facts: what an embeddings file says of the run behind it, so that a report can repeat it.

Plain values by name, all of them optional: nothing is assumed where the file is silent.
"""

import json
import math

import numpy as np

from common.errors import InputError

MOST, LONGEST = 100_000, 500  # characters of a file's facts, and of one that is text
# Names and kinds. `float` takes whole numbers, too; no number may be negative.
KINDS = {
    "dataset": str, "split": str, "date": str, "commit": str,  # of the embedding
    "checkpoint": str, "phase": str, "epoch": int, "num_epochs": int, "step": int,
    "loss": str, "oracle": str, "posterior": str, "margin": float, "tau": float,
    "posterior_floor": float, "nums_right_sims": int,
    "batch_size_train": int, "queue_size": int, "warmup_epochs": int, "seed": int,
    "image_encoder": str, "text_encoder": str, "embed_size": int, "image_res": int,
}
# What FNE's draw needs, and to see a split as training did.
METHOD = "margin", "tau", "posterior_floor", "nums_right_sims", "batch_size_train"


def facts_array(facts: dict[str, object]) -> np.ndarray:
    """Facts as a () array of text; without what `read_facts` would refuse, such as an encoder's
    path that no terminal can show."""
    return np.array(json.dumps({name: value for name, value in facts.items()
                                if is_kind(value, KINDS[name])}))


def read_facts(array: np.ndarray | None, source: str) -> dict[str, object]:
    """The facts of a () array of text, those of `KINDS`; none where there is no array.

    Raises:
        InputError: they are not as `facts_array` makes them. It begins with `source`.
    """
    if array is None:
        return {}
    text = str(array)
    try:
        if len(text) > MOST:
            raise ValueError(f"{len(text)} characters")
        facts = json.loads(text)
        known = {name: facts[name] for name in KINDS if facts.get(name) is not None}
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{source}: facts are no json object: leave them out") from error
    for name, value in known.items():
        if not is_kind(value, KINDS[name]):
            raise InputError(f"{source}: of its facts {name} is {str(value)[:60]!r}, which cannot "
                             "be: leave it out")
    return known


def is_kind(value: object, kind: type) -> bool:
    """Whether a value is text that a terminal can show, or a finite number of the kind that is not
    negative."""
    if kind is str:
        return isinstance(value, str) and value.isprintable() and len(value) <= LONGEST
    if isinstance(value, bool) or not isinstance(value, int | kind):
        return False
    return 0 <= value < 2**63 and math.isfinite(value)


def run_text(facts: dict[str, object]) -> str:
    """Where a checkpoint stands in its run: "epoch 9/10, FNE", or what is known of that, and
    whether an oracle helped."""
    parts = [facts["checkpoint"]] if "checkpoint" in facts else []
    if "epoch" in facts:
        of = f"/{facts['num_epochs']}" if "num_epochs" in facts else ""
        parts.append(f"epoch {facts['epoch']}{of}")
    return ", ".join([*parts, *(facts[name] for name in ("phase", "oracle") if name in facts)])
