r"""Score a checkpoint or saved embeddings on a split:

    python evaluation.py runs/flickr_FNE/model_best.pth.tar \
        --data_path $DATA_PATH/f30k/images
    python evaluation.py --embeddings embeddings.npz
"""

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

# This file encodes splits and prints results. The metrics themselves are in `metrics`; its rank
# functions can be imported from here as well.

import datetime
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from common.options import (
    EncodingOptions,
    ScoringOptions,
    check,
    check_paths,
    parse_scoring,
    shared_options,
)

if __name__ == "__main__":
    parse_scoring(__doc__)  # so that --help and wrong flags need not wait for the imports below

import numpy as np
import torch
from torch import Tensor

import checkpoint
from common import files
from common.device import pick_device, place_on_device
from common.errors import InputError, exit_on_input_error
from common.processes import broadcast_from_main, gather_strided, process_group
from common.ranks import is_main, rank, world_size
from common.terminal import print_note, print_result, progress
from common.version import commit
from data import LoadedSplit, Split, check_same_data, load_eval_set, photos_of_names
from encoders.preparation import preparation_text
from encoders.processors import image_statistics, photo_fit, resolve_preparation, tokenizer_of
from inputs.captions import Captions
from inputs.fitting import PhotoDataset
from inputs.loader import make_loader
from inputs.photos import normalize
from inputs.sources import read_split
from metrics.embeddings import (
    Embeddings,
    is_embeddings_file,
    read_embeddings,
    save_embeddings,
)
from metrics.facts import run_summary
from metrics.judgements import judge, judgement_lines
from metrics.retrieval import five_fold as five_fold  # is public here
from metrics.retrieval import metrics_and_five_fold, retrieval_metrics
from metrics.retrieval import retrieval_ranks as retrieval_ranks  # is public here
from metrics.true_matches import coco_metrics, metric_label, multi_positive_metrics
from model import DualEncoder, are_unit_rows
from teacher.captions import FILE_SUFFIX, CaptionTeacher

# ---------------------------------------------------------------------------------------- encoding


def do_nothing() -> None:
    """Stand in for a function that is called between two batches."""


@torch.no_grad()
def encode_photos(
    model: DualEncoder, photos: Sequence[Path], options: EncodingOptions, project: bool = True,
    between_batches: Callable[[], None] = do_nothing, features: Tensor | None = None,
) -> Tensor:
    """Encode photo files; several processes share the work.

    Args:
        model: The `DualEncoder`, in the mode and precision in which it is to encode.
        photos: The paths of N_i photos.
        options: Their image size, statistics, batch size and number of workers count.
        project: Whether to return embeddings. If false, the features before the projection are
            returned.
        between_batches: Called after each batch, in all processes equally often. It may raise.
        features: (N_i, width) that the photos are known to have, on the CPU. They are projected,
            and no photo is read.

    Returns:
        (N_i, D) unit embeddings or (N_i, width) features, on the CPU, the same in all processes.

    Raises:
        InputError: If one of the files is no photo.
    """
    device = next(model.parameters()).device
    batch_size = options.batch_size_test
    if features is not None:
        batches = project_features(model.project_image, local_share(features), batch_size, device)
        return gather_batches(batches, len(photos), batch_size, between_batches)
    mean, std = image_statistics(options)
    encode = model.encode_image if project else model.image_features
    batch_bytes = 3 * options.image_res**2 * batch_size
    dataset = PhotoDataset(local_share(photos), options.image_res, photo_fit(options))
    loader = make_loader(dataset, options.workers, device.type == "cuda", batch_bytes,
                         batch_size=batch_size)

    def encoded_batches() -> Iterator[Tensor]:
        for pixels in progress(loader, "encoding photos"):
            yield encode(normalize(pixels.to(device, non_blocking=True), mean, std))

    return gather_batches(encoded_batches(), len(photos), batch_size, between_batches)


