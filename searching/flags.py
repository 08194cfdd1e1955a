"""The flags of search.py, read before anything is imported that takes a second."""

import argparse
from pathlib import Path

from common.flags import HelpFormatter, Parser, add_column_flags, add_configuration_flags

LARGEST_TOP = 1_000_000


class SearchParser(Parser):
    """Takes queries before, between and behind the flags."""

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        return self.parse_intermixed_args(args, namespace)


def parse_search(description: str, argv: list[str] | None = None) -> argparse.Namespace:
    parser = SearchParser(HelpFormatter, usage="%(prog)s MODEL [QUERY ...] [flags]",
                          description=description)
    parser.add_argument("model", type=Path, metavar="MODEL",
                        help="folder that export.py wrote, its name on the Hub, or a checkpoint")
    parser.add_argument("query", nargs="*", metavar="QUERY",
                        help="a sentence, or with --captions a photo's file; each is a search of "
                             "its own; -: the lines of standard input")
    group = parser.add_argument_group("what is searched")
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
    add_column_flags(group)
    group = parser.add_argument_group("results")
    group.add_argument("--top", type=int, default=10, metavar="K", help="results of a query")
    group.add_argument("--posterior", action="store_true",
                       help="also P(match), FNE's posterior of the score")
    group.add_argument("--html", type=Path, metavar="OUT",
                       help="write them as one page, photos in it")
    group.add_argument("--json", action="store_true", help="print them as json")
    group.add_argument("--quiet", action="store_true", help="results, warnings and errors only")
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
    group = parser.add_argument_group("encoding")
    group.add_argument("--workers", type=int, default=4, help="processes that load photos")
    group.add_argument("--batch_size_test", type=int, default=32, metavar="N",
                       help="photos encoded at a time")
    group.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto",
                       help="auto takes a GPU where there is one")
    group.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto",
                       help="of the encoders; auto: bf16 on a GPU that has it")
    add_configuration_flags(group)
    arguments = parser.parse_args(argv)
    arguments.like = arguments.like or []
    return arguments
