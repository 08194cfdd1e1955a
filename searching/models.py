"""Which model searched a folder last, and the fingerprint by which an index belongs to a model."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from common import files
from common.errors import InputError
from common.terminal import print_note, warn
from common.weights import add_to_digest
from encoders.stored import config_to_json
from inputs.fitting import PUBLISHED_FIT
from model import DualEncoder
from searching.index import cache_place

LAST_MODEL = "fne-search-model-1"  # the format of the file that remembers a folder's last model
LAST_MODEL_ENDING = ".model.json"
LARGEST_LAST_MODEL = 2**16  # bytes


class ModelName(NamedTuple):
    """What a command line says of a model: `model` is a path or a name on the Hub, the others are
    of the configurations of a checkpoint that has none."""

    model: str
    image_encoder: str | None
    text_encoder: str | None


def last_model(folder: Path) -> ModelName | None:
    """Return the model that searched a folder of photos last, or None where none is known."""
    place = cache_place(folder, LAST_MODEL_ENDING)
    if place is None or not place.is_file():
        return None
    try:
        content = files.read_json(place, LARGEST_LAST_MODEL)
        if not isinstance(content, dict) or content.pop("format", None) != LAST_MODEL:
            raise InputError(f"{place} has another format")
        if content.pop("photos", None) != os.path.realpath(folder):
            return None
        name = ModelName(**content)
        if not isinstance(name.model, str) or not all(
                value is None or isinstance(value, str) for value in name):
            raise InputError(f"{place} names no model")
        for value in filter(None, name):
            files.check_path(Path(value), f"{place}: model")
    except (InputError, TypeError) as error:
        warn(f"the model that searched --photos {folder} last is not known: {error}")
        return None
    print_note(f"model: {name.model}, which searched --photos {folder} last")
    return name


def remember_model(folder: Path, name: ModelName) -> None:
    """Keep which model searched a folder of photos, in the user's cache, for `last_model`.

    Nothing is kept where there is no cache that can be written.

    Args:
        folder: of the photos.
        name: as the command line has it; paths are kept as absolute ones.
    """
    place = cache_place(folder, LAST_MODEL_ENDING)
    if place is None:
        return
    names = {key: os.path.abspath(value) if value is not None and os.path.exists(value) else value
             for key, value in name._asdict().items()}
    content = {"format": LAST_MODEL, "photos": os.path.realpath(folder)} | names
    with contextlib.suppress(InputError, OSError):
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write(place, json.dumps(content).encode(), "the last model")


def fingerprint(model: DualEncoder) -> str:
    """Return a hash of everything that a photo's embedding depends on.

    That is the preparation of photos, the configuration, pooling and weights of the image encoder,
    its projection, and the precision. A checkpoint and its export have the same fingerprint.
    """
    preparation = model.preparation
    config = json.loads(config_to_json(model.image_encoder.config, "image"))
    config.pop("architectures", None)  # only a name, which an export adds
    settings = [preparation.image_res, list(preparation.mean), list(preparation.std),
                model.image_pooling, model.bf16, config]
    if preparation.photo_fit != PUBLISHED_FIT:  # so that earlier indices of others still serve
        settings.append(preparation.photo_fit)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for module in model.image_encoder, model.image_projection:
        add_to_digest(digest, sorted(module.state_dict().items()))
    return digest.hexdigest()
