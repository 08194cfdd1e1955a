"""Where a model is found, and the fingerprint that says which model an index belongs to."""

import hashlib
import json
from pathlib import Path

from huggingface_hub import snapshot_download

from common.errors import InputError
from common.weights import add_to_digest
from encoders.folder import PATTERNS
from encoders.hub import fetch_error_message, is_hub_name, quiet_transformers, use_cache_only
from encoders.stored import config_to_json
from inputs.fitting import PUBLISHED_FIT
from model import DualEncoder


def model_place(name: Path) -> Path:
    """Return the path of a model: a checkpoint's file, or a folder that `export.py` wrote.

    Args:
        name: a file or folder, or else the name of a model on the Hugging Face Hub, which is
            downloaded.

    Raises:
        InputError: there is neither.
    """
    if name.exists() or not is_hub_name(str(name)):
        return name
    quiet_transformers()
    try:
        return Path(snapshot_download(str(name), allow_patterns=PATTERNS,
                                      local_files_only=use_cache_only(str(name))))
    except Exception as error:  # the Hub's client raises errors of a dozen kinds
        raise InputError(f"{name} is no file or folder, and none can be had from the Hub by that "
                         f"name ({fetch_error_message(str(name), error)[:200]})") from error


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
