r"""Measure what leaving out a witness's matches gives, on Flickr8k:

    python -m experiments.teacher --data_path flickr8k/images \
        --json_path flickr8k --judgements flickr8k_crowd_judgements.json \
        --image_encoder mobilenet_v2
    python -m experiments.teacher --report

A teacher, a frozen sentence encoder, tells P(match) of a photo and a caption of
another photo. Losses are trained with all negatives, without those that it
calls matches, and with controls. The protocol is in docs/when_it_pays.md. Each
run leaves a json file, and all together tables and a figure. The same command
goes on where it was stopped.
"""

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

import os
import sys
import time
from pathlib import Path

from common import files
from common.errors import InputError, exit_on_input_error
from common.parser import Parser
from common.terminal import print_result, warn
from experiments.pool import ROOT, Pool, exit_on_signal, make_folders
from experiments.teacher_plan import Places, TeacherRun, all_runs, to_json

COMMAND = [sys.executable, "-m", "experiments.teacher_run"]
RESULTS = ROOT / "experiments" / "results" / "teacher"
FEATURE_FILES = 6  # of the photos and the captions of train, val and test
NEEDED = "data_path", "json_path", "judgements", "image_encoder"


def build_parser() -> Parser:
    """Return the parser of this command's flags."""
    parser = Parser(description=__doc__)
    parser.add_argument("--report", action="store_true",
                        help="run nothing, write tables and figure of the results that are there")
    parser.add_argument("--data_path", type=Path, help="folder of Flickr8k's photos")
    parser.add_argument("--json_path", type=Path, help="folder of Flickr8k's split files")
    parser.add_argument("--judgements", type=Path, help="people's judgements of its test split")
    parser.add_argument("--image_encoder", help="a frozen image encoder, its folder or Hub name")
    parser.add_argument("--text_encoder", default="sentence-transformers/all-MiniLM-L6-v2",
                        help="a sentence encoder, the teacher and the text encoder of two regimes "
                             "(%(default)s)")
    parser.add_argument("--tables", nargs="+", choices=all_runs(), metavar="TABLE",
                        default=list(all_runs()), help=f"default: {', '.join(all_runs())}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(),
                        help="runs side by side (default: one for each core)")
    parser.add_argument("--work", type=Path, default=Path("runs") / "teacher",
                        help="folder of the runs (%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS,
                        help="folder of the json files; tables and figure are written beside it "
                             "(default: experiments/results/teacher)")
    return parser


def make_places(options) -> Places:
    """Make the folders of the experiment, and return its places.

    Args:
        options: of the command line.

    Raises:
        InputError: a flag is missing, or a folder cannot be made.
    """
    if options.jobs < 1:
        raise InputError(f"--jobs {options.jobs}: must be at least 1")
    for name in NEEDED:
        if getattr(options, name) is None:
            raise InputError(f"--{name}: is needed to train (docs/when_it_pays.md); --report needs "
                             "none of them")
    make_folders(options.work, options.results)
    return Places(
        str(options.work.absolute()), str(options.results.absolute()),
        *(str(getattr(options, name).absolute()) for name in NEEDED[:3]),
        *(str(Path(name).absolute()) if Path(name).is_dir() else name
          for name in (options.image_encoder, options.text_encoder)))


def open_runs(tables: list[str], places: Places) -> list[TeacherRun]:
    """Return the runs of some tables that have no result yet, in the order of the tables."""
    runs = dict.fromkeys(run for table in tables for run in all_runs()[table])
    return [run for run in runs if not places.result(run).is_file()]


def train_all(runs: list[TeacherRun], places: Places, jobs: int) -> None:
    """Train runs, and print a line for each.

    Unless the features of the frozen encoders are there, the first run goes alone and makes them
    for the others.

    Raises:
        InputError: some runs have failed; the others are finished.
    """
    from experiments.teacher_run import make_teachers  # loads PyTorch, which --help does not need

    make_teachers(places)
    shared = Path(places.work) / "features"
    first = [] if shared.is_dir() and len(list(shared.glob("*.pt"))) == FEATURE_FILES else runs[:1]
    pool = Pool(jobs, lambda run: [*COMMAND, to_json(run, places)],
                lambda run: places.folder(run).with_suffix(".log"))
    done, failed, started = 0, [], time.monotonic()
    for stage in first, runs[len(first):]:
        for run, error in pool.train(stage):
            done += 1
            seconds_left = (time.monotonic() - started) / done * (len(runs) - done)
            if error:
                failed.append(run)
                warn(f"{run.name} failed: {error}")
                continue
            test = files.read_json(places.result(run), files.MAX_RESULT_BYTES)["test"]
            print_result(f"{done}/{len(runs)} {run.name}: rsum {test['rsum']:.1f}, people's AP "
                         f"{test['ap']:.3f}; about {seconds_left / 60:.0f} minutes to go")
    if failed:
        raise InputError(f"{len(failed)} of {len(runs)} runs failed, first {failed[0].name}: look "
                         f"at {places.folder(failed[0])}.log; the same command tries them again")


def main(argv: list[str] | None = None) -> None:
    """Run the command with the arguments `argv`, or with those of the process."""
    options = build_parser().parse_args(argv)
    with exit_on_input_error(), exit_on_signal():
        if not options.report:
            places = make_places(options)
            train_all(open_runs(options.tables, places), places, options.jobs)
        from experiments.teacher_summary import write_summary  # loads matplotlib and SciPy

        print_result(write_summary(options.results))


if __name__ == "__main__":
    main()
