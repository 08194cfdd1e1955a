"""The table of faults that `test_faults.py` tries and `FAULTS.md` shows: how it is filled."""

import json

import numpy as np
import torch
from helpers.runs import command, copy_of

import checkpoint
import evaluation
import train

FAULTS = {}  # name: (fault, what is told, function that makes it)


def fault(name, described, *told):
    def add(make):
        FAULTS[name] = described, told, make
        return make
    return add


class Place:
    """Where a fault is made: a copy of the data, a copy of a finished run, and the command."""

    def __init__(self, folder, data, finished):
        self.folder, self.finished = folder, finished
        self.data = copy_of(data, folder)
        self.images = self.data / "images"
        self.main, self.arguments = train.main, command(self.data, folder / "run", "--no_figures")

    def json(self, change, split="train"):
        """Change the records of a split in place, or write what `change` returns."""
        path = self.data / f"shapes_{split}.json"
        records = json.loads(path.read_text())
        changed = change(records)
        path.write_text(json.dumps(records if changed is None else changed))

    def file(self, name, content):
        path = self.folder / name
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
        self.arguments = ["--resume", str(path), *more]
        return path

    def embeddings(self, **changes):
        arrays = {"image_embeds": np.eye(3, dtype=np.float32),
                  "text_embeds": np.eye(3, dtype=np.float32), "image_of_text": np.arange(3),
                  "images": np.array(["a", "b", "c"]), "captions": np.array(["x", "y", "z"])}
        arrays = {name: array for name, array in (arrays | changes).items() if array is not None}
        path = self.folder / "embeddings.npz"
        np.savez(path, **arrays)
        self.main, self.arguments = evaluation.main, ["--embeddings", str(path)]
        return path

    def judgements(self, name, content):
        self.embeddings()
        self.arguments += ["--judgements", self.file(name, content)]


class Evil:
    """An object whose unpickling would run a command."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return open, (str(self.folder / "ran"), "w")
