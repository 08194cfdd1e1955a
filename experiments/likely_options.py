"""The flags of the uses of likely matches, which `experiments.uses` adds to those of train.py."""

from dataclasses import dataclass

from common.flags import option
from training.objectives.options import FNEOptions, InfoNCEOptions, TripletOptions


@dataclass(kw_only=True)
class LikelyOptions:
    """The options that all uses of likely matches share."""

    title = "likely matches"
    likely_threshold: float | None = option(
        None, "P(match) above which a candidate is no negative", low=0, high=2)
    likely_share: float = option(
        0.0, "share of a likely match that counts as a positive of InfoNCE", low=0, high=1)
    witness: float | None = option(
        None, "standard deviations between the scores that a witness gives matches and other pairs",
        low=0, high=100)
    likely_after: int = option(0, "epochs of the usual loss before the use", low=0, high=10**6)


@dataclass(kw_only=True)
class LikelyTripletOptions(TripletOptions, LikelyOptions):
    """The options of a use in place of the triplet loss."""


@dataclass(kw_only=True)
class LikelyInfoNCEOptions(InfoNCEOptions, LikelyOptions):
    """The options of a use in place of InfoNCE."""


@dataclass(kw_only=True)
class LikelyFNEOptions(FNEOptions, LikelyOptions):
    """The options of a use in place of FNE."""


LIKELY_OPTIONS = {"triplet": LikelyTripletOptions, "infonce": LikelyInfoNCEOptions,
                  "fne": LikelyFNEOptions}
