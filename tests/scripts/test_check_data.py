"""The command that checks a data folder: what it finds in a spoilt one, and what it says."""

import json
import shutil

import numpy as np
import pytest
from helpers.photos import noise
from helpers.runs import expect_exit
from PIL import Image

from common.errors import InputError
from inputs.photos import MAX_PIXELS, open_photo
from scripts import check_data


def rotated(path):
    exif = Image.Exif()
    exif[check_data.ORIENTATION] = 6
    noise().save(path, exif=exif)


def cut_short(path):
    noise(300, 200).save(path)
    path.write_bytes(path.read_bytes()[:3000])


def enormous(path):
    """A bomb: a photo of few bytes and too many pixels."""
    Image.new("1", (20_000, MAX_PIXELS // 20_000 + 1)).save(path)


def bad_exif(path):
    noise().save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff" + bytes(range(40)))


# name: how it is made, and what is to be said of it
PHOTOS = {
    "good.jpg": (lambda path: noise().save(path), []),
    "grey.png": (lambda path: noise().convert("L").save(path), []),
    "bad_exif.jpg": (bad_exif, []),
    "cut.jpg": (cut_short, ["unreadable"]),
    "text.jpg": (lambda path: path.write_text("no photo"), ["unreadable"]),
    "eps.jpg": (lambda path: noise().save(path, "EPS"), ["unreadable"]),
    "empty.jpg": (lambda path: path.touch(), ["unreadable"]),
    "folder.jpg": (lambda path: path.mkdir(), ["missing"]),
    "gone.jpg": (lambda path: None, ["missing"]),
    "bomb.png": (enormous, ["too large"]),
    "cmyk.jpg": (lambda path: noise().convert("CMYK").save(path), ["CMYK"]),
    "palette.png": (lambda path: noise().convert("P").save(path), ["palette"]),
    "deep.png": (lambda path: Image.fromarray(
        np.arange(2000, dtype=np.uint16).reshape(40, 50) * 30).save(path), ["16 bits"]),
    "clear.png": (lambda path: noise().convert("RGBA").save(path), ["transparent"]),
    "turned.jpg": (rotated, ["rotated by EXIF"]),
    "moving.gif": (lambda path: noise().save(path, save_all=True, append_images=[noise(seed=1)]),
                   ["palette", "animated"]),
    "dot.png": (lambda path: noise(1, 1).save(path), ["small"]),
    "wide.png": (lambda path: noise(20_000, 40).save(path), ["long"]),
}


@pytest.mark.parametrize("name", PHOTOS)
def test_what_is_said_of_a_photo(tmp_path, name):
    make, kinds = PHOTOS[name]
    make(tmp_path / name)
    assert check_data.examine(tmp_path / name).kinds == kinds


def test_no_photo_is_handed_to_another_program(tmp_path):
    """Pillow opens PostScript, and would call Ghostscript to decode it."""
    path = tmp_path / "photo.jpg"
    PHOTOS["eps.jpg"][0](path)
    assert Image.open(path).format == "EPS"
    with pytest.raises(InputError, match="cannot be decoded"):
        open_photo(path)


@pytest.fixture
def folder(tmp_path):
    """Three good splits."""
    (tmp_path / "images").mkdir()
    for number, part in enumerate(check_data.SPLITS):
        noise(seed=number).save(tmp_path / "images" / f"{part}.jpg")
        write(tmp_path, part, [(f"{part}.jpg", "a dog")])
    return tmp_path


def write(folder, part, pairs):
    (folder / f"flickr8k_{part}.json").write_text(json.dumps(
        [{"image": image, "caption": caption} for image, caption in pairs]))


def check(folder, *more):
    check_data.main(["--dataset", "flickr8k", "--data_path", str(folder / "images"),
                     "--workers", "0", *more])


def output_of(folder, capsys, status, *more):
    with pytest.raises(SystemExit) as caught:
        check(folder, *more)
    output = capsys.readouterr()
    assert caught.value.code == status and not output.err
    return output.out


def test_a_good_folder(folder, capsys):
    lines = output_of(folder, capsys, 0).splitlines()
    assert len(lines) == 4 and lines[-1] == "every photo can be used"
    assert lines[0].split()[:3] == ["train", "1", "photos"]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_spoilt_folder(folder, capsys, workers):
    for name, (make, _) in PHOTOS.items():
        make(folder / "images" / name)
    write(folder, "train", [(name, "a dog") for name in PHOTOS])
    output = output_of(folder, capsys, 2, "--workers", workers)
    for kind in {*check_data.FATAL, *check_data.ODD} - {"linked", "ambiguous"}:
        count = sum(kind in kinds for _, kinds in PHOTOS.values())
        assert count and f"  {kind:16} {count:7}  " in output
    assert output.splitlines()[-1] == "7 photos cannot be used"


def test_duplicates(folder, capsys):
    images = folder / "images"
    shutil.copy(images / "test.jpg", images / "other.jpg")
    noise(seed=9).save(images / "one.png")
    shutil.copy(images / "one.png", images / "two.png")
    write(folder, "train", [(name, "a dog") for name in ("other.jpg", "one.png", "two.png",
                                                         "val.jpg")])
    output = output_of(folder, capsys, 0)
    for kind, pair in (("same name", "train: val.jpg = val: val.jpg"),
                       ("same bytes", "train: other.jpg = test: test.jpg"),
                       ("twice", "train: one.png = train: two.png")):
        assert f"  {kind:16}       1  " in output and pair in output


def test_one_name_in_two_folders_is_two_photos(folder, capsys):
    """And one photo by two names of its path is one."""
    for number, place in enumerate(["one", "two"]):
        (folder / "images" / place).mkdir()
        noise(seed=20 + number).save(folder / "images" / place / "1.jpg")
    write(folder, "train", [("one/1.jpg", "a"), ("two/1.jpg", "a")])
    assert "there twice" not in output_of(folder, capsys, 0)
    write(folder, "train", [("one/1.jpg", "a"), ("./one/1.jpg", "a")])
    assert "  twice                  1  " in output_of(folder, capsys, 0)


def test_own_data_in_any_format(folder, capsys):
    """A photo in two splits stops a run there, so it is no mere remark."""
    parts = {"train": "photo;words\ntrain.jpg;A dog\n", "val": "photo\twords\nval.jpg\tA dog\n",
             "test": "photo,words\ntest.jpg,A dog\n"}
    for part, text in parts.items():
        (folder / f"{part}.csv").write_text(text)
    own = ["--dataset", "custom", "--image_column", "photo", "--caption_column", "words"]
    lines = output_of(folder, capsys, 0, *own).splitlines()
    assert lines[1].endswith("val.csv") and lines[-1] == "every photo can be used"
    (folder / "val.csv").write_text(parts["test"])
    output = output_of(folder, capsys, 2, *own)
    assert "same name              1" in output and "val: test.jpg = test: test.jpg" in output
    assert output.splitlines()[-1].startswith("no run starts on these splits")
    expect_exit(["--dataset", "custom", "--data_path", str(folder / "images")], 2, capsys,
                ["'photo', 'words'", "--image_column"], check_data.main)


def test_captions(folder, capsys):
    write(folder, "val", [("val.jpg", "..."), ("val.jpg", "a " * 31), ("val.jpg", "a " * 30)])
    output = output_of(folder, capsys, 0)
    assert "  empty                  1" in output and "  long                   1" in output
    assert "  long                   2" in output_of(folder, capsys, 0, "--max_words", "29")


def test_links(folder, capsys, tmp_path_factory):
    """Out of the folder is refused, by a link on the way too; inside, and to the folder, is not."""
    elsewhere, images = tmp_path_factory.mktemp("elsewhere"), folder / "images"
    noise(seed=5).save(elsewhere / "out.jpg")
    noise(seed=6).save(images / "real.jpg")
    (images / "out.jpg").symlink_to(elsewhere / "out.jpg")
    (images / "sub").symlink_to(elsewhere)
    (images / "inside.jpg").symlink_to("real.jpg")
    write(folder, "train", [("out.jpg", "a"), ("sub/out.jpg", "a"), ("inside.jpg", "a")])
    output = output_of(folder, capsys, 2)
    assert "  linked                 2" in output and "--follow_links" in output
    assert "linked" not in output_of(folder, capsys, 0, "--follow_links")
    (folder / "images").rename(elsewhere / "moved")
    (folder / "images").symlink_to(elsewhere / "moved")
    assert "  linked                 2" in output_of(folder, capsys, 2)  # and not all three


@pytest.mark.parametrize("more, told", [
    (["--data_path", "/nothing/here"], "--data_path /nothing/here"),
    (["--json_path", "/nothing/here"], "--json_path")])
def test_a_folder_that_is_not_there(folder, capsys, more, told):
    expect_exit(["--dataset", "flickr8k", "--data_path", str(folder / "images"), *more], 2, capsys,
                [told], check_data.main)


def test_the_embedded_dataset_has_no_duplicates(data, capsys):
    with pytest.raises(SystemExit) as caught:
        check_data.main(["--dataset", "shapes", "--data_path", str(data), "--workers", "0"])
    assert caught.value.code == 0 and "twice" not in capsys.readouterr().out
