"""The figures show the numbers that they get, and the curves that training uses."""

import io
import re

import numpy as np
import pytest
import torch
from helpers.cases import gaussian
from PIL import Image

from figures.plots import (
    GRID,
    calibration_figure,
    distribution_figure,
    png_bytes,
    svg_element,
)
from fne_loss import FNELoss, false_negative_posterior, sampling_weights
from training.objectives.fne import BINS


@pytest.fixture
def criterion():
    criterion = FNELoss(margin=0.15, prior=0.01)
    criterion.positive, criterion.negative = gaussian(0.6, 0.01), gaussian(0.4, 0.02)
    return criterion


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    return np.stack([np.histogram(rng.normal(mean, 0.1, size), BINS, (-1, 1))[0]
                     for mean, size in ((0.6, 300), (0.4, 600))])


def test_bars_show_the_counts(criterion, counts):
    figure = distribution_figure(counts, criterion, "epoch 1")
    top = figure.axes[0]
    assert figure.get_suptitle() == "epoch 1"
    for bars, row in zip(top.patches, counts):
        values, edges, _ = bars.get_data()
        shown = values * np.diff(edges) * row.sum()
        joined = row.reshape(len(values), -1).sum(axis=1)
        assert shown == pytest.approx(joined) and 20 < (joined > 0).sum() <= 60
        assert f"n = {row.sum()}" in bars.get_label()


def test_curves_are_those_of_the_loss(criterion, counts):
    top, middle, low = distribution_figure(counts, criterion, "").axes
    for line, fitted in zip(top.lines, (criterion.positive, criterion.negative)):
        wanted = torch.distributions.Normal(fitted.mean, fitted.variance.sqrt()).log_prob(
            torch.from_numpy(GRID)).exp()
        assert line.get_ydata() == pytest.approx(wanted.numpy())
    grid = torch.from_numpy(GRID)
    posterior = false_negative_posterior(grid, criterion.positive, criterion.negative, 0.01)
    assert middle.lines[0].get_ydata() == pytest.approx(posterior.numpy())
    assert middle.lines[0].get_linestyle() == "-"
    weights = sampling_weights(
        grid[None], torch.tensor([0.6], dtype=torch.float64), torch.zeros(1, len(grid)).bool(),
        criterion.positive, criterion.negative, margin=0.15, tau=0.5, prior=0.01,
        posterior_floor=1e-3, min_count=200)
    assert low.lines[0].get_ydata() == pytest.approx(weights[0].numpy())


def test_the_cut_down_is_shaded_up_to_mean_minus_margin(criterion, counts):
    figure = distribution_figure(counts, criterion, "")
    for axes in figure.axes:
        shade = axes.patches[-1].get_extents().transformed(axes.transData.inverted())
        assert shade.x1 == pytest.approx(0.45)
        assert axes.get_xlim()[0] < 0.45 < axes.get_xlim()[1]
    # The weight is 0 up to the same bound.
    weight = figure.axes[2].lines[0].get_ydata()
    assert (weight[GRID < 0.4499] == 0).all() and (weight[GRID > 0.4501] > 0).all()


def test_a_posterior_that_is_not_used_yet_is_dotted(criterion, counts):
    criterion.min_count = 300
    middle = distribution_figure(counts, criterion, "").axes[1]
    assert middle.lines[0].get_linestyle() == ":"
    assert "not used yet (300 of 300 pairs)" in middle.lines[0].get_label()


@pytest.mark.parametrize("rows", [[0, 0], [1, 0], [1, 1]])
def test_no_counts_and_a_single_count_can_be_drawn(criterion, rows):
    counts = np.zeros((2, BINS), dtype=int)
    counts[:, 300] = rows
    criterion.positive.m2.zero_()  # a single repeated value
    data = png_bytes(distribution_figure(counts, criterion, "start"))
    assert Image.open(io.BytesIO(data)).format == "PNG" and len(data) < 60_000


def test_svg_is_one_element_without_links(criterion, counts):
    text = svg_element(distribution_figure(counts, criterion, "a < b"), "label")
    assert text.startswith("<svg role=") and text.rstrip().endswith("</svg>")
    assert 'currentColor' in text and "#24292f" not in text
    assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', text))
    assert text == svg_element(distribution_figure(counts, criterion, "a < b"), "label")


def test_the_calibration_shows_every_bin():
    rows = [{"mean_posterior": 0.0, "match_share": 0.01, "pairs": 7},
            {"mean_posterior": 0.2, "match_share": 0.5, "pairs": 12345}]
    axes = calibration_figure(rows, "share").axes[0]
    dots = axes.lines[1]
    assert dots.get_xdata() == pytest.approx([1e-6, 0.2])
    assert dots.get_ydata() == pytest.approx([0.01, 0.5])
    assert [text.get_text() for text in axes.texts] == ["7", "12,345"]
