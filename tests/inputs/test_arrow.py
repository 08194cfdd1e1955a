"""Parquet, Arrow, `save_to_disk` and the Hub: what is read of them, and what is refused."""

import io
import json
import pickle
import shutil

import numpy as np
import pytest
from helpers.photos import noise, save

from common.errors import InputError
from data import read_split
from inputs import arrow, sources
from inputs.photos import check_photos, load_photo

datasets = pytest.importorskip("datasets")
PARTS = "train", "val", "test"


def png(seed):
    buffer = io.BytesIO()
    noise(seed=seed).save(buffer, "PNG")
    return buffer.getvalue()


def table(count=9, captions=None, **columns):
    """A table of photos with their bytes, of two captions each."""
    captions = captions or {"caption": [[f"one of {n}", f"two of {n}"] for n in range(count)]}
    content = {"image": [{"bytes": png(n), "path": f"{n}.png"} for n in range(count)],
               **captions, **columns}
    features = datasets.Features({
        "image": datasets.Image(), **{name: datasets.List(datasets.Value("string"))
                                      if isinstance(values[0], list) else datasets.Value("string")
                                      for name, values in content.items() if name != "image"}})
    return datasets.Dataset.from_dict(content, features=features)


def read(place, part, dataset="custom", **options):
    return read_split(dataset, part, place, cache=place.parent / "cache", **options)


def owners(split):
    return [split.images[number] for number in split.image_of_text]


# ------------------------------------------------------------------------------------- what is read


def written(folder, kind):
    """Three splits of three photos, in files of a kind; the path that names them."""
    whole = table()
    split = datasets.DatasetDict({name: whole.select(range(3 * n, 3 * n + 3))
                                  for n, name in enumerate(["train", "validation", "test"])})
    folder.mkdir()
    if kind == "save_to_disk":
        split.save_to_disk(folder / "x")
    elif kind == "folders of parquet":
        for name, rows in split.items():
            (folder / "x" / name).mkdir(parents=True)
            rows.to_parquet(folder / "x" / name / "0000.parquet")
    else:
        (folder / "x").mkdir()
        for name, rows in split.items():
            if kind == "arrow":
                rows.save_to_disk(folder / "saved")
                [path] = (folder / "saved").glob("*.arrow")
                shutil.copy(path, folder / "x" / f"{name}-00000.arrow")
            else:
                rows.to_parquet(folder / "x" / f"{name}-00000-of-00001.parquet")
    return folder / "x" / "*.parquet" if kind == "a pattern" else folder / "x"


@pytest.mark.parametrize("kind", ["parquet", "a pattern", "folders of parquet", "arrow",
                                  "save_to_disk"])
def test_splits_are_those_that_files_are_named_for(tmp_path, kind):
    place = written(tmp_path / "y", kind)
    for number, part in enumerate(PARTS):
        split = read(place, part)
        rows = range(3 * number, 3 * number + 3)
        assert list(split.images) == [f"{n}.png" for n in rows]
        assert list(split.captions) == [f"{word} of {n}" for n in rows for word in ("one", "two")]
        assert split.captions[2:4] == [split.captions[2], split.captions[3]]
        assert split.image_of_text.tolist() == [0, 0, 1, 1, 2, 2]
        assert split.image_of_text.dtype == np.int64 and part in str(split.source)
        for photo, n in zip(split.photos, rows):
            assert photo.open().read() == png(n)
            assert np.array_equal(load_photo(photo), noise(seed=n))
        check_photos(split.photos, split.source)


def test_a_column_may_say_what_is_in_a_split(tmp_path):
    """As of Flickr30K on the Hub, whose files are all called test."""
    words = ["train", "val", "test"] * 3
    table(split=words, part=words[::-1]).to_parquet(tmp_path / "x" / "test-0.parquet")
    for number, part in enumerate(PARTS):
        assert list(read(tmp_path / "x", part).images) == [f"{n}.png" for n in range(number, 9, 3)]
    assert list(read(tmp_path / "x", "test", split_column="part").images) == [
        "0.png", "3.png", "6.png"]
    with pytest.raises(InputError, match="has no split train, but test: .* --split_column"):
        read(tmp_path / "x", "train", split_column="none")


