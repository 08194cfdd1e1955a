"""The shapes dataset: the words, the photos and the matches, checked by other means than its own.

The truth of a caption is decided here from its text alone: a small parser reads it back, and a
slow loop tries every assignment of scene objects to what it mentions.
"""
import hashlib
import itertools
import json
import re

import numpy as np
import pytest
from PIL import Image, ImageColor

from common.presets import AMBIGUITIES, USUAL_AMBIGUITY
from inputs import shapes

SIZES = {"train": 120, "val": 10, "test": 10}
SMALL = {"train": 12, "val": 2, "test": 3}

SHAPE_NAMES = ["circle", "square", "triangle", "star", "cross"]
COLOUR_NAMES = ["red", "orange", "yellow", "green", "blue", "purple", "black"]
ADJECTIVES = {name: ("colour", name) for name in COLOUR_NAMES} | {
    "violet": ("colour", "purple"), "large": ("size", "large"), "big": ("size", "large"),
    "small": ("size", "small"), "little": ("size", "small"), "tiny": ("size", "small")}
NOUNS = {name: name for name in SHAPE_NAMES} | {"disc": "circle", "plus sign": "cross",
                                                "object": None, "thing": None, "shape": None}
FRAME = r"(there (is|are) |a photo of |a picture of |an image with |you can see )?"
TOTAL = (r"(?:(just one|a single) (?:object|thing|shape), "
         r"|(?:exactly )?(two|three) (?:object|thing|shape)s(?: including |, among them ))?")
RELATION = r" (?:to the )?(left|right) of | (above|below|higher|lower)(?: than)? "
NUMBERS = {"just one": 1, "a single": 1, "two": 2, "three": 3}


def parse(caption):
    """Reads a caption: (mentions, relation or None, count or None)."""
    frame = re.match(FRAME, caption)
    caption = caption[frame.end():]
    total = re.match(TOTAL, caption)
    caption = caption[total.end():]
    count = NUMBERS[total.group(1) or total.group(2)] if total.end() else None
    if frame.group(2):
        assert (frame.group(2) == "are") == (count in (2, 3)), caption
    relation = re.search(RELATION, caption)
    parts = re.split(RELATION, caption)[::3] if relation else caption.split(" and ")
    assert len(parts) <= 2
    word = relation and (relation.group(1) or relation.group(2))
    return [mention(part) for part in parts], word, count


def mention(phrase):
    told = {}
    place = re.search(r" (?:at|in|on) the (.*)$", phrase)
    if place:
        phrase, words = phrase[:place.start()], place.group(1)
        middle = {"middle row": {"row": 1}, "middle column": {"column": 1},
                  "very middle": {"row": 1, "column": 1}, "centre": {"row": 1, "column": 1}}
        edges = {"top": ("row", 0), "middle": ("row", 1), "bottom": ("row", 2),
                 "left": ("column", 0), "centre": ("column", 1), "right": ("column", 2)}
        told |= middle.get(words) or dict(
            edges[word] for word in words.split() if word not in ("row", "column"))
    article, phrase = phrase.split(" ", 1)
    if article != "something":
        assert article == ("an" if phrase.startswith("o") else "a"), phrase
        noun = next(noun for noun in NOUNS if re.search(rf"\b{noun}$", phrase))
        phrase = phrase.removesuffix(noun)
        told |= {"shape": NOUNS[noun]} if NOUNS[noun] else {}
    told |= dict(ADJECTIVES[word] for word in phrase.split())
    assert told
    return told


def holds(parsed, scene):
    mentions, relation, count = parsed
    stands = {"left": lambda a, b: a["column"] < b["column"],
              "right": lambda a, b: a["column"] > b["column"],
              "above": lambda a, b: a["row"] < b["row"], "higher": lambda a, b: a["row"] < b["row"],
              "below": lambda a, b: a["row"] > b["row"], "lower": lambda a, b: a["row"] > b["row"],
              None: lambda *objects: True}[relation]
    return count in (None, len(scene)) and any(
        stands(*objects) and all(told.items() <= thing.items()
                                 for told, thing in zip(mentions, objects))
        for objects in itertools.permutations(scene, len(mentions)))


def named(scene):
    return [{"shape": SHAPE_NAMES[shape], "colour": COLOUR_NAMES[colour],
             "size": ["small", "large"][size], "row": row, "column": column}
            for shape, colour, size, row, column in scene.tolist() if shape >= 0]


def captions_of(root, split):
    records = json.loads((root / f"shapes_{split}.json").read_text())
    if split == "train":
        return [record["caption"] for record in records]
    return [caption for record in records for caption in record["caption"]]


