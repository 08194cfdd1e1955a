"""What can be done with a likely match: uses of the posterior by evidence that
were tried. Train by one, and test, with all flags of train.py:

    python -m experiments.uses filter --dataset flickr8k --loss triplet

`experiments.dose --uses` has all of them at each dose. Each takes the place of
one loss after its warm-up. Those of the batch alone see the captions of a photo
that the run has seen; those of FNE see batch and bank, as `--posterior
evidence` does.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from unittest import mock

from common.errors import InputError, exit_on_import_error, exit_on_input_error
from experiments.flags import USES, build_uses_parser

if __name__ == "__main__":
    exit_on_import_error()
    build_uses_parser(__doc__).parse_known_args()  # --help need not wait for the imports below

import torch
import torch.nn.functional as F
from torch import Tensor

import train
from common.flags import PRIOR_OF_EVIDENCE
from common.options import TrainOptions, parse
from common.ranks import world_size
from data import Batch, LoadedSplit
from fne_loss import (
    SETTINGS,
    FNELoss,
    RunningEvidence,
    cosine,
    excluded_candidates,
    false_negative_posterior,
    moments,
    rank_in_batch,
    sampling_weights,
    triplet_from_similarity,
)
from training import guard, monitor
from training.run import Run

SHARPNESS = 100.0  # of a draw that takes the hardest: .01 of similarity is a factor of e


class Likely:
    """P(match) of the pairs of a batch, from what the online encoders have made of the captions.

    As `fne_loss.false_negative_posterior` by evidence, r being the mean similarity to all captions
    of the photo that were seen, each as it was last seen: nothing need be known but whose they are.
    """

    def __init__(self, image_of_text: Tensor, dim: int, min_count: int = 200):
        """Of (N_t,) photos of the captions; `min_count` candidates of the same photo must have been
        seen before anything is likely."""
        count = image_of_text.bincount()  # (N_i,)
        order = image_of_text.argsort(stable=True)  # (N_t,)
        place = torch.arange(len(order), device=order.device) - (count.cumsum(0) - count)[
            image_of_text[order]]  # (N_t,) number of a caption among those of its photo
        self.captions = order.new_full((len(count), int(count.max())), -1)  # (N_i, K)
        self.captions[image_of_text[order], place] = order
        self.texts = torch.zeros(len(order), dim, device=order.device)  # (N_t, D)
        self.seen = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        self.same = RunningEvidence().to(order.device)
        self.different = RunningEvidence().to(order.device)
        self.min_count = min_count

    @torch.no_grad()
    def __call__(self, batch: Batch, images: Tensor, texts: Tensor) -> Tensor:
        """(B, B) of images in rows and texts in columns, 0 within a photo; then learn from them.

        Of online embeddings (B, D) and (B, D).
        """
        ids, own = batch.image_ids, batch.text_ids
        self.texts[own], self.seen[own] = texts.float(), True
        listed = self.captions[ids]  # (B, K)
        there = (listed >= 0) & self.seen[listed.clamp(min=0)]  # (B, K)
        known = self.texts[listed.clamp(min=0)] * there[..., None]  # (B, K, D)
        total, count = known.sum(dim=1), there.sum(dim=1, keepdim=True)  # (B, D), (B, 1)
        s, r = cosine(images, texts), cosine(total, texts) / count  # (B, B), (B, B)
        other = ids[:, None] != ids  # (B, B)
        trusted = other & (self.same.count > self.min_count)
        posterior = false_negative_posterior(
            s.double(), self.same, self.different, PRIOR_OF_EVIDENCE, r.double())
        posterior = posterior.float().where(trusted, 0.0)
        there = there & (listed != own[:, None])  # (B, K) other captions of the photo
        own_s = (images.float()[:, None] * known).sum(dim=2)  # (B, K)
        own_r = ((total[:, None] - known) * known).sum(dim=2) / (count - 1).clamp(min=1)  # (B, K)
        self.same.add(moments(own_s * there, own_r * there, there.sum()))
        self.different.add(moments(s * other, r * other, other.sum()))
        return posterior


def infonce_with_likely(
    similarity: Tensor, image_ids: Tensor, likely: Tensor, log_scale: Tensor, share: float
) -> Tensor:
    """InfoNCE that repels a likely match less and, with `share`, attracts it; both directions.

    With l = exp(log_scale) s, p of `likely`, and w_i = 1 for anchor i's own and share p_ij else:

        mean over j by w_ij of  -log( exp(l_ij) / (exp(l_ij) + sum over n of (1 - p_in) exp(l_in)) )

    n are the candidates of other photos. With p = 0 it is `fne_loss.infonce_loss`.

    Args:
        similarity, likely: (B, B), images in rows and texts in columns.
        image_ids: (B,).
    """
    barred = excluded_candidates(image_ids, image_ids)  # (B, B)
    logits = log_scale.exp() * similarity
    kept = (logits + torch.log1p(-likely.clamp(max=1 - 1e-6))).masked_fill(barred, -torch.inf)
    weight = (share * likely).masked_fill(barred, 0.0) + torch.eye(len(logits)).to(likely)
    return sum(
        ((of * F.softplus(rest.logsumexp(dim=1, keepdim=True) - logit)).sum(dim=1)
         / of.sum(dim=1)).mean()
        for of, rest, logit in ((weight, kept, logits), (weight.T, kept.T, logits.T))) / 2


def step_in_batch(run: Run, batch: Batch, likely: Likely, threshold: float | None,
                  share: float) -> Tensor:
    """`train.training_step` of one process and a loss of the batch alone, with what is likely: the
    triplet loss without candidates above `threshold`, or without one `infonce_with_likely`."""
    run.seed("dropout")
    pixels, features = train.pixels_or_features(run, batch, slice(None))
    images, texts, _, _ = run.towers(pixels, features, batch.input_ids, batch.attention_mask)
    similarity = cosine(images, texts)
    posterior, barred, in_batch = likely(batch, images, texts), None, None
    if threshold is not None:
        in_batch, barred = rank_in_batch(similarity, batch.image_ids), posterior > threshold
    if run.momentum_model is not None:
        run.criterion.add_to_statistics(in_batch)
        run.update_momentum(run.options.momentum, online_moved=run.skips.in_a_row == 0)
    if threshold is None:
        loss = infonce_with_likely(similarity, batch.image_ids, posterior, run.log_scale, share)
    else:
        loss = triplet_from_similarity(
            similarity, batch.image_ids, run.options.margin, True, barred)
    run.set_learning_rate()
    run.optimizer.zero_grad()
    loss.backward()
    whole = loss.detach()
    norm, good = guard.guarded_step(run, batch.image_ids, whole, images, texts)
    run.log_scale.data.clamp_(max=math.log(100.0))
    monitor.watch(run, monitor.Step(batch, similarity, in_batch, None, whole, norm, good, barred))
    return whole


class LikelyInBank(FNELoss):
    """FNE that weighs batch and bank with the posterior by evidence in another way.

    With `threshold`, the hardest candidate that is not above it; else the published weights times
    (1 - p), the published posterior keeping its own prior.
    """

    def __init__(self, *settings, published_prior: float, threshold: float | None):
        super().__init__(*settings, posterior="evidence")
        self.published_prior, self.threshold = published_prior, threshold

    def weights(self, similarity: Tensor, own: Tensor, excluded: Tensor, texts=None) -> Tensor:
        posterior = self.posterior(similarity, texts)
        if self.threshold is not None:
            kept = (posterior <= self.threshold) & ~excluded
            return torch.exp(SHARPNESS * (similarity - 1)) * kept
        settings = {name: getattr(self, name) for name in SETTINGS}
        settings["prior"] = self.published_prior
        published = sampling_weights(
            similarity, own, excluded, self.positive, self.negative, **settings)
        return published * (1 - posterior)


def put_in_place(name: str, after: int = 0) -> AbstractContextManager:
    """Inside, `train.main` trains by use `name`, once `after` epochs are done."""
    use, sets, known = USES[name], [], []
    load, usual = train.load_train_set, train.training_step

    def load_and_keep(*given) -> LoadedSplit:
        sets.append(load(*given))
        return sets[-1]

    def step(run: Run, batch: Batch) -> Tensor:
        if run.epoch < after:
            return usual(run, batch)
        if not known:
            owners = torch.from_numpy(sets[-1].split.image_of_text).to(run.device)
            known.append(Likely(owners, run.model.embed_size))
        return step_in_batch(run, batch, known[0], use.threshold, use.share)

    def loss(options: TrainOptions) -> FNELoss:
        published, _ = parse("", ["--dataset", options.dataset])
        return LikelyInBank(
            options.margin, options.tau, options.prior, options.posterior_floor,
            options.nums_right_sims, published_prior=published.prior, threshold=use.threshold)

    if use.loss != "fne":
        return mock.patch.multiple(train, load_train_set=load_and_keep, training_step=step)
    return mock.patch.multiple(train, build_loss=loss) if use.in_bank else nullcontext()


def main(argv: list[str] | None = None) -> None:
    told, flags = build_uses_parser(__doc__).parse_known_args(argv)
    with exit_on_input_error():
        use = USES[told.use]
        more = ["--posterior", "evidence"] if use.loss == "fne" else []
        options, _ = parse("", [*flags, *more])
        if options.loss != use.loss:
            raise InputError(f"{told.use} takes the place of --loss {use.loss}: give that")
        if options.resume is not None:
            raise InputError("--resume: no checkpoint holds what a use has learned; start anew")
        if use.loss != "fne" and (options.oracle != "off" or world_size() > 1):
            raise InputError(f"{told.use} takes no --oracle, and trains in one process")
        with put_in_place(told.use, told.after):
            train.main([*flags, *more])


if __name__ == "__main__":
    main()
