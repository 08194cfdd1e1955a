"""Embeddings of a split, and the file that holds them.

An embeddings file is an npz of `image_embeds` (N_i, D), `text_embeds` (N_t, D), `image_of_text`
(N_t,), `images` (N_i,), the photos' names, and `captions` (N_t,), their texts. Any program can
write one, to have its model scored. Embeddings in uint16 are the bits of bfloat16 numbers, for
which numpy has no type. Four arrays are optional: `statistics` (2, 3), the count, mean and m2 of
FNE's positive and negative Gaussian; `prior` (); `teacher_embeds` (N_t, W), what a teacher
(`teacher`) makes of the captions; and `facts` (), a JSON text about the run behind it, see
`metrics/facts.py`.
"""

import math
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import files
from common.errors import InputError, one_line, reraise_out_of_memory
from data import Split
from fne_loss import RunningGaussian
from metrics.facts import facts_array, read_facts

# An npz may unpack to either: so many bytes, or so many times its size.
MAX_UNPACKED_BYTES, MAX_UNPACKED_FACTOR = 2**31, 20
# Number of dimensions and numpy's kinds of number or text, of each array of the file.
ARRAYS = {"image_embeds": (2, "f"), "text_embeds": (2, "f"), "image_of_text": (1, "iu"),
          "images": (1, "U"), "captions": (1, "U"), "statistics": (2, "f"), "prior": (0, "f"),
          "facts": (0, "U"), "teacher_embeds": (2, "f")}
TEACHER_TOLERANCE = 0.01  # of the length of a unit row that was rounded to half precision
REQUIRED_ARRAYS = "image_embeds", "text_embeds", "image_of_text", "images", "captions"


@dataclass
class Embeddings:
    """The content of an embeddings file.

    Attributes:
        image_embeds: (N_i, D) float32 or float64, or bfloat16 of a file that holds such.
        text_embeds: (N_t, D), likewise.
        split: The photos' names, the captions, and the photo of each caption.
        statistics: (2, 3) count, mean and m2 of FNE's positive and negative Gaussian, or None.
        prior: The prior of FNE's posterior, or None.
        facts: About the run behind the embeddings, by names of `metrics.facts.FACT_TYPES`.
        teacher_embeds: (N_t, W) float16 unit rows, the captions as a teacher sees them, or None. A
            row of zeros is a caption of which the teacher knows no word.
    """

    image_embeds: Tensor
    text_embeds: Tensor
    split: Split
    statistics: np.ndarray | None = None
    prior: float | None = None
    facts: dict[str, object] = field(default_factory=dict)
    teacher_embeds: Tensor | None = None

    def in_full_precision(self) -> "Embeddings":
        """Return a copy whose embeddings are float32 where they are bfloat16."""
        images, texts = (embeds.float() if embeds.dtype == torch.bfloat16 else embeds
                         for embeds in (self.image_embeds, self.text_embeds))
        return replace(self, image_embeds=images, text_embeds=texts)


def fitted_gaussians(embeddings: Embeddings) -> list[RunningGaussian]:
    """Return FNE's positive and negative Gaussian that stand beside embeddings.

    Returns:
        Two Gaussians; an empty list if there are no statistics or no prior, or if a Gaussian rests
        on fewer than two values.
    """
    if embeddings.statistics is None or embeddings.prior is None:
        return []
    return gaussians_from_statistics(embeddings.statistics)


def gaussians_from_statistics(statistics: np.ndarray) -> list[RunningGaussian]:
    """Return FNE's positive and negative Gaussian of given statistics.

    Args:
        statistics: (2, 3) count, mean and m2 of each.

    Returns:
        Two Gaussians; an empty list if one of them rests on fewer than two values.
    """
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
    """Check, before an npz file is read, that it does not unpack to far more than embeddings can.

    Raises:
        OSError: If it does, or there is no such file.
    """
    if not path.is_file():
        raise OSError("no file")
    with zipfile.ZipFile(path) as file:
        declared = sum(member.file_size for member in file.infolist())
    if declared > max(MAX_UNPACKED_BYTES, MAX_UNPACKED_FACTOR * path.stat().st_size):
        raise OSError("it would unpack to far more than it is")


