"""Splits and batches: real counts, refusals, examples that a seed decides."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.captions import pair_dataset, word_tokenizer
from helpers.photos import save

from common.errors import InputError
from data import (
    NO_PHOTO,
    Collator,
    check_apart,
    load_eval_set,
    load_split,
    make_train_loader,
    read_split,
    sees_captions_once,
    sees_photos_once,
)
from inputs.captions import Captions
from inputs.sources import find_split_file
from training.options import parse

DATA = Path("photos")  # splits are read without looking at the photos


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


# ------------------------------------------------------------------------------------------ splits


def test_records_of_one_caption(tmp_path):
    records = [("b.jpg", "one"), ("a.jpg", "two"), ("b.jpg", "three"), ("a.jpg", "two")]
    write(tmp_path / "flickr30k_train.json",
          [{"image": image, "caption": caption, "image_id": "x"} for image, caption in records])
    split = read_split("flickr", "train", DATA, tmp_path)
    assert split.source == tmp_path / "flickr30k_train.json"
    assert split.images == ["b.jpg", "a.jpg"]
    assert split.captions == ["one", "two", "three", "two"]
    assert split.image_of_text.tolist() == [0, 1, 0, 1]
    assert split.image_of_text.dtype == np.int64
    assert split.matches is None


@pytest.mark.parametrize(("limit", "captions", "photos"), [
    (None, ["a", "b", "c", "d"], [0, 0, 0, 1]), (2, ["a", "b", "d"], [0, 0, 1]),
    (1, ["a", "d"], [0, 1])])
def test_records_of_many_captions(tmp_path, limit, captions, photos):
    write(tmp_path / "coco_val.json", [{"image": "x/1.jpg", "caption": ["a", "b", "c"]},
                                       {"image": "x/2.jpg", "caption": ["d"]}])
    split = read_split("mscoco", "val", DATA, tmp_path, limit)
    assert (split.images, split.captions) == (["x/1.jpg", "x/2.jpg"], captions)
    assert split.image_of_text.tolist() == photos


@pytest.mark.parametrize(("split", "images"), [
    ("train", ["train2014/1.jpg", "val2014/2.jpg"]), ("val", ["val2014/3.jpg"]),
    ("test", ["4.jpg"])])
def test_karpathy_file(tmp_path, split, images):
    places = [("train2014", "1", "train"), ("val2014", "2", "restval"), ("val2014", "3", "val"),
              (None, "4", "test")]
    write(tmp_path / "dataset_coco.json", {"dataset": "coco", "images": [
        {"filename": f"{name}.jpg", "split": part, **({"filepath": folder} if folder else {}),
         "sentences": [{"raw": f"first of {name}."}, {"raw": "Second."}]}
        for folder, name, part in places]})
    found = read_split("mscoco", split, DATA, tmp_path)
    assert found.images == images
    assert found.captions == [text for name in images
                              for text in (f"first of {Path(name).stem}.", "Second.")]
    assert found.image_of_text.tolist() == [i for i in range(len(images)) for _ in range(2)]


@pytest.mark.parametrize(("content", "message"), [
    ("[{]", "cannot be read as json"),
    ([], "holds no val records"),
    ("3", "holds no val records"),
    ({"annotations": []}, "no Karpathy split file"),
    ({"images": [{"filename": "1.jpg"}]}, "images\\[0\\] lacks 'split'"),
    ({"images": [{"filename": "1.jpg", "split": "test", "sentences": []}]}, "holds no val"),
    ([{"image": "1.jpg", "caption": "x"}, {"image": "2.jpg"}], "record 1 .* no 'caption'"),
    ([{"caption": "x"}], "record 0 .* no 'image'"),
    (["x"], "record 0 .* no 'image'"),
    ([{"image": "1.jpg", "caption": {"text": "x"}}], "neither text nor a list"),
    ([{"image": "1.jpg", "caption": ["x", 3]}], "neither text nor a list"),
    ([{"image": "../1.jpg", "caption": "x"}], "must be a path inside"),
    ([{"image": "/1.jpg", "caption": "x"}], "must be a path inside"),
    ([{"image": 7, "caption": "x"}], "must be a path inside")])
def test_a_split_that_is_not_in_order(tmp_path, content, message):
    write(tmp_path / "flickr30k_val.json", content)
    with pytest.raises(InputError, match=message) as caught:
        read_split("flickr", "val", DATA, tmp_path)
    assert "flickr30k_val.json" in str(caught.value) and "\n" not in str(caught.value)


def test_matches_lie_beside_the_split(tmp_path):
    write(tmp_path / "shapes_val.json", [{"image": f"{i}.png", "caption": "x"} for i in range(3)])
    path = write(tmp_path / "shapes_val_matches.json", {"matches": [[0, 2], [1], [0, 1, 2]]})
    matches = read_split("shapes", "val", DATA, tmp_path).matches
    assert matches.dtype == bool
    assert matches.tolist() == [[True, False, True], [False, True, False], [True, True, True]]
    write(path, {"matches": [[0]]})
    with pytest.raises(InputError, match="shapes_val_matches.json .* 3 captions"):
        read_split("shapes", "val", DATA, tmp_path)


@pytest.mark.parametrize("content", [[[0]], {"matches": [[5]]}, {"matches": [["a"]]}])
def test_matches_that_are_not_in_order(tmp_path, content):
    write(tmp_path / "shapes_val.json", [{"image": "1.png", "caption": "x"}])
    write(tmp_path / "shapes_val_matches.json", content)
    with pytest.raises(InputError, match="shapes_val_matches.json"):
        read_split("shapes", "val", DATA, tmp_path)


def test_where_the_json_is_looked_for(tmp_path, monkeypatch):
    """Each place is taken only while no earlier one has the file."""
    monkeypatch.chdir(tmp_path)
    photos, named, name = Path("all/photos"), Path("mine"), "flickr30k_test.json"
    photos.mkdir(parents=True)
    named.mkdir()
    with pytest.raises(InputError, match="dataset_flickr30k.json .* --json_path") as caught:
        find_split_file("flickr", "test", photos, None)
    assert name in str(caught.value)
    for path in (Path("all") / name, photos / name, Path("json/dataset_flickr30k.json"),
                 Path("json") / name):
        write(path, [])
        assert find_split_file("flickr", "test", photos, None) == path
    with pytest.raises(InputError, match="is in mine: name"):  # a named folder is the only one
        find_split_file("flickr", "test", photos, named)
    write(named / name, [])
    assert find_split_file("flickr", "test", photos, named) == named / name


@pytest.mark.parametrize(("dataset", "split", "images", "captions"), [
    ("flickr", "train", 29_000, 145_000), ("flickr", "val", 1_014, 5_070),
    ("flickr", "test", 1_000, 5_000), ("mscoco", "val", 5_000, 25_010),
    ("flickr8k", "train", 6_000, 30_000)])
def test_counts_of_the_real_splits(shared, dataset, split, images, captions):
    found = read_split(dataset, split, DATA, shared / "json")
    assert (len(found.images), len(found.captions)) == (images, captions)
    assert np.unique(found.image_of_text).tolist() == list(range(images))


def test_fidelity_note_9_ten_coco_photos_have_six_captions(shared):
    counts = Counter(read_split("mscoco", "test", DATA, shared / "json").image_of_text.tolist())
    assert Counter(counts.values()) == {5: 4_990, 6: 10}
    five = read_split("mscoco", "test", DATA, shared / "json", captions_per_image=5)
    assert five.image_of_text.tolist() == [photo for photo in range(5_000) for _ in range(5)]


def own_data(folder, **photos):
    """Splits of own data, a photo and a caption each, by the photo's name; all photos exist."""
    save(folder, ["a.jpg", "b.jpg", "sub/c.jpg"])
    loaded = []
    for part, name in photos.items():
        write(folder / f"{part}.csv", f"file_name,text\n{name},a cat\n")
        options, _ = parse("", ["--dataset", "custom", "--data_path", str(folder)])
        loaded.append(load_split(options, part, word_tokenizer()))
    return loaded


