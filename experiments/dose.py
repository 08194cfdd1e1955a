"""Measure what perfect elimination of false negatives gives, at each dose of them:

    python -m experiments.dose
    python -m experiments.dose --report
    python -m experiments.dose --quick

Every loss is trained with and without the oracle on `shapes`, at four shares of
true matches, from warm-ups that the two share. Each run leaves a json file, and
all together one table and one figure. The same command goes on where it was
stopped.
"""

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from common import files
from common.errors import InputError, exit_on_input_error
from common.parser import Parser
from common.presets import AMBIGUITIES
from common.terminal import print_result, warn
from experiments.flags import LOSSES, USES
from experiments.plan import (
    AGAIN_OFFSET,
    ORACLES,
    WARM_UP,
    Configuration,
    Protocol,
    make_data,
    to_json,
)
from experiments.pool import ROOT, Pool, exit_on_signal, make_folders

COMMAND = [sys.executable, "-m", "experiments.one_run"]
SEEDS = 3407, 1, 2
QUICK = Protocol(  # learns nothing, and shows within seconds that everything works
    "", "", "", 1, 1, ("--easy_epochs", "0", "--batch_size_train", "8", "--queue_size",
                       "16", "--embed_size", "16", "--nums_right_sims", "2", "--log_step", "4",
                       "--image_res", "32"), (16, 6, 6))


def plan(options) -> list[list[Configuration]]:
    """Return all runs of the experiment, in stages; a run needs only runs of earlier stages.

    The stages go seed by seed, so that a stopped experiment has whole rows of its table. For the
    first --again seeds each configuration is run a second time with another order of draws, before
    the other runs of its stage.

    Args:
        options: of the command line, after `make_protocol` has filled them in.
    """
    stages = []
    for number, seed in enumerate(options.seeds):
        branches, uses = [], []
        for dose in options.doses:
            for loss in options.losses:
                oracles = ORACLES if loss == "infonce" else ORACLES[:2]
                branches += [Configuration(dose, seed, loss, oracle) for oracle in oracles]
            uses += [Configuration(dose, seed, USES[use].loss, "off", use=use)
                     for use in options.uses]
        again = []
        if number < options.again:
            again = [replace(branch, again=True) for branch in branches]
        warm_ups = dict.fromkeys(run.warm_up for run in [*branches, *uses])
        stages.append(list(warm_ups))
        stages.append([*again, *branches, *uses])
    return stages


def is_done(configuration: Configuration, protocol: Protocol) -> bool:
    """Return whether the result of a run is there; a warm-up has none.

    Raises:
        InputError: the file is no result, or one of another protocol.
    """
    path = configuration.result(protocol)
    if configuration.oracle == WARM_UP or not path.is_file():
        return False
    result = files.read_json(path, files.MAX_RESULT_BYTES)
    record = result.get("protocol") if isinstance(result, dict) else None
    if record != protocol.record:
        raise InputError(f"--results {protocol.results}: {path.name} is of another protocol, "
                         f"{str(record)[:200]}, not {protocol.record}: name another folder")
    return True


def open_runs(options, protocol: Protocol) -> list[list[Configuration]]:
    """Return the stages of `plan` without finished runs, and without warm-ups that none needs."""
    stages = [[run for run in stage if not is_done(run, protocol)] for stage in plan(options)]
    needed = {run.warm_up for stage in stages for run in stage if run.oracle != WARM_UP}
    return [[run for run in stage if run.oracle != WARM_UP or run in needed] for stage in stages]


# ------------------------------------------------------------------------------------ side by side


def train_here(
    runs: list[Configuration], protocol: Protocol
) -> Iterator[tuple[Configuration, str | None]]:
    """Train runs one after the other in this process, and yield each when it has ended."""
    from experiments import one_run  # loads PyTorch, which --help does not need

    for run in runs:
        one_run.run(run, protocol)
        yield run, None


def train_all(options, protocol: Protocol) -> None:
    """Train all runs that are not finished, and print a line for each.

    Args:
        options: of the command line, after `make_protocol` has filled them in.
        protocol: of all runs.

    Raises:
        InputError: some runs have failed; the others are finished.
    """
    stages = open_runs(options, protocol)
    total, done, failed, started = sum(map(len, stages)), 0, [], time.monotonic()
    for dose in dict.fromkeys(run.dose for stage in stages for run in stage):
        make_data(Configuration(dose, 0, "fne", WARM_UP), protocol)
    Path(protocol.work).mkdir(parents=True, exist_ok=True)
    pool = Pool(options.jobs, lambda run: [*COMMAND, to_json(run, protocol)],
                lambda run: run.folder(protocol).with_suffix(".log")) if options.jobs else None
    for stage in stages:
        for run, error in pool.train(stage) if pool else train_here(stage, protocol):
            done += 1
            seconds_left = (time.monotonic() - started) / done * (total - done)
            if error:
                failed.append(run)
                warn(f"{run.name} failed: {error}")
            print_result(f"{done}/{total} {run.name}{rsum_text(run, protocol)}; about "
                         f"{seconds_left / 60:.0f} minutes to go")
    if failed:
        raise InputError(f"{len(failed)} of {total} runs failed, first {failed[0].name}: look at "
                         f"{failed[0].folder(protocol)}.log; the same command tries them again")


