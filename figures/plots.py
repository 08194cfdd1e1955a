"""Plots as pure functions: numbers in, a matplotlib Figure out, and its file as PNG or SVG.

Only whoever draws imports this file, so that a run with --no_figures never loads matplotlib. No
pyplot: it keeps figures in a global list and may ask for a display.
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
    from matplotlib.figure import Figure
except ImportError as error:
    raise InputError("figures need matplotlib: pip install matplotlib, or go without: train.py "
                     "--no_figures, evaluation.py without --report") from error

# Told apart in print and by the colour-blind, and they read on white and on dark grey.
POSITIVE, NEGATIVE, POSTERIOR, WEIGHT = "#3b82c4", "#e07b39", "#a05bb5", "#2f9e6e"
SHADE = "#8a8f98"
INK = "#24292f"  # of text and axes; a page puts its own in its place, see `svg`
GRID = np.linspace(-1, 1, 2001)


def distribution_figure(counts: np.ndarray, criterion: FNELoss, title: str) -> Figure:
    """What FNE believes, on one axis of similarities: histograms under the two fitted Gaussians,
    the posterior, the sampling weight, and the cut-down as a shaded region.

    Args:
        counts: (2, bins) of confident positives and hardest negatives, equal bins on [-1, 1].
        criterion: the loss; its Gaussians have at least two values each.
        title: where in the training this is.
    """
    figure = Figure(figsize=(5.8, 7.0), layout="constrained")
    top, middle, low = figure.subplots(3, sharex=True, height_ratios=(2.2, 1, 1))
    for row, name, colour, gaussian in (
            (counts[0], "confident positives", POSITIVE, criterion.positive),
            (counts[1], "hardest negatives", NEGATIVE, criterion.negative)):
        draw_histogram(top, row, name, colour)
        spread = float(gaussian.variance) ** 0.5
        top.plot(GRID, density(gaussian), color=colour, linewidth=2,
                 label=f"fitted: {float(gaussian.mean):.2f} ± {spread:.2f}")
    cut = draw_curves(middle, low, criterion)
    figure.suptitle(title, fontsize=10, color=INK)
    top.set(ylabel="density", yticks=[])
    top.set_xlim(*shown_range(counts, criterion, cut))
    for axes in top, middle, low:
        axes.axvspan(-1, cut, color=SHADE, alpha=0.25, linewidth=0,
                     label=f"cut-down: s ≤ {cut:.2f}, never drawn" if axes is top else None)
    parts = top.get_legend_handles_labels()
    legend_above(top, *([part[number] for number in (0, 1, 4, 2, 3)] for part in parts))
    legend_above(middle, *middle.get_legend_handles_labels())
    legend_above(low, *low.get_legend_handles_labels())
    low.set_xlabel("similarity of an anchor and a candidate")
    return finished(figure)


def draw_histogram(axes, counts: np.ndarray, name: str, colour: str) -> None:
    """Counts (bins,) on [-1, 1] as a density; neighbours are joined until some 40 bars are left."""
    filled = np.flatnonzero(counts)
    width = np.ptp(filled) + 1 if len(filled) else 1
    join = max(1, 2 ** round(np.log2(width / 40)))
    while len(counts) % join:
        join //= 2
    joined = counts.reshape(-1, join).sum(axis=1)
    edges = np.linspace(-1, 1, len(joined) + 1)
    axes.stairs(joined / max(1, joined.sum()) / (edges[1] - edges[0]), edges, fill=True, alpha=0.45,
                color=colour, label=f"{name}, n = {joined.sum():,}")


def density(gaussian: RunningGaussian) -> np.ndarray:
    """N(s) over `GRID`."""
    mean, variance = float(gaussian.mean), max(float(gaussian.variance), 1e-12)
    return np.exp(-0.5 * (GRID - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)


def draw_curves(middle, low, criterion: FNELoss) -> float:
    """Posterior and sampling weight over `GRID`, by the functions that training uses; the bound of
    the cut-down. The weight is that of an anchor whose own match has the mean similarity."""
    gaussians = criterion.positive, criterion.negative
    similarity = torch.from_numpy(GRID).to(criterion.positive.mean.device)
    posterior = false_negative_posterior(similarity, *gaussians, criterion.prior).cpu().numpy()
    weight = sampling_weights(
        similarity[None], criterion.positive.mean[None],
        torch.zeros_like(similarity, dtype=torch.bool)[None], *gaussians, margin=criterion.margin,
        tau=criterion.tau, prior=criterion.prior, posterior_floor=criterion.posterior_floor,
        min_count=criterion.min_count)[0].cpu().numpy()
    count = int(criterion.positive.count)
    used = count > criterion.min_count
    middle.semilogy(GRID, posterior, color=POSTERIOR, linewidth=2, linestyle="-" if used else ":",
                    label=f"posterior, prior {criterion.prior:g}" if used else
                    f"posterior, not used yet ({count} of {criterion.min_count} pairs)")
    middle.axhline(criterion.prior, color=POSTERIOR, linewidth=1, linestyle=":",
                   label="above the prior, s speaks for a match")
    middle.axhline(criterion.posterior_floor, color=POSTERIOR, linewidth=1, linestyle="--",
                   label=f"above {criterion.posterior_floor:g} it sets the weight")
    middle.set(ylim=(min(criterion.prior, criterion.posterior_floor) / 100, 2),
               ylabel="P(false\nnegative)")
    low.plot(GRID, weight, color=WEIGHT, linewidth=2,
             label=f"for an anchor with s+ = {float(criterion.positive.mean):.2f}, the mean")
    low.set(ylim=(0, 1.15), ylabel="sampling\nweight")
    return float(cut_down_bound(criterion.positive, criterion.margin))


def legend_above(axes, handles: list, labels: list[str]) -> None:
    """Above the axes: inside there is no corner that no curve ever comes to."""
    axes.legend(handles, labels, fontsize=8.5, ncols=2, loc="lower left", bbox_to_anchor=(-0.1, 1),
                borderaxespad=0.2, columnspacing=1.5)


def shown_range(counts: np.ndarray, criterion: FNELoss, cut: float) -> tuple[float, float]:
    """Similarities worth showing: what was counted, the Gaussians' bodies, some of the cut-down."""
    edges = np.linspace(-1, 1, counts.shape[1] + 1)
    filled = np.flatnonzero(counts.sum(axis=0))
    ends = [cut - 0.05, cut + 0.05]
    if len(filled):
        ends += [edges[filled[0]], edges[filled[-1] + 1]]
    for gaussian in criterion.positive, criterion.negative:
        spread = 3 * float(gaussian.variance) ** 0.5
        ends += [float(gaussian.mean) - spread, float(gaussian.mean) + spread]
    return max(-1.0, min(ends)), min(1.0, max(ends))


