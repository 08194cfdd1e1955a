"""Which photos are found in a folder, and which links are followed."""

import os

import pytest

from common.errors import InputError
from searching.scan import scan


@pytest.fixture
def place(tmp_path):
    """A folder of photos beside a folder that links may lead to; `scan` reads no photo's bytes."""
    for name in ("photos/b.jpg", "photos/a.PNG", "photos/deep/er/c.webp", "photos/notes.txt",
                 "photos/.hidden.jpg", "photos/.git/d.jpg", "photos/._b.jpg", "else/x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * len(name))
    return tmp_path


def test_photos_are_found_in_order_of_names_without_hidden_ones(place):
    found = scan(place / "photos")
    assert list(found) == ["a.PNG", "b.jpg", "deep/er/c.webp"]
    os.utime(place / "photos" / "b.jpg", ns=(5, 7_000_000_001))
    assert scan(place / "photos")["b.jpg"] == (len("photos/b.jpg"), 7_000_000_001)


def test_names_of_any_bytes_are_found(place):
    for name in b"\xff.jpg", b"a\nb.jpg", b"\x1b[31m.jpg", b"<script>.png":
        (place / "photos" / os.fsdecode(name)).write_bytes(b"x")
    names = {os.fsencode(name) for name in scan(place / "photos")}
    assert {b"\xff.jpg", b"a\nb.jpg", b"\x1b[31m.jpg", b"<script>.png"} <= names


def test_pipes_folders_and_broken_links_are_no_photos(place):
    os.mkfifo(place / "photos" / "pipe.jpg")
    (place / "photos" / "folder.jpg").mkdir()
    (place / "photos" / "broken_link.jpg").symlink_to("nowhere.jpg")
    (place / "photos" / "folder.jpg" / "in.jpg").write_bytes(b"x")
    assert list(scan(place / "photos")) == ["a.PNG", "b.jpg", "deep/er/c.webp", "folder.jpg/in.jpg"]


def test_links_to_themselves_and_to_each_other_are_no_photos(place):
    (place / "photos" / "self.jpg").symlink_to("self.jpg")
    (place / "photos" / "folder").symlink_to("folder")
    (place / "photos" / "one.jpg").symlink_to("two.jpg")
    (place / "photos" / "two.jpg").symlink_to("one.jpg")
    for follow_links in False, True:
        assert list(scan(place / "photos", follow_links)) == ["a.PNG", "b.jpg", "deep/er/c.webp"]


def test_links_out_are_followed_only_if_allowed(place, capsys):
    (place / "photos" / "out.jpg").symlink_to(place / "else" / "x.jpg")
    (place / "photos" / "out").symlink_to(place / "else")
    (place / "photos" / "inside.jpg").symlink_to("b.jpg")
    found = scan(place / "photos")
    assert list(found) == ["a.PNG", "b.jpg", "deep/er/c.webp", "inside.jpg"]
    line = capsys.readouterr().err
    assert "2 links" in line and "--follow_links" in line and line.count("\n") == 1
    found = scan(place / "photos", follow_links=True)
    assert list(found) == ["a.PNG", "b.jpg", "deep/er/c.webp", "inside.jpg", "out.jpg", "out/x.jpg"]
    assert capsys.readouterr().err == ""


def test_links_in_a_circle_are_followed_once(place):
    (place / "photos" / "deep" / "up").symlink_to("..")
    (place / "photos" / "all").symlink_to(place)
    (place / "else" / "back").symlink_to(place / "photos")
    (place / "photos" / "out").symlink_to(place / "else")
    found = scan(place / "photos", follow_links=True)
    assert {name for name in found if name.endswith("x.jpg")} <= {"out/x.jpg", "all/else/x.jpg"}
    assert sum(name.endswith("x.jpg") for name in found) == 1
    assert sum(name.endswith("b.jpg") for name in found) == 1


def test_the_folder_itself_may_be_a_link(place):
    (place / "link").symlink_to("photos")
    assert list(scan(place / "link")) == ["a.PNG", "b.jpg", "deep/er/c.webp"]


@pytest.mark.parametrize("name", ["nothing", "photos/b.jpg", "empty"])
def test_a_missing_folder_or_one_without_photos_is_refused(place, name):
    (place / "empty").mkdir()
    with pytest.raises(InputError, match="--photos"):
        scan(place / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_read_permission_is_named(place, capsys):
    (place / "photos" / "deep").chmod(0)
    assert list(scan(place / "photos")) == ["a.PNG", "b.jpg"]
    line = capsys.readouterr().err
    assert str(place / "photos" / "deep") in line and line.count("\n") == 1