def test_several_columns_and_lists_are_captions(tmp_path, capsys):
    captions = {"caption_0": ["a", "b", "nan"], "caption_1": ["c", "", "d"]}
    table(3, captions).to_parquet(tmp_path / "x" / "train.parquet")
    split = read(tmp_path / "x", "train")
    assert list(split.captions) == ["a", "c", "b", "d"]
    assert split.image_of_text.tolist() == [0, 0, 1, 2]
    assert "'caption_0', 'caption_1'" in capsys.readouterr().out
    assert list(read(tmp_path / "x", "train", captions_per_image=1).captions) == ["a", "b", "d"]
    split = read(tmp_path / "x", "train", caption_column="caption_1", bad_rows="skip")
    assert (list(split.captions), owners(split)) == (["c", "d"], ["0.png", "2.png"])


def test_rows_of_one_photo_are_one_photo(tmp_path):
    """Of one name and size; where the names are all alike, the sizes part them."""
    rows = [0, 1, 0, 2, 1]
    content = {"image": [{"bytes": png(n), "path": f"{n}.png"} for n in rows],
               "text": [f"caption {k}" for k in range(5)]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(content, features=features).to_parquet(
        tmp_path / "x" / "train.parquet")
    split = read(tmp_path / "x", "train")
    assert list(split.images) == ["0.png", "1.png", "2.png"]
    assert split.image_of_text.tolist() == [0, 1, 0, 2, 1]


@pytest.mark.parametrize("slash", ["/", "\\"])
def test_photos_may_be_paths(tmp_path, slash):
    save(tmp_path / "x", ["images/0.png", "images/1.png"])
    rows = {"file_name": [f"images{slash}{n}.png" for n in (0, 1, 1)], "text": ["a", "b", "c"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "x" / "train.parquet")
    split = read(tmp_path / "x", "train")
    assert split.image_of_text.tolist() == [0, 1, 1]
    assert np.array_equal(split.photos.load(1), noise(seed=1))


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "link.png", "gone.png"])
def test_no_path_leads_out_of_the_folder(tmp_path, name):
    save(tmp_path, ["secret.png"])
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "link.png").symlink_to(tmp_path / "secret.png")
    datasets.Dataset.from_dict({"image": [name], "text": ["a"]}).to_parquet(
        tmp_path / "x" / "train.parquet")
    split = read(tmp_path / "x", "train")
    assert split.photos.missing(0) == "missing"
    with pytest.raises(InputError, match="1 of 1 photos"):
        check_photos(split.photos, split.source)


def hub_cache(cache, name, rows):
    """What the library keeps of a data set of the Hub that it has fetched before."""
    place = cache.parent / "source" / name.split("/")[1]
    place.mkdir(parents=True)
    rows.to_parquet(place / "test-00000-of-00001.parquet")
    datasets.load_dataset(str(place), cache_dir=str(cache))
    (cache / place.name).rename(cache / name.replace("/", "___"))


def test_a_data_set_of_the_hub_is_read_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "hub_fault", lambda: "no network")
    words = ["train", "val", "test"] * 3
    hub_cache(tmp_path / "cache" / "datasets", "someone/flickr", table(split=words))
    for name in "someone/flickr", "someone/flickr:default":
        split = read_split("hub", "val", name, cache=tmp_path / "cache")
        assert list(split.images) == ["1.png", "4.png", "7.png"] and len(split.captions) == 6
        assert np.array_equal(split.photos.load(0), noise(seed=1))
    with pytest.raises(InputError, match="someone/none cannot be read .*no network"):
        read_split("hub", "val", "someone/none", cache=tmp_path / "cache")


def test_a_folder_of_photos_with_metadata_is_read_as_the_hub_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "hub_fault", lambda: "no network")
    for part in "train", "test":
        save(tmp_path / "x" / part, ["0.png", "1.png"])
        (tmp_path / "x" / part / "metadata.csv").write_text("file_name,text\n0.png,a\n1.png,b\n")
    split = read_split("hub", "train", tmp_path / "x", cache=tmp_path / "cache")
    assert list(split.captions) == ["a", "b"]
    assert np.array_equal(split.photos.load(1), noise(seed=1))


# ---------------------------------------------------------------------------------- what is refused


def test_rows_without_a_value_are_told_or_left_out(tmp_path, capsys):
    captions = {"text": ["a", "NULL", None, "b"]}
    table(4, captions).to_parquet(tmp_path / "x" / "train.parquet")
    with pytest.raises(InputError, match="row 1 .*2 rows do.*--bad_rows skip"):
        read(tmp_path / "x", "train")
    split = read(tmp_path / "x", "train", bad_rows="skip")
    assert (list(split.captions), list(split.images)) == (["a", "b"], ["0.png", "3.png"])
    assert "2 rows are left out" in capsys.readouterr().err


