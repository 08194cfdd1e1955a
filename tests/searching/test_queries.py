"""What is searched for: lines of standard input, sums of unit vectors, captions files."""

import io
import sys
from pathlib import Path

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
    """Give standard input these bytes."""
    def give(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


@pytest.fixture
def photo(tmp_path):
    noise().save(tmp_path / "one.png")
    noise(seed=1).save(tmp_path / "two.png")
    return [tmp_path / "one.png", tmp_path / "two.png"]


# ------------------------------------------------------------------------------------ what is asked


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


@pytest.mark.parametrize("content, told", [
    (b"", "no line"), (b"\n \n", "no line"), (b"ok\n\xff\n", "line 2 is not UTF-8"),
    (b"a\0b", "NUL"), (b"a dog\n...\n", "no words")])
def test_what_standard_input_cannot_be_is_told(stdin, content, told):
    stdin(content)
    with pytest.raises(InputError, match=told):
        read_queries(["-"], [])


def test_endless_standard_input_ends(stdin, monkeypatch):
    monkeypatch.setattr(queries, "MOST_STDIN_BYTES", 100)
    stdin(b"a dog\n" * 100)
    with pytest.raises(InputError, match="more than 100 bytes"):
        read_queries(["-"], [])


def test_closed_standard_input_is_told(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="closed"):
        read_queries(["-"], [])
    with pytest.raises(InputError, match="once"):
        read_queries(["-", "-"], [])


@pytest.mark.parametrize("words, told", [
    ([], "nothing to search for"), ([""], "no words"), (["  "], "no words"),
    (["?!, --"], "no words"), (["a\udcff"], "not UTF-8")])
def test_a_query_that_says_nothing_is_refused(words, told):
    with pytest.raises(InputError, match=told):
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
    asked = [Query("a red circle and a blue square"), Query(None, (photo[0],)), Query("a star"),
             Query("two green crosses", (photo[1],))]
    together = embed_queries(model, asked)
    for query, row in zip(asked, together):
        torch.testing.assert_close(embed_queries(model, [query])[0], row, rtol=0, atol=1e-5)


def test_parts_that_cancel_each_other_are_refused(model, photo, monkeypatch):
    row = embed_queries(model, [Query("a red circle")])[0]
    monkeypatch.setattr(queries, "embed_photo", lambda model, path: -row)
    with pytest.raises(InputError, match="opposites"):
        embed_queries(model, [Query("a red circle", (photo[0],))])


def test_no_known_word_and_too_many_words_are_told(model, capsys):
    embed_texts(model, ["a red circle", "\u732b \u72d7"])
    told = capsys.readouterr().err
    assert "no word of '\u732b \u72d7'" in told and told.count("\n") == 1
    long, cut = "a red circle " * 50, "a red circle " * 10
    rows = embed_texts(model, [long, cut])
    told = capsys.readouterr().err
    assert torch.equal(rows[0], rows[1]) and "first 30 words" in told and "1 texts" in told


@pytest.mark.parametrize("content", [None, b"", b"no photo"])
def test_a_photo_that_is_none_is_told(model, tmp_path, content):
    if content is not None:
        (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(InputError, match="photo .*x.jpg"):
        embed_queries(model, [Query(None, (tmp_path / "x.jpg",))])


def test_a_model_that_gives_nan_is_told(model, monkeypatch):
    monkeypatch.setattr(queries, "encode_captions",
                        lambda *given: torch.tensor(np.full((1, 24), np.nan)))
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
def test_captions_of_any_file_each_once(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    assert read_captions(tmp_path / name, USUAL) == ["A dog.", "Two, cats"]


def test_captions_from_a_named_column_and_from_standard_input(tmp_path, stdin):
    (tmp_path / "x.csv").write_text("photo,words\na.jpg,A dog.\n")
    assert read_captions(tmp_path / "x.csv", Columns("photo", "words")) == ["A dog."]
    stdin(b"A dog.\nA cat.\n")
    assert read_captions(Path("-"), USUAL) == ["A dog.", "A cat."]


@pytest.mark.parametrize("content", [b"", b"...\n", b"\xff\n"])
def test_no_captions_are_told(tmp_path, content):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(InputError, match="x.txt"):
        read_captions(tmp_path / "x.txt", USUAL)
