"""What the runs of an experiment are: their configurations, what they share, and their data.

Nothing here trains: whoever plans runs, or starts them as processes, need not load what they need.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from common.flags import default_data_path
from inputs import shapes

LOSSES = "triplet", "infonce", "fne"  # without an oracle, and without a use of likely matches
WARM_UP = "warm-up"  # in place of an oracle
WAYS = "off", "exclude", "positives"  # of --oracle
NEVER = 2.0  # a threshold that no probability is above
ORDER = 1_000_000  # added to the seed for another order of batches and draws


class Use(NamedTuple):
    """What takes the place of which loss; `experiments.uses` tells what each part means."""

    loss: str
    told: str
    in_bank: bool = False
    threshold: float | None = None
    share: float = 0.0


USES = {
    "filter": Use("triplet", "hardest in the batch, p <= .5", threshold=0.5),
    "filter_low": Use("triplet", "hardest in the batch, p <= .1", threshold=0.1),
    "filter_lowest": Use("triplet", "hardest in the batch, p <= .05", threshold=0.05),
    "bank": Use("fne", "hardest in batch and bank", in_bank=True, threshold=NEVER),
    "bank_filter": Use("fne", "hardest in batch and bank, p <= .5", in_bank=True, threshold=0.5),
    "bank_filter_low": Use(
        "fne", "hardest in batch and bank, p <= .1", in_bank=True, threshold=0.1),
    "evidence": Use("fne", "FNE, --posterior evidence"),
    "weights": Use("fne", "FNE, weights times 1 - p", in_bank=True),
    "denominator": Use("infonce", "InfoNCE, denominator times 1 - p"),
    "positive_quarter": Use("infonce", "InfoNCE, .25 p as a positive", share=0.25),
    "positive": Use("infonce", "InfoNCE, p as a positive", share=1.0),
}


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
    use: str = ""  # one of USES, in place of `loss`

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
