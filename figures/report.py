"""The report of a scored split: one html file with everything in it, for any browser, offline.

`python evaluation.py CHECKPOINT --report DIR` writes `DIR/report.html`. Photos are in it as small
JPEGs, so it may be as private as they are. Every text that comes from data is escaped.
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
from figures.plots import calibration_figure, distribution_figure, svg
from fne_loss import FNELoss, cosine, cut_down_bound, rank_in_batch
from metrics.embeddings import Embeddings, fitted_gaussians
from metrics.evidence import (
    FittedEvidence,
    fit_evidence,
    posterior_by_evidence,
    score_by_evidence,
)
from metrics.facts import FACT_TYPES, METHOD_FACTS, run_summary
from metrics.judgements import AGREEMENT_LABELS, calibration, fitted_posterior
from metrics.true_matches import metric_label
from training.monitor import BINS, count_similarities
from training.run import build_loss
from training.schedule import FNE

EXAMPLES, MISTAKES = 6, 9  # rows of a gallery, and shown of the mistakes, in each direction
SIDES = {"i2t": "photo to captions", "t2i": "caption to photos"}
MARK = "evaluation.py --report"  # report.html tells itself by it


def write_report(
    embeddings: Embeddings, metrics: dict, title: str, photos: list[Path] | None, folder: Path
) -> Path:
    """Write `report.html` into `folder`, which is made, and return its path.

    What it says of the run is in the embeddings' facts: it knows of no options.

    Args:
        embeddings: of the split; with FNE's statistics there are distributions and posteriors.
        metrics: of `evaluation.all_metrics`.
        photos: (N_i) files, or None for a report without pictures.

    Raises:
        InputError: the file cannot be written.
    """
    criterion = fitted_criterion(embeddings)
    library = Library(embeddings.split, photos)
    sections = [recalls(metrics), judged(metrics), distributions(embeddings, criterion)]
    evidence = fit_evidence(embeddings)
    sections += [negatives(side, embeddings, criterion, evidence, library) for side in SIDES]
    sections += [mistakes(side, embeddings, library) for side in SIDES]
    sections.append(calibrations(embeddings, criterion, evidence, metrics))
    content = page(MARK, title, facts_of(embeddings), "\n".join(filter(None, sections)))
    place = report_place(folder, [])
    files.write(place, content.encode(), "--report")
    return place


def report_place(folder: Path, inputs: list[Path]) -> Path:
    """`report.html` in `folder`; InputError where something else is there."""
    return files.resolve_output(folder / "report.html", "--report",
                                lambda place: is_page(place, MARK), inputs)


def fitted_criterion(embeddings: Embeddings) -> FNELoss | None:
    """The loss as the checkpoint leaves it, or None where its fitted statistics, or the options
    that it had, are not known."""
    gaussians, facts = fitted_gaussians(embeddings), embeddings.facts
    if not gaussians or not all(name in facts for name in METHOD_FACTS):
        return None
    # The statistics that files have are those of the published posterior.
    criterion = build_loss(Namespace(prior=embeddings.prior, posterior="published",
                                     **{name: facts[name] for name in METHOD_FACTS}))
    criterion.positive, criterion.negative = gaussians
    return criterion


def facts_of(embeddings: Embeddings) -> dict[str, str]:
    """What is known of split, checkpoint, run and code."""
    facts, split = embeddings.facts, embeddings.split
    rows = {"scored": f"{len(split.images):,} photos, {len(split.captions):,} captions"}
    if text := run_summary(facts):
        rows["checkpoint"] = text + (f", step {facts['step']:,}" if "step" in facts else "")
    told = {"dataset", "split", "date", "commit", "checkpoint", "phase", "oracle", "epoch", "step"}
    known = [f"{name} {facts[name]}" for name in FACT_TYPES if name in facts and name not in told]
    if embeddings.prior is not None:
        known.append(f"prior {embeddings.prior:g}")
    rows["run"] = ", ".join(known) or "nothing is known of it: the embeddings come alone"
    if "date" in facts:
        rows["embedded"] = f"{facts['date']}, code at commit {facts.get('commit', 'unknown')}"
    rows["report"] = f"{datetime.date.today().isoformat()}, code at commit {commit()}"
    return rows


# ---------------------------------------------------------------------------------------- sections


def recalls(metrics: dict) -> str:
    """The numbers that the command prints, as tables."""
    parts = ["<h2>Recall</h2>", recall_html(metrics)]
    if "five_fold" in metrics:
        parts += ["<h3>1K, mean of five folds</h3>", recall_html(metrics["five_fold"])]
    known = {f"{side}_{key}" for side in SIDES for key in ("r1", "r5", "r10", "medr", "meanr")}
    more = [key.removeprefix("i2t_") for key in metrics
            if key.startswith("i2t_") and key not in known]
    if more:
        rows = [[metric_label(key), *(f"{metrics[f'{side}_{key}']:.1f}" for side in SIDES)]
                for key in more]
        parts += ["<h3>Over all true matches, %</h3>", html_table(["", *SIDES.values()], rows)]
    return "\n".join(parts)


def judged(metrics: dict) -> str:
    """How far similarity and posterior agree with people, where --judgements gave them."""
    found = metrics.get("judgements")
    if found is None:
        return ""
    scores = [name for name in ("similarity", "posterior", "captions", "evidence")
              if name in found]
    # An interval stays in one line, and may have it to itself.
    rows = [[label, *("{:.3f} [{:.3f},\xa0{:.3f}]".format(*found[name][key]) for name in scores)]
            for key, label in AGREEMENT_LABELS.items()]
    return ("<h2>Do people agree?</h2>"
            f"<p>People judged {found['pairs']:,} pairs of {found['photos']:,} photos that are not "
            f"annotated as matches, and called {found['false_negatives']:,} of them a match: false "
            "negatives. How well those are found, with 95 % intervals over photos: by similarity, "
            "by FNE's posterior, by the caption's similarity to the photo's own captions, and by "
            "the posterior of both similarities (evidence), as far as they are known:</p>"
            + html_table(["", *scores], rows, "loose"))


def recall_html(metrics: dict) -> str:
    rows = [[name, *(f"{metrics[f'{side}_r{k}']:.1f}" for k in (1, 5, 10)),
             f"{metrics[f'{side}_medr']:.0f}", f"{metrics[f'{side}_meanr']:.1f}"]
            for side, name in SIDES.items()]
    return (html_table(["", "R@1", "R@5", "R@10", "MedR", "MeanR"], rows)
            + f"<p><b>rsum {metrics['rsum']:.1f}</b></p>")


def distributions(embeddings: Embeddings, criterion: FNELoss | None) -> str:
    """The fitted Gaussians over this split's own similarities, in batches as in training."""
    phase = embeddings.facts.get("phase", FNE)
    title = f"<h2>What FNE {'believes' if phase == FNE else 'would believe'}</h2>"
    if criterion is None:
        return title + ("<p>There are no fitted statistics beside these embeddings, or not the "
                        "options that belong to them: a released checkpoint, the controls (loss "
                        "triplet, infonce) and other programs have none. So nothing below speaks "
                        "of a posterior.</p>")
    size = min(embeddings.facts["batch_size_train"], len(embeddings.split.captions))
    counts = torch.zeros(2, BINS, dtype=torch.int64)
    owners = torch.from_numpy(embeddings.split.image_of_text)
    for texts in torch.tensor(fixed_choice(len(owners), len(owners))).split(size):
        similarity = cosine(embeddings.image_embeds[owners[texts]], embeddings.text_embeds[texts])
        count_similarities(counts, rank_in_batch(similarity, owners[texts]))
    count = int(criterion.positive.count)
    figure = distribution_figure(counts.numpy(), criterion, "this split, in the checkpoint's eyes")
    return title + (
        f"<p>{early(phase)}The curves are those of training: Gaussians over its last {count:,} "
        f"confident pairs and their hardest negatives. The bars are this split's own, in random "
        f"batches of {size} as in training. Where bars and curves part, the posterior is off.</p>"
        + svg(figure, "distributions of similarities, posterior and sampling weight"))


