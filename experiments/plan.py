"""The runs of an experiment: their configurations, their common protocol, and their data.

Nothing here trains, so a command that plans runs or starts them as processes loads no PyTorch.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from common.presets import default_data_path
from inputs import shapes

WARM_UP = "warm-up"  # in place of a value of --oracle
ORACLES = "off", "exclude", "positives"  # values of --oracle
AGAIN_OFFSET = 1_000_000  # added to the seed for another order of batches and draws


@dataclass(frozen=True)
class Protocol:
    """The settings that all runs of an experiment share.

    Attributes:
        work: folder of the runs.
        results: folder of the json files of the results.
        data: folder that holds the data set of each dose, under the name that train.py gives it.
        warmup_epochs: epochs of all warm-ups.
        branch_epochs: epochs after the warm-up.
        more: further flags of train.py.
        photos: of `shapes` in train, val and test; None for the usual numbers.
    """

    work: str
    results: str
    data: str
    warmup_epochs: int = 5
    branch_epochs: int = 2
    more: tuple[str, ...] = ()
    photos: tuple[int, ...] | None = None

    @property
    def record(self) -> dict:
        """The settings that a result records, as json reads them back: those that are no paths."""
        return {"warmup_epochs": self.warmup_epochs, "branch_epochs": self.branch_epochs,
                "more": list(self.more), "photos": self.photos and list(self.photos)}


@dataclass(frozen=True)
class Configuration:
    """One run of an experiment.

    Attributes:
        dose: the share of false negatives, a value of --ambiguity.
        seed: of captions, initial weights and the order of the warm-up.
        loss: "triplet", "infonce" or "fne"; a warm-up has no "fne".
        oracle: a value of --oracle, or `WARM_UP`.
        again: whether batches and draws come in another order than in the run without it.
        use: one of `experiments.flags.USES`, in the place of `loss`; "" for none.
    """

    dose: str
    seed: int
    loss: str
    oracle: str
    again: bool = False
    use: str = ""

    @property
    def name(self) -> str:
        """The name of the run's files."""
        variant = {"off": "plain", "exclude": "oracle"}.get(self.oracle, self.oracle)
        variant = self.use or variant
        again = "_again" if self.again else ""
        return f"dose{self.dose}_seed{self.seed}_{self.loss}_{variant}{again}"

    @property
    def warm_up(self) -> "Configuration":
        """The run that this one continues. FNE warms up with the triplet loss."""
        loss = "infonce" if self.loss == "infonce" else "triplet"
        return Configuration(self.dose, self.seed, loss, WARM_UP)

    def folder(self, protocol: Protocol) -> Path:
        """Return the folder of the run."""
        return Path(protocol.work) / self.name

    def result(self, protocol: Protocol) -> Path:
        """Return the json file of the run's result."""
        return Path(protocol.results) / f"{self.name}.json"


def data_path(configuration: Configuration, protocol: Protocol) -> Path:
    """Return the folder of the photos of a run."""
    return Path(protocol.data) / default_data_path("shapes", configuration.dose)


@contextlib.contextmanager
def shapes_sizes_of(protocol: Protocol) -> Iterator[None]:
    """Set the numbers of photos of `shapes` to those of the protocol, until the context ends.

    train.py, which makes the data set or finds it, takes them too.
    """
    default_sizes = shapes.DEFAULT_SIZES
    if protocol.photos:
        shapes.DEFAULT_SIZES = dict(zip(default_sizes, protocol.photos, strict=True))
    try:
        yield
    finally:
        shapes.DEFAULT_SIZES = default_sizes


def make_data(configuration: Configuration, protocol: Protocol) -> Path:
    """Make the data set of a run unless it is there, and return the folder of its photos."""
    with shapes_sizes_of(protocol):
        path = data_path(configuration, protocol)
        return shapes.make_shapes(path, ambiguity=float(configuration.dose))


def to_json(configuration: Configuration, protocol: Protocol) -> str:
    """Return a run and its protocol as json, the one argument of experiments.one_run."""
    return json.dumps({"configuration": asdict(configuration), "protocol": asdict(protocol)})


def from_json(text: str) -> tuple[Configuration, Protocol]:
    """Return the run and the protocol that `to_json` has made a text of."""
    task = json.loads(text)
    tuples = {name: tuple(value) for name, value in task["protocol"].items()
              if isinstance(value, list)}
    return Configuration(**task["configuration"]), Protocol(**task["protocol"] | tuples)
