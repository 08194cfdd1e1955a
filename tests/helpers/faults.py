"""The table of faults that `test_faults.py` tries and `FAULTS.md` shows: how it is filled."""

import csv
import json

import numpy as np
import torch

import checkpoint
import evaluation
import train
from helpers.runs import CPU, command, copy_of
from scripts import split

FAULTS = {}  # name of the function that makes it: (fault, flags and files that are named, function)


def fault(described, *named):
    """Put a function that makes a fault into the table, under its own name.

    Args:
        described: The fault in words, as in `FAULTS.md`.
        named: The flags and files that the message names; its sentence is free.
    """
    def add(make):
        assert make.__name__ not in FAULTS, f"two faults are called {make.__name__}"
        FAULTS[make.__name__] = described, named, make
        return make
    return add


class Place:
    """Where a fault is made: a copy of the data, a copy of a finished run, and the command."""

    def __init__(self, folder, data, finished):
        self.folder, self.finished = folder, finished
        self.data = copy_of(data, folder)
        self.images = self.data / "images"
        self.main, self.arguments = train.main, command(self.data, folder / "run")

    def json(self, change, split="train"):
        """Change the records of a split in place, or write what `change` returns."""
        path = self.data / f"shapes_{split}.json"
        records = json.loads(path.read_text())
        changed = change(records)
        path.write_text(json.dumps(records if changed is None else changed))

    def own(self, **files):
        """Train on the same photos as own data: a csv for each split, and `files`, by what stands
        before and behind the point of their names; None takes one away."""
        for part in "train", "val", "test":
            records = json.loads((self.data / f"shapes_{part}.json").read_text())
            with open(self.data / f"{part}.csv", "w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["file_name", "text"])
                for record in records:
                    texts = record["caption"]
                    rows.writerows((record["image"], text) for text in (
                        [texts] if isinstance(texts, str) else texts))
        for name, content in files.items():
            path = self.data / name.replace("_", ".")
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.arguments += ["--dataset", "custom", "--text_encoder", "tiny-bert"]

    def split(self, content, *more):
        """Split a captions file of this content, or of its usual one, into a new folder."""
        self.main = split.main
        self.arguments = [self.file("captions.csv", content or "image,text\na.jpg,x\nb.jpg,x\n"
                                    "c.jpg,x\n"), "--out", str(self.folder / "out"), *more]

    def file(self, name, content):
        """Write a file of bytes or text; its path as a word of the command."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def resume(self, change, *more):
        """Go on from the finished run's checkpoint, changed: its content, or its bytes."""
        path = self.folder / "checkpoint.pth.tar"
        state = checkpoint.read(self.finished / "checkpoint.pth.tar")
        changed = change(state)
        if isinstance(changed, bytes):
            path.write_bytes(changed)
        else:
            torch.save(state if changed is None else changed, path)
        self.arguments = ["--resume", str(path), "--data_path", str(self.data), *CPU, *more]
        return path

    def embeddings(self, **changes):
        """Score an embeddings file, with some of its arrays changed, or None for none."""
        arrays = {"image_embeds": np.eye(3, dtype=np.float32),
                  "text_embeds": np.eye(3, dtype=np.float32), "image_of_text": np.arange(3),
                  "images": np.array(["a", "b", "c"]), "captions": np.array(["x", "y", "z"])}
        arrays = {name: array for name, array in (arrays | changes).items() if array is not None}
        path = self.folder / "embeddings.npz"
        np.savez(path, **arrays)
        self.main, self.arguments = evaluation.main, [*CPU, "--embeddings", str(path)]
        return path

    def judgements(self, name, content):
        """Score sound embeddings on a file of judgements."""
        self.embeddings()
        self.arguments += ["--judgements", self.file(name, content)]


class Evil:
    """An object whose unpickling would run a command."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return open, (str(self.folder / "ran"), "w")