def check_declared_arrays(path: Path) -> None:
    """Check the headers of the arrays of an npz file, before the arrays are read.

    Each must be as large as it says, and no two have one name: only the last would be read.

    Raises:
        ValueError: If not.
    """
    with zipfile.ZipFile(path) as file:
        names = [member.removesuffix(".npy") for member in file.namelist()]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two arrays {twice[:40]!r}")
        for member in file.infolist():
            with file.open(member) as content:
                version = np.lib.format.read_magic(content)
                read_header = (np.lib.format.read_array_header_1_0 if version == (1, 0)
                               else np.lib.format.read_array_header_2_0)
                shape, _, dtype = read_header(content)
            if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > member.file_size:
                raise ValueError(f"{member.filename[:40]!r} says that it has shape {shape}"[:90])


def check_statistics(
    statistics: np.ndarray | None, prior: float | np.ndarray | None, source: str
) -> None:
    """Check that statistics and prior are both given or neither, and that FNE can have made them.

    Args:
        statistics: (2, 3) count, mean and m2 of the positive and negative Gaussian, or None.
        prior: The prior of the posterior, or None.
        source: What the error message begins with.

    Raises:
        InputError: If one of them is missing, or a value is out of range.
    """
    if statistics is None and prior is None:
        return
    is_valid = (statistics is not None and prior is not None and 0 < prior < 1
                and statistics.shape == (2, 3) and bool(np.isfinite(statistics).all()))
    if is_valid:
        counts, m2 = statistics[:, 0], statistics[:, 2]
        is_valid = not ((counts < 0).any() or (m2 < 0).any() or (counts % 1).any()
                        or counts.max() > 2**53)
    if not is_valid:
        raise InputError(f"{source}: prior must lie between 0 and 1, and statistics be "
                         "(2, 3): counts, means and sums of squares; both or neither")


def save_embeddings(embeddings: Embeddings, path: Path, dtype: str = "float32") -> None:
    """Write an embeddings file, whole or not at all.

    Args:
        embeddings: What is written.
        path: The file.
        dtype: The type of the embeddings in the file: "bfloat16", or "float32", which leaves
            float64 as it is.

    Raises:
        InputError: If the file cannot be written.
    """
    split = embeddings.split
    embeddings = embeddings.in_full_precision()

    def as_array(embeds: Tensor) -> np.ndarray:
        if dtype == "bfloat16":
            return embeds.bfloat16().view(torch.int16).numpy().view(np.uint16)
        return embeds.numpy()

    arrays = {"image_embeds": as_array(embeddings.image_embeds),
              "text_embeds": as_array(embeddings.text_embeds), "images": np.array(split.images),
              "captions": np.array(split.captions), "image_of_text": split.image_of_text}
    if embeddings.statistics is not None:
        arrays |= {"statistics": embeddings.statistics, "prior": embeddings.prior}
    if embeddings.teacher_embeds is not None:
        arrays["teacher_embeds"] = embeddings.teacher_embeds.numpy()
    arrays["facts"] = facts_array(embeddings.facts)  # `is_embeddings_file` looks for them
    files.write(path, lambda file: np.savez(file, **arrays), "--save_embeddings")


