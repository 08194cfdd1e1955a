"""Ranks and recalls against ranks by hand, those of the released program, and a plain sort."""

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
KEYS = [f"{direction}_{key}" for direction in ("i2t", "t2i")
        for key in ("r1", "r5", "r10", "medr", "meanr")]


def sorted_ranks(images, texts, image_of_text):
    """Rank one query after the other: sort, and find the first right candidate."""
    similarity = images @ texts.T
    i2t = [min(int(np.flatnonzero(np.argsort(-row, kind="stable") == text)[0])
               for text in np.flatnonzero(image_of_text == image))
           for image, row in enumerate(similarity)]
    t2i = [int(np.flatnonzero(np.argsort(-column, kind="stable") == image_of_text[text])[0])
           for text, column in enumerate(similarity.T)]
    return i2t, t2i


def random_case(seed=0, images=30, texts=83, dim=6):
    """Return embeddings of photos with one or more captions each, in random order."""
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
    """One side is the identity matrix, so that the products are exactly the hand-ranked numbers."""
    if identity == "images":
        embeds = np.eye(4), SIMILARITY.T
    else:
        embeds = SIMILARITY, np.eye(8)
    case = [KINDS[kind](array.astype(dtype)) for array in embeds] + [KINDS[kind](PAIRS)]
    check_ranks(retrieval_ranks(*case), I2T, T2I)
    assert retrieval_metrics(*case) == pytest.approx(HAND_METRICS, abs=1e-9)


@pytest.mark.parametrize("order", [[7, 6, 5, 4, 3, 2, 1, 0], [2, 7, 0, 5, 4, 1, 6, 3]])
def test_captions_may_come_in_any_order(order):
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
def test_ranks_are_those_of_a_sort_for_any_block_size(monkeypatch, seed, block):
    monkeypatch.setattr(retrieval, "BLOCK", block)
    case = random_case(seed)
    check_ranks(retrieval_ranks(*case), *sorted_ranks(*case))


@pytest.mark.parametrize(("ranks", "median"), [([0], 1), ([0, 1], 1), ([1, 2], 2), ([0, 4], 3)])
def test_the_median_rank_is_rounded_down_to_a_whole_number(ranks, median):
    assert metrics_of_ranks(np.array(ranks), np.array([0]))["i2t_medr"] == median


# --------------------------------------------------------------------------------------------- ties


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("per_image", [1, 2, 5])
def test_equal_embeddings_get_the_worst_ranks(dtype, per_image):
    vector = torch.tensor([0.5, 0.5, 0.5, 0.5], dtype=dtype)
    ranks = retrieval_ranks(vector.expand(10, 4), vector.expand(10 * per_image, 4),
                            torch.arange(10).repeat_interleave(per_image))
    check_ranks(ranks, [9 * per_image] * 10, [9] * 10 * per_image)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [48, 256, 768])
def test_a_collapsed_encoder_gets_the_worst_ranks(dtype, dim):
    better = {}
    for images in (2, 3, 5, 7, 33, 50, 101):
        vector = torch.randn(dim, generator=torch.Generator().manual_seed(images), dtype=dtype)
        rows = torch.nn.functional.normalize(vector, dim=0).expand(images, dim).contiguous()
        i2t, t2i = retrieval_ranks(rows, rows, torch.arange(images))
        if min(i2t.min(), t2i.min()) < images - 1:
            better[images] = int(i2t.min()), int(t2i.min())
    assert not better


def test_a_caption_that_two_photos_share_is_ranked_before_both_positives():
    texts = np.eye(3)[[0, 0, 1, 2]]  # captions 0 and 1 are equal, of photos 0 and 1
    images = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.0, 0.1, 0.9]])
    check_ranks(retrieval_ranks(images, texts, [0, 1, 1, 2]), [1, 1, 0], [0, 1, 0, 0])


def test_two_equal_photos_are_each_ranked_before_the_other():
    images = np.eye(3)[[0, 0, 2]]
    check_ranks(retrieval_ranks(images, images, [0, 1, 2]), [1, 1, 0], [1, 1, 0])


def nearly_equal(seed, images=40, per_image=3, dim=24):
    """Return float32 rows whose products differ in the last bits alone; some rows are equal."""
    rng = np.random.default_rng(seed)
    vector = rng.normal(size=dim) / np.sqrt(dim)
    rows = [vector + 2e-8 * rng.normal(size=(count, dim)) for count in (images, images * per_image)]
    rows = [array.astype(np.float32) for array in rows]
    rows[0][5], rows[1][7] = rows[0][9], rows[1][100]
    return *rows, np.repeat(np.arange(images), per_image)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("block", [60, 2**22])
@pytest.mark.parametrize("pair_by_pair", [True, False])
def test_near_ties_in_float32_are_ranked_by_exact_products(
        monkeypatch, seed, block, pair_by_pair):
    """Compared with sums of rational numbers, for both ways of computing products in float64."""
    monkeypatch.setattr(retrieval, "BLOCK", block)
    if pair_by_pair:
        monkeypatch.setattr(retrieval, "WHOLE_PRODUCT_SHARE", 1)
    images, texts, image_of_text = nearly_equal(seed)
    left, right = ([[Fraction(float(x)) for x in row] for row in rows] for rows in (images, texts))
    exact = [[sum(map(operator.mul, a, b)) for b in right] for a in left]
    assert len({float(value) for row in exact for value in row}) > 1000
    text_positive = [exact[image][text] for text, image in enumerate(image_of_text)]
    image_positive = [max(text_positive[3 * image : 3 * image + 3])
                      for image in range(len(images))]
    i2t = [sum(row[text] >= image_positive[image] for text, other in enumerate(image_of_text)
               if other != image) for image, row in enumerate(exact)]
    t2i = [sum(exact[other][text] >= text_positive[text]
               for other in range(len(images)) if other != image)
           for text, image in enumerate(image_of_text)]
    check_ranks(retrieval_ranks(images, texts, image_of_text), i2t, t2i)


