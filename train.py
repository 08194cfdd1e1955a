r"""Train a dual encoder with False Negative Elimination, or test it.

    python train.py --dataset shapes --max_violation
    python train.py --data_path $DATA_PATH/f30k/images --dataset flickr \
        --logger_name runs/flickr_FNE --max_violation
    python train.py --data_path $DATA_PATH/coco/images --dataset mscoco \
        --logger_name runs/mscoco_FNE --max_violation

Add `--test` to score the run's best checkpoint on the test split, `--resume
auto` to go on where the run stopped.
"""

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

from pathlib import Path

from training.options import TrainOptions, check, parse

if __name__ == "__main__":
    parse(__doc__)  # --help, or a slip in a flag, need not wait seconds for the imports below

from torch import Tensor
from torch.utils.data import DataLoader

import checkpoint
from common import terminal
from common.device import pick_device, set_deterministic
from common.errors import exit_on_input_error
from common.options import check_paths, shared_options
from common.processes import gather_several, once_per_machine, process_group, require_same
from common.ranks import local_rows
from data import (
    Batch,
    LoadedSplit,
    check_same_data,
    load_all_splits,
    load_test_set,
    make_train_loader,
)
from encoders.processors import photo_fit, resolve_preparation, tokenizer_of
from evaluation import encode_captions, encode_photos, metrics_path, score, score_checkpoint
from figures.tensorboard import make_board
from inputs.loader import close_workers
from inputs.photos import normalize
from inputs.shapes import make_shapes
from metrics.judgements import read_judgements
from training import features, guard, monitor, outline, storage, teaching, zero_shot
from training.bad_photos import count_bad_photos
from training.exchange import exchange_ids
from training.objectives.base import Step
from training.random_streams import seed_dropout
from training.run import Run, build_run
from training.schedule import validation_steps
from training.signals import Signals, stop_if, stop_on_signals


def training_step(run: Run, batch: Batch) -> Tensor:
    """Make one optimisation step on a batch of B pairs, in the published order.

    Args:
        run: changed in place: weights, optimizer, objective and logs.
        batch: on the run's device, with the ids of all B pairs.

    Returns:
        () loss of the whole batch, detached.
    """
    run.clock.lap("data")
    step = encode(run, batch)
    run.clock.lap("encoders")
    outcome = run.objective(step)
    run.clock.lap("loss")
    run.set_learning_rate()
    run.optimizer.zero_grad()
    outcome.loss.backward()  # --chunk encodes one chunk after the other again here
    norm, taken = guard.guarded_step(
        run, batch.image_ids, outcome.batch_loss, step.all_image_embeds, step.all_text_embeds)
    run.clock.lap("backward")
    monitor.log_step(run, step, outcome, norm, taken)
    run.objective.after_step(step)
    run.clock.lap("loss")
    return outcome.batch_loss


def encode(run: Run, batch: Batch) -> Step:
    """Encode the local b = B / N pairs of a batch, and exchange the embeddings of all B.

    Args:
        run: the run, whose model encodes.
        batch: pixels and tokens of the local pairs, ids of all.
    """
    seed_dropout(run.options.seed, run.global_step)
    local = local_rows(len(batch.image_ids))
    pixels = image_features = text_features = None
    if run.image_features is None:
        pixels = normalize(batch.pixels, *run.pixel_statistics)
    else:  # a frozen encoder has seen all photos
        image_features = run.image_features[batch.image_ids[local]]
    if run.text_features is not None:  # a frozen encoder has seen all captions
        text_features = run.text_features[batch.text_ids[local]]
    image_embeds, text_embeds, image_features, text_features = run.encode_pairs(
        pixels, image_features, batch.input_ids, batch.attention_mask, text_features)
    all_images, all_texts = gather_several(image_embeds, text_embeds)  # (B, D), (B, D)
    return Step(
        batch, pixels, image_features, text_features, image_embeds, text_embeds, all_images,
        all_texts, local, run.epoch, run.global_step, run.skips.last_step_taken, run.clock.lap)


def train(run: Run, loader: DataLoader, train_set: LoadedSplit, val_set: LoadedSplit) -> None:
    """Train to the last epoch.

    Args:
        run: changed in place.
        loader: of the training pairs.
        train_set: the training split, for figures.
        val_set: the split that decides which checkpoint is the best.

    Raises:
        Stopped: a signal came; the run is saved.
    """
    options, sampler = run.options, loader.batch_sampler
    # A stopped run may not have validated or logged its last step. That is done first here, and
    # the entries of that step in TensorBoard are then written again.
    left_open = run.validation_due or monitor.logs_due(run)
    board = make_board(run, train_set, val_set, run.global_step + (not left_open))
    with stop_on_signals(lambda: save_run(run, board)) as signals, board:
        if left_open:
            validate_log_and_save(run, val_set, board, signals)
        while run.epoch < options.num_epochs:
            sampler.epoch, sampler.start = run.epoch, run.step
            if run.step == 0:
                outline.print_phase(run)
                run.objective.start_epoch()
            run.train_mode()
            validate_at = validation_steps(options, len(sampler))
            run.clock.lap(None)
            for batch in board.batches(loader):
                batch, signal = exchange_ids(batch, signals.number)
                stop_if(signal)  # the step before this one is complete
                count_bad_photos(run, batch)
                training_step(run, batch.to(run.device))
                run.finish_step(validate_at)
                validate_log_and_save(run, val_set, board, signals)


