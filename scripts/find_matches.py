r"""Find the likeliest unannotated matches of a data set, for people to look
through:

    python -m scripts.find_matches test --dataset flickr8k \
        --data_path $DATA_PATH/flickr8k/images \
        --teacher sentence-transformers/all-MiniLM-L6-v2 --out matches.json

A teacher tells from captions alone how likely a photo is described by a caption
of another photo. The json lists such pairs, the likeliest first, and a page of
the same name shows them. Where somebody counts answers into "yes" and "no" of
its records, `evaluation.py --judgements` reads it.
"""

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

import datetime
import json
from pathlib import Path
from typing import NamedTuple

from common.options import FindingOptions, check_paths, parse_finding

if __name__ == "__main__":
    parse_finding(__doc__)  # --help need not wait for the imports below

import torch
from torch import Tensor

from common import files
from common.device import pick_device
from common.errors import InputError, exit_on_input_error
from common.flags import check_values
from common.presets import PRIOR_OF_EVIDENCE
from common.terminal import print_result, progress
from common.version import commit
from data import Split, check_place
from figures.galleries import probability
from figures.pages import data_uri, html_text, is_page, page
from inputs.sources import read_split
from metrics.judgements import Judgements, read_judgements
from teacher.captions import FILE_SUFFIX, CaptionTeacher
from teacher.posterior import TeacherPosterior

PHOTOS, CAPTIONS = 1024, 16384  # photos and captions that are compared at a time
USUAL_TOP = 1000  # pairs that are found where neither --top nor --at_least is given
MOST_SHOWN = 2000  # pairs on a page; the json has all
FIRST = 100  # pairs that are compared with people's answers beside all
GENERATOR = "scripts.find_matches --out"  # stands in every page, and `is_page` knows it by this
# The keys of a record, by which a file is known that may be written anew.
KEYS = ["image", "caption_of", "caption_no", "caption", "posterior", "similarity", "yes", "no"]


class Found(NamedTuple):
    """J pairs of a photo and another photo's caption, the likeliest match first."""

    images: Tensor  # (J,) int64 indices in the split
    texts: Tensor  # (J,) int64 indices in the split
    similarity: Tensor  # (J,) mean similarity of the caption to the photo's own captions
    posterior: Tensor  # (J,) P(match)


# ------------------------------------------------------------------------------------ the likeliest


@torch.no_grad()
def find_matches(
    teacher: TeacherPosterior, image_of_text: Tensor, per_photo: int, top: int | None,
    at_least: float | None,
) -> Found:
    """Find the unannotated pairs of a split with the highest P(match).

    Photos and captions are compared in blocks. Since P(match) never falls as the similarity r
    grows, pairs are ranked by r, which tells pairs apart whose P(match) is rounded to 1.

    Args:
        teacher: fitted to the split.
        image_of_text: (N_t,) int64, photo of each caption, on the teacher's device.
        per_photo: the most pairs of a photo.
        top: the most pairs; None for no limit.
        at_least: the least P(match) of a pair; None for no limit.
    """
    described = torch.bincount(image_of_text, minlength=len(teacher.photo_embeds)) > 0  # (N_i,)
    images = described.nonzero()[:, 0]
    kept = [torch.empty(0, device=images.device, dtype=dtype)
            for dtype in (torch.float32, torch.int64, torch.int64)]  # r, photo, caption
    for rows in progress(images.split(PHOTOS), "comparing captions"):
        r, texts = most_similar(teacher, image_of_text, rows, per_photo)  # (b, k), (b, k)
        found = r.flatten(), rows[:, None].expand_as(texts).flatten(), texts.flatten()
        is_pair = found[0].isfinite()  # false in place of the captions that a small split lacks
        if at_least is not None:
            is_pair &= teacher.from_similarity(found[0].double()) >= at_least
        kept = [torch.cat([old, new[is_pair]]) for old, new in zip(kept, found)]
        if top is not None:
            best = kept[0].topk(min(top, len(kept[0]))).indices
            kept = [values[best] for values in kept]
    order = kept[0].argsort(descending=True, stable=True)
    r, photos, texts = (values[order].cpu() for values in kept)
    posterior = teacher.cpu().from_similarity(r.double())
    return Found(photos, texts, r, posterior)


