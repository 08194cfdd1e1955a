"""Write a folder that holds a checkpoint's model alone, to use elsewhere
(docs/export.md):

    python export.py runs/flickr_FNE/model_best.pth.tar models/flickr_FNE
    python export.py model_best.pth.tar models/released --dtype bfloat16

`model.DualEncoder.from_pretrained` and `sentence_transformers` load it, and
evaluation.py and train.py take it as a checkpoint.
"""

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

import contextlib
import importlib.util
import json
import os
from pathlib import Path

from common.errors import reraise_out_of_memory
from common.options import ExportOptions, check, check_paths, parse_export, parse_scoring

if __name__ == "__main__":
    parse_export(__doc__)  # --help need not wait for the imports below

import torch
from torch import Tensor, nn

import checkpoint
from common.errors import InputError, exit_on_input_error, one_line
from common.files import MAX_RESULT_BYTES, check_plain, is_inside, read_json
from common.flags import check_values, names_from_checkpoint
from common.folders import folder_place, replaced_folder
from common.processes import require_one_process
from common.terminal import print_result
from encoders.folder import CARD, DTYPES
from encoders.loading import BUILT_IN
from encoders.lora import AdapterSettings, remove_adapters, write_adapters
from encoders.pair_folder import is_whole_pair, pair_class, sentence_reason
from encoders.pairs import LogitScale
from encoders.preparation import Preparation
from encoders.processors import (
    image_statistics,
    photo_fit,
    resolve_preparation,
    tokenizer_of,
)
from encoders.sentence import layout
from model import DualEncoder, build_model
from training.options import TrainOptions
from training.storage import BEST, RESULTS

ONNX_TOLERANCE = 1e-4  # largest difference of a number of an embedding from PyTorch's
ONNX_LARGEST_BATCH = 4096
ONNX_LIBRARIES = "onnx", "onnxscript", "onnxruntime"
REQUIREMENTS = "requirements-export.txt"


def output_folder(out: Path, source: Path) -> Path:
    """Return the folder that the export is written to, with all links in its path resolved.

    Args:
        out: the folder as the user named it.
        source: the checkpoint or folder that is exported.

    Raises:
        InputError: something else is there, or it is `source` itself.
    """
    if os.path.realpath(out) == os.path.realpath(source):
        raise InputError(f"{out} is what is exported: name another folder")
    return folder_place(out, "OUT")


def read_model(
    path: Path, image_encoder: str | None = None, text_encoder: str | None = None,
    merge: bool = True,
) -> tuple[DualEncoder, TrainOptions, dict]:
    """Read the model of a checkpoint, or of a folder that `export.py` wrote.

    Args:
        path: file of the checkpoint, or the folder.
        image_encoder: folder or Hub name of the image encoder's configuration, for a checkpoint
            that holds none.
        text_encoder: the same of the text encoder.
        merge: whether adapters of `--lora` are merged into the weights beside them.

    Returns:
        The dual encoder, in evaluation mode and with its `preparation`; the options that it was
        trained with; and the whole content of the checkpoint.

    Raises:
        InputError: the file or folder is none, or the encoders do not fit its weights.
    """
    state = checkpoint.read(path, way_out="name one of train.py's, a released one, or a folder "
                            "that export.py wrote")
    arguments = [str(path), "--device", "cpu"]
    if image_encoder:
        arguments += ["--image_encoder", image_encoder]
    if text_encoder:
        arguments += ["--text_encoder", text_encoder]
    options, given = parse_scoring("", arguments)
    checkpoint.merge_options(options, given, state, path)
    options.data_path = options.data_path or Path(".")  # no photo is read
    check(options)
    resolve_preparation(options)
    run_options = checkpoint.options_of_run(options, state)
    tokenizer = tokenizer_of(options)
    model = checkpoint.model_for_testing(options, state, path, tokenizer)
    if merge:
        remove_adapters(model, merge=True)
    mean, std = image_statistics(options)
    model.preparation = Preparation(
        tokenizer, options.image_res, mean, std, options.max_words, options.max_tokens,
        options.caption_prefix, options.text_pooling == "padded",
        training_facts(run_options, state, path), cleaning=options.captions,
        photo_fit=photo_fit(options))
    return model, run_options, state