def early(phase: str) -> str:
    """A sentence for a checkpoint that FNE has not trained yet."""
    if phase == FNE:
        return ""
    return (f"This checkpoint is from the warm-up ({escape(phase)}): its statistics are kept, but "
            "FNE has drawn no negative yet. ")


def negatives(
    side: str, embeddings: Embeddings, criterion: FNELoss | None, evidence: FittedEvidence | None,
    library: Library,
) -> str:
    """What FNE would draw if the whole split were its memory bank."""
    split = embeddings.split
    pairs = library.pairs(fixed_choice(EXAMPLES, len(split.captions)))
    owners = torch.from_numpy(split.image_of_text)
    images, texts = embeddings.image_embeds, embeddings.text_embeds
    if side == "i2t":
        bank, bank_keys = Pairs(owners, torch.arange(len(owners))), texts
        anchors, keys = images[pairs.image_ids], texts[pairs.text_ids]
    else:
        bank, bank_keys = Pairs(torch.arange(len(images)), library.first_texts()), images
        anchors, keys = texts[pairs.text_ids], images[pairs.image_ids]

    def by_evidence(image, text):
        pair = torch.tensor([image]), torch.tensor([text])
        return float(score_by_evidence(embeddings, evidence, *pair)[1])

    rows = negative_rows(side, library, criterion, anchors, keys, bank_keys, pairs, bank,
                         by_evidence=None if evidence is None else by_evidence)
    told = "" if evidence is None else (
        " e is the posterior by evidence, which knows the captions' similarity too, fitted to this "
        "split.")
    return (f"<h2>Negatives, {SIDES[side]}</h2><p>Six pairs and their negatives from the whole "
            f"split: {told_of(criterion, embeddings.facts.get('phase', FNE))}{told} "
            f"{legend(side, split)}</p>" + "\n".join(map(row_html, rows)))


