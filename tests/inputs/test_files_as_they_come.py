"""Files as they are really distributed: odd rows, lists in cells, paths, photos of phones."""

import io
import json
import struct
import unicodedata
import zlib

import numpy as np
import pytest
from helpers.captions import word_tokenizer
from helpers.photos import noise, save
from helpers.runs import command, expect_exit
from PIL import Image

import train
from common.errors import InputError
from data import load_train_set, read_split
from inputs.captions import Captions
from inputs.photos import Photos, load_photo, photo_fault
from inputs.records import Columns, cell_captions, read_records
from scripts import split as split_command
from training.options import parse


def table(folder, text, name="x.csv"):
    (folder / name).write_text(text)
    return folder / name


def pairs_of(path, **more):
    return [(record.image, *record.captions) for record in read_records(path, **more)]


# ------------------------------------------------------------------------------------------- tables

BARS = "image_name| comment_number| comment\n1.jpg| 0| A man .\n"


@pytest.mark.parametrize(("row", "pair"), [
    ("2.jpg| 4   A dog runs across the grass .", ("2.jpg", "A dog runs across the grass .")),
    ("2.jpg 4| A dog .", ("2.jpg", "A dog .")),
    ("2.jpg| 0| A dog | or a cat .", ("2.jpg", "A dog | or a cat .")),
    ("2.jpg| 0| A dog .|", ("2.jpg", "A dog .")),
    ('2.jpg| 0| " Trix " is on a shirt', ("2.jpg", '" Trix " is on a shirt')),
    ('2.jpg| 0| " Trix', ("2.jpg", '" Trix')), ('2.jpg| 0| a 6" pipe', ("2.jpg", 'a 6" pipe'))])
def test_a_row_is_read_as_it_is_meant(tmp_path, row, pair, capsys):
    path = table(tmp_path, f"{BARS}{row}\n3.jpg| 0| A cat .\n")
    assert pairs_of(path) == [("1.jpg", "A man ."), pair, ("3.jpg", "A cat .")]
    out, error = capsys.readouterr()
    assert "photos from column 'image_name', captions from 'comment'" in out
    repaired = '"' not in row
    assert ("such as row 3" in error) == repaired and error.count("\n") == repaired


@pytest.mark.parametrize("row", ["2.jpg", "2.jpg| A dog .", "2.jpg|0|A|dog", "| 0| A dog",
                                 "2.jpg| 0| nan", "../2.jpg| 0| A dog .", "2.jpg A dog ."])
def test_a_row_that_is_not_clear_is_refused_or_skipped(tmp_path, row, capsys):
    path = table(tmp_path, f"{BARS}{row}\n3.jpg| 0| A cat .\n")
    with pytest.raises(InputError, match="row 3"):
        read_records(path)
    assert capsys.readouterr() == ("", "")
    assert pairs_of(path, bad_rows="skip") == [("1.jpg", "A man ."), ("3.jpg", "A cat .")]
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "1 rows are left out" in error and "row 3" in error


def test_quotes_quote_where_the_file_uses_them_for_that(tmp_path):
    rows = [f'{number}.jpg,"A dog, number {number}, says ""hi"""\n' for number in range(3)]
    path = table(tmp_path, "image,caption\n" + "".join(rows))
    assert pairs_of(path)[2] == ("2.jpg", 'A dog, number 2, says "hi"')
    table(tmp_path, "image,caption\n" + "".join(rows) + '4.jpg,"A dog" barks\n')
    with pytest.raises(InputError, match="row 5 cannot be read"):
        read_records(path)
    assert len(read_records(path, bad_rows="skip")) == 3


@pytest.mark.parametrize(("header", "images", "captions"), [
    ("image_name,comment", 0, (1,)), ("raw,sentids,split,filename,img_id", 3, (0,)),
    ("img,sentence", 0, (1,)), ("image_path,caption_0,caption_1,caption_2", 0, (1, 2, 3)),
    ("Image Path,Caption1,Caption2", 0, (1, 2)), ("caption,caption_2,image", 2, (0, 1)),
    ("img_id,captions,img_path", 2, (1,)), ("filename,raw,text", 0, (2,))])