@torch.no_grad()
def encode_captions(
    model: DualEncoder, captions: Captions, between_batches: Callable[[], None] = do_nothing,
    project: bool = True, features: Tensor | None = None,
) -> Tensor:
    """Encode captions; several processes share the work.

    Captions of similar length are encoded together, so that little of a batch is padding.

    Args:
        model: The `DualEncoder`, in the mode and precision in which it is to encode.
        captions: Token ids of N_t captions.
        between_batches: Called after each batch, in all processes equally often. It may raise.
        project: Whether to return embeddings. If false, the features before the projection are
            returned.
        features: (N_t, width) that the captions are known to have, on the CPU. They are projected,
            and no caption is encoded.

    Returns:
        (N_t, D) unit embeddings or (N_t, width) features, on the CPU, in the order of `captions`,
        the same in all processes.
    """
    device = next(model.parameters()).device
    batch_size = 256
    order = np.argsort(captions.lengths, kind="stable")  # (N_t,) shortest first
    share = local_share(order)
    encode = model.encode_text if project else model.text_features

    def encoded_batches() -> Iterator[Tensor]:
        for start in progress(range(0, len(share), batch_size), "encoding captions"):
            batch = [captions[index] for index in share[start : start + batch_size]]
            input_ids, mask = captions.padded(batch)
            yield encode(input_ids.to(device), mask.to(device))

    batches = encoded_batches()
    if features is not None:
        batches = project_features(model.project_text, features[share], batch_size, device)
    embeds = gather_batches(batches, len(order), batch_size, between_batches)
    position = np.argsort(order)  # (N_t,) where each caption stands in that order
    return embeds[torch.from_numpy(position)]


def project_features(
    project: Callable[[Tensor], Tensor], features: Tensor, batch_size: int, device: torch.device
) -> Iterator[Tensor]:
    """Yield the embeddings of features in batches, which are those in which they were made.

    Args:
        project: Projects features (B, width) to unit embeddings (B, D).
        features: (N, width) on the CPU.
        batch_size: The largest number of rows of a batch.
        device: Where they are projected.
    """
    for rows in features.split(batch_size):
        yield project(rows.to(device))


def local_share(items: Sequence) -> Sequence:
    """Return every Nth of `items` from this process's rank on.

    Where there are fewer items than processes, a process without one gets the first item, whose
    result `gather_batches` drops.
    """
    return items[rank() :: world_size()] if rank() < len(items) else items[:1]


