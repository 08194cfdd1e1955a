"""Shapes: a small image-text dataset that is made on the spot and whose every true match is known.

A photo shows one to three coloured shapes on a 3 x 3 grid. Each of its five captions tells a part
of that, so it is true of other photos too, as captions of Flickr30K are; only here nobody has to
guess which. A caption is a `Meaning` put in words, and a meaning can be evaluated on every scene:
`shapes_<split>_matches.json` lists all the photos that a caption is true of, the false negatives
among them. The images and the json splits are laid out as those of Flickr30K.

How many photos a caption is true of is a dial, `ambiguity`: the same photos, words and number of
captions, and captions as long on average, that tell more of their photo or less.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from common.errors import InputError
from common.files import read_start
from common.temporary import remove_left_overs, temporary_folder
from common.terminal import progress
from inputs.shards import is_shards

VERSION = 1  # goes up whenever the same seed makes other files
DEFAULT_SIZES = {"train": 2000, "val": 250, "test": 500}  # photos
CAPTIONS_PER_PHOTO = 5
GRID, MAX_OBJECTS = 3, 3

# An object is five integers, in this order; they index the words below.
SHAPE, COLOUR, SIZE, ROW, COLUMN = range(5)
ANY, NOTHING = -1, -2  # a description leaves the attribute open; a scene has no such object

# Words, by value; "|" parts those that mean the same.
SHAPES = "circle|disc", "square", "triangle", "star", "cross|plus sign"
COLOURS = "red", "orange", "yellow", "green", "blue", "purple|violet", "black"
COLOUR_CODES = "#dc141e", "#ff8c00", "#ffeb00", "#148c28", "#143ce6", "#8c1ea0", "#0f0f0f"
SIZES = "small|little|tiny", "large|big"
ROWS = "at the top|in the top row", "in the middle row", "at the bottom|in the bottom row"
COLUMNS = ("on the left|in the left column", "in the middle column",
           "on the right|in the right column")
CELLS = ("at the top left", "at the top centre", "at the top right",
         "at the middle left", "in the centre|in the very middle", "at the middle right",
         "at the bottom left", "at the bottom centre", "at the bottom right")
NOUNS = "object|thing|shape"
COUNTS = ("just one {}, |a single {}, ", "two {}s including |exactly two {}s, among them ",
          "three {}s including |exactly three {}s, among them ")
# How the first of two objects stands to the second when its column (row) is the smaller one, and
# how the second then stands to the first. Cells decide, so "above" may be above and far aside.
RELATIONS = {COLUMN: ("left of|to the left of", "right of|to the right of"),
             ROW: ("above|higher than", "below|lower than")}
FRAMES = "{}|{}|there {be} {}|a photo of {}|a picture of {}|an image with {}|you can see {}"

# The kinds of caption: what is told of one object, or of each of two, and what else is claimed.
# Ordered by the share of photos that such a caption is true of: from 7 % down to 0.1 %.
KINDS = (
    (((SIZE, SHAPE, COLUMN),), None),
    (((COLOUR, SHAPE),), None),
    (((COLOUR, ROW, COLUMN),), None),
    (((SIZE, COLOUR, SHAPE),), None),
    (((COLOUR,), (SHAPE,)), "relation"),
    (((SIZE, SHAPE, ROW, COLUMN),), None),
    (((COLOUR, SHAPE),), "count"),
    (((SIZE, COLOUR), (SHAPE,)), "relation"),
    (((COLOUR, ROW), (COLOUR, ROW)), None),
    (((COLOUR, SHAPE), (COLOUR, SHAPE)), None),
    (((COLOUR, SHAPE), (COLOUR, SHAPE)), "relation"),
)


class Dose(NamedTuple):
    """The captions of an `ambiguity`: their kinds, and the frames that they stand in."""
    kinds: tuple = KINDS
    frames: str = FRAMES


# By the share, in percent, of the other photos that a caption is true of, on average and about. The
# kinds of a dose were chosen so that captions are as long as those of dose 3. What is true of next
# to no other photo takes many words: dose 0.5 saves them on frames, and has no short captions.
DOSES = {
    0.5: Dose((
        (((SIZE, SHAPE, COLOUR, COLUMN),), None),
        (((SIZE, SHAPE, COLOUR, ROW),), None),
        (((SIZE, SHAPE, COLOUR),), "count"),
        (((SHAPE, COLOUR, ROW, COLUMN),), None),
        (((COLOUR, SHAPE), (SHAPE,)), "relation"),
        (((COLOUR, SHAPE), (COLOUR,)), "relation"),
        (((SIZE, SHAPE, COLOUR, ROW, COLUMN),), None),
        (((COLOUR, SHAPE), (COLOUR, SHAPE)), None),
        (((SHAPE, COLOUR, ROW, COLUMN),), "count"),
        (((COLOUR, SHAPE), (COLOUR, SHAPE)), "relation"),
        (((SIZE, COLOUR), (COLOUR, SHAPE)), "relation"),
    ), 16 * "{}|" + FRAMES),
    3: Dose(),
    10: Dose((
        (((COLOUR,),), None),
        (((ROW, COLUMN),), None),
        (((SIZE, ROW, COLUMN),), None),
        (((COLOUR, COLUMN),), None),
        (((SIZE, ROW), (SIZE,)), "count"),
        (((SIZE,), (COLOUR,)), "relation"),
        (((SHAPE,), (SHAPE,)), "relation"),
        (((SIZE, COLOUR, COLUMN),), None),
        (((COLOUR,), (COLOUR,)), "relation"),
        (((COLOUR, SHAPE),), "count"),
        (((COLOUR, SHAPE), (COLOUR, SHAPE)), None),
    )),
    25: Dose((
        (((COLUMN,),), None),
        (((SIZE,), (SIZE,)), None),
        (((SIZE,), (COLUMN,)), None),
        (((SIZE, ROW),), None),
        (((COLOUR,),), None),
        (((SIZE,),), "count"),
        (((ROW, COLUMN),), None),
        (((SIZE,), (SHAPE,)), None),
        (((SIZE,), (ROW,)), "relation"),
        (((COLOUR, COLUMN),), "count"),
        (((SIZE, COLOUR), (COLOUR, SHAPE)), "relation"),
    )),
}
USUAL = 3  # its captions are those that there were before the dial


class Meaning(NamedTuple):
    """What a caption claims: as many different objects as `objects` holds fit these descriptions.

    objects: one or two descriptions, each five integers, ANY where nothing is told
    axis: None, or ROW (COLUMN): the first object is in a smaller row (column) than the second
    count: None, or how many objects the whole scene has
    """
    objects: tuple[tuple[int, ...], ...]
    axis: int | None = None
    count: int | None = None


def sample_scenes(size, rng):
    """Draw scenes: (size, MAX_OBJECTS, 5) integers, absent objects last and all NOTHING."""
    looks = [rng.integers(len(words), size=(size, MAX_OBJECTS))
             for words in (SHAPES, COLOURS, SIZES)]
    cells = rng.permuted(np.tile(np.arange(GRID * GRID), (size, 1)), axis=1)[:, :MAX_OBJECTS]
    scenes = np.stack([*looks, cells // GRID, cells % GRID], axis=-1)
    counts = rng.integers(1, MAX_OBJECTS + 1, size=(size, 1))
    scenes[np.arange(MAX_OBJECTS) >= counts] = NOTHING
    return scenes  # (size, MAX_OBJECTS, 5)


def true_of(meaning, scenes):
    """Return (N,) whether a meaning holds, for each of the scenes (N, MAX_OBJECTS, 5)."""
    present = scenes[:, :, SHAPE] != NOTHING  # (N, MAX_OBJECTS)
    fits = [((scenes == described) | (np.array(described) == ANY)).all(axis=-1) & present
            for described in meaning.objects]  # one or two of (N, MAX_OBJECTS)
    if len(fits) == 1:
        true = fits[0].any(axis=1)
    else:
        pairs = fits[0][:, :, None] & fits[1][:, None, :]
        pairs &= ~np.eye(MAX_OBJECTS, dtype=bool)  # one object that fits both is not two
        if meaning.axis is not None:
            position = scenes[:, :, meaning.axis]
            pairs &= position[:, :, None] < position[:, None, :]
        true = pairs.any(axis=(1, 2))
    return true if meaning.count is None else true & (present.sum(axis=1) == meaning.count)


def sample_meaning(kind, scene, rng):
    """Draw a meaning of a kind (a row of KINDS) that is true of the scene (MAX_OBJECTS, 5).

    Equal claims come out as equal meanings: "a right of b" as "b left of a", "a and b" in order.
    """
    described, claim = kind
    present = scene[scene[:, SHAPE] != NOTHING]
    chosen = rng.permutation(present)[:len(described)]
    objects = [tuple(value if attribute in attributes else ANY
                     for attribute, value in enumerate(thing))
               for thing, attributes in zip(chosen.tolist(), described)]
    if claim == "relation":
        axis = int(rng.choice([a for a in (ROW, COLUMN) if chosen[0, a] != chosen[1, a]]))
        if chosen[0, axis] > chosen[1, axis]:
            objects.reverse()
        return Meaning(tuple(objects), axis=axis)
    return Meaning(tuple(sorted(objects)), count=len(present) if claim == "count" else None)


def put_in_words(meaning, rng, frames=FRAMES):
    """Draw one of the many ways to say a meaning: lower-case English, no full stop."""
    turned = int(rng.integers(2))
    phrases = [_noun_phrase(described, rng) for described in meaning.objects]
    link = "and" if meaning.axis is None else _pick(RELATIONS[meaning.axis][turned], rng)
    text = f" {link} ".join(phrases[::-1] if turned else phrases)
    if meaning.count is not None:
        text = _pick(COUNTS[meaning.count - 1], rng).format(_pick(NOUNS, rng)) + text
    be = "is" if meaning.count in (None, 1) else "are"
    return _pick(frames, rng).format(text, be=be)


def _noun_phrase(described, rng):
    """Draw the words for an object of which `described` tells five integers, or ANY."""
    adjectives = [_pick(words[described[attribute]], rng)
                  for attribute, words in ((SIZE, SIZES), (COLOUR, COLOURS))
                  if described[attribute] != ANY]
    noun = _pick(SHAPES[described[SHAPE]] if described[SHAPE] != ANY else NOUNS, rng)
    words = " ".join([*adjectives, noun])
    phrase = f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
    if described[SHAPE] == ANY and len(adjectives) == 1 and rng.random() < 0.5:
        phrase = f"something {adjectives[0]}"
    row, column = described[ROW], described[COLUMN]
    if row == column == ANY:
        return phrase
    if ANY in (row, column):
        places = COLUMNS[column] if row == ANY else ROWS[row]
    else:
        places = CELLS[GRID * row + column]
    return f"{phrase} {_pick(places, rng)}"


def _pick(options, rng):
    """Draw one of the texts that "|" separates."""
    options = options.split("|")
    return options[rng.integers(len(options))]


def sample_split(split, size, seed, ambiguity=USUAL):
    """Draw a split: its scenes (size, MAX_OBJECTS, 5) and, per scene, its captions.

    The captions of a scene are CAPTIONS_PER_PHOTO pairs (text, Meaning) of different kinds. The
    scenes are the same at each ambiguity.
    """
    dose, rng = DOSES[ambiguity], _generator(split, seed, 0)
    scenes = sample_scenes(size, rng)
    captions = []
    for scene in scenes:
        count = (scene[:, SHAPE] != NOTHING).sum()
        kinds = [kind for kind in dose.kinds if len(kind[0]) <= count]
        order = rng.permutation(len(kinds))[:CAPTIONS_PER_PHOTO]
        meanings = [sample_meaning(kinds[index], scene, rng) for index in order]
        captions.append([(put_in_words(meaning, rng, dose.frames), meaning)
                         for meaning in meanings])
    return scenes, captions


def _generator(split, seed, stream):
    """Return a generator of random numbers for one purpose, `stream`, of a split."""
    return np.random.default_rng([seed, list(DEFAULT_SIZES).index(split), stream])


def paint(scene, image_size, rng):
    """Paint a scene (MAX_OBJECTS, 5) on a pale ground: a square RGB image of image_size pixels."""
    scale = 4  # drawn larger, then averaged down: smooth edges
    ground = rng.integers(195, 225) + rng.integers(-12, 13, size=3)
    image = Image.new("RGB", (scale * image_size,) * 2, tuple(ground.tolist()))
    draw = ImageDraw.Draw(image)
    cell = scale * image_size / GRID
    for shape, colour, size, row, column in scene[scene[:, SHAPE] != NOTHING]:
        # Radius and jitter stay within half a cell together, so objects never touch.
        radius = (0.24, 0.42)[size] * cell
        x, y = (np.array([column, row]) + 0.5 + rng.uniform(-0.06, 0.06, size=2)) * cell
        outline = complex(x, y) + radius * _outline(shape)
        draw.polygon(list(zip(outline.real, outline.imag)), fill=COLOUR_CODES[colour])
    pixels = np.asarray(image.reduce(scale)) + rng.integers(-4, 5, size=(image_size, image_size, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _outline(shape):
    """Return the corners of a shape as complex numbers x + iy, y downwards, from -1 to 1."""
    circle = -1j * np.exp(2j * np.pi * np.arange(120) / 120)  # from the top, clockwise
    arm = np.array([-0.33 - 1j, 0.33 - 1j, 0.33 - 0.33j])
    return (circle,
            circle[15::30] * 1.25,  # square
            circle[::40] * 1.1 + 0.2j,  # triangle
            circle[::12] * np.tile([1, 0.45], 5),  # star
            np.concatenate([arm * 1j ** turn for turn in range(4)]))[shape]  # cross


def make_shapes(root, seed=0, sizes=None, image_size=64, ambiguity=USUAL):
    """Make the dataset in the folder `root`, or finds it there, and returns that path.

    Writes `images/<split>_<number>.png`, `shapes_<split>.json` (train: a record per caption; val
    and test: a record per photo) and `shapes_<split>_matches.json`: {"matches": per caption, in
    the order of the split, the positions in the split of the photos that it is true of}; with an
    ambiguity other than the usual one also "share": of the other photos, those that a caption is
    true of, from 0 to 1, on average.

    sizes: photos per split, DEFAULT_SIZES if None; image_size: width and height in pixels;
    ambiguity: one of DOSES.
    Raises InputError for a setting that cannot be, and for a root that holds anything else or
    cannot be written.
    """
    root = Path(root).expanduser().resolve()
    sizes = DEFAULT_SIZES if sizes is None else sizes
    if set(sizes) != set(DEFAULT_SIZES) or min(sizes.values()) < 1:
        raise InputError(f"sizes is {sizes}: give each of {', '.join(DEFAULT_SIZES)} 1 or more")
    if seed < 0 or image_size < 16:
        raise InputError(f"seed {seed}, image_size {image_size}: give at least 0 and 16 pixels")
    if ambiguity not in DOSES:
        raise InputError(f"ambiguity is {ambiguity}: give one of {', '.join(map(str, DOSES))}")
    sizes = {split: sizes[split] for split in DEFAULT_SIZES}
    info = {"version": VERSION, "seed": seed, "sizes": sizes, "image_size": image_size}
    # The usual one is not named, as before there were others: such a folder is still the same.
    info = json.dumps(info if ambiguity == USUAL else info | {"ambiguity": float(ambiguity)})
    if is_shards(root):
        raise InputError(f"{root}: the shapes dataset is made in a folder; shards are read with "
                         "--dataset custom")
    if _is_made(root, info):
        return root
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        remove_left_overs(root.parent)
        with temporary_folder(root.parent) as folder:  # moved into place as a whole, or not at all
            (folder / "images").mkdir()
            with progress(None, "shapes", sum(sizes.values()), unit="photo") as bar:
                for split, size in sizes.items():
                    _write_split(folder, split, size, seed, image_size, ambiguity, bar)
            (folder / "shapes_info.json").write_text(info)
            folder.rename(root)
    except OSError as error:
        if not _is_made(root, info):  # another process may have been quicker
            raise InputError(f"--data_path {root}: the shapes dataset cannot be made there "
                             f"({error.strerror}): name another folder") from error
    return root


def _is_made(root, info):
    """Return whether `root` holds this dataset; InputError where it holds anything else."""
    path = root / "shapes_info.json"
    found = read_start(path).decode(errors="replace")
    if found == info:
        return True
    if found:
        raise InputError(f"{root} holds a shapes dataset made with {found[:80]!r}, not {info}: "
                         "name another folder, or remove this one first")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root} is not an empty folder: name a new one for the shapes dataset")
    return False


def _write_split(folder, split, size, seed, image_size, ambiguity, bar):
    """Write the photos, the captions and the true matches of a split."""
    scenes, captions = sample_split(split, size, seed, ambiguity)
    rng = _generator(split, seed, 1)
    records = []
    for index, (scene, pairs) in enumerate(zip(scenes, captions)):
        image_id = f"{split}_{index:05d}"
        image, texts = f"images/{image_id}.png", [text for text, _ in pairs]
        paint(scene, image_size, rng).save(folder / image)
        if split == "train":
            records += [{"image": image, "caption": text, "image_id": image_id} for text in texts]
        else:
            records.append({"image": image, "caption": texts})
        bar.update()
    meanings = [meaning for pairs in captions for _, meaning in pairs]
    true = {meaning: np.flatnonzero(true_of(meaning, scenes)).tolist() for meaning in set(meanings)}
    matches = {"matches": [true[meaning] for meaning in meanings]}
    if ambiguity != USUAL:
        others = sum(map(len, matches["matches"])) - len(meanings)
        matches = {"share": others / len(meanings) / max(1, size - 1)} | matches
    (folder / f"shapes_{split}.json").write_text(json.dumps(records))
    (folder / f"shapes_{split}_matches.json").write_text(json.dumps(matches, separators=(",", ":")))
