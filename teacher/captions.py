"""The captions of a split as a teacher sees them: one unit row each, in half precision.

`--teacher` names a sentence encoder, `captions` for what the captions of the training split say of
each other, or a file of embeddings that any program has written.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import InputError, one_line, reraise_out_of_memory
from common.weights import weights_digest
from encoders.hub import (
    check_texts,
    fetch_error_message,
    is_hub_name,
    quiet_transformers,
    use_cache_only,
)

REQUIREMENTS = "requirements-teacher.txt"
LATENT = 300  # dimensions of --teacher captions
BATCH = 128  # captions that a sentence encoder sees at a time
FROM_CAPTIONS = re.compile(r"captions(?::([1-9]\d{0,4}))?")
FILE_SUFFIX = ".npz"


def latent_dimensions(teacher: str) -> int | None:
    """Return the dimensions that `--teacher captions` or `captions:N` asks for; None of another."""
    found = FROM_CAPTIONS.fullmatch(teacher)
    return found and int(found[1] or LATENT)


class CaptionTeacher:
    """A teacher that is loaded, and embeds captions.

    Args:
        teacher: what `--teacher` names.
        corpus: the captions of the training split, for `--teacher captions`; called where needed.
        device: where a sentence encoder computes.

    Attributes:
        key: plain values that tell one teacher from another: embeddings depend on them, and on the
            captions.
        is_encoder: whether it sees one caption at a time, so that several processes can share the
            captions.

    Raises:
        InputError: there is no such teacher, or it cannot be loaded.
    """

    def __init__(
        self, teacher: str, corpus: Callable[[], Sequence[str]], device: torch.device
    ):
        self.teacher = teacher
        dimensions = latent_dimensions(teacher)
        self.is_encoder = dimensions is None and not teacher.endswith(FILE_SUFFIX)
        if dimensions is not None:
            self.embed_texts, self.key = latent_encoder(teacher, corpus, dimensions)
        elif teacher.endswith(FILE_SUFFIX):
            embeds = read_file(Path(teacher))
            self.embed_texts, self.key = lambda texts: embeds, {"file": Path(teacher).name}
        else:
            self.embed_texts, self.key = load_sentence_encoder(teacher, device)

    def embed(self, captions: Sequence[str]) -> Tensor:
        """Embed captions: (N_t, W) float16 unit rows on the CPU.

        A caption of which the teacher knows no word is a row of zeros, similar to nothing.

        Raises:
            InputError: a file has other rows than captions, or an embedding is not finite.
        """
        embeds = torch.as_tensor(self.embed_texts(list(captions)))
        if embeds.ndim != 2 or len(embeds) != len(captions):
            raise InputError(f"--teacher {self.teacher}: it has {len(embeds):,} embeddings, and the"
                             f" split has {len(captions):,} captions; give those of this split")
        embeds = F.normalize(embeds.float(), dim=1)
        if not embeds.isfinite().all():
            raise InputError(f"--teacher {self.teacher}: an embedding is not finite")
        return embeds.half()


def load_sentence_encoder(
    teacher: str, device: torch.device
) -> tuple[Callable[[list[str]], Tensor], dict]:
    """Load a sentence encoder with its own pooling, by sentence-transformers.

    Args:
        teacher: a name on the Hub, or a folder.
        device: where it computes.

    Returns:
        A function of texts that gives their embeddings (n, W), and the encoder's key.

    Raises:
        InputError: the library is missing, or the encoder cannot be loaded.
    """
    try:
        import sentence_transformers  # takes seconds, for --teacher alone
    except ImportError as error:
        raise InputError(f"--teacher {teacher}: needs sentence-transformers: pip install -r "
                         f"{REQUIREMENTS}") from error
    if not is_hub_name(teacher) and not Path(teacher).is_dir():
        raise InputError(f"--teacher {teacher}: no such folder; give a sentence encoder's folder "
                         f"or Hub name, captions, or a file of embeddings ({FILE_SUFFIX})")
    quiet_transformers()
    try:
        check_texts(Path(teacher))
        model = sentence_transformers.SentenceTransformer(
            teacher, device=str(device), local_files_only=use_cache_only(teacher)).eval()
    except Exception as error:  # of a dozen types
        reraise_out_of_memory(error)
        raise InputError(f"--teacher {teacher}: no sentence encoder can be loaded from it "
                         f"({fetch_error_message(teacher, error)})") from error

    def embed_texts(texts: list[str]) -> Tensor:
        try:
            return model.encode(texts, batch_size=BATCH, convert_to_tensor=True,
                                show_progress_bar=False).float().cpu()
        except Exception as error:
            reraise_out_of_memory(error)
            raise InputError(f"--teacher {teacher}: it cannot embed captions "
                             f"({one_line(error)[:200]})") from error

    return embed_texts, {"encoder": weights_digest(model.state_dict()),
                         "library": sentence_transformers.__version__, "device": device.type}


def latent_encoder(
    teacher: str, corpus: Callable[[], Sequence[str]], dimensions: int
) -> tuple[Callable[[list[str]], Tensor], dict]:
    """Embed captions in latent dimensions of others: tf-idf of their words, and a truncated SVD.

    Args:
        teacher: what `--teacher` names, for error messages.
        corpus: gives the captions of the training split, to which the dimensions are fitted.
        dimensions: of the SVD.

    Returns:
        A function of texts that gives their embeddings (n, W), and raises InputError where the
        captions of the training split have too few words; and the key of what is fitted.

    Raises:
        InputError: scikit-learn is missing.
    """
    try:
        import sklearn
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise InputError(f"--teacher {teacher}: needs scikit-learn: pip install -r "
                         f"{REQUIREMENTS}") from error

    def embed_texts(texts: list[str]) -> Tensor:
        vectorizer = TfidfVectorizer(dtype=np.float32)
        try:
            counts = vectorizer.fit_transform(corpus())  # (N_t, words), sparse
            svd = TruncatedSVD(min(dimensions, counts.shape[1]), random_state=0).fit(counts)
        except ValueError as error:
            raise InputError(f"--teacher {teacher}: the captions have too few words for it "
                             f"({one_line(error)})") from error
        return torch.from_numpy(svd.transform(vectorizer.transform(texts)))

    return embed_texts, {"latent": dimensions, "library": sklearn.__version__}


def read_file(path: Path) -> Tensor:
    """Read the array `text_embeds` (N_t, W) of a file, such as --save_embeddings writes of a split.

    Raises:
        InputError: it cannot be read, or has no such array.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise OSError("no file")
        with np.load(path, allow_pickle=False) as file:
            embeds = file["text_embeds"]
        if embeds.dtype == np.uint16:  # the bits of bfloat16 numbers
            return torch.from_numpy(embeds.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(embeds.astype(np.float32))
    except Exception as error:  # of a dozen types: the bytes may be anything
        reraise_out_of_memory(error)
        raise InputError(f"--teacher {path}: no npz file with an array text_embeds (N_t, W) of "
                         f"numbers ({one_line(error)[:100]})") from error
