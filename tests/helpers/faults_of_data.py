"""Faults of splits, photos, vocabularies and encoders."""

import json

from PIL import Image

from helpers.faults import fault
from inputs.photos import MAX_PIXELS
from scripts import check_data

# ------------------------------------------------------------------------------------------- json

@fault("a split's json is cut short", "shapes_train.json", "read as json")
def json_cut_short(place):
    path = place.data / "shapes_train.json"
    path.write_bytes(path.read_bytes()[:-20])


@fault("a split's json is not UTF-8", "shapes_val.json", "read as json")
def json_not_utf_8(place):
    (place.data / "shapes_val.json").write_bytes(b'[{"image": "\xff\xfe"}]')


@fault("lists in lists, 100,000 deep", "shapes_test.json", "read as json")
def json_too_deep(place):
    (place.data / "shapes_test.json").write_text("[" * 100_000)


@fault("an empty list", "shapes_train.json holds no train records")
def json_empty(place):
    place.json(lambda records: [])


@fault("a number in place of a list", "shapes_train.json holds no train records")
def json_a_number(place):
    place.json(lambda records: 7)


@fault("an object that is no Karpathy file", "no Karpathy split file")
def json_no_karpathy_file(place):
    place.json(lambda records: {"a": 1})


@fault("a Karpathy record without sentences", "images[0] lacks")
def karpathy_record_without_sentences(place):
    place.json(lambda records: {"images": [{"split": "train", "filename": "x.png"}]})


@fault("a record without caption", "record 3", "no 'caption'")
def json_no_caption(place):
    place.json(lambda records: records[3].pop("caption") and None)


@fault("a caption that is a number", "record 2", "neither text nor a list")
def json_caption_a_number(place):
    place.json(lambda records: records[2].update(caption=5))


@fault("a photo's name that is a list", "record 2", "path inside")
def json_name_a_list(place):
    place.json(lambda records: records[2].update(image=["a"]))


@fault("a photo named ../../secret", "record 0", "path inside the photo folder")
def json_name_outside(place):
    place.json(lambda records: records[0].update(image="../../secret.png"))


@fault("a photo named /etc/passwd", "record 0", "path inside the photo folder")
def json_name_absolute(place):
    place.json(lambda records: records[0].update(image="/etc/passwd"))


@fault("a photo's name with a NUL byte", "is missing")
def json_name_with_nul(place):
    place.json(lambda records: records[0].update(image="a\0b.png"))


@fault("a photo's name of 5,000 letters", "is missing")
def json_name_too_long(place):
    place.json(lambda records: records[0].update(image="a" * 5000))


@fault("a photo's name with line breaks", "is missing")
def json_name_with_line_breaks(place):
    place.json(lambda records: records[0].update(image="a\nb\nc.png"))


@fault("a photo's name that no file can have", "is missing")
def json_name_of_no_file(place):
    place.json(lambda records: records[0].update(image="\ud800.png"))


@fault("a match that is no photo's number", "matches of caption 1")
def matches_out_of_range(place):
    place.json(lambda content: content["matches"][1].append(999), "train_matches")


@fault("true and false in place of numbers", "matches of caption 0")
def matches_true_and_false(place):
    place.json(lambda content: content["matches"].__setitem__(0, [True, False]), "train_matches")


@fault("matches of fewer captions", "does not list the 'matches' of")
def matches_too_few(place):
    place.json(lambda content: content["matches"].pop() and None, "val_matches")


# ----------------------------------------------------------------------------------------- photos

@fault("a photo that is not there", "train_00002.png", "is missing")
def photo_gone(place):
    (place.images / "train_00002.png").unlink()


@fault("a photo cut short", "val_00003.png", "cut short")
def photo_cut_short(place):
    path = place.images / "val_00003.png"
    path.write_bytes(path.read_bytes()[:200])


@fault("a text named .png", "val_00001.png", "cut short or no photo")
def photo_a_text(place):
    (place.images / "val_00001.png").write_text("no photo")


@fault("PostScript named .png, which Pillow would have Ghostscript run",
       "val_00001.png", "no photo")
def photo_postscript(place):
    Image.new("RGB", (40, 40)).save(place.images / "val_00001.png", "EPS")


@fault("a photo of a few kB that decodes to 100 million pixels", "val_00001.png",
       "pixels, more than")
def photo_bomb(place):
    Image.new("1", (20_000, MAX_PIXELS // 20_000 + 1)).save(place.images / "val_00001.png")


@fault("a photo that is a link out of the folder", "val_00001.png",
       "link out of that folder", "--follow_links")
def photo_linked_out(place):
    path = place.images / "val_00001.png"
    outside = place.folder / "outside.png"
    path.rename(outside)
    path.symlink_to(outside)


@fault("a folder of photos that is a file", "--data_path")
def photo_folder_a_file(place):
    place.main = check_data.main
    place.arguments = ["--dataset", "shapes", "--data_path", place.file("photos", "x")]


# ----------------------------------------------------------------------------- vocabularies, models

@fault("a vocabulary that is not there", "--vocab")
def vocab_gone(place):
    place.arguments += ["--vocab", str(place.folder / "nothing.txt")]


@fault("a vocabulary of bytes that are no text", "--vocab")
def vocab_binary(place):
    place.arguments += ["--vocab", place.file("vocab.txt", bytes(range(256)))]


@fault("an empty vocabulary", "--vocab")
def vocab_empty(place):
    place.arguments += ["--vocab", place.file("vocab.txt", "")]


@fault("a vocabulary without [UNK]", "--vocab", "[UNK]")
def vocab_without_unk(place):
    place.arguments += ["--vocab", place.file("vocab.txt", "[PAD]\n[CLS]\n[SEP]\n[MASK]\na\n")]


@fault("an encoder's folder that brings code to run", "--image_encoder")
def encoder_with_code(place):
    folder = place.folder / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(
        {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Model"}}))
    (folder / "evil.py").write_text(f"open({str(place.folder / 'ran')!r}, 'w')\nclass Evil: pass\n")
    place.arguments += ["--image_encoder", str(folder)]


@fault("an encoder's folder with a broken config.json", "--text_encoder")
def encoder_config_broken(place):
    folder = place.folder / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text("{")
    place.arguments += ["--text_encoder", str(folder)]
