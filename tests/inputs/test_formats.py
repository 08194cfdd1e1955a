"""Captions files of every format, and what is said of one that is not in order."""

import json

import pytest

from common.errors import InputError
from inputs.records import USUAL, Columns, read_records

PAIRS = [("a.jpg", ["A dog."]), ("b.jpg", ["A cat.", "Asleep."])]
COCO = {"images": [{"id": 7, "file_name": "a.jpg"}, {"id": 5, "file_name": "b.jpg"},
                   {"id": 6, "file_name": "without.jpg"}],
        "annotations": [{"image_id": 5, "caption": "A cat."}, {"image_id": 7, "caption": "A dog."},
                        {"image_id": 5, "caption": "Asleep."}]}
FORMATS = {
    "triples.json": [{"image": "a.jpg", "caption": "A dog."},
                     {"image": "b.jpg", "caption": ["A cat.", "Asleep."]}],
    "own_keys.json": [{"file_name": "a.jpg", "text": "A dog."},
                      {"file_name": "b.jpg", "text": ["A cat.", "Asleep."]}],
    "karpathy.json": {"images": [
        {"filename": name, "split": "val", "sentences": [{"raw": text} for text in texts]}
        for name, texts in PAIRS]},
    "coco.json": COCO,
    "x.jsonl": '{"file_name": "a.jpg", "text": "A dog."}\n\n'
               '{"text": ["A cat.", "Asleep."], "file_name": "b.jpg", "more": [1]}',
    "x.csv": "filepath\ttitle\na.jpg\tA dog.\nb.jpg\tA cat.\nb.jpg\tAsleep.\n",
    "results.token": "a.jpg#0\tA dog.\nb.jpg#0\tA cat.\nb.jpg#1\tAsleep.\n",
    "tokens.txt": "a.jpg#0\tA dog.\nb.jpg#0\tA cat.\n\nb.jpg#1\tAsleep.",
    "captions.txt": "image,caption\na.jpg,A dog.\nb.jpg,A cat.\nb.jpg,Asleep.\n",
}


def write(path, content):
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def grouped(records):
    texts = {}
    for record in records:
        texts.setdefault(record.image, []).extend(record.captions)
    return list(texts.items())


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_the_same(tmp_path, name, mark, end):
    """With a byte-order mark and any end of lines, as other systems write them."""
    path = write(tmp_path / name, FORMATS[name])
    path.write_bytes(mark + path.read_bytes().replace(b"\n", end.encode()))
    assert grouped(read_records(path)) == PAIRS


def test_only_karpathys_format_has_a_split_to_be_asked_for(tmp_path):
    content = {"images": [{"filename": f"{part}.jpg", "split": part, "filepath": "x",
                           "sentences": [{"raw": "A dog."}]}
                          for part in ("train", "restval", "val", "test")]}
    path = write(tmp_path / "x.json", content)
    assert [record.image for record in read_records(path, "train")] == [
        "x/train.jpg", "x/restval.jpg"]
    assert [record.split for record in read_records(path)] == ["train", "restval", "val", "test"]
    assert len(read_records(write(tmp_path / "x.csv", FORMATS["x.csv"]), "val")) == 3


def test_triples_may_have_other_keys_that_look_like_columns(tmp_path):
    path = write(tmp_path / "x.json", [{"image": "a.jpg", "caption": "x", "title": "no",
                                        "file_name": "no.jpg", "text": "no"}])
    assert grouped(read_records(path)) == [("a.jpg", ["x"])]
    assert grouped(read_records(path, columns=Columns("file_name", "title"))) == [
        ("no.jpg", ["no"])]


def test_letters_that_other_programs_take_for_line_ends_stay(tmp_path):
    text = "a\u2028b\x0bc\x85d"
    line = json.dumps({"image": "a.jpg", "caption": text}, ensure_ascii=False)
    for name, content in (("x.jsonl", line), ("x.csv", f"image,caption\na.jpg,{text}\n"),
                          ("x.token", f"a.jpg#0\t{text}\n")):
        assert grouped(read_records(write(tmp_path / name, content))) == [("a.jpg", [text])]


LINE = '{"image": "a.jpg", "caption": "x"}\n'


@pytest.mark.parametrize(("name", "content", "told"), [
    ("x.csv", b"file_name,text\na.jpg,caf\xe9\n", "line 2 is not UTF-8 .byte 0xe9.: save"),
    ("x.csv", "file_name,text\na.jpg,x\n".encode("utf-16"), "line 1 is not UTF-8"),
    ("x.csv", "file_name,text\na.jpg,x\n".encode("utf-16-le"), "line 1 holds a NUL byte"),
    ("x.csv", b"file_name,text\na.jpg,A\0dog\n", "line 2 holds a NUL byte"),
    ("x.jsonl", b"\xef\xbb\xbf" + LINE.encode() + b"\xff", "line 2 is not UTF-8 .byte 0xff"),
    ("x.jsonl", b"", "x.jsonl is empty"), ("x.csv", b"\n \n", "x.csv is empty"),
    ("x.jsonl", LINE + "{", "line 2 cannot be read as json"),
    ("x.jsonl", LINE + "[" * 100_000, "line 2 cannot be read as json"),
    ("x.jsonl", f"[{LINE[:-1]}]", "line 1 is no object, as"),
    ("x.jsonl", LINE + '{"image": "b.jpg"}\n', "line 2 has no 'caption': add it"),
    ("x.jsonl", LINE + '{"image": "b.jpg", "caption": null}\n', "line 2 has no 'caption'"),
    ("x.jsonl", LINE + '{"image": "b.jpg", "caption": [" "]}\n', "line 2: .* an empty text"),
    ("x.jsonl", LINE + '{"image": {"path": "b"}, "caption": "x"}\n', "line 2: 'image' .* a path"),
    ("x.jsonl", LINE + '{"image": "b", "caption": "\\ud800"}\n', "line 2: .* no Unicode text"),
    ("x.token", "a.jpg#0\tx\nb.jpg\ty\n", "line 2 is not photo#number, a tab and a caption"),
    ("x.token", "a.jpg#0\tx\n../b.jpg#0\ty\n", "photo of line 2: .* must be a path inside"),
    ("x.json", {"images": [{"id": 1}], "annotations": []}, r"images\[0\] lacks 'id' or 'file_n"),
    ("x.json", COCO | {"annotations": []}, "holds no records: its 'annotations' are empty"),
    ("x.json", COCO | {"annotations": [{"image_id": 5}]}, r"annotations\[0\] lacks .* captions\?"),
    ("x.json", COCO | {"annotations": [{"image_id": 4, "caption": "x"}]}, "not in 'images'"),
    ("x.json", COCO | {"annotations": [{"image_id": 5, "caption": 3}]}, "photo 5: 'caption' is"),
    ("x.json", [], "holds no records"), ("x.json", [{"text": "x"}], "record 0 .* no 'image'")])
def test_what_is_wrong_is_named_by_file_and_place(tmp_path, name, content, told):
    with pytest.raises(InputError, match=told) as caught:
        read_records(write(tmp_path / name, content))
    assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["karpathy.json", "coco.json", "results.token"])
def test_a_format_without_columns_takes_no_names_of_them(tmp_path, name):
    path = write(tmp_path / name, FORMATS[name])
    with pytest.raises(InputError, match="leave out --image_column and --caption_column"):
        read_records(path, columns=Columns(None, "text"))
    assert USUAL == Columns()


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "gone.csv", tmp_path / "gone.json"):
        with pytest.raises(InputError, match="cannot be read"):
            read_records(path)
