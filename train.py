"""Train a dual encoder with False Negative Elimination, or test it.

    python train.py --dataset shapes --max_violation
    python train.py --data_path $DATA_PATH/f30k/images --logger_name runs/flickr_FNE \
        --dataset flickr --max_violation
    python train.py --data_path $DATA_PATH/coco/images --logger_name runs/mscoco_FNE \
        --dataset mscoco --max_violation

Add `--test` to score the run's best checkpoint on the test split, `--resume auto` to go on where
the run stopped.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

import checkpoint
import guard
import storage
import terminal
from batches import Batch, Collator, EpochSampler, PairDataset, close_workers, make_loader
from data import Captions, read_split
from display import Display
from encoders import load_tokenizer
from encoding import EvalSet, encode_photos, load_eval_set
from errors import exit_on_input_error
from evaluation import embed_split, report, score
from fne_loss import infonce_loss, triplet_loss
from galleries import count_similarities
from judgements import read_judgements
from model import pick_device, update_momentum
from monitor import draw_logs, hardest_logs, step_logs
from options import check, parse
from photos import find_photos, normalize
from run import Run, build_run, set_learning_rate
from shapes import make_shapes

# ---------------------------------------------------------------------------------------- one step


def training_step(run: Run, batch: Batch) -> Tensor:
    """One step of the method on a batch of B pairs; the loss, detached."""
    options, lap = run.options, run.clock.lap
    lap("data")
    pixels, image_features = look_at_photos(run, batch)
    text_features = run.model.text_features(batch.input_ids, batch.attention_mask)
    image_embeds = run.model.project_image(image_features)  # (B, D)
    text_embeds = run.model.project_text(text_features)  # (B, D)
    lap("encoders")

    if options.loss == "fne":
        run.criterion.update_statistics(image_embeds, text_embeds, batch.image_ids)
        update_momentum(run.momentum_model, run.model, options.momentum)
        if run.counts is not None:
            count_similarities(run.counts, image_embeds, text_embeds, batch.image_ids)
        lap("loss")
    if options.loss == "infonce":
        loss = infonce_loss(image_embeds, text_embeds, batch.image_ids, run.log_scale)
        logs = {}
    elif options.loss == "triplet" or run.epoch < options.warmup_epochs:
        hardest = options.max_violation and run.epoch >= options.easy_epochs
        loss = triplet_loss(image_embeds, text_embeds, batch.image_ids, options.margin, hardest)
        logs = hardest_logs(run, batch, image_embeds, text_embeds)
    else:
        image_keys, text_keys = encode_keys(run, pixels, image_features, text_features, batch)
        lap("encoders")
        loss, i2t, t2i = run.criterion(image_embeds, text_embeds, image_keys, text_keys,
                                       batch.image_ids, run.bank, return_draws=True)
        logs = draw_logs(run, batch, i2t, t2i)
        run.bank.enqueue(image_keys, text_keys, batch.image_ids, batch.text_ids)
    lap("loss")

    set_learning_rate(run)
    run.optimizer.zero_grad()
    loss.backward()
    parameters = run.optimizer.param_groups[0]["params"]
    norm = nn.utils.clip_grad_norm_(parameters, options.grad_clip or torch.inf)  # ()
    good = guard.finite(loss, norm, image_embeds, text_embeds)  # () bool
    guard.skip_unless(good, run, batch)
    run.optimizer.step()
    run.log_scale.data.clamp_(max=math.log(100.0))
    lap("backward")
    logs |= step_logs(loss, norm, image_embeds, text_embeds)
    run.logs.append(guard.kept(logs, good))
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


def train(run: Run, loader, train_set: EvalSet, val_set: EvalSet, pad_id: int) -> None:
    """Train to the last epoch; what follows each step is in `settle`.

    Raises:
        Stopped: a signal came. The run is saved.
    """
    options, sampler = run.options, loader.batch_sampler
    # What a stop left open after its step is made up for, so that step's entries are written again.
    left_open = run.validation_due or logs_due(run)
    display = Display(run, train_set, val_set, pad_id, run.global_step + (not left_open))
    with guard.stop_on_signals(lambda: save_run(run, display)) as signals, display:
        if left_open:
            settle(run, val_set, pad_id, display, signals)
        while run.epoch < options.num_epochs:
            sampler.epoch, sampler.start = run.epoch, run.step
            if run.step == 0:
                run.criterion.reset_statistics()
            run.model.train()
            if run.momentum_model is not None:
                run.momentum_model.train()
            validate_at = validation_steps(options, len(sampler))
            for batch in display.batches(loader):
                guard.report_bad_photos(run, batch)
                training_step(run, batch.to(run.device))
                run.step += 1
                run.global_step += 1
                run.validation_due = run.step in validate_at
                if run.step == len(sampler):
                    run.epoch, run.step = run.epoch + 1, 0
                settle(run, val_set, pad_id, display, signals)


def logs_due(run: Run) -> bool:
    """Whether there is something to write every --log_step steps, and it is time."""
    return bool(run.logs) and run.global_step % run.options.log_step == 0


def settle(run: Run, val_set: EvalSet, pad_id: int, display: Display, signals) -> None:
    """All that follows a step: stop if a signal came, validate, log, save, where it is time to."""
    with signals.allowed():  # nothing has changed yet that a stopped run would not do again
        scored = score(run.model, val_set, run.options, pad_id) if run.validation_due else None
    best = False
    if scored:
        metrics, embeds = scored
        best = metrics["rsum"] > run.best_rsum
        display.tell_validation(metrics, embeds)
        run.best_rsum, run.validation_due = max(run.best_rsum, metrics["rsum"]), False
    if logs_due(run):
        values = display.write_logs()
        guard.watch(run, values["train/similarity_spread"], values["train/loss"])
    save_step = run.options.save_step
    if scored or save_step and run.global_step % save_step == 0:
        save_run(run, display, best)
        display.pause()


def validation_steps(options, steps: int) -> set[int]:
    """After which of an epoch's `steps` to validate; always after the last."""
    if options.val_step:
        return {*range(options.val_step, steps, options.val_step), steps}
    parts = options.val_times + 1
    return {steps * part // parts for part in range(1, parts + 1)} - {0}


def save_run(run: Run, display: Display, best: bool = False) -> str:
    """Save `checkpoint.pth.tar`, and `model_best.pth.tar` if it is the best; says how to go on."""
    # Before the checkpoint: a resumed run writes nothing up to its step again.
    display.writer.flush()
    folder, state = run.options.logger_name, checkpoint.pack(run)
    # The best first: a run killed between the two goes on from before it, and saves it again.
    if best:
        storage.save(folder / storage.BEST, state)
    storage.save(folder / storage.NEWEST, state)
    return (f"step {run.global_step} is done and saved; go on with: python train.py --resume "
            f"{folder / storage.NEWEST}, or the same command with --resume auto")


# ------------------------------------------------------------------------------------------- set-up


def train_and_test(options, state: dict | None) -> None:
    """A whole run: read everything first, then train, then test the best checkpoint."""
    split = read_split(options.dataset, "train", options.data_path, options.json_path)
    photos = find_photos(split.images, split.source, options.data_path, options.follow_links)
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
    run = build_run(options, tokenizer, matches, len(sampler), state, photos)
    if seen_once:
        run.features = encode_photos(run.model, photos, options, project=False).to(device)
    fresh = state is None or checkpoint.is_released(state)  # which must not be overwritten
    storage.prepare_folder(options.logger_name, fresh)
    try:
        with storage.written_to(options.logger_name):
            train(run, loader, EvalSet(split, photos, captions), val_set, tokenizer.pad_token_id)
    finally:
        close_workers(loader)
    best = options.logger_name / storage.BEST
    test(options, checkpoint.read(best), best, test_set, tokenizer)


def test(options, state: dict, path: Path, test_set: EvalSet, tokenizer) -> None:
    """Score a checkpoint on the test split and keep the metrics in `test_results.json`."""
    embeddings = embed_split(options, state, path, test_set, tokenizer)
    report(embeddings, options, f"{options.dataset} test, {path}",
           options.logger_name / "test_results.json")


def main(argv: list[str] | None = None) -> None:
    options, given = parse(__doc__, argv)
    with exit_on_input_error():
        path, state = checkpoint.find(options)
        options.resume = path
        if state is not None:
            checkpoint.merge_options(options, given, state, path)
        check(options)
        terminal.quiet = options.quiet
        if options.dataset == "shapes":
            make_shapes(options.data_path)
        if options.test:
            tokenizer = load_tokenizer(options.text_encoder, options.vocab)
            test(options, state, path, load_eval_set(options, "test", tokenizer), tokenizer)
        else:
            train_and_test(options, state)


if __name__ == "__main__":
    main()
