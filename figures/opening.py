"""Draw the picture that opens the README: what the usual loss repels, what FNE
draws instead, and which likely matches it spares:

    python evaluation.py runs/shapes_FNE/model_best.pth.tar \\
        --save_embeddings embeddings.npz
    python -m figures.opening embeddings.npz --data_path data/shapes \\
        --output docs/opening.jpg

Each row is a caption of the split whose hardest negative is a true match. All
photos of the split are candidates. The rows are the first such captions in a
random order that is always the same.
"""

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

import argparse
from pathlib import Path
from typing import NamedTuple

from common.errors import InputError, exit_on_input_error
from figures.flags import build_opening_parser

if __name__ == "__main__":
    build_opening_parser(__doc__).parse_args()  # --help need not wait for the imports below

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from common import files
from common.terminal import print_result
from data import Split, read_split
from figures.galleries import probability
from figures.pages import jpeg_bytes, thumbnail
from figures.picks import best_distinct, fixed_choice, suspicion
from figures.report import fitted_criterion
from figures.sheets import FAINT, INK, MATCH, RULE, load_font, wrap_text
from fne_loss import (
    FNELoss,
    cosine,
    cut_down_bound,
    excluded_candidates,
    false_negative_posterior,
    sample_negatives,
    sampling_weights,
)
from inputs.photos import find_photos
from metrics.embeddings import Embeddings, read_embeddings

MOST_ROWS = 20
SIGNATURE = b"made by figures.opening"  # in the pictures that are written here
SPARED = 2  # likely matches shown in a row
# In pixels. The picture is twice as wide as the README shows it, so that it is sharp on any screen.
WIDTH, MARGIN, COLUMN_GAP = 1600, 20, 22
CAPTION_WIDTH, PHOTO_SIZE, LINE_HEIGHT = 300, 222, 32
HEADER_HEIGHT, ROW_HEIGHT, FRAME = 108, 360, 6
TEXT_SIZE, CAPTION_LETTERS, CAPTION_LINES = 24, 20, 6
HEADERS = [  # title and explanation of each column
    ("a caption", ""),
    ("its own photo", "the anchor's positive"),
    ("hardest negative", "the usual loss repels it"),
    ("FNE's draw", "FNE repels this one"),
    ("spared by FNE", "likely matches, drawn less"),
]


class Candidate(NamedTuple):
    """A photo that is shown beside a caption.

    Attributes:
        image: the photo's index in the split.
        posterior: P(false negative) of photo and caption.
        chance: the probability that FNE draws the photo.
        is_match: whether the caption is true of the photo.
    """

    image: int
    posterior: float
    chance: float
    is_match: bool


class Row(NamedTuple):
    """What is shown of one caption: the draw is between the hardest negative and the spared ones.
    """

    text: int  # the caption's index in the split
    hardest: Candidate
    drawn: Candidate
    spared: list[Candidate]


class Draws(NamedTuple):
    """What FNE knows of all captions as anchors and all photos of a split as candidates.

    Attributes:
        similarity: (N_t, N_i) cosines.
        excluded: (N_t, N_i) bool, true for a caption's own photo.
        posterior: (N_t, N_i) P(false negative).
        chance: (N_t, N_i) probability to be drawn; 0 in a row without any weight.
        drawn: (N_t,) one draw for each caption.
    """

    similarity: Tensor
    excluded: Tensor
    posterior: Tensor
    chance: Tensor
    drawn: Tensor


# ----------------------------------------------------------------------------------- what is shown


@torch.no_grad()
def draw_for_captions(embeddings: Embeddings, criterion: FNELoss) -> Draws:
    """Return what FNE would draw for every caption if all photos of the split were its candidates.

    Args:
        embeddings: of the split.
        criterion: the loss with its fitted statistics.
    """
    image_of_text = torch.from_numpy(embeddings.split.image_of_text)  # (N_t,)
    images = torch.arange(len(embeddings.split.images))
    similarity = cosine(embeddings.text_embeds, embeddings.image_embeds)  # (N_t, N_i)
    own_similarity = similarity.gather(1, image_of_text[:, None])[:, 0]  # (N_t,)
    excluded = excluded_candidates(image_of_text, images)  # (N_t, N_i)
    weights = sampling_weights(
        similarity, own_similarity, excluded, criterion.positive, criterion.negative,
        margin=criterion.margin, tau=criterion.tau, prior=criterion.prior,
        posterior_floor=criterion.posterior_floor, min_count=criterion.min_count)  # (N_t, N_i)
    posterior = false_negative_posterior(similarity, criterion.positive, criterion.negative,
                                         criterion.prior)  # (N_t, N_i)
    hardest = similarity.masked_fill(excluded, -torch.inf).argmax(dim=1)  # (N_t,)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = sample_negatives(weights, hardest)  # (N_t,)
    chance = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)
    return Draws(similarity, excluded, posterior, chance, drawn)


