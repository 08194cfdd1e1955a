"""Tables and figure of the results of `experiments.dose`: means, paired differences, intervals.

A pair has the same photos, captions, weights and warm-up, and batches in the same order; the oracle
alone differs, or what is done with a likely match. The interval of a difference is Student's, of
the differences of the seeds.
"""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from common import files
from common.errors import InputError
from experiments.flags import LOSSES, USES
from figures.plots import (
    NEGATIVE,
    POSITIVE,
    POSTERIOR,
    SHADE,
    WEIGHT,
    png_bytes,
    style_axes,
    svg_element,
)

CONFIDENCE = 0.95
METRICS = {"rsum": "rsum", "t2i_map_at_r": "t2i mAP@R", "i2t_map_at_r": "i2t mAP@R",
           "t2i_r_precision": "t2i R-Precision"}
SHOWN = "rsum", "t2i_map_at_r", "i2t_map_at_r"  # in the figure
# Loss and --oracle of what is set beside the same loss without an oracle.
PAIRED = {("triplet", "exclude"): "hardest in the batch", ("infonce", "exclude"): "InfoNCE",
          ("infonce", "positives"): "InfoNCE, matches as positives", ("fne", "exclude"): "FNE"}
COLOURS = dict(zip(PAIRED, (NEGATIVE, POSITIVE, POSTERIOR, WEIGHT), strict=True))


def read_results(folder: Path) -> list[dict]:
    """All results of a folder, in the order of their names.

    Raises:
        InputError: there is none, or one that is none.
    """
    results = []
    for path in sorted(folder.glob("*.json")):
        result = files.read_json(path)
        try:
            configuration, test = result["configuration"], result["test"]
            known = [configuration[name] for name in ("dose", "seed", "loss", "oracle", "again")]
            known += [float(test[name]) for name in METRICS] + [float(result["true_matches"])]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"--results {folder}: {path.name} is no result of a run: take it away"
                             ) from error
        results.append(result)
    if not results:
        raise InputError(f"--results {folder} holds no results yet: leave out --report")
    return results


def values(results: list[dict], dose: str, loss: str, oracle: str, again: bool = False,
           use: str = "") -> dict:
    """Seed to result, of the runs of a configuration."""
    wanted = {"dose": dose, "loss": loss, "oracle": oracle, "again": again, "use": use}
    return {result["configuration"]["seed"]: result for result in results
            if wanted.items() <= ({"use": ""} | result["configuration"]).items()}


def pairs(first: dict, second: dict, metric: str) -> np.ndarray:
    """(n, 2) values of a metric, of the seeds that both have."""
    return np.array([[side[seed]["test"][metric] for side in (first, second)]
                     for seed in first if seed in second]).reshape(-1, 2)


def interval(differences: np.ndarray) -> float | None:
    """Half the width of the interval of a mean of differences (n,); None of fewer than two."""
    if len(differences) < 2:
        return None
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)
    return float(quantile * differences.std(ddof=1) / len(differences) ** 0.5)


def summary(results: list[dict]) -> dict:
    """What tables and figure show: `rows`, one for each dose and pair; `uses`, one for each dose
    and use of likely matches; and `noise`, by metric the root mean square of the difference of two
    runs that differ in nothing but order."""
    doses = sorted({result["configuration"]["dose"] for result in results}, key=float)
    rows = []
    for dose in doses:
        for (loss, oracle), label in PAIRED.items():
            plain, helped = values(results, dose, loss, "off"), values(results, dose, loss, oracle)
            both = [seed for seed in plain if seed in helped]
            if both:
                rows.append(row_of(dose, label, (loss, oracle), plain, helped, both))
    noise = {}
    for metric in METRICS:
        found = [pairs(values(results, dose, loss, oracle),
                       values(results, dose, loss, oracle, again=True), metric)
                 for dose in doses
                 for loss, oracle in [*PAIRED, *((loss, "off") for loss in LOSSES)]]
        differences = np.concatenate([np.diff(pair, axis=1)[:, 0] for pair in found])
        if len(differences):
            noise[metric] = {"runs": len(differences),
                             "rms": float(np.sqrt(np.square(differences).mean()))}
    uses = [row for dose in doses for use in USES for row in row_of_use(results, dose, use)]
    return {"rows": rows, "uses": uses, "noise": noise, "confidence": CONFIDENCE}