def test_a_script_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "hub_fault", lambda: "no network")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InputError, match="is a script, which would run code, and is refused"):
        read_split("hub", "train", tmp_path / "x", cache=tmp_path / "cache")
    assert not (tmp_path / "ran").exists()


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickled_feature_is_not_unpickled(tmp_path):
    import pyarrow as pa

    evil = pickle.dumps(Evil(tmp_path / "ran"))
    field = pa.field("image", pa.binary(), metadata={
        b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": evil})
    schema = pa.schema([field, pa.field("text", pa.string())])
    (tmp_path / "x").mkdir()
    with pa.OSFile(str(tmp_path / "x" / "train.arrow"), "wb") as file:
        with pa.ipc.new_stream(file, schema) as writer:
            writer.write_batch(pa.record_batch([pa.array([b"x"]), pa.array(["a"])], schema=schema))
    with pytest.raises(InputError, match="train.arrow|x"):
        split = read(tmp_path / "x", "train")
        check_photos(split.photos, split.source)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(path.read_bytes()[:500]),
                                   lambda path: path.write_bytes(b""),
                                   lambda path: path.write_text("no table" * 100)])
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_file_that_is_damaged_is_told_in_a_line(tmp_path, kind, spoil):
    place = written(tmp_path / "y", kind)
    [path] = place.glob("train*")
    spoil(path)
    with pytest.raises(InputError, match="cannot be read") as caught:
        read(place, "train")
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    place = written(tmp_path / "y", "parquet")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(InputError, match="pip install -r requirements-datasets.txt"):
        read(place, "train")


@pytest.mark.parametrize(("columns", "told"), [
    ({"x": ["a"] * 9}, "none is called text, caption"),
    ({"text": ["a"] * 9, "title": ["a"] * 9}, "'text', 'title'")])
def test_columns_that_are_not_clear_are_asked_for(tmp_path, columns, told):
    table(9, columns).to_parquet(tmp_path / "x" / "train.parquet")
    with pytest.raises(InputError, match=told):
        read(tmp_path / "x", "train")


# ----------------------------------------------------------------------------- large captions files


def test_a_large_captions_file_is_mapped_and_the_same(data, tmp_path, monkeypatch):
    """With captions and names as of lists, from the file and from what was kept of it."""
    plain = read_split("shapes", "train", data)
    content = json.loads((data / "shapes_train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps(content))
    monkeypatch.setattr(sources, "LARGE", 0)
    read_again, whole = [], sources.split_file_records
    monkeypatch.setattr(sources, "split_file_records", lambda *more: (
        read_again.append(record) or record for record in whole(*more)))
    for _ in range(2):
        split = read_split("custom", "train", data, tmp_path, cache=tmp_path / "cache")
        assert list(split.images) == plain.images and list(split.captions) == plain.captions
        assert split.image_of_text.tolist() == plain.image_of_text.tolist()
        assert not isinstance(split.captions, list)
        assert list(split.photos) == [data / name for name in plain.images]
        assert len(read_again) == len(content)
    content[0]["caption"] = "another"
    (tmp_path / "train.json").write_text(json.dumps(content))
    split = read_split("custom", "train", data, tmp_path, cache=tmp_path / "cache")
    assert split.captions[0] == "another"
    limited = read_split("custom", "train", data, tmp_path, 2, cache=tmp_path / "cache")
    assert len(limited.captions) == 2 * len(limited.images)


def test_an_error_of_a_large_file_is_told_as_of_any(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LARGE", 0)
    (tmp_path / "train.csv").write_text("image,text\na.jpg,x\nb.jpg,\n")
    with pytest.raises(InputError, match="row 3 has nothing in column 'text'"):
        read_split("custom", "train", tmp_path, tmp_path, cache=tmp_path / "cache")


def test_without_the_library_or_the_cache_it_is_in_lists(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources, "LARGE", 0)
    shutil.copy(data / "shapes_val.json", tmp_path / "val.json")
    (tmp_path / "cache").write_text("no folder")
    split = read_split("custom", "val", data, tmp_path, cache=tmp_path / "cache")
    assert isinstance(split.captions, list) and "cannot be used" in capsys.readouterr().err
    monkeypatch.setattr(arrow, "has_library", lambda: False)
    split = read_split("custom", "val", data, tmp_path)
    assert isinstance(split.captions, list)
    assert "requirements-datasets.txt" in capsys.readouterr().out