def test_half_precision_is_scored_in_float32():
    case = [array.astype(np.float16) for array in random_case()[:2]] + [random_case()[2]]
    assert retrieval_metrics(*case) == retrieval_metrics(
        *(array.astype(np.float32) for array in case[:2]), case[2])


@pytest.mark.parametrize("exponent", [0, 100, -100])
@pytest.mark.parametrize("tied", [False, True])
def test_bfloat16_is_ranked_as_in_float32_block_by_block(monkeypatch, tied, exponent):
    """And but for the scaling of what would overflow no more than a block is converted at once."""
    monkeypatch.setattr(retrieval, "BLOCK", 40)
    monkeypatch.setattr(retrieval, "BLOCK_TEXTS", 8)
    monkeypatch.setattr(retrieval, "NORM_ROWS", 8)
    images, texts, image_of_text = nearly_equal(0) if tied else random_case(images=40, texts=90)
    shuffled = np.random.default_rng(1).permutation(len(texts))
    texts, image_of_text = texts[shuffled], image_of_text[shuffled]
    half = [torch.ldexp(torch.as_tensor(array).bfloat16(), torch.tensor(exponent))
            for array in (images, texts)]
    wanted = retrieval.metrics_and_five_fold(*(embeds.float() for embeds in half), image_of_text)
    sizes, convert = [], retrieval.from_bfloat16
    monkeypatch.setattr(retrieval, "from_bfloat16",
                        lambda embeds: sizes.append(len(embeds)) or convert(embeds))
    assert retrieval.metrics_and_five_fold(*half, image_of_text) == wanted
    assert exponent or 1 < max(sizes) <= 8


# -------------------------------------------------------------------------------------------- folds


@pytest.mark.parametrize("kind", KINDS)
def test_five_fold_is_the_mean_over_folds(kind):
    images, texts, image_of_text = random_case(images=35, texts=90)
    folds = []
    for first in range(0, 35, 7):
        inside = (first <= image_of_text) & (image_of_text < first + 7)
        folds.append(retrieval_metrics(images[first : first + 7], texts[inside],
                                       image_of_text[inside] - first))
    got = five_fold(*(KINDS[kind](array) for array in (images, texts, image_of_text)))
    assert got == pytest.approx({key: np.mean([fold[key] for fold in folds]) for key in folds[0]})
    assert got["t2i_r1"] > retrieval_metrics(images, texts, image_of_text)["t2i_r1"]


@pytest.mark.parametrize("block", [40, 2**20])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sort", [False, True])
def test_ranks_within_folds_are_those_of_each_fold_alone(monkeypatch, block, tied, sort):
    """In any order of the captions, and with near ties."""
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


def test_one_fold_is_the_whole_split():
    case = random_case()
    assert five_fold(*case, folds=1) == pytest.approx(retrieval_metrics(*case))


def test_uneven_folds_are_refused():
    with pytest.raises(ValueError, match="30 photos .* 7 "):
        five_fold(*random_case(), folds=7)


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("function", [retrieval_ranks, retrieval_metrics, five_fold])
@pytest.mark.parametrize(("images", "texts", "image_of_text", "named"), [
    (np.eye(5), np.ones((5, 4)), range(5), r"\(5, 5\) and \(5, 4\)"),
    (np.ones(5), np.ones((5, 5)), range(5), r"\(5,\)"),
    (np.eye(5), np.eye(5), range(4), "image_of_text .*5 captions"),
    (np.eye(5), np.eye(5), [range(5)], "image_of_text .*5 captions"),
    (np.eye(5), np.ones((0, 5)), [], "image_of_text .*0 to 4"),
    (np.eye(5), np.eye(5), [0, 1, 2, 3, 3], "image_of_text .*0 to 4"),  # photo 4 has no caption
    (np.eye(5), np.eye(5), [0, 1, 2, 3, 5], "image_of_text .*0 to 4"),
    (np.eye(5), np.eye(5), [-1, 1, 2, 3, 4], "image_of_text .*0 to 4"),
    (np.eye(5) * np.nan, np.eye(5), range(5), "NaN"),
    (np.eye(5), np.diag([1, 1, np.inf, 1, 1]), range(5), "NaN")])
def test_embeddings_that_cannot_be_ranked_are_refused(
        function, images, texts, image_of_text, named):
    with pytest.raises(ValueError, match=named):
        function(images, texts, np.array(image_of_text))


@pytest.mark.parametrize("dtype, exponents", [(np.float32, [-140, -100, 20, 100, 118]),
                                              (np.float64, [-1060, -700, 700, 1000])])
def test_huge_and_tiny_embeddings_get_the_same_ranks(dtype, exponents):
    """Their products would overflow or vanish without the exact scaling by a power of two."""
    images, texts, image_of_text = random_case()
    images, texts = np.round(images * 64), np.round(texts * 64)  # few digits, exact in both
    wanted = retrieval_ranks(images, texts, image_of_text)
    for exponent in exponents:
        large = [np.ldexp(embeds, exponent).astype(dtype) for embeds in (images, texts)]
        for given in (large[0], texts), (images, large[1]), large:
            found = retrieval_ranks(*given, image_of_text)
            assert all(map(np.array_equal, found, wanted)), exponent
