r"""Search a folder's photos by a sentence or a photo (docs/search.md):

    python search.py openai/clip-vit-base-patch32 --photos photos "a dog"
    python search.py --photos photos --like a.jpg --json
    python search.py models/flickr_FNE --photos photos --serve
    python search.py models/flickr_FNE --captions captions.txt a.jpg

Photos are encoded once, and kept in an index: the next search encodes only what
is new or has changed.
"""

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from common import terminal
from common.errors import InputError, exit_on_input_error
from searching.flags import LARGEST_TOP, SERVED_TOP, USUAL_TOP, parse_search

if __name__ == "__main__":
    parse_search(__doc__)  # --help, or a slip in a flag, need not wait for the imports below

import torch
from torch import Tensor

import checkpoint
from common.device import place_on_device
from common.files import check_path
from common.flags import flags_of
from common.options import EncodingOptions
from common.processes import require_one_process
from common.terminal import print_note, print_result
from export import read_model
from inputs.photos import link_check
from inputs.records import Columns
from model import DualEncoder
from searching import clusters
from searching.encoding import encode_files
from searching.exact import Best, best_rows
from searching.index import Origin, index_place, read_index_as_is
from searching.models import ModelName, fingerprint, last_model, remember_model
from searching.page import page_place, write_page
from searching.queries import STDIN, Query, embed_queries, embed_texts, read_captions, read_queries
from searching.results import (
    Answer,
    Posterior,
    as_json,
    as_text,
    fitted_posterior,
    make_answers,
)
from searching.scan import scan
from searching.server import PhotoSearch, serve, take_address
from searching.update import update_index


class Collection(NamedTuple):
    """The photos or captions that a query is compared with.

    Attributes:
        names: N paths inside `folder`, or captions.
        embeds: (N, D) unit rows.
        folder: the folder of the photos; None for captions.
        facts: names and values that tell where the collection comes from.
        search: returns the best rows of each query, for queries (Q, D).
    """

    names: Sequence[str]
    embeds: Tensor
    folder: Path | None
    facts: dict[str, str]
    search: Callable[[Tensor], list[Best]]


def check_flags(arguments: argparse.Namespace, queries: list[Query]) -> None:
    """Raise InputError where flags do not go together, or a value cannot work."""
    by_photo = arguments.captions is not None
    if not 1 <= arguments.top <= LARGEST_TOP:
        raise InputError(f"--top {str(arguments.top)[:30]}: must be at least 1 and at most "
                         f"{LARGEST_TOP:,}")
    for name in "workers", "batch_size_test":
        flags_of(EncodingOptions)[name].check(getattr(arguments, name))
    for name in "index", "as_is", "faiss", "follow_links", "serve":
        if by_photo and getattr(arguments, name) not in (None, False):
            raise InputError(f"--{name} is for --photos: leave it out")
    for name in "like", "html", "json", "faiss":
        if arguments.serve is not None and getattr(arguments, name):
            raise InputError(f"--{name} does nothing with --serve: leave it out")
    if arguments.serve is not None and arguments.query:
        raise InputError(f"query {arguments.query[0][:30]!r}: with --serve queries are asked on "
                         "its page; leave it out")
    if arguments.posterior and not all(has_posterior(query, by_photo) for query in queries):
        raise InputError("--posterior is of one sentence and one photo: its statistics say nothing "
                         "of two photos, nor of sums; leave the flag out, or --like")
    if arguments.faiss:
        clusters.check_faiss()
    if not by_photo and not os.path.isdir(arguments.photos):
        raise InputError(f"--photos {arguments.photos} is no folder: name that of the photos")


def has_posterior(query: Query, by_photo: bool) -> bool:
    """Return whether FNE's posterior can be asked for the results of a query.

    It can where a sentence alone is compared with photos, or one photo alone with captions.
    """
    if by_photo:
        return query.text is None and len(query.photos) <= 1
    return not query.photos


