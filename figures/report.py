"""The report of a scored split: one html file for any browser, without network.

`python evaluation.py CHECKPOINT --report DIR` writes `DIR/report.html`. The file holds small JPEGs
of the photos, so it may be as private as they are. Every text that comes from data is escaped.
"""

import datetime
from argparse import Namespace
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from common import files
from common.version import commit
from data import Split
from figures.galleries import ASKING, CAPTION, PHOTO, RANKED, Cell, Library, Pairs, negative_rows
from figures.pages import data_uri, is_page, page
from figures.picks import fixed_choice, suspicion, top_wrong_leads
from figures.plots import calibration_figure, distribution_figure, svg_element
from fne_loss import FNELoss, cosine, cut_down_bound, rank_batch
from metrics.embeddings import Embeddings, fitted_gaussians
from metrics.evidence import (
    FittedEvidence,
    fit_evidence,
    posterior_by_evidence,
    score_by_evidence,
)
from metrics.facts import FACT_TYPES, METHOD_FACTS, run_summary
from metrics.judgements import AGREEMENT_LABELS, SCORES, calibration, fitted_posterior
from metrics.teacher import fit_teacher
from metrics.true_matches import metric_label
from teacher.posterior import TeacherPosterior
from training.objectives.fne import BINS, FNE, build_criterion, count_similarities

NEGATIVE_ROWS, MISTAKE_ROWS = 6, 9  # most rows of the galleries, in each direction
DIRECTIONS = {"i2t": "photo to captions", "t2i": "caption to photos"}
RECALL_KEYS = "r1", "r5", "r10", "medr", "meanr"
GENERATOR = "evaluation.py --report"  # stands in every report, and `is_page` recognises it by this
# Facts that have a row of their own, so that the row "run" does not repeat them.
FACTS_ELSEWHERE = {"dataset", "split", "date", "commit", "checkpoint", "phase", "oracle", "epoch",
                   "step", "teacher"}


def write_report(
    embeddings: Embeddings, metrics: dict, title: str, photos: list[Path] | None, folder: Path
) -> Path:
    """Write `report.html` into `folder`, which is made if need be, and return the file's path.

    All that the report says of the training comes from the facts beside the embeddings, never from
    the options of the command that writes it.

    Args:
        embeddings: of the split. Distributions and posteriors are shown if they carry FNE's
            statistics.
        metrics: the scores, as `evaluation.all_metrics` returns them.
        title: plain text of the heading.
        photos: the N_i photo files, or None for a report without pictures.
        folder: where `report.html` is written.

    Returns:
        The path of the report.

    Raises:
        InputError: the file cannot be written, or something else is there already.
    """
    embeddings = embeddings.in_full_precision()
    criterion = fitted_criterion(embeddings)
    evidence, teacher = fit_evidence(embeddings), fit_teacher(embeddings)
    library = Library(embeddings.split, photos)
    sections = [
        recall_section(metrics),
        judgement_section(metrics),
        distribution_section(embeddings, criterion),
        *(negative_section(direction, embeddings, criterion, evidence, teacher, library)
          for direction in DIRECTIONS),
        *(mistake_section(direction, embeddings, library) for direction in DIRECTIONS),
        calibration_section(embeddings, criterion, evidence, teacher, metrics),
    ]
    content = page(GENERATOR, title, report_facts(embeddings), "\n".join(filter(None, sections)))
    place = report_place(folder, [])
    files.write(place, content.encode(), "--report")
    return place


def report_place(folder: Path, inputs: list[Path]) -> Path:
    """Return the path of `report.html` in `folder`, and make the folder.

    Args:
        inputs: files that the command reads, which the report must not replace.

    Raises:
        InputError: a file that is no report is there already, or the folder cannot be made.
    """
    return files.resolve_output(folder / "report.html", "--report",
                                lambda path: is_page(path, GENERATOR), inputs)


def fitted_criterion(embeddings: Embeddings) -> FNELoss | None:
    """Return the FNE loss with the statistics and options that its training ended with.

    Returns:
        The loss, or None where the embeddings carry no statistics or not all options of the loss.
    """
    gaussians, facts = fitted_gaussians(embeddings), embeddings.facts
    if not gaussians or not all(name in facts for name in METHOD_FACTS):
        return None
    options = {name: facts[name] for name in METHOD_FACTS}
    # Embeddings carry only the statistics of the published posterior, whatever the training used.
    criterion = build_criterion(Namespace(prior=embeddings.prior, posterior="published", **options))
    criterion.positive, criterion.negative = gaussians
    return criterion


