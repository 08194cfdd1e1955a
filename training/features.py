"""Features of frozen encoders, kept in the run's folder: making them takes minutes.

A frozen encoder gives the same features of a photo or caption in every step, so that they are made
once. Each side of each split has a file. Its features are used again where all that they depend on
is unchanged: the encoder's weights, how photos and captions are read, the photos' names, sizes and
times, and the captions' tokens. Else they are computed anew.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from torch import Tensor

from common import files
from common.errors import InputError
from common.processes import broadcast_from_main
from common.ranks import is_main
from common.terminal import print_status, warn
from common.weights import weights_digest
from data import LoadedSplit, sees_captions_once, sees_photos_once
from encoders.stored import SIDES
from inputs.captions import Captions
from inputs.photos import Photo
from inputs.sources import photos_place
from training import storage
from training.run import Run

FORMAT = "fne-features-1"
KINDS = {"image": "photo", "text": "caption"}  # what a side encodes
# Options that a feature depends on. The device and the precision in use are parts of the key, and
# so are the tokens, on which other options act.
OPTIONS = {
    "image": ("batch_size_test", "exif", "image_encoder", "image_pooling", "image_res",
              "image_fit", "image_stats"),
    "text": ("text_encoder", "text_pooling")}


class Features(NamedTuple):
    """Features of the photos or the captions of one split."""

    path: Path  # of the file in the run's folder
    key: dict | None  # what they depend on; None in all processes but the first
    values: Tensor  # (N_i, W) or (N_t, W) float32, on the CPU
    is_kept: bool  # whether the file holds them already


def file_name(split: str, side: str) -> str:
    """Return the name of the file of a split's features: "train_photo_features.pt"."""
    return f"{split}_{KINDS[side]}_features.pt"


def prepare(
    run: Run, splits: dict[str, LoadedSplit], encode_photos: Callable[..., Tensor],
    encode_captions: Callable[..., Tensor],
) -> tuple[dict[str, LoadedSplit], list[Features]]:
    """Give a run, in place, and the splits that it scores the features of its frozen encoders.

    They are taken from the run's folder, or from that of the run that it goes on from; else they
    are computed. Training photos that are augmented have none.

    Args:
        run: `run.image_features` becomes (N_i, W), and `run.text_features` (N_t, W), of the
            training split.
        splits: the splits by name, of which "train" is the training split.
        encode_photos: `evaluation.encode_photos`.
        encode_captions: `evaluation.encode_captions`.

    Returns:
        The splits, of which those that are scored hold their features; and all features, for
        `save`.
    """
    def encode(side: str, loaded: LoadedSplit) -> Tensor:
        if side == "image":
            return encode_photos(run.model, loaded.photos, run.options, project=False)
        return encode_captions(run.model, loaded.captions, project=False)

    found, made = dict(splits), []
    for side in SIDES:
        if not run.model.freezes(side):
            continue
        encoder = getattr(run.model, f"{side}_encoder")
        weights = weights_digest(encoder.state_dict()) if is_main() else None
        for name, loaded in splits.items():
            if name == "train" and not sees_once(run.options, side):
                print_status("training photos are augmented, so the frozen image encoder encodes "
                             "them in each step: --augment none has it encode them once")
                continue
            features = features_of(run, name, side, loaded, weights, encode)
            made.append(features)
            if name == "train":
                setattr(run, f"{side}_features", features.values.to(run.device))
            else:
                found[name] = found[name]._replace(**{f"{side}_features": features.values})
    return found, made


def sees_once(options, side: str) -> bool:
    """Return whether the training needs the features of a side's photos or captions only once."""
    return sees_photos_once(options) if side == "image" else sees_captions_once(options)