def check_paths(arguments: argparse.Namespace) -> None:
    """Raise InputError where it is not clear what to search, or no file can have a given name."""
    if (arguments.photos is None) == (arguments.captions is None):
        raise InputError("name what to search: either --photos FOLDER or --captions FILE")
    if str(arguments.captions) == STDIN and STDIN in arguments.query:
        raise InputError("'-' stands for standard input, which can be read once: give it once")
    for name in "model", "photos", "captions", "index", "html":
        path = getattr(arguments, name)
        if path is not None:
            check_path(path, name if name == "model" else f"--{name}")


def open_photos(
    arguments: argparse.Namespace, model: DualEncoder, queries: Tensor, page: Path | None
) -> Collection:
    """Return the photos of a folder, from their index, which is brought up to date first.

    Args:
        arguments: of the command line.
        model: the dual encoder, in evaluation mode on its device.
        queries: (Q, D) unit rows, with which --faiss measures its recall.
        page: the file of --html, which is no place for the index.
    """
    folder = arguments.photos
    origin = Origin(fingerprint(model), folder)
    place = index_place(arguments.index, origin, [] if page is None else [page])
    if arguments.as_is:
        index = read_index_as_is(place, origin, model.embed_size)
        count = len(index.broken.names)
    else:
        found = scan(folder, arguments.follow_links)
        index = update_index(
            place, origin, found, model.embed_size,
            lambda photos: encode_files(model, photos, arguments.workers,
                                        arguments.batch_size_test))
        count = len(found)
    if not index.photos.names:
        raise InputError(f"--photos {folder}: none of its {count:,} photos can be read")
    if index.broken.names:
        print_note(f"passed over: {len(index.broken.names):,} photos that cannot be read, such as "
                   f"{folder / index.broken.names[0]}")
    if arguments.faiss:
        compare = clusters.open_clusters(place, index, queries, arguments.top).best_rows
    else:
        compare = best_rows

    facts = {"photos": str(folder), "index": str(place)}
    return Collection(index.photos.names, index.embeds, folder, facts,
                      lambda queries: compare(queries, index.embeds, arguments.top))


def open_captions(arguments: argparse.Namespace, model: DualEncoder) -> Collection:
    """Return the captions of a file, which are embedded here."""
    columns = Columns(arguments.image_column, arguments.caption_column)
    texts = read_captions(arguments.captions, columns)
    embeds = embed_texts(model, texts)
    return Collection(texts, embeds, None, {"captions": str(arguments.captions)},
                      lambda queries: best_rows(queries, embeds, arguments.top))


def model_name(arguments: argparse.Namespace) -> ModelName:
    """Return the model that the command line names, or else the one that searched --photos last.

    Raises:
        InputError: there is neither.
    """
    if arguments.model is not None:
        return ModelName(str(arguments.model), arguments.image_encoder, arguments.text_encoder)
    name = None if arguments.photos is None else last_model(arguments.photos)
    if name is None:
        first = arguments.query[0][:30] if arguments.query else None
        raise InputError("no model: " + (f"{first!r} is no file or folder, " if first else "")
                         + (f"and none has searched --photos {arguments.photos} before: "
                            if arguments.photos else "")
                         + "name one first, or with --model, such as openai/clip-vit-base-patch32")
    return ModelName(name.model, arguments.image_encoder or name.image_encoder,
                     arguments.text_encoder or name.text_encoder)


def open_model(
    arguments: argparse.Namespace, name: ModelName
) -> tuple[DualEncoder, Posterior | None, dict[str, str]]:
    """Return the model on its device, FNE's posterior, and a line on it for the results.

    Returns:
        The dual encoder in evaluation mode; the posterior with --posterior, or else None; and
        {"posterior": line} or {}.
    """
    model, options, state = read_model(Path(name.model), name.image_encoder, name.text_encoder)
    place_on_device(model, arguments)
    if not arguments.posterior:
        return model, None, {}
    posterior, basis = fitted_posterior(
        checkpoint.fitted_statistics(state, Path(name.model)), options, name.model)
    print_note(basis)
    return model, posterior, {"posterior": basis}


