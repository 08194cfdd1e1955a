"""Malformed input of every kind, through the real commands: one line, status 2, no file harmed.

`FAULTS` is the table that `FAULTS.md` shows; below it hypothesis looks for more.
"""

import json
import re
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from runs import command, copy_of, expect_exit

import check_data
import checkpoint
import evaluation
import storage
import train
from data import read_matches, read_split
from encoding import read_embeddings
from errors import InputError
from judgements import read_judgements
from photos import MAX_PIXELS, load_photo, photo_fault

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


# ------------------------------------------------------------------------------------------- json

@fault("json cut short", "a split's json is cut short", "shapes_train.json", "read as json")
def _(place):
    path = place.data / "shapes_train.json"
    path.write_bytes(path.read_bytes()[:-20])


@fault("json not utf-8", "a split's json is not UTF-8", "shapes_val.json", "read as json")
def _(place):
    (place.data / "shapes_val.json").write_bytes(b'[{"image": "\xff\xfe"}]')


@fault("json deep", "lists in lists, 100,000 deep", "shapes_test.json", "read as json")
def _(place):
    (place.data / "shapes_test.json").write_text("[" * 100_000)


@fault("json empty", "an empty list", "shapes_train.json holds no train records")
def _(place):
    place.json(lambda records: [])


@fault("json number", "a number in place of a list", "shapes_train.json holds no train records")
def _(place):
    place.json(lambda records: 7)


@fault("json object", "an object that is no Karpathy file", "no Karpathy split file")
def _(place):
    place.json(lambda records: {"a": 1})


@fault("karpathy record", "a Karpathy record without sentences", "images[0] lacks")
def _(place):
    place.json(lambda records: {"images": [{"split": "train", "filename": "x.png"}]})


@fault("json no caption", "a record without caption", "record 3", "no 'caption'")
def _(place):
    place.json(lambda records: records[3].pop("caption") and None)


@fault("json caption number", "a caption that is a number", "record 2", "neither text nor a list")
def _(place):
    place.json(lambda records: records[2].update(caption=5))


@fault("json image list", "a photo's name that is a list", "record 2", "path inside")
def _(place):
    place.json(lambda records: records[2].update(image=["a"]))


@fault("json up", "a photo named ../../secret", "record 0", "path inside the photo folder")
def _(place):
    place.json(lambda records: records[0].update(image="../../secret.png"))


@fault("json absolute", "a photo named /etc/passwd", "record 0", "path inside the photo folder")
def _(place):
    place.json(lambda records: records[0].update(image="/etc/passwd"))


@fault("json nul", "a photo's name with a NUL byte", "is missing")
def _(place):
    place.json(lambda records: records[0].update(image="a\0b.png"))


@fault("json long name", "a photo's name of 5,000 letters", "is missing")
def _(place):
    place.json(lambda records: records[0].update(image="a" * 5000))


@fault("json line break", "a photo's name with line breaks", "is missing")
def _(place):
    place.json(lambda records: records[0].update(image="a\nb\nc.png"))


@fault("json surrogate", "a photo's name that no file can have", "is missing")
def _(place):
    place.json(lambda records: records[0].update(image="\ud800.png"))


@fault("matches out of range", "a match that is no photo's number", "matches of caption 1")
def _(place):
    place.json(lambda content: content["matches"][1].append(999), "train_matches")


@fault("matches bool", "true and false in place of numbers", "matches of caption 0")
def _(place):
    place.json(lambda content: content["matches"].__setitem__(0, [True, False]), "train_matches")


@fault("matches count", "matches of fewer captions", "does not list the 'matches' of")
def _(place):
    place.json(lambda content: content["matches"].pop() and None, "val_matches")


# ----------------------------------------------------------------------------------------- photos

@fault("photo gone", "a photo that is not there", "train_00002.png", "is missing")
def _(place):
    (place.images / "train_00002.png").unlink()


