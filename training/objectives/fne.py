"""The objective of the paper: False Negative Elimination after a warm-up (section 3)."""

import math

import torch
from torch import Tensor, nn

from common.errors import InputError
from common.processes import gather_several
from common.ranks import world_size
from data import Split
from fne_loss import NO_NEGATIVE, BatchRanking, DrawnNegatives, FNELoss
from memory_bank import EMPTY, MemoryBank
from model import DualEncoder, MomentumUpdate, momentum_copy
from negative_sampling import draws_by_rejection
from teacher.posterior import TeacherPosterior
from training.objectives.base import (
    Negatives,
    NegativeSampler,
    Objective,
    Outcome,
    Step,
    exclude_above,
    other_photos,
)
from training.objectives.triplet import TripletObjective
from training.random_streams import seed_draws

FNE = "FNE"  # the phase after the warm-up
BINS = 400  # of the similarity histograms, on [-1, 1]


class FNEObjective(Objective):
    """Hinge on one negative per anchor, drawn from batch and memory bank by FNE's weights.

    The first `--warmup_epochs` epochs train with the in-batch triplet loss and leave the bank
    alone; the momentum encoders and the statistics follow from the first step on.
    """

    warm_up_class = TripletObjective  # only its `forward` and `phase` are used: without state

    def __init__(self, options, model: DualEncoder, split: Split | None = None):
        super().__init__(options, model, split)
        if options.posterior == "evidence" and split is not None:
            check_several_captions(split)
        self.warm_up = self.warm_up_class(options, model, split)
        self.criterion = self.build_criterion().to(self.device)
        self.momentum_model = momentum_copy(model)
        self.update_momentum = MomentumUpdate(self.momentum_model, model)
        bank = MemoryBank(options.queue_size, model.embed_size, getattr(torch, options.bank_dtype))
        self.bank = bank.to(self.device)
        # (2, BINS) histograms of what N+ and N- are fitted to in this epoch, for the figures.
        counts = torch.zeros(2, BINS, dtype=torch.int64, device=self.device)
        self.register_buffer("similarity_counts", None if options.no_figures else counts,
                             persistent=False)
        self.keys: tuple[Tensor, Tensor] | None = None  # of the last step, (B, D) each

    @classmethod
    def check_options(cls, options) -> None:
        """Check that the bank is large enough for a batch.

        Raises:
            InputError: it is not, or an option needs another loss.
        """
        super().check_options(options)
        if options.queue_size < options.batch_size_train:
            raise InputError(f"--queue_size {options.queue_size}: must hold a batch of "
                             f"{options.batch_size_train} (--batch_size_train)")

    def set_teacher(self, teacher: TeacherPosterior | None) -> None:
        """Set the teacher that computes P(match), in place, for the warm-up too."""
        super().set_teacher(teacher)
        self.warm_up.set_teacher(teacher)

    def build_criterion(self) -> FNELoss:
        """Build the FNE loss that the options describe."""
        return build_criterion(self.options)

    def set_margin(self, margin: float) -> None:
        """Set the margin of hinge and cut-down in place, as `--margin auto` needs it."""
        super().set_margin(margin)
        self.criterion.margin = margin

    @classmethod
    def phase(cls, options, epoch: int) -> str:
        """Name the loss of an epoch, counted from 0."""
        if epoch < options.warmup_epochs:
            return cls.warm_up_class.phase(options, epoch)
        return FNE

    def forward(self, step: Step) -> Outcome:
        """Compute the loss of a step, in the published order.

        The statistics and the momentum encoders are updated in place before the batch is weighed.
        """
        self.criterion.add_ranking(step.ranking)
        self.update_momentum(self.options.momentum, online_moved=step.previous_taken)
        if self.similarity_counts is not None:
            count_similarities(self.similarity_counts, step.ranking)
        if step.epoch < self.options.warmup_epochs:
            return self.warm_up(step)
        step.lap("loss")
        local_keys = self.encode_keys(step)  # (b, D), (b, D)
        step.lap("encoders")
        self.keys = gather_several(*local_keys)  # (B, D), (B, D)
        match_posterior = self.candidates_posterior(step)
        seed_draws(self.options.seed, step.number)
        excluded = self.excluded_candidates(step, match_posterior)  # (b, C) or None, twice
        loss, i2t, t2i = self.draw_and_hinge(
            step.image_embeds, step.text_embeds, *self.keys, step.batch.image_ids,
            step.batch.text_ids, step.local.start, excluded, match_posterior)
        loss = loss / world_size()
        batch_loss, i2t, t2i = draws_of_batch(loss, i2t, t2i)
        self.criterion.add_evidence(i2t.evidence + t2i.evidence)
        logs = {"posterior_of_drawn": torch.cat([i2t.posterior, t2i.posterior]).mean(),
                "cut_share": (i2t.cut_share + t2i.cut_share) / 2}
        if any(mask is not None for mask in excluded):
            candidate_ids = torch.cat([step.batch.image_ids, self.bank.image_ids])  # (C,)
            others = other_photos(step.batch.image_ids, candidate_ids).sum()
            # Of all processes' anchors, as the counts are.
            logs["excluded_share"] = 1 - (i2t.counts[1] + t2i.counts[1]) / (2 * others)
        return Outcome(loss, batch_loss, self.drawn_negatives(step, i2t, t2i), logs)

    def draw_and_hinge(
        self, image_embeds: Tensor, text_embeds: Tensor, image_keys: Tensor, text_keys: Tensor,
        image_ids: Tensor, text_ids: Tensor, first: int,
        also_excluded: tuple[Tensor | None, Tensor | None],
        match_posterior: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, DrawnNegatives, DrawnNegatives]:
        """Draw a negative for each local anchor, and compute the hinge on it.

        Args:
            image_embeds, text_embeds: (b, D) online embeddings of the local pairs.
            image_keys, text_keys: (B, D) momentum keys of all pairs.
            image_ids, text_ids: (B,) int64, photo and caption of each pair.
            first: row of the batch that the first local anchor is.
            also_excluded: (b, C) bool of i2t and of t2i, or None: candidates to exclude further.
            match_posterior: of `candidates_posterior`.

        Returns:
            () loss over the b anchors, both directions summed, and the negatives of i2t and t2i.
        """
        i2t, t2i = self.criterion.draw(
            image_embeds, text_embeds, image_keys, text_keys, image_ids, self.bank, first=first,
            also_excluded=also_excluded, text_ids=text_ids, match_posterior=match_posterior)
        return self.criterion.hinge_of(image_embeds, text_embeds, i2t, t2i), i2t, t2i

    def compiled_methods(self) -> tuple[str, ...]:
        """Name draw and hinge, but where a CPU draws by rejection, which reads numbers back."""
        batch = self.options.batch_size_train
        if draws_by_rejection(self.device, batch, batch + len(self.bank.image_ids)):
            return ()
        return ("draw_and_hinge",)

    @torch.no_grad()
    def encode_keys(self, step: Step) -> tuple[Tensor, Tensor]:
        """Encode the local pairs with the momentum encoders: image and text keys (b, D).

        A frozen encoder is shared with the online model, so its features serve as they are.
        """
        model = self.momentum_model
        image_features, text_features = step.image_features, step.text_features
        if not model.freezes("image"):
            image_features = model.image_features(step.pixels)
        if not model.freezes("text"):
            text_features = model.text_features(step.batch.input_ids, step.batch.attention_mask)
        return model.project_image(image_features), model.project_text(text_features)

    def candidates_posterior(self, step: Step) -> tuple[Tensor, Tensor] | None:
        """Compute P(match) of each local anchor with each candidate by the teacher.

        Returns:
            (b, C) of i2t and of t2i; None without a teacher, whose place FNE's own posterior takes.
        """
        batch, bank = step.batch, self.bank
        i2t = self.match_posterior(batch.image_ids[step.local],
                                   torch.cat([batch.text_ids, bank.text_ids]))  # (b, C)
        if i2t is None:
            return None
        t2i = self.match_posterior(torch.cat([batch.image_ids, bank.image_ids]),
                                   batch.text_ids[step.local]).T.contiguous()  # (b, C)
        return i2t, t2i

    def excluded_candidates(
        self, step: Step, match_posterior: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Find candidates of the local anchors that are no negatives, beside their own photo.

        Args:
            step: a training step.
            match_posterior: of `candidates_posterior`.

        Returns:
            (b, C) bool of i2t and of t2i: the true matches, where `--oracle` asks for that, and
            what is above `--match_bar`; None where neither excludes anything.
        """
        excluded = None, None
        if self.options.oracle != "off":
            excluded = self.matches.among_candidates(step.batch, self.bank, step.local)
        if self.options.match_bar is None:
            return excluded
        return tuple(exclude_above(self.options.match_bar, *masks)
                     for masks in zip(match_posterior or (None, None), excluded))

    def drawn_negatives(
        self, step: Step, i2t: DrawnNegatives, t2i: DrawnNegatives
    ) -> Negatives:
        """Give the drawn negatives of the whole batch as pairs: 2 B, those of i2t first."""
        batch = step.batch
        drawn_texts = torch.cat([batch.text_ids, self.bank.text_ids])[i2t.indices.clamp(min=0)]
        drawn_images = torch.cat([batch.image_ids, self.bank.image_ids])[t2i.indices.clamp(min=0)]
        return Negatives(
            image_ids=torch.cat([batch.image_ids, drawn_images]),
            text_ids=torch.cat([drawn_texts, batch.text_ids]),
            weights=(torch.cat([i2t.indices, t2i.indices]) != NO_NEGATIVE).float())

    def start_epoch(self) -> None:
        """Forget the statistics and their histograms in place."""
        self.criterion.reset_statistics()
        if self.similarity_counts is not None:
            self.similarity_counts.zero_()

    def after_step(self, step: Step) -> None:
        """Write the keys of the step to the bank; a step of the warm-up has none."""
        if self.keys is not None:
            self.bank.enqueue(*self.keys, step.batch.image_ids, step.batch.text_ids)
            self.keys = None

    def entries(self) -> dict[str, nn.Module | Tensor]:
        """Name what a checkpoint keeps."""
        return {"criterion": self.criterion, "momentum_model": self.momentum_model,
                "bank": self.bank}

    def check_entries(self, photos: int | None, captions: int | None) -> None:
        """Check that the bank holds ids of the training split.

        Args:
            photos, captions: size of the training split; None where it is not known.

        Raises:
            ValueError: an id or a slot that the bank cannot have.
        """
        check_bank(self.bank, photos, captions)

    def values(self) -> dict[str, Tensor | float]:
        """Give the bank's fill and the fitted statistics for TensorBoard."""
        values = {"bank/fill": len(self.bank) / len(self.bank.image_ids)}
        for name, gaussian in self.criterion.named_children():
            values[f"statistics/{name}_count"] = gaussian.count
            if gaussian.mean.ndim == 0:
                values[f"statistics/{name}_mean"] = gaussian.mean
                values[f"statistics/{name}_std"] = gaussian.variance.sqrt()
            else:
                mean, texts_mean = gaussian.mean
                values[f"statistics/{name}_mean"] = mean
                values[f"statistics/{name}_texts_mean"] = texts_mean
        return values

    def sampler(self) -> NegativeSampler:
        """Give the parts that this objective draws negatives with, for the figures."""
        return NegativeSampler(self.criterion, self.bank, self.momentum_model,
                               self.similarity_counts, self.match_posterior,
                               self.options.match_bar)


def build_criterion(options) -> FNELoss:
    """Build the FNE loss that a run's options describe."""
    margin = math.nan if options.margin == "auto" else options.margin  # until `set_margin`
    fitted = "published" if options.posterior == "teacher" else options.posterior
    return FNELoss(margin, options.tau, options.prior, options.posterior_floor,
                   options.nums_right_sims, fitted)


def check_several_captions(split: Split) -> None:
    """Check that some photo has several captions, to which `--posterior evidence` is fitted.

    Raises:
        InputError: no photo has.
    """
    if len(split.captions) == len(split.images):
        raise InputError(f"--posterior evidence: each photo of {split.source} has one caption, and "
                         "it is fitted to photos that have several; leave the flag out")


def check_bank(bank: MemoryBank, photos: int | None, captions: int | None) -> None:
    """Check the pointer and the ids of a bank that was loaded from a checkpoint.

    Args:
        bank: the bank.
        photos, captions: size of the training split; None where it is not known.

    Raises:
        ValueError: an id or a slot that the bank cannot have.
    """
    if not 0 <= bank.pointer < len(bank.image_ids):
        raise ValueError("the memory bank's pointer is none of its slots")
    for kind, ids, count in (("photos", bank.image_ids, photos),
                             ("captions", bank.text_ids, captions)):
        known = ids[ids != EMPTY]
        if (known < 0).any() or count is not None and (known >= count).any():
            raise ValueError(f"the memory bank holds {kind} that the training split does not have")


def draws_of_batch(
    loss: Tensor, i2t: DrawnNegatives, t2i: DrawnNegatives
) -> tuple[Tensor, DrawnNegatives, DrawnNegatives]:
    """Gather the negatives that all processes of a run have drawn, in one exchange.

    Args:
        loss: () this process's share of the loss.
        i2t, t2i: the negatives of this process's b anchors.

    Returns:
        The () loss of the batch, detached, and the draws with indices and posteriors of all B
        anchors and the sums of counts and evidence. Their keys stay those of this process.
    """
    if world_size() == 1:
        return loss.detach(), i2t, t2i
    anchors = torch.stack([values.double() for draw in (i2t, t2i)
                           for values in (draw.indices, draw.posterior)], dim=1)  # (b, 4)
    sums = torch.cat([loss.detach().double()[None], i2t.counts, t2i.counts,
                      i2t.evidence.flatten(), t2i.evidence.flatten()])  # (29,)
    anchors, sums = gather_several(anchors, sums[None])  # (B, 4), (N, 29)
    batch_loss, *totals = sums.sum(dim=0).split([1, 2, 2, 12, 12])
    draws = [draw._replace(indices=anchors[:, column].long(), posterior=anchors[:, column + 1],
                           counts=counts, evidence=evidence.view(2, 6))
             for draw, column, counts, evidence in zip((i2t, t2i), (0, 2), totals[:2], totals[2:])]
    return batch_loss[0].to(loss.dtype), *draws


def count_similarities(counts: Tensor, ranking: BatchRanking) -> None:
    """Add the similarities that N+ and N- are fitted to, to their histograms in place.

    Args:
        counts: (2, BINS) int64, of confident positives and of their hardest negatives.
        ranking: of a batch.
    """
    values = torch.cat([ranking.positive[None], ranking.hardest])  # (3, B)
    taken = ranking.confident & values.isfinite()  # (3, B)
    bins = ((values.where(taken, 0.0) + 1) * (BINS / 2)).long().clamp(0, BINS - 1)  # (3, B)
    bins[1:] += BINS  # the second row of `counts`
    counts.view(-1).index_add_(0, bins.view(-1), taken.long().view(-1))  # no wait for a GPU
