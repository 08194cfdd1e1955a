"""P(match) by a teacher, against loops written from its formulas."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.runs import assert_same

from common.errors import InputError
from fne_loss import RunningGaussian
from inputs.splits import Split
from teacher import posterior as module
from teacher.posterior import LEAST_PAIRS, TeacherPosterior

WIDTH = 12


def teacher_of(counts, prior=0.01, seed=0, spread=0.6):
    """A teacher of photos with so many captions each, which scatter around one direction."""
    generator = torch.Generator().manual_seed(seed)
    image_of_text = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    order = torch.randperm(len(image_of_text), generator=generator)
    image_of_text = image_of_text[order]  # captions of one photo need not stand together
    topics = torch.randn(len(counts), WIDTH, generator=generator)
    noise = torch.randn(len(image_of_text), WIDTH, generator=generator)
    embeds = F.normalize(topics[image_of_text] + spread * noise, dim=1).half()
    return TeacherPosterior(embeds, image_of_text, len(counts), prior), embeds, image_of_text


def slow_similarity(embeds, image_of_text, image, text, without=None):
    """r of a photo and a caption: the mean over the photo's captions, but for one."""
    own = [other for other in range(len(embeds))
           if int(image_of_text[other]) == image and other != without]
    values = [float(embeds[other].double() @ embeds[text].double()) for other in own]
    return sum(values) / len(values)


def slow_values(embeds, image_of_text, photos):
    """All values that N+ and N- are fitted to, pair by pair."""
    positive, negative = [], []
    for text, image in enumerate(image_of_text.tolist()):
        if (image_of_text == image).sum() > 1:
            positive.append(slow_similarity(embeds, image_of_text, image, text, without=text))
        negative += [slow_similarity(embeds, image_of_text, other, text)
                     for other in range(photos)
                     if other != image and (image_of_text == other).any()]
    return torch.tensor(positive, dtype=torch.float64), torch.tensor(negative, dtype=torch.float64)


def density(value, values):
    mean, variance = values.mean(), values.var()
    return math.exp(-(value - mean) ** 2 / (2 * variance)) / math.sqrt(2 * math.pi * variance)


@pytest.mark.parametrize("counts", [[5] * 8, [1, 5, 2, 6, 3, 9, 1, 4, 5], [40, 1, 0, 3]])
def test_gaussians_are_those_of_all_pairs_one_by_one(counts):
    teacher, embeds, image_of_text = teacher_of(counts)
    values = slow_values(embeds, image_of_text, len(counts))
    for gaussian, expected in zip((teacher.positive, teacher.negative), values):
        assert int(gaussian.count) == len(expected)
        assert float(gaussian.mean) == pytest.approx(float(expected.mean()), abs=1e-12)
        assert float(gaussian.variance) == pytest.approx(float(expected.var()), rel=1e-9)


def test_many_rows_are_visited_in_parts(monkeypatch):
    whole, *_ = teacher_of([5] * 8)
    monkeypatch.setattr(module, "ROWS", 7)
    parts, *_ = teacher_of([5] * 8)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-12, atol=1e-12)


def test_posterior_is_bayes_rule_on_the_mean_similarity():
    counts = [5] * 8
    teacher, embeds, image_of_text = teacher_of(counts, prior=0.05)
    positive, negative = slow_values(embeds, image_of_text, len(counts))
    image_ids, text_ids = torch.tensor([3, 0, 7]), torch.tensor([2, 11, 30, 5])
    found = teacher.posterior(image_ids, text_ids)
    assert found.shape == (3, 4)
    turn, is_lowest = teacher.turning_point()
    compared = 0
    for row, image in enumerate(image_ids.tolist()):
        for column, text in enumerate(text_ids.tolist()):
            r = slow_similarity(embeds, image_of_text, image, text)
            if is_lowest != (r > turn):
                continue  # beyond the turning point, which another test is about
            likely = 0.05 * density(r, positive)
            expected = likely / (likely + 0.95 * density(r, negative))
            assert float(found[row, column]) == pytest.approx(expected, rel=2e-2, abs=1e-4)
            compared += 1
    assert compared >= 8
    r, of_pairs = teacher.of_pairs(image_ids, text_ids[:3])
    torch.testing.assert_close(of_pairs, found.diagonal())
    assert float(r[1]) == pytest.approx(slow_similarity(embeds, image_of_text, 0, 11), abs=1e-3)