def is_embeddings_file(path: Path) -> bool:
    """Return whether there is an npz file at `path` that `save_embeddings` wrote.

    Other programs write such files too, but not the facts in it.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return {"image_embeds.npy", "facts.npy"} <= set(file.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_embeddings(path: Path) -> Embeddings:
    """Read an embeddings file.

    Returns:
        The embeddings in bfloat16 if the file holds such, else in float32, or in float64 if it has
        more digits.

    Raises:
        InputError: If the file cannot be read, lacks an array, or its arrays do not match.
    """
    source = f"--embeddings {path}"
    arrays = read_arrays(path, source)
    images, texts = arrays["image_embeds"], arrays["text_embeds"]
    names, captions = arrays["images"], arrays["captions"]
    image_of_text = arrays["image_of_text"]
    for name, (dimensions, kinds) in ARRAYS.items():
        array = arrays.get(name)
        if array is None:
            continue
        is_bfloat16 = name.endswith("_embeds") and array.dtype == np.uint16
        if array.ndim != dimensions or array.dtype.kind not in kinds and not is_bfloat16:
            raise InputError(f"{source}: {name} is {array.dtype} of shape {array.shape}")
    if not (len(images) == len(names) and len(texts) == len(image_of_text) == len(captions)):
        raise InputError(
            f"{source}: {len(images)} image_embeds for {len(names)} images, "
            f"{len(texts)} text_embeds for {len(captions)} captions and {len(image_of_text)} "
            "image_of_text do not agree")
    if images.shape[1] == 0 or images.shape[1] != texts.shape[1]:
        raise InputError(f"{source}: image_embeds {images.shape} and text_embeds "
                         f"{texts.shape} need one width above 0")
    if not files.is_unicode("".join(captions.tolist())):
        raise InputError(f"{source}: captions holds a text that is no Unicode")
    split = Split(Path(path), names.tolist(), captions.tolist(), image_of_text.astype(np.int64))
    prior, statistics = arrays.get("prior"), arrays.get("statistics")
    check_statistics(statistics, prior, source)
    facts = read_facts(arrays.get("facts"), source)
    return Embeddings(as_float_tensor(images), as_float_tensor(texts), split, statistics,
                      None if prior is None else float(prior), facts,
                      read_teacher_embeds(arrays.get("teacher_embeds"), len(captions), source))


def read_teacher_embeds(array: np.ndarray | None, captions: int, source: str) -> Tensor | None:
    """Return the embeddings of a teacher as (N_t, W) float16 unit rows; None where there are none.

    Args:
        array: (N_t, W) unit rows or rows of zeros, or None.
        captions: N_t.
        source: What error messages begin with.

    Raises:
        InputError: If they are not of all captions, not finite, or have other lengths than 0 and 1.
    """
    if array is None:
        return None
    if len(array) != captions:
        raise InputError(f"{source}: {len(array)} teacher_embeds for {captions} captions")
    embeds = as_float_tensor(array).float()
    lengths = embeds.norm(dim=1)  # (N_t,)
    if not (((lengths - 1).abs() < TEACHER_TOLERANCE) | (lengths == 0)).all():  # NaN is neither
        raise InputError(f"{source}: a row of teacher_embeds is neither a unit row nor zeros")
    return embeds.half()


def check_letters(array: np.ndarray) -> None:
    """Raise ValueError if an array of texts holds a number that is no letter's."""
    if array.dtype.kind == "U" and array.size and array.dtype.itemsize:
        native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
        if native.reshape(-1).view(np.uint32).max() > 0x10FFFF:
            raise ValueError("a text with a letter that there is none of")


def read_arrays(path: Path, source: str) -> dict[str, np.ndarray]:
    """Read all arrays of an npz file, and check that those of `REQUIRED_ARRAYS` are there.

    Args:
        path: The file.
        source: What error messages begin with.

    Raises:
        InputError: If the file is no npz of plain arrays, or lacks one.
    """
    try:
        check_declared_size(path)
        check_declared_arrays(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("a part that is no array")  # numpy returns its bytes
        for array in arrays.values():
            check_letters(array)
    except Exception as error:  # of a dozen types: the bytes may be anything
        reraise_out_of_memory(error)
        raise InputError(f"{source} is no npz file of plain arrays, or is cut short or "
                         f"damaged ({one_line(error)[:100]})") from error
    for name in REQUIRED_ARRAYS:
        if name not in arrays:
            raise InputError(f"{source} lacks an array: {name!r}")
    return arrays


def as_float_tensor(array: np.ndarray) -> Tensor:
    """Return embeddings as a tensor: float16 as float32, long doubles as float64, uint16 as the
    bfloat16 numbers whose bits they are. What needs no change shares the array's memory."""
    if array.dtype == np.uint16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    bytes_per_number = min(max(array.itemsize, 4), 8)
    return torch.from_numpy(array.astype(f"f{bytes_per_number}", copy=False))