def matches_of(root, split):
    return json.loads((root / f"shapes_{split}_matches.json").read_text())["matches"]


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def doses(tmp_path_factory):
    """The same data set at each ambiguity."""
    folder = tmp_path_factory.mktemp("shapes")
    return {dose: shapes.make_shapes(folder / str(dose), 3, SIZES, ambiguity=dose)
            for dose in shapes.DOSES}


@pytest.fixture(scope="module")
def root(doses):
    return doses[shapes.USUAL]


def test_parser_and_loop_on_captions_judged_by_hand():
    scene = [{"shape": "star", "colour": "red", "size": "large", "row": 0, "column": 0},
             {"shape": "circle", "colour": "blue", "size": "small", "row": 1, "column": 2}]
    true = ["a red star", "there is a tiny disc at the middle right", "something red at the top",
            "a disc below a big star", "a red thing left of something blue",
            "there are two objects including a star", "a circle and a red shape"]
    false = ["a red circle", "a star on the right", "a circle higher than a star",
             "a single thing, a red star", "exactly three shapes, among them a star",
             "a red thing and a star", "a photo of something blue in the very middle"]
    assert [caption for caption in true if not holds(parse(caption), scene)] == []
    assert [caption for caption in false if holds(parse(caption), scene)] == []


@pytest.mark.parametrize("dose", shapes.DOSES)
@pytest.mark.parametrize("split", SIZES)
def test_matches_are_what_the_words_say(doses, split, dose):
    scenes = [named(scene) for scene in shapes.sample_split(split, SIZES[split], 3)[0]]
    captions = captions_of(doses[dose], split)
    assert len(captions) == 5 * len(scenes)
    for caption, matches in zip(captions, matches_of(doses[dose], split), strict=True):
        parsed = parse(caption)
        expected = [index for index, scene in enumerate(scenes) if holds(parsed, scene)]
        assert matches == expected, caption


@pytest.mark.parametrize("dose", shapes.DOSES)
@pytest.mark.parametrize("split", SIZES)
def test_captions_are_distinct_and_true_of_their_own_photo(doses, split, dose):
    captions, matches = captions_of(doses[dose], split), matches_of(doses[dose], split)
    for photo in range(SIZES[split]):
        own = slice(5 * photo, 5 * photo + 5)
        assert len(set(captions[own])) == 5
        assert all(photo in indices for indices in matches[own])
    assert all(re.fullmatch(r"[a-z]+(,? [a-z]+)*", caption) for caption in captions)


@pytest.mark.parametrize("dose", shapes.DOSES)
def test_equal_meanings_and_only_those_read_back_as_equal_claims(dose):
    by_meaning, by_claim = {}, {}
    for captions in shapes.sample_split("train", 400, 0, dose)[1]:
        for text, meaning in captions:
            mentions, relation, count = parse(text)
            if relation in ("right", "below", "lower"):
                mentions.reverse()
            axis = relation and ("column" if relation in ("left", "right") else "row")
            mentions = [tuple(sorted(told.items())) for told in mentions]
            claim = tuple(mentions if axis else sorted(mentions)), axis, count
            assert by_meaning.setdefault(meaning, claim) == claim
            assert by_claim.setdefault(claim, meaning) == meaning
    assert len(by_meaning) > (100 if dose == 25 else 300)


# ----------------------------------------------------------------------------------------- the dial


@pytest.fixture(scope="module")
def captions_at():
    """Scenes and captions of 1,000 photos at each ambiguity."""
    return {dose: shapes.sample_split("train", 1000, 0, dose) for dose in shapes.DOSES}


@pytest.mark.parametrize("dose", shapes.DOSES)
def test_the_dial_sets_the_share_of_other_photos_that_a_caption_is_true_of(captions_at, dose):
    """Of photos that nobody wrote it for, hence the - 1."""
    scenes, captions = captions_at[dose]
    true = {}
    for meaning in (meaning for pairs in captions for _, meaning in pairs):
        if meaning not in true:
            true[meaning] = shapes.true_of(meaning, scenes).sum()
    share = np.mean([true[meaning] - 1 for pairs in captions for _, meaning in pairs]) / 999
    assert share == pytest.approx(dose / 100, rel=0.12)