def test_usual_names_of_columns_are_known(tmp_path, header, images, captions, capsys):
    names = header.split(",")
    cells = ["x.jpg" if number == images else "train" if names[number] == "split"
             else f"text {number}" for number in range(len(names))]
    path = table(tmp_path, f"{header}\n{','.join(cells)}\n")
    assert pairs_of(path) == [("x.jpg", *(f"text {number}" for number in captions))]
    out = capsys.readouterr().out
    assert all(repr(names[number]) in out for number in (images, *captions))


def test_several_columns_can_be_named_and_one_may_be_empty(tmp_path):
    path = table(tmp_path, "image,a,b\n1.jpg,x,y\n2.jpg,,z\n3.jpg,nan,w\n")
    assert pairs_of(path, columns=Columns(None, "a, b")) == [
        ("1.jpg", "x", "y"), ("2.jpg", "z"), ("3.jpg", "w")]
    path = table(tmp_path, "image,text,caption\n1.jpg,x,y\n")
    with pytest.raises(InputError, match="'text', 'caption': name one .*separated by commas"):
        read_records(path)


@pytest.mark.parametrize("value", ["nan", "None", "NULL", "NaN", "NA", "N/A", "<NA>", "", " ",
                                   "null", "#N/A"])
def test_what_stands_for_a_missing_value_is_no_caption(tmp_path, value):
    path = table(tmp_path, f"image,caption\n1.jpg,x\n2.jpg,{value}\n")
    with pytest.raises(InputError, match="row 3"):
        read_records(path)
    assert pairs_of(path, bad_rows="skip") == [("1.jpg", "x")]
    path = table(tmp_path, f"image,caption\n1.jpg,x\n{value},y\n")
    with pytest.raises(InputError, match="row 3"):
        read_records(path)


@pytest.mark.parametrize(("text", "told"), [
    ('[{"image": "1.jpg", "caption": "x"}, {"image": "2.jpg", "caption": NaN}]', "record 1"),
    ('[{"image": "1.jpg", "caption": "x"}, {"image": "2.jpg", "caption": null}]', "record 1"),
    ('[{"image": "1.jpg", "caption": "x"}, {"image": "2.jpg", "caption": ["a", null]}]',
     "record 1")])
def test_a_missing_value_of_json_is_told_or_skipped(tmp_path, text, told):
    path = table(tmp_path, text, "x.json")
    with pytest.raises(InputError, match=told):
        read_records(path)
    assert pairs_of(path, bad_rows="skip") == [("1.jpg", "x")]


@pytest.mark.parametrize(("cell", "captions"), [
    ("""['A dog.', "It's a cat."]""", ["A dog.", "It's a cat."]),
    ("""['A dog.' "It's a cat."\n 'x']""", ["A dog.", "It's a cat.", "x"]),  # as NumPy writes it
    ("""('A dog.', 'a cat')""", ["A dog.", "a cat"]),
    ("""[{'raw': 'A dog.', 'tokens': ['a']}, {'raw': 'x'}]""",
     [{"raw": "A dog.", "tokens": ["a"]}, {"raw": "x"}]),
    (r"""['say \'hi\'', 'a\\b', '\u72ac']""", ["say 'hi'", "a\\b", "犬"]),
    ('["a", "b"]', ["a", "b"]), ("[sic] a dog", "[sic] a dog"), ("(a dog)", "(a dog)"),
    ("('a dog')", "('a dog')"), ("'quoted'", "'quoted'")])
def test_a_list_in_a_cell_is_read(cell, captions):
    assert cell_captions(cell, "x") == captions


@pytest.mark.parametrize("cell", ["['a', open('ran', 'w')]", "['a', __import__('os')]", "['a",
                                  "['a' for x in y]", "['a'] + ['b']", "['a', b]"])