def report_facts(embeddings: Embeddings) -> dict[str, str]:
    """Return the list at the top of a report: split, checkpoint, options of the run, versions."""
    facts, split = embeddings.facts, embeddings.split
    rows = {"scored": f"{len(split.images):,} photos, {len(split.captions):,} captions"}
    checkpoint = run_summary(facts)
    if checkpoint:
        step = f", step {facts['step']:,}" if "step" in facts else ""
        rows["checkpoint"] = checkpoint + step
    options = [f"{name} {facts[name]}" for name in FACT_TYPES
               if name in facts and name not in FACTS_ELSEWHERE]
    if embeddings.prior is not None:
        options.append(f"prior {embeddings.prior:g}")
    if embeddings.teacher_embeds is not None:
        rows["teacher"] = f"{facts.get('teacher', 'not named')}, fitted to this split"
    rows["run"] = ", ".join(options) or "nothing is known of it: the embeddings come alone"
    if "date" in facts:
        rows["embedded"] = f"{facts['date']}, code at commit {facts.get('commit', 'unknown')}"
    rows["report"] = f"{datetime.date.today().isoformat()}, code at commit {commit()}"
    return rows


# --------------------------------------------------------------------- recalls and people's answers


def recall_section(metrics: dict) -> str:
    """Return the section of recalls: the numbers that the command prints, as tables."""
    sections = ["<h2>Recall</h2>", recall_table(metrics)]
    if "five_fold" in metrics:
        sections += ["<h3>1K, mean of five folds</h3>", recall_table(metrics["five_fold"])]
    # What is neither recall nor rank counts all true matches, such as mAP@R.
    names = [key.removeprefix("i2t_") for key in metrics if key.startswith("i2t_")]
    rows = []
    for name in names:
        if name not in RECALL_KEYS:
            values = [f"{metrics[f'{direction}_{name}']:.1f}" for direction in DIRECTIONS]
            rows.append([metric_label(name), *values])
    if rows:
        sections += ["<h3>Over all true matches, %</h3>",
                     html_table(["", *DIRECTIONS.values()], rows)]
    return "\n".join(sections)


def recall_table(metrics: dict) -> str:
    """Return a table of R@K and of median and mean rank in both directions, and the rsum."""
    rows = []
    for direction, name in DIRECTIONS.items():
        recalls = [f"{metrics[f'{direction}_r{k}']:.1f}" for k in (1, 5, 10)]
        rows.append([name, *recalls, f"{metrics[f'{direction}_medr']:.0f}",
                     f"{metrics[f'{direction}_meanr']:.1f}"])
    return (html_table(["", "R@1", "R@5", "R@10", "MedR", "MeanR"], rows)
            + f"<p><b>rsum {metrics['rsum']:.1f}</b></p>")


def judgement_section(metrics: dict) -> str:
    """Return how far similarity and posterior agree with people, or "" without --judgements."""
    result = metrics.get("judgements")
    if result is None:
        return ""
    scores = [name for name in SCORES if name in result]
    rows = []
    for key, label in AGREEMENT_LABELS.items():
        # The space before an interval's upper end does not break: an interval stays in one line.
        cells = ["{:.3f} [{:.3f},\xa0{:.3f}]".format(*result[name][key]) for name in scores]
        rows.append([label, *cells])
    return ("<h2>Do people agree?</h2>"
            f"<p>People judged {result['pairs']:,} pairs of {result['photos']:,} photos that are "
            f"not annotated as matches, and called {result['false_negatives']:,} of them a match: "
            "false negatives. How well those are found, with 95 % intervals over photos: by "
            "similarity, by FNE's posterior, by the caption's similarity to the photo's own "
            "captions, by the posterior of both similarities (evidence), by a teacher's similarity "
            "of captions and by its P(match), as far as they are known:</p>"
            + html_table(["", *(name.replace("_", " ") for name in scores)], rows, "loose"))


# ------------------------------------------------------------------------- what FNE knows and draws


