"""Photos of random pixels."""

import json

import numpy as np
import torch
from PIL import Image


def noise(width=53, height=37, low=0, high=256, seed=0):
    """A photo that compresses badly, every pixel of it anything from `low` to below `high`."""
    values = np.random.default_rng(seed).integers(low, high, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def save(folder, names):
    """Write a photo under each name, folders in it included; each is another photo."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(seed=seed).save(folder / name)


def six_photos(folder, *prefixes):
    """Six photos of two captions each, and splits of data sets, by their files' prefixes, that are
    copies of each other."""
    save(folder, [f"{number}.png" for number in range(6)])
    records = [{"image": f"{number}.png", "caption": [f"a dog {number}", "two boys run"]}
               for number in range(6)]
    for prefix in prefixes:
        for split in "train", "val", "test":
            (folder / f"{prefix}_{split}.json").write_text(json.dumps(records))
    return folder


def released_of_six(released, path):
    """A copy of a released checkpoint whose bank shows none but these six."""
    state = torch.load(released, weights_only=False)
    state["model"][0]["idx_queue"] %= 6
    torch.save(state, path)
    return str(path)


def break_photos(folder, *names):
    """Spoil the middle of photos of a data set: their ends are whole, so only decoding finds it."""
    for name in names:
        photo = folder / "images" / name
        content = bytearray(photo.read_bytes())
        content[300:400] = bytes(100)
        photo.write_bytes(content)


def array(image):
    """Pixels (height, width, 3) as integers that can be subtracted."""
    return np.asarray(image).astype(int)
