"""Write a folder that holds a checkpoint's model alone, to use elsewhere
(docs/export.md):

    python export.py runs/flickr_FNE/model_best.pth.tar models/flickr_FNE
    python export.py model_best.pth.tar models/released --dtype bfloat16

`model.DualEncoder.from_pretrained` and `sentence_transformers` load it, and
evaluation.py and train.py take it as a checkpoint.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
from pathlib import Path

from common.errors import exit_on_import_error, reraise_out_of_memory
from common.flags import build_export_parser

if __name__ == "__main__":
    exit_on_import_error()
    build_export_parser(__doc__).parse_args()  # --help need not wait for the imports below

import torch
from torch import Tensor, nn

import checkpoint
from common.errors import InputError, exit_on_input_error, one_line
from common.files import check_path, read_json
from common.options import FROM_CHECKPOINT, ScoringOptions, check, parse_scoring
from common.processes import require_one_process
from common.terminal import print_result
from encoders.folder import DTYPES, has_only_export_files, is_export
from encoders.preparation import Preparation
from encoders.processors import image_statistics, tokenizer_of
from encoders.sentence import layout
from model import DualEncoder
from training.storage import BEST, RESULTS

ONNX_TOLERANCE = 1e-4  # largest difference of an embedding's numbers from PyTorch's
EXTRAS = "requirements-export.txt"


def output_folder(out: Path, source: Path) -> Path:
    """Where the export will lie.

    Raises:
        InputError: something else is there, or it is where the checkpoint lies.
    """
    place = Path(os.path.realpath(out))
    if place == Path(os.path.realpath(source)):
        raise InputError(f"{out} is what is exported: name another folder")
    if os.path.lexists(place) and not (place.is_dir() and (
            not any(place.iterdir()) or is_export(place) and has_only_export_files(place))):
        raise InputError(f"{out} cannot be written: what is there already is no empty folder and "
                         "no earlier export; name another one")
    return place


def read_model(
    path: Path, image_encoder: str | None = None, text_encoder: str | None = None
) -> tuple[DualEncoder, ScoringOptions, dict]:
    """The model of a checkpoint or of a folder, in evaluation mode with its `preparation`; its
    options, and what was read.

    Args:
        image_encoder, text_encoder: folder or Hub name of the configurations, for a checkpoint
            that has none.
    """
    state = checkpoint.read(path, way_out="name one of train.py's, a released one, or a folder "
                            "that export.py wrote")
    words = [word for side, name in (("image", image_encoder), ("text", text_encoder)) if name
             for word in (f"--{side}_encoder", name)]
    options, given = parse_scoring("", [str(path), "--device", "cpu", *words])
    checkpoint.merge_options(options, given, state, path)
    options.data_path = options.data_path or Path(".")  # nothing is read there
    check(options)
    tokenizer = tokenizer_of(options)
    model = checkpoint.model_for_testing(options, state, path, tokenizer)
    mean, std = image_statistics(options)
    model.preparation = Preparation(
        tokenizer, options.image_res, mean, std, options.max_words, options.max_tokens,
        options.caption_prefix, options.text_pooling == "padded", facts(options, state, path))
    return model, options, state


def facts(options: ScoringOptions, state: dict, path: Path) -> dict:
    """What the folder tells of its training: options, recalls, FNE's statistics."""
    if "folder" in state:
        return state["folder"]["about"]
    told = {name: getattr(options, name) for name in sorted(FROM_CHECKPOINT) if name in options}
    for name in "image_encoder", "text_encoder", "vocab":
        told[name] = without_folders(told[name])
    told = {name: value for name, value in told.items() if not isinstance(value, Path)}
    if checkpoint.is_released(state):  # of their training it tells only these
        told = {name: told[name] for name in (*checkpoint.released_options(state), "dataset",
                                              "image_encoder", "text_encoder")}
    statistics = checkpoint.fitted_statistics(state)
    return {"options": told, "recalls": recalls(state, path),
            "statistics": None if statistics is None else statistics.tolist()}


