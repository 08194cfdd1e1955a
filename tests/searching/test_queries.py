"""Queries: lines of standard input, sums of unit vectors, and captions files."""

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.photos import noise

import export
from common.errors import InputError
from inputs.records import USUAL, Columns
from searching import queries
from searching.queries import Query, embed_queries, embed_texts, read_captions, read_queries


@pytest.fixture(scope="module")
def model(exported):
    return export.read_model(exported)[0]


@pytest.fixture
def stdin(monkeypatch):
    """A function that sets the bytes of standard input."""
    def set_bytes(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return set_bytes


@pytest.fixture
def photo(tmp_path):
    noise().save(tmp_path / "one.png")
    noise(seed=1).save(tmp_path / "two.png")
    return [tmp_path / "one.png", tmp_path / "two.png"]


# ------------------------------------------------------------------------------------------ queries


def test_each_sentence_is_a_query_and_photos_are_added_to_each():
    a, b = Path("a.jpg"), Path("b.jpg")
    assert read_queries(["x", "y"], []) == [Query("x"), Query("y")]
    assert read_queries(["x", "y"], [a]) == [Query("x", (a,)), Query("y", (a,))]
    assert read_queries([], [a, b]) == [Query(None, (a, b))]
    assert read_queries(["a.jpg"], [b], by_photo=True) == [Query(None, (a, b))]


def test_lines_of_standard_input_stand_where_the_dash_does(stdin):
    stdin("\ufeffa dog\r\n\n  \n\u00e9t\u00e9 \u2028 two\n".encode())
    texts = [query.text for query in read_queries(["first", "-", "last"], [])]
    assert texts == ["first", "a dog", "\u00e9t\u00e9 \u2028 two", "last"]


@pytest.mark.parametrize("error", [IsADirectoryError(21, "Is a directory"),
                                   io.UnsupportedOperation("not readable"), OSError(5, "I/O"),
                                   ValueError("I/O operation on closed file")])
def test_standard_input_that_cannot_be_read_is_refused(monkeypatch, error):
    """A folder, say, or a file that is open for writing."""
    def read(count):
        raise error

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=SimpleNamespace(read=read)))
    with pytest.raises(InputError, match="standard input"):
        read_queries(["-"], [])


@pytest.mark.parametrize("content, named", [
    (b"", "standard input"), (b"\n \n", "standard input"), (b"ok\n\xff\n", "line 2"),
    (b"a\0b", "standard input"), (b"a dog\n...\n", "'...'")])
def test_standard_input_without_a_query_is_refused(stdin, content, named):
    stdin(content)
    with pytest.raises(InputError, match=re.escape(named)):
        read_queries(["-"], [])


def test_too_long_standard_input_is_refused(stdin, monkeypatch):
    monkeypatch.setattr(queries, "MOST_STDIN_BYTES", 100)
    stdin(b"a dog\n" * 100)
    with pytest.raises(InputError, match="100 bytes"):
        read_queries(["-"], [])


def test_closed_standard_input_and_two_dashes_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="'-'"):
        read_queries(["-"], [])
    with pytest.raises(InputError, match="'-'"):
        read_queries(["-", "-"], [])


@pytest.mark.parametrize("words, named", [
    ([], "--like"), ([""], "query ''"), (["  "], "query '  '"), (["?!, --"], "query '?!, --'"),
    (["a\udcff"], "query 'a")])
def test_a_query_that_says_nothing_is_refused(words, named):
    with pytest.raises(InputError, match=re.escape(named)):
        read_queries(words, [])


# --------------------------------------------------------------------------------------- embeddings


