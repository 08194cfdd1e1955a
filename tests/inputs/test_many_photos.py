"""Of very many photos a sample is checked, and the others are as they are met."""

import pytest
from helpers.captions import word_tokenizer
from helpers.photos import save
from helpers.runs import command, contents, copy_of, expect_exit, final_state

import data as data_module
import inputs.photos
import train
from common.errors import InputError
from data import load_eval_set, load_train_set, photos_of_both
from inputs.photos import find_photos, load_from
from training.options import parse

NAMES = [f"{number:02}.png" for number in range(20)]


@pytest.fixture
def many(monkeypatch):
    """Twenty are very many, and the sample has five."""
    monkeypatch.setattr(inputs.photos, "MANY", 19)
    monkeypatch.setattr(inputs.photos, "SAMPLE", 5)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "photos", NAMES)
    return tmp_path / "photos"


def found_in(folder, every=False, **more):
    return find_photos(NAMES, folder.parent / "x.json", folder, every=every, **more)


def test_a_sample_is_spread_evenly_and_told_of(folder, many, monkeypatch, capsys):
    checked = []
    monkeypatch.setattr(inputs.photos, "photo_fault",
                        lambda path, plain=inputs.photos.photo_fault: checked.append(path.name)
                        or plain(path))
    assert found_in(folder) == [folder / name for name in NAMES]
    assert sorted(checked) == NAMES[::4]
    told = capsys.readouterr().out
    assert told.count("\n") == 1 and "x.json: 5 of 20 photos are checked" in told
    checked.clear()
    found_in(folder, every=True)
    assert sorted(checked) == NAMES and capsys.readouterr().out == ""


def test_where_there_are_not_very_many_all_are_checked(folder, many, monkeypatch):
    monkeypatch.setattr(inputs.photos, "MANY", 20)
    (folder / NAMES[3]).write_text("no photo")
    with pytest.raises(InputError, match="1 of 20 photos .*03.png, is cut short"):
        found_in(folder)


def test_what_is_wrong_in_the_sample_is_told(folder, many):
    (folder / NAMES[4]).write_text("no photo")
    (folder / NAMES[5]).write_text("no photo")
    with pytest.raises(InputError, match="1 of 5 photos .*04.png, is cut short"):
        found_in(folder)


@pytest.mark.parametrize("name", ["../x.png", "/x.png", "a/../../x.png"])
def test_no_name_leads_out_of_the_folder_sampled_or_not(folder, many, name):
    names = [*NAMES[:7], name, *NAMES[8:]]
    with pytest.raises(InputError, match="must be a path inside the photo folder"):
        find_photos(names, folder, folder, every=False)


@pytest.mark.parametrize("follow", [False, True])
def test_a_link_out_of_the_folder_that_was_not_checked_is_not_followed(tmp_path, folder, many,
                                                                       follow):
    save(tmp_path, ["secret.png"])
    (folder / NAMES[5]).unlink()
    (folder / NAMES[5]).symlink_to(tmp_path / "secret.png")
    (folder / NAMES[6]).unlink()
    (folder / NAMES[6]).symlink_to(folder / NAMES[7])  # this one stays inside
    photos = found_in(folder, follow_links=follow)
    assert load_from(photos, 6).size == load_from(photos, 0).size
    if follow:
        load_from(photos, 5)
    else:
        with pytest.raises(InputError, match="photo .*05.png is reached by a link out of that fold"
                                             ".*: allow it with --follow_links"):
            load_from(photos, 5)


def test_a_run_replaces_what_the_sample_has_not_found(data, tmp_path, many, monkeypatch, capsys):
    """It is told of and counted, as what breaks while a run goes; val and test are checked whole.
    """
    own = copy_of(data, tmp_path)
    images = data_module.read_split("shapes", "train", own).images
    (own / images[1]).write_bytes(b"no photo")
    train.main(command(own, tmp_path / "run"))
    out, error = capsys.readouterr()
    assert "shapes_train.json: " in out and "photos are checked before the run" in out
    assert out.count("photos are checked before the run") == 1
    assert f"{own / images[1]} cannot be decoded" in error and "1 bad so far" in error
    assert final_state(tmp_path / "run")["bad_photos"] == [1]
    images = data_module.read_split("shapes", "test", own).images
    (own / images[1]).write_bytes(b"no photo")
    before = contents(tmp_path / "run")
    expect_exit(command(own, tmp_path / "run"), 2, capsys, ["1 of ", "shapes_test.json"])
    assert contents(tmp_path / "run") == before


def test_where_no_pair_can_stand_in_all_are_checked(data, many, capsys):
    """Features of a frozen encoder are made of every photo."""
    for more, sampled in (([], True), (["--freeze", "image"], False)):
        options, _ = parse("", ["--dataset", "shapes", "--data_path", str(data), *more])
        load_train_set(options, word_tokenizer())
        assert ("are checked before the run" in capsys.readouterr().out) == sampled
    load_eval_set(options, "train", word_tokenizer())
    assert capsys.readouterr().out == ""


# ------------------------------------------------------------------------------------ in two splits


def loaded(folder, part, names):
    rows = "".join(f"{name},a cat\n" for name in names)
    (folder / f"{part}.csv").write_text("file_name,text\n" + rows)
    options, _ = parse("", ["--dataset", "custom", "--data_path", str(folder)])
    return load_eval_set(options, part, word_tokenizer())


def test_photos_of_both_are_those_that_are_one_file(folder, monkeypatch):
    """Asked of the photos alone whose bare names are in the smaller split."""
    (folder / "sub").mkdir()
    save(folder / "sub", ["00.png"])
    one = loaded(folder, "train", ["00.png", "01.png", "gone/02.png", "03.png", "04.png"])
    other = loaded(folder, "test", ["sub/00.png", "./01.png", "02.png"])
    wanted = [folder / "01.png", folder / "02.png"]
    asked, plain = [], type(one.photos).photo
    monkeypatch.setattr(type(one.photos), "photo",
                        lambda self, index: asked.append(index) or plain(self, index))
    assert photos_of_both(one, other) == wanted == photos_of_both(other, one)
    assert asked.count(3) == asked.count(4) == 0
    third = loaded(folder, "val", ["05.png"])
    assert photos_of_both(one, third) == photos_of_both(third, other) == []