def training_facts(options: TrainOptions, state: dict, path: Path) -> dict:
    """Return what the exported folder says of the training: "options", "recalls", "statistics".

    Paths on this machine are left out.

    Args:
        options: that the model was trained with.
        state: the content of the checkpoint.
        path: of the checkpoint.
    """
    if "folder" in state:
        about = state["folder"]["about"]
        names = {name: without_folders(about["options"][name])
                 for name in ("image_encoder", "text_encoder")
                 if isinstance(about["options"].get(name), str)}
        return about | {"options": about["options"] | names}
    saved = {name: getattr(options, name) for name in sorted(names_from_checkpoint(type(options)))}
    for name in "image_encoder", "text_encoder", "vocab":
        if name in saved:
            saved[name] = without_folders(saved[name])
    saved = {name: value for name, value in saved.items() if not isinstance(value, Path)}
    if checkpoint.is_released(state):  # a released checkpoint holds only these options
        names = *checkpoint.released_options(state), "dataset", "image_encoder", "text_encoder"
        saved = {name: saved[name] for name in names}
    statistics = checkpoint.fitted_statistics(state, path)
    return {"options": saved, "recalls": known_scores(state, path),
            "statistics": None if statistics is None else statistics.tolist()}


def without_folders(name: str) -> str:
    """Return the name of an encoder; for a folder on this machine, the last part of its path."""
    return Path(name).name if Path(name).is_absolute() or name.count("/") > 1 else name


def known_scores(state: dict, path: Path) -> dict:
    """Return what is known of a checkpoint's scores.

    Returns:
        "val_rsum", the rsum of the best validation, and "test", the scores on the test split by
        name, as far as they are known.
    """
    scores = {}
    if isinstance(state.get("best_rsum"), float) and state["best_rsum"] >= 0:
        scores["val_rsum"] = state["best_rsum"]
    # No results are there, or something else.
    with contextlib.suppress(InputError, ValueError, AttributeError):
        if path.name == BEST and is_inside(path.parent / RESULTS, path.parent):
            results = read_json(path.parent / RESULTS, MAX_RESULT_BYTES)
            check_plain(results)
            scores["test"] = {name: value for name, value in results.items()
                              if isinstance(value, int | float)}
    return scores


@torch.no_grad()
def average_weights(
    model: DualEncoder, options: TrainOptions, alpha: float, other: Path | None
) -> None:
    """Average the weights of a trained model, in place, with those that its training began with.

        alpha * trained + (1 - alpha) * begun with

    This is WiSE-FT (Wortsman et al., 2022). `model.preparation` then names the
    average, and no recalls or statistics: they were those of the trained weights.

    Args:
        model: the trained model with its `preparation`.
        options: that it was trained with, which name its encoders.
        alpha: share of the trained weights, in [0, 1].
        other: checkpoint or folder of the model that training began with; None for the pretrained
            encoders that `options` name.

    Raises:
        InputError: the other model cannot be had, or has other weights than the trained one.
    """
    name = f"--average_with {other}" if other is not None else f"--average {alpha}"
    if other is not None:
        first_model, _, _ = read_model(other)
    elif model.image_projection.state_dict() or {options.image_encoder,
                                                 options.text_encoder} & BUILT_IN.keys():
        raise InputError(f"{name}: the training began with random weights, in an encoder or in the "
                         "projections of --embed_size; name a model to average with by "
                         "--average_with")
    else:
        first_model = build_model(options, model.preparation.tokenizer)
    first, trained = first_model.state_dict(), model.state_dict()
    unlike = [key for key in first.keys() | trained.keys()
              if key not in first or key not in trained or first[key].shape != trained[key].shape]
    if unlike:
        raise InputError(f"{name}: that model has other weights than the trained one: "
                         f"{', '.join(sorted(unlike)[:3])}")
    for key, weights in trained.items():
        if weights.is_floating_point():
            weights.copy_(torch.lerp(first[key], weights, alpha))  # to the bit at 0 and at 1
    if None not in (first_model.logit_scale, model.logit_scale):
        # What a pair has learned is the logarithm of its scale.
        model.set_logit_scale(LogitScale(
            first_model.logit_scale ** (1 - alpha) * model.logit_scale**alpha,
            (1 - alpha) * first_model.logit_bias + alpha * model.logit_bias))
    about = {**model.preparation.about, "average": alpha, "recalls": {}, "statistics": None}
    model.preparation = model.preparation._replace(about=about)


