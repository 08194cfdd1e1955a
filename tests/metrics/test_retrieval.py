"""Retrieval metrics against ranks by hand, the released program's, and a plain sort."""

import operator
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers.paths import GOLDEN
from helpers.ranks import HAND_METRICS, I2T, PAIRS, SIMILARITY, T2I

from metrics import retrieval
from metrics.retrieval import five_fold, metrics_of_ranks, retrieval_metrics, retrieval_ranks

RELEASED = dict(np.load(GOLDEN / "retrieval.npz"))
KINDS = {"numpy": np.asarray, "tensor": torch.as_tensor}
KEYS = [f"{side}_{key}" for side in ("i2t", "t2i") for key in ("r1", "r5", "r10", "medr", "meanr")]


def sorted_ranks(images, texts, image_of_text):
    """One query after the other: sort, and look for the first right one."""
    similarity = images @ texts.T
    i2t = [min(int(np.flatnonzero(np.argsort(-row, kind="stable") == text)[0])
               for text in np.flatnonzero(image_of_text == image))
           for image, row in enumerate(similarity)]
    t2i = [int(np.flatnonzero(np.argsort(-column, kind="stable") == image_of_text[text])[0])
           for text, column in enumerate(similarity.T)]
    return i2t, t2i


def random_case(seed=0, images=30, texts=83, dim=6):
    """Photos with 1 to many captions, in mixed order."""
    rng = np.random.default_rng(seed)
    image_of_text = rng.permutation(
        np.concatenate([np.arange(images), rng.integers(images, size=texts - images)]))
    image_embeds, noise = rng.normal(size=(images, dim)), rng.normal(size=(texts, dim))
    return image_embeds, image_embeds[image_of_text] + noise, image_of_text


def check_ranks(got, i2t, t2i):
    assert all(isinstance(ranks, np.ndarray) and ranks.dtype == np.int64 for ranks in got)
    assert (got[0].tolist(), got[1].tolist()) == (list(i2t), list(t2i))


# ------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("identity", ["images", "texts"])
def test_ranks_by_hand(kind, dtype, identity):
    """One side is the identity, so that the products are exactly those numbers."""
    if identity == "images":
        embeds = np.eye(4), SIMILARITY.T
    else:
        embeds = SIMILARITY, np.eye(8)
    case = [KINDS[kind](array.astype(dtype)) for array in embeds] + [KINDS[kind](PAIRS)]
    check_ranks(retrieval_ranks(*case), I2T, T2I)
    assert retrieval_metrics(*case) == pytest.approx(HAND_METRICS, abs=1e-9)


@pytest.mark.parametrize("order", [[7, 6, 5, 4, 3, 2, 1, 0], [2, 7, 0, 5, 4, 1, 6, 3]])
def test_captions_need_no_order(order):
    case = np.eye(4), SIMILARITY.T[order], PAIRS[order]
    check_ranks(retrieval_ranks(*case), I2T, np.array(T2I)[order])


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_and_metrics_are_those_of_the_released_program(kind):
    case = [KINDS[kind](RELEASED[f"{side}_embeds"]) for side in ("image", "text")]
    case.append(KINDS[kind](np.repeat(np.arange(200), 5)))
    check_ranks(retrieval_ranks(*case), RELEASED["ranks_i2t"], RELEASED["ranks_t2i"])
    metrics = retrieval_metrics(*case)
    wanted = np.concatenate([RELEASED["i2t"], RELEASED["t2i"]])
    assert [metrics[key] for key in KEYS] == pytest.approx(list(wanted), rel=1e-12)
    recalls = [*RELEASED["i2t"][:3], *RELEASED["t2i"][:3]]
    assert metrics["rsum"] == pytest.approx(sum(recalls), rel=1e-12)
    assert metrics.keys() == {*KEYS, "rsum"}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block", [1, 100, 2**25])
def test_ranks_are_those_of_a_sort_in_blocks_of_any_size(monkeypatch, seed, block):
    monkeypatch.setattr(retrieval, "BLOCK", block)
    case = random_case(seed)
    check_ranks(retrieval_ranks(*case), *sorted_ranks(*case))


@pytest.mark.parametrize(("ranks", "median"), [([0], 1), ([0, 1], 1), ([1, 2], 2), ([0, 4], 3)])
def test_median_rank_is_a_whole_number(ranks, median):
    assert metrics_of_ranks(np.array(ranks), np.array([0]))["i2t_medr"] == median