def choose_rows(draws: Draws, matches: Tensor, criterion: FNELoss, count: int) -> list[Row]:
    """Return the first `count` captions whose hardest negative is a true match.

    A caption counts only if FNE takes its hardest negative and `SPARED` other candidates for likely
    false negatives. No photo is hardest in two rows.

    Args:
        draws: of the split.
        matches: (N_t, N_i) bool, all true matches.
        criterion: the loss with its fitted statistics.
        count: rows.
    """
    images = torch.arange(matches.shape[1])
    bound = cut_down_bound(criterion.positive, criterion.margin)
    likely = (~draws.excluded & (draws.posterior > suspicion(criterion))
              & (draws.similarity > bound))  # (N_t, N_i)
    rows, shown = [], set()
    for text in fixed_choice(len(matches), len(matches)):
        allowed = draws.similarity[text].masked_fill(draws.excluded[text], -torch.inf)
        hardest, drawn = int(allowed.argmax()), int(draws.drawn[text])
        if not (matches[text, hardest] and likely[text, hardest]) or hardest in shown:
            continue
        others = likely[text] & (images != hardest) & (images != drawn)
        spared = best_distinct(draws.posterior[text], others, images, SPARED)
        if len(spared) < SPARED or drawn == hardest:
            continue
        shown.add(hardest)
        candidates = [Candidate(image, float(draws.posterior[text, image]),
                                float(draws.chance[text, image]), bool(matches[text, image]))
                      for image in (hardest, drawn, *spared)]
        rows.append(Row(text, candidates[0], candidates[1], candidates[2:]))
        if len(rows) == count:
            break
    return rows


def true_match_shares(draws: Draws, matches: Tensor) -> tuple[float, float]:
    """Return how often the hardest negative, and how often FNE's draw, is a true match.

    Args:
        draws: of the split.
        matches: (N_t, N_i) bool, all true matches.

    Returns:
        The two shares of captions; that of the draw is the expectation over all draws.
    """
    allowed = draws.similarity.masked_fill(draws.excluded, -torch.inf)
    hardest = allowed.argmax(dim=1, keepdim=True)  # (N_t, 1)
    of_hardest = matches.gather(1, hardest).double().mean()
    of_drawn = (draws.chance * matches).double().sum(dim=1).mean()
    return float(of_hardest), float(of_drawn)


# ------------------------------------------------------------------------------------- the picture


