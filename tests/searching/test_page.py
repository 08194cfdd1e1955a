"""The page of results: everything is in one file and escaped, and photos link to their files."""

import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlparse

import pytest
from helpers.photos import noise

from common.errors import InputError
from searching.page import page_place, write_page
from searching.queries import Query
from searching.results import Answer, Result

NASTY = "</h2><script>alert(1)</script> \"'&\x1b[31m \u202e"


class Page(HTMLParser):
    """A parsed page: its tags with their attributes, and the text that it shows."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.shown = [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.shown += data

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def photo(tmp_path):
    """A photo whose name must be escaped in html and in a link."""
    path = tmp_path / os.fsdecode(b"a #?%41\"<img src=x>'\xff\n.png")
    noise(640, 480).save(path)
    return path


def written(tmp_path, answers, **facts):
    """Write a page of answers, and return it parsed."""
    place = page_place(tmp_path / "found.html", [])
    write_page(place, answers, facts)
    return Page(place.read_text(encoding="utf-8"))


def test_photos_are_inside_and_lead_to_their_files(tmp_path, photo):
    results = [Result(0.5, None, photo), Result(0.25, 0.5, photo)]
    page = written(tmp_path, [Answer(Query("x"), results)])
    assert [image["src"][:23] for image in page.of("img")] == ["data:image/jpeg;base64,"] * 2
    for link in page.of("a"):
        address = urlparse(link["href"])
        assert address.scheme == "file" and not address.query and not address.fragment
        assert unquote_to_bytes(address.path) == os.fsencode(photo)
    assert "s\xa00.500" in page.shown and "P\xa00.500" in page.shown
    others = {attribute for tag, found in page.tags for attribute in found} - {
        "src", "href", "alt", "class", "loading", "name", "content", "charset", "lang", "title"}
    assert not others and not page.of("link") and not page.of("script")


def test_all_texts_are_escaped(tmp_path, photo):
    query = Query(NASTY, (photo,))
    answers = [Answer(query, [Result(0.5, None, photo)]),
               Answer(Query(NASTY), [Result(0.5, None, caption=NASTY)])]
    page = written(tmp_path, answers, model=NASTY)
    assert not page.of("script") and "<script>alert(1)" in page.shown
    assert all(image["src"].startswith("data:") for image in page.of("img"))
    assert "\x1b" not in page.shown and "\u202e" not in page.shown and "\\x1b[31m" in page.shown


def test_one_query_is_the_title_and_several_have_their_own(tmp_path, photo):
    one = written(tmp_path, [Answer(Query("a dog"), [Result(0.5, None, photo)])])
    assert not one.of("h2") and one.shown.count("a dog") == 2  # and on the tab
    two = written(tmp_path, [Answer(Query(text), [Result(0.5, None, photo)]) for text in "xy"])
    assert len(two.of("h2")) == 2 and "2 searches" in two.shown


def test_captions_are_a_table(tmp_path, photo):
    results = [Result(0.5, None, caption="A dog."), Result(0.4, None, caption="A cat.")]
    page = written(tmp_path, [Answer(Query(None, (photo,)), results)])
    assert len(page.of("tr")) == 2 and len(page.of("img")) == 1 and "A cat." in page.shown


def test_a_photo_that_is_gone_is_grey(tmp_path):
    page = written(tmp_path, [Answer(Query("x"), [Result(0.5, None, tmp_path / "gone.jpg")])])
    assert page.of("img")[0]["src"].startswith("data:image/jpeg")


def test_only_a_page_is_replaced(tmp_path, photo):
    answers = [Answer(Query("x"), [Result(0.5, None, photo)])]
    written(tmp_path, answers)
    written(tmp_path, answers)  # over the first page
    (tmp_path / "theirs.html").write_text("<!doctype html>mine")
    for path in tmp_path / "theirs.html", photo, tmp_path:
        with pytest.raises(InputError, match="--html"):
            page_place(path, [])
    assert (tmp_path / "theirs.html").read_text() == "<!doctype html>mine"


def test_too_many_results_for_a_page_are_told(tmp_path):
    results = [Result(0.5, None, Path("x.jpg"))] * 5_001
    with pytest.raises(InputError, match="--html.*5,001"):
        write_page(tmp_path / "x.html", [Answer(Query("x"), results)], {})
    assert not (tmp_path / "x.html").exists()