def gather_batches(
    batches: Iterator[Tensor], count: int, batch_size: int, between_batches: Callable[[], None]
) -> Tensor:
    """Compute the rows of this process's `local_share`, and return those of all processes.

    Args:
        batches: Computes this process's rows, up to `batch_size` at a time.
        count: The number of rows of all processes together.
        batch_size: The largest number of rows of a batch.
        between_batches: Called after each batch, in all processes equally often.

    Returns:
        (count, ...) rows, on the CPU, the same in all processes.
    """
    local_batches = []
    most_batches = -(-count // (world_size() * batch_size))  # of the first process, which has most
    for _ in range(most_batches):
        batch = next(batches, None)
        if batch is not None:
            local_batches.append(batch)
        between_batches()
    # Moved to the CPU once at the end, because that waits for the device.
    return gather_strided(torch.cat(local_batches).cpu(), count)


def encode_split(
    model: DualEncoder, eval_set: LoadedSplit, options: EncodingOptions,
    between_batches: Callable[[], None] = do_nothing,
) -> tuple[Tensor, Tensor]:
    """Encode the photos and captions of a split in evaluation mode.

    The model is put back into the mode that it was in (Fidelity note 1). Several processes share
    the work, and each gets the whole result.

    Args:
        model: The `DualEncoder`.
        eval_set: N_i photos and N_t captions, and the features of them that are known.
        options: See `encode_photos`.
        between_batches: Called after each batch, in all processes equally often. It may raise.

    Returns:
        Image embeddings (N_i, D) and text embeddings (N_t, D), float32 on the CPU.
    """
    was_training = model.training
    model.eval()
    image_embeds = encode_photos(model, eval_set.photos, options, between_batches=between_batches,
                                 features=eval_set.image_features)
    text_embeds = encode_captions(model, eval_set.captions, between_batches,
                                  features=eval_set.text_features)
    model.train(was_training)
    return image_embeds, text_embeds


def score(
    model: DualEncoder, eval_set: LoadedSplit, options: EncodingOptions,
    between_batches: Callable[[], None] = do_nothing,
) -> tuple[dict[str, float], tuple[Tensor, Tensor]]:
    """Encode a split and rank it: what a validation does.

    Args:
        model: The `DualEncoder`.
        eval_set: N_i photos and N_t captions.
        options: See `encode_photos`.
        between_batches: Called after each batch, in all processes equally often. It may raise.

    Returns:
        The dictionary of `retrieval_metrics`, the same in all processes; and image embeddings
        (N_i, D) and text embeddings (N_t, D).

    Raises:
        InputError: If an embedding is not finite.
    """
    embeds = encode_split(model, eval_set, options, between_batches)
    metrics = None
    if is_main():
        metrics = call_metric("the embeddings", retrieval_metrics, *embeds,
                              eval_set.split.image_of_text)
    return broadcast_from_main(metrics), embeds


def call_metric(source: str, function: Callable, *arguments):
    """Call a metric, and raise its `ValueError`s as `InputError`s.

    What is wrong with embeddings here is in the user's checkpoint or file, which is the `source`.
    """
    try:
        return function(*arguments)
    except ValueError as error:
        raise InputError(f"{source} cannot be scored: {error}") from error


# ------------------------------------------------------------------------------------- the metrics


def all_metrics(
    embeddings: Embeddings, options: EncodingOptions, source: str = "the embeddings"
) -> tuple[dict, str]:
    """Compute every metric that a split's embeddings allow.

    Args:
        embeddings: Embeddings of a split.
        options: Their --dataset and --judgements count.
        source: What error messages begin with.

    Returns:
        A dictionary and the same as text. The dictionary has the keys of `retrieval_metrics`; for
        COCO's 5,000 photos also "five_fold", with the keys of `five_fold`, and the keys of
        `coco_metrics`; where all true matches are known, those of `multi_positive_metrics`; with
        --judgements also "judgements", with the keys of `judge`.

    Raises:
        InputError: If an embedding is not finite, or the judgements cannot be read.
    """
    split = embeddings.split
    embeds = embeddings.image_embeds, embeddings.text_embeds
    if options.dataset == "mscoco" and len(split.images) == 5000:
        metrics, fold_metrics = call_metric(source, metrics_and_five_fold, *embeds,
                                            split.image_of_text)
        lines = [recall_lines(metrics), "1K, mean of five folds", recall_lines(fold_metrics)]
        metrics["five_fold"] = fold_metrics
        lines += add_metrics(metrics, coco_metrics(*embeds, split), "ECCV Caption and CxC")
    else:
        metrics = call_metric(source, retrieval_metrics, *embeds, split.image_of_text)
        lines = [recall_lines(metrics)]
    if split.matches is not None:
        match_metrics = multi_positive_metrics(*embeds, split.matches)
        lines += add_metrics(metrics, match_metrics, "over all true matches")
    if options.judgements:
        metrics["judgements"] = judge(embeddings, options.judgements)
        lines.append(judgement_lines(metrics["judgements"]))
    return metrics, "\n".join(lines)


def recall_lines(metrics: dict[str, float]) -> str:
    """Return the dictionary of `retrieval_metrics` as a table, a row for each direction."""
    lines = ["           R@1    R@5   R@10   MedR   MeanR"]
    for direction, label in ("i2t", "i -> t"), ("t2i", "t -> i"):
        values = [metrics[f"{direction}_{key}"] for key in ("r1", "r5", "r10", "medr", "meanr")]
        lines.append("  {:6} {:6.1f} {:6.1f} {:6.1f} {:6.0f} {:7.1f}".format(label, *values))
    return "\n".join([*lines, f"  rsum {metrics['rsum']:.1f}"])


def add_metrics(metrics: dict, new_metrics: dict[str, float] | None, title: str) -> list[str]:
    """Add new metrics to `metrics` in place, and return them as lines, one for each metric.

    Args:
        metrics: The dictionary that is changed.
        new_metrics: Metrics of both directions, with keys that begin with "i2t_" and "t2i_"; None
            if the split has no such metrics.
        title: What stands above the lines.
    """
    if new_metrics is None:
        return [f"{title}: not this split"]
    metrics |= new_metrics
    names = [key.removeprefix("i2t_") for key in new_metrics if key.startswith("i2t_")]
    lines = [f"{title}\n                     i -> t  t -> i"]
    for name in names:
        i2t, t2i = new_metrics[f"i2t_{name}"], new_metrics[f"t2i_{name}"]
        lines.append(f"  {metric_label(name):18} {i2t:6.1f}  {t2i:6.1f}")
    return lines


def embed_split(
    options: EncodingOptions, state: dict, path: Path, eval_set: LoadedSplit, name: str, tokenizer
) -> Embeddings:
    """Encode a split with the model of a checkpoint.

    Args:
        options: The options of the model and the device.
        state: The checkpoint's content.
        path: Its file, for error messages.
        eval_set: N_i photos and N_t captions.
        name: The split's name: "train", "val" or "test".
        tokenizer: The text encoder's tokenizer.

    Returns:
        The embeddings, with the statistics that FNE fitted and facts about the run.
    """
    run_options = checkpoint.options_of_run(options, state)
    model = checkpoint.model_for_testing(options, state, path, tokenizer)
    place_on_device(model, options)
    image_embeds, text_embeds = encode_split(model, eval_set, options)
    for side, embeds in ("image", image_embeds), ("text", text_embeds):
        if not are_unit_rows(embeds):
            raise InputError(f"{path}: its {side} encoder gives embeddings without a length: its "
                             "weights are damaged")
    facts = {"dataset": options.dataset, "split": name, **checkpoint.facts(run_options, state),
             "date": datetime.date.today().isoformat(), "commit": commit()}
    return Embeddings(image_embeds, text_embeds, eval_set.split,
                      checkpoint.fitted_statistics(state, path), run_options.prior, facts)


def embed_by_teacher(teacher: str, options: EncodingOptions, split: Split) -> Tensor:
    """Embed the captions of a split by a teacher.

    Args:
        teacher: What `--teacher` names. `captions` is fitted to the captions of the training split,
            which are read for it.
        options: The options of the data and the device.
        split: The split, with N_t captions.

    Returns:
        (N_t, W) float16 unit rows on the CPU; a row of zeros where the teacher knows no word.

    Raises:
        InputError: If the teacher cannot be loaded, or the training split cannot be read.
    """
    def training_captions() -> Sequence[str]:
        if options.data_path is None:
            raise InputError(f"--teacher {teacher}: it is fitted to the captions of the training "
                             "split; name the folder of the photos with --data_path, and --dataset")
        return read_split(options, "train").captions

    device = pick_device(options.device)
    return CaptionTeacher(teacher, training_captions, device).embed(split.captions)


def split_title(embeddings: Embeddings, path: Path) -> str:
    """Return the title of printed results: data set and split, where known, and the file.

    Args:
        embeddings: The embeddings that are scored.
        path: Their file, or that of their model.
    """
    facts = embeddings.facts
    split = " ".join(facts[name] for name in ("dataset", "split") if name in facts)
    return f"{split}, {path}" if split else str(path)


def print_metrics(embeddings: Embeddings, options: EncodingOptions, title: str) -> dict:
    """Compute all metrics of a split's embeddings, print them, and return them.

    Args:
        embeddings: Embeddings of a split.
        options: See `all_metrics`.
        title: The first line that is printed, which names the file or model; errors begin with it.

    Returns:
        The dictionary of `all_metrics`; with "oracle" if an oracle took part in the training.
    """
    metrics, text = all_metrics(embeddings, options, title)
    lines = [title]
    run = run_summary(embeddings.facts)
    if run:
        lines.append(f"  {run}")
    print_result("\n".join([*lines, text]))
    if "oracle" in embeddings.facts:
        metrics["oracle"] = embeddings.facts["oracle"]
    return metrics


def metrics_path(path: Path, flag: str, other_files: list[Path]) -> Path:
    """Return where `write_metrics` may write the output of a flag, and create its folder.

    Args:
        path: The file.
        flag: The flag, with which error messages begin.
        other_files: Files that the command reads, and its other outputs.

    Raises:
        InputError: If something other than metrics is there.
    """
    def is_metrics(existing: Path) -> bool:
        try:
            content = files.read_json(existing, files.MAX_RESULT_BYTES)
        except InputError:
            return False
        return isinstance(content, dict) and {"i2t_r1", "t2i_r1", "rsum"} <= content.keys()

    return files.resolve_output(path, flag, is_metrics, other_files)


def write_metrics(metrics: dict, path: Path) -> None:
    """Write metrics as JSON, with null for NaN and infinity, which JSON does not have."""
    text = json.dumps(without_nan(metrics), indent=2, allow_nan=False)
    files.write(path, f"{text}\n".encode(), "the metrics in")


def without_nan(value: object) -> object:
    """Return a copy of nested metrics with None in place of NaN and infinity."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def score_checkpoint(
    options: EncodingOptions, state: dict, path: Path, eval_set: LoadedSplit, name: str, tokenizer,
    output: Path, teacher: str | None = None,
) -> None:
    """Score a checkpoint on a split, print the metrics, and write them to a file.

    The file says beside them, as "zero_shot", what the run's model gave on val before training, and
    the rsum of its best validation.

    Args:
        options: The options of the model and the device.
        state: The checkpoint's content.
        path: Its file.
        eval_set: N_i photos and N_t captions.
        name: The split's name: "train", "val" or "test".
        tokenizer: The text encoder's tokenizer.
        output: The JSON file to write, of `metrics_path`.
        teacher: What `--teacher` names, to compare it with --judgements too, if they are given.
    """
    embeddings = embed_split(options, state, path, eval_set, name, tokenizer)
    if is_main():
        if teacher is not None and options.judgements:
            embeddings.teacher_embeds = embed_by_teacher(teacher, options, eval_set.split)
        metrics = print_metrics(embeddings, options, split_title(embeddings, path))
        if state.get("zero_shot"):  # of the validation before the first step
            metrics["zero_shot"] = {"split": "val", **state["zero_shot"],
                                    "best_rsum": state["best_rsum"]}
        write_metrics(metrics, output)


# ------------------------------------------------------------------------------------- the command


def output_paths(options: ScoringOptions) -> dict[str, Path]:
    """Return where the requested outputs are written, by the names of their flags.

    The report's place is checked too; `write_report` finds it by itself.

    Raises:
        InputError: If something else is there, two outputs would share a file, or a flag of an
            output is given without it.
    """
    inputs = [path for path in (options.checkpoint, options.embeddings, options.judgements)
              if path is not None]
    if options.teacher is not None and options.teacher.endswith(FILE_SUFFIX):
        inputs.append(Path(options.teacher))
    paths = {}
    if options.embeds_dtype != "float32" and not options.save_embeddings:
        raise InputError(f"--embeds_dtype {options.embeds_dtype}: belongs to --save_embeddings; "
                         "leave the flag out, or give both")
    if options.teacher is not None and not (options.judgements or options.report
                                            or options.save_embeddings):
        raise InputError(f"--teacher {options.teacher}: belongs to --judgements, --report or "
                         "--save_embeddings; leave the flag out, or give one of these")
    if options.save_embeddings:
        paths["save_embeddings"] = files.resolve_output(
            options.save_embeddings, "--save_embeddings", is_embeddings_file, inputs)
    if options.output:
        paths["output"] = metrics_path(options.output, "--output", [*inputs, *paths.values()])
    if options.report:
        from figures.report import report_place  # loads matplotlib, which only this needs

        report_place(options.report, [*inputs, *paths.values()])
    return paths


def main(argv: list[str] | None = None) -> None:
    """Run the command: read or make a split's embeddings, then print and write its metrics."""
    options, given = parse_scoring(__doc__, argv)
    with exit_on_input_error(), process_group(options.device, shared_options(options)):
        if (options.checkpoint is None) == (options.embeddings is None):
            raise InputError("name either a checkpoint or --embeddings FILE to score")
        check_paths(options)
        paths = output_paths(options)
        photos = None
        if options.embeddings:
            embeddings = read_embeddings(options.embeddings)
            if options.report and options.data_path:
                photos = photos_of_names(embeddings.split.images, options.embeddings, options,
                                         options.split)
        else:
            state = checkpoint.read(options.checkpoint, way_out="name one of train.py's, or a "
                                    "released one")
            checkpoint.merge_options(options, given, state, options.checkpoint)
            check(options)
            resolve_preparation(options)
            if (options.image_fit, options.captions) != ("squash", "published"):
                print_note(preparation_text(options))
            tokenizer = tokenizer_of(options)
            eval_set = load_eval_set(options, options.split, tokenizer)
            check_same_data(**{options.split: eval_set})
            embeddings = embed_split(options, state, options.checkpoint, eval_set, options.split,
                                     tokenizer)
            photos = eval_set.photos
        if not is_main():
            return
        if options.teacher is not None:
            embeddings.teacher_embeds = embed_by_teacher(options.teacher, options, embeddings.split)
            embeddings.facts["teacher"] = options.teacher
        if options.save_embeddings:
            save_embeddings(embeddings, paths["save_embeddings"], options.embeds_dtype)
        title = split_title(embeddings, options.embeddings or options.checkpoint)
        metrics = print_metrics(embeddings, options, title)
        if options.output:
            write_metrics(metrics, paths["output"])
        if options.report:
            from figures.report import write_report

            print_result(str(write_report(embeddings, metrics, title, photos, options.report)))


if __name__ == "__main__":
    main()