def without_folders(name: str) -> str:
    """The name of an encoder; of a folder on this machine, its last part."""
    return Path(name).name if Path(name).is_absolute() or name.count("/") > 1 else name


def recalls(state: dict, path: Path) -> dict:
    """What is known of a checkpoint's scores: its run's test, and its best validation."""
    found = {}
    if isinstance(state.get("best_rsum"), float) and state["best_rsum"] >= 0:
        found["val_rsum"] = state["best_rsum"]
    with contextlib.suppress(InputError, AttributeError):  # none there, or something else
        if path.name == BEST:
            results = read_json(path.parent / RESULTS)
            found["test"] = {name: value for name, value in results.items()
                             if isinstance(value, int | float)}
    return found


# ---------------------------------------------------------------------------------------- the card

CARD = """---
library_name: {library}
pipeline_tag: sentence-similarity
tags: [image-text-retrieval, dual-encoder, false-negative-elimination]
---

# A dual encoder for photos and captions

Trained {how} on `{dataset}`: a photo and a caption become unit vectors of {dim} numbers, whose
inner product is their cosine.

| | image | text |
|---|---|---|
| encoder | {image_encoder} | {text_encoder} |
| pooling | {image_pooling} | {text_pooling} |
| projection | {projection} | {projection} |
| input | {image_res} x {image_res} pixels, bicubic | {max_words} words, then {max_tokens} tokens |

Weights: {dtype}, {parameters:.1f} million. {recalls}

## How to load it

```python
from pathlib import Path

from model import DualEncoder

model = DualEncoder.from_pretrained("FOLDER")
captions = model.preparation.captions(["Two friends walk by the sea."])
text = model.encode_text(*captions.padded([captions[0]]))  # (1, {dim})
image = model.encode_image(model.preparation.pixels([Path("photo.jpg")]))  # (1, {dim})
print(text @ image.T)
```

{sentence}
## What is not in the files

Captions are cut to {max_words} words before they are cut to {max_tokens} tokens. `preparation`
does both; a tokenizer has no place for the first, so with `sentence_transformers` the words after
the {max_words}th count where the tokens leave room. So does the spelling of a special token, such
as [SEP], in a caption, and a capital sigma at the end of a word.

## Options of the training

```json
{options}
```

## Licence

To be named by whoever passes this folder on: photos, captions and the encoders' pretrained weights
are their owners'.
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
    """README.md of the folder."""
    prepared, about = model.preparation, model.preparation.about
    _, reason = layout(model, prepared)
    projection = model.embed_size if model.image_projection.state_dict() else "none"
    scores = about.get("recalls") or {}
    lines = [f"The best rsum on val was {scores['val_rsum']:.1f}."] if "val_rsum" in scores else []
    if "rsum" in scores.get("test", {}):
        lines.append("On test: " + ", ".join(
            f"{name} {value:.1f}" for name, value in scores["test"].items()
            if name.endswith(("_r1", "_r5", "_r10", "rsum"))) + ".")
    options = about["options"]
    return CARD.format(
        library="sentence-transformers" if not reason else "pytorch", dim=model.embed_size,
        how=f"with the loss `{options.get('loss', 'fne')}`", dataset=options.get("dataset"),
        image_encoder=options.get("image_encoder"), text_encoder=options.get("text_encoder"),
        image_pooling=model.image_pooling, text_pooling=model.text_pooling, projection=projection,
        image_res=prepared.image_res, max_words=prepared.max_words, max_tokens=prepared.max_tokens,
        dtype=dtype, parameters=sum(weight.numel() for weight in model.parameters()) / 1e6,
        recalls=" ".join(lines) or "Its recalls were not measured.",
        sentence=SENTENCE if not reason else f"`sentence_transformers` cannot load it: {reason}.\n",
        options=json.dumps(options, indent=2, sort_keys=True, default=str))


# -------------------------------------------------------------------------------------------- ONNX


class Side(nn.Module):
    """One side of a model as a function of plain tensors."""

    def __init__(self, model: DualEncoder, side: str):
        super().__init__()
        self.model, self.side = model, side

    def forward(self, *inputs: Tensor) -> Tensor:
        """Embeddings (B, D) of pixels (B, 3, R, R), or of token ids and mask (B, L)."""
        return (self.model.encode_image if self.side == "image" else self.model.encode_text)(
            *inputs)


def check_onnx() -> None:
    """Raise InputError where a library for --onnx is missing."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime")
               if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--onnx needs {', '.join(missing)}: pip install -r {EXTRAS}")


