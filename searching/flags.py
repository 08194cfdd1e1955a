"""The flags of search.py: they are parsed before anything is imported that takes a second."""

import argparse
import os
from pathlib import Path

from common.options import ConfigurationOptions, ModelOptions, SourceOptions
from common.parser import HelpFormatter, Parser, add_flags

LARGEST_TOP = 1_000_000  # results of a query
USUAL_TOP, SERVED_TOP = 10, 1_000
CHECKPOINT_ENDINGS = ".tar", ".pth", ".pt"


class SearchParser(Parser):
    """A parser that accepts queries before, between and after the flags."""

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        return self.parse_intermixed_args(args, namespace)


def parse_search(description: str, argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line of search.py.

    Args:
        description: the text above the flags in --help.
        argv: the arguments; None for those of the process.

    Returns:
        The values by name. `model` is None, or the path or name of a model; `query` has the words
        that name none; `like` is an empty list where the flag is not given.
    """
    parser = SearchParser(HelpFormatter, usage="%(prog)s [MODEL] [QUERY ...] [flags]",
                          description=description)
    parser.add_argument("words", nargs="*", metavar="MODEL QUERY",
                        help="first the model, as --model has it: a file or folder that is there, "
                             "or a name with a / in it and no space; without one, of --photos, the "
                             "model that searched them last. Then sentences, or with --captions "
                             "photos' files: each is a search of its own; -: the lines of standard "
                             "input")
    add_collection_flags(parser)
    add_result_flags(parser)
    add_index_flags(parser)
    add_encoding_flags(parser)
    arguments = parser.parse_args(argv)
    arguments.like = arguments.like or []
    words = arguments.words
    if arguments.model is None and words and (arguments.captions or names_model(words[0])):
        arguments.model = Path(words.pop(0))
    arguments.query = words
    return arguments


def names_model(word: str) -> bool:
    """Return whether the first word of a command line names a model, and is no query.

    It does where a file or folder is there by that name, or where it can only be a path or the name
    of a model on the Hub.
    """
    return os.path.exists(word) or word.endswith(CHECKPOINT_ENDINGS) or (
        "/" in word and not any(letter.isspace() for letter in word))


def add_collection_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name what is searched to `parser`, in place."""
    group = parser.add_argument_group("model and what is searched")
    group.add_argument("--model", type=Path, metavar="NAME",
                       help="pretrained pair or folder of export.py, by its name on the Hub or "
                            "its folder, or a checkpoint; "
                            "then all words are queries")
    group.add_argument("--photos", type=Path, metavar="FOLDER",
                       help="its photos, and those of folders in it")
    group.add_argument("--captions", type=Path, metavar="FILE",
                       help="captions instead: .txt, one a line, or a captions file as training "
                            "reads it; -: standard input")
    group.add_argument("--like", type=Path, action="append", metavar="PHOTO",
                       help="search by this photo, too; may be given again. A query is the sum of "
                            "the unit vectors of its sentence and of all these photos, made a unit "
                            "vector again")
    group.add_argument("--follow_links", action="store_true",
                       help="also photos that links lead to, out of --photos")
    add_flags(group, SourceOptions, "image_column", "caption_column")


def add_result_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the results and their form to `parser`, in place."""
    group = parser.add_argument_group("results")
    group.add_argument("--top", type=int, metavar="K",
                       help=f"results of a query (default: {USUAL_TOP}, with --serve "
                            f"{SERVED_TOP:,})")
    group.add_argument("--serve", nargs="?", const="", metavar="HOST:PORT",
                       help="open a page to search from, on this machine alone unless HOST says "
                            "otherwise; Ctrl-C closes it")
    group.add_argument("--posterior", action="store_true",
                       help="also P(match), FNE's posterior of the score")
    group.add_argument("--html", type=Path, metavar="OUT",
                       help="write them as one page, photos in it")
    group.add_argument("--json", action="store_true", help="print them as json")
    group.add_argument("--quiet", action="store_true", help="results, warnings and errors only")


def add_index_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the index to `parser`, in place."""
    group = parser.add_argument_group("index")
    group.add_argument("--index", type=Path, metavar="FILE",
                       help="where the photos' embeddings are kept (default: a file for each "
                            "folder and model in the user's cache folder, $XDG_CACHE_HOME or "
                            "~/.cache)")
    group.add_argument("--as_is", action="store_true",
                       help="search what the index holds, without looking which photos are new, "
                            "changed or gone")
    group.add_argument("--faiss", action="store_true",
                       help="approximate search, through the library faiss")


def add_encoding_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of how photos are encoded to `parser`, in place."""
    group = parser.add_argument_group("encoding")
    group.add_argument("--workers", type=int, default=4, help="processes that load photos")
    group.add_argument("--batch_size_test", type=int, default=32, metavar="N",
                       help="photos encoded at a time")
    add_flags(group, ModelOptions, "device", "precision")
    add_flags(group, ConfigurationOptions)