def validate_log_and_save(run: Run, val_set: LoadedSplit, board, signals: Signals) -> None:
    """Validate, write the logs and save the run, each of them if it is due after this step.

    Args:
        run: changed in place.
        val_set: the split to validate on.
        board: TensorBoard and terminal.
        signals: a signal stops the run between two batches of a validation.

    Raises:
        Stopped: a signal came.
    """
    validated, best = run.validation_due, False
    if validated:
        signals.stop_if_asked()  # nothing has changed yet that a stopped run would not do again
        guard.check_alike(run)
        metrics, embeds = score(run.model, val_set, run.options, signals.stop_if_asked)
        signals.stop_if_asked()
        best = metrics["rsum"] > run.best_rsum
        if run.global_step == 0:
            zero_shot.keep(run, metrics, embeds, val_set.split)
        board.write_validation(metrics, embeds)
        run.best_rsum, run.validation_due = max(run.best_rsum, metrics["rsum"]), False
    if monitor.logs_due(run):
        values = monitor.take_values(run)
        board.write_values(values)
        guard.warn_or_stop(run, values["train/similarity_spread"], values["train/loss"])
    save_step = run.options.save_step
    if validated or save_step and run.global_step % save_step == 0:
        save_run(run, board, best)
        run.clock.lap(None)
        board.pause()


def save_run(run: Run, board, best: bool = False) -> str:
    """Save a run, and return a line that says how to go on."""
    board.flush()  # before the checkpoint: a resumed run writes nothing up to its step again
    return checkpoint.save(run, best)


def train_and_test(
    options: TrainOptions, given: set[str], path: Path | None, state: dict | None,
    lock: storage.FolderLock,
) -> None:
    """Read everything, train, and test the best checkpoint.

    Args:
        options: the run's options.
        given: names of the options that the command line gave.
        path: the checkpoint that the run goes on from, and `state` its content; None to start.
        lock: keeps the run's folder to this run.
    """
    tokenizer = tokenizer_of(options)
    splits = dict(zip(("train", "val", "test"), load_all_splits(options, tokenizer), strict=True))
    check_same_data(**splits)
    if options.judgements:
        read_judgements(options.judgements, splits["test"].split)  # an error shows before training
    device = pick_device(options.device)
    loader = make_train_loader(options, splits["train"], device.type == "cuda", photo_fit(options))
    teacher, made_by_teacher = teaching.prepare(options, splits["train"].split, device)
    model = checkpoint.model_for_training(options, state, path, tokenizer)
    run = build_run(
        options, model, tokenizer, len(loader.batch_sampler), splits["train"], teacher)
    if state is not None:
        checkpoint.unpack(run, state, path)
        guard.check_alike(run)
    goes_on_from = path if checkpoint.holds_a_run(state) else None
    outline.print_outline(run, given, goes_on_from)
    splits, made = features.prepare(run, splits, encode_photos, encode_captions)
    storage.prepare_run_folder(run, lock, goes_on_from)
    results = metrics_path(options.logger_name / storage.RESULTS, "--logger_name", [])
    features.save(made + made_by_teacher)
    del made, made_by_teacher  # the run and its splits hold what they need of them
    try:
        with storage.written_to(options.logger_name):
            train(run, loader, splits["train"], splits["val"])
    finally:
        close_workers(loader)
    best = options.logger_name / storage.BEST
    state = checkpoint.read_best(best)
    score_checkpoint(options, state, best, splits["test"], "test", tokenizer, results,
                     teaching.teacher_of_test(options))


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    options, given = parse(__doc__, argv)
    with (exit_on_input_error(), process_group(options.device, shared_options(options)),
          storage.FolderLock() as lock):
        check_paths(options)
        path, state = checkpoint.start_from(options, given, lock)
        check(options)
        resolve_preparation(options)
        require_same(shared_options(options))  # as the checkpoint of each process has them
        set_deterministic(options.deterministic)
        outline.check_default_places(options)
        terminal.quiet = options.quiet
        if options.dataset == "shapes":
            ambiguity = float(options.ambiguity)
            once_per_machine(lambda: make_shapes(options.data_path, ambiguity=ambiguity))
        if options.test:
            results = metrics_path(options.logger_name / storage.RESULTS, "--logger_name", [path])
            tokenizer = tokenizer_of(options)
            test_set = load_test_set(options, tokenizer)
            check_same_data(test=test_set)
            score_checkpoint(options, state, path, test_set, "test", tokenizer, results,
                             teaching.teacher_of_test(options))
        else:
            lock.take(options.logger_name)
            train_and_test(options, given, path, state, lock)


if __name__ == "__main__":
    main()
