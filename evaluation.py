r"""Score a checkpoint or saved embeddings on a split:

    python evaluation.py runs/flickr_FNE/model_best.pth.tar \
        --data_path $DATA_PATH/f30k/images
    python evaluation.py --embeddings embeddings.npz
"""

# A split is encoded here; what its embeddings are worth is in `metrics`, whose rank functions can
# be imported from here as well.

import datetime
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from common.errors import tell_of_imports
from common.options import (
    EncodingOptions,
    ScoringOptions,
    check,
    check_paths,
    parse_scoring,
)

if __name__ == "__main__":
    tell_of_imports()
    parse_scoring(__doc__)  # --help, or a slip in a flag, need not wait for the imports below

import numpy as np
import torch
from torch import Tensor

import checkpoint
from common import files
from common.device import place
from common.errors import InputError, exit_on_input_error
from common.processes import from_main, gather_strided, together
from common.ranks import is_main, rank, world
from common.terminal import progress, tell
from common.version import commit
from data import LoadedSplit, load_eval_set, photos_of_names
from encoders.processors import image_statistics, tokenizer_of
from inputs.captions import Captions
from inputs.loader import make_loader
from inputs.photos import PhotoDataset, normalize
from metrics.embeddings import (
    Embeddings,
    is_embeddings_file,
    read_embeddings,
    save_embeddings,
)
from metrics.facts import run_text
from metrics.judgements import judge, judgement_lines
from metrics.retrieval import five_fold as five_fold  # is public here
from metrics.retrieval import metrics_and_five_fold, retrieval_metrics
from metrics.retrieval import retrieval_ranks as retrieval_ranks  # is public here
from metrics.true_matches import coco_metrics, metric_label, multi_positive_metrics
from model import DualEncoder

# ---------------------------------------------------------------------------------------- encoding


def nothing() -> None:
    """What there is to do between two batches, where nobody asks for anything."""


@torch.no_grad()
def encode_photos(
    model: DualEncoder, photos: Sequence[Path], options: EncodingOptions, project: bool = True,
    between: Callable[[], None] = nothing,
) -> Tensor:
    """Embeddings (N_i, D) of photo files, or with `project` false features (N_i, width); on CPU."""
    device, size = next(model.parameters()).device, options.batch_size_test
    encode = model.encode_image if project else model.image_features
    mean, std = image_statistics(options)
    loader = make_loader(PhotoDataset(own_share(photos), options.image_res),
                         options.workers, device.type == "cuda", 3 * options.image_res**2 * size,
                         batch_size=size)
    return encode_shares(
        (encode(normalize(pixels.to(device, non_blocking=True), mean, std))
         for pixels in progress(loader, "encoding photos")), len(photos), size, between)


@torch.no_grad()
def encode_captions(
    model: DualEncoder, captions: Captions, between: Callable[[], None] = nothing
) -> Tensor:
    """Embeddings (N_t, D), on the CPU."""
    device, size = next(model.parameters()).device, 256
    # Captions of like length go together, so that little of a batch is padding.
    order = np.argsort(captions.lengths, kind="stable")
    own = own_share(order)
    batches = (captions.padded([captions[index] for index in own[start : start + size]])
               for start in range(0, len(own), size))
    texts = encode_shares((model.encode_text(input_ids.to(device), mask.to(device))
                           for input_ids, mask in batches), len(order), size, between)
    return texts[torch.from_numpy(np.argsort(order))]


def own_share(items: Sequence) -> Sequence:
    """Every Nth of `items`, from this process's rank on; where there are fewer than processes, a
    last one in vain rather than none."""
    return items[rank() :: world()] if rank() < len(items) else items[:1]