def row_of(dose: str, label: str, way: tuple[str, str], plain: dict, helped: dict,
           seeds: list[int]) -> dict:
    """One row: both sides' values by seed, their means, the paired difference and its interval."""
    row = {"dose": dose, "label": label, "loss": way[0], "oracle": way[1], "seeds": seeds,
           "true_matches": plain[seeds[0]]["true_matches"],
           "false_negatives": [mean_share([side[seed] for seed in seeds])
                               for side in (plain, helped)]}
    for metric in METRICS:
        pair = pairs(plain, helped, metric)
        differences = pair[:, 1] - pair[:, 0]
        row[metric] = {"plain": pair[:, 0].tolist(), "oracle": pair[:, 1].tolist(),
                       "difference": float(differences.mean()),
                       "interval": interval(differences)}
    return row


def row_of_use(results: list[dict], dose: str, use: str) -> list[dict]:
    """The row of a use at a dose, beside the loss whose place it takes and beside the best of the
    plain losses, in the mean of its seeds; none where the seeds have not all three."""
    used = values(results, dose, USES[use].loss, "off", use=use)
    plain = {loss: values(results, dose, loss, "off") for loss in LOSSES}
    seeds = [seed for seed in used if all(seed in side for side in plain.values())]
    if not seeds:
        return []
    row = {"dose": dose, "use": use, "label": USES[use].told, "loss": USES[use].loss,
           "seeds": seeds, "true_matches": used[seeds[0]]["true_matches"],
           "false_negatives": mean_share([used[seed] for seed in seeds])}
    for metric in METRICS:
        def of(side, metric=metric):
            return np.array([side[seed]["test"][metric] for seed in seeds])

        best = max(LOSSES, key=lambda loss: of(plain[loss]).mean())
        row[metric] = {"used": of(used).tolist(), "best_loss": best}
        for name, other in ("plain", USES[use].loss), ("best", best):
            differences = of(used) - of(plain[other])
            row[metric][name] = {"values": of(plain[other]).tolist(),
                                 "difference": float(differences.mean()),
                                 "interval": interval(differences)}
    return [row]


def mean_share(results: list[dict]) -> float | None:
    """The share of true matches among negatives, mean of some runs, where it is known."""
    shares = [result["false_negatives"] for result in results
              if result["false_negatives"] is not None]
    return sum(shares) / len(shares) if shares else None


# ------------------------------------------------------------------------------------------- table


def table(found: dict) -> str:
    """The rows as Markdown, and what the noise is."""
    shown = list(METRICS.items())[:3]
    lines = ["| other photos that a caption is true of | loss | seeds | true matches among "
             "negatives | " + " | ".join(f"{label}, plain → oracle | difference"
                                         for _, label in shown) + " |",
             "|---|---|---|---|" + "---|---|" * len(shown)]
    for row in found["rows"]:
        shares = " → ".join("–" if share is None else f"{share:.1f} %"
                            for share in row["false_negatives"])
        cells = [f"{row['true_matches']:.1f} %", row["label"], str(len(row["seeds"])), shares]
        for metric, _ in shown:
            sides = [np.mean(row[metric][side]) for side in ("plain", "oracle")]
            cells += [" → ".join(f"{side:.1f}" for side in sides), difference_text(row[metric])]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Differences: mean over seeds of oracle less plain, ± half of the "
              f"{100 * found['confidence']:.0f} % interval (Student's t). All on the test split, "
              "after the last epoch."]
    for metric, noise in found["noise"].items():
        lines.append(f"\nTwo runs that differ in nothing but the order of batches and draws differ "
                     f"in {METRICS[metric]} by {noise['rms']:.1f} (root mean square of "
                     f"{noise['runs']}).")
    return "\n".join(lines) + "\n"