def told_of(criterion: FNELoss | None, phase: str) -> str:
    """Which candidates a gallery of negatives shows, and what s and p are."""
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


def mistakes(side: str, embeddings: Embeddings, library: Library) -> str:
    """Where a wrong item is furthest above the best annotated one."""
    split = embeddings.split
    owners, numbers = torch.from_numpy(split.image_of_text), torch.arange(len(split.images))
    annotated = owners[:, None] == numbers[None, :]  # (N_t, N_i)
    first = library.first_texts()
    if side == "i2t":
        leads, found = top_wrong_leads(embeddings.image_embeds, embeddings.text_embeds, annotated.T)
        queries, results = Pairs(numbers, first), Pairs(owners[found], found)
    else:
        leads, found = top_wrong_leads(embeddings.text_embeds, embeddings.image_embeds, annotated)
        queries, results = Pairs(owners, torch.arange(len(owners))), Pairs(found, first[found])
    rows, wrong, seen = [], (leads >= 0).nonzero()[:, 0], set()
    for query in wrong[leads[wrong].argsort(descending=True)].tolist():
        photos = {int(queries.image_ids[query]), int(results.image_ids[query])}
        if photos & seen or len(rows) == MISTAKES:
            continue  # a photo that draws many queries would fill the page
        seen |= photos
        image, text = int(queries.image_ids[query]), int(queries.text_ids[query])
        other, words = int(results.image_ids[query]), int(results.text_ids[query])
        right = library.is_match(*((image, words) if side == "i2t" else (other, text)))
        rows.append([
            library.cell(f"asked: {ASKING[side]}", "", image, text, None, ASKING[side]),
            library.cell("came first", f"+{float(leads[query]):.2f}", other, words, right,
                         RANKED[side])])
    share = true_share(side, split, wrong, found)
    return (f"<h2>Most confident mistakes, {SIDES[side]}</h2><p>For {len(wrong):,} of "
            f"{len(leads):,} the first result is not annotated{share}. These are furthest above "
            f"the best annotated one, each photo shown once. {legend(side, split)}</p>"
            '<div class="rows">' + "\n".join(map(row_html, rows)) + "</div>")


def true_share(side: str, split: Split, wrong: Tensor, found: Tensor) -> str:
    """How many of the mistakes are none, where all true matches are known."""
    if split.matches is None:
        return ""
    matches = torch.from_numpy(split.matches)
    matches = matches.T if side == "i2t" else matches  # (N_q, N_g)
    return f", yet a true match for {int(matches[wrong, found[wrong]].sum()):,} of them"