def draw_opening(rows: list[Row], split: Split, photos: list[Path]) -> Image.Image:
    """Draw the rows as one picture, 1,600 pixels wide.

    Args:
        rows: what is shown.
        split: of the captions.
        photos: the N_i photo files.
    """
    picture = Image.new("RGB", (WIDTH, HEADER_HEIGHT + len(rows) * ROW_HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    lefts = [MARGIN] + [MARGIN + CAPTION_WIDTH + column * (PHOTO_SIZE + COLUMN_GAP + 12)
                        for column in range(5)]
    bold, plain = load_font("DejaVuSans-Bold", TEXT_SIZE), load_font("DejaVuSans", 20)
    for left, (title, explanation) in zip(lefts, HEADERS):
        draw.text((left, 22), title, INK, bold)
        draw.text((left, 22 + LINE_HEIGHT), explanation, FAINT, plain)
    for number, row in enumerate(rows):
        top = HEADER_HEIGHT + number * ROW_HEIGHT
        draw.line((MARGIN, top - 12, WIDTH - MARGIN, top - 12), RULE, 2)
        caption = f"“{split.captions[row.text]}”"
        for line, text in enumerate(wrap_text(caption, CAPTION_LETTERS, CAPTION_LINES)):
            draw.text((lefts[0], top + 60 + line * LINE_HEIGHT), text, INK,
                      load_font("DejaVuSans", TEXT_SIZE))
        own_photo = photos[int(split.image_of_text[row.text])]
        picture.paste(square_thumbnail(own_photo), (lefts[1], top + FRAME))
        for left, candidate in zip(lefts[2:], (row.hardest, row.drawn, *row.spared)):
            draw_candidate(picture, draw, candidate, photos[candidate.image], left, top)
    return picture


def draw_candidate(
    picture: Image.Image, draw: ImageDraw.ImageDraw, candidate: Candidate, photo: Path, left: int,
    top: int,
) -> None:
    """Draw a candidate onto `picture`, its upper left corner at (left, top).

    A true match has a green frame and a tick. Below the photo stand P(false negative) and the
    chance to be drawn.
    """
    picture.paste(square_thumbnail(photo), (left, top + FRAME))
    verdict, ink = ("✓ true match", MATCH) if candidate.is_match else ("✗ no match", INK)
    if candidate.is_match:
        corners = (left - FRAME, top, left + PHOTO_SIZE + FRAME - 1,
                   top + PHOTO_SIZE + 2 * FRAME - 1)
        draw.rectangle(corners, outline=MATCH, width=FRAME)
    lines = [(verdict, ink, load_font("DejaVuSans-Bold", 22)),
             (f"P(match) {probability(candidate.posterior)}", INK, load_font("DejaVuSans", 22)),
             (chance_text(candidate.chance), INK, load_font("DejaVuSans", 22))]
    for number, (text, colour, font) in enumerate(lines):
        y = top + PHOTO_SIZE + 2 * FRAME + 8 + number * (LINE_HEIGHT - 3)
        draw.text((left, y), text, colour, font)


def square_thumbnail(photo: Path) -> Image.Image:
    """Return a photo as a square of `PHOTO_SIZE` pixels, with white beside a photo that is none."""
    square = Image.new("RGB", (PHOTO_SIZE, PHOTO_SIZE), "white")
    scaled = thumbnail(photo, PHOTO_SIZE)
    square.paste(scaled, ((PHOTO_SIZE - scaled.width) // 2, (PHOTO_SIZE - scaled.height) // 2))
    return square


def chance_text(chance: float) -> str:
    """Return the chance of a candidate to be drawn, as in "drawn 1 in 170"."""
    return f"drawn 1 in {1 / chance:,.0f}" if chance > 0 else "never drawn"


# ----------------------------------------------------------------------------------------- command


def is_opening(path: Path) -> bool:
    """Return whether a file is a JPEG that this command wrote."""
    return SIGNATURE in files.read_start(path)


def make_opening(arguments: argparse.Namespace) -> str:
    """Write the picture, and return a line that tells how often a negative is a true match.

    Args:
        arguments: of the command line.

    Raises:
        InputError: the embeddings carry no statistics, the true matches of their split are not
            known, or the picture cannot be written.
    """
    if not 1 <= arguments.rows <= MOST_ROWS:
        raise InputError(f"--rows {arguments.rows}: must be at least 1, and at most {MOST_ROWS}")
    place = files.resolve_output(arguments.output, "--output", is_opening, [arguments.embeddings])
    embeddings = read_embeddings(arguments.embeddings).in_full_precision()
    criterion = fitted_criterion(embeddings)
    if criterion is None or not {"dataset", "split"} <= embeddings.facts.keys():
        raise InputError(f"{arguments.embeddings} has no statistics of FNE: save the embeddings of "
                         "a run of --loss fne with evaluation.py --save_embeddings")
    split = read_split(embeddings.facts["dataset"], embeddings.facts["split"], arguments.data_path)
    if split.matches is None or list(split.captions) != list(embeddings.split.captions):
        raise InputError(f"--data_path {arguments.data_path}: the true matches of the split that "
                         "was embedded are not there: name the data set's folder")
    draws, matches = draw_for_captions(embeddings, criterion), torch.from_numpy(split.matches)
    rows = choose_rows(draws, matches, criterion, arguments.rows)
    if len(rows) < arguments.rows:
        raise InputError(f"--rows {arguments.rows}: only {len(rows)} captions have a true match as "
                         "their hardest negative that FNE suspects")
    photos = find_photos(split.images, split.source, arguments.data_path, False)
    picture = draw_opening(rows, split, photos)
    files.write(place, jpeg_bytes(picture, quality=65, comment=SIGNATURE), "--output")
    of_hardest, of_drawn = true_match_shares(draws, matches)
    return (f"{arguments.output}: the hardest negative is a true match for {of_hardest:.0%} of "
            f"{len(matches):,} captions, FNE's draw for {of_drawn:.0%}")


def main(argv: list[str] | None = None) -> None:
    """Run the command with the arguments `argv`, or with those of the process."""
    arguments = build_opening_parser(__doc__).parse_args(argv)
    with exit_on_input_error():
        print_result(make_opening(arguments))


if __name__ == "__main__":
    main()