def table_of_uses(found: dict) -> str:
    """The rows of the uses as Markdown."""
    shown = list(METRICS.items())[:2]
    lines = ["| other photos that a caption is true of | in place of | use | seeds | true matches "
             "among negatives | " + " | ".join(
                 f"{label} | less the plain loss | less the best loss" for _, label in shown)
             + " |",
             "|---|---|---|---|---|" + "---|---|---|" * len(shown)]
    for row in found["uses"]:
        share = row["false_negatives"]
        cells = [f"{row['true_matches']:.1f} %", row["loss"], row["label"], str(len(row["seeds"])),
                 "–" if share is None else f"{share:.1f} %"]
        for metric, _ in shown:
            of = row[metric]
            cells += [f"{np.mean(of['used']):.1f}", difference_text(of["plain"]),
                      f"{difference_text(of['best'])} ({of['best_loss']})"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def difference_text(values: dict) -> str:
    """"+3.1 ± 2.0"; in bold where the interval does not hold 0."""
    if values["interval"] is None:
        return f"{values['difference']:+.1f}"
    text = f"{values['difference']:+.1f} ± {values['interval']:.1f}"
    return f"**{text}**" if abs(values["difference"]) > values["interval"] else text


# ------------------------------------------------------------------------------------------ figure


def figure_of(found: dict) -> Figure:
    """Three metrics against the dose, and below their paired differences: a colour for each way."""
    figure = Figure(figsize=(12.5, 7.0), layout="constrained")
    for column, axes in enumerate(figure.subplots(2, len(SHOWN), sharex=True).T):
        metric = SHOWN[column]
        for number, way in enumerate(PAIRED):
            rows = [row for row in found["rows"] if (row["loss"], row["oracle"]) == way]
            if rows:
                draw_values(axes[0], rows, metric, way)
                draw_differences(axes[1], rows, metric, way, number)
        noise = found["noise"].get(metric)
        if noise:
            axes[1].axhspan(-noise["rms"], noise["rms"], color=SHADE, alpha=0.25, linewidth=0,
                            label="two orders of the same run differ by so much")
        axes[1].axhline(0, color=SHADE, linewidth=1)
        axes[0].set_ylabel(METRICS[metric])
        axes[1].set_ylabel(f"{METRICS[metric]}, oracle less plain")
        axes[1].set_xlabel("other photos that a caption is true of, %")
        for part in axes:
            part.set_xscale("log")
            doses = sorted({row["true_matches"] for row in found["rows"]})
            part.set_xticks(doses, [f"{dose:.1f}" for dose in doses])
            part.minorticks_off()
    upper, lower = figure.axes[0], figure.axes[len(SHOWN)]
    handles, labels = (first + second for first, second in zip(
        upper.get_legend_handles_labels(), lower.get_legend_handles_labels()))
    figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False)
    return style_axes(figure)


def draw_values(axes, rows: list[dict], metric: str, way: tuple[str, str]) -> None:
    """Means over seeds against the dose: plain as dots and dashes, with the oracle as a line."""
    x = [row["true_matches"] for row in rows]
    if way[1] == "exclude":
        axes.plot(x, [np.mean(row[metric]["plain"]) for row in rows], "o--", color=COLOURS[way],
                  linewidth=1.5, fillstyle="none", label=f"{rows[0]['label']}, plain")
    axes.plot(x, [np.mean(row[metric]["oracle"]) for row in rows], "o-", color=COLOURS[way],
              linewidth=2, label=rows[0]["label"] + (", oracle" if way[1] == "exclude" else ""))


def draw_differences(
    axes, rows: list[dict], metric: str, way: tuple[str, str], number: int
) -> None:
    """The paired differences with their intervals, and each seed's as a small dot; beside those of
    the other ways."""
    x = [row["true_matches"] * 1.07 ** (number - 1.5) for row in rows]
    axes.errorbar(x, [row[metric]["difference"] for row in rows],
                  yerr=[row[metric]["interval"] or 0.0 for row in rows], fmt="o",
                  color=COLOURS[way], capsize=3)
    for left, row in zip(x, rows):
        seeds = np.subtract(row[metric]["oracle"], row[metric]["plain"])
        axes.plot([left] * len(seeds), seeds, ".", color=COLOURS[way], alpha=0.5)


def write_summary(folder: Path) -> str | None:
    """Write `<folder>.json`, `.md`, `.svg` and `.png` beside the folder of the results; the table.
    None where no two runs are to be compared."""
    found = summary(read_results(folder))
    if not found["rows"]:
        return None
    text, figure = table(found), figure_of(found)
    if found["uses"]:
        text += f"\n{table_of_uses(found)}"
    label = "What the oracle gives, against how many false negatives there are"
    for ending, content in (("json", json.dumps(found, indent=2).encode() + b"\n"),
                            ("md", text.encode()), ("png", png_bytes(figure)),
                            ("svg", svg_element(figure, label).encode())):
        files.write(folder.with_name(f"{folder.name}.{ending}"), content, "--results")
    return text
