"""A small split whose pairs people have judged, and embeddings of it."""

import json

import numpy as np
import torch
import torch.nn.functional as F

from data import Split
from metrics.embeddings import Embeddings

NAMES = ["a.jpg", "b.jpg", "c.jpg"]
# Photo, photo of the caption, the caption's number there, yes, no.
PAIRS = [("a.jpg", "b.jpg", 1, 3, 0), ("a.jpg", "c.jpg", 0, 0, 3), ("b.jpg", "a.jpg", 1, 2, 1),
         ("c.jpg", "a.jpg", 0, 1, 2), ("c.jpg", "b.jpg", 0, 0, 3), ("a.jpg", "a.jpg", 0, 3, 0),
         ("z.jpg", "a.jpg", 0, 3, 0), ("a.jpg", "z.jpg", 0, 3, 0), ("a.jpg", "b.jpg", 7, 3, 0)]


def small_split(folder):
    """Three photos of two captions each."""
    return Split(folder / "x.json", NAMES, [f"text {n}" for n in range(6)],
                 np.array([0, 0, 1, 1, 2, 2]))


def as_json(path):
    """Write the judged pairs as a json list of records."""
    keys = "image", "caption_of", "caption_no", "yes", "no"
    path.write_text(json.dumps([dict(zip(keys, pair)) for pair in PAIRS]))


def small_embeddings(split):
    """Unit rows for the split, with statistics of equal variance and a prior."""
    generator = torch.Generator().manual_seed(0)
    embeds = [F.normalize(torch.randn(count, 5, generator=generator), dim=1) for count in (3, 6)]
    statistics = np.array([[300, 0.6, 3.0], [600, 0.1, 6.0]])
    return Embeddings(*embeds, split, statistics, 0.01)
