"""The flags of the commands in this folder; importing this loads nothing that takes long."""

from pathlib import Path

from common.parser import Parser


def build_opening_parser(description: str) -> Parser:
    """Return the parser of the flags of figures.opening."""
    parser = Parser(description=description)
    parser.add_argument("embeddings", type=Path,
                        help="file that evaluation.py --save_embeddings wrote, of a run of --loss "
                             "fne")
    parser.add_argument("--data_path", type=Path, required=True,
                        help="the data set's folder, which holds all true matches of the split")
    parser.add_argument("--output", type=Path, required=True, metavar="JPEG",
                        help="picture to write")
    parser.add_argument("--rows", type=int, default=3, help="captions shown (%(default)s)")
    return parser
