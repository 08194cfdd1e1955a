"""What TensorBoard gets to see of a run; nothing here changes the run.

Where every true match of the training split is known (`shapes`), the share of false negatives
among the negatives that the loss used is measured too.
"""

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

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


def write_logs(run, writer: SummaryWriter) -> dict[str, float]:
    """Write the mean of each value since the last time, steps that were left out aside, and give
    them; the only place that waits for the GPU."""
    values = {f"train/{name}": torch.stack(
        [logs[name] for logs in run.logs if name in logs]).nanmean() for name in run.logs[-1]}
    values["train/skipped_steps"] = run.skips.count
    values["train/learning_rate"] = run.optimizer.param_groups[0]["lr"]
    if run.seconds:  # a resumed run may write what its predecessor had to leave
        values["train/photos_per_second"] = run.photos_seen / run.seconds
    if run.options.loss == "infonce":
        values["train/temperature"] = (-run.log_scale.detach()).exp()
    if run.bank is not None:
        values["bank/fill"] = len(run.bank) / len(run.bank.image_ids)
        for name in "positive", "negative":
            gaussian = getattr(run.criterion, name)
            values[f"statistics/{name}_mean"] = gaussian.mean
            values[f"statistics/{name}_std"] = gaussian.variance.sqrt()
            values[f"statistics/{name}_count"] = gaussian.count
    values = {name: float(value) for name, value in values.items()}
    for name, value in values.items():
        writer.add_scalar(name, value, run.global_step)
    run.logs.clear()
    run.photos_seen, run.seconds = 0, 0.0
    return values
