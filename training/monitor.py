"""What is measured of a run while it trains.

`watch` gets what a step has computed and adds to the run's logs and histograms; `take_values`
empties the logs. No weight, statistic, key or random number changes, so a run is the same without.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from common.processes import gather, total
from common.ranks import world_size
from data import Batch
from fne_loss import NO_NEGATIVE, Draw, InBatch, excluded_candidates, rank_in_batch
from training.run import Run
from training.schedule import INFONCE

BINS = 400  # of the similarities, on [-1, 1]


class Step(NamedTuple):
    """What a step on B pairs has computed."""

    batch: Batch
    similarity: Tensor  # (B, B) of the online embeddings
    in_batch: InBatch | None  # None under InfoNCE
    draws: tuple[Draw, Draw] | None  # i2t and t2i, of FNE
    loss: Tensor  # ()
    norm: Tensor  # () of the gradient, before clipping
    good: Tensor  # () bool, whether the step was taken
    barred: Tensor | None = None  # (B, B) true matches, where the oracle kept them from the loss


@torch.no_grad()
def watch(run: Run, step: Step) -> None:
    """Log a step. Call it before the bank takes the batch: it asks what was drawn from the bank.

    What a step logs that was left out is NaN, which no mean takes in.
    """
    logs = {"loss": step.loss, "gradient_norm": step.norm,
            "similarity_spread": step.similarity.std(correction=0)}
    if step.draws is not None:
        i2t, t2i = step.draws
        logs["posterior_of_drawn"] = torch.cat([i2t.posterior, t2i.posterior]).mean()
        logs["cut_share"] = (i2t.cut + t2i.cut) / 2
    if run.matches is not None:
        share = softmax_share if run.phase == INFONCE else false_negative_share
        logs["false_negative_share"] = share(run, step)
    run.logs.append({name: value.detach().float().where(step.good, torch.nan)
                     for name, value in logs.items()})
    if run.counts is not None:
        count_similarities(run.counts, step.in_batch)


def of_all_anchors(draws: tuple[Draw, Draw], loss: Tensor) -> tuple[tuple[Draw, Draw], Tensor]:
    """What was drawn for all B anchors and their () loss, from those of this process's b."""
    if world_size() == 1:
        return draws, loss.detach()
    told = gather(torch.stack([value.double() for draw in draws
                               for value in (draw.negatives, draw.posterior)], dim=1))  # (B, 4)
    sums = total(torch.stack([loss.double(), *(n for draw in draws for n in draw.counts)]))  # (5,)
    return tuple(
        draw._replace(negatives=told[:, 2 * side].long(), posterior=told[:, 2 * side + 1],
                      counts=sums[1 + 2 * side : 3 + 2 * side], evidence=total(draw.evidence))
        for side, draw in enumerate(draws)), sums[0].to(loss.dtype)


def false_negative_share(run: Run, step: Step) -> Tensor:
    """() share of true matches among the negatives that the loss used: those drawn, or in the
    in-batch triplet loss the hardest. NaN where it used none that is known."""
    batch = step.batch
    if step.draws is None:
        in_batch = (step.in_batch if step.barred is None else
                    rank_in_batch(step.similarity, batch.image_ids, step.barred))
        texts, images = (batch.text_ids[in_batch.hardest_at[0]],
                         batch.image_ids[in_batch.hardest_at[1]])  # (B,), (B,)
        used = in_batch.hardest.isfinite()  # (2, B)
    else:
        drawn = torch.stack([draw.negatives for draw in step.draws])  # (2, B)
        used = drawn != NO_NEGATIVE
        texts = torch.cat([batch.text_ids, run.bank.text_ids])[drawn[0].clamp(min=0)]  # (B,)
        images = torch.cat([batch.image_ids, run.bank.image_ids])[drawn[1].clamp(min=0)]  # (B,)
    # A bank that was taken over from a released checkpoint does not know its captions.
    used = used & (torch.stack([texts, images]) >= 0)  # (2, B)
    false = torch.stack([run.matches[texts.clamp(min=0), batch.image_ids],
                         run.matches[batch.text_ids, images.clamp(min=0)]])  # (2, B)
    return (false & used).sum() / used.sum()