# --------------------------------------------------------------------------------------------- ties


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("per_image", [1, 2, 5])
def test_equal_embeddings_take_the_worst_ranks(dtype, per_image):
    vector = torch.tensor([0.5, 0.5, 0.5, 0.5], dtype=dtype)
    ranks = retrieval_ranks(vector.expand(10, 4), vector.expand(10 * per_image, 4),
                            torch.arange(10).repeat_interleave(per_image))
    check_ranks(ranks, [9 * per_image] * 10, [9] * 10 * per_image)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [48, 256, 768])
def test_a_collapsed_encoder_takes_the_worst_ranks(dtype, dim):
    wrong = {}
    for images in (2, 3, 5, 7, 33, 50, 101):
        vector = torch.randn(dim, generator=torch.Generator().manual_seed(images), dtype=dtype)
        rows = torch.nn.functional.normalize(vector, dim=0).expand(images, dim).contiguous()
        i2t, t2i = retrieval_ranks(rows, rows, torch.arange(images))
        if min(i2t.min(), t2i.min()) < images - 1:
            wrong[images] = int(i2t.min()), int(t2i.min())
    assert not wrong


def test_a_caption_that_two_photos_share_counts_against_both():
    texts = np.eye(3)[[0, 0, 1, 2]]  # captions 0 and 1 are the same text, of photos 0 and 1
    images = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.0, 0.1, 0.9]])
    check_ranks(retrieval_ranks(images, texts, [0, 1, 1, 2]), [1, 1, 0], [0, 1, 0, 0])


def test_two_photos_that_look_the_same_count_against_both():
    images = np.eye(3)[[0, 0, 2]]
    check_ranks(retrieval_ranks(images, images, [0, 1, 2]), [1, 1, 0], [1, 1, 0])


def nearly_equal(seed, images=40, per_image=3, dim=24):
    """Float32 rows whose products differ in the last bits alone; some rows are equal."""
    rng = np.random.default_rng(seed)
    vector = rng.normal(size=dim) / np.sqrt(dim)
    rows = [vector + 2e-8 * rng.normal(size=(count, dim)) for count in (images, images * per_image)]
    rows = [array.astype(np.float32) for array in rows]
    rows[0][5], rows[1][7] = rows[0][9], rows[1][100]
    return *rows, np.repeat(np.arange(images), per_image)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("block", [60, 2**22])
@pytest.mark.parametrize("one_by_one", [True, False])
def test_what_float32_cannot_tell_apart_is_ranked_by_exact_products(
        monkeypatch, seed, block, one_by_one):
    """Against sums in rational numbers; both ways of comparing again give the same."""
    monkeypatch.setattr(retrieval, "BLOCK", block)
    if one_by_one:
        monkeypatch.setattr(retrieval, "WHOLE_PRODUCT_SHARE", 1)
    images, texts, image_of_text = nearly_equal(seed)
    left, right = ([[Fraction(float(x)) for x in row] for row in rows] for rows in (images, texts))
    exact = [[sum(map(operator.mul, a, b)) for b in right] for a in left]
    assert len({float(value) for row in exact for value in row}) > 1000
    own = [exact[image][text] for text, image in enumerate(image_of_text)]
    best = [max(own[3 * image : 3 * image + 3]) for image in range(len(images))]
    i2t = [sum(row[text] >= best[image] for text, other in enumerate(image_of_text)
               if other != image) for image, row in enumerate(exact)]
    t2i = [sum(exact[other][text] >= own[text] for other in range(len(images)) if other != image)
           for text, image in enumerate(image_of_text)]
    check_ranks(retrieval_ranks(images, texts, image_of_text), i2t, t2i)


def test_half_precision_is_scored_in_float32():
    case = [array.astype(np.float16) for array in random_case()[:2]] + [random_case()[2]]
    assert retrieval_metrics(*case) == retrieval_metrics(
        *(array.astype(np.float32) for array in case[:2]), case[2])


# -------------------------------------------------------------------------------------------- folds