def encode_shares(
    batches: Iterator[Tensor], count: int, size: int, between: Callable[[], None]
) -> Tensor:
    """The embeddings (count, D) of all processes, on the CPU, where each computes every Nth.

    Args:
        batches: computes this process's embeddings, up to `size` at a time.
        between: called after each batch, in all processes equally often.
    """
    own = []
    for _ in range(-(-count // (world() * size))):  # as many as the first process has
        if (batch := next(batches, None)) is not None:
            own.append(batch)
        between()
    # To the CPU once, since it waits for the device.
    return gather_strided(torch.cat(own).cpu(), count)


def encode_split(
    model: DualEncoder, eval_set: LoadedSplit, options: EncodingOptions,
    between: Callable[[], None] = nothing,
) -> tuple[Tensor, Tensor]:
    """Image embeddings (N_i, D) and text embeddings (N_t, D), float32 on the CPU.

    The model is put into evaluation mode for this, and back into the mode that it was in
    (Fidelity note 1). Several processes share the work, and all of them get the whole.
    """
    was_training = model.training
    model.eval()
    images = encode_photos(model, eval_set.photos, options, between=between)
    texts = encode_captions(model, eval_set.captions, between)
    model.train(was_training)
    return images, texts


def score(
    model: DualEncoder, eval_set: LoadedSplit, options: EncodingOptions,
    between: Callable[[], None] = nothing,
) -> tuple[dict[str, float], tuple[Tensor, Tensor]]:
    """`retrieval_metrics` of a split, encoded with `model`, and the embeddings that they score.

    Args:
        between: called between two batches; it may raise.

    Raises:
        InputError: the model's embeddings are not finite.
    """
    embeds = encode_split(model, eval_set, options, between)
    metrics = is_main() and input_errors(retrieval_metrics, *embeds, eval_set.split.image_of_text)
    return from_main(metrics), embeds


def input_errors(function, *arguments):
    """Call a metric; what is wrong with embeddings is the user's to mend."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise InputError(f"the embeddings cannot be scored: {error}") from error


# ------------------------------------------------------------------------------------- the metrics


def all_metrics(embeddings: Embeddings, options: EncodingOptions) -> tuple[dict, str]:
    """Everything that can be said of a split's embeddings: as a dictionary and as text.

    The keys of `retrieval_metrics`; for COCO's 5,000 photos `five_fold` and the keys of
    `coco_metrics`; where all matches are known, those of `multi_positive_metrics`; with
    --judgements `judgements`.
    """
    split = embeddings.split
    embeds = embeddings.image_embeds, embeddings.text_embeds
    if options.dataset == "mscoco" and len(split.images) == 5000:
        metrics, folds = input_errors(metrics_and_five_fold, *embeds, split.image_of_text)
        lines = [recall_lines(metrics), "1K, mean of five folds", recall_lines(folds)]
        metrics["five_fold"] = folds
        lines += add_lines(metrics, coco_metrics(*embeds, split), "ECCV Caption and CxC")
    else:
        metrics = input_errors(retrieval_metrics, *embeds, split.image_of_text)
        lines = [recall_lines(metrics)]
    if split.matches is not None:
        lines += add_lines(metrics, multi_positive_metrics(*embeds, split.matches),
                           "over all true matches")
    if options.judgements:
        metrics["judgements"] = judge(embeddings, options.judgements)
        lines.append(judgement_lines(metrics["judgements"]))
    return metrics, "\n".join(lines)


def recall_lines(metrics: dict[str, float]) -> str:
    """Three lines that read at a glance."""
    lines = ["           R@1    R@5   R@10   MedR   MeanR"]
    for name, label in ("i2t", "i -> t"), ("t2i", "t -> i"):
        values = [metrics[f"{name}_{key}"] for key in ("r1", "r5", "r10", "medr", "meanr")]
        lines.append("  {:6} {:6.1f} {:6.1f} {:6.1f} {:6.0f} {:7.1f}".format(label, *values))
    return "\n".join([*lines, f"  rsum {metrics['rsum']:.1f}"])


def add_lines(metrics: dict, more: dict[str, float] | None, title: str) -> list[str]:
    """Add `more` to `metrics`, and give it as lines: a row for each metric."""
    if more is None:
        return [f"{title}: not this split"]
    metrics |= more
    names = [key.removeprefix("i2t_") for key in more if key.startswith("i2t_")]
    lines = [f"{title}\n                     i -> t  t -> i"]
    for name in names:
        i2t, t2i = more[f"i2t_{name}"], more[f"t2i_{name}"]
        lines.append(f"  {metric_label(name):18} {i2t:6.1f}  {t2i:6.1f}")
    return lines


def embed_split(
    options: EncodingOptions, state: dict, path: Path, eval_set: LoadedSplit, name: str, tokenizer
) -> Embeddings:
    """The embeddings of the split `name` under checkpoint `state`, read from `path`."""
    run_options = checkpoint.options_of_run(options, state)
    model = checkpoint.model_for_testing(options, state, path, tokenizer)
    place(model, options)
    embeds = encode_split(model, eval_set, options)
    facts = {"dataset": options.dataset, "split": name, **checkpoint.facts(run_options, state),
             "date": datetime.date.today().isoformat(), "commit": commit()}
    return Embeddings(*embeds, eval_set.split, checkpoint.fitted_statistics(state),
                      run_options.prior, facts)


def title_of(embeddings: Embeddings, path: Path) -> str:
    """What is scored: the split, where that is known, and the file of it or of its model."""
    facts = embeddings.facts
    split = " ".join(facts[name] for name in ("dataset", "split") if name in facts)
    return f"{split}, {path}" if split else str(path)


def print_metrics(embeddings: Embeddings, options: EncodingOptions, title: str) -> dict:
    """Print `all_metrics`, and return them; with a word of the oracle, where one helped."""
    metrics, text = all_metrics(embeddings, options)
    run = run_text(embeddings.facts)
    tell("\n".join([title, *([f"  {run}"] if run else []), text]))
    if "oracle" in embeddings.facts:
        metrics["oracle"] = embeddings.facts["oracle"]
    return metrics


def metrics_place(path: Path, flag: str, inputs: list[Path]) -> Path:
    """Where `write_metrics` may write; InputError where something else is there."""
    def is_metrics(place: Path) -> bool:
        try:
            return "rsum" in files.read_json(place)
        except (InputError, TypeError):
            return False

    return files.output_place(path, flag, is_metrics, inputs)


def write_metrics(metrics: dict, place: Path) -> None:
    """Write metrics as json, which has no number for what is none: null."""
    text = json.dumps(without_nan(metrics), indent=2, allow_nan=False)
    files.write(place, f"{text}\n".encode(), "the metrics in")


def without_nan(value: object) -> object:
    """The same metrics, None in place of NaN and infinity."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def output_places(options: ScoringOptions) -> dict[str, Path]:
    """Where the outputs that are asked for may be written, by the name of their flag.

    Raises:
        InputError: something else is there, or two would share a file.
    """
    places, used = {}, [path for path in (options.checkpoint, options.embeddings,
                                          options.judgements) if path is not None]
    if options.save_embeddings:
        places["save_embeddings"] = files.output_place(
            options.save_embeddings, "--save_embeddings", is_embeddings_file, used)
    if options.output:
        places["output"] = metrics_place(options.output, "--output", [*used, *places.values()])
    if options.report:
        from figures.report import report_place  # loads matplotlib, which only this needs

        report_place(options.report, [*used, *places.values()])
    return places


def main(argv: list[str] | None = None) -> None:
    options, given = parse_scoring(__doc__, argv)
    with exit_on_input_error(), together(options.device):
        if (options.checkpoint is None) == (options.embeddings is None):
            raise InputError("name either a checkpoint or --embeddings FILE to score")
        check_paths(options)
        places, photos = output_places(options), None
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
            tokenizer = tokenizer_of(options)
            eval_set = load_eval_set(options, options.split, tokenizer)
            embeddings = embed_split(options, state, options.checkpoint, eval_set, options.split,
                                     tokenizer)
            photos = eval_set.photos
        if not is_main():
            return
        if options.save_embeddings:
            save_embeddings(embeddings, places["save_embeddings"])
        title = title_of(embeddings, options.embeddings or options.checkpoint)
        metrics = print_metrics(embeddings, options, title)
        if options.output:
            write_metrics(metrics, places["output"])
        if options.report:
            from figures.report import write_report

            tell(str(write_report(embeddings, metrics, title, photos, options.report)))


if __name__ == "__main__":
    main()
