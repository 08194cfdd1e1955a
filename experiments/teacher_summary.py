"""Tables and figure of the results of `experiments.teacher`: means, and differences by seed.

A difference is that of a run and the run of the same seed that takes all negatives. The interval of
its mean is Student's, over the seeds.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from common import files
from common.errors import InputError
from experiments.summary import interval, write_beside
from experiments.teacher_plan import (
    RANDOM,
    REGIME_LABELS,
    SENTENCES,
    TEACHERS,
    USE_LABELS,
    USES,
    TeacherRun,
    all_runs,
)
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

# Measures of the test split: title, decimals, and factor by which they are shown.
MEASURES = {"rsum": ("rsum", 1), "ap": ("people's AP", 3), "auroc": ("people's AUROC", 3)}
LOSS_COLOURS = {"triplet": NEGATIVE, "infonce": POSITIVE, "sigmoid": WEIGHT, "fne": POSTERIOR}
TITLES = {"losses": "Table 1: losses and uses", "controls": "Table 2: controls, the triplet loss",
          "batches": "Table 3: batches", "regimes": "Table 4: regimes"}


def read_results(folder: Path) -> dict[TeacherRun, dict]:
    """Return all results in a folder, by their runs.

    Raises:
        InputError: there is none, or a json file is no result.
    """
    results = {}
    for path in sorted(folder.glob("*.json")):
        result = files.read_json(path, files.MAX_RESULT_BYTES)
        try:
            run = TeacherRun(**result["run"])
            for measure in MEASURES:
                float(result["test"][measure])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"--results {folder}: {path.name} is no result of a run: take it away"
                             ) from error
        results[run] = result
    if not results:
        raise InputError(f"--results {folder} holds no results yet: leave out --report")
    return results


def plain_run(run: TeacherRun) -> TeacherRun:
    """Return the run that a run is compared with: the same, with all negatives."""
    return TeacherRun(run.regime, run.loss, "plain", SENTENCES, run.batch, run.seed)


def summary(results: dict[TeacherRun, dict]) -> dict[str, list[dict]]:
    """Return the rows of each table.

    Returns:
        By table, a row for each regime, batch, loss, use and teacher of which there are results:
        these, the "seeds", "left_out" in percent or None, and for each measure the "values" and,
        but for the plain runs, their "difference" from the plain ones and its "interval".
    """
    tables = {}
    for table, planned in all_runs().items():
        rows = {}
        for run in planned:
            if run in results and plain_run(run) in results:
                group = run.regime, run.batch, run.loss, run.use, run.teacher
                rows.setdefault(group, []).append(run)
        tables[table] = [table_row(runs, results) for runs in rows.values()]
    return tables


def table_row(runs: list[TeacherRun], results: dict[TeacherRun, dict]) -> dict:
    """Return the row of runs that differ in their seeds alone."""
    first = runs[0]
    left_out = [results[run].get("left_out") for run in runs]
    row = {"regime": first.regime, "batch": first.batch, "loss": first.loss, "use": first.use,
           "teacher": first.teacher, "seeds": [run.seed for run in runs],
           "left_out": None if None in left_out else 100 * float(np.mean(left_out))}
    for measure in MEASURES:
        values = np.array([results[run]["test"][measure] for run in runs])
        row[measure] = {"values": values.tolist()}
        if first.use != "plain":
            plain = np.array([results[plain_run(run)]["test"][measure] for run in runs])
            row[measure] |= {"difference": float((values - plain).mean()),
                             "interval": interval(values - plain)}
    return row


def beyond_random(results: dict[TeacherRun, dict]) -> str:
    """Return a line for each bar on what the teacher gives beyond the random control.

    It is paired by seed: what the teacher leaves out, less as many at random among the equally
    hard.
    """
    lines = []
    for use in USES:
        runs = [run for run in all_runs()["controls"] if (run.use, run.teacher) == (use, RANDOM)]
        pairs = [(run, replace(run, teacher=SENTENCES)) for run in runs]
        pairs = [pair for pair in pairs if all(run in results for run in pair)]
        if not pairs:
            continue
        texts = []
        for measure, (label, decimals) in MEASURES.items():
            values = np.array([[results[run]["test"][measure] for run in pair] for pair in pairs])
            differences = values[:, 1] - values[:, 0]
            texts.append(f"{label} " + difference_text(
                {"difference": float(differences.mean()), "interval": interval(differences)},
                decimals))
        lines.append(f"- {USE_LABELS[use]}, the sentence encoder less the random control "
                     f"({len(pairs)} seeds): {', '.join(texts)}")
    return "\n".join(lines)


def table_text(title: str, rows: list[dict]) -> str:
    """Return the rows of a table in Markdown. A column that tells no two rows apart is left out."""
    columns = {
        "regime": [REGIME_LABELS[row["regime"]] for row in rows],
        "B": [str(row["batch"] or "") for row in rows],
        "loss": [row["loss"] for row in rows],
        "negatives": [USE_LABELS[row["use"]] for row in rows],
        "teacher": [TEACHERS[row["teacher"]] for row in rows],
        "left out": ["" if row["left_out"] is None else f"{row['left_out']:.2f} %" for row in rows],
        "seeds": [str(len(row["seeds"])) for row in rows],
    }
    columns = {name: cells for name, cells in columns.items()
               if name in ("negatives", "seeds") or len(set(cells)) > 1}
    for measure, (label, decimals) in MEASURES.items():
        columns[label] = [f"{np.mean(row[measure]['values']):.{decimals}f}" for row in rows]
        columns[f"{label}, less plain"] = [
            "" if row["use"] == "plain" else difference_text(row[measure], decimals)
            for row in rows]
    lines = [f"### {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(cells)} |" for cells in zip(*columns.values())]
    return "\n".join(lines) + "\n"


def difference_text(values: dict, decimals: int) -> str:
    """Return a difference with its interval, in bold where the interval does not hold 0."""
    text = f"{values['difference']:+.{decimals}f}"
    if values["interval"] is None:
        return text
    text += f" ± {values['interval']:.{decimals}f}"
    return f"**{text}**" if abs(values["difference"]) > values["interval"] else text


def teacher_figure(rows: list[dict]) -> Figure:
    """Draw what each use changes in people's AP and in rsum, a line for each loss.

    Args:
        rows: of the table "losses".
    """
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    uses = [use for use in USE_LABELS if use != "plain"]
    for axes, measure in zip(figure.subplots(1, 2), ("ap", "rsum")):
        for number, (loss, colour) in enumerate(LOSS_COLOURS.items()):
            of_loss = {row["use"]: row[measure] for row in rows
                       if row["loss"] == loss and row["use"] != "plain"}
            places = [place for place, use in enumerate(uses) if use in of_loss]
            if places:
                shown = [of_loss[uses[place]] for place in places]
                axes.errorbar([place + (number - 1.5) / 10 for place in places],
                              [values["difference"] for values in shown],
                              yerr=[values["interval"] or 0.0 for values in shown],
                              fmt="o", color=colour, capsize=3, label=loss)
        axes.axhline(0, color=SHADE, linewidth=1)
        axes.set_xticks(range(len(uses)), ["p > .5", "p > .2", "p > .05", "times 1 - p"])
        axes.set_ylabel(f"{MEASURES[measure][0]}, less that with all negatives")
    figure.axes[0].legend(fontsize=9, frameon=False)
    return style_axes(figure)


def is_summary(path: Path) -> bool:
    """Return whether a file is the json of a summary that `write_summary` wrote."""
    try:
        content = files.read_json(path, files.MAX_RESULT_BYTES)
    except InputError:
        return False
    return isinstance(content, dict) and content.keys() == TITLES.keys()


def write_summary(folder: Path) -> str:
    """Write the summary of a folder of results beside it, as `.json`, `.md`, `.svg` and `.png`.

    Args:
        folder: of the results; the files have its name and these endings.

    Returns:
        The tables in Markdown.

    Raises:
        InputError: there are no results, or a file cannot be written.
    """
    results = read_results(folder)
    found = summary(results)
    text = "\n".join(table_text(TITLES[table], rows) for table, rows in found.items() if rows)
    text = "\n".join(filter(None, (text, beyond_random(results)))) + "\n"
    figure = teacher_figure(found["losses"])
    label = "What leaving out a teacher's matches changes, by loss and use"
    contents = {"json": json.dumps(found, indent=1).encode() + b"\n", "md": text.encode(),
                "png": png_bytes(figure, dpi=160), "svg": svg_element(figure, label).encode()}
    write_beside(folder, contents, is_summary)
    return text
