"""What turns a caption and a photo's file into what a trained model reads, and nothing else."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from inputs.captions import Captions
from inputs.photos import eval_pixels, load_photo, normalize


class Preparation(NamedTuple):
    """How photos and captions were prepared for a model, and what is known of it besides."""

    tokenizer: object  # of transformers, a fast one
    image_res: int  # R, side of the photos in pixels
    mean: list[float]  # of the three channels
    std: list[float]
    max_words: int
    max_tokens: int
    prefix: str  # before each caption
    padded: bool  # captions are always `max_tokens` long, and their padding is averaged too
    about: dict  # plain values: "options" of the training, "recalls", "statistics" that FNE fitted
    card: str = ""  # the folder's README.md
    cleaning: str = "published"  # of captions, as `inputs.captions.Captions` has it

    def captions(self, texts: list[str]) -> Captions:
        """Raw captions (N_t), cleaned and tokenised; `Captions.padded` makes batches of them.

        Raises:
            InputError: a caption has no tokens at all.
        """
        return Captions(texts, self.tokenizer, self.max_words, self.max_tokens, self.padded,
                        self.prefix, self.cleaning)

    def pixels(self, paths: list[Path]) -> Tensor:
        """Return the standardised pixels (B, 3, R, R) of photos, turned as their EXIF data say.

        Raises:
            InputError: one of them is no photo.
        """
        pixels = torch.stack([eval_pixels(load_photo(path, upright=True), self.image_res)
                              for path in paths])  # (B, 3, R, R)
        return normalize(pixels, self.mean, self.std)
