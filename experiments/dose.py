"""What would perfect elimination of false negatives give, at which dose of them?

    python -m experiments.dose
    python -m experiments.dose --report
    python -m experiments.dose --quick

Trains every loss with and without the oracle on `shapes` at four shares of true
matches, from warm-ups that the two share, and writes a json file for each run,
one table and one figure. The same command goes on where it was stopped.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from common import files
from common.errors import InputError, exit_on_input_error, printable
from common.flags import AMBIGUITIES, Parser
from common.terminal import print_result, warn
from experiments.flags import LOSSES, USES
from experiments.plan import ORDER, WARM_UP, WAYS, Configuration, Protocol, make_data, words

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "experiments.one_run"]
SEEDS = 3407, 1, 2
QUICK = Protocol(  # which learns nothing, and shows in seconds that all of it works
    "", "", "", 1, 1, ("--easy_epochs", "0", "--batch_size_train", "8", "--queue_size",
                       "16", "--embed_size", "16", "--nums_right_sims", "2", "--log_step", "4",
                       "--image_res", "32"), (16, 6, 6))


def plan(options) -> list[list[Configuration]]:
    """All runs, in stages: what is in a stage needs what was in the ones before it.

    Seed by seed, so that a stopped experiment has whole rows; of the first --again seeds each
    configuration is run once more, with another order of draws, before all else.
    """
    stages = []
    for number, seed in enumerate(options.seeds):
        branches = [Configuration(dose, seed, loss, oracle)
                    for dose in options.doses for loss in options.losses for oracle in WAYS
                    if oracle != "positives" or loss == "infonce"]
        uses = [Configuration(dose, seed, USES[use].loss, "off", use=use)
                for dose in options.doses for use in options.uses]
        stages.append(list(dict.fromkeys(run.warm_up for run in [*branches, *uses])))
        again = [Configuration(branch.dose, seed, branch.loss, branch.oracle, again=True)
                 for branch in branches if number < options.again]
        stages.append([*again, *branches, *uses])
    return stages


def is_done(configuration: Configuration, protocol: Protocol) -> bool:
    """Whether a run's json file is there.

    Raises:
        InputError: it is of another protocol, or no such file.
    """
    path = configuration.result(protocol)
    if configuration.oracle == WARM_UP or not path.is_file():
        return False
    result = files.read_json(path)
    told = result.get("protocol") if isinstance(result, dict) else None
    if told != protocol.told:
        raise InputError(f"--results {protocol.results}: {path.name} is of another protocol, "
                         f"{str(told)[:200]}, not {protocol.told}: name another folder")
    return True


def open_runs(options, protocol: Protocol) -> list[list[Configuration]]:
    """The stages of `plan` without what is done, and without warm-ups that nothing needs."""
    stages = [[run for run in stage if not is_done(run, protocol)] for stage in plan(options)]
    needed = {run.warm_up for stage in stages for run in stage if run.oracle != WARM_UP}
    return [[run for run in stage if run.oracle != WARM_UP or run in needed] for stage in stages]


# ------------------------------------------------------------------------------------ side by side


class Pool:
    """Runs processes side by side, a core each, and ends them with itself."""

    def __init__(self, protocol: Protocol, jobs: int):
        self.protocol, self.jobs, self.processes, self.ended = protocol, jobs, set(), False

    def map(self, runs: list[Configuration]) -> Iterator[tuple[Configuration, str | None]]:
        """Each run once it has ended, and the last line that it printed where it failed."""
        if not self.jobs:
            from experiments import one_run  # loads all that trains, which --help does not need

            for run in runs:
                one_run.run(run, self.protocol)
                yield run, None
            return
        with ThreadPoolExecutor(self.jobs) as threads:
            futures = {threads.submit(self.one, run): run for run in runs}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                self.end()

    def one(self, run: Configuration) -> str | None:
        """A run in its own process: None, or what it said last."""
        if self.ended:
            return "stopped"
        log = run.folder(self.protocol).with_suffix(".log")
        with open(log, "w") as file:
            process = subprocess.Popen(
                [*COMMAND, words(run, self.protocol)],
                stdout=file, stderr=subprocess.STDOUT, cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})
            self.processes.add(process)
            status = process.wait()
            self.processes.discard(process)
        lines = log.read_text(errors="replace").splitlines()
        return None if status == 0 else f"{lines[-1] if lines else 'no word'}; see {log}"

    def end(self) -> None:
        """Stop what still runs; each saves itself."""
        self.ended = True
        for process in list(self.processes):
            with contextlib.suppress(OSError):
                process.terminate()


def do(options, protocol: Protocol) -> None:
    """Run what is open, and tell of each.

    Raises:
        InputError: some failed; the others are done.
    """
    stages = open_runs(options, protocol)
    total, done, failed, began = sum(map(len, stages)), 0, [], time.monotonic()
    for dose in dict.fromkeys(run.dose for stage in stages for run in stage):
        make_data(Configuration(dose, 0, "fne", WARM_UP), protocol)
    Path(protocol.work).mkdir(parents=True, exist_ok=True)
    for stage in stages:
        for run, error in Pool(protocol, options.jobs).map(stage):
            done += 1
            left = (time.monotonic() - began) / done * (total - done)
            if error:
                failed.append(run)
                warn(f"{run.name} failed: {error}")
            print_result(f"{done}/{total} {run.name}{told_of(run, protocol)}; about "
                         f"{left / 60:.0f} minutes to go")
    if failed:
        raise InputError(f"{len(failed)} of {total} runs failed, first {failed[0].name}: look at "
                         f"{failed[0].folder(protocol)}.log; the same command tries them again")


def told_of(run: Configuration, protocol: Protocol) -> str:
    """A run's rsum, where it is there."""
    path = run.result(protocol)
    return f": rsum {files.read_json(path)['test']['rsum']:.1f}" if path.is_file() else ""


