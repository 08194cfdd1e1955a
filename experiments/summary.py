"""Tables and figure of the results of `experiments.dose`: means, paired differences, intervals.

The two runs of a pair have the same photos, captions, weights and warm-up, and their batches come
in the same order. Only the oracle differs, or the use of likely matches. The interval of a mean
difference is Student's, over the differences of the seeds.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
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
FIGURE_METRICS = TABLE_METRICS = "rsum", "t2i_map_at_r", "i2t_map_at_r"
USES_METRICS = "rsum", "t2i_map_at_r"  # in the table of uses
# Runs that are compared with the same loss without an oracle: loss and --oracle, and their label.
COMPARED = {("triplet", "exclude"): "hardest in the batch", ("infonce", "exclude"): "InfoNCE",
            ("infonce", "positives"): "InfoNCE, matches as positives", ("fne", "exclude"): "FNE"}
COLOURS = dict(zip(COMPARED, (NEGATIVE, POSITIVE, POSTERIOR, WEIGHT), strict=True))


def read_results(folder: Path) -> list[dict]:
    """Return all results in a folder, in the order of their file names.

    Raises:
        InputError: there is none, or a json file is no result.
    """
    results = []
    for path in sorted(folder.glob("*.json")):
        result = files.read_json(path, files.MAX_RESULT_BYTES)
        try:
            check_result(result)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"--results {folder}: {path.name} is no result of a run: take it away"
                             ) from error
        results.append(result)
    if not results:
        raise InputError(f"--results {folder} holds no results yet: leave out --report")
    return results


def check_result(result: dict) -> None:
    """Raise KeyError, TypeError or ValueError where a result lacks what the summary needs."""
    for name in "dose", "seed", "loss", "oracle", "again":
        result["configuration"][name]
    for metric in METRICS:
        float(result["test"][metric])
    float(result["true_matches"])


# --------------------------------------------------------------------------------------- statistics


def select(results: list[dict], dose: str, loss: str, oracle: str, again: bool = False,
           use: str = "") -> dict[int, dict]:
    """Return the results of one configuration, by seed."""
    wanted = {"dose": dose, "loss": loss, "oracle": oracle, "again": again, "use": use}
    selected = {}
    for result in results:
        configuration = {"use": ""} | result["configuration"]  # older results have no use
        if wanted.items() <= configuration.items():
            selected[configuration["seed"]] = result
    return selected


def paired_values(first: dict, second: dict, metric: str) -> np.ndarray:
    """Return a metric of both runs of each pair, (n, 2), for the n seeds that both have.

    Args:
        first: results by seed, as `select` returns them.
        second: results by seed of the other configuration.
        metric: a key of `METRICS`.
    """
    values = [[results[seed]["test"][metric] for results in (first, second)]
              for seed in first if seed in second]
    return np.array(values).reshape(-1, 2)


def interval(differences: np.ndarray) -> float | None:
    """Return half the width of the confidence interval of the mean of differences (n,).

    Returns:
        The half width, by Student's t; None for fewer than two differences.
    """
    if len(differences) < 2:
        return None
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)
    return float(quantile * differences.std(ddof=1) / len(differences) ** 0.5)


def summary(results: list[dict]) -> dict:
    """Return everything that tables and figure show.

    Returns:
        `rows`, one for each dose and comparison with the oracle; `uses`, one for each dose and use
        of likely matches; `noise`, for each metric the root mean square of the difference of two
        runs that differ in nothing but the order of batches and draws; and `confidence`.
    """
    doses = sorted({result["configuration"]["dose"] for result in results}, key=float)
    rows, uses = [], []
    for dose in doses:
        for loss, oracle in COMPARED:
            rows += comparison_row(results, dose, loss, oracle)
    for dose in doses:
        for use in USES:
            uses += use_row(results, dose, use)
    return {"rows": rows, "uses": uses, "noise": order_noise(results, doses),
            "confidence": CONFIDENCE}


def order_noise(results: list[dict], doses: list[str]) -> dict[str, dict]:
    """Return by how much two runs differ that differ in the order of batches and draws alone.

    Returns:
        For each metric the number of such pairs of "runs", and the root mean square, "rms", of
        their differences; nothing of a metric without such a pair.
    """
    configurations = [(dose, loss, oracle) for dose in doses
                      for loss, oracle in [*COMPARED, *((loss, "off") for loss in LOSSES)]]
    noise = {}
    for metric in METRICS:
        differences = []
        for configuration in configurations:
            values = paired_values(select(results, *configuration),
                                   select(results, *configuration, again=True), metric)  # (n, 2)
            differences.append(values[:, 1] - values[:, 0])
        differences = np.concatenate(differences)
        if len(differences):
            noise[metric] = {"runs": len(differences),
                             "rms": float(np.sqrt(np.square(differences).mean()))}
    return noise


def comparison_row(results: list[dict], dose: str, loss: str, oracle: str) -> list[dict]:
    """Return the comparison of a loss with and without the oracle at a dose, in a list.

    The list is empty where no seed has both runs.
    """
    plain = select(results, dose, loss, "off")
    with_oracle = select(results, dose, loss, oracle)
    seeds = [seed for seed in plain if seed in with_oracle]
    if not seeds:
        return []
    row = {"dose": dose, "label": COMPARED[loss, oracle], "loss": loss, "oracle": oracle,
           "seeds": seeds, "true_matches": plain[seeds[0]]["true_matches"],
           "false_negatives": [mean_share([runs[seed] for seed in seeds])
                               for runs in (plain, with_oracle)]}
    for metric in METRICS:
        values = paired_values(plain, with_oracle, metric)  # (n, 2)
        differences = values[:, 1] - values[:, 0]
        row[metric] = {"plain": values[:, 0].tolist(), "oracle": values[:, 1].tolist(),
                       "difference": float(differences.mean()),
                       "interval": interval(differences)}
    return [row]


def use_row(results: list[dict], dose: str, use: str) -> list[dict]:
    """Return the comparison of a use of likely matches at a dose, in a list.

    The use is compared with the loss whose place it takes, and with the loss that is best in the
    mean over the seeds; that of a witness only with its own. The list is empty where no seed has
    the use and the losses that it is compared with.
    """
    losses = LOSSES if USES[use].witness is None else (USES[use].loss,)
    used = select(results, dose, USES[use].loss, "off", use=use)
    plain = {loss: select(results, dose, loss, "off") for loss in losses}
    seeds = [seed for seed in used if all(seed in runs for runs in plain.values())]
    if not seeds:
        return []
    row = {"dose": dose, "use": use, "label": USES[use].label, "loss": USES[use].loss,
           "seeds": seeds, "true_matches": used[seeds[0]]["true_matches"],
           "false_negatives": mean_share([used[seed] for seed in seeds]),
           "witness_ap": used[seeds[0]].get("witness_ap")}
    for metric in METRICS:
        used_values = metric_values(used, seeds, metric)
        plain_values = {loss: metric_values(plain[loss], seeds, metric) for loss in losses}
        best = max(losses, key=lambda loss: plain_values[loss].mean())
        row[metric] = {"used": used_values.tolist(), "best_loss": best}
        for name, loss in ("plain", USES[use].loss), ("best", best):
            differences = used_values - plain_values[loss]
            row[metric][name] = {"values": plain_values[loss].tolist(),
                                 "difference": float(differences.mean()),
                                 "interval": interval(differences)}
    return [row]


def metric_values(results: dict[int, dict], seeds: list[int], metric: str) -> np.ndarray:
    """Return a metric of the results of some seeds, (n,)."""
    return np.array([results[seed]["test"][metric] for seed in seeds])


def mean_share(results: list[dict]) -> float | None:
    """Return the share of true matches among negatives in percent, averaged over some runs.

    Returns:
        The mean of the runs in which the share is known; None where it is known in none.
    """
    shares = [result["false_negatives"] for result in results
              if result["false_negatives"] is not None]
    return sum(shares) / len(shares) if shares else None


# ------------------------------------------------------------------------------------------- tables


def comparison_table(found: dict) -> str:
    """Return the comparisons with the oracle as a Markdown table, and sentences on the noise.

    Args:
        found: as `summary` returns it.
    """
    metric_headers = " | ".join(f"{METRICS[metric]}, plain → oracle | difference"
                                for metric in TABLE_METRICS)
    lines = ["| other photos that a caption is true of | loss | seeds | true matches among "
             f"negatives | {metric_headers} |",
             "|---|---|---|---|" + "---|---|" * len(TABLE_METRICS)]
    for row in found["rows"]:
        shares = " → ".join(share_text(share) for share in row["false_negatives"])
        cells = [share_text(row["true_matches"]), row["label"], str(len(row["seeds"])), shares]
        for metric in TABLE_METRICS:
            plain, with_oracle = (np.mean(row[metric][name]) for name in ("plain", "oracle"))
            cells += [f"{plain:.1f} → {with_oracle:.1f}", difference_text(row[metric])]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Differences: mean over seeds of oracle less plain, ± half of the "
              f"{100 * found['confidence']:.0f} % interval (Student's t). All on the test split, "
              "after the last epoch."]
    for metric, noise in found["noise"].items():
        lines.append(f"\nTwo runs that differ in nothing but the order of batches and draws differ "
                     f"in {METRICS[metric]} by {noise['rms']:.1f} (root mean square of "
                     f"{noise['runs']}).")
    return "\n".join(lines) + "\n"


def uses_table(found: dict) -> str:
    """Return the uses of the model's own likely matches as a Markdown table.

    Args:
        found: as `summary` returns it.
    """
    metric_headers = " | ".join(f"{METRICS[metric]} | less the plain loss | less the best loss"
                                for metric in USES_METRICS)
    lines = ["| other photos that a caption is true of | in place of | use | seeds | true matches "
             f"among negatives | {metric_headers} |",
             "|---|---|---|---|---|" + "---|---|---|" * len(USES_METRICS)]
    for row in found["uses"]:
        if row["witness_ap"] is not None:
            continue
        cells = [share_text(row["true_matches"]), row["loss"], row["label"],
                 str(len(row["seeds"])), share_text(row["false_negatives"])]
        for metric in USES_METRICS:
            values = row[metric]
            cells += [f"{np.mean(values['used']):.1f}", difference_text(values["plain"]),
                      f"{difference_text(values['best'])} ({values['best_loss']})"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def witness_table(found: dict) -> str:
    """Return what witnesses of given quality give as a Markdown table.

    Args:
        found: as `summary` returns it.
    """
    metric_headers = " | ".join(f"{METRICS[metric]} | less plain" for metric in TABLE_METRICS)
    lines = ["| other photos that a caption is true of | loss | AP of the witness | seeds | true "
             f"matches among negatives | {metric_headers} |",
             "|---|---|---|---|---|" + "---|---|" * len(TABLE_METRICS)]
    for row in found["uses"]:
        if row["witness_ap"] is None:
            continue
        cells = [share_text(row["true_matches"]), row["loss"], f"{row['witness_ap']:.2f}",
                 str(len(row["seeds"])), share_text(row["false_negatives"])]
        for metric in TABLE_METRICS:
            cells += [f"{np.mean(row[metric]['used']):.1f}", difference_text(row[metric]["plain"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def share_text(share: float | None) -> str:
    """Return a share in percent as text, and a dash where it is not known."""
    return "–" if share is None else f"{share:.1f} %"


def difference_text(values: dict) -> str:
    """Return a difference with its interval, as in "+3.1 ± 2.0".

    It is in bold where the interval does not hold 0.

    Args:
        values: "difference" and "interval"; None for an interval that is not known.
    """
    if values["interval"] is None:
        return f"{values['difference']:+.1f}"
    text = f"{values['difference']:+.1f} ± {values['interval']:.1f}"
    return f"**{text}**" if abs(values["difference"]) > values["interval"] else text


# ------------------------------------------------------------------------------------------ figure


def dose_figure(found: dict) -> Figure:
    """Draw three metrics against the dose, and below them the differences that the oracle makes.

    Each comparison has its own colour.

    Args:
        found: as `summary` returns it.
    """
    figure = Figure(figsize=(10.0, 6.2), layout="constrained")
    true_matches = sorted({row["true_matches"] for row in found["rows"]})
    for metric, (upper, lower) in zip(
            FIGURE_METRICS, figure.subplots(2, len(FIGURE_METRICS), sharex=True).T):
        for number, (loss, oracle) in enumerate(COMPARED):
            rows = [row for row in found["rows"]
                    if (row["loss"], row["oracle"]) == (loss, oracle)]
            if rows:
                draw_values(upper, rows, metric)
                draw_differences(lower, rows, metric, number)
        noise = found["noise"].get(metric)
        if noise:
            lower.axhspan(-noise["rms"], noise["rms"], color=SHADE, alpha=0.25, linewidth=0,
                          label="two orders of the same run differ by so much")
        lower.axhline(0, color=SHADE, linewidth=1)
        upper.set_ylabel(METRICS[metric])
        lower.set_ylabel(f"{METRICS[metric]}, oracle less plain")
        lower.set_xlabel("other photos that a caption is true of, %")
        for axes in upper, lower:
            axes.set_xscale("log")
            axes.set_xticks(true_matches, [f"{share:.1f}" for share in true_matches])
            axes.minorticks_off()
    upper, lower = figure.axes[0], figure.axes[len(FIGURE_METRICS)]
    upper_handles, upper_labels = upper.get_legend_handles_labels()
    lower_handles, lower_labels = lower.get_legend_handles_labels()
    figure.legend(upper_handles + lower_handles, upper_labels + lower_labels,
                  loc="outside upper left", ncols=3, fontsize=9, frameon=False)
    return style_axes(figure)


def draw_values(axes: Axes, rows: list[dict], metric: str) -> None:
    """Draw a metric against the dose: dashed without the oracle, a full line with it.

    Args:
        axes: to draw on.
        rows: of one comparison, one for each dose.
        metric: a key of `METRICS`.
    """
    excluding = rows[0]["oracle"] == "exclude"
    colour = COLOURS[rows[0]["loss"], rows[0]["oracle"]]
    label = rows[0]["label"]
    x = [row["true_matches"] for row in rows]
    if excluding:  # the other comparison of InfoNCE has the same runs without an oracle
        axes.plot(x, [np.mean(row[metric]["plain"]) for row in rows], "o--", color=colour,
                  linewidth=1.5, fillstyle="none", label=f"{label}, plain")
    axes.plot(x, [np.mean(row[metric]["oracle"]) for row in rows], "o-", color=colour,
              linewidth=2, label=f"{label}, oracle" if excluding else label)


def draw_differences(axes: Axes, rows: list[dict], metric: str, number: int) -> None:
    """Draw the mean differences with their intervals, and that of each seed as a small dot.

    Args:
        axes: to draw on.
        rows: of one comparison, one for each dose.
        metric: a key of `METRICS`.
        number: of the comparison; each stands a little beside the others.
    """
    colour = COLOURS[rows[0]["loss"], rows[0]["oracle"]]
    x = [row["true_matches"] * 1.07 ** (number - 1.5) for row in rows]
    axes.errorbar(x, [row[metric]["difference"] for row in rows],
                  yerr=[row[metric]["interval"] or 0.0 for row in rows], fmt="o",
                  color=colour, capsize=3)
    for place, row in zip(x, rows):
        differences = np.subtract(row[metric]["oracle"], row[metric]["plain"])
        axes.plot([place] * len(differences), differences, ".", color=colour, alpha=0.5)


def is_summary(path: Path) -> bool:
    """Return whether a file is the json of a summary that `write_summary` wrote."""
    try:
        content = files.read_json(path, files.MAX_RESULT_BYTES)
    except InputError:
        return False
    return isinstance(content, dict) and {"rows", "uses"} <= content.keys()


def write_beside(
    folder: Path, contents: dict[str, bytes], is_own: Callable[[Path], bool]
) -> None:
    """Write the files of a summary beside a folder of results, under its name.

    Args:
        folder: of the results.
        contents: of the files, by their endings; "json" is one of them.
        is_own: tells whether an existing json is one of this summary, which may be written over.

    Raises:
        InputError: something else is there, or a file cannot be written.
    """
    names = {ending: folder.with_name(f"{folder.name}.{ending}") for ending in contents}
    # A picture or a text does not say whose it is; the numbers beside it do.
    places = {ending: files.resolve_output(path, "--results", lambda _: is_own(names["json"]), [])
              for ending, path in names.items()}
    for ending, content in contents.items():
        files.write(places[ending], content, "--results")


def write_summary(folder: Path) -> str | None:
    """Write the summary of a folder of results beside it, as `.json`, `.md`, `.svg` and `.png`.

    Args:
        folder: of the results; the files have its name and these endings.

    Returns:
        The tables in Markdown; None, with nothing written, where no two runs can be compared.

    Raises:
        InputError: there are no results, or a file cannot be written.
    """
    found = summary(read_results(folder))
    if not found["rows"]:
        return None
    text, figure = comparison_table(found), dose_figure(found)
    by_witness = [row["witness_ap"] is not None for row in found["uses"]]
    if not all(by_witness):
        text += f"\n{uses_table(found)}"
    if any(by_witness):
        text += f"\n{witness_table(found)}"
    label = "What the oracle gives, against how many false negatives there are"
    contents = {"json": json.dumps(found, indent=2).encode() + b"\n", "md": text.encode(),
                "png": png_bytes(figure, dpi=160), "svg": svg_element(figure, label).encode()}
    write_beside(folder, contents, is_summary)
    return text