def most_similar(
    teacher: TeacherPosterior, image_of_text: Tensor, images: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Find the captions of other photos that are the most similar to the captions of photos.

    Args:
        teacher: fitted to the split.
        image_of_text: (N_t,) int64.
        images: (b,) int64 photos.
        count: captions for each photo.

    Returns:
        (b, count) similarities r, the highest first, and (b, count) captions; -inf where a split
        has too few.
    """
    photo_embeds = teacher.photo_embeds[images].float()  # (b, W)
    best = torch.full((len(images), count), -torch.inf, device=images.device)
    best_texts = torch.zeros_like(best, dtype=torch.int64)
    for start in range(0, len(image_of_text), CAPTIONS):
        block = slice(start, start + CAPTIONS)
        r = photo_embeds @ teacher.caption_embeds[block].float().T  # (b, c)
        r.masked_fill_(images[:, None] == image_of_text[block], -torch.inf)
        r, texts = r.topk(min(count, r.shape[1]), dim=1)
        best, places = torch.cat([best, r], dim=1).topk(count, dim=1)
        best_texts = torch.cat([best_texts, texts + start], dim=1).gather(1, places)
    return best, best_texts


# ---------------------------------------------------------------------------------- what is written


def as_records(split: Split, found: Found) -> list[dict]:
    """Return pairs as records, with the keys that `metrics.judgements` reads and no answers yet."""
    number, seen = [], [0] * len(split.images)  # of each caption among those of its photo
    for image in split.image_of_text.tolist():
        number.append(seen[image])
        seen[image] += 1
    return [dict(zip(KEYS, (
        split.images[image], split.images[split.image_of_text[text]], number[text],
        split.captions[text], round(p, 6), round(r, 6), 0, 0), strict=True))
        for image, text, r, p in zip(*(values.tolist() for values in found))]


def as_json(records: list[dict]) -> bytes:
    """Return records as json, one a line; what is no Unicode is escaped, as a file's name may be.
    """
    lines = []
    for record in records:
        line = json.dumps(record, ensure_ascii=False)
        lines.append(line if files.is_unicode(line) else json.dumps(record))
    return "[\n{}\n]\n".format(",\n".join(lines)).encode()


def is_unanswered(path: Path) -> bool:
    """Return whether a file is a json of this command without a single answer, so that nothing is
    lost where it is written anew."""
    try:
        content = files.read_json(path)
    except InputError:
        return False
    return isinstance(content, list) and all(
        isinstance(record, dict) and list(record) == KEYS and record["yes"] == record["no"] == 0
        for record in content)


def as_page(split: Split, found: Found, facts: dict[str, str]) -> str:
    """Return the first pairs as a page: each photo with its own captions and those found for it.

    Photos stand in the order of their likeliest pair.

    Args:
        split: the photos and captions.
        found: the pairs.
        facts: names and values of the list at the top.
    """
    shown = [values[:MOST_SHOWN].tolist() for values in found]
    pairs_of_photo: dict[int, list[tuple[int, float]]] = {}
    for image, text, _, p in zip(*shown):
        pairs_of_photo.setdefault(image, []).append((text, p))
    own_texts: dict[int, list[int]] = {image: [] for image in pairs_of_photo}
    for text, image in enumerate(split.image_of_text.tolist()):
        if image in own_texts:
            own_texts[image].append(text)
    explanation = ("<p>Each photo stands beside its own captions and, below them, captions of "
                   "other photos that may describe it as well, with P(match) as a teacher tells it "
                   "from captions alone. It has not seen the photos.</p>")
    sections = [photo_html(split, image, own_texts[image], pairs)
                for image, pairs in progress(pairs_of_photo.items(), "making the page")]
    return page(GENERATOR, "Likely matches that are not annotated", facts,
                "\n".join([explanation, *sections]), "matches.css")


def photo_html(
    split: Split, image: int, own_texts: list[int], pairs: list[tuple[int, float]]
) -> str:
    """Return a photo with its own captions and the captions found for it, as html.

    Args:
        split: the photos and captions.
        image: the photo.
        own_texts: its captions.
        pairs: the captions found, each with its P(match).
    """
    photo = None if split.photos.missing(image) else split.photos[image]
    name = html_text(split.images[image])
    own = "".join(f"<li>{html_text(split.captions[text])}</li>" for text in own_texts)
    rows = "".join(
        f"<tr><td>{probability(p)}</td><td>{html_text(split.captions[text])}</td>"
        f"<td>written for {html_text(split.images[split.image_of_text[text]])}</td></tr>"
        for text, p in pairs)
    return (f'<div class="found"><div><img alt="{name}" loading="lazy" src="{data_uri(photo)}">'
            f'<div class="soft heading">{name}</div></div><div><ul>{own}</ul>'
            f"<table>{rows}</table></div></div>")


def answer_line(found: Found, judgements: Judgements, count: int) -> str:
    """Return how many of the first `count` pairs people have judged, and call a match."""
    answers = dict(zip(zip(judgements.images.tolist(), judgements.texts.tolist()),
                       judgements.yes_share.tolist()))
    first = zip(found.images[:count].tolist(), found.texts[:count].tolist())
    shares = [answers[pair] for pair in first if pair in answers]
    line = f"of the {count:,} likeliest pairs, people have judged {len(shares):,}"
    if not shares:
        return line
    matches = sum(share > 0.5 for share in shares)
    return (f"{line}, and most of them call {matches:,} a match ({100 * matches / len(shares):.1f} "
            f"%); mean share of yes {sum(shares) / len(shares):.3f}")


# ------------------------------------------------------------------------------------- the command


def output_places(options: FindingOptions) -> tuple[Path, Path]:
    """Return where the json and the page are written, and create their folder.

    Raises:
        InputError: no json is named, or something else is there, such as one with answers.
    """
    if options.out is None or options.out.suffix != ".json":
        raise InputError(f"--out {options.out}: name the file of the pairs, which ends in .json; a "
                         "page of the same name is written beside it")
    inputs = [] if options.judgements is None else [options.judgements]
    if options.teacher.endswith(FILE_SUFFIX):
        inputs.append(Path(options.teacher))
    place = files.resolve_output(options.out, "--out", is_unanswered, inputs)
    return place, files.resolve_output(options.out.with_suffix(".html"), "--out",
                                       lambda path: is_page(path, GENERATOR), inputs)


def main(argv: list[str] | None = None) -> None:
    """Run the command with the arguments `argv`, or with those of the process."""
    options = parse_finding(__doc__, argv)
    with exit_on_input_error():
        check_values(options)
        check_paths(options)
        if options.teacher is None:
            raise InputError("--teacher: name who tells P(match): a sentence encoder, captions, or "
                             "a file of embeddings")
        if options.data_path is None:
            raise InputError("--data_path: name the folder of the photos, or their shards")
        place, page_place = output_places(options)
        check_place(options, options.split)
        split = read_split(options, options.split)
        judgements = None
        if options.judgements is not None:
            judgements = read_judgements(options.judgements, split)
        device = pick_device("auto")
        teacher = CaptionTeacher(
            options.teacher, lambda: read_split(options, "train").captions, device)
        posterior = TeacherPosterior.of_split(
            teacher.embed(split.captions), split, PRIOR_OF_EVIDENCE)
        image_of_text = torch.from_numpy(split.image_of_text)
        top = options.top
        if top is None and options.at_least is None:
            top = USUAL_TOP
        found = find_matches(posterior.to(device), image_of_text.to(device), options.per_photo, top,
                             options.at_least)
        count = len(found.images)
        facts = {"split": f"{options.split} of {options.dataset}: {len(split.images):,} photos, "
                          f"{len(split.captions):,} captions",
                 "teacher": options.teacher,
                 "found": f"{count:,} pairs, at most {options.per_photo} of a photo; the first "
                          f"{min(count, MOST_SHOWN):,} are shown",
                 "made": f"{datetime.date.today().isoformat()}, code at commit {commit()}"}
        files.write(place, as_json(as_records(split, found)), "--out")
        files.write(page_place, as_page(split, found, facts).encode(), "--out")
        ends = f", P(match) {found.posterior[0]:.3f} to {found.posterior[-1]:.3f}" if count else ""
        print_result(f"{count:,} pairs of {len(found.images.unique()):,} photos{ends}")
        if judgements is not None:
            for first in sorted({min(FIRST, count), count}):
                print_result(answer_line(found, judgements, first))
        print_result(f"{options.out} and {options.out.with_suffix('.html')}")


if __name__ == "__main__":
    main()
