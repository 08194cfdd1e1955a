"""Train a dual encoder with False Negative Elimination, or test it.

    python train.py --dataset shapes --max_violation
    python train.py --data_path $DATA_PATH/f30k/images --logger_name runs/flickr_FNE \
        --dataset flickr --max_violation
    python train.py --data_path $DATA_PATH/coco/images --logger_name runs/mscoco_FNE \
        --dataset mscoco --max_violation

Add `--test` to score the run's best checkpoint on the test split, `--resume FILE` to go on.
"""

import argparse
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import checkpoint
from data import (
    Batch,
    Captions,
    Collator,
    EpochSampler,
    PairDataset,
    make_loader,
    read_split,
)
from encoders import image_statistics, load_tokenizer
from encoding import EvalSet, encode_photos, load_eval_set
from errors import exit_on_input_error
from evaluation import embed_split, report, score
from fne_loss import FNELoss, infonce_loss, triplet_loss
from judgements import read_judgements
from memory_bank import MemoryBank
from model import (
    DualEncoder,
    build_model,
    checkpoint_gradients,
    compile_encoders,
    momentum_copy,
    pick_device,
    update_momentum,
    use_bf16,
)
from monitor import draw_logs, hardest_logs, write_logs
from options import check, parse
from photos import find_photos, normalize
from shapes import make_shapes


@dataclass
class Run:
    """All that changes while a run goes on; `checkpoint.pack` saves it."""

    options: argparse.Namespace
    device: torch.device
    model: DualEncoder
    criterion: FNELoss
    log_scale: nn.Parameter  # () log of the inverse temperature of --loss infonce
    optimizer: torch.optim.Optimizer
    momentum_model: DualEncoder | None  # None for the controls, as is the bank
    bank: MemoryBank | None
    pixel_statistics: tuple[list[float], list[float]]  # mean and std of the three channels
    steps_per_epoch: int
    matches: Tensor | None  # (N_t, N_i) bool, all true matches of the training split, where known
    features: Tensor | None = None  # (N_i, width) of a frozen image encoder, photos not augmented
    epoch: int = 0
    step: int = 0  # steps done in this epoch
    global_step: int = 0
    best_rsum: float = -1.0
    logs: list[dict[str, Tensor]] = field(default_factory=list)  # since they were last written


# ---------------------------------------------------------------------------------------- one step


def training_step(run: Run, batch: Batch) -> Tensor:
    """One step of the method on a batch of B pairs; the loss, detached."""
    options = run.options
    pixels, image_features = look_at_photos(run, batch)
    text_features = run.model.text_features(batch.input_ids, batch.attention_mask)
    image_embeds = run.model.project_image(image_features)  # (B, D)
    text_embeds = run.model.project_text(text_features)  # (B, D)

    if options.loss == "fne":
        run.criterion.update_statistics(image_embeds, text_embeds, batch.image_ids)
        update_momentum(run.momentum_model, run.model, options.momentum)
    if options.loss == "infonce":
        loss = infonce_loss(image_embeds, text_embeds, batch.image_ids, run.log_scale)
        logs = {}
    elif options.loss == "triplet" or run.epoch < options.warmup_epochs:
        hardest = options.max_violation and run.epoch >= options.easy_epochs
        loss = triplet_loss(image_embeds, text_embeds, batch.image_ids, options.margin, hardest)
        logs = hardest_logs(run, batch, image_embeds, text_embeds)
    else:
        image_keys, text_keys = encode_keys(run, pixels, image_features, text_features, batch)
        loss, i2t, t2i = run.criterion(image_embeds, text_embeds, image_keys, text_keys,
                                       batch.image_ids, run.bank, return_draws=True)
        logs = draw_logs(run, batch, i2t, t2i)
        run.bank.enqueue(image_keys, text_keys, batch.image_ids, batch.text_ids)

    set_learning_rate(run)
    run.optimizer.zero_grad()
    loss.backward()
    parameters = run.optimizer.param_groups[0]["params"]
    logs["gradient_norm"] = nn.utils.clip_grad_norm_(parameters, options.grad_clip or torch.inf)
    run.optimizer.step()
    run.log_scale.data.clamp_(max=math.log(100.0))
    run.logs.append({"loss": loss.detach(), **logs})
    return loss.detach()