def softmax_share(run: Run, step: Step) -> Tensor:
    """() share of true matches in what InfoNCE repels: of the softmax's weight on negatives, summed
    over the anchors of both directions. NaN where there is no negative."""
    batch = step.batch
    negatives = ~excluded_candidates(batch.image_ids, batch.image_ids, step.barred)  # (B, B)
    logits = (run.log_scale.exp() * step.similarity).masked_fill(
        (~negatives).fill_diagonal_(False), -torch.inf)  # (B, B) of what the softmax is over
    weights = (logits.softmax(dim=0) + logits.softmax(dim=1)) * negatives  # (B, B)
    false = run.matches[batch.text_ids[None, :], batch.image_ids[:, None]]  # (B, B)
    return (weights * false).sum() / weights.sum()


def count_similarities(counts: Tensor, in_batch: InBatch) -> None:
    """Add a batch to the histograms of what `FNELoss.add_to_statistics` takes from it.

    Args:
        counts: (2, BINS) int64, changed in place: confident positives, and their hardest negatives.
    """
    values = torch.cat([in_batch.positive[None], in_batch.hardest])  # (3, B)
    taken = in_batch.confident & values.isfinite()  # (3, B)
    bins = ((values.where(taken, 0.0) + 1) * (BINS / 2)).long().clamp(0, BINS - 1)  # (3, B)
    bins[1:] += BINS  # the second row of counts
    counts.view(-1).index_add_(0, bins.view(-1), taken.long().view(-1))  # no wait for a GPU


def logs_due(run: Run) -> bool:
    """Whether there is something to write every --log_step steps, and it is time."""
    return bool(run.logs) and run.global_step % run.options.log_step == 0


def take_values(run: Run) -> dict[str, float]:
    """All that TensorBoard gets every --log_step steps, by tag; the logs start anew.

    The only place that waits for the device, since a step's values are read here.
    """
    values = mean_values(run) | state_values(run) | time_values(run)
    run.logs.clear()
    run.clock.lap(None)
    return {name: float(value) for name, value in values.items()}


def mean_values(run: Run) -> dict[str, Tensor]:
    """The means over the steps since the last time, those that were left out aside."""
    return {f"train/{name}": torch.stack(
        [logs[name] for logs in run.logs if name in logs]).nanmean() for name in run.logs[-1]}


def state_values(run: Run) -> dict[str, Tensor | float]:
    """Learning rate, temperature, bank and statistics as they are now."""
    values = {"train/skipped_steps": run.skips.count,
              "train/learning_rate": run.optimizer.param_groups[0]["lr"]}
    if run.options.loss == "infonce":
        values["train/temperature"] = (-run.log_scale.detach()).exp()
    if run.bank is not None:
        values["bank/fill"] = len(run.bank) / len(run.bank.image_ids)
        for name in "positive", "negative":
            gaussian = getattr(run.criterion, name)
            values[f"statistics/{name}_mean"] = gaussian.mean
            values[f"statistics/{name}_std"] = gaussian.variance.sqrt()
            values[f"statistics/{name}_count"] = gaussian.count
        if run.criterion.by_evidence:
            for name in "same", "different":
                gaussian = getattr(run.criterion, name)
                values[f"statistics/{name}_mean"], values[f"statistics/{name}_texts_mean"] = (
                    gaussian.mean)
                values[f"statistics/{name}_count"] = gaussian.count
    return values


def time_values(run: Run) -> dict[str, float]:
    """Milliseconds of a step by part, and photos per second, since this was last asked; nothing
    where a resumed run writes what its predecessor had to leave."""
    steps = sum(name == "data" for name, _ in run.clock.marks)
    seconds = run.clock.seconds()
    if not steps:
        return {}
    values = {f"time/{name}_ms": 1000 * total / steps for name, total in seconds.items()}
    photos = steps * run.options.batch_size_train
    return values | {"train/photos_per_second": photos / seconds.total()}