@fault("photo cut short", "a photo cut short", "val_00003.png", "cut short")
def _(place):
    path = place.images / "val_00003.png"
    path.write_bytes(path.read_bytes()[:200])


@fault("photo text", "a text named .png", "val_00001.png", "cut short or no photo")
def _(place):
    (place.images / "val_00001.png").write_text("no photo")


@fault("photo eps", "PostScript named .png, which Pillow would have Ghostscript run",
       "val_00001.png", "no photo")
def _(place):
    Image.new("RGB", (40, 40)).save(place.images / "val_00001.png", "EPS")


@fault("photo bomb", "a photo of a few kB that decodes to 100 million pixels", "val_00001.png",
       "pixels, more than")
def _(place):
    Image.new("1", (20_000, MAX_PIXELS // 20_000 + 1)).save(place.images / "val_00001.png")


@fault("photo link", "a photo that is a link out of the folder", "val_00001.png",
       "link out of that folder", "--follow_links")
def _(place):
    path = place.images / "val_00001.png"
    outside = place.folder / "outside.png"
    path.rename(outside)
    path.symlink_to(outside)


@fault("photo folder", "a folder of photos that is a file", "--data_path")
def _(place):
    place.main = check_data.main
    place.arguments = ["--dataset", "shapes", "--data_path", place.file("photos", "x")]


# ----------------------------------------------------------------------------- vocabularies, models

@fault("vocab gone", "a vocabulary that is not there", "--vocab")
def _(place):
    place.arguments += ["--vocab", str(place.folder / "nothing.txt")]


@fault("vocab binary", "a vocabulary of bytes that are no text", "--vocab")
def _(place):
    place.arguments += ["--vocab", place.file("vocab.txt", bytes(range(256)))]


@fault("vocab empty", "an empty vocabulary", "--vocab")
def _(place):
    place.arguments += ["--vocab", place.file("vocab.txt", "")]


@fault("vocab special", "a vocabulary without [UNK]", "--vocab", "[UNK]")
def _(place):
    place.arguments += ["--vocab", place.file("vocab.txt", "[PAD]\n[CLS]\n[SEP]\n[MASK]\na\n")]


@fault("encoder code", "an encoder's folder that brings code to run", "--image_encoder")
def _(place):
    folder = place.folder / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(
        {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Model"}}))
    (folder / "evil.py").write_text(f"open({str(place.folder / 'ran')!r}, 'w')\nclass Evil: pass\n")
    place.arguments += ["--image_encoder", str(folder)]


@fault("encoder config", "an encoder's folder with a broken config.json", "--text_encoder")
def _(place):
    folder = place.folder / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text("{")
    place.arguments += ["--text_encoder", str(folder)]


# ------------------------------------------------------------------------------------- checkpoints

@fault("checkpoint empty", "an empty file", "checkpoint.pth.tar is no checkpoint")
def _(place):
    place.resume(lambda state: b"")


@fault("checkpoint cut short", "a checkpoint cut short", "cut short")
def _(place):
    place.resume(lambda state: (place.finished / "checkpoint.pth.tar").read_bytes()[:100_000])


@fault("checkpoint bit", "a checkpoint with one flipped bit in a weight", "damaged")
def _(place):
    content = bytearray((place.finished / "checkpoint.pth.tar").read_bytes())
    content[len(content) // 2] ^= 1
    place.resume(lambda state: bytes(content))


@fault("checkpoint text", "a text", "is no checkpoint")
def _(place):
    place.resume(lambda state: b"some text\n" * 100)


class Evil:
    """An object whose unpickling would run a command."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return open, (str(self.folder / "ran"), "w")


@fault("checkpoint code", "a checkpoint that would run code", "could run code; it is not loaded")
def _(place):
    place.resume(lambda state: state.update(extra=Evil(place.folder)))


@fault("checkpoint other zip", "a zip file of something else", "is no checkpoint")
def _(place):
    path = place.resume(lambda state: b"")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "x")


@fault("checkpoint list", "a list of tensors", "neither a checkpoint of this program")
def _(place):
    place.resume(lambda state: [torch.zeros(2)])


@fault("checkpoint other", "another program's checkpoint", "neither a checkpoint of this program")
def _(place):
    place.resume(lambda state: {"state_dict": {"weight": torch.zeros(2)}})


@fault("checkpoint no model", "a checkpoint without its model", "lacks 'model'")
def _(place):
    place.resume(lambda state: state.pop("model") and None)


@fault("checkpoint model", "a checkpoint whose weights are numbers", "not all of its weights are")
def _(place):
    place.resume(lambda state: state.update(model=dict.fromkeys(state["model"], 1)))


@fault("checkpoint shape", "a checkpoint with a weight of another shape", "does not fit",
       "other shape")
def _(place):
    place.resume(lambda state: state["model"].update(
        {"image_projection.weight": torch.zeros(2, 2)}))


@fault("checkpoint no rng", "a checkpoint without random state", "no whole checkpoint", "rng")
def _(place):
    place.resume(lambda state: state.pop("rng") is None or None)


@fault("checkpoint optimizer", "a checkpoint with another optimizer's state", "no whole checkpoint")
def _(place):
    place.resume(lambda state: state.update(optimizer={"state": {}, "param_groups": []}))


@fault("checkpoint epoch", "a checkpoint whose epoch is a text", "no whole checkpoint", "epoch")
def _(place):
    place.resume(lambda state: state.update(epoch="one"))


@fault("checkpoint option", "a checkpoint with an option of no sense", "--loss", "one of fne")
def _(place):
    place.resume(lambda state: state["options"].update(loss="magic"))


@fault("checkpoint option kind", "a checkpoint with an option of another kind", "--log_step")
def _(place):
    place.resume(lambda state: state["options"].update(log_step="often"))


@fault("checkpoint other data", "a run taken up with other training data", "training split now has")
def _(place):
    place.json(lambda records: records.__delitem__(slice(60, None)))
    (place.data / "shapes_train_matches.json").unlink()
    place.resume(lambda state: None, "--data_path", str(place.data))


@fault("checkpoint flag", "a flag that the checkpoint's weights exclude", "--embed_size 32")
def _(place):
    place.resume(lambda state: None, "--embed_size", "32")


@fault("checkpoint scored", "a checkpoint scored whose statistics are texts", "statistics")
def _(place):
    path = place.resume(lambda state: state.update(criterion={"positive.count": "many"}))
    place.main, place.arguments = evaluation.main, [str(path)]


# ------------------------------------------------------------------------------------------- flags

@fault("flag nan", "--learning_rate nan", "--learning_rate nan")
def _(place):
    place.arguments += ["--learning_rate", "nan"]


@fault("flag log step", "--log_step 0", "--log_step 0: must be at least 1")
def _(place):
    place.arguments += ["--log_step", "0"]


@fault("flag save step", "--save_step -1", "--save_step -1")
def _(place):
    place.arguments += ["--save_step", "-1"]


@fault("flag batch", "a batch larger than the split", "--batch_size_train")
def _(place):
    place.arguments += ["--batch_size_train", "1000", "--queue_size", "1000"]


@fault("flag resume", "--resume of a file that is not there", "no checkpoint", "--resume")
def _(place):
    place.arguments += ["--resume", str(place.folder / "nothing")]


@fault("flag folder", "--logger_name under a file", "--logger_name", "cannot be written")
def _(place):
    place.arguments += ["--logger_name", place.file("file", "x") + "/run"]


@fault("flag output", "--output that is a folder", "cannot be written")
def _(place):
    place.embeddings()
    place.arguments += ["--output", str(place.folder)]


# ---------------------------------------------------------------------- embeddings and judgements

@fault("embeddings text", "a text named .npz", "no npz file")
def _(place):
    place.embeddings().write_text("x")


@fault("embeddings npy", "a single array", "no npz file")
def _(place):
    with open(place.embeddings(), "wb") as file:
        np.save(file, np.eye(3))


@fault("embeddings cut short", "an npz cut short", "no npz file")
def _(place):
    path = place.embeddings()
    path.write_bytes(path.read_bytes()[:500])


@fault("embeddings pickle", "an npz that holds pickled objects", "no npz file")
def _(place):
    place.embeddings(images=np.array([Evil(place.folder)] * 3, dtype=object))


@fault("embeddings lack", "an npz without captions", "lacks an array", "captions")
def _(place):
    place.embeddings(captions=None)


@fault("embeddings count", "more captions than embeddings", "do not agree")
def _(place):
    place.embeddings(captions=np.array(list("wxyz")))


@fault("embeddings text kind", "embeddings that are texts", "image_embeds is <U1")
def _(place):
    place.embeddings(image_embeds=np.array([["a"] * 3] * 3))


@fault("embeddings scalar", "a single number for embeddings", "text_embeds is float64 of shape ()")
def _(place):
    place.embeddings(text_embeds=np.array(1.0))


@fault("embeddings nan", "an embedding that is NaN", "NaN or infinity")
def _(place):
    place.embeddings(image_embeds=np.eye(3) * np.nan)


@fault("embeddings photo", "a caption of photo 7 of 3", "image_of_text")
def _(place):
    place.embeddings(image_of_text=np.array([0, 1, 7]))


@fault("embeddings prior", "a prior of 3", "prior must lie between 0 and 1")
def _(place):
    place.embeddings(prior=np.array(3.0))


@fault("judgements number", "judgements that are a number", "--judgements", "not a list")
def _(place):
    place.judgements("judgements.json", "5")


@fault("judgements record", "a judgement without answers", "record 0")
def _(place):
    place.judgements("judgements.json", '[{"image": "a", "caption_of": "b", "caption_no": 0}]')


@fault("judgements infinite", "a caption's number of 1e999", "record 0")
def _(place):
    place.judgements("judgements.json",
                     '[{"image": "a", "caption_of": "b", "caption_no": 1e999, "yes": 1, "no": 0}]')


@fault("judgements line", "a line of two columns", "line 1")
def _(place):
    place.judgements("judgements.txt", "a\tb#0\n")


# ---------------------------------------------------------------------------------- the table holds


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train.main(command(data, folder, "--num_epochs", "1", "--no_figures"))
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", FAULTS)
def test_fault(data, finished, tmp_path, capsys, name):
    _, told, make = FAULTS[name]
    place = Place(tmp_path, data, finished)
    make(place)
    before = contents(tmp_path) | contents(finished)
    expect_exit(place.arguments, 2, capsys, told, place.main)
    after = contents(tmp_path) | contents(finished)
    assert {path: after[path] for path in before} == before
    assert not (tmp_path / "ran").exists() and not list(tmp_path.rglob("*.tar.part"))


def test_the_table_of_faults_is_that_of_the_tests():
    assert len(FAULTS) >= 40
    table = (ROOT / "tests" / "FAULTS.md").read_text()
    rows = re.findall(r"^\| (.*?) \| .* \| `test_fault\[(.*?)\]` \|$", table, re.MULTILINE)
    assert rows == [(described, name) for name, (described, _, _) in FAULTS.items()]
    sources = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    for test in re.findall(r"`(test_\w+)(?:\[.*?\])?`", table):
        assert f"def {test}(" in sources


# --------------------------------------------------------------------------------- looking for more

FEW = settings(max_examples=40, deadline=None, derandomize=True, database=None,
               suppress_health_check=list(HealthCheck))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["image", "caption", "images", "split", "filename", "sentences", "raw",
                         "matches", "caption_of", "caption_no", "yes", "no"]), inner, max_size=4),
    max_leaves=8)
RECORD = st.fixed_dictionaries({"image": st.text(max_size=4) | JSON, "caption": JSON})
JUDGEMENT = st.fixed_dictionaries(dict(image=JSON | st.just("a"), caption_of=JSON | st.just("b"),
                                       caption_no=JSON, yes=JSON, no=JSON))


def loads_or_tells(read, *arguments):
    """Either it loads, or an InputError says why in one line; nothing else."""
    try:
        read(*arguments)
    except InputError as error:
        assert str(error) and "\n" not in str(error).replace("\r", "\n")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@FEW
@given(content=st.lists(RECORD, min_size=1, max_size=3) | JSON | st.fixed_dictionaries(
    {"images": st.lists(JSON, max_size=3)}))
def test_any_json_for_a_split(scratch, content):
    (scratch / "shapes_val.json").write_text(json.dumps(content))
    loads_or_tells(read_split, "shapes", "val", scratch, scratch)


@FEW
@given(content=st.fixed_dictionaries({"matches": st.lists(JSON, min_size=2, max_size=2)}) | JSON)
def test_any_json_for_matches(scratch, content):
    (scratch / "shapes_test_matches.json").write_text(json.dumps(content))
    loads_or_tells(read_matches, scratch / "shapes_test.json", 2, 3)


@FEW
@given(content=st.lists(JUDGEMENT, min_size=1, max_size=2) | JSON)
def test_any_json_for_judgements(scratch, content):
    (scratch / "judgements.json").write_text(json.dumps(content))
    (scratch / "shapes_val.json").write_text('[{"image": "a", "caption": "x"}, '
                                             '{"image": "b", "caption": ["y", "z"]}]')
    split = read_split("shapes", "val", scratch, scratch)
    loads_or_tells(read_judgements, scratch / "judgements.json", split)


@FEW
@given(lines=st.lists(st.lists(st.text(max_size=4) | st.sampled_from(["a", "b#0", "1", "nan"]),
                               max_size=6).map("\t".join), max_size=3))
def test_any_text_for_judgements(scratch, lines):
    (scratch / "judgements.txt").write_text("\n".join(lines), encoding="utf-8",
                                            errors="surrogatepass")
    (scratch / "shapes_val.json").write_text('[{"image": "a", "caption": "x"}, '
                                             '{"image": "b", "caption": ["y", "z"]}]')
    split = read_split("shapes", "val", scratch, scratch)
    loads_or_tells(read_judgements, scratch / "judgements.txt", split)


def damaged(draw, content):
    """Bytes with some of them changed, and perhaps cut short."""
    content = bytearray(content)
    for _ in range(draw(st.integers(0, 6))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@settings(FEW, max_examples=25)
@given(choice=st.data())
def test_any_damage_to_a_photo(scratch, kind, choice):
    path = scratch / "photo"
    values = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    Image.fromarray(values).save(path, kind)
    path.write_bytes(damaged(choice.draw, path.read_bytes()))
    loads_or_tells(load_photo, path)
    assert isinstance(photo_fault(path), str | None)


@FEW
@given(choice=st.data())
def test_any_damage_to_a_checkpoint(scratch, choice):
    path = scratch / "small.pth.tar"
    storage.save(path, {"format": checkpoint.FORMAT, "options": {"seed": 1},
                        "model": {"weight": torch.ones(3)}, "criterion": {}})
    path.write_bytes(damaged(choice.draw, path.read_bytes()))
    loads_or_tells(checkpoint.read, path)


@FEW
@given(choice=st.data())
def test_any_damage_to_embeddings(scratch, choice):
    path = scratch / "small.npz"
    np.savez(path, image_embeds=np.eye(2), text_embeds=np.eye(2), image_of_text=np.arange(2),
             images=np.array(["a", "b"]), captions=np.array(["x", "y"]))
    path.write_bytes(damaged(choice.draw, path.read_bytes()))
    loads_or_tells(read_embeddings, path)