def distribution_section(embeddings: Embeddings, criterion: FNELoss | None) -> str:
    """Return the section of the fitted Gaussians over the similarities of this split.

    The split is counted in random batches of the size that was trained with.
    """
    phase = embeddings.facts.get("phase", FNE)
    title = f"<h2>What FNE {'believes' if phase == FNE else 'would believe'}</h2>"
    if criterion is None:
        return title + ("<p>There are no fitted statistics beside these embeddings, or not the "
                        "options that belong to them: a released checkpoint, the controls (loss "
                        "triplet, infonce) and other programs have none. So nothing below speaks "
                        "of a posterior.</p>")
    image_of_text = torch.from_numpy(embeddings.split.image_of_text)  # (N_t,)
    batch_size = min(embeddings.facts["batch_size_train"], len(image_of_text))
    counts = torch.zeros(2, BINS, dtype=torch.int64)
    shuffled = torch.tensor(fixed_choice(len(image_of_text), len(image_of_text)))  # (N_t,)
    for texts in shuffled.split(batch_size):
        image_ids = image_of_text[texts]  # (B,)
        similarity = cosine(embeddings.image_embeds[image_ids], embeddings.text_embeds[texts])
        count_similarities(counts, rank_batch(similarity, image_ids))
    pairs = int(criterion.positive.count)
    figure = distribution_figure(counts.numpy(), criterion, "this split, in the checkpoint's eyes")
    return title + (
        f"<p>{warm_up_note(phase)}The curves are those of training: Gaussians over its last "
        f"{pairs:,} confident pairs and their hardest negatives. The bars are this split's own, in "
        f"random batches of {batch_size} as in training. Where bars and curves part, the posterior "
        "is off.</p>"
        + svg_element(figure, "distributions of similarities, posterior and sampling weight"))


def warm_up_note(phase: str) -> str:
    """Return a sentence for a checkpoint of the warm-up, and "" for one that FNE has trained."""
    if phase == FNE:
        return ""
    return (f"This checkpoint is from the warm-up ({escape(phase)}): its statistics are kept, but "
            "FNE has drawn no negative yet. ")


def negative_section(
    direction: str, embeddings: Embeddings, criterion: FNELoss | None,
    evidence: FittedEvidence | None, teacher: TeacherPosterior | None, library: Library,
) -> str:
    """Return the gallery of what FNE would draw if the whole split were its memory bank."""
    split = embeddings.split
    pairs = library.pairs(fixed_choice(NEGATIVE_ROWS, len(split.captions)))
    image_of_text = torch.from_numpy(split.image_of_text)  # (N_t,)
    image_embeds, text_embeds = embeddings.image_embeds, embeddings.text_embeds
    if direction == "i2t":
        bank = Pairs(image_of_text, torch.arange(len(image_of_text)))
        bank_keys = text_embeds
        anchors, keys = image_embeds[pairs.image_ids], text_embeds[pairs.text_ids]
    else:
        bank = Pairs(torch.arange(len(image_embeds)), library.first_texts())
        bank_keys = image_embeds
        anchors, keys = text_embeds[pairs.text_ids], image_embeds[pairs.image_ids]

    def by_evidence(image, text):
        scores = score_by_evidence(embeddings, evidence, torch.tensor([image]),
                                   torch.tensor([text]))
        return float(scores[1])

    def by_teacher(image, text):
        return float(teacher.posterior(torch.tensor([image]), torch.tensor([text])))

    more_posteriors, notes = {}, ""
    if evidence is not None:
        more_posteriors["e"] = by_evidence
        notes += (" e is the posterior by evidence, which knows the captions' similarity too, "
                  "fitted to this split.")
    if teacher is not None:
        more_posteriors["t"] = by_teacher
        notes += (" t is the teacher's P(match), which knows captions alone, fitted to this split.")
    rows = negative_rows(direction, library, criterion, anchors, keys, bank_keys, pairs, bank,
                         more_posteriors=more_posteriors)
    explanation = explain_negatives(criterion, embeddings.facts.get("phase", FNE))
    return (f"<h2>Negatives, {DIRECTIONS[direction]}</h2><p>Six pairs and their negatives from the "
            f"whole split: {explanation}{notes} {legend(direction, split)}</p>"
            + "\n".join(map(row_html, rows)))


def explain_negatives(criterion: FNELoss | None, phase: str) -> str:
    """Return which candidates a gallery of negatives shows, and what its s and p stand for."""
    if criterion is None:
        return "the hardest alone. s is the similarity."
    draw = "FNE's draw" if phase == FNE else "what FNE would draw (it has drawn none yet)"
    count = int(criterion.positive.count)
    if count <= criterion.min_count:
        return (f"{draw}, and the hardest candidate. s is the similarity. The posterior is not "
                f"used yet: it takes more than {criterion.min_count:,} confident pairs, and there "
                f"were {count:,}.")
    bound = suspicion(criterion)
    name = "the prior" if bound == criterion.prior else "up to which FNE takes it for 0"
    return (f"{draw}, the hardest candidate, and up to three that may be unannotated matches. s is "
            f"the similarity, p the posterior, P(false negative). Where p is above {bound:g}, "
            f"{name}, s speaks for a match (perhaps a match); above 0.5 a match is likelier than "
            "not (likely a match).")


