"""What the runs of an experiment are: their configurations, what they share, and their data.

Nothing here trains: whoever plans runs, or starts them as processes, need not load what they need.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from common.presets import default_data_path
from inputs import shapes

WARM_UP = "warm-up"  # in place of an oracle
WAYS = "off", "exclude", "positives"  # of --oracle
ORDER = 1_000_000  # added to the seed for another order of batches and draws


@dataclass(frozen=True)
class Protocol:
    """What all runs of an experiment share."""

    work: str  # folder of the runs
    results: str  # folder of the json files
    data: str  # folder in which each dose has its own, as train.py names them
    warmup_epochs: int = 5
    branch_epochs: int = 2
    more: tuple[str, ...] = ()  # flags of train.py
    photos: tuple[int, ...] | None = None  # train, val, test of `shapes`; None for the usual ones

    @property
    def told(self) -> dict:
        """What a result tells of it, as json reads it back: not where its files lie."""
        return {"warmup_epochs": self.warmup_epochs, "branch_epochs": self.branch_epochs,
                "more": list(self.more), "photos": self.photos and list(self.photos)}


@dataclass(frozen=True)
class Configuration:
    """One run: which captions, weights and order of the warm-up, which loss, and what is known."""

    dose: str  # --ambiguity
    seed: int
    loss: str  # triplet, infonce, fne; of a warm-up triplet or infonce
    oracle: str  # off, exclude, positives, or WARM_UP
    again: bool = False  # with another order of batches and draws than the same without
    use: str = ""  # one of `experiments.flags.USES`, in place of `loss`

    @property
    def name(self) -> str:
        way = {"off": "plain", "exclude": "oracle"}.get(self.oracle, self.oracle)
        way = self.use or way
        return f"dose{self.dose}_seed{self.seed}_{self.loss}_{way}{'_again' * self.again}"

    @property
    def warm_up(self) -> "Configuration":
        """The run that this one goes on from: FNE warms up with the triplet loss."""
        loss = "infonce" if self.loss == "infonce" else "triplet"
        return Configuration(self.dose, self.seed, loss, WARM_UP)

    def folder(self, protocol: Protocol) -> Path:
        return Path(protocol.work) / self.name

    def result(self, protocol: Protocol) -> Path:
        return Path(protocol.results) / f"{self.name}.json"


def data_path(configuration: Configuration, protocol: Protocol) -> Path:
    """Where its photos are."""
    return Path(protocol.data) / default_data_path("shapes", configuration.dose)


@contextlib.contextmanager
def data_of(protocol: Protocol) -> Iterator[None]:
    """Inside, `shapes` has the protocol's photos, for train.py too, which makes it or finds it."""
    usual = shapes.DEFAULT_SIZES
    if protocol.photos:
        shapes.DEFAULT_SIZES = dict(zip(usual, protocol.photos, strict=True))
    try:
        yield
    finally:
        shapes.DEFAULT_SIZES = usual


def make_data(configuration: Configuration, protocol: Protocol) -> Path:
    """Make its data set, or find it; where the photos are."""
    with data_of(protocol):
        path = data_path(configuration, protocol)
        return shapes.make_shapes(path, ambiguity=float(configuration.dose))


def words(configuration: Configuration, protocol: Protocol) -> str:
    """Both as the one argument of the command."""
    return json.dumps({"configuration": asdict(configuration), "protocol": asdict(protocol)})


def from_words(text: str) -> tuple[Configuration, Protocol]:
    """What `words` has put together."""
    task = json.loads(text)
    lists = {name: tuple(value) for name, value in task["protocol"].items()
             if isinstance(value, list)}
    return Configuration(**task["configuration"]), Protocol(**task["protocol"] | lists)