def test_no_photo_of_own_data_may_be_in_two_splits(tmp_path):
    check_apart(*own_data(tmp_path, train="a.jpg", val="b.jpg", test="sub/c.jpg"))
    with pytest.raises(InputError, match="1 photos of .*test.csv are in .*train.csv too, such as "
                                         ".*a.jpg: split by photo, as python -m scripts.split"):
        check_apart(*own_data(tmp_path, train="./a.jpg", val="b.jpg", test="elsewhere/a.jpg"))


# ----------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize(("padded", "width"), [(False, 3), (True, 4)])
def test_collator(padded, width):
    captions = Captions(["a", "a red", "a red cat"], word_tokenizer(), 30, 4, padded)
    items = [(torch.full((3, 2, 2), i, dtype=torch.uint8), captions[i], i + 10, i + 20, NO_PHOTO)
             for i in range(3)]
    batch = Collator(captions)(items)
    assert batch.pixels.shape == (3, 3, 2, 2) and batch.pixels[2].unique() == 2
    assert batch.input_ids.shape == batch.attention_mask.shape == (3, width)
    assert batch.attention_mask.sum(dim=1).tolist() == [1, 2, 3]
    assert batch.input_ids[1, :3].tolist() == [2, 3, 0]
    assert batch.image_ids.tolist() == [10, 11, 12] and batch.text_ids.tolist() == [20, 21, 22]
    assert batch.bad_photos.tolist() == [NO_PHOTO] * 3
    assert all(tensor.device.type == "cpu" for tensor in batch.to(torch.device("cpu")))


