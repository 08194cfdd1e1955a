r"""Train a dual encoder with False Negative Elimination, or test it.

    python train.py --dataset shapes --max_violation
    python train.py --data_path $DATA_PATH/f30k/images --dataset flickr \
        --logger_name runs/flickr_FNE --max_violation
    python train.py --data_path $DATA_PATH/coco/images --dataset mscoco \
        --logger_name runs/mscoco_FNE --max_violation

Add `--test` to score the run's best checkpoint on the test split, `--resume
auto` to go on where the run stopped.
"""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from common.errors import exit_on_import_error
from common.options import SOURCES, TrainOptions, check, check_paths, parse

if __name__ == "__main__":
    exit_on_import_error()
    parse(__doc__)  # --help, or a slip in a flag, need not wait seconds for the imports below

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import checkpoint
from common import terminal
from common.device import pick_device, place_on_device, set_deterministic
from common.errors import exit_on_input_error
from common.processes import (
    broadcast_from_main,
    broadcast_tensors,
    consolidate_state,
    gather,
    make_adam,
    once_per_machine,
    process_group,
    with_summed_gradients,
)
from common.ranks import is_main, local_rows, world_size
from data import (
    Batch,
    LoadedSplit,
    check_apart,
    load_eval_set,
    load_test_set,
    load_train_set,
    make_train_loader,
    sees_photos_once,
)
from encoders.processors import image_statistics, tokenizer_of
from encoders.stored import describe_encoders
from evaluation import (
    embed_split,
    encode_photos,
    metrics_path,
    print_metrics,
    score,
    split_title,
    write_metrics,
)
from figures.tensorboard import Board, NoBoard
from fne_loss import cosine, infonce_loss, rank_in_batch, triplet_from_similarity
from inputs.loader import close_workers
from inputs.photos import normalize
from inputs.shapes import make_shapes
from memory_bank import MemoryBank
from metrics.judgements import read_judgements
from model import (
    MomentumUpdate,
    check_deterministic_gradients,
    compile_encoders,
    enable_gradient_checkpointing,
    momentum_copy,
)
from training import features, guard, monitor, oracle, outline, storage
from training.bad_photos import count_bad_photos
from training.clock import StepClock
from training.run import Run, Skips, build_loss, check_captions
from training.schedule import FNE, HARDEST_NEGATIVE, INFONCE, validation_steps
from training.signals import Signals, stop_on_signals

# ---------------------------------------------------------------------------------------- one step


def training_step(run: Run, batch: Batch) -> Tensor:
    """One step of the method on a batch of B pairs, in the published order; the loss, detached.

    Of N processes each encodes its own b = B / N pairs, and gets the embeddings of all B.
    """
    criterion, lap, draws = run.criterion, run.clock.lap, None
    own = local_rows(len(batch.image_ids))
    lap("data")
    run.seed("dropout")
    pixels, image_features = pixels_or_features(run, batch, own)
    image_embeds, text_embeds, image_features, text_features = run.towers(
        pixels, image_features, batch.input_ids, batch.attention_mask)  # (b, D), (b, D)
    lap("encoders")
    images, texts = gather(image_embeds), gather(text_embeds)  # (B, D), (B, D)
    similarity = cosine(images, texts)  # (B, B), the only one
    # The softmax of InfoNCE takes all negatives as they are.
    in_batch = rank_in_batch(similarity, batch.image_ids) if run.phase != INFONCE else None
    barred = oracle.in_batch(run, batch)
    if run.momentum_model is not None:
        criterion.add_to_statistics(in_batch)
        run.update_momentum(run.options.momentum, online_moved=run.skips.in_a_row == 0)
    lap("loss")
    if run.phase == FNE:
        keys = encode_keys(run, batch, pixels, image_features, text_features)  # (b, D), (b, D)
        lap("encoders")
        keys = [gather(side) for side in keys]  # (B, D), (B, D)
        run.seed("draws")
        draws = criterion.draw_both(image_embeds, text_embeds, *keys, batch.image_ids, run.bank,
                                    own.start, oracle.among_candidates(run, batch, own),
                                    batch.text_ids)
        loss = criterion.hinge_of(image_embeds, text_embeds, *draws) / world_size()
        draws, whole = monitor.of_all_anchors(draws, loss)
        criterion.add_evidence(draws[0].evidence + draws[1].evidence)
    else:
        loss = in_batch_loss(run, similarity, batch.image_ids, barred)
        whole = loss.detach()
    lap("loss")
    run.set_learning_rate()
    run.optimizer.zero_grad()
    loss.backward()
    norm, good = guard.guarded_step(run, batch.image_ids, whole, images, texts)
    run.log_scale.data.clamp_(max=math.log(100.0))
    lap("backward")
    monitor.watch(run, monitor.Step(batch, similarity, in_batch, draws, whole, norm, good, barred))
    if draws is not None:
        run.bank.enqueue(*keys, batch.image_ids, batch.text_ids)
    lap("loss")
    return whole