# ----------------------------------------------------------------------------------------- mistakes


def mistake_section(direction: str, embeddings: Embeddings, library: Library) -> str:
    """Return the gallery of queries whose best result is a wrong one, by the largest lead first.

    The lead is how far the similarity of the wrong result is above that of the best annotated one.
    """
    split = embeddings.split
    image_of_text = torch.from_numpy(split.image_of_text)  # (N_t,)
    images, texts = torch.arange(len(split.images)), torch.arange(len(image_of_text))
    first_texts = library.first_texts()  # (N_i,)
    annotated = image_of_text[:, None] == images[None, :]  # (N_t, N_i)
    if direction == "i2t":
        leads, best = top_wrong_leads(embeddings.image_embeds, embeddings.text_embeds, annotated.T)
        queries, results = Pairs(images, first_texts), Pairs(image_of_text[best], best)
    else:
        leads, best = top_wrong_leads(embeddings.text_embeds, embeddings.image_embeds, annotated)
        queries, results = Pairs(image_of_text, texts), Pairs(best, first_texts[best])
    wrong = (leads >= 0).nonzero()[:, 0]  # (W,) queries

    rows, shown_images = [], set()
    for query in wrong[leads[wrong].argsort(descending=True)].tolist():
        if len(rows) == MISTAKE_ROWS:
            break
        query_image, query_text = int(queries.image_ids[query]), int(queries.text_ids[query])
        image, text = int(results.image_ids[query]), int(results.text_ids[query])
        if {query_image, image} & shown_images:
            continue  # a photo that is first for many queries would fill the page
        shown_images |= {query_image, image}
        compared = (query_image, text) if direction == "i2t" else (image, query_text)
        rows.append([
            library.cell(f"asked: {ASKING[direction]}", "", query_image, query_text, None,
                         ASKING[direction]),
            library.cell("came first", f"+{float(leads[query]):.2f}", image, text,
                         library.is_match(*compared), RANKED[direction])])
    true_matches = true_match_note(direction, split, wrong, best)
    return (f"<h2>Most confident mistakes, {DIRECTIONS[direction]}</h2><p>For {len(wrong):,} of "
            f"{len(leads):,} the first result is not annotated{true_matches}. These are furthest "
            f"above the best annotated one, each photo shown once. {legend(direction, split)}</p>"
            '<div class="rows">' + "\n".join(map(row_html, rows)) + "</div>")


def true_match_note(direction: str, split: Split, wrong: Tensor, best: Tensor) -> str:
    """Return how many of the mistakes are true matches, or "" where those are not known.

    Args:
        wrong: (W,) queries whose best result is not annotated as their match.
        best: (N_q,) the best result of each query that is not annotated.
    """
    if split.matches is None:
        return ""
    matches = torch.from_numpy(split.matches)  # (N_t, N_i)
    if direction == "i2t":
        matches = matches.T
    count = int(matches[wrong, best[wrong]].sum())
    return f", yet a true match for {count:,} of them"


# -------------------------------------------------------------------------------------- calibration


def calibration_section(
    embeddings: Embeddings, criterion: FNELoss | None, evidence: FittedEvidence | None,
    teacher: TeacherPosterior | None, metrics: dict,
) -> str:
    """Return how often the posterior is right, by known true matches and by people's judgements.

    Returns:
        The section, or "" where neither is known.
    """
    tables = true_match_calibrations(embeddings, criterion, evidence, teacher)
    judgements = metrics.get("judgements", {})
    for key, title in (
            ("calibration", "By people's judgements"),
            ("evidence_calibration", "The posterior by evidence, by people's judgements"),
            ("teacher_calibration", "The teacher's P(match), by people's judgements")):
        if key in judgements:
            tables.append(calibration_html(title, "All judged pairs", judgements[key],
                                           "called a match by most"))
    if not tables:
        return ""
    return "<h2>Is the posterior what it says?</h2>" + "\n".join(tables)


