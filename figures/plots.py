"""Plots as pure functions: they take numbers and return a matplotlib Figure, or its file.

Only code that draws imports this module, so that a run with --no_figures never loads matplotlib.
pyplot is not used: it keeps its figures in a global list and may ask for a display.
"""

import io

import numpy as np
import torch
from PIL import Image

from common.errors import InputError
from fne_loss import (
    FNELoss,
    RunningGaussian,
    cut_down_bound,
    false_negative_posterior,
    sampling_weights,
)

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise InputError("figures need matplotlib: pip install matplotlib, or go without: train.py "
                     "--no_figures, evaluation.py without --report") from error

# These colours differ in print and for the colour-blind, and are legible on white and dark grey.
POSITIVE, NEGATIVE, POSTERIOR, WEIGHT = "#3b82c4", "#e07b39", "#a05bb5", "#2f9e6e"
SHADE = "#8a8f98"  # of the cut-down, and of reference lines
INK = "#24292f"  # of text and axes; `svg_element` replaces it by the page's own colour of text
GRID = np.linspace(-1, 1, 2001)  # similarities at which the curves are computed
BARS = 40  # about as many bars of a histogram are shown
LEAST_SHOWN = 1e-6  # lower end of the logarithmic axes of the calibration


def distribution_figure(counts: np.ndarray, criterion: FNELoss, title: str) -> Figure:
    """Draw the distributions that FNE has fitted, and what follows from them, over the similarity.

    Above are the histograms of confident positives and of their hardest negatives with the Gaussian
    fitted to each; in the middle is the posterior, below it the sampling weight. The cut-down is
    shaded in all three.

    Args:
        counts: (2, bins) numbers of confident positives and of hardest negatives, in bins of equal
            width on [-1, 1].
        criterion: the loss; each of its two Gaussians has taken in at least two values.
        title: tells at which point of the training this is.

    Returns:
        The figure, 5.8 by 7 inches.
    """
    figure = Figure(figsize=(5.8, 7.0), layout="constrained")
    density_axes, posterior_axes, weight_axes = figure.subplots(
        3, sharex=True, height_ratios=(2.2, 1, 1))
    for row, name, colour, gaussian in (
            (counts[0], "confident positives", POSITIVE, criterion.positive),
            (counts[1], "hardest negatives", NEGATIVE, criterion.negative)):
        draw_histogram(density_axes, row, name, colour)
        deviation = float(gaussian.variance) ** 0.5
        density_axes.plot(GRID, density(gaussian), color=colour, linewidth=2,
                          label=f"fitted: {float(gaussian.mean):.2f} ± {deviation:.2f}")
    draw_posterior(posterior_axes, criterion)
    draw_weight(weight_axes, criterion)

    bound = float(cut_down_bound(criterion.positive, criterion.margin))
    figure.suptitle(title, fontsize=10, color=INK)
    density_axes.set(ylabel="density", yticks=[])
    density_axes.set_xlim(*similarity_range(counts, criterion, bound))
    for axes in density_axes, posterior_axes, weight_axes:
        label = f"cut-down: s ≤ {bound:.2f}, never drawn" if axes is density_axes else None
        axes.axvspan(-1, bound, color=SHADE, alpha=0.25, linewidth=0, label=label)

    # The histogram, the Gaussian and the cut-down below each other, once for each column.
    order = 0, 1, 4, 2, 3
    handles, labels = density_axes.get_legend_handles_labels()
    legend_above(density_axes, [handles[i] for i in order], [labels[i] for i in order])
    legend_above(posterior_axes, *posterior_axes.get_legend_handles_labels())
    legend_above(weight_axes, *weight_axes.get_legend_handles_labels())
    weight_axes.set_xlabel("similarity of an anchor and a candidate")
    return style_axes(figure)


def draw_histogram(axes: Axes, counts: np.ndarray, name: str, colour: str) -> None:
    """Draw counts (bins,) on [-1, 1] as a density, with neighbouring bins joined to about 40 bars.
    """
    filled = np.flatnonzero(counts)
    width = np.ptp(filled) + 1 if len(filled) else 1
    bins_per_bar = max(1, 2 ** round(np.log2(width / BARS)))
    while len(counts) % bins_per_bar:
        bins_per_bar //= 2
    bars = counts.reshape(-1, bins_per_bar).sum(axis=1)
    edges = np.linspace(-1, 1, len(bars) + 1)
    heights = bars / max(1, bars.sum()) / (edges[1] - edges[0])
    axes.stairs(heights, edges, fill=True, alpha=0.45, color=colour,
                label=f"{name}, n = {bars.sum():,}")