def pixels_or_features(run: Run, batch: Batch, own: slice) -> tuple[Tensor | None, Tensor | None]:
    """Standardised pixels (b, 3, R, R), or where a frozen encoder has seen all photos, what it made
    of these (b, width); and None for the other."""
    if run.features is not None:
        return None, run.features[batch.image_ids[own]]
    return normalize(batch.pixels, *run.pixel_statistics), None


@torch.no_grad()
def encode_keys(
    run: Run, batch: Batch, pixels: Tensor | None, image_features: Tensor, text_features: Tensor
) -> tuple[Tensor, Tensor]:
    """Momentum embeddings (b, D), (b, D). A frozen encoder's features serve here as they are."""
    momentum = run.momentum_model
    if run.options.freeze != "image":
        image_features = momentum.image_features(pixels)
    if run.options.freeze != "text":
        text_features = momentum.text_features(batch.input_ids, batch.attention_mask)
    return momentum.project_image(image_features), momentum.project_text(text_features)


def in_batch_loss(run: Run, similarity: Tensor, image_ids: Tensor, barred: Tensor | None) -> Tensor:
    """() loss of the warm-up and of both controls, from similarities (B, B) and ids (B,), and what
    `oracle.in_batch` gives."""
    if run.options.oracle == oracle.POSITIVES:
        return oracle.infonce_of_matches(similarity, barred, run.log_scale)
    if run.phase == INFONCE:
        return infonce_loss(similarity, image_ids, run.log_scale, barred)
    hardest = run.phase == HARDEST_NEGATIVE
    return triplet_from_similarity(similarity, image_ids, run.options.margin, hardest, barred)


# ------------------------------------------------------------------------------------------ a run


def train(run: Run, loader: DataLoader, train_set: LoadedSplit, val_set: LoadedSplit) -> None:
    """Train to the last epoch.

    Raises:
        Stopped: a signal came. The run is saved.
    """
    options, sampler = run.options, loader.batch_sampler
    # What a stop left open after its step is made up for, so that step's entries are written again.
    left_open = run.validation_due or monitor.logs_due(run)
    board = (Board(run, train_set, val_set, run.global_step + (not left_open)) if is_main()
             else NoBoard())
    with stop_on_signals(lambda: save_run(run, board)) as signals, board:
        if left_open:
            validate_log_and_save(run, val_set, board, signals)
        while run.epoch < options.num_epochs:
            sampler.epoch, sampler.start = run.epoch, run.step
            if run.step == 0:
                outline.tell_phase(run)
                run.start_epoch()
            run.train_mode()
            validate_at = validation_steps(options, len(sampler))
            run.clock.lap(None)
            for batch in board.batches(loader):
                batch = batch.with_all_ids()
                count_bad_photos(run, batch)
                training_step(run, batch.to(run.device))
                run.finish_step(validate_at)
                validate_log_and_save(run, val_set, board, signals)


def validate_log_and_save(
    run: Run, val_set: LoadedSplit, board: Board, signals: Signals
) -> None:
    """What follows a step, where it is time to; before anything else, stop if a signal came."""
    signals.stop_if_asked()  # nothing has changed yet that a stopped run would not do again
    scored, best = None, False
    if run.validation_due:
        guard.check_alike(run)
        scored = score(run.model, val_set, run.options, signals.stop_if_asked)
        signals.stop_if_asked()
    if scored:
        metrics, embeds = scored
        best = metrics["rsum"] > run.best_rsum
        board.write_validation(metrics, embeds)
        run.best_rsum, run.validation_due = max(run.best_rsum, metrics["rsum"]), False
    if monitor.logs_due(run):
        values = monitor.take_values(run)
        board.write_values(values)
        guard.warn_or_stop(run, values["train/similarity_spread"], values["train/loss"])
    save_step = run.options.save_step
    if scored or save_step and run.global_step % save_step == 0:
        save_run(run, board, best)
        run.clock.lap(None)
        board.pause()