def calibrations(
    embeddings: Embeddings, criterion: FNELoss | None, evidence: FittedEvidence | None,
    metrics: dict,
) -> str:
    """Whether P(false negative) is what it says, by true matches and by people's judgements."""
    parts = []
    matches = embeddings.split.matches
    if criterion is not None and matches is not None:
        owners = embeddings.split.image_of_text
        other = torch.from_numpy(owners[:, None] != range(len(embeddings.split.images)))
        similarity = (embeddings.text_embeds @ embeddings.image_embeds.T).double()  # (N_t, N_i)
        # Below the cut-down nobody asks the posterior, and if N+ is wide it rises there again.
        asked = other & (similarity > cut_down_bound(criterion.positive, criterion.margin))
        true = matches[asked.numpy()].astype(float)
        found = {"By": fitted_posterior(similarity[asked], embeddings)}
        if evidence is not None:
            texts = embeddings.text_embeds @ evidence.mean_text_embeds.T  # (N_t, N_i)
            found["The posterior by evidence, by"] = posterior_by_evidence(
                evidence, similarity[asked], texts[asked].double())
        parts += [calibration_html(f"{title} the known true matches", "All pairs above the "
                                   "cut-down", calibration(true, posterior.numpy()),
                                   "share of true matches") for title, posterior in found.items()]
    if "calibration" in metrics.get("judgements", {}):
        rows = metrics["judgements"]["calibration"]
        parts.append(calibration_html("By people's judgements", "All judged pairs", rows,
                                      "called a match by most"))
    if "evidence_calibration" in metrics.get("judgements", {}):
        rows = metrics["judgements"]["evidence_calibration"]
        parts.append(calibration_html("The posterior by evidence, by people's judgements",
                                      "All judged pairs", rows, "called a match by most"))
    if not parts:
        return ""
    return "<h2>Is the posterior what it says?</h2>" + "\n".join(parts)


def calibration_html(title: str, pairs: str, rows: list[dict], who: str) -> str:
    cells = [[f"{row['low']:g} to {row['high']:g}", f"{row['pairs']:,}",
              f"{row['mean_posterior']:.4f}", f"{100 * row['match_share']:.1f} %"] for row in rows]
    return (f"<h3>{title}</h3><p>{pairs} that are not annotated as matches.</p>"
            + html_table(["posterior", "pairs", "its mean", who], cells)
            + svg(calibration_figure(rows, who), "calibration of the posterior"))


# ------------------------------------------------------------------------------------------- pieces


def legend(side: str, split: Split) -> str:
    """What a green frame and faint things mean here."""
    match = ("A green frame and ✓ mark a true match." if split.matches is not None else
             "A green frame and ✓ mark an annotated match; others may be true, too.")
    faint = ("a photo is compared with captions; the faint photo of a candidate only shows what "
             "its caption was written for" if RANKED[side] == CAPTION else
             "a caption is compared with photos; the faint caption of a candidate is one that was "
             "written for its photo")
    return f"{match} Here {faint}."


def html_table(header: list[str], rows: list[list[str]], kind: str = "") -> str:
    """An html table of plain texts; `kind` "loose" lets their cells wrap on a narrow screen."""
    def line(tag, cells):
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return (f'<div class="wide"><table class="{kind}">' + line("th", header)
            + "".join(line("td", row) for row in rows) + "</table></div>")


def row_html(cells: list[Cell]) -> str:
    return '<div class="row">' + "".join(map(cell_html, cells)) + "</div>"


def cell_html(cell: Cell) -> str:
    """A cell as html; everything that is text in it is escaped, and what is not compared faint."""
    right = ' class="right"' if cell.right else ""
    heading = f"<b>{escape(cell.heading)}{'&nbsp;✓' if cell.right else ''}</b>"
    image_class = ' class="faint"' if cell.compared == CAPTION else ""
    text_class = ' class="faint"' if cell.compared == PHOTO else ""
    image = "" if cell.photo is None else (
        f'<img alt=""{image_class} src="{data_uri(cell.photo)}">')
    return (f'<figure{right}><div class="heading">{heading}<span class="soft">'
            f"{escape(cell.numbers)}</span></div>{image}"
            f"<figcaption{text_class}>{escape(cell.caption)}</figcaption></figure>")