def test_the_seed_decides_a_training_photo_and_the_callers_draws_stay(tmp_path):
    dataset = pair_dataset(tmp_path)
    torch.manual_seed(5)
    wanted = torch.rand(8)
    torch.manual_seed(5)
    seen = {seed: dataset[6, seed] for seed in range(8)}
    assert torch.equal(torch.rand(8), wanted)
    assert all(torch.equal(dataset[6, seed][0], item[0]) for seed, item in seen.items())
    assert len({item[0].numpy().tobytes() for item in seen.values()}) == 8
    assert {item[2:] for item in seen.values()} == {(2, 6, NO_PHOTO)}
    assert seen[0][0].shape == (3, 16, 16) and len(dataset) == 8


# ----------------------------------------------------------------------------- what a command reads


def test_a_loaded_split_has_its_photos_and_captions(data):
    options, _ = parse("", ["--dataset", "shapes", "--data_path", str(data), "--max_tokens", "5",
                            "--text_pooling", "padded"])
    loaded = load_split(options, "val", word_tokenizer(), captions_per_image=2)
    assert len(loaded.photos) == 8 and all(path.is_file() for path in loaded.photos)
    assert len(loaded.captions) == len(loaded.split.captions) == 16
    assert loaded.captions.lengths.max() == 5 and loaded.captions.batch_length == 5


@pytest.mark.parametrize(("more", "captions"), [([], 5), (["--all_captions"], 6)])
def test_coco_is_scored_on_five_captions_a_photo(tmp_path, more, captions):
    save(tmp_path, ["1.jpg"])
    write(tmp_path / "coco_test.json", [{"image": "1.jpg", "caption": ["a cat"] * 6}])
    options, _ = parse("", ["--dataset", "mscoco", "--data_path", str(tmp_path), *more])
    assert len(load_eval_set(options, "test", word_tokenizer()).captions) == captions
    assert len(load_split(options, "test", word_tokenizer()).captions) == 6


@pytest.mark.parametrize(("more", "once", "captions_once"), [
    ([], False, False), (["--freeze", "image"], True, False), (["--freeze", "text"], False, True),
    (["--freeze", "image", "--augment", "published"], False, False),
    (["--freeze", "both"], True, True),
    (["--freeze", "both", "--augment", "published"], False, True)])
def test_what_no_step_looks_at_is_not_loaded(data, more, once, captions_once):
    """Photos without augmentation, and captions, of a frozen encoder: it has seen all before."""
    options, _ = parse("", ["--dataset", "shapes", "--data_path", str(data), "--workers", "0",
                            "--batch_size_train", "16", *more])
    train_set = load_split(options, "train", word_tokenizer())
    batch = next(iter(make_train_loader(options, train_set, pin=False)))
    assert sees_photos_once(options) == once and sees_captions_once(options) == captions_once
    assert batch.pixels.shape == ((16, 0) if once else (16, 3, 64, 64))
    assert (batch.input_ids.numel() == batch.attention_mask.numel() == 0) == captions_once
    assert batch.image_ids.tolist() == train_set.split.image_of_text[batch.text_ids].tolist()