def save_run(run: Run, board: Board, best: bool = False) -> str:
    """Save `checkpoint.pth.tar`, and `model_best.pth.tar` if it is the best; says how to go on.

    All processes have the same state: the first saves it for all.
    """
    consolidate_state(run.optimizer)
    if not is_main():
        return ""
    # Before the checkpoint: a resumed run writes nothing up to its step again.
    board.writer.flush()
    folder, state = run.options.logger_name, checkpoint.pack(run)
    # The best first: a run killed between the two goes on from before it, and saves it again.
    if best:
        storage.save_twice(folder / storage.BEST, folder / storage.NEWEST, state)
    else:
        storage.save(folder / storage.NEWEST, state)
    reading = "".join(f" --{name} {shlex.quote(str(getattr(run.options, name)))}"
                      for name in SOURCES if getattr(run.options, name) is not None)
    return (f"step {run.global_step} is done and saved; go on with the same command and --resume "
            f"auto, or with: python train.py --resume {folder / storage.NEWEST}{reading}")


# ------------------------------------------------------------------------------------------- set-up


def build_run(
    options: TrainOptions, tokenizer, steps_per_epoch: int, state: dict | None = None,
    photos: Sequence[Path] = (), captions: int | None = None, matches: Tensor | None = None,
) -> Run:
    """A fresh run, or the one in checkpoint `state`.

    Args:
        steps_per_epoch: whole batches of the training split.
        photos: (N_i,) files of the training split, to be named in warnings.
        captions: N_t of the training split.
        matches: (N_t, N_i) bool, all true matches of the training split, where known.
    """
    torch.manual_seed(options.seed)
    if state is not None and checkpoint.is_released(state):
        model = checkpoint.released_dual_encoder(options, state, options.resume)
    else:
        model = checkpoint.first_model(options, tokenizer, pretrained=state is None)
    device = place_on_device(model, options)
    broadcast_tensors(*model.parameters(), *model.buffers())
    momentum_model = momentum_copy(model) if options.loss == "fne" else None
    if options.grad_checkpointing:
        enable_gradient_checkpointing(model)
    if options.deterministic:
        check_deterministic_gradients(model, options, device)
    if options.compile:
        compile_encoders(*filter(None, (model, momentum_model)))
    statistics = image_statistics(options)
    log_scale = nn.Parameter(torch.tensor(1 / 0.07, device=device).log())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if options.loss == "infonce":
        parameters.append(log_scale)
    run = Run(
        options, device, model, with_summed_gradients(model), build_loss(options).to(device),
        log_scale,
        # Fused, so that `guard.guarded_step` can leave out a step without waiting for the device.
        make_adam(parameters, options.shard, lr=options.learning_rate, fused=True),
        torch.tensor(statistics, device=device), steps_per_epoch, photos,
        Skips(options.batch_size_train).to(device), StepClock(device),
        describe_encoders(model, tokenizer, *statistics), captions=captions,
        matches=None if matches is None else matches.to(device))
    if momentum_model is not None:
        run.momentum_model = momentum_model
        run.update_momentum = MomentumUpdate(momentum_model, model)
        dtype = getattr(torch, options.bank_dtype)
        run.bank = MemoryBank(options.queue_size, model.embed_size, dtype).to(device)
        if not options.no_figures:
            run.counts = torch.zeros(2, monitor.BINS, dtype=torch.int64, device=device)
    if state is not None:
        checkpoint.unpack(run, state, options.resume)
    return run