# ---------------------------------------------------------------------------------------- the card

CARD_TEXT = """---
library_name: {library}
pipeline_tag: sentence-similarity
tags: [image-text-retrieval, dual-encoder, false-negative-elimination]
---

# A dual encoder for photos and captions

{origin}: a photo and a caption become unit vectors of {dim} numbers, whose inner product is their
cosine.

| | image | text |
|---|---|---|
| encoder | {image_encoder} | {text_encoder} |
| pooling | {image_pooling} | {text_pooling} |
| projection | {projection} | {projection} |
| input | {image_res} x {image_res} pixels, {fit}, {resampling} | {text} |

Weights: {dtype}, {parameters:.1f} million. {recalls}

## How to load it

```python
from pathlib import Path

from model import DualEncoder
from training.options import TrainOptions

model = DualEncoder.from_pretrained("FOLDER")
captions = model.preparation.captions(["Two friends walk by the sea."])
text = model.encode_text(*captions.padded([captions[0]]))  # (1, {dim})
image = model.encode_image(model.preparation.pixels([Path("photo.jpg")]))  # (1, {dim})
print(text @ image.T)
```

{pair}{sentence}{cleaning}
## Options of the training

```json
{options}
```

## Licence

To be named by whoever passes this folder on: photos, captions and the encoders' pretrained weights
are their owners'.
"""
CLEANING_TEXT = """
## What is not in the files

Captions are cut to {max_words} words before they are cut to {max_tokens} tokens. `preparation`
does both; a tokenizer has no place for the first, so with `sentence_transformers` the words after
the {max_words}th count where the tokens leave room. So does the spelling of a special token, such
as [SEP], in a caption, and a capital sigma at the end of a word.
"""
PAIR_TEXT = """With transformers alone:

```python
from transformers import AutoProcessor, {pair_class}

model, processor = {pair_class}.from_pretrained("FOLDER"), AutoProcessor.from_pretrained("FOLDER")
```

"""
SENTENCE = """Without this program, from version 6 of sentence-transformers on:

```python
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("FOLDER")
text = model.encode(["Two friends walk by the sea."])
image = model.encode([Image.open("photo.jpg")])
print(model.similarity(text, image))
```
"""


