"""Faults of splits, photos, vocabularies and encoders."""

import json

from helpers.faults import fault
from PIL import Image

from inputs.photos import MAX_PIXELS
from scripts import check_data

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