@torch.no_grad()
def write_onnx(model: DualEncoder, folder: Path) -> None:
    """Write `image.onnx` and `text.onnx`, with a batch of any size, and compare them with PyTorch.

    Raises:
        InputError: an encoder cannot be written so, or its file computes something else.
    """
    import onnxruntime

    res, length = model.preparation.image_res, model.preparation.max_tokens
    random = torch.Generator().manual_seed(0)
    mask = torch.ones(3, length, dtype=torch.int64)
    mask[1, length // 2 :] = 0
    inputs = {"image": {"pixel_values": torch.randn(3, 3, res, res, generator=random)},
              "text": {"input_ids": torch.randint(1, 9, (3, length), generator=random),
                       "attention_mask": mask}}
    batch = torch.export.Dim("batch", min=1, max=4096)
    uses_4d_mask, model.uses_4d_mask = model.uses_4d_mask, False
    for side, values in inputs.items():
        names, path = list(values), folder / f"{side}.onnx"
        try:
            torch.onnx.export(
                Side(model, side).eval(), tuple(values.values()), path, input_names=names,
                output_names=["embeddings"], dynamo=True, verbose=False,
                dynamic_shapes=(tuple({0: batch} for _ in names),))
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # of any kind, as models come
            reraise_out_of_memory(error)
            raise InputError(f"--onnx: the {side} encoder cannot be written "
                             f"({one_line(error)[:200]}); leave the flag out") from error
        for rows in 3, 1:
            part = [value[:rows] for value in values.values()]
            wanted = Side(model, side)(*part)
            [got] = session.run(None, {name: value.numpy() for name, value in zip(names, part)})
            gap = (torch.from_numpy(got) - wanted).abs().max().item()
            if not gap <= ONNX_TOLERANCE:
                raise InputError(f"--onnx: {path.name} gives embeddings that are {gap:.1e} from "
                                 "PyTorch's; leave the flag out")
    model.uses_4d_mask = uses_4d_mask


# ----------------------------------------------------------------------------------------- command


def export(arguments: argparse.Namespace) -> str:
    """Write the folder, whole or not at all; a line that tells its size.

    Raises:
        InputError: the checkpoint or the folder is none, or a library is missing.
    """
    place = output_folder(arguments.out, arguments.checkpoint)
    if arguments.onnx:
        check_onnx()
    model, _, _ = read_model(arguments.checkpoint, arguments.image_encoder,
                             arguments.text_encoder)
    model.saved_dtype = DTYPES[arguments.dtype]
    model.preparation = model.preparation._replace(card=card(model, arguments.dtype))
    part = place.with_name(f"{place.name[:200]}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        model.save_pretrained(part)
        if arguments.onnx:
            write_onnx(model, part)
        if place.exists():
            shutil.rmtree(place)
        part.rename(place)
    except OSError as error:
        raise InputError(f"{arguments.out} cannot be written ({one_line(error)}): free some space "
                         "or name another place") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    before = arguments.checkpoint
    before = before.stat().st_size if before.is_file() else size
    return f"{arguments.out}: {size / 1e6:,.1f} MB, of a checkpoint of {before / 1e6:,.1f} MB"


def main(argv: list[str] | None = None) -> None:
    arguments = build_export_parser(__doc__).parse_args(argv)
    with exit_on_input_error():
        require_one_process("export.py")
        for name in "checkpoint", "out":
            check_path(getattr(arguments, name), name)
        print_result(export(arguments))


if __name__ == "__main__":
    main()
