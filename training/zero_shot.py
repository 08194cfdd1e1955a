"""What is known of a model before its first step: its metrics, its similarities, and its margin.

A margin is a difference of cosines. The cosines of a pretrained pair may lie close together: those
of CLIP about 0.3 for matches and 0.1 to 0.2 for others, so that the published margin of 0.2 is
wider than all that is between them.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from common.flags import flags_of
from common.processes import broadcast_from_main
from common.ranks import is_main
from common.terminal import print_status, warn
from data import Split
from fne_loss import RunningGaussian, cosine, cut_down_bound, rank_batch
from training.objectives import OBJECTIVES
from training.run import Run

LARGEST_SAMPLE = 5000  # photos
# Share of confident pairs from which on a model has learned to match photos and captions: of random
# embeddings 1 in 2 B - 1 is confident.
ALIGNED = 0.25
DEVIATIONS = 2  # of N-, by which `--margin auto` puts the cut-down below its mean


@dataclass
class Similarities:
    """The similarities of a sample of pairs, in batches as a step of training has them."""

    batch: int  # pairs of each batch
    count: int = 0  # pairs of all batches
    positive: RunningGaussian = field(default_factory=RunningGaussian)  # N+, of confident pairs
    negative: RunningGaussian = field(default_factory=RunningGaussian)  # N-, their hardest
    others: RunningGaussian = field(default_factory=RunningGaussian)  # photo and other caption

    @property
    def are_of_a_pair(self) -> bool:
        """Whether the model has learned to match photos and captions."""
        return self.positive.count >= max(2, ALIGNED * self.count)

    def describe(self) -> str:
        """Return means and deviations: "N+ 0.312 ± 0.031, N- 0.251 ± 0.024, ..."."""
        parts = {"N+": self.positive, "N- (hardest of a batch)": self.negative,
                 "other pairs": self.others}
        return ", ".join(f"{name} {gaussian.mean:.3f} ± {gaussian.variance.sqrt():.3f}"
                         for name, gaussian in parts.items())


@torch.no_grad()
def measure(image_embeds: Tensor, text_embeds: Tensor, split: Split, batch: int) -> Similarities:
    """Measure the similarities of a split's photos, each with its first caption.

    Args:
        image_embeds: (N_i, D) unit rows of the split.
        text_embeds: (N_t, D) unit rows of the split.
        split: says which photo a caption belongs to.
        batch: B, pairs in a batch; all pairs are one batch where there are fewer.
    """
    images, texts = np.unique(split.image_of_text, return_index=True)
    images, texts = images[:LARGEST_SAMPLE], texts[:LARGEST_SAMPLE]
    found = Similarities(min(batch, len(images)))
    for start in range(0, len(images) - found.batch + 1, found.batch):
        rows = slice(start, start + found.batch)
        similarity = cosine(image_embeds[images[rows]], text_embeds[texts[rows]])  # (B, B)
        ranking = rank_batch(similarity, torch.arange(found.batch))
        found.count += found.batch
        found.positive.update(ranking.positive, ranking.confident)
        found.negative.update(ranking.hardest, ranking.confident & ranking.hardest.isfinite())
        found.others.update(similarity, ~torch.eye(found.batch, dtype=torch.bool))
    return found


def auto_margin(similarities: Similarities) -> float:
    """Return the margin that a pair's own similarities give.

        margin = mean(N+) - mean(N-) + 2 sd(N-)

    The cut-down, mean(N+) - margin, then lies at the lower end of N-, at mean(N-) - 2 sd(N-): a
    candidate that is less similar than nearly all hardest negatives of a batch is easy, and is left
    out. N- holds the hardest negatives of confident pairs, which are less similar than their
    positives, so that the margin is above 0.

    Raises:
        InputError: the model has not learned to match photos and captions yet.
    """
    if not similarities.are_of_a_pair:
        raise InputError(
            "--margin auto: these encoders are no pretrained pair, whose similarities could give "
            f"one: of {similarities.count} pairs of val {int(similarities.positive.count)} are "
            "each other's best match in a batch; give a number")
    positive, negative = similarities.positive, similarities.negative
    return float(positive.mean - negative.mean + DEVIATIONS * negative.variance.sqrt())


def keep(
    run: Run, metrics: dict[str, float], embeds: tuple[Tensor, Tensor], split: Split
) -> None:
    """Keep what the validation before the first step shows, in place.

    Of a pretrained pair a line says where its similarities lie, and a warning if the margin is
    wider than they are. Of encoders that are no pair yet nothing is said: their similarities will
    change beyond recognition.

    Args:
        run: `zero_shot` becomes `metrics`, and `--margin auto` a number.
        metrics: of the validation, by name.
        embeds: (N_i, D) and (N_t, D) unit rows of the split, the same in all processes.
        split: the validation split.

    Raises:
        InputError: `--margin auto` finds no pretrained pair.
    """
    run.zero_shot = metrics
    options = run.options
    if "margin" not in flags_of(OBJECTIVES[options.loss].flags):
        return
    similarities = measure(*embeds, split, options.batch_size_train)
    is_auto = options.margin == "auto"
    if is_auto:
        run.objective.set_margin(broadcast_from_main(auto_margin(similarities)))
        print_status(f"--margin auto: {options.margin:.4f}")
    if not similarities.are_of_a_pair or not is_main():
        return
    bound = cut_down_bound(similarities.positive, options.margin)
    cut_down = f"; cut-down at {bound:.3f}" if run.objective.sampler() is not None else ""
    print_status(f"similarities before the first step, in batches of {similarities.batch} of val:\n"
                 f"  {similarities.describe()}{cut_down}")
    if bound < similarities.others.mean and not is_auto:
        warn(f"--margin {options.margin:g} is wider than the similarities of this pair: most "
             f"photos and captions that do not match are above mean(N+) - margin = {bound:.3f}. "
             f"Give --margin auto, which is {auto_margin(similarities):.3f} here")
