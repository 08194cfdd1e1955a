"""The flags of the experiments' commands; importing this loads nothing that takes long."""

from pathlib import Path
from typing import NamedTuple

from common.parser import HelpFormatter, Parser

LOSSES = "triplet", "infonce", "fne"  # each with and without the oracle
NEVER = 2.0  # a threshold that no probability exceeds
WITNESS_BAR = 0.2


class Use(NamedTuple):
    """A use of likely matches in training, in the place of one of the losses.

    Attributes:
        loss: the loss whose place it takes.
        label: what stands in the table of results.
        in_bank: whether it draws its negatives from the memory bank too.
        threshold: posterior above which a candidate is excluded; None excludes none.
        share: of the posterior by which a likely match counts as a positive.
        witness: how far apart the scores of matches and of other pairs are, in standard deviations,
            of a witness who knows the true matches but for errors; None for the model's own
            posterior. What the witness calls a match with a probability above `WITNESS_BAR` is
            excluded.
    """

    loss: str
    label: str
    in_bank: bool = False
    threshold: float | None = None
    share: float = 0.0
    witness: float | None = None


USES = {
    "filter": Use("triplet", "hardest in the batch, p <= .5", threshold=0.5),
    "filter_low": Use("triplet", "hardest in the batch, p <= .1", threshold=0.1),
    "filter_lowest": Use("triplet", "hardest in the batch, p <= .05", threshold=0.05),
    "bank": Use("fne", "hardest in batch and bank", in_bank=True, threshold=NEVER),
    "bank_filter": Use("fne", "hardest in batch and bank, p <= .5", in_bank=True, threshold=0.5),
    "evidence": Use("fne", "FNE, --posterior evidence"),
    "weights": Use("fne", "FNE, weights times 1 - p", in_bank=True),
    "denominator": Use("infonce", "InfoNCE, denominator times 1 - p"),
    "positive_quarter": Use("infonce", "InfoNCE, .25 p as a positive", share=0.25),
    "positive": Use("infonce", "InfoNCE, p as a positive", share=1.0),
} | {
    f"witness_{distance}_{loss}": Use(loss, f"{label}, a witness {distance} sd apart",
                                      witness=distance)
    for loss, label in (("triplet", "hardest in the batch"), ("infonce", "InfoNCE"))
    for distance in (1, 2, 3)
}


def build_posterior_parser(description: str) -> Parser:
    """Return the parser of the flags of experiments.posterior."""
    parser = Parser(description=description)
    parser.add_argument("embeddings", type=Path, nargs="+", help="npz files of one split")
    parser.add_argument("--judgements", type=Path, help="people's answers, as of evaluation.py")
    parser.add_argument("--matches", type=Path, help="all true matches of the split")
    parser.add_argument("--margin", type=float, default=0.2,
                        help="of the training, for the cut-down (%(default)s)")
    parser.add_argument("--output", type=Path, help="write all that was measured here, as json")
    return parser


def build_uses_parser(description: str) -> Parser:
    """Return the parser of the flags of experiments.uses; all other flags are those of train.py."""
    parser = Parser(HelpFormatter, description=description)
    parser.add_argument("use", choices=USES, metavar="USE", help=", ".join(USES))
    parser.add_argument("--after", type=int, default=5,
                        help="epochs of the usual loss before it; of uses in place of FNE it is "
                             "--warmup_epochs")
    return parser