@contextlib.contextmanager
def stopped_in_one_line() -> Iterator[None]:
    """Inside, SIGTERM and SIGINT end the command after all of its runs have ended, in one line."""
    before = signal.getsignal(signal.SIGTERM)

    def stop(number, frame):
        raise KeyboardInterrupt

    try:
        signal.signal(signal.SIGTERM, stop)
        yield
    except KeyboardInterrupt:
        warn("stopped; the same command goes on")
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, before)


# ------------------------------------------------------------------------------------ command line


def build_parser() -> Parser:
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


def settle(options) -> Protocol:
    """Fill in what --quick decides; the protocol.

    Raises:
        InputError: a number that cannot be.
    """
    for name, least in (("jobs", 0), ("again", 0), ("warmup_epochs", 1), ("branch_epochs", 1)):
        if getattr(options, name) < least:
            raise InputError(f"--{name} {getattr(options, name)}: must be at least {least}")
    if options.seeds and not all(0 <= seed < ORDER for seed in options.seeds):
        raise InputError(f"--seeds {options.seeds}: each must be at least 0 and below "
                         f"{ORDER:,}")
    options.doses = options.doses or (["3", "10"] if options.quick else list(AMBIGUITIES))
    options.seeds = list(dict.fromkeys(options.seeds or (SEEDS[:2] if options.quick else SEEDS)))
    work = options.work or Path("runs") / ("dose_quick" if options.quick else "dose")
    results = options.results or (
        work / "results" if options.quick else ROOT / "experiments" / "results" / "dose")
    for path, flag in ((work, "--work"), (results, "--results")):
        files.check_path(path, flag)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{flag} {printable(str(path))} cannot be made ({error.strerror}): "
                             "name another folder") from error
    places = {"work": str(work.absolute()), "results": str(results.absolute())}
    places["data"] = places["work"] if options.quick else str(Path.cwd())
    if options.quick:
        return replace(QUICK, **places)
    return Protocol(**places, warmup_epochs=options.warmup_epochs,
                    branch_epochs=options.branch_epochs)


def main(argv: list[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    with exit_on_input_error(), stopped_in_one_line():
        protocol = settle(options)
        if not options.report:
            do(options, protocol)
        from experiments.summary import write_summary  # loads matplotlib and SciPy

        table = write_summary(Path(protocol.results))
        why = f"--results {protocol.results} holds no two runs with and without the oracle yet"
        if table is None and options.report:
            raise InputError(why)
        print_result(table or f"No table: {why}. What ran is kept there.")


if __name__ == "__main__":
    main()
