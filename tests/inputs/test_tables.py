"""Tables: delimiters, quotes, line ends, and which row is at fault."""

import csv
import random
from pathlib import Path

import pytest

from common.errors import InputError
from inputs.records import USUAL, Columns, lines_of, table_records

HEADER = "file_name,text\n"


def read(text, name="x.csv", columns=USUAL):
    return [(record.image, record.captions)
            for record in table_records(lambda: lines_of(text), Path(name), columns)]


def test_a_row_for_each_caption():
    text = "id,text,file_name\n1,A dog.,a.jpg\n2,A cat.,b/c.jpg\n3,A puppy.,a.jpg\n"
    assert read(text) == [("a.jpg", ["A dog."]), ("b/c.jpg", ["A cat."]), ("a.jpg", ["A puppy."])]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("name", "delimiter"), [
    ("x.csv", ","), ("x.tsv", "\t"), ("x.csv", "\t"), ("x.tsv", ","), ("x.csv", ";"),
    ("x.csv", "|"), ("x.txt", ","), ("x", "\t"), ("X.TSV", "\t")])
def test_the_delimiter_is_the_one_that_shows_the_columns(name, delimiter, end):
    """Whatever the suffix says, with the delimiter and line breaks inside captions as well."""
    rows = [("filepath", "n", "title"), ("a.jpg", "1", f"A dog{delimiter} brown, and; a | cat"),
            ("b.jpg", "2", f'Says "hello"{end}to you'), ("c.jpg", "3", " plain")]
    quoted = ['"{}"'.format(cell.replace('"', '""')) for row in rows for cell in row]
    text = end.join(delimiter.join(quoted[start : start + 3]) for start in range(0, 12, 3))
    assert read(text, name) == [(image, [caption]) for image, _, caption in rows[1:]]


def test_what_the_csv_module_writes_is_read(tmp_path):
    letters = random.Random(5)
    captions = ["".join(letters.choices('ab ,;"\'|\t\n\r', k=12)) + "." for _ in range(200)]
    with open(tmp_path / "x.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("image", "caption"), *((f"{number}.jpg", caption)
                                                  for number, caption in enumerate(captions))])
    with open(tmp_path / "x.csv", newline="") as file:
        found = read(file.read())
    assert [texts[0].lstrip(" ") for _, texts in found] == [text.lstrip(" ") for text in captions]


def test_space_around_names_and_empty_rows_do_not_count():
    text = '\n file_name , text ,\n a.jpg , "A dog, brown ",\n\n,,\n  \nb.jpg, A cat,\n'
    assert read(text) == [("a.jpg", ["A dog, brown "]), ("b.jpg", ["A cat"])]


def test_a_json_list_in_a_cell_is_that_many_captions():
    text = 'filename,raw\na.jpg,"[""One."", ""Two.""]"\nb.jpg,[sic] a dog\n'
    assert read(text, columns=Columns("filename", "raw")) == [
        ("a.jpg", ["One.", "Two."]), ("b.jpg", ["[sic] a dog"])]


def test_a_column_says_the_split():
    text = "image,Split,caption\na.jpg,Test,x\n"
    [record] = table_records(lambda: lines_of(text), Path("x.csv"), USUAL)
    assert (record.split, record.place) == ("Test", "row 2")


@pytest.mark.parametrize(("rows", "told"), [
    ("a.jpg,A dog,brown\nb.jpg,x\n", "row 2 has 3 columns and the header 2: .* ',' into quotes, "
     "or .* --bad_rows skip$"),
    ("a.jpg,x\nb.jpg\n", "row 3 has 1 columns and the header 2"),
    ("a.jpg,x\n\nb.jpg,\nc.jpg,\n", r"row 4 has nothing in column 'text': .* \(2 rows are not"),
    ('a.jpg,"x\ny"\n,x\n', r"row 3 \(line 4\) has nothing in column 'file_name'"),
    ('a.jpg,"x,y"\nb.jpg,"A dog\nc.jpg,y\n', "row 3 cannot be read .*: close every quote"),
    ('a.jpg,"x,y"\nb.jpg,"A dog" barks\n', "row 3 cannot be read .*: close every quote, and wri"),
    ('a.jpg,"' + "x" * 140_000 + '"\n', "row 2 cannot be read .field larger than field limit"),
    ("../a.jpg,x\n", "row 2: 'file_name' '../a.jpg' must be a path inside the photo folder"),
    ("a.jpg,\"['A dog', open('x')]\"\n", "row 2: 'text' begins like a list, and is no list of"),
    ('a.jpg,"[""A dog"", 3]"\n', "row 2: 'text' is neither text nor a list of texts"),
    ('a.jpg,"[""A dog"", ""]"\n', "row 2: 'text' begins like a list"),
    ('a.jpg,"[""A dog"", """"]"\n', "row 2: 'text' has an empty text"),
    ("", "x.csv has a header and no row under it")])
def test_what_is_wrong_is_named_by_row_and_column(rows, told):
    with pytest.raises(InputError, match=told) as caught:
        read(HEADER + rows)
    assert str(caught.value).startswith("x.csv") and "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "told"), [
    ("a.jpg,A dog\nb.jpg,x\n", "begins with the columns 'a.jpg', 'A dog', and none"),
    ("id;photo;words\n1;a.jpg;x\n", "begins with the columns 'id', 'photo', 'words', and none"),
    ("file_name,text,caption\na.jpg,x,y\n", "'text', 'caption': name one with --caption_column"),
    ('"file_name,text\na.jpg,x\n', "row 1 cannot be read"),
    (",,\n\n", "none is called")])
def test_a_header_that_is_none(text, told):
    with pytest.raises(InputError, match=told):
        read(text)
