"""Splits, captions and batches: published cleaning, real counts, examples that a seed decides."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from common.errors import InputError
from data import NO_PHOTO, Collator, PairDataset, Split, find_json, read_split
from inputs.captions import Captions, clean_caption, pad_captions
from inputs.loader import EpochSampler, make_loader

GOLDEN = json.loads((Path(__file__).parent / "golden" / "captions.json").read_text())
DATA = Path("photos")  # splits are read without looking at the photos


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def save_photos(folder, names, size=(24, 20)):
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)


@pytest.fixture(scope="module")
def tokenizer():
    """One id a word, without special tokens."""
    words = {word: i for i, word in enumerate("[PAD] [UNK] a red blue cat dog runs sits".split())}
    core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")


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
        find_json("flickr", "test", photos, None)
    assert name in str(caught.value)
    for path in (Path("all") / name, photos / name, Path("json/dataset_flickr30k.json"),
                 Path("json") / name):
        write(path, [])
        assert find_json("flickr", "test", photos, None) == path
    with pytest.raises(InputError, match="is in mine: name"):  # a named folder is the only one
        find_json("flickr", "test", photos, named)
    write(named / name, [])
    assert find_json("flickr", "test", photos, named) == named / name


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


# ---------------------------------------------------------------------------------------- captions


def test_cleaning_is_the_published_one():
    assert len(GOLDEN) > 200
    assert [clean_caption(pair["raw"]) for pair in GOLDEN] == [pair["clean"] for pair in GOLDEN]


def test_cleaning_by_hand():
    assert clean_caption("  A well-lit <Person>, on/off: 'Hi!'  ") == "a well lit person on off hi"
    assert clean_caption("a b c d", max_words=2) == "a b"
    assert clean_caption(" ".join("x" * 31)) == " ".join("x" * 30)
    assert clean_caption("") == ""


@pytest.mark.parametrize(("max_words", "max_tokens"), [(30, 30), (2, 30), (30, 3), (3, 2)])
def test_captions_are_those_tokenised_one_by_one(tokenizer, max_words, max_tokens):
    texts = ["A red cat, runs.", "dog", "a BLUE dog sits; a red cat runs", "zebra-cat"] * 1100
    captions = Captions(texts, tokenizer, max_words, max_tokens)
    assert len(captions) == len(texts)
    for index in (0, 1, 2, 3, 4095, 4096, 4399):
        ids = tokenizer(clean_caption(texts[index], max_words))["input_ids"][:max_tokens]
        assert captions[index].tolist() == ids and captions.lengths[index] == len(ids)
        assert captions[index].dtype == torch.int64


@pytest.mark.parametrize(("length", "width"), [(None, 3), (5, 5)])
def test_padding(length, width):
    ids, mask = pad_captions([torch.tensor(row) for row in ([4, 5, 6], [7])], 9, length)
    rest = [0] * (width - 3)
    assert ids.tolist() == [[4, 5, 6] + [9 for _ in rest], [7, 9, 9] + [9 for _ in rest]]
    assert mask.tolist() == [[1, 1, 1] + rest, [1, 0, 0] + rest]
    assert ids.dtype == mask.dtype == torch.int64


# ----------------------------------------------------------------------------------------- batches


def test_collator():
    items = [(torch.full((3, 2, 2), i, dtype=torch.uint8), torch.arange(i + 1), i + 10, i + 20,
              NO_PHOTO) for i in range(3)]
    batch = Collator(pad_id=0, length=4)(items)
    assert batch.pixels.shape == (3, 3, 2, 2) and batch.pixels[2].unique() == 2
    assert batch.input_ids.shape == (3, 4)
    assert batch.attention_mask.sum(dim=1).tolist() == [1, 2, 3]
    assert batch.image_ids.tolist() == [10, 11, 12] and batch.text_ids.tolist() == [20, 21, 22]
    assert Collator(pad_id=0)(items).input_ids.shape == (3, 3)
    assert all(tensor.device.type == "cpu" for tensor in batch.to(torch.device("cpu")))


def batches(seed=1, epoch=0, start=0, size=23, batch_size=4):
    sampler = EpochSampler(size, batch_size, seed)
    sampler.epoch, sampler.start = epoch, start
    return list(sampler)


def test_an_epoch_shows_every_pair_once_and_drops_the_rest():
    epoch = batches()
    assert [len(batch) for batch in epoch] == [4] * 5 and len(EpochSampler(23, 4, 1)) == 5
    indices, seeds = zip(*sum(epoch, []))
    assert len(set(indices)) == len(set(seeds)) == 20 and set(indices) < set(range(23))


def test_order_and_seeds_follow_from_seed_and_epoch():
    assert batches(epoch=3) == batches(epoch=3)
    different = [batches(), batches(epoch=1), batches(seed=2)]
    for part in (0, 1):  # the order, and the seeds
        assert len({tuple(pair[part] for pair in sum(epoch, [])) for epoch in different}) == 3


@pytest.mark.parametrize("start", range(6))
def test_an_interrupted_epoch_goes_on_where_it_stopped(start):
    assert batches(epoch=2, start=start) == batches(epoch=2)[start:]


def test_a_batch_larger_than_the_split_is_refused():
    assert len(batches(size=4)) == 1
    with pytest.raises(InputError, match="--batch_size_train 4 .* 3 pairs"):
        EpochSampler(3, 4, 1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tokenizer):
    folder, names = tmp_path_factory.mktemp("photos"), [f"{i}.png" for i in range(4)]
    save_photos(folder, names)
    split = Split(Path("x.json"), names, ["a cat"] * 8, np.arange(8) % 4)
    captions = Captions(split.captions, tokenizer, 30, 30)
    return PairDataset(split, [folder / name for name in names], captions, 16, augment=True)


def test_the_seed_decides_a_training_photo_and_the_callers_draws_stay(dataset):
    torch.manual_seed(5)
    wanted = torch.rand(8)
    torch.manual_seed(5)
    seen = {seed: dataset[6, seed] for seed in range(8)}
    assert torch.equal(torch.rand(8), wanted)
    assert all(torch.equal(dataset[6, seed][0], item[0]) for seed, item in seen.items())
    assert len({item[0].numpy().tobytes() for item in seen.values()}) == 8
    assert {item[2:] for item in seen.values()} == {(2, 6, NO_PHOTO)}
    assert seen[0][0].shape == (3, 16, 16) and len(dataset) == 8


def test_workers_change_nothing(dataset):
    runs = []
    for workers in (0, 2):
        sampler = EpochSampler(8, 3, seed=1)
        loader = make_loader(dataset, workers, False, batch_sampler=sampler,
                             collate_fn=Collator(0))
        state = torch.get_rng_state()
        runs.append([])
        for sampler.epoch in range(2):
            runs[-1] += list(loader)
        assert torch.equal(torch.get_rng_state(), state)
    assert len(runs[0]) == 4
    for alone, shared_out in zip(*runs, strict=True):
        assert all(map(torch.equal, alone, shared_out))