def train_and_test(
    options: TrainOptions, given: set[str], state: dict | None, lock: storage.FolderLock
) -> None:
    """A whole run: read everything first, then train, then test the best checkpoint."""
    tokenizer = tokenizer_of(options)
    train_set = load_train_set(options, tokenizer)
    val_set = load_eval_set(options, "val", tokenizer)
    test_set = load_test_set(options, tokenizer)  # what is wrong with it shows now
    if options.dataset == "custom":
        check_apart(train_set, val_set, test_set)
    oracle.check_known(options.oracle, train_set)
    check_captions(options, train_set)
    if options.judgements:
        read_judgements(options.judgements, test_set.split)
    loader = make_train_loader(options, train_set, pick_device(options.device).type == "cuda")
    matches = train_set.split.matches
    run = build_run(options, tokenizer, len(loader.batch_sampler), state, train_set.photos,
                    len(train_set.captions), None if matches is None else torch.from_numpy(matches))
    goes_on_from = None if state is None or checkpoint.is_released(state) else options.resume
    outline.tell(run, len(train_set.captions), given, goes_on_from)
    key = look_at_photos_once(run) if sees_photos_once(options) else None
    best = prepare_folder(run, lock, goes_on_from)
    if key is not None:
        features.keep_features(options.logger_name, key, run.features)
    try:
        with storage.written_to(options.logger_name):
            train(run, loader, train_set, val_set)
    finally:
        close_workers(loader)
    test_best(options, best, test_set, tokenizer)


def look_at_photos_once(run: Run) -> dict | None:
    """Give the run its frozen encoder's features of all photos: as its folder has kept them, or the
    one that it comes from, or made now. What they depend on, if they should be kept."""
    options, count = run.options, len(run.photos)
    key = own = found = None
    if is_main():
        key = features.features_key(run)
        own = found = features.kept_features(options.logger_name, key, count)
        if found is None and options.resume and options.resume.parent != options.logger_name:
            found = features.kept_features(options.resume.parent, key, count)
    found = broadcast_from_main(found)
    if found is None:
        found = encode_photos(run.model, run.photos, options, project=False)
    run.features = found.to(run.device)
    return key if own is None else None


def prepare_folder(run: Run, lock: storage.FolderLock, goes_on_from: Path | None) -> Path:
    """Make the run's folder ready; where its best checkpoint is, or will be."""
    folder = run.options.logger_name
    best = folder / storage.BEST
    if is_main():
        storage.prepare_folder(folder, lock, fresh=goes_on_from is None,
                               best_of=goes_on_from and goes_on_from.parent)
        metrics_path(folder / storage.RESULTS, "--logger_name", [])  # says it now
        if run.best_rsum >= 0 and not best.is_file():
            terminal.warn(f"{goes_on_from} goes on without its best checkpoint, which is not "
                          "beside it: the best is found anew from here on")
            run.best_rsum = -1.0
    run.best_rsum = broadcast_from_main(run.best_rsum)
    storage.check_shared(folder)
    return best


def test_best(options: TrainOptions, path: Path, test_set: LoadedSplit, tokenizer) -> None:
    """Test a run's best checkpoint, when it has ended."""
    state = checkpoint.read(path)
    if state.get("global_step") == 0:
        terminal.warn("no validation of this run was better than the one before its first step: "
                      f"what is tested now, {path}, is the model as it was before training")
    test(options, state, path, test_set, tokenizer)


def test(
    options: TrainOptions, state: dict, path: Path, test_set: LoadedSplit, tokenizer
) -> None:
    """Score a checkpoint on the test split and keep the metrics in `test_results.json`."""
    results = metrics_path(options.logger_name / storage.RESULTS, "--logger_name", [path])
    embeddings = embed_split(options, state, path, test_set, "test", tokenizer)
    if is_main():
        write_metrics(print_metrics(embeddings, options, split_title(embeddings, path)), results)


def main(argv: list[str] | None = None) -> None:
    options, given = parse(__doc__, argv)
    with exit_on_input_error(), process_group(options.device), storage.FolderLock() as lock:
        check_paths(options)
        if options.resume == Path("auto") and not options.test:
            lock.take(options.logger_name)
        path, state = checkpoint.find(options)
        options.resume = path
        checkpoint.choose_folder(options, given, state, path)
        if state is not None:
            checkpoint.merge_options(options, given, state, path)
        elif options.init is not None:
            checkpoint.begin_from(options, given)
        check(options)
        set_deterministic(options.deterministic)
        outline.check_default_places(options)
        if not options.test:
            lock.take(options.logger_name)
        terminal.quiet = options.quiet
        if options.dataset == "shapes":
            ambiguity = float(options.ambiguity)
            once_per_machine(lambda: make_shapes(options.data_path, ambiguity=ambiguity))
        if options.test:
            tokenizer = tokenizer_of(options)
            test(options, state, path, load_test_set(options, tokenizer), tokenizer)
        else:
            train_and_test(options, given, state, lock)


if __name__ == "__main__":
    main()