def test_the_dial_leaves_number_length_and_words_of_captions_as_they_are(captions_at):
    """Only the spread of lengths is smaller where a caption must tell much."""
    texts = {dose: [text for pairs in captions for text, _ in pairs]
             for dose, (_, captions) in captions_at.items()}
    words = {dose: set(re.findall("[a-z]+", " ".join(of_dose))) for dose, of_dose in texts.items()}
    lengths = {dose: np.array([len(text.split()) for text in of_dose])
               for dose, of_dose in texts.items()}
    usual = lengths[shapes.USUAL]
    for dose, _ in texts.items():
        assert all(len(pairs) == 5 for pairs in captions_at[dose][1])
        assert words[dose] == words[shapes.USUAL]
        assert lengths[dose].mean() == pytest.approx(usual.mean(), rel=0.03)
        assert lengths[dose].std() == pytest.approx(usual.std(), rel=0.4 if dose == 0.5 else 0.05)


def test_the_dial_leaves_the_photos_as_they_are_to_the_bit(doses):
    photos = {dose: {path.name: path.read_bytes() for path in (root / "images").iterdir()}
              for dose, root in doses.items()}
    assert len(photos[3]) == sum(SIZES.values())
    assert all(of_dose == photos[3] for of_dose in photos.values())
    captions = [captions_of(root, "train") for root in doses.values()]
    assert all(a != b for a, b in itertools.combinations(captions, 2))


@pytest.mark.parametrize("split", SIZES)
def test_the_measured_share_is_in_the_split(doses, split):
    for dose, root in doses.items():
        file = json.loads((root / f"shapes_{split}_matches.json").read_text())
        photos, true = SIZES[split], [len(found) for found in file["matches"]]
        share = sum(count - 1 for count in true) / len(true) / (photos - 1)
        assert dose == shapes.USUAL or file["share"] == pytest.approx(share)


def test_the_usual_dose_is_what_was_made_before_there_were_others(root):
    """Every text and pixel, by a digest that the version without the dial gave."""
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        digest.update(path.relative_to(root).as_posix().encode())
        if path.suffix == ".png":
            with Image.open(path) as image:  # the file's bytes depend on the library
                digest.update(np.asarray(image).tobytes())
        else:
            digest.update(path.read_bytes())
    assert digest.hexdigest() == "fd682eeda21acd55c9dc0dc3f683856ec5c6214ba195e2aff534a79d06b3f7b6"


def test_a_folder_is_of_one_dose(tmp_path):
    """One that was made before there was a dial is of the usual; others say their own."""
    plain = shapes.make_shapes(tmp_path / "plain", 0, SMALL)
    assert json.loads((plain / "shapes_info.json").read_text()) == {
        "version": 1, "seed": 0, "sizes": SMALL, "image_size": 64}
    other = shapes.make_shapes(tmp_path / "other", 0, SMALL, ambiguity=10)
    before = contents(tmp_path)
    for root, dose in ((plain, 10), (other, 3), (other, 25)):
        with pytest.raises(ValueError, match="made with .* another folder"):
            shapes.make_shapes(root, 0, SMALL, ambiguity=dose)
    assert shapes.make_shapes(plain, 0, SMALL, ambiguity=3.0) == plain
    assert shapes.make_shapes(other, 0, SMALL, ambiguity=10.0) == other
    assert contents(tmp_path) == before


def test_the_flags_have_the_doses():
    assert [float(text) for text in AMBIGUITIES] == list(shapes.DOSES)
    assert float(USUAL_AMBIGUITY) == shapes.USUAL


# ---------------------------------------------------------------------------------------- the files


def test_share_of_true_photos_is_small_and_spread():
    scenes, captions = shapes.sample_split("train", 1000, 0)
    meanings = {meaning for pairs in captions for _, meaning in pairs}
    share = {meaning: shapes.true_of(meaning, scenes).mean() for meaning in meanings}
    shares = np.array([share[meaning] for pairs in captions for _, meaning in pairs])
    assert 0.02 < shares.mean() < 0.06
    assert shares.max() < 0.2
    assert (shares < 0.005).mean() > 0.05 and (shares > 0.05).mean() > 0.1


def test_records_are_laid_out_as_flickr30k(root):
    train = json.loads((root / "shapes_train.json").read_text())
    assert len(train) == 5 * SIZES["train"]
    assert [record["image_id"] for record in train[4:6]] == ["train_00000", "train_00001"]
    assert all(record["image"] == f"images/{record['image_id']}.png" for record in train)
    for split in ("val", "test"):
        records = json.loads((root / f"shapes_{split}.json").read_text())
        assert [record["image"] for record in records] == [
            f"images/{split}_{index:05d}.png" for index in range(SIZES[split])]
        assert all(len(record["caption"]) == 5 for record in records)
    assert len(list((root / "images").iterdir())) == sum(SIZES.values())


