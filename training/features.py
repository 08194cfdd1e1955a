"""Features of a frozen image encoder, kept in the run's folder: making them takes minutes.

Features are read from the folder where everything that they depend on is unchanged: the encoder's
weights, how photos are read, and the photos' names, sizes and times. Else they are computed anew.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from torch import Tensor

from common import files
from common.errors import InputError
from common.options import ModelOptions
from common.processes import broadcast_from_main
from common.ranks import is_main
from common.terminal import print_status, warn
from common.weights import weights_digest
from data import sees_photos_once
from inputs.photos import Photo
from model import DualEncoder
from training import storage
from training.options import TrainOptions
from training.run import Run

FEATURES = "photo_features.pt"
# Options that a feature depends on. The device and the precision in use are parts of the key.
OPTIONS = {"exif", "image_res", "image_stats", "batch_size_test", *ModelOptions.__annotations__} - {
    "device", "precision"}


def prepare(
    run: Run, encode: Callable[[DualEncoder, Sequence[Photo], TrainOptions, bool], Tensor]
) -> dict | None:
    """Give a run its frozen image encoder's features of all training photos, in place.

    They are taken from the run's folder, or from that of the run that it goes on from; else they
    are computed. Nothing is done where photos are augmented or the image encoder is trained.

    Args:
        run: `run.image_features` becomes (N_i, W).
        encode: encodes photos with a model; its last argument says whether to project.

    Returns:
        What the features depend on, if they should be kept in the run's folder; else None.
    """
    options, count = run.options, len(run.photos)
    if not sees_photos_once(options):
        return None
    key = in_own_folder = found = None
    if is_main():
        key = features_key(run)
        in_own_folder = found = read_features(options.logger_name, key, count)
        if found is None and options.resume and options.resume.parent != options.logger_name:
            found = read_features(options.resume.parent, key, count)
    found = broadcast_from_main(found)
    if found is None:
        found = encode(run.model, run.photos, options, False)
    run.image_features = found.to(run.device)
    return key if in_own_folder is None else None


def features_key(run: Run) -> dict:
    """Collect what the features of the training photos depend on, as plain values."""
    return {
        "encoder": weights_digest(run.model.image_encoder.state_dict()),
        "photos": photos_digest(run.photos, run.options.data_path),
        "pixels": run.pixel_statistics.tolist(),
        "options": {name: getattr(run.options, name) for name in sorted(OPTIONS)},
        "device": run.device.type, "bf16": run.model.bf16,
        "versions": [str(torch.__version__), str(transformers.__version__)],
    }


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


def read_features(folder: Path, key: dict, photos: int) -> Tensor | None:
    """Read the features (N_i, W) that `folder` holds for `key`; None if it holds none."""
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
    """Tell whether the content of a file is what `save` wrote for this key."""
    features = state.get("features") if isinstance(state, dict) else None
    return (isinstance(features, Tensor) and state.get("key") == key and features.ndim == 2
            and len(features) == photos and features.dtype == torch.float32
            and bool(features.isfinite().all()))


def save(run: Run, key: dict | None) -> None:
    """Write a run's image features to its folder, if `prepare` returned a key for them.

    A full disk gives a warning and no error, since the features can be computed again.
    """
    if key is None:
        return
    folder, state = run.options.logger_name, {"key": key, "features": run.image_features.cpu()}
    try:
        files.write(folder / FEATURES, lambda file: torch.save(state, file), "photo features")
    except InputError as error:
        warn(str(error))
