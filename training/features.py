"""Features of a frozen image encoder, kept in the run's folder: making them takes minutes.

They are used again where everything that they depend on is as it was: the encoder's weights, how
photos are read, and the photos' names, sizes and times. Else they are made anew.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

from common import files
from common.errors import InputError
from common.options import ModelOptions
from common.terminal import print_status, warn
from common.weights import add_to_digest
from inputs.photos import Photo
from inputs.shards import TarPhoto
from training import storage
from training.run import Run

FEATURES = "photo_features.pt"
# What the way to a feature depends on, beside the device and the precision that is in use.
OPTIONS = {"image_res", "image_stats", "batch_size_test", *ModelOptions.__annotations__} - {
    "device", "precision"}


def features_key(run: Run) -> dict:
    """What the features of the training photos depend on, as plain values."""
    return {
        "encoder": weights_digest(run.model.image_encoder),
        "photos": photos_digest(run.photos, run.options.data_path),
        "pixels": run.pixel_statistics.tolist(),
        "options": {name: getattr(run.options, name) for name in sorted(OPTIONS)},
        "device": run.device.type, "bf16": run.model.bf16,
        "versions": [str(torch.__version__), str(transformers.__version__)],
    }


def weights_digest(module: nn.Module) -> str:
    """A digest of all weights and buffers, with their names and types."""
    digest = hashlib.blake2b(digest_size=16)
    add_to_digest(digest, module.state_dict().items())
    return digest.hexdigest()


def photos_digest(photos: Sequence[Photo], root: Path) -> str:
    """A digest of the photos' names under `root`, their sizes and the times of their last change;
    of those in shards, of their places and their shards' sizes and times.

    None is read, for that is most of what the features cost.
    """
    digest = hashlib.blake2b(digest_size=16)
    for photo in photos:
        if isinstance(photo, TarPhoto):
            digest.update(f"{photo.name!r} {photo.offset} {photo.size} {photo.shard.size} "
                          f"{photo.shard.changed}\n".encode())
            continue
        state, name = photo.stat(), photo.relative_to(root).as_posix()
        digest.update(f"{name!r} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def kept_features(folder: Path, key: dict, photos: int) -> Tensor | None:
    """The features (N_i, width) that `folder` has kept for `key`, or None."""
    path = folder / FEATURES
    if not path.is_file():
        return None
    try:
        state = storage.load(path)
    except InputError:
        print_status(f"{path} is damaged, and not used")
        return None
    if not fits(state, key, photos):
        print_status(f"{path} is of other photos or another encoder, and not used")
        return None
    print_status(f"features of {photos:,} photos as kept in {path}")
    return state["features"].clone()  # no longer mapped from a file that may change


def fits(state: object, key: dict, photos: int) -> bool:
    """Whether a file's content is what `keep_features` wrote for this key."""
    features = state.get("features") if isinstance(state, dict) else None
    return (isinstance(features, Tensor) and state.get("key") == key and features.ndim == 2
            and len(features) == photos and features.dtype == torch.float32
            and bool(features.isfinite().all()))


def keep_features(folder: Path, key: dict, features: Tensor) -> None:
    """Write features (N_i, width) to the run's folder. A full disk is only told of: they can be
    made anew."""
    state = {"key": key, "features": features.cpu()}
    try:
        files.write(folder / FEATURES, lambda file: torch.save(state, file), "photo features")
    except InputError as error:
        warn(str(error))