def test_photos_show_their_scenes(tmp_path):
    """Colour, cell, size and shape of every object, measured in the pixels of the files."""
    root = shapes.make_shapes(tmp_path / "large", 5, SMALL | {"train": 60}, image_size=192)
    palette = np.array([ImageColor.getrgb(name) for name in COLOUR_NAMES])
    # How much of its bounding box a shape fills, and how much of that is in the lower half.
    looks = {"circle": (0.79, 0.5), "square": (1, 0.5), "triangle": (0.5, 0.75),
             "star": (0.38, 0.54), "cross": (0.56, 0.5)}
    for index, scene in enumerate(shapes.sample_split("train", 60, 5)[0]):
        with Image.open(root / f"images/train_{index:05d}.png") as image:
            assert (image.size, image.mode) == ((192, 192), "RGB")
            pixels = np.asarray(image).astype(int)
        painted = (np.ptp(pixels, axis=2) > 80) | (pixels.max(axis=2) < 80)
        objects = {(thing["row"], thing["column"]): thing for thing in named(scene)}
        for row, column in itertools.product(range(3), range(3)):
            cell = np.s_[64 * row:64 * row + 64, 64 * column:64 * column + 64]
            rows, columns = painted[cell].nonzero()
            if (row, column) not in objects:
                assert len(rows) == 0
                continue
            thing = objects[row, column]
            colour = np.median(pixels[cell][painted[cell]], axis=0)
            nearest = np.square(palette - colour).sum(axis=1).argmin()
            assert COLOUR_NAMES[nearest] == thing["colour"]
            height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert ("large" if max(height, width) > 40 else "small") == thing["size"]
            look = len(rows) / (height * width), (2 * (rows - rows.min()) + 1 > height).mean()
            distances = {name: np.linalg.norm(np.subtract(looks[name], look)) for name in looks}
            assert min(distances, key=distances.get) == thing["shape"]


def test_seed_alone_decides(tmp_path):
    for name, seed, state in (("a", 1, 0), ("b", 1, 99), ("c", 2, 0)):
        np.random.seed(state)
        shapes.make_shapes(tmp_path / name, seed, SMALL)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert all(a[path] != c[path] for path in a if "matches" not in path.name)


def test_second_call_finds_the_first(tmp_path, monkeypatch):
    root = shapes.make_shapes(tmp_path / "made", 0, SMALL)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    monkeypatch.setattr(shapes, "sample_split", None)  # nothing is drawn again
    reordered = dict(reversed(SMALL.items()))
    assert shapes.make_shapes(tmp_path / "made", 0, reordered) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_nothing_is_overwritten(tmp_path):
    root = shapes.make_shapes(tmp_path / "made", 0, SMALL)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = contents(tmp_path)
    for arguments in ((1, SMALL), (0, SMALL | {"val": 3}), (0, SMALL, 32)):
        with pytest.raises(ValueError, match="made with .* another folder"):
            shapes.make_shapes(root, *arguments)
    for name in ("photos", "file"):
        with pytest.raises(ValueError, match="not an empty folder: name a new one"):
            shapes.make_shapes(tmp_path / name, 0, SMALL)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("settings", [
    {"sizes": {"train": 5}}, {"sizes": SMALL | {"val": 0}}, {"seed": -1}, {"image_size": 8},
    {"ambiguity": 4}])
def test_impossible_settings_are_named(tmp_path, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        shapes.make_shapes(tmp_path / "made", **settings)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_making_leaves_nothing(tmp_path, monkeypatch):
    paint, painted = shapes.paint, []

    def interrupted(*arguments):
        painted.append(arguments)
        if len(painted) > 5:
            raise KeyboardInterrupt
        return paint(*arguments)

    monkeypatch.setattr(shapes, "paint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shapes.make_shapes(tmp_path / "made", 0, SMALL)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shapes, "paint", paint)
    assert (shapes.make_shapes(tmp_path / "made", 0, SMALL) / "shapes_info.json").is_file()


def test_a_quicker_process_is_no_failure(tmp_path, monkeypatch):
    write_split = shapes._write_split

    def meanwhile(*arguments):
        monkeypatch.setattr(shapes, "_write_split", write_split)
        shapes.make_shapes(tmp_path / "made", 0, SMALL)
        write_split(*arguments)

    monkeypatch.setattr(shapes, "_write_split", meanwhile)
    assert shapes.make_shapes(tmp_path / "made", 0, SMALL) == tmp_path / "made"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
