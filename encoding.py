"""Embeddings of a split: made with a model, kept in a file, read from one.

An embeddings file is an npz of `image_embeds` (N_i, D), `text_embeds` (N_t, D), `image_of_text`
(N_t,), `images` (N_i,) and `captions` (N_t,), names and texts. Anybody's model can be measured from
one. `statistics` (2, 3) and `prior` (), count, mean and m2 of the two Gaussians of FNE, are
optional.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from batches import make_loader
from data import Captions, Split, pad_captions, read_split
from encoders import image_statistics
from errors import InputError, one_line
from model import DualEncoder
from photos import PhotoDataset, find_photos, normalize
from terminal import progress


class EvalSet(NamedTuple):
    """A split that is ready to be encoded."""

    split: Split
    photos: list[Path]
    captions: Captions


def load_eval_set(options, split: str, tokenizer) -> EvalSet:
    """Read, check and tokenise a split as the options say; COCO keeps five captions a photo."""
    limit = 5 if options.dataset == "mscoco" and not options.all_captions else None
    content = read_split(options.dataset, split, options.data_path, options.json_path, limit)
    photos = find_photos(content.images, content.source, options.data_path,
                         options.follow_links)
    captions = Captions(content.captions, tokenizer, options.max_words, options.max_tokens)
    return EvalSet(content, photos, captions)


@torch.no_grad()
def encode_photos(
    model: DualEncoder, photos: list[Path], options, project: bool = True
) -> Tensor:
    """Embeddings (N_i, D) of photo files, or with `project` false features (N_i, width); on CPU."""
    device = next(model.parameters()).device
    encode = model.encode_image if project else model.image_features
    mean, std = image_statistics(options)
    loader = make_loader(PhotoDataset(photos, options.image_res), options.workers,
                         device.type == "cuda", batch_size=options.batch_size_test)
    return torch.cat([
        encode(normalize(pixels.to(device, non_blocking=True), mean, std))
        for pixels in progress(loader, "encoding photos")
    ]).cpu()  # once, since it waits for the device


@torch.no_grad()
def encode_captions(model: DualEncoder, captions: Captions, options, pad_id: int) -> Tensor:
    """Embeddings (N_t, D), on the CPU."""
    device = next(model.parameters()).device
    length = options.max_tokens if options.text_pooling == "padded" else None
    # Captions of like length go together, so that little of a batch is padding.
    order = np.argsort(captions.lengths, kind="stable")
    texts = []
    for start in range(0, len(order), 256):
        rows = [captions[index] for index in order[start : start + 256]]
        input_ids, mask = pad_captions(rows, pad_id, length)
        texts.append(model.encode_text(input_ids.to(device), mask.to(device)))
    return torch.cat(texts).cpu()[torch.from_numpy(np.argsort(order))]


def encode_split(
    model: DualEncoder, eval_set: EvalSet, options, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Image embeddings (N_i, D) and text embeddings (N_t, D), float32 on the CPU.

    The model is put into evaluation mode for this, and back into the mode that it was in
    (Fidelity note 1).
    """
    was_training = model.training
    model.eval()
    images = encode_photos(model, eval_set.photos, options)
    texts = encode_captions(model, eval_set.captions, options, pad_id)
    model.train(was_training)
    return images, texts


@dataclass
class Embeddings:
    """What an embeddings file holds; see the top of this module. `split` names photos and texts."""

    image_embeds: Tensor
    text_embeds: Tensor
    split: Split
    statistics: np.ndarray | None = None
    prior: float | None = None


def save_embeddings(embeddings: Embeddings, path: Path) -> None:
    """Write an embeddings file; InputError where that cannot be done."""
    split = embeddings.split
    optional = {} if embeddings.statistics is None else {
        "statistics": embeddings.statistics, "prior": embeddings.prior}
    try:
        with open(path, "wb") as file:
            np.savez(file, image_embeds=embeddings.image_embeds.numpy(),
                     text_embeds=embeddings.text_embeds.numpy(), images=np.array(split.images),
                     captions=np.array(split.captions), image_of_text=split.image_of_text,
                     **optional)
    except OSError as error:
        raise InputError(f"--save_embeddings {path} cannot be written: {error}") from error


def read_embeddings(path: Path) -> Embeddings:
    """Read an embeddings file.

    Raises:
        InputError: it cannot be read, lacks an array, or the counts do not agree.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        required = ("image_embeds", "text_embeds", "image_of_text", "images", "captions")
        images, texts, image_of_text, names, captions = (arrays[name] for name in required)
    except KeyError as error:
        raise InputError(f"--embeddings {path} lacks an array: {one_line(error)}") from error
    except Exception as error:  # of a dozen kinds, as bytes come
        raise InputError(f"--embeddings {path} is no npz file of plain arrays, or is cut short or "
                         f"damaged ({type(error).__name__})") from error
    for name, dimensions, kinds in (
            ("image_embeds", 2, "f"), ("text_embeds", 2, "f"), ("image_of_text", 1, "iu"),
            ("images", 1, "U"), ("captions", 1, "U"), ("statistics", 2, "f"), ("prior", 0, "f")):
        array = arrays.get(name)
        if array is not None and (array.ndim != dimensions or array.dtype.kind not in kinds):
            raise InputError(f"--embeddings {path}: {name} is {array.dtype} of shape {array.shape}")
    if not len(images) == len(names) or not len(texts) == len(image_of_text) == len(captions):
        raise InputError(
            f"--embeddings {path}: {len(images)} image_embeds for {len(names)} images, "
            f"{len(texts)} text_embeds for {len(captions)} captions and {len(image_of_text)} "
            "image_of_text do not agree")
    split = Split(Path(path), names.tolist(), captions.tolist(), image_of_text.astype(np.int64))
    prior, statistics = arrays.get("prior"), arrays.get("statistics")
    if prior is not None and not 0 < prior < 1 or statistics is not None and (
            statistics.shape != (2, 3) or not np.isfinite(statistics).all()):
        raise InputError(f"--embeddings {path}: prior must lie between 0 and 1, and statistics be "
                         "(2, 3) finite numbers")
    images, texts = (torch.from_numpy(array.astype(f"f{min(max(array.itemsize, 4), 8)}"))
                     for array in (images, texts))
    return Embeddings(images, texts, split, statistics, None if prior is None else float(prior))