def features_of(
    run: Run, split: str, side: str, loaded: LoadedSplit, weights: str | None,
    encode: Callable[[str, LoadedSplit], Tensor],
) -> Features:
    """Read the features of one side of a split, or compute them.

    Args:
        run: the run.
        split: the name of the split.
        side: "image" or "text".
        loaded: the split.
        weights: of `weights_digest`; None in all processes but the first.
        encode: computes the features of a side of a split.
    """
    options = run.options
    path = options.logger_name / file_name(split, side)
    count = len(loaded.photos if side == "image" else loaded.captions)
    what = f"{KINDS[side]}s of {split}"
    key = values = None
    is_kept = False
    if is_main():
        key = features_key(run, split, side, loaded, weights)
        values = read_features(path, key, count, what)
        is_kept = values is not None
        if values is None and options.resume and options.resume.parent != path.parent:
            values = read_features(options.resume.parent / path.name, key, count, what)
    values = broadcast_from_main(values)
    if values is None:
        start = time.monotonic()
        values = encode(side, loaded)
        print_status(f"features of {count:,} {what} made in {time.monotonic() - start:.1f} s")
    return Features(path, key, values, is_kept)


def features_key(run: Run, split: str, side: str, loaded: LoadedSplit, weights: str) -> dict:
    """Collect what the features of one side of a split depend on, as plain values.

    Args:
        run: the run.
        split: the name of the split.
        side: "image" or "text".
        loaded: the split.
        weights: of `weights_digest`.
    """
    key = {
        "encoder": weights, "device": run.device.type, "bf16": run.model.bf16,
        "options": {name: getattr(run.options, name) for name in OPTIONS[side]},
        "versions": [str(torch.__version__), str(transformers.__version__)],
    }
    if side == "text":
        return key | {"captions": captions_digest(loaded.captions)}
    return key | {"photos": photos_digest(loaded.photos, photos_place(run.options, split)),
                  "pixels": run.pixel_statistics.tolist(), "fit": list(run.photo_fit)}


def photos_digest(photos: Sequence[Photo], root: Path) -> str:
    """Compute a digest of the photos' names under `root`, sizes, and times of the last change.

    For photos in tar shards these are the places, and the sizes and times of the shards. No photo
    is read, since reading is most of what the features cost.
    """
    digest = hashlib.blake2b(digest_size=16)
    for photo in photos:
        if not isinstance(photo, Path):
            digest.update(f"{photo.state()}\n".encode())
            continue
        state, name = photo.stat(), photo.relative_to(root).as_posix()
        digest.update(f"{name!r} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def captions_digest(captions: Captions) -> str:
    """Compute a digest of the captions' tokens and of how they are padded."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{captions.ids.dtype} {captions.pad_id} {captions.batch_length}\n".encode())
    digest.update(captions.ids)
    digest.update(captions.lengths)
    return digest.hexdigest()


def read_features(
    path: Path, key: dict, count: int, what: str, dtype: torch.dtype = torch.float32
) -> Tensor | None:
    """Read the features (count, W) that a file holds for `key`; None if it holds none.

    Args:
        path: the file, which may not be there.
        key: of `features_key`.
        count: photos or captions.
        what: the photos or captions in words, for the line that is printed.
        dtype: of the features.
    """
    if not path.is_file():
        return None
    try:
        state = storage.load(path)
    except InputError:
        print_status(f"{path} is damaged, and not used")
        return None
    if not fits(state, key, count, dtype):
        print_status(f"{path} is of other {what} or another encoder, and not used")
        return None
    print_status(f"features of {count:,} {what} as kept in {path}")
    return state["features"].clone()  # no longer mapped from a file that may change


def fits(state: object, key: dict, count: int, dtype: torch.dtype) -> bool:
    """Tell whether the content of a file is what `save` wrote for this key."""
    features = state.get("features") if isinstance(state, dict) else None
    return (isinstance(features, Tensor) and state.get("key") == key and features.ndim == 2
            and len(features) == count and features.dtype == dtype
            and bool(features.isfinite().all()))


def save(made: list[Features]) -> None:
    """Write the features that `prepare` made to the run's folder, in the first process.

    A full disk, or somebody else's file there, gives a warning and no error, since the features can
    be computed again.
    """
    for features in made:
        if features.key is None or features.is_kept:
            continue
        state = {"format": FORMAT, "key": features.key, "features": features.values}
        try:
            storage.check_own(features.path, FORMAT)
            files.write(features.path, lambda file, state=state: torch.save(state, file),
                        "features")
        except InputError as error:
            warn(str(error))
