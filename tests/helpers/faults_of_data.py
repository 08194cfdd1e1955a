"""Faults of splits, photos, vocabularies and encoders."""

import json

import pytest
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


# --------------------------------------------------------------------------------------- own data

TABLE = "file_name,text\nimages/train_00000.png,x\nimages/train_00001.png,y\n"


@fault("a table of own data that is not there", "no val.json, val.jsonl, val.csv or val.tsv is in",
       "--json_path", "scripts.split")
def own_split_gone(place):
    place.own(val_csv=None)


@fault("--json_path that is a single captions file", "is a file: split it", "scripts.split")
def own_file_not_split(place):
    place.own()
    place.arguments += ["--json_path", str(place.data / "train.csv")]


@fault("two files for one split", "test.json", "test.csv", "take one away")
def own_split_twice(place):
    place.own(test_json="[]")


@fault("a table that is not UTF-8", "train.csv: line 4 is not UTF-8 (byte 0xe9)", "save the file")
def table_not_utf_8(place):
    place.own(train_csv=TABLE.encode() + "a.png,caf\xe9\n".encode("latin-1"))


@fault("a table in UTF-16, as some spreadsheets save it", "line 1 is not UTF-8")
def table_utf_16(place):
    place.own(train_csv=TABLE.encode("utf-16"))


@fault("a table with a NUL byte", "val.csv: line 3 holds a NUL byte")
def table_with_nul(place):
    place.own(val_csv=TABLE.replace("01.png,y", "01.png,\0"))


@fault("an empty table", "train.csv is empty")
def table_empty(place):
    place.own(train_csv="\n\n")


@fault("a table of a header alone", "a header and no row under it")
def table_header_alone(place):
    place.own(train_csv="file_name,text\n")


@fault("a table without a header", "'images/train_00000.png', 'x', and none is called file_name",
       "--image_column")
def table_without_header(place):
    place.own(train_csv=TABLE.partition("\n")[2])


@fault("two columns that may be the captions", "'text', 'caption': name one with --caption_column")
def table_two_caption_columns(place):
    place.own(train_csv="file_name,text,caption\na.png,x,y\n")


@fault("two columns of one name", "2 columns 'text': rename all but one")
def table_column_twice(place):
    place.own(train_csv="file_name,text,text\na.png,x,y\n")


@fault("--caption_column that no column is called", "none is called 'words'", "--caption_column")
def table_column_gone(place):
    place.own()
    place.arguments += ["--caption_column", "words"]


@fault("a comma in a caption without quotes", "row 4 has 3 columns and the header 2",
       "into quotes")
def table_ragged(place):
    place.own(train_csv=TABLE + "a.png,a dog,asleep\n")


@fault("a quote that is not closed", "row 3 cannot be read", "close every quote")
def table_quote_open(place):
    place.own(train_csv=TABLE.replace(",x", ',"x, z"').replace(",y", ',"y') + "a.png,z\n")


@fault("a cell of more letters than csv takes", "row 4 cannot be read (field larger than")
def table_cell_too_long(place):
    place.own(train_csv=TABLE + f"a.png,{'y' * 140_000}\n")


@fault("rows without a caption", "row 4 has nothing in column 'text'", "take the row out",
       "2 rows are not in order")
def table_caption_empty(place):
    place.own(train_csv=TABLE + "a.png,\nb.png,  \n")


@fault("a row without a photo, behind a caption of two lines",
       "row 5 (line 6) has nothing in column 'file_name'")
def table_photo_empty(place):
    place.own(train_csv=TABLE + 'a.png,"x\ny"\n,z\n')


@fault("a row with a photo named ../../secret", "row 4", "'file_name'", "path inside")
def table_name_outside(place):
    place.own(train_csv=TABLE + "../../secret.png,x\n")


@fault("a cell that begins like a list and is none", "row 4: 'text' begins like a list")
def table_python_list(place):
    place.own(train_csv=TABLE + "a.png,\"['x', open('y')]\"\n")


@fault("a line of a jsonl file that is cut short", "train.jsonl: line 2 cannot be read as json")
def jsonl_cut_short(place):
    place.own(train_csv=None, train_jsonl='{"image": "a.png", "text": "x"}\n{"image": "b.p')


@fault("a line of a jsonl file without caption", "train.jsonl: line 2 has no 'text'")
def jsonl_no_caption(place):
    place.own(train_csv=None, train_jsonl='{"image": "a.png", "text": "x"}\n{"image": "b.png"}\n')


@fault("a jsonl file that holds a list", "train.jsonl: line 1 is no object")
def jsonl_a_list(place):
    place.own(train_csv=None, train_jsonl='[{"image": "a.png", "text": "x"}]\n')


@fault("a photo of own data in two splits", "2 photos of", "val.csv are in", "train.csv too",
       "scripts.split")
def own_photo_in_two_splits(place):
    place.own(val_csv=TABLE.replace("images/", "./images//"))


@fault("a column named for a file that has none", "leave out --image_column")
def karpathy_columns(place):
    place.json(lambda records: {"images": []})
    place.arguments += ["--image_column", "photo"]


@fault("captions of an owner without a split", "says nothing of splits",
       "put dataset_flickr30k.json beside it")
def owners_without_split(place):
    (place.data / "results_20130124.token").write_text("a.jpg#0\tA dog .\n")
    place.arguments += ["--dataset", "flickr", "--text_encoder", "tiny-bert"]


@fault("captions of an owner that lack a photo of the split", "without captions of 1 photos",
       "'b.jpg'", "put all of results_20130124.token into")
def owners_photo_gone(place):
    owners_without_split(place)
    (place.data / "dataset_flickr30k.json").write_text(json.dumps(
        {"images": [{"filename": name, "split": "train"} for name in ("a.jpg", "b.jpg")]}))


