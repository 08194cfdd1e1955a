"""A record: which of its columns are photo and caption, and what is wrong with it."""

from pathlib import Path

import pytest

from common.errors import InputError
from inputs.records import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    Columns,
    Record,
    check_record,
    check_rows,
    find_keys,
)

FILE = Path("x.csv")


@pytest.mark.parametrize("image", IMAGE_COLUMNS)
@pytest.mark.parametrize("caption", CAPTION_COLUMNS)
def test_usual_names_are_found_wherever_they_stand(image, caption):
    assert find_keys(["id", caption, "n", image], Columns(), FILE) == (image, (caption,), None)
    written = image.upper().replace("_", " "), caption.title().replace("_", "-")
    assert find_keys(list(written), Columns(), FILE) == (written[0], (written[1],), None)


@pytest.mark.parametrize(("columns", "keys"), [
    (Columns("photo", "words"), ("photo", "words")), (Columns(" Photo ", None), ("photo", "text")),
    (Columns(None, "words"), ("image", "words"))])
def test_names_of_the_users_own_go_before_the_usual_ones(columns, keys):
    names = ["photo", "words", *(["image"] if columns.image is None else []),
             *(["text"] if columns.caption is None else [])]
    assert find_keys(names, columns, FILE) == (keys[0], (keys[1],), None)


@pytest.mark.parametrize(("names", "columns", "told"), [
    (["a", "text"], Columns(), "columns 'a', 'text', and none is called file_name, filepath, "
                               "image, .* or the like: name yours with --image_column"),
    (["image", "b"], Columns(), "none is called text, caption, title, .*: .* --caption_column"),
    (["image", "text", "caption"], Columns(), "columns 'text', 'caption': name one with --cap"),
    (["image", "filepath", "text"], Columns(), "columns 'image', 'filepath': name one with --im"),
    (["image", "text", "text"], Columns(), "has 2 columns 'text': rename all but one"),
    (["image", "text"], Columns(None, "words"), "none is called 'words'"),
    (["image", "text"], Columns("text"), "both name 'text'"),
    ([f"{number}" * 60 for number in range(30)], Columns(), r"'0{40}\.\.\.', .*, \.\.\., and none"),
    ([], Columns(), "--image_column")])
def test_columns_that_are_not_clear_are_asked_for(names, columns, told):
    with pytest.raises(InputError, match=told) as caught:
        find_keys(names, columns, FILE)
    assert str(caught.value).count("x.csv") == 1 and len(str(caught.value)) < 800


@pytest.mark.parametrize(("record", "told"), [
    ({"image": "a.jpg", "caption": ""}, "row 3 has nothing in column 'caption': fill it in"),
    ({"image": "a.jpg", "caption": " \t"}, "row 3 has nothing in column 'caption'"),
    ({"image": " ", "caption": "x"}, "row 3 has nothing in column 'image'"),
    ({"caption": "x"}, "row 3 has nothing in column 'image'"),
    ({"image": "a.jpg", "caption": ["x", " "]}, "row 3: 'caption' has an empty text in its list"),
    ({"image": "a.jpg", "caption": ["x", 1]}, "row 3: 'caption' is neither text nor a list"),
    ({"image": "a/../../b.jpg", "caption": "x"}, "row 3: 'image' 'a/../../b.jpg' must be a path"),
    ("a.jpg", "row 3 has nothing in column 'image'")])
def test_a_row_that_is_not_in_order_is_named(record, told):
    with pytest.raises(InputError, match=f"^x.csv: {told}"):
        check_record(record, "row", 3, FILE)


def test_a_name_is_written_in_one_way():
    """So that rows of one photo meet; in triples it stays as it is, as ever."""
    record = {"image": "./a//b.jpg", "caption": "x", "split": "test"}
    assert check_record(record, "row", 3, FILE) == Record("a/b.jpg", ["x"], "test", "row 3")
    assert check_record(record, "record", 3, FILE).image == "./a//b.jpg"


def test_the_first_fault_says_how_many_there_are():
    def read(where, row):
        return check_record({"image": row, "caption": "x"}, "row", where, FILE)

    rows = [(str(number), name) for number, name in enumerate(["a", "", "b", "", ""], 2)]
    with pytest.raises(InputError, match=r"row 3 has .* \(3 rows are not in order\)$"):
        list(check_rows(rows, read, "row"))
    with pytest.raises(InputError, match="take the row out$"):
        list(check_rows(rows[:3], read, "row"))
    assert [record.image for record in check_rows(rows[::2][:2], read, "row")] == ["a", "b"]
