"""Make the `shapes` dataset: images, captions and every true match.

    python -m scripts.make_shapes data/shapes
    python -m scripts.make_shapes data/shapes_10 --ambiguity 10
"""

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

from pathlib import Path

from common.errors import exit_on_input_error
from common.files import check_path
from common.parser import Parser
from common.presets import AMBIGUITIES, USUAL_AMBIGUITY
from common.terminal import print_result
from inputs.shapes import make_shapes


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("root", metavar="ROOT", help="folder to make; new, empty, or made before")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that varies (%(default)s)")
    parser.add_argument("--image_size", type=int, default=64,
                        help="width and height of a photo in pixels (%(default)s)")
    parser.add_argument("--ambiguity", choices=AMBIGUITIES, default=USUAL_AMBIGUITY,
                        help="share, in percent and about, of the other photos that a caption is "
                             "true of (%(default)s)")
    options = parser.parse_args(argv)
    with exit_on_input_error():
        check_path(Path(options.root), "ROOT")
        print_result(str(make_shapes(options.root, options.seed, image_size=options.image_size,
                                     ambiguity=float(options.ambiguity))))


if __name__ == "__main__":
    main()
