r"""Search a folder's photos by a sentence or a photo (docs/search.md):

    python search.py models/flickr_FNE --photos photos "two dogs play in snow"
    python search.py models/flickr_FNE --photos photos --like a.jpg --json
    python search.py models/flickr_FNE --captions captions.txt a.jpg

Photos are encoded once, and kept in an index: the next search encodes only what
is new or has changed.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from common import terminal
from common.errors import InputError, exit_on_import_error, exit_on_input_error
from searching.flags import LARGEST_TOP, parse_search

if __name__ == "__main__":
    exit_on_import_error()
    parse_search(__doc__)  # --help, or a slip in a flag, need not wait for the imports below

from torch import Tensor

import checkpoint
from common.device import place_on_device
from common.files import check_path
from common.options import RANGES
from common.processes import require_one_process
from common.terminal import print_note, print_result
from export import read_model
from inputs.records import Columns
from model import DualEncoder
from searching import clusters
from searching.encoding import encode_files
from searching.exact import Best, best_rows
from searching.index import Marks, index_place, whole_index
from searching.models import fingerprint, model_place
from searching.page import page_place, write_page
from searching.queries import STDIN, Query, embed_queries, embed_texts, read_captions, read_queries
from searching.results import answers, as_json, as_text, fitted_posterior
from searching.scan import scan
from searching.update import up_to_date


class Searched(NamedTuple):
    """What a query is compared with."""

    names: Sequence[str]  # (N,) paths in `folder`, or captions
    embeds: Tensor  # (N, D)
    folder: Path | None
    facts: dict[str, str]  # of it, for programs
    best: Callable[[Tensor], list[Best]]  # of queries (Q, D)


def check(arguments: argparse.Namespace, queries: list[Query]) -> None:
    """Raise InputError where flags do not go together, or a value cannot work."""
    by_photo = arguments.captions is not None
    for name, low, high in (("top", 1, LARGEST_TOP), ("workers", *RANGES["workers"]),
                            ("batch_size_test", *RANGES["batch_size_test"])):
        if not low <= getattr(arguments, name) <= high:
            raise InputError(f"--{name} {str(getattr(arguments, name))[:30]}: must be at least "
                             f"{low}, and at most {high:,}")
    for name in "index", "as_is", "faiss", "follow_links":
        if by_photo and getattr(arguments, name):
            raise InputError(f"--{name} is for --photos: leave it out")
    if arguments.posterior and any(query != single(query, by_photo) for query in queries):
        raise InputError("--posterior is of one sentence and one photo: its statistics say nothing "
                         "of two photos, nor of sums; leave the flag out, or --like")
    if arguments.faiss:
        clusters.check_faiss()
    if not by_photo and not arguments.photos.is_dir():
        raise InputError(f"--photos {arguments.photos} is no folder: name that of the photos")


def check_places(arguments: argparse.Namespace) -> None:
    """Raise InputError where it is not clear what to search, or a name is none."""
    if (arguments.photos is None) == (arguments.captions is None):
        raise InputError("name what to search: either --photos FOLDER or --captions FILE")
    if str(arguments.captions) == STDIN and STDIN in arguments.query:
        raise InputError("'-' stands for standard input, which can be read once: give it once")
    for name in "model", "photos", "captions", "index", "html":
        if getattr(arguments, name) is not None:
            check_path(getattr(arguments, name), name if name == "model" else f"--{name}")


def single(query: Query, by_photo: bool) -> Query:
    """What a query is of which there is a posterior: a photo for captions, a sentence for photos.
    """
    return Query(None, query.photos[:1]) if by_photo else Query(query.text)


def photos_of(
    arguments: argparse.Namespace, model: DualEncoder, queries: Tensor, page: Path | None
) -> Searched:
    """A folder's photos, from their index, which is brought up to date first."""
    folder = arguments.photos
    marks = Marks(fingerprint(model), folder)
    place = index_place(arguments.index, marks, [] if page is None else [page])
    if arguments.as_is:
        index = whole_index(place, marks, model.embed_size)
    else:
        index = up_to_date(place, marks, scan(folder, arguments.follow_links), model.embed_size,
                           lambda photos: encode_files(model, photos, arguments.workers,
                                                       arguments.batch_size_test))
    if not index.photos.names:
        raise InputError(f"--photos {folder}: none of its {len(index.broken.names):,} photos can "
                         "be read")
    if index.broken.names:
        print_note(f"passed over: {len(index.broken.names):,} photos that cannot be read, such as "
                   f"{folder / index.broken.names[0]}")
    best = best_rows
    if arguments.faiss:
        best = clusters.clusters_of(place, index, queries, arguments.top).best_rows
    return Searched(
        index.photos.names, index.embeds, folder, {"photos": str(folder), "index": str(place)},
        lambda queries: checked(best, queries, index.embeds, arguments.top, place))


def checked(best, queries: Tensor, embeds: Tensor, count: int, place: Path) -> list[Best]:
    """The best rows of an index; InputError where its embeddings are none."""
    try:
        return best(queries, embeds, count)
    except ValueError as error:
        raise InputError(f"--index {place} is damaged ({error}): delete it, and search again"
                         ) from error


def captions_of(arguments: argparse.Namespace, model: DualEncoder) -> Searched:
    """The captions of a file."""
    columns = Columns(arguments.image_column, arguments.caption_column)
    texts = read_captions(arguments.captions, columns)
    embeds = embed_texts(model, texts)
    return Searched(texts, embeds, None, {"captions": str(arguments.captions)},
                    lambda queries: best_rows(queries, embeds, arguments.top))


def search(arguments: argparse.Namespace) -> None:
    """Do what the command line asks, and print it."""
    check_places(arguments)
    by_photo = arguments.captions is not None
    queries = read_queries(arguments.query, arguments.like, by_photo)
    check(arguments, queries)
    place = None if arguments.html is None else page_place(
        arguments.html, [path for path in (arguments.model, arguments.captions) if path])
    model, options, state = read_model(model_place(arguments.model), arguments.image_encoder,
                                       arguments.text_encoder)
    place_on_device(model, arguments)
    facts, posterior = {}, None
    if arguments.posterior:
        posterior, facts["posterior"] = fitted_posterior(
            checkpoint.fitted_statistics(state), options, str(arguments.model))
        print_note(facts["posterior"])
    embeds = embed_queries(model, queries)
    searched = (captions_of(arguments, model) if by_photo
                else photos_of(arguments, model, embeds, place))
    begun = time.monotonic()
    best = searched.best(embeds)
    print_note(f"searched {len(searched.names):,} {'captions' if by_photo else 'photos'} in "
               f"{time.monotonic() - begun:.3f} s")
    found = answers(queries, best, posterior, searched.names, searched.folder)
    facts = {"model": str(arguments.model)} | searched.facts | facts
    if place is not None:
        what, where = next(iter(searched.facts.items()))
        told = {name: value for name, value in facts.items() if name != "index"}
        write_page(place, found, told | {what: f"{len(searched.names):,} in {where}"})
    print_result(as_json(found, facts) if arguments.json else as_text(found, arguments.posterior))


def main(argv: list[str] | None = None) -> None:
    arguments = parse_search(__doc__, argv)
    terminal.quiet = arguments.quiet
    with exit_on_input_error():
        require_one_process("search.py")
        search(arguments)


if __name__ == "__main__":
    main()