def rsum_text(run: Configuration, protocol: Protocol) -> str:
    """Return the rsum of a run for the line that tells of it, and "" where it has no result."""
    path = run.result(protocol)
    if not path.is_file():
        return ""
    return f": rsum {files.read_json(path, files.MAX_RESULT_BYTES)['test']['rsum']:.1f}"


# ------------------------------------------------------------------------------------ command line


def build_parser() -> Parser:
    """Return the parser of this command's flags."""
    parser = Parser(description=__doc__)
    parser.add_argument("--quick", action="store_true",
                        help="a handful of photos, two doses, two seeds: seconds, and no result")
    parser.add_argument("--report", action="store_true",
                        help="run nothing, write table and figure of the results that are there")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(),
                        help="runs side by side; 0: in this process (default: one for each core)")
    parser.add_argument("--work", type=Path, help="folder of the runs (default: runs/dose)")
    parser.add_argument("--results", type=Path,
                        help="folder of the json files; table and figure are written beside it "
                             "(default: experiments/results/dose, or with --quick WORK/results)")
    parser.add_argument("--doses", nargs="+", choices=AMBIGUITIES, help="default: all four")
    parser.add_argument("--losses", nargs="*", choices=LOSSES, default=LOSSES,
                        help="name none to run --uses alone (default: all three)")
    parser.add_argument("--uses", nargs="*", choices=USES, default=[], metavar="USE",
                        help=f"uses of likely matches, beside the losses: {', '.join(USES)}")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 3407 1 2")
    parser.add_argument("--again", type=int, default=1, metavar="N",
                        help="first seeds of which each configuration is run twice, in two orders "
                             "of its batches and draws, to know the noise (%(default)s)")
    parser.add_argument("--warmup_epochs", type=int, default=Protocol.warmup_epochs,
                        help="of all (%(default)s)")
    parser.add_argument("--branch_epochs", type=int, default=Protocol.branch_epochs,
                        help="after it (%(default)s)")
    return parser


def make_protocol(options) -> Protocol:
    """Fill in the doses and seeds of `options` in place, make the folders, return the protocol.

    Args:
        options: of the command line; --quick decides what they leave open.

    Raises:
        InputError: a number is out of its range, or a folder cannot be made.
    """
    for name, least in (("jobs", 0), ("again", 0), ("warmup_epochs", 1), ("branch_epochs", 1)):
        if getattr(options, name) < least:
            raise InputError(f"--{name} {getattr(options, name)}: must be at least {least}")
    if options.seeds and not all(0 <= seed < AGAIN_OFFSET for seed in options.seeds):
        raise InputError(f"--seeds {options.seeds}: each must be at least 0 and below "
                         f"{AGAIN_OFFSET:,}")
    if options.quick:
        default_doses, default_seeds = ["3", "10"], SEEDS[:2]
        work = options.work or Path("runs") / "dose_quick"
        results = options.results or work / "results"
    else:
        default_doses, default_seeds = list(AMBIGUITIES), SEEDS
        work = options.work or Path("runs") / "dose"
        results = options.results or ROOT / "experiments" / "results" / "dose"
    options.doses = options.doses or default_doses
    options.seeds = list(dict.fromkeys(options.seeds or default_seeds))
    make_folders(work, results)
    places = {"work": str(work.absolute()), "results": str(results.absolute())}
    places["data"] = places["work"] if options.quick else str(Path.cwd())
    if options.quick:
        return replace(QUICK, **places)
    return Protocol(**places, warmup_epochs=options.warmup_epochs,
                    branch_epochs=options.branch_epochs)


def main(argv: list[str] | None = None) -> None:
    """Run the command with the arguments `argv`, or with those of the process."""
    options = build_parser().parse_args(argv)
    with exit_on_input_error(), exit_on_signal():
        protocol = make_protocol(options)
        if not options.report:
            train_all(options, protocol)
        from experiments.summary import write_summary  # loads matplotlib and SciPy

        table = write_summary(Path(protocol.results))
        reason = f"--results {protocol.results} holds no two runs with and without the oracle yet"
        if table is None and options.report:
            raise InputError(reason)
        print_result(table or f"No table: {reason}. What ran is kept there.")


if __name__ == "__main__":
    main()
