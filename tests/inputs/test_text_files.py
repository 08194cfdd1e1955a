"""Read piece by piece, files give what they give as a whole; and little of them is in memory."""

import json
import random
import tracemalloc
from pathlib import PurePosixPath

import pytest

from common.errors import InputError
from common.files import read_json
from inputs import text_files
from inputs.formats import each_record, read_records
from inputs.text_files import json_items, lines_of, numbered_lines, raw_lines, read_text

VALUES = [1, -12.5e3, True, None, "", "a", 'x"\\\n]},', "süß 犬", "\ud800", [], {}, [1, [2, "]"]],
          {"image": "a.jpg", "caption": ["x, y", "{"]}]


@pytest.mark.parametrize("block", [1, 2, 7, 2**22])
def test_items_of_a_list_are_those_of_the_whole(tmp_path, monkeypatch, block):
    """However a block's end parts them, numbers too; with any space and a byte-order mark."""
    monkeypatch.setattr(text_files, "BLOCK", block)
    letters, path = random.Random(block), tmp_path / "x.json"
    for number in range(60):
        wanted = letters.choices(VALUES, k=letters.randrange(6))
        text = json.dumps(wanted, indent=letters.choice([None, 0, 3]),
                          ensure_ascii=letters.random() < 0.5)
        space = letters.choice(["", " \r\n", "\n\t"])
        encoded = (space + text + space).encode("utf-8", "surrogatepass")
        if b"\xed\xa0\x80" in encoded:  # half a letter is no UTF-8: escaped alone it may be there
            encoded = json.dumps(wanted).encode()
        path.write_bytes(b"\xef\xbb\xbf" * (number % 2) + encoded)
        assert list(json_items(path)) == wanted == read_json(path)


@pytest.mark.parametrize("text", ["{}", ' {"images": []}', "3", '"["', "", " ", "null"])
def test_what_is_no_list_is_not_read_as_one(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    assert json_items(tmp_path / "x.json") is None


BROKEN = ["[", "[1", "[1,", "[1,]", "[1 2]", "[1, 2", '["a', "[1]]", "[1] x", "[,1]", "[nul]",
          '[{"a": 1}, {"a" 2}]', '["\x01"]', "[" * 100_000, "[1}", "[1,,2]"]


@pytest.mark.parametrize("block", [1, 2**22])
@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_list_is_told_of_as_of_the_whole(tmp_path, monkeypatch, text, block):
    monkeypatch.setattr(text_files, "BLOCK", block)
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError) as whole:
        read_json(path)
    with pytest.raises(InputError) as parts:
        list(json_items(path))
    assert str(parts.value) == str(whole.value)


def test_a_list_that_is_no_utf_8_is_told_of(tmp_path):
    path = tmp_path / "x.json"
    for space in 0, 2**22:
        path.write_bytes(b'[{"image": "a", "caption": "x"}, ' + b" " * space + b'"\xff"]')
        with pytest.raises(InputError, match="x.json cannot be read as json: .*0xff"):
            list(each_record(path))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_those_of_the_whole(tmp_path, end):
    """Not parted at other letters that part lines elsewhere, and blank ones counted."""
    rows = ["a", "", " \t", "b\x0b\x1c\u2028c", "d ", "", "e"]
    for text in end.join(rows), end.join([*rows, ""]):
        (tmp_path / "x").write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert list(raw_lines(tmp_path / "x")) == list(lines_of(read_text(tmp_path / "x")))
        assert list(numbered_lines(raw_lines(tmp_path / "x"))) == [
            ("1", "a"), ("4", rows[3]), ("5", "d "), ("7", "e")]


@pytest.mark.parametrize(("content", "told"), [
    (b"a\nb\0c\n", "line 2 holds a NUL byte"),
    (b"a\n" * 9000 + b"\xe4\n", "line 9001 is not UTF-8")])
def test_what_is_no_text_is_told_of_by_line(tmp_path, content, told):
    (tmp_path / "x").write_bytes(content)
    for read in read_text, lambda path: list(raw_lines(path)):
        with pytest.raises(InputError, match=f"x: {told}"):
            read(tmp_path / "x")


# Few names, which are kept: `pathlib` puts each into a table of Python's own, which may grow by
# more than is measured here.
KEPT = [PurePosixPath(f"{number}.jpg") for number in range(10)]
ROWS = [{"file_name": str(KEPT[number % 10]), "text": f"A photo of {number} dogs and a cat ."}
        for number in range(20_000)]
FILES = {"x.json": lambda: json.dumps(ROWS),
         "x.jsonl": lambda: "\n".join(map(json.dumps, ROWS)),
         "x.csv": lambda: "file_name,text\n" + "\n".join(",".join(row.values()) for row in ROWS),
         "x.token": lambda: "\n".join(f"{row['file_name']}#0\t{row['text']}" for row in ROWS)}


@pytest.mark.parametrize("name", FILES)
def test_records_come_one_after_another(tmp_path, monkeypatch, name):
    """Less is in memory than the file has bytes, by far: objects of all rows would take as much
    several times."""
    monkeypatch.setattr(text_files, "BLOCK", 2**15)
    path = tmp_path / name
    path.write_text(FILES[name]())
    tracemalloc.start()
    count = sum(1 for _ in each_record(path))
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == len(ROWS) and highest < path.stat().st_size / 3
    assert read_records(path) == list(each_record(path))
