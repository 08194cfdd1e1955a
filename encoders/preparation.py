"""How a trained model's photos and captions are prepared, from raw files and texts to tensors."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from inputs.captions import Captions
from inputs.fitting import PUBLISHED_FIT, PhotoFit, fitted_pixels
from inputs.photos import load_photo, normalize


class Preparation(NamedTuple):
    """How photos and captions are prepared for a trained model, and what is known about it.

    Attributes:
        tokenizer: A fast tokenizer of transformers.
        image_res: R, the side of the square photos in pixels.
        mean: The mean of the pixels' three channels, by which they are standardised.
        std: Their standard deviation.
        max_words: The number of words that are kept of a caption.
        max_tokens: The number of tokens that are kept, special tokens included.
        prefix: The text that is put before each caption.
        padded: Whether all captions are padded to `max_tokens` and the padding is averaged too
            (Fidelity note 2).
        about: Plain values: "options" of the training, "recalls", and "statistics", the Gaussians
            that FNE fitted.
        card: The text of the folder's README.md.
        cleaning: How captions are cleaned, "published" or "raw" (`inputs.captions.Captions`).
        photo_fit: How photos are fitted into a square.
    """

    tokenizer: object
    image_res: int
    mean: list[float]
    std: list[float]
    max_words: int
    max_tokens: int
    prefix: str
    padded: bool
    about: dict
    card: str = ""
    cleaning: str = "published"
    photo_fit: PhotoFit = PUBLISHED_FIT

    def captions(self, texts: list[str]) -> Captions:
        """Clean and tokenise raw captions; `Captions.padded` makes batches of them.

        Args:
            texts: N_t captions.

        Raises:
            InputError: If a caption has no tokens at all.
        """
        return Captions(texts, self.tokenizer, self.max_words, self.max_tokens, self.padded,
                        self.prefix, self.cleaning)

    def pixels(self, paths: list[Path]) -> Tensor:
        """Read photo files, turned as their EXIF data say, as standardised pixels (B, 3, R, R).

        Raises:
            InputError: If one of the files is no photo.
        """
        pixels = torch.stack([
            fitted_pixels(load_photo(path, upright=True), self.image_res, self.photo_fit)
            for path in paths])  # (B, 3, R, R)
        return normalize(pixels, self.mean, self.std)


FIT_TEXT = {"squash": "squashed to", "crop": "cropped to the middle", "pad": "padded to"}


def preparation_text(options) -> str:
    """Return one line that says how photos and captions are prepared.

    Args:
        options: `common.options.EncodingOptions` after `processors.resolve_preparation`.
    """
    side = f"{options.image_res} x {options.image_res}"
    captions = "as they are" if options.captions == "raw" else f"of {options.max_words} clean words"
    return (f"reads: photos {FIT_TEXT[options.image_fit]} {side}; captions {captions}, up to "
            f"{options.max_tokens} tokens")
