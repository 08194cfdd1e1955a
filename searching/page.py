"""The results of a search as one html page, which holds small JPEGs of the photos, and links."""

import datetime
import os
from html import escape
from pathlib import Path

from common import files
from common.errors import InputError
from common.version import commit
from figures.pages import data_uri, html_text, is_page, page
from searching.results import Answer, Result, probability_text

GENERATOR = "search.py --html"  # stands in every page, and `is_page` recognises it by this
MOST_RESULTS = 5_000  # on a page


def page_place(path: Path, inputs: list[Path]) -> Path:
    """Return where the page of `--html` is written, and make its folder.

    Args:
        path: the value of `--html`.
        inputs: files that the command reads, which the page must not replace.

    Raises:
        InputError: a file that is no such page is there already, or the folder cannot be made.
    """
    return files.resolve_output(path, "--html", lambda place: is_page(place, GENERATOR), inputs)


def write_page(place: Path, answers: list[Answer], facts: dict[str, str]) -> None:
    """Write the results of a search as a page.

    Args:
        place: the file, as `page_place` returns it.
        answers: the queries with their results.
        facts: names and values of the list at the top of the page.

    Raises:
        InputError: there are too many results for a page, or the file cannot be written.
    """
    results = sum(len(answer.results) for answer in answers)
    if results > MOST_RESULTS:
        raise InputError(f"--html: {results:,} results are more than a page should hold, "
                         f"{MOST_RESULTS:,}: make --top smaller, or ask less at once")
    facts = facts | {"made": f"{datetime.date.today().isoformat()}, code at commit {commit()}"}
    several = len(answers) > 1
    title = f"{len(answers):,} searches" if several else answers[0].query.title()
    sections = "\n".join(answer_html(answer, with_title=several) for answer in answers)
    content = page(GENERATOR, title, facts, sections, "search.css")
    files.write(place, content.encode(), "--html")


def answer_html(answer: Answer, with_title: bool) -> str:
    """Return a query and its results as html: photos in a grid, captions in a table."""
    sections = []
    if with_title:
        sections.append(f"<h2>{html_text(answer.query.title())}</h2>")
    if answer.query.photos:
        figures = "".join(f'<figure class="asked"><div class="heading"><b>like this</b></div>'
                          f"{linked_thumbnail(photo)}</figure>" for photo in answer.query.photos)
        sections.append(f'<div class="row">{figures}</div>')
    ranked = enumerate(answer.results, 1)
    if answer.results and answer.results[0].caption is None:
        figures = "".join(photo_html(rank, result) for rank, result in ranked)
        sections.append(f'<div class="row results">{figures}</div>')
    else:
        rows = "".join(caption_html(rank, result) for rank, result in ranked)
        sections.append(f'<table class="captions">{rows}</table>')
    return "\n".join(sections)


def photo_html(rank: int, result: Result) -> str:
    """Return a photo with its rank, score and name as html; the photo is a link to its file."""
    return (f'<figure><div class="heading"><b>{rank}</b><span class="soft">{scores_html(result)}'
            f"</span></div>{linked_thumbnail(result.photo)}"
            f"<figcaption>{html_text(result.photo.name)}</figcaption></figure>")


def caption_html(rank: int, result: Result) -> str:
    """Return a caption with its rank and score as a row of an html table."""
    return (f"<tr><td>{rank}</td><td>{scores_html(result)}</td><td>{html_text(result.caption)}</td>"
            "</tr>")


def linked_thumbnail(photo: Path) -> str:
    """Return a photo's thumbnail as html, as a link to the photo's file."""
    address = Path(os.path.abspath(photo)).as_uri()
    return (f'<a href="{escape(address)}"><img alt="{html_text(photo.name)}" loading="lazy" '
            f'src="{data_uri(photo)}"></a>')


def scores_html(result: Result) -> str:
    """Return the cosine of a result as html, and its posterior where it has one."""
    posterior = ""
    if result.posterior is not None:
        posterior = f"&ensp;P&nbsp;{probability_text(result.posterior)}"
    return f"s&nbsp;{result.score:.3f}{posterior}"