def card(model: DualEncoder, dtype: str) -> str:
    """Return the model card, which is README.md of the exported folder.

    Args:
        model: the dual encoder with its `preparation`.
        dtype: of the weights, as --dtype names it.
    """
    preparation, options = model.preparation, model.preparation.about["options"]
    pair = ""
    if is_whole_pair(model, preparation):
        pair = PAIR_TEXT.format(pair_class=pair_class(model.image_encoder))
        reason = sentence_reason(model)
    else:
        _, reason = layout(model, preparation)  # why sentence-transformers cannot load it
    projected = model.image_projection.state_dict()
    projection = f"{model.head}, {model.embed_size} wide" if projected else "none"
    if reason:
        sentence = f"`sentence_transformers` cannot load it: {reason}.\n"
    else:
        sentence = SENTENCE
    is_raw = preparation.cleaning == "raw"
    limits = "" if is_raw else "{} words, then "
    recalls = score_sentences(preparation.about.get("recalls") or {})
    if "average" in preparation.about:
        recalls = (f"They are {preparation.about['average']:g} times the trained weights plus "
                   "the rest of those that training began with (WiSE-FT). " + recalls)
    return CARD_TEXT.format(
        library="pytorch" if reason else "sentence-transformers", dim=model.embed_size,
        origin=origin(options), pair=pair, fit=preparation.photo_fit.fit,
        resampling=preparation.photo_fit.resampling,
        text=f"{limits.format(preparation.max_words)}{preparation.max_tokens} tokens",
        cleaning="" if is_raw else CLEANING_TEXT.format(
            max_words=preparation.max_words, max_tokens=preparation.max_tokens),
        image_encoder=options.get("image_encoder"), text_encoder=options.get("text_encoder"),
        image_pooling=model.image_pooling, text_pooling=model.text_pooling, projection=projection,
        image_res=preparation.image_res, dtype=dtype,
        parameters=sum(weight.numel() for weight in model.parameters()) / 1e6,
        recalls=recalls, sentence=sentence,
        options=json.dumps(options, indent=2, sort_keys=True, default=str))


def origin(options: dict) -> str:
    """Return what a model is, in words: a pretrained pair, or what it was trained with and on.

    Args:
        options: of its training; of a pretrained pair only those that describe it.
    """
    if "loss" not in options and "dataset" not in options:
        return f"The pretrained pair `{options.get('image_encoder')}`"
    return (f"Trained with the loss `{options.get('loss', 'fne')}` on "
            f"`{options.get('dataset')}`")


def score_sentences(scores: dict) -> str:
    """Return what is known of a model's scores, in sentences.

    Args:
        scores: as `known_scores` returns them.
    """
    sentences = []
    if "val_rsum" in scores:
        sentences.append(f"The best rsum on val was {scores['val_rsum']:.1f}.")
    if "rsum" in scores.get("test", {}):
        recalls = [f"{name} {value:.1f}" for name, value in scores["test"].items()
                   if name.endswith(("_r1", "_r5", "_r10", "rsum"))]
        sentences.append(f"On test: {', '.join(recalls)}.")
    return " ".join(sentences) or "Its recalls were not measured."


# -------------------------------------------------------------------------------------------- ONNX


class ImageTower(nn.Module):
    """The image encoder of a dual encoder as a module of its own."""

    def __init__(self, model: DualEncoder):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the embeddings (B, D) of pixels (B, 3, R, R)."""
        return self.model.encode_image(pixel_values)


class TextTower(nn.Module):
    """The text encoder of a dual encoder as a module of its own."""

    def __init__(self, model: DualEncoder):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the embeddings (B, D) of token ids (B, L) and their mask (B, L)."""
        return self.model.encode_text(input_ids, attention_mask)