def search(arguments: argparse.Namespace) -> None:
    """Search as the command line says, and print the results, or serve the page of --serve."""
    check_paths(arguments)
    serves = arguments.serve is not None
    if arguments.top is None:
        arguments.top = SERVED_TOP if serves else USUAL_TOP
    queries = [] if serves else read_queries(arguments.query, arguments.like,
                                             arguments.captions is not None)
    check_flags(arguments, queries)
    name = model_name(arguments)
    if serves:
        serve_photos(arguments, name)
    else:
        print_answers(arguments, name, queries)


def serve_photos(arguments: argparse.Namespace, name: ModelName) -> None:
    """Serve the page of --serve until a signal ends it.

    The address is taken before anything is read, so that one that is taken is told at once.
    """
    server = take_address(arguments.serve)
    model, posterior, posterior_facts = open_model(arguments, name)
    photos = open_photos(arguments, model, torch.empty(0, model.embed_size), None)
    remember_model(arguments.photos, name)
    facts = page_facts({"model": name.model} | photos.facts | posterior_facts, len(photos.names))
    serve(server, PhotoSearch(model, photos.names, photos.folder, photos.search, posterior,
                              arguments.follow_links), facts)


def print_answers(arguments: argparse.Namespace, name: ModelName, queries: list[Query]) -> None:
    """Search, and print the results, or write them as a page."""
    by_photo = arguments.captions is not None
    page = None
    if arguments.html is not None:
        inputs = [path for path in (Path(name.model), arguments.captions) if path]
        page = page_place(arguments.html, inputs)
    model, posterior, posterior_facts = open_model(arguments, name)
    query_embeds = embed_queries(model, queries)  # (Q, D)
    if by_photo:
        collection = open_captions(arguments, model)
    else:
        collection = open_photos(arguments, model, query_embeds, page)
        remember_model(arguments.photos, name)
    started = time.monotonic()
    best = collection.search(query_embeds)
    print_note(f"searched {len(collection.names):,} {'captions' if by_photo else 'photos'} in "
               f"{time.monotonic() - started:.3f} s")
    answers = make_answers(queries, best, posterior, collection.names, collection.folder)
    if arguments.as_is and not arguments.follow_links:
        check_links(answers, arguments.photos)
    facts = {"model": name.model} | collection.facts | posterior_facts
    if page is not None:
        write_page(page, answers, page_facts(facts, len(collection.names)))
    if arguments.json:
        print_result(as_json(answers, facts))
    else:
        print_result(as_text(answers, arguments.posterior))


def check_links(answers: list[Answer], folder: Path) -> None:
    """Raise InputError where a link leads from a photo of the results out of the folder.

    A search `--as_is` has not looked into the folder, and its index may be anybody's.
    """
    leads_out = link_check(folder)
    for answer in answers:
        for result in answer.results:
            fault = leads_out(result.photo)
            if fault:
                raise InputError(f"--as_is: photo {result.photo} {fault}")


def page_facts(facts: dict[str, str], count: int) -> dict[str, str]:
    """Return the list at the top of the page: `facts` without the index, and with a count.

    Args:
        facts: as in the json output.
        count: N, the photos or captions that were searched.
    """
    shown = {name: value for name, value in facts.items() if name != "index"}
    for name in "photos", "captions":
        if name in shown:
            shown[name] = f"{count:,} in {shown[name]}"
    return shown


def main(argv: list[str] | None = None) -> None:
    """Run the command with the arguments `argv`, or with those of the process."""
    arguments = parse_search(__doc__, argv)
    terminal.quiet = arguments.quiet
    with exit_on_input_error():
        require_one_process("search.py")
        search(arguments)


if __name__ == "__main__":
    main()