def true_match_calibrations(
    embeddings: Embeddings, criterion: FNELoss | None, evidence: FittedEvidence | None,
    teacher: TeacherPosterior | None,
) -> list[str]:
    """Return the calibration of each posterior by all true matches; none where they are not known.

    Without FNE's statistics there is only that of a teacher, over all pairs.
    """
    split = embeddings.split
    if split.matches is None or criterion is None and teacher is None:
        return []
    images = range(len(split.images))
    unannotated = torch.from_numpy(split.image_of_text[:, None] != images)  # (N_t, N_i)
    similarity = (embeddings.text_embeds @ embeddings.image_embeds.T).double()  # (N_t, N_i)
    counted, counted_title, posteriors = unannotated, "All pairs", {}
    if criterion is not None:
        # The posterior is not used below the cut-down, and where N+ is wide it rises again there.
        bound = cut_down_bound(criterion.positive, criterion.margin)
        counted = unannotated & (similarity > bound)  # (N_t, N_i), true for P pairs
        counted_title = "All pairs above the cut-down"
        posteriors["By"] = fitted_posterior(similarity[counted], embeddings)
    is_match = split.matches[counted.numpy()].astype(float)  # (P,)
    if criterion is not None and evidence is not None:
        captions = embeddings.text_embeds @ evidence.mean_text_embeds.T  # (N_t, N_i)
        posteriors["The posterior by evidence, by"] = posterior_by_evidence(
            evidence, similarity[counted], captions[counted].double())
    if teacher is not None:
        by_teacher = teacher.posterior(torch.arange(len(split.images)),
                                       torch.arange(len(split.captions)))  # (N_i, N_t)
        posteriors["The teacher's P(match), by"] = by_teacher.T[counted].double()
    return [calibration_html(f"{title} the known true matches", counted_title,
                             calibration(is_match, posterior.numpy()), "share of true matches")
            for title, posterior in posteriors.items()]


def calibration_html(title: str, pairs: str, rows: list[dict], match_label: str) -> str:
    """Return a calibration as a heading, a table and a figure.

    Args:
        pairs: tells in words which pairs are counted.
        rows: the bins, as `metrics.judgements.calibration` returns them.
        match_label: heading of the share of matches, which tells by whose account.
    """
    cells = [[f"{row['low']:g} to {row['high']:g}", f"{row['pairs']:,}",
              f"{row['mean_posterior']:.4f}", f"{100 * row['match_share']:.1f} %"] for row in rows]
    return (f"<h3>{title}</h3><p>{pairs} that are not annotated as matches.</p>"
            + html_table(["posterior", "pairs", "its mean", match_label], cells)
            + svg_element(calibration_figure(rows, match_label), "calibration of the posterior"))


# ----------------------------------------------------------------------------------- pieces of html


def legend(direction: str, split: Split) -> str:
    """Return what a green frame and what faint photos and captions mean in a gallery."""
    if split.matches is not None:
        match = "A green frame and ✓ mark a true match."
    else:
        match = "A green frame and ✓ mark an annotated match; others may be true, too."
    if RANKED[direction] == CAPTION:
        faint = ("a photo is compared with captions; the faint photo of a candidate only shows "
                 "what its caption was written for")
    else:
        faint = ("a caption is compared with photos; the faint caption of a candidate is one that "
                 "was written for its photo")
    return f"{match} Here {faint}."


def html_table(header: list[str], rows: list[list[str]], css_class: str = "") -> str:
    """Return a table of plain texts as html.

    Args:
        css_class: "loose" lets the text of cells wrap on a narrow screen.
    """
    def table_row(tag, cells):
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(table_row("td", row) for row in rows)
    return (f'<div class="wide"><table class="{css_class}">{table_row("th", header)}{body}'
            "</table></div>")


def row_html(cells: list[Cell]) -> str:
    """Return a row of a gallery as html."""
    return '<div class="row">' + "".join(map(cell_html, cells)) + "</div>"


def cell_html(cell: Cell) -> str:
    """Return a cell of a gallery as html: its text escaped, and what is not compared faint."""
    figure_class = ' class="right"' if cell.is_match else ""
    tick = "&nbsp;✓" if cell.is_match else ""
    photo_class = ' class="faint"' if cell.compared == CAPTION else ""
    caption_class = ' class="faint"' if cell.compared == PHOTO else ""
    photo = ""
    if cell.photo is not None:
        photo = f'<img alt=""{photo_class} src="{data_uri(cell.photo)}">'
    return (f'<figure{figure_class}><div class="heading"><b>{escape(cell.heading)}{tick}</b>'
            f'<span class="soft">{escape(cell.numbers)}</span></div>{photo}'
            f"<figcaption{caption_class}>{escape(cell.caption)}</figcaption></figure>")