def check_onnx() -> None:
    """Raise InputError where a library for --onnx is missing."""
    missing = [name for name in ONNX_LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--onnx needs {', '.join(missing)}: pip install -r {REQUIREMENTS}")


@torch.no_grad()
def write_onnx(model: DualEncoder, folder: Path) -> None:
    """Write `image.onnx` and `text.onnx` into `folder`, and compare them with PyTorch.

    The files take a batch of any size up to 4,096.

    Args:
        model: a dual encoder with its `preparation`, in evaluation mode, on the CPU.
        folder: where the files are written.

    Raises:
        InputError: an encoder cannot be written so, or its file computes something else.
    """
    size, length = model.preparation.image_res, model.preparation.max_tokens
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(3, 3, size, size, generator=random)
    tokens = torch.randint(1, 9, (3, length), generator=random)
    mask = torch.ones(3, length, dtype=torch.int64)
    mask[1, length // 2 :] = 0
    uses_4d_mask, model.uses_4d_mask = model.uses_4d_mask, False
    write_tower(ImageTower(model), {"pixel_values": pixels}, folder / "image.onnx")
    write_tower(TextTower(model), {"input_ids": tokens, "attention_mask": mask},
                folder / "text.onnx")
    model.uses_4d_mask = uses_4d_mask


def write_tower(tower: nn.Module, inputs: dict[str, Tensor], path: Path) -> None:
    """Write one encoder as an ONNX file, and compare it with PyTorch on `inputs`.

    Args:
        tower: returns embeddings (B, D).
        inputs: the encoder's inputs by name, (B, ...) each.
        path: the file, "image.onnx" or "text.onnx".

    Raises:
        InputError: the encoder cannot be written so, or its file computes something else.
    """
    import onnxruntime

    names = list(inputs)
    batch = torch.export.Dim("batch", min=1, max=ONNX_LARGEST_BATCH)
    try:
        torch.onnx.export(
            tower.eval(), tuple(inputs.values()), path, input_names=names,
            output_names=["embeddings"], dynamo=True, verbose=False,
            dynamic_shapes=tuple({0: batch} for _ in names))
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # each model fails with an error of its own kind
        reraise_out_of_memory(error)
        raise InputError(f"--onnx: the {path.stem} encoder cannot be written "
                         f"({one_line(error)[:200]}); leave the flag out") from error
    for rows in 3, 1:
        some = {name: value[:rows] for name, value in inputs.items()}
        wanted = tower(*some.values())
        [found] = session.run(None, {name: value.numpy() for name, value in some.items()})
        difference = (torch.from_numpy(found) - wanted).abs().max().item()
        if not difference <= ONNX_TOLERANCE:
            raise InputError(f"--onnx: {path.name} gives embeddings that are {difference:.1e} from "
                             "PyTorch's; leave the flag out")


# ----------------------------------------------------------------------------------------- command


def check_adapter_alone(arguments: ExportOptions) -> None:
    """Raise InputError where --adapter is given with a flag of a whole model."""
    if arguments.onnx or arguments.dtype != "float32" or arguments.average is not None:
        raise InputError("--adapter writes float32 adapters alone: leave out --onnx, --dtype and "
                         "--average")


def export(arguments: ExportOptions) -> str:
    """Write the folder, whole or not at all, and return a line that tells its size.

    Args:
        arguments: of the command line.

    Raises:
        InputError: the checkpoint cannot be read, the folder cannot be written, or a library is
            missing.
    """
    place = output_folder(arguments.out, arguments.checkpoint)
    check_values(arguments)
    if arguments.average_with is not None and arguments.average is None:
        raise InputError(f"--average_with {arguments.average_with}: give --average ALPHA with it")
    if arguments.adapter:
        check_adapter_alone(arguments)
    if arguments.onnx:
        check_onnx()
    model, options, _ = read_model(arguments.checkpoint, arguments.image_encoder,
                                   arguments.text_encoder, merge=not arguments.adapter)
    if arguments.adapter and model.saved_names is None:
        raise InputError(f"--adapter: {arguments.checkpoint} is of no run with --lora; leave the "
                         "flag out")
    if arguments.average is not None:
        average_weights(model, options, arguments.average, arguments.average_with)
    model.saved_dtype = DTYPES[arguments.dtype]
    model.preparation = model.preparation._replace(card=card(model, arguments.dtype))
    with replaced_folder(place, "OUT", may_stay=[CARD]) as folder:
        if arguments.adapter:
            write_adapters(model, folder, AdapterSettings(options.lora, options.lora_alpha,
                                                          options.lora_dropout))
        else:
            model.save_pretrained(folder)
        if arguments.onnx:
            write_onnx(model, folder)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    source = arguments.checkpoint
    source_size = source.stat().st_size if source.is_file() else size
    return f"{arguments.out}: {size / 1e6:,.1f} MB, of a checkpoint of {source_size / 1e6:,.1f} MB"


def main(argv: list[str] | None = None) -> None:
    """Run the command with the arguments `argv`, or with those of the process."""
    arguments = parse_export(__doc__, argv)
    with exit_on_input_error():
        require_one_process("export.py")
        check_paths(arguments)
        print_result(export(arguments))


if __name__ == "__main__":
    main()