@pytest.mark.parametrize("kind", KINDS)
def test_five_folds_are_the_mean_of_the_parts(kind):
    images, texts, image_of_text = random_case(images=35, texts=90)
    parts = []
    for first in range(0, 35, 7):
        inside = (first <= image_of_text) & (image_of_text < first + 7)
        parts.append(retrieval_metrics(images[first : first + 7], texts[inside],
                                       image_of_text[inside] - first))
    got = five_fold(*(KINDS[kind](array) for array in (images, texts, image_of_text)))
    assert got == pytest.approx({key: np.mean([part[key] for part in parts]) for key in parts[0]})
    assert got["t2i_r1"] > retrieval_metrics(images, texts, image_of_text)["t2i_r1"]


@pytest.mark.parametrize("block", [40, 2**20])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sort", [False, True])
def test_ranks_inside_folds_come_from_the_same_product(monkeypatch, block, tied, sort):
    """As from each fold's own embeddings, in any order of the captions, and with near ties."""
    monkeypatch.setattr(retrieval, "BLOCK", block)
    images, texts, image_of_text = nearly_equal(0) if tied else random_case(images=40, texts=90)
    order = np.argsort(image_of_text, kind="stable") if sort else (
        np.random.default_rng(1).permutation(len(texts)))
    texts, image_of_text = texts[order], image_of_text[order]
    case = retrieval.as_tensors(images, texts, image_of_text)
    whole, within = retrieval.ranks_and_folds(*case, folds=4)
    check_ranks(whole, *retrieval_ranks(images, texts, image_of_text))
    for fold in range(4):
        photos = slice(10 * fold, 10 * fold + 10)
        inside = image_of_text // 10 == fold
        i2t, t2i = retrieval_ranks(images[photos], texts[inside], image_of_text[inside] - 10 * fold)
        check_ranks((within[0][photos], within[1][inside]), i2t, t2i)
    [alone] = retrieval.ranks_and_folds(*case, folds=4, only_folds=True)
    check_ranks(alone, *within)
    both = retrieval.metrics_and_five_fold(images, texts, image_of_text)
    assert both == (retrieval_metrics(images, texts, image_of_text),
                    five_fold(images, texts, image_of_text))


def test_one_fold_is_the_whole():
    case = random_case()
    assert five_fold(*case, folds=1) == pytest.approx(retrieval_metrics(*case))


def test_uneven_folds_are_refused():
    with pytest.raises(ValueError, match="30 photos do not make 7 equal folds"):
        five_fold(*random_case(), folds=7)


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("function", [retrieval_ranks, retrieval_metrics, five_fold])
@pytest.mark.parametrize(("images", "texts", "image_of_text", "message"), [
    (np.eye(5), np.ones((5, 4)), range(5), r"\(5, 5\) and \(5, 4\)"),
    (np.ones(5), np.ones((5, 5)), range(5), "embeddings must be"),
    (np.eye(5), np.eye(5), range(4), "each of 5 captions"),
    (np.eye(5), np.eye(5), [range(5)], "each of 5 captions"),
    (np.eye(5), np.ones((0, 5)), [], "photos 0 to 4"),
    (np.eye(5), np.eye(5), [0, 1, 2, 3, 3], "photos 0 to 4"),  # photo 4 has no caption
    (np.eye(5), np.eye(5), [0, 1, 2, 3, 5], "photos 0 to 4"),
    (np.eye(5), np.eye(5), [-1, 1, 2, 3, 4], "photos 0 to 4"),
    (np.eye(5) * np.nan, np.eye(5), range(5), "NaN or infinity"),
    (np.eye(5), np.diag([1, 1, np.inf, 1, 1]), range(5), "NaN or infinity")])
def test_what_cannot_be_ranked(function, images, texts, image_of_text, message):
    with pytest.raises(ValueError, match=message):
        function(images, texts, np.array(image_of_text))


@pytest.mark.parametrize("dtype, exponents", [(np.float32, [-140, -100, 20, 100, 118]),
                                              (np.float64, [-1060, -700, 700, 1000])])
def test_huge_and_tiny_numbers_rank_alike(dtype, exponents):
    """Their products would overflow, or vanish: a power of two is taken out, exactly."""
    images, texts, image_of_text = random_case()
    images, texts = np.round(images * 64), np.round(texts * 64)  # few digits, which all have
    wanted = retrieval_ranks(images, texts, image_of_text)
    for exponent in exponents:
        large = [np.ldexp(embeds, exponent).astype(dtype) for embeds in (images, texts)]
        for given in (large[0], texts), (images, large[1]), large:
            found = retrieval_ranks(*given, image_of_text)
            assert all(map(np.array_equal, found, wanted)), exponent
