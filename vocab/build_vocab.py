r"""Build a WordPiece vocabulary from the captions of a training split, one token
a line:

    python vocab/build_vocab.py flickr30k_train.json vocab/flickr30k.txt \
        --size 8000

The captions are first cleaned as in training. The same captions give the same
file. Of Karpathy's file, which holds all splits, only the training split is
read. Tar shards, 'shards/{00000..00331}.tar', hold captions too.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project, from any folder

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

from common import files  # noqa: E402
from common.errors import InputError, exit_on_input_error  # noqa: E402
from common.options import SourceOptions  # noqa: E402
from common.parser import Parser, add_flags  # noqa: E402
from common.terminal import print_result  # noqa: E402

LARGEST_SIZE = 10**7  # tokens


def build_vocab_parser() -> Parser:
    """Return the parser of this command's flags."""
    parser = Parser(description=__doc__)
    parser.add_argument("split", type=Path,
                        help="a training split: json, any file of captions, or tar shards")
    parser.add_argument("output", type=Path, help="vocabulary file to write")
    parser.add_argument("--size", type=int, default=8000, help="most tokens (default 8000)")
    add_flags(parser, SourceOptions, "image_column", "caption_column", "bad_rows")
    return parser


if __name__ == "__main__":
    build_vocab_parser().parse_args()  # --help need not wait for the imports below

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers  # noqa: E402

from data import read_split  # noqa: E402
from encoders.processors import SPECIAL_TOKENS  # noqa: E402
from inputs.captions import clean_caption  # noqa: E402
from inputs.records import Columns, read_records  # noqa: E402
from inputs.shards import is_shards  # noqa: E402


def build_vocabulary(captions: Sequence[str], size: int) -> list[str]:
    """Return the tokens of a WordPiece vocabulary: special ones, letters, then frequent pieces.

    Args:
        captions: the text, as it is in the captions file.
        size: the most tokens.
    """
    counts = Counter(word for text in captions for word in clean_caption(text).split())
    words = sorted(counts, key=lambda word: (-counts[word], word))
    letters = sorted(set("".join(words)))
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers the letters inside words in a random order, and breaks ties by number.
    # Letters that are named as special tokens have fixed numbers instead, so that the same captions
    # give the same file.
    fixed = [*SPECIAL_TOKENS.values(), *letters, *(f"##{letter}" for letter in letters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=2, special_tokens=fixed, show_progress=False)
    repeated_words = (" ".join([word] * counts[word]) for word in words)
    tokenizer.train_from_iterator(repeated_words, trainer)
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.get)


def is_vocabulary(path: Path) -> bool:
    """Return whether a file begins like the vocabularies that this command writes."""
    return files.read_start(path).startswith("\n".join(SPECIAL_TOKENS.values()).encode())


def main(argv: list[str] | None = None) -> None:
    """Run the command with the arguments `argv`, or with those of the process."""
    options = build_vocab_parser().parse_args(argv)
    with exit_on_input_error():
        if not 1 <= options.size <= LARGEST_SIZE:
            raise InputError(f"--size {str(options.size)[:30]}: must be at least 1, and at most "
                             f"{LARGEST_SIZE:,}")
        files.check_path(options.split, "split")
        files.check_path(options.output, "output")
        columns = Columns(options.image_column, options.caption_column)
        if is_shards(options.split):
            captions = read_split("custom", "train", options.split,
                                  caption_column=options.caption_column).captions
        else:
            captions = [text for record in read_records(options.split, "train", columns,
                                                           options.bad_rows)
                        for text in record.captions]
        place = files.resolve_output(options.output, "output", is_vocabulary, [options.split])
        tokens = build_vocabulary(captions, options.size)
        files.write(place, "".join(f"{token}\n" for token in tokens).encode(), "the vocabulary")
        print_result(f"{len(tokens)} tokens from {len(captions)} captions in {options.output}")


if __name__ == "__main__":
    main()
