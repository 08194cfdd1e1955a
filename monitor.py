"""What is measured of a run while it trains; nothing here changes the run.

Where every true match of the training split is known (`shapes`), the share of false negatives
among the negatives that the loss used is measured too.
"""

import itertools
import time
from collections import Counter

import torch
from torch import Tensor

from batches import Batch
from fne_loss import Draw, cosine, hardest_negatives


@torch.no_grad()
def draw_logs(run, batch: Batch, i2t: Draw, t2i: Draw) -> dict[str, Tensor]:
    """What the sampler did, as () tensors. Call it before the bank takes the batch."""
    logs = {"posterior_of_drawn": torch.cat([i2t.posterior, t2i.posterior]).mean(),
            "cut_share": (i2t.cut + t2i.cut) / 2}
    text_ids = torch.cat([batch.text_ids, run.bank.text_ids])[i2t.negatives]  # (B,)
    image_ids = torch.cat([batch.image_ids, run.bank.image_ids])[t2i.negatives]  # (B,)
    return logs | false_negative_logs(run, batch, text_ids, image_ids)


@torch.no_grad()
def step_logs(loss: Tensor, norm: Tensor, image_embeds: Tensor, text_embeds: Tensor
              ) -> dict[str, Tensor]:
    """Of every step, as () tensors: the loss, the gradient's norm before clipping, and the
    deviation of the batch's similarities, which a collapse takes to 0; embeddings (B, D)."""
    spread = cosine(image_embeds, text_embeds).std(correction=0)
    return {"loss": loss.detach(), "gradient_norm": norm, "similarity_spread": spread}


@torch.no_grad()
def hardest_logs(
    run, batch: Batch, image_embeds: Tensor, text_embeds: Tensor
) -> dict[str, Tensor]:
    """The same for the hardest negatives of the batch; embeddings (B, D)."""
    similarity = cosine(image_embeds, text_embeds)  # (B, B)
    _, texts = hardest_negatives(similarity, batch.image_ids)  # (B,) positions in the batch
    _, images = hardest_negatives(similarity.T, batch.image_ids)
    return false_negative_logs(run, batch, batch.text_ids[texts], batch.image_ids[images])


def false_negative_logs(
    run, batch: Batch, text_ids: Tensor, image_ids: Tensor
) -> dict[str, Tensor]:
    """The share of true matches among captions (B,) used as negatives of the batch's photos and
    photos (B,) used as negatives of its captions; empty where the matches are not known."""
    if run.matches is None:
        return {}
    false_texts = run.matches[text_ids, batch.image_ids]  # (B,)
    false_images = run.matches[batch.text_ids, image_ids]  # (B,)
    return {"false_negative_share": torch.cat([false_texts, false_images]).float().mean()}


class StepClock:
    """How long the parts of a step take. On a GPU it marks its stream with events, which are read
    when logs are written: no step waits for it. "data" is then the time that the GPU stood idle."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.marks = []  # (name of the part that ended here, when)

    def lap(self, name: str | None) -> None:
        """Book the time since the last lap under `name`; None: under nothing."""
        if self.cuda:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        else:
            mark = time.perf_counter()
        self.marks.append((name, mark))

    def seconds(self) -> Counter:
        """Name to seconds since this was last asked."""
        totals = Counter()
        if self.cuda and self.marks:
            self.marks[-1][1].synchronize()
        for (_, start), (name, end) in itertools.pairwise(self.marks):
            if name is not None:
                totals[name] += start.elapsed_time(end) / 1000 if self.cuda else end - start
        del self.marks[:-1]
        return totals


def mean_values(run) -> dict[str, Tensor]:
    """The means over the steps since the last time, those that were left out aside."""
    return {f"train/{name}": torch.stack(
        [logs[name] for logs in run.logs if name in logs]).nanmean() for name in run.logs[-1]}


def state_values(run) -> dict[str, Tensor | float]:
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
    return values


def time_values(run) -> dict[str, float]:
    """Milliseconds of a step by part, and photos per second, since this was last asked; nothing
    where a resumed run writes what its predecessor had to leave."""
    steps = sum(name == "data" for name, _ in run.clock.marks)
    seconds = run.clock.seconds()
    if not steps:
        return {}
    values = {f"time/{name}_ms": 1000 * total / steps for name, total in seconds.items()}
    photos = steps * run.options.batch_size_train
    return values | {"train/photos_per_second": photos / seconds.total()}
