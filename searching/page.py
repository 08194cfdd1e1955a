"""What was found as one html page: photos in it as small JPEGs, and links to their files."""

import datetime
import os
from html import escape
from pathlib import Path

from common import files
from common.errors import InputError
from common.version import commit
from figures.pages import data_uri, is_page, page, text
from searching.results import Answer, Hit, chance_text

MARK = "search.py --html"
MOST = 5_000  # results on a page


def page_place(path: Path, inputs: list[Path]) -> Path:
    """Where a page may be written; InputError where something else is there."""
    return files.resolve_output(path, "--html", lambda place: is_page(place, MARK), inputs)


def write_page(place: Path, found: list[Answer], facts: dict[str, str]) -> None:
    """Write the page.

    Raises:
        InputError: it would hold too many results, or cannot be written.
    """
    results = sum(len(answer.hits) for answer in found)
    if results > MOST:
        raise InputError(f"--html: {results:,} results are more than a page should hold, "
                         f"{MOST:,}: make --top smaller, or ask less at once")
    facts = facts | {"made": f"{datetime.date.today().isoformat()}, code at commit {commit()}"}
    title = found[0].query.title() if len(found) == 1 else f"{len(found):,} searches"
    sections = "\n".join(section(answer, len(found) > 1) for answer in found)
    files.write(place, page(MARK, title, facts, sections, "search.css").encode(), "--html")


def section(answer: Answer, titled: bool) -> str:
    """A query and its results."""
    parts = [f"<h2>{text(answer.query.title())}</h2>" if titled else ""]
    if answer.query.photos:
        asked = "".join(f'<figure class="asked"><div class="heading"><b>like this</b></div>'
                        f"{picture(photo)}</figure>" for photo in answer.query.photos)
        parts.append(f'<div class="row">{asked}</div>')
    if answer.hits and answer.hits[0].caption is None:
        cells = "".join(photo_cell(*item) for item in enumerate(answer.hits, 1))
        parts.append(f'<div class="row results">{cells}</div>')
    else:
        rows = "".join(f"<tr><td>{place}</td><td>{numbers(hit)}</td><td>{text(hit.caption)}</td>"
                       "</tr>" for place, hit in enumerate(answer.hits, 1))
        parts.append(f'<table class="captions">{rows}</table>')
    return "\n".join(filter(None, parts))


def photo_cell(place: int, hit: Hit) -> str:
    """A photo that was found, with its place, score and name; all of it leads to the file."""
    return (f'<figure><div class="heading"><b>{place}</b><span class="soft">{numbers(hit)}</span>'
            f"</div>{picture(hit.photo)}<figcaption>{text(hit.photo.name)}</figcaption></figure>")


def picture(photo: Path) -> str:
    """A thumbnail that is a link to the photo's file."""
    address = Path(os.path.abspath(photo)).as_uri()
    return (f'<a href="{escape(address)}"><img alt="{text(photo.name)}" loading="lazy" '
            f'src="{data_uri(photo)}"></a>')


def numbers(hit: Hit) -> str:
    chance = "" if hit.posterior is None else f"&ensp;P&nbsp;{chance_text(hit.posterior)}"
    return f"s&nbsp;{hit.score:.3f}{chance}"