@fault("sizes that leave nothing to train on", "--val 2 --test 1 leave no photo", "there are 3")
def split_too_large(place):
    place.split(None, "--val", "2", "--test", "1")


@fault("no sizes, and a file that says nothing either", "no column 'split'", "--val and --test")
def split_without_sizes(place):
    place.split(None)


@fault("a split that nobody knows", "row 2: split 'holdout' is none of train, val and test")
def split_unknown(place):
    place.split("image,text,split\na.jpg,x,holdout\n")


@fault("somebody's own train.json where a split is to go", "--out", "train.json",
       "name another one")
def split_over_own_file(place):
    place.split(None, "--val", "1", "--test", "1")
    place.file("out/train.json", "[1, 2]")


@fault("a table already there where a split is to go", "has val.csv already", "another folder")
def split_beside_table(place):
    place.split(None, "--val", "1", "--test", "1")
    place.file("out/val.csv", TABLE)


@fault("pandas' nan where a caption should be", "row 4 has 'nan' in 'text'", "missing value",
       "2 rows are not in order")
def table_caption_nan(place):
    place.own(train_csv=TABLE + "a.png,nan\nb.png,NULL\n")


@fault("a table of which no row is left", "row 2 has nothing in column 'text'", "2 rows")
def table_no_row_left(place):
    place.own(train_csv="file_name,text\na.png,\nb.png,\n")
    place.arguments += ["--bad_rows", "skip"]


@fault("--split_column that no column is called", "none is called 'part'", "--split_column")
def table_split_column_gone(place):
    place.own()
    place.arguments += ["--split_column", "part"]


@fault("a table that says itself that it is another split", "row 2 says split 'test'",
       "in a file of train", "scripts.split")
def table_of_another_split(place):
    place.own(train_csv="file_name,text,split\nimages/train_00000.png,x,test\n")


@fault("sizes beside a column that says what goes where", "says itself", "row 2: split 'train'",
       "--split_column none")
def split_said_twice(place):
    place.split("image,text,split\na.jpg,x,train\nb.jpg,x,val\nc.jpg,x,test\n", "--val", "1",
                "--test", "1")


@fault("a folder that has none of the photos to be split", "none of the 3 photos", "such as a.jpg")
def split_photos_elsewhere(place):
    place.split(None, "--val", "1", "--test", "1", "--photos", str(place.images))


@fault("a photo of val that is not there, though those of train may be skipped", "val_00001.png",
       "is missing")
def photo_of_val_gone(place):
    (place.images / "val_00001.png").unlink()
    place.arguments += ["--missing_photos", "skip"]


@fault("a folder of Parquet files without a split", "has no split val, but train", "--val_path")
def parquet_without_val(place):
    parquet(place, "train")


@fault("a Parquet file cut short", "cannot be read", "parquet")
def parquet_cut_short(place):
    for path in parquet(place, "train", "val", "test").glob("train*"):
        path.write_bytes(path.read_bytes()[:200])


@fault("a Parquet file with a row without a caption", "row 1", "--bad_rows skip")
def parquet_without_caption(place):
    parquet(place, "train", "val", "test", captions=["x", None])


@fault("a data set of the Hub that brings code to run", "is a script, which would run code")
def hub_script(place):
    pytest.importorskip("datasets")
    folder = place.folder / "script"
    folder.mkdir()
    (folder / "script.py").write_text(f"open({str(place.folder / 'ran')!r}, 'w')\n")
    place.arguments += ["--dataset", "hub", "--text_encoder", "tiny-bert", "--data_path",
                        str(folder)]


def parquet(place, *parts, captions=("x", "y")):
    """Train on Parquet files of two photos in each split; their folder."""
    datasets = pytest.importorskip("datasets")
    folder = place.folder / "parquet"
    for part in parts:
        photos = [(place.images / f"{part}_0000{number}.png") for number in range(2)]
        table = datasets.Dataset.from_dict({
            "image": [{"bytes": photo.read_bytes(), "path": photo.name} for photo in photos],
            "text": list(captions)}, features=datasets.Features(
                {"image": datasets.Image(), "text": datasets.Value("string")}))
        table.to_parquet(folder / f"{part}-0.parquet")
    place.arguments += ["--dataset", "custom", "--text_encoder", "tiny-bert", "--data_path",
                        str(folder), "--cache", str(place.folder.parent / f"{place.folder.name}c")]
    return folder


# ----------------------------------------------------------------------------------------- photos


@fault("a HEIC photo that nothing here can read", "val_00001.png", "is a HEIC photo",
       "requirements-heic.txt", "convert it to JPEG")
def photo_heic(place):
    (place.images / "val_00001.png").write_bytes(b"\0\0\0\x18ftypheic" + bytes(1000))


@fault("a web page under a photo's name", "val_00001.png", "is a web page and no photo")
def photo_a_web_page(place):
    (place.images / "val_00001.png").write_text("<!DOCTYPE html><html>Not found</html>" * 9)


@fault("photos in a folder inside the one that is named, as after unzipping",
       "is missing; it is in", "name that folder with --data_path")
def photos_one_folder_down(place):
    place.own()
    place.images.rename(place.data / "photos")
    (place.data / "images").mkdir()
    (place.data / "photos").rename(place.data / "images" / "unzipped")
    place.arguments += ["--data_path", str(place.data / "images"), "--json_path", str(place.data)]



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


@fault("a folder of shapes below a file", "cannot be made there")
def shapes_below_a_file(place):
    place.arguments = ["--dataset", "shapes", "--data_path", place.file("photos", "x") + "/shapes"]


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