def test_nothing_in_a_cell_is_evaluated(cell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is no list of texts"):
        cell_captions(cell, "x")
    assert not (tmp_path / "ran").exists()


def test_flickrs_own_file_may_have_a_space_for_a_tab(tmp_path, capsys):
    path = table(tmp_path, "1.jpg#0\tA dog .\n2.jpg#1 A cat .\n3.jpg\tx\n", "results.token")
    assert pairs_of(path, bad_rows="skip") == [("1.jpg", "A dog ."), ("2.jpg", "A cat .")]
    assert "line 3" in capsys.readouterr().err


# ------------------------------------------------------------------------ photos that are not there


def test_the_split_leaves_out_photos_that_are_not_in_the_folder(tmp_path, capsys):
    save(tmp_path / "photos", [f"{n}.jpg" for n in range(4)])
    rows = [f"{n}.jpg,x\n" for n in range(4)]
    path = table(tmp_path, "image,caption\n" + "".join(rows) + "2258277193_586949ec62.jpg.1,y\n")
    split_command.main([str(path), "--out", str(tmp_path / "out"), "--val", "1", "--test", "1",
                        "--photos", str(tmp_path / "photos")])
    assert "1 of 5 photos are not in" in capsys.readouterr().err
    found = [record["image"] for part in ("train", "val", "test")
             for record in json.loads((tmp_path / "out" / f"{part}.json").read_text())]
    assert sorted(found) == [f"{n}.jpg" for n in range(4)]


def test_training_leaves_out_photos_that_are_not_there(tmp_path, capsys):
    save(tmp_path, ["0.png", "2.png"])
    for part in "train", "val", "test":
        (tmp_path / f"{part}.json").write_text(json.dumps(
            [{"image": f"{n}.png", "caption": [f"a {n}", f"b {n}"]} for n in range(3)]))
    (tmp_path / "train_matches.json").write_text(json.dumps(
        {"matches": [[0], [0, 2], [1], [1], [2], [0, 1, 2]]}))
    options, _ = parse("", ["--dataset", "custom", "--data_path", str(tmp_path),
                            "--missing_photos", "skip"])
    loaded = load_train_set(options, word_tokenizer())
    assert loaded.split.images == ["0.png", "2.png"]
    assert loaded.split.captions == ["a 0", "b 0", "a 2", "b 2"]
    assert loaded.split.image_of_text.tolist() == [0, 0, 1, 1]
    assert loaded.split.matches.tolist() == [[True, False], [True, True], [False, True],
                                             [True, True]]
    assert list(loaded.photos) == [tmp_path / "0.png", tmp_path / "2.png"]
    error = capsys.readouterr().err
    assert "1 of 3 photos are not there" in error and "1.png" in error
    options.missing_photos = "refuse"
    with pytest.raises(InputError, match="1 of 3 photos .*1.png, is missing"):
        load_train_set(options, word_tokenizer())


@pytest.mark.parametrize("name", [
    "images\\1.jpg", "C:\\data\\images\\1.jpg", "somewhere/images/1.jpg", "./images//1.jpg",
    "images/1.JPG", "elsewhere/1.jpg"])
def test_paths_of_another_system_are_found(tmp_path, name):
    save(tmp_path, ["images/1.jpg", "1.jpg"])
    rows = [{"file_name": name, "text": "x"}]
    (tmp_path / "train.jsonl").write_text(json.dumps(rows[0]))
    split = read_split("custom", "train", tmp_path)
    assert split.photos.missing(0) is None and split.photos.load(0)


def test_accents_of_another_system_are_found(tmp_path):
    save(tmp_path, [unicodedata.normalize("NFD", "caf\u00e9.png")])
    photos = Photos([unicodedata.normalize("NFC", "caf\u00e9.png")], tmp_path)
    assert photos.missing(0) is None


@pytest.mark.parametrize("name", ["..\\secret.jpg", "images\\..\\..\\secret.jpg", "\\etc\\x.jpg"])
def test_no_path_of_another_system_leads_out_of_the_folder(tmp_path, name):
    path = table(tmp_path, json.dumps({"image": name, "text": "x"}), "x.jsonl")
    with pytest.raises(InputError, match="must be a path inside the photo folder"):
        read_records(path)


# -------------------------------------------------------------------------------- photos of a phone


def rotated(path):
    """A photo of 60 x 30 that its EXIF data turn to 30 x 60."""
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(60, 30).save(path, "JPEG", exif=exif, quality=95)


@pytest.mark.parametrize(("dataset", "exif", "size"), [
    ("custom", "auto", (30, 60)), ("custom", "ignore", (60, 30)), ("flickr", "auto", (60, 30)),
    ("mscoco", "auto", (60, 30)), ("flickr8k", "auto", (60, 30)), ("flickr", "apply", (30, 60))])
def test_the_orientation_is_applied_to_peoples_own_photos(tmp_path, dataset, exif, size):
    rotated(tmp_path / "1.jpg")
    prefix = {"custom": "", "flickr": "flickr30k_", "mscoco": "coco_", "flickr8k": "flickr8k_"}
    (tmp_path / f"{prefix[dataset]}train.json").write_text('[{"image": "1.jpg", "caption": "x"}]')
    split = read_split(dataset, "train", tmp_path, tmp_path, exif=exif)
    assert split.photos.load(0).size == size and split.photos[:1].load(0).size == size


def test_exif_data_that_are_damaged_turn_nothing(tmp_path):
    rotated(tmp_path / "1.jpg")
    content = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(content.replace(b"Exif\0\0MM\0*", b"Exif\0\0MM\0+"))
    assert load_photo(tmp_path / "1.jpg", upright=True).size in ((60, 30), (30, 60))


def test_heic_is_read_with_its_package(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    image = Image.new("RGB", (64, 48), (200, 30, 30))
    heif.from_pillow(image).save(tmp_path / "1.heic")
    assert photo_fault(tmp_path / "1.heic") is None
    found = np.asarray(load_photo(tmp_path / "1.heic")).astype(int)
    assert found.shape == (48, 64, 3) and abs(found - [200, 30, 30]).max() < 16


def test_heic_without_its_package_is_told_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr("inputs.photos.reads_heic", lambda: False)
    (tmp_path / "1.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(500))
    assert "pip install -r requirements-heic.txt" in photo_fault(tmp_path / "1.jpg")
    with pytest.raises(InputError, match="1.jpg cannot be decoded: it is a HEIC photo"):
        load_photo(tmp_path / "1.jpg")


@pytest.mark.parametrize(("content", "told"), [
    (b"<!DOCTYPE html><html>" * 9, "a web page"), (b"<html><body>" * 9, "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"), (b"%PDF-1.4" * 9, "PDF"),
    (b"8BPS" + bytes(99), "Photoshop"), (b"\0\0\0\x0cJXL \r\n" + bytes(99), "JPEG XL"),
    (b"\0\0\0\x1cftypavif" + bytes(99), "AVIF"), (b"<svg xmlns=" * 9, "SVG"), (b"", "empty")])
def test_what_a_file_really_is_is_told(tmp_path, content, told):
    (tmp_path / "1.jpg").write_bytes(content)
    assert told in photo_fault(tmp_path / "1.jpg")
    with pytest.raises(InputError, match=told):
        load_photo(tmp_path / "1.jpg")


def chunk(kind, content):
    return struct.pack(">I4s", len(content), kind) + content + struct.pack(
        ">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP", b"tEXt damaged"])
def test_a_png_with_a_text_that_pillow_refuses_is_decoded(tmp_path, kind, behind):
    """3 MB of text, compressed to 3 KB; or a text whose checksum is wrong."""
    buffer = io.BytesIO()
    noise().save(buffer, "PNG")
    content = buffer.getvalue()
    packed = zlib.compress(bytes(3_000_000))
    text = {b"zTXt": chunk(b"zTXt", b"Comment\0\0" + packed),
            b"iTXt": chunk(b"iTXt", b"Comment\0\x01\0\0\0" + packed),
            b"iCCP": chunk(b"iCCP", b"profile\0\0" + packed),
            b"tEXt damaged": chunk(b"tEXt", b"Comment\0x")[:-4] + b"\0\0\0\0"}[kind]
    place = len(content) - 12 if behind else 33  # before the end, or behind the header
    path = tmp_path / "1.png"
    path.write_bytes(content[:place] + text + content[place:])
    assert photo_fault(path) is None
    assert np.array_equal(load_photo(path), noise())


# ------------------------------------------------------------------------------------ other scripts


@pytest.mark.parametrize("text", ["一只狗，在草地上跑。", "كلب يجري، أليس كذلك؟",
                                  "Ein süßer Hund – groß!"])
def test_raw_captions_are_the_text_as_it_is(text):
    seen = []

    class Tokenizer:
        pad_token_id = 0

        def __call__(self, texts, **settings):
            seen.extend(texts)
            return {"input_ids": [[1]] * len(texts)}

    Captions([text], Tokenizer(), 3, 30, prefix="query: ", cleaning="raw")
    assert seen == [f"query: {text}"]


def test_a_run_on_raw_captions_goes_on_with_them_alone(data, tmp_path, capsys):
    train.main(command(data, tmp_path / "run", "--num_epochs", "1", "--captions", "raw"))
    expect_exit(command(data, tmp_path / "run", "--num_epochs", "2", "--captions", "published",
                        "--resume", "auto"), 2, capsys, ["--captions published does not fit"])
