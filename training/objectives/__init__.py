"""The objectives that --loss can name. Loads no torch, so that --help is printed at once."""

import pkgutil
from typing import NamedTuple

from training.objectives.options import (
    FNEOptions,
    InfoNCEOptions,
    SigmoidOptions,
    TripletOptions,
)


class Entry(NamedTuple):
    """An objective that --loss can name.

    Its class is named by a text, "module:Class", so that --help need not load torch.
    """

    path: str
    flags: type  # the dataclass of its flags, as `common/flags.py` declares them


OBJECTIVES: dict[str, Entry] = {
    "fne": Entry("training.objectives.fne:FNEObjective", FNEOptions),
    "triplet": Entry("training.objectives.triplet:TripletObjective", TripletOptions),
    "infonce": Entry("training.objectives.infonce:InfoNCEObjective", InfoNCEOptions),
    "sigmoid": Entry("training.objectives.sigmoid:SigmoidObjective", SigmoidOptions),
}


def objective_class(name: str) -> type:
    """Return the class of the objective `name` of `OBJECTIVES`, and load its module."""
    return pkgutil.resolve_name(OBJECTIVES[name].path)