def test_unknown_photos_and_captions_are_no_match():
    teacher, *_ = teacher_of([5] * 8)
    found = teacher.posterior(torch.tensor([0, -100]), torch.tensor([4, -100, -1]))
    assert found[0, 0] > 0
    assert (found[1] == 0).all() and (found[:, 1:] == 0).all()


@pytest.mark.parametrize("positive, negative", [((0.5, 0.2), (0.1, 0.1)), ((0.5, 0.1), (0.1, 0.2)),
                                                ((0.5, 0.1), (0.1, 0.1))])
def test_posterior_never_falls_as_the_similarity_grows(positive, negative):
    teacher, *_ = teacher_of([5] * 8, prior=0.5)
    for gaussian, (mean, std) in ((teacher.positive, positive), (teacher.negative, negative)):
        gaussian.mean.fill_(mean)
        gaussian.m2.fill_(std**2 * (int(gaussian.count) - 1))
    values = teacher.from_similarity(torch.linspace(-1, 1, 2001, dtype=torch.float64))
    assert (values.diff() >= 0).all()
    assert values[-1] > 0.5 > values[0]


def test_one_caption_a_photo_takes_the_most_similar_pairs_for_matches():
    prior = 0.05
    teacher, embeds, image_of_text = teacher_of([1] * 60, prior=prior)
    _, negative = slow_values(embeds, image_of_text, 60)
    similar = negative.sort(descending=True).values[: round(prior * len(negative))]
    assert float(teacher.positive.mean) == pytest.approx(float(similar.mean()), abs=1e-3)
    assert float(teacher.positive.variance) == pytest.approx(float(negative.var()), rel=1e-6)
    assert float(teacher.negative.mean) == pytest.approx(float(negative.mean()), abs=1e-12)


def test_few_captions_with_siblings_do_not_fit_a_gaussian():
    few = [1] * 40 + [2] * (LEAST_PAIRS // 2 - 1)
    enough = [1] * 40 + [2] * (LEAST_PAIRS // 2)
    assert int(teacher_of(few)[0].positive.count) > LEAST_PAIRS  # that of N-
    assert int(teacher_of(enough)[0].positive.count) == LEAST_PAIRS


def test_one_photo_alone_is_refused():
    with pytest.raises(ValueError, match="two photos"):
        teacher_of([5])
    with pytest.raises(ValueError, match="two photos"):
        teacher_of([5, 0])


def test_a_split_is_fitted_or_named_in_the_error():
    teacher, embeds, image_of_text = teacher_of([3] * 12)
    split = Split(Path("f30k_train.json"), range(12), range(36), image_of_text.numpy())
    fitted = TeacherPosterior.of_split(embeds, split, 0.01)
    assert_same(dict(fitted.named_buffers()), dict(teacher.named_buffers()))
    split.image_of_text[:] = 4
    with pytest.raises(InputError, match="f30k_train.json: .* two photos at least"):
        TeacherPosterior.of_split(embeds, split, 0.01)


def test_state_is_of_these_embeddings_alone():
    teacher, *_ = teacher_of([5] * 8)
    teacher.check_digest(teacher_of([5] * 8)[0].state_dict())
    with pytest.raises(ValueError, match="embeds the captions otherwise"):
        teacher.check_digest(teacher_of([5] * 8, seed=1)[0].state_dict())
    assert set(teacher.state_dict()) == {"digest"} | {
        f"{side}.{name}" for side in ("positive", "negative") for name in ("count", "mean", "m2")}


def test_saved_gaussians_are_used_again():
    teacher, *_ = teacher_of([5] * 8)
    other, *_ = teacher_of([5] * 8)
    other.positive.mean.add_(0.3)
    teacher.load_state_dict(other.state_dict())
    assert isinstance(teacher.positive, RunningGaussian)
    assert torch.equal(teacher.posterior(torch.arange(8), torch.arange(40)),
                       other.posterior(torch.arange(8), torch.arange(40)))