def test_a_query_is_the_unit_vector_of_the_sum_of_its_parts(model, photo):
    text = embed_queries(model, [Query("a red circle")])[0]
    images = [embed_queries(model, [Query(None, (path,))])[0] for path in photo]
    both = embed_queries(model, [Query("a red circle", tuple(photo))])[0]
    for row in text, *images:
        assert row.norm() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(both, F.normalize(text + images[0] + images[1], dim=0))
    with torch.no_grad():
        wanted = model.encode_image(model.preparation.pixels(photo))
    torch.testing.assert_close(torch.stack(images), wanted)


def test_many_queries_keep_their_order(model, photo):
    many = [Query("a red circle and a blue square"), Query(None, (photo[0],)), Query("a star"),
            Query("two green crosses", (photo[1],))]
    all_at_once = embed_queries(model, many)
    for query, row in zip(many, all_at_once):
        torch.testing.assert_close(embed_queries(model, [query])[0], row, rtol=0, atol=1e-5)


def test_parts_that_cancel_each_other_are_refused(model, photo, monkeypatch):
    row = embed_queries(model, [Query("a red circle")])[0]
    monkeypatch.setattr(queries, "embed_photo", lambda model, path: -row)
    with pytest.raises(InputError, match="a red circle"):
        embed_queries(model, [Query("a red circle", (photo[0],))])


def test_unknown_words_and_too_many_words_have_a_warning(model, capsys):
    embed_texts(model, ["a red circle", "\u732b \u72d7"])
    line = capsys.readouterr().err
    assert line.startswith("warning: ") and "'\u732b \u72d7'" in line and line.count("\n") == 1
    long, cut = "a red circle " * 50, "a red circle " * 10
    rows = embed_texts(model, [long, cut])
    line = capsys.readouterr().err
    assert line.startswith("warning: ") and "30 words" in line and line.count("\n") == 1
    assert torch.equal(rows[0], rows[1])


@pytest.mark.parametrize("content", [None, b"", b"no photo"])
def test_a_query_photo_that_cannot_be_read_is_named(model, tmp_path, content):
    if content is not None:
        (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(InputError, match="photo .*x.jpg"):
        embed_queries(model, [Query(None, (tmp_path / "x.jpg",))])


def test_a_model_that_returns_nan_is_refused(model, monkeypatch):
    monkeypatch.setattr(queries, "encode_captions",
                        lambda *arguments: torch.tensor(np.full((1, 24), np.nan)))
    with pytest.raises(InputError, match="NaN"):
        embed_texts(model, ["a red circle"])


# ----------------------------------------------------------------------------------------- captions


@pytest.mark.parametrize("name, content", [
    ("x.txt", "\ufeffA dog.\r\n\nTwo, cats\n...\nA dog.\n"),
    ("x.csv", 'file_name,text\na.jpg,A dog.\nb.jpg,"Two, cats"\n'),
    ("x.tsv", "file_name\ttext\na.jpg\tA dog.\nb.jpg\tTwo, cats\n"),
    ("x.jsonl", '{"image": "a.jpg", "caption": ["A dog.", "Two, cats"]}\n'),
    ("x.json", '[{"image": "a.jpg", "caption": ["A dog.", "Two, cats"]}]'),
    ("x.token", "a.jpg#0\tA dog.\na.jpg#1\tTwo, cats\n")])
def test_captions_of_any_kind_of_file_are_read_once_each(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    assert read_captions(tmp_path / name, USUAL) == ["A dog.", "Two, cats"]


def test_captions_from_a_named_column_and_from_standard_input(tmp_path, stdin):
    (tmp_path / "x.csv").write_text("photo,words\na.jpg,A dog.\n")
    assert read_captions(tmp_path / "x.csv", Columns("photo", "words")) == ["A dog."]
    stdin(b"A dog.\nA cat.\n")
    assert read_captions(Path("-"), USUAL) == ["A dog.", "A cat."]


@pytest.mark.parametrize("content", [b"", b"...\n", b"\xff\n"])
def test_a_file_without_captions_is_named(tmp_path, content):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(InputError, match="x.txt"):
        read_captions(tmp_path / "x.txt", USUAL)