def calibration_figure(rows: list[dict], who: str) -> Figure:
    """The posterior against how often it was right, both on a log scale, a dot for each bin.

    Args:
        rows: of `judgements.calibration`.
        who: what a false negative was told by, for the axis.
    """
    figure = Figure(figsize=(4.6, 4.0), layout="constrained")
    axes = figure.subplots()
    least = 1e-6
    x = [max(row["mean_posterior"], least) for row in rows]
    y = [max(row["match_share"], least) for row in rows]
    some = [number for number, row in enumerate(rows) if row["match_share"] > 0]
    none = [number for number, row in enumerate(rows) if row["match_share"] == 0]
    axes.loglog([least, 1], [least, 1], color=SHADE, linestyle="--", label="perfect")
    axes.loglog([x[number] for number in some], [y[number] for number in some], "o-",
                color=POSTERIOR, label="the posterior")
    if none:  # a log scale has no place for them
        axes.loglog([x[number] for number in none], [y[number] for number in none], "v",
                    color=POSTERIOR, fillstyle="none", label="none of a bin's pairs")
    for row, left, height in zip(rows, x, y):
        axes.annotate(f"{row['pairs']:,}", (left, height), xytext=(0, 7), fontsize=8, color=INK,
                      textcoords="offset points", ha="center")
    axes.set(xlabel="mean posterior of a bin (number: its pairs)", ylabel=who, ylim=(least / 3, 4),
             xlim=(least / 3, 4))
    legend_above(axes, *axes.get_legend_handles_labels())
    return finished(figure)


def finished(figure: Figure) -> Figure:
    """Everything but the data in `INK`, on nothing, without a frame."""
    for axes in figure.axes:
        axes.set_facecolor("none")
        axes.tick_params(colors=INK, labelsize=8.5)
        axes.spines[["top", "right"]].set_visible(False)
        for part in [*axes.spines.values(), axes.xaxis.label, axes.yaxis.label]:
            part.set_color(INK)
        if legend := axes.get_legend():
            legend.set_frame_on(False)
            for text in legend.get_texts():
                text.set_color(INK)
        for label in axes.xaxis.label, axes.yaxis.label:
            label.set_fontsize(9)
    return figure


def png(figure: Figure, dpi: int = 100) -> bytes:
    """The figure on white; few colours are enough for line art, and make it small."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    image = Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def svg(figure: Figure, label: str) -> str:
    """The figure as an element to put into a page, in the page's own colour of text.

    The same numbers give the same text: no date and no random ids are in it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": label, "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg"):].replace(INK, "currentColor")
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
