"""Embeddings of a split, and the file that keeps them.

An embeddings file is an npz of `image_embeds` (N_i, D), `text_embeds` (N_t, D), `image_of_text`
(N_t,), `images` (N_i,) and `captions` (N_t,), names and texts. Anybody's model can be measured from
one. Optional are `statistics` (2, 3) and `prior` (), count, mean and m2 of the two Gaussians of
FNE, and `facts` (), a json text of the run behind it: see `metrics/facts.py`.
"""

import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import files
from common.errors import InputError, one_line, reraise_out_of_memory
from data import Split
from fne_loss import RunningGaussian
from metrics.facts import facts_array, read_facts

SMALL, UNPACKS_TO = 2**31, 20  # bytes, and times a file's size, that an npz may unpack to


@dataclass
class Embeddings:
    """What an embeddings file holds; see the top of this module. `split` names photos and texts."""

    image_embeds: Tensor  # (N_i, D)
    text_embeds: Tensor  # (N_t, D)
    split: Split
    statistics: np.ndarray | None = None  # (2, 3)
    prior: float | None = None
    facts: dict[str, object] = field(default_factory=dict)  # of `metrics.facts.KINDS`


def fitted_gaussians(embeddings: Embeddings) -> list[RunningGaussian]:
    """The positive and the negative Gaussian of FNE beside the embeddings; an empty list where
    there are none, or no prior, or where they rest on fewer than two values."""
    if embeddings.statistics is None or embeddings.prior is None:
        return []
    return gaussians_of(embeddings.statistics)


def gaussians_of(statistics: np.ndarray) -> list[RunningGaussian]:
    """The positive and the negative Gaussian of (2, 3) count, mean and m2; an empty list where
    they rest on fewer than two values."""
    if not (statistics[:, 0] > 1).all():
        return []
    gaussians = []
    for count, mean, m2 in statistics:
        gaussian = RunningGaussian()
        gaussian.count.fill_(int(count))
        gaussian.mean.fill_(mean)
        gaussian.m2.fill_(m2)
        gaussians.append(gaussian)
    return gaussians


def check_declared_size(path: Path) -> None:
    """Raise OSError where an npz would unpack to far more than embeddings can: before it does."""
    if not path.is_file():
        raise OSError("no file")
    with zipfile.ZipFile(path) as file:
        declared = sum(part.file_size for part in file.infolist())
    if declared > max(SMALL, UNPACKS_TO * path.stat().st_size):
        raise OSError("it would unpack to far more than it is")


def check_statistics(
    statistics: np.ndarray | None, prior: float | np.ndarray | None, told: str
) -> None:
    """Raise InputError, which begins with `told`, unless both are there or neither, and are what
    FNE could have fitted."""
    if statistics is None and prior is None:
        return
    if statistics is None or prior is None or not 0 < prior < 1 or statistics.shape != (2, 3) or (
            not np.isfinite(statistics).all()) or (statistics[:, [0, 2]] < 0).any() or (
            statistics[:, 0] % 1).any() or statistics[:, 0].max() > 2**53:
        raise InputError(f"{told}: prior must lie between 0 and 1, and statistics be "
                         "(2, 3): counts, means and sums of squares; both or neither")


def save_embeddings(embeddings: Embeddings, path: Path) -> None:
    """Write an embeddings file, whole or not at all; InputError where that cannot be done."""
    split = embeddings.split
    optional = {} if embeddings.statistics is None else {
        "statistics": embeddings.statistics, "prior": embeddings.prior}
    if embeddings.facts:
        optional["facts"] = facts_array(embeddings.facts)
    arrays = {"image_embeds": embeddings.image_embeds.numpy(),
              "text_embeds": embeddings.text_embeds.numpy(), "images": np.array(split.images),
              "captions": np.array(split.captions), "image_of_text": split.image_of_text}
    files.write(path, lambda file: np.savez(file, **arrays, **optional), "--save_embeddings")


def is_embeddings_file(path: Path) -> bool:
    """Whether there is an npz file of embeddings."""
    try:
        with zipfile.ZipFile(path) as file:
            return "image_embeds.npy" in file.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def read_embeddings(path: Path) -> Embeddings:
    """Read an embeddings file.

    Raises:
        InputError: it cannot be read, lacks an array, or the counts do not agree.
    """
    try:
        check_declared_size(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("a part that is no array")  # such is handed over as bytes
        required = ("image_embeds", "text_embeds", "image_of_text", "images", "captions")
        images, texts, image_of_text, names, captions = (arrays[name] for name in required)
    except KeyError as error:
        raise InputError(f"--embeddings {path} lacks an array: {one_line(error)}") from error
    except Exception as error:  # of a dozen kinds, as bytes come
        reraise_out_of_memory(error)
        raise InputError(f"--embeddings {path} is no npz file of plain arrays, or is cut short or "
                         f"damaged ({type(error).__name__})") from error
    for name, dimensions, kinds in (
            ("image_embeds", 2, "f"), ("text_embeds", 2, "f"), ("image_of_text", 1, "iu"),
            ("images", 1, "U"), ("captions", 1, "U"), ("statistics", 2, "f"), ("prior", 0, "f"),
            ("facts", 0, "U")):
        array = arrays.get(name)
        if array is not None and (array.ndim != dimensions or array.dtype.kind not in kinds):
            raise InputError(f"--embeddings {path}: {name} is {array.dtype} of shape {array.shape}")
    if not len(images) == len(names) or not len(texts) == len(image_of_text) == len(captions):
        raise InputError(
            f"--embeddings {path}: {len(images)} image_embeds for {len(names)} images, "
            f"{len(texts)} text_embeds for {len(captions)} captions and {len(image_of_text)} "
            "image_of_text do not agree")
    if images.shape[1] == 0 or images.shape[1] != texts.shape[1]:
        raise InputError(f"--embeddings {path}: image_embeds {images.shape} and text_embeds "
                         f"{texts.shape} need one width above 0")
    if not files.is_unicode("".join(captions.tolist())):
        raise InputError(f"--embeddings {path}: captions holds a text that is no Unicode")
    split = Split(Path(path), names.tolist(), captions.tolist(), image_of_text.astype(np.int64))
    prior, statistics = arrays.get("prior"), arrays.get("statistics")
    check_statistics(statistics, prior, f"--embeddings {path}")
    images, texts = (torch.from_numpy(array.astype(f"f{min(max(array.itemsize, 4), 8)}"))
                     for array in (images, texts))
    return Embeddings(images, texts, split, statistics, None if prior is None else float(prior),
                      read_facts(arrays.get("facts"), f"--embeddings {path}"))
