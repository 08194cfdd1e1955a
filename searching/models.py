"""Where a model comes from, and the fingerprint by which an index knows it."""

import hashlib
import json
from pathlib import Path

from huggingface_hub import snapshot_download

from common.errors import InputError
from common.weights import add_to_digest
from encoders.folder import PATTERNS
from encoders.hub import fetch_error_message, is_hub_name, quiet_transformers, use_cache_only
from encoders.stored import config_to_json
from model import DualEncoder


def model_place(name: Path) -> Path:
    """A checkpoint's file or a model's folder: what `name` is, or what the Hub has by that name.

    Raises:
        InputError: there is neither.
    """
    if name.exists() or not is_hub_name(str(name)):
        return name
    quiet_transformers()
    try:
        return Path(snapshot_download(str(name), allow_patterns=PATTERNS,
                                      local_files_only=use_cache_only(str(name))))
    except Exception as error:  # of a dozen kinds
        raise InputError(f"{name} is no file or folder, and none can be had from the Hub by that "
                         f"name ({fetch_error_message(str(name), error)[:200]})") from error


def fingerprint(model: DualEncoder) -> str:
    """A hash of all that a photo's embedding follows from: preparation, configuration and weights
    of the image side, pooling and precision. A checkpoint and its export have the same."""
    prepared = model.preparation
    config = json.loads(config_to_json(model.image_encoder.config, "image"))
    config.pop("architectures", None)  # a name, which an export adds
    told = [prepared.image_res, list(prepared.mean), list(prepared.std), model.image_pooling,
            model.bf16, config]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for part in model.image_encoder, model.image_projection:
        add_to_digest(digest, sorted(part.state_dict().items()))
    return digest.hexdigest()