def look_at_photos(run: Run, batch: Batch) -> tuple[Tensor | None, Tensor]:
    """Standardised pixels (B, 3, R, R) and the image encoder's features (B, width).

    The features are looked up, and there are no pixels, where a frozen encoder has seen all photos.
    """
    if run.features is not None:
        return None, run.features[batch.image_ids]
    pixels = normalize(batch.pixels, *run.pixel_statistics)
    return pixels, run.model.image_features(pixels)


@torch.no_grad()
def encode_keys(
    run: Run, pixels: Tensor | None, image_features: Tensor, text_features: Tensor, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Momentum embeddings (B, D), (B, D). A frozen encoder's features serve here as they are."""
    momentum = run.momentum_model
    if run.options.freeze != "image":
        image_features = momentum.image_features(pixels)
    if run.options.freeze != "text":
        text_features = momentum.text_features(batch.input_ids, batch.attention_mask)
    return momentum.project_image(image_features), momentum.project_text(text_features)


# ------------------------------------------------------------------------------------------ a run


def train(run: Run, loader, val_set: EvalSet, pad_id: int) -> None:
    """Train to the last epoch, validating, saving and logging on the way."""
    options, sampler = run.options, loader.batch_sampler
    writer = SummaryWriter(options.logger_name, purge_step=run.global_step + 1)
    while run.epoch < options.num_epochs:
        sampler.epoch, sampler.start = run.epoch, run.step
        if run.step == 0:
            run.criterion.reset_statistics()
        run.model.train()
        if run.momentum_model is not None:
            run.momentum_model.train()
        validate_at = validation_steps(options, len(sampler))
        bar = tqdm(loader, f"epoch {run.epoch + 1}/{options.num_epochs}", len(sampler),
                   initial=run.step, disable=None, leave=False, mininterval=1.0)
        began = time.perf_counter()
        for batch in bar:
            loss = training_step(run, batch.to(run.device))
            run.step += 1
            run.global_step += 1
            if run.global_step % options.log_step == 0:
                bar.set_postfix(loss=f"{loss.item():.4f}")
                seconds = time.perf_counter() - began
                write_logs(run, writer, len(run.logs) * len(batch.image_ids) / seconds)
                began = time.perf_counter()
            if run.step in validate_at:
                if run.step == len(sampler):
                    run.epoch, run.step = run.epoch + 1, 0
                validate(run, val_set, pad_id, writer)
                began = time.perf_counter()
    writer.close()


def validation_steps(options, steps: int) -> set[int]:
    """After which of an epoch's `steps` to validate; always after the last."""
    if options.val_step:
        return {*range(options.val_step, steps, options.val_step), steps}
    parts = options.val_times + 1
    return {steps * part // parts for part in range(1, parts + 1)} - {0}


def validate(run: Run, val_set: EvalSet, pad_id: int, writer: SummaryWriter) -> None:
    """Score the validation split and save `checkpoint.pth.tar`, and `model_best.pth.tar` if so."""
    metrics = score(run.model, val_set, run.options, pad_id)
    for name, value in metrics.items():
        writer.add_scalar(f"val/{name}", value, run.global_step)
    writer.flush()  # before the checkpoint: a resumed run writes nothing up to its step again
    best = metrics["rsum"] > run.best_rsum
    run.best_rsum = max(run.best_rsum, metrics["rsum"])
    recalls = "  ".join(f"{side} {metrics[f'{side}_r1']:.1f}/{metrics[f'{side}_r5']:.1f}/"
                        f"{metrics[f'{side}_r10']:.1f}" for side in ("i2t", "t2i"))
    print(f"step {run.global_step} (epoch {run.epoch}, step {run.step}): val R@1/5/10  {recalls}  "
          f"rsum {metrics['rsum']:.1f}{'  best so far' if best else ''}", flush=True)
    state = checkpoint.pack(run)
    folder = run.options.logger_name
    # The best first: a run killed between the two goes on from before it, and saves it again.
    if best:
        checkpoint.save(folder / "model_best.pth.tar", state)
    checkpoint.save(folder / "checkpoint.pth.tar", state)


# ------------------------------------------------------------------------------------------- set-up


def build_run(options, tokenizer, matches, steps_per_epoch: int, state: dict | None) -> Run:
    """A fresh run, or the one in checkpoint `state`."""
    torch.manual_seed(options.seed)
    device = pick_device(options.device)
    if state is not None and checkpoint.is_released(state):
        model = checkpoint.released_dual_encoder(options, state, options.resume)
    else:
        model = build_model(options, tokenizer, pretrained=state is None)
    model = model.to(device)
    model.bf16 = use_bf16(options.precision, device)
    momentum_model = momentum_copy(model) if options.loss == "fne" else None
    if options.grad_checkpointing:
        checkpoint_gradients(model)
    if options.compile:
        compile_encoders(*filter(None, (model, momentum_model)))
    log_scale = nn.Parameter(torch.tensor(1 / 0.07, device=device).log())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if options.loss == "infonce":
        parameters.append(log_scale)
    optimizer = torch.optim.Adam(parameters, lr=options.learning_rate)
    criterion = FNELoss(options.margin, options.tau, options.prior, options.posterior_floor,
                        options.nums_right_sims).to(device)
    bank = MemoryBank(options.queue_size, model.embed_size).to(device) if momentum_model else None
    run = Run(options, device, model, criterion, log_scale, optimizer, momentum_model, bank,
              image_statistics(options), steps_per_epoch, matches)
    if state is not None:
        checkpoint.unpack(run, state, options.resume)
    return run


def set_learning_rate(run: Run) -> None:
    """A pure function of the step, so there is no scheduler whose state could be lost."""
    factor = learning_rate_factor(run.options, run.global_step, run.steps_per_epoch)
    for group in run.optimizer.param_groups:
        group["lr"] = run.options.learning_rate * factor


def learning_rate_factor(options, step: int, steps_per_epoch: int) -> float:
    """The share of --learning_rate at a step: a rise at the start, then tenfold falls."""
    epoch = step // steps_per_epoch
    falls = (epoch // options.lr_update if options.lr_update
             else sum(epoch >= milestone for milestone in options.lr_milestones))
    return min(1.0, (step + 1) / (options.lr_warmup + 1)) * 0.1**falls


def train_and_test(options, state: dict | None) -> None:
    """A whole run: read everything first, then train, then test the best checkpoint."""
    split = read_split(options.dataset, "train", options.data_path, options.json_path)
    photos = find_photos(split.images, split.source, options.data_path)
    tokenizer = load_tokenizer(options.text_encoder, options.vocab)
    val_set = load_eval_set(options, "val", tokenizer)
    test_set = load_eval_set(options, "test", tokenizer)  # what is wrong with it shows now
    if options.judgements:
        read_judgements(options.judgements, test_set.split)
    captions = Captions(split.captions, tokenizer, options.max_words, options.max_tokens)
    sampler = EpochSampler(len(captions), options.batch_size_train, options.seed)
    device = pick_device(options.device)
    seen_once = options.freeze == "image" and options.augment == "none"
    loader = make_loader(
        PairDataset(split, None if seen_once else photos, captions, options.image_res,
                    options.augment == "published"),
        options.workers, device.type == "cuda", batch_sampler=sampler,
        collate_fn=Collator(tokenizer.pad_token_id,
                            options.max_tokens if options.text_pooling == "padded" else None))
    matches = None if split.matches is None else torch.from_numpy(split.matches).to(device)
    run = build_run(options, tokenizer, matches, len(sampler), state)
    if seen_once:
        run.features = encode_photos(run.model, photos, options, project=False).to(device)
    fresh = state is None or checkpoint.is_released(state)  # which must not be overwritten
    checkpoint.prepare_folder(options.logger_name, fresh)
    train(run, loader, val_set, tokenizer.pad_token_id)
    best = options.logger_name / "model_best.pth.tar"
    test(options, checkpoint.read(best), best, test_set, tokenizer)


def test(options, state: dict, path: Path, test_set: EvalSet, tokenizer) -> None:
    """Score a checkpoint on the test split and keep the metrics in `test_results.json`."""
    embeddings = embed_split(options, state, path, test_set, tokenizer)
    report(embeddings, options, f"{options.dataset} test, {path}",
           options.logger_name / "test_results.json")


def main(argv: list[str] | None = None) -> None:
    options, given = parse(__doc__, argv)
    with exit_on_input_error():
        best = options.logger_name / "model_best.pth.tar"
        path = options.resume or (best if options.test else None)
        state = checkpoint.read(path) if path else None
        if state is not None:
            checkpoint.merge_options(options, given, state, path)
        check(options)
        if options.dataset == "shapes":
            make_shapes(options.data_path)
        if options.test:
            tokenizer = load_tokenizer(options.text_encoder, options.vocab)
            test(options, state, path, load_eval_set(options, "test", tokenizer), tokenizer)
        else:
            train_and_test(options, state)


if __name__ == "__main__":
    main()