def density(gaussian: RunningGaussian) -> np.ndarray:
    """Return the density of a Gaussian at each similarity of `GRID`."""
    mean, variance = float(gaussian.mean), max(float(gaussian.variance), 1e-12)
    return np.exp(-0.5 * (GRID - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)


def draw_posterior(axes: Axes, criterion: FNELoss) -> None:
    """Draw P(false negative | s) on a logarithmic scale, by the function that training uses.

    The curve is dotted as long as there are too few confident pairs for training to use it.
    """
    similarity = torch.from_numpy(GRID).to(criterion.positive.mean.device)
    posterior = false_negative_posterior(
        similarity, criterion.positive, criterion.negative, criterion.prior).cpu().numpy()
    count = int(criterion.positive.count)
    if count > criterion.min_count:
        style, label = "-", f"posterior, prior {criterion.prior:g}"
    else:
        style = ":"
        label = f"posterior, not used yet ({count} of {criterion.min_count} pairs)"
    axes.semilogy(GRID, posterior, color=POSTERIOR, linewidth=2, linestyle=style, label=label)
    axes.axhline(criterion.prior, color=POSTERIOR, linewidth=1, linestyle=":",
                 label="above the prior, s speaks for a match")
    axes.axhline(criterion.posterior_floor, color=POSTERIOR, linewidth=1, linestyle="--",
                 label=f"above {criterion.posterior_floor:g} it sets the weight")
    lowest = min(criterion.prior, criterion.posterior_floor) / 100
    axes.set(ylim=(lowest, 2), ylabel="P(false\nnegative)")


def draw_weight(axes: Axes, criterion: FNELoss) -> None:
    """Draw the sampling weight, by the function that training uses.

    The anchor is one whose own match has the mean similarity of all confident positives.
    """
    similarity = torch.from_numpy(GRID).to(criterion.positive.mean.device)[None]  # (1, G)
    weight = sampling_weights(
        similarity, criterion.positive.mean[None], torch.zeros_like(similarity, dtype=torch.bool),
        criterion.positive, criterion.negative, margin=criterion.margin, tau=criterion.tau,
        prior=criterion.prior, posterior_floor=criterion.posterior_floor,
        min_count=criterion.min_count)[0].cpu().numpy()  # (G,)
    axes.plot(GRID, weight, color=WEIGHT, linewidth=2,
              label=f"for an anchor with s+ = {float(criterion.positive.mean):.2f}, the mean")
    axes.set(ylim=(0, 1.15), ylabel="sampling\nweight")


def legend_above(axes: Axes, handles: list, labels: list[str]) -> None:
    """Put a legend above the axes: inside them there is no corner that no curve ever reaches."""
    axes.legend(handles, labels, fontsize=8.5, ncols=2, loc="lower left", bbox_to_anchor=(-0.1, 1),
                borderaxespad=0.2, columnspacing=1.5)


def similarity_range(
    counts: np.ndarray, criterion: FNELoss, bound: float
) -> tuple[float, float]:
    """Return the lowest and the highest similarity that the distributions are shown for.

    Between them lie all counted similarities, three standard deviations of either Gaussian on both
    sides of its mean, and a strip around the bound of the cut-down.
    """
    edges = np.linspace(-1, 1, counts.shape[1] + 1)
    filled = np.flatnonzero(counts.sum(axis=0))
    ends = [bound - 0.05, bound + 0.05]
    if len(filled):
        ends += [edges[filled[0]], edges[filled[-1] + 1]]
    for gaussian in criterion.positive, criterion.negative:
        reach = 3 * float(gaussian.variance) ** 0.5
        ends += [float(gaussian.mean) - reach, float(gaussian.mean) + reach]
    return max(-1.0, min(ends)), min(1.0, max(ends))


def calibration_figure(rows: list[dict], match_label: str) -> Figure:
    """Draw how often the posterior was right, on logarithmic scales, with a dot for each bin.

    Args:
        rows: the bins, as `metrics.judgements.calibration` returns them.
        match_label: label of the vertical axis: the share of matches, and by whose account.
    """
    figure = Figure(figsize=(4.6, 4.0), layout="constrained")
    axes = figure.subplots()
    posteriors = np.array([max(row["mean_posterior"], LEAST_SHOWN) for row in rows])
    shares = np.array([max(row["match_share"], LEAST_SHOWN) for row in rows])
    has_match = np.array([row["match_share"] > 0 for row in rows], dtype=bool)
    axes.loglog([LEAST_SHOWN, 1], [LEAST_SHOWN, 1], color=SHADE, linestyle="--", label="perfect")
    axes.loglog(posteriors[has_match], shares[has_match], "o-", color=POSTERIOR,
                label="the posterior")
    if not has_match.all():  # a logarithmic scale has no place for a share of 0
        axes.loglog(posteriors[~has_match], shares[~has_match], "v", color=POSTERIOR,
                    fillstyle="none", label="none of a bin's pairs")
    for row, x, y in zip(rows, posteriors, shares):
        axes.annotate(f"{row['pairs']:,}", (x, y), xytext=(0, 7), fontsize=8, color=INK,
                      textcoords="offset points", ha="center")
    axes.set(xlabel="mean posterior of a bin (number: its pairs)", ylabel=match_label,
             ylim=(LEAST_SHOWN / 3, 4), xlim=(LEAST_SHOWN / 3, 4))
    legend_above(axes, *axes.get_legend_handles_labels())
    return style_axes(figure)


def style_axes(figure: Figure) -> Figure:
    """Style all axes of `figure` in place, and return it: text and axes in `INK`, no background.
    """
    for axes in figure.axes:
        axes.set_facecolor("none")
        axes.tick_params(colors=INK, labelsize=8.5)
        axes.spines[["top", "right"]].set_visible(False)
        for element in [*axes.spines.values(), axes.xaxis.label, axes.yaxis.label]:
            element.set_color(INK)
        legend = axes.get_legend()
        if legend is not None:
            legend.set_frame_on(False)
            for text in legend.get_texts():
                text.set_color(INK)
        for label in axes.xaxis.label, axes.yaxis.label:
            label.set_fontsize(9)
    return figure


def png_bytes(figure: Figure, dpi: int = 100) -> bytes:
    """Return a figure on white as the bytes of a PNG file.

    The picture has 128 colours, which are enough for line art and keep the file small.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    image = Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def svg_element(figure: Figure, label: str) -> str:
    """Return a figure as an svg element for a page, in the page's own colour of text.

    The same numbers give the same text: it holds no date and no random ids.

    Args:
        label: a description of the figure for those who cannot see it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": label, "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    element = text[text.index("<svg"):].replace(INK, "currentColor")
    return element.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
