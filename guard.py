"""What guards a run: signals, steps that are not finite, a collapse, photos that cannot be read.

`train.py` calls these where they belong. A run that nothing befalls is not changed by them.
"""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm

from batches import NO_PHOTO, Batch
from errors import InputError, Stopped
from photos import load_photo

SKIPS_IN_A_ROW = 5  # this many steps that are not finite end the run
COLLAPSED = 2e-3  # deviation of a batch's similarities: a run that learns has 0.05 and more

# ------------------------------------------------------------------------------------------ signals


class Signals:
    """SIGTERM and Ctrl-C while a run trains: they wait until it can be saved.

    A second Ctrl-C ends the program at once. Launchers pass the first one on, so one that comes
    within a second is the same.
    """

    def __init__(self):
        self.number, self.time, self.open = None, 0.0, False

    def catch(self, number: int, frame) -> None:
        """The handler: it remembers, and stops the run where that is allowed."""
        if number == self.number == signal.SIGINT and time.monotonic() - self.time > 1:
            raise KeyboardInterrupt
        if self.number is None:
            self.number, self.time = number, time.monotonic()
        if self.open:
            raise Stopped(self.number)

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        """The run can be saved as it is in here: stop it if a signal waits, or when one comes."""
        self.open = True
        try:
            if self.number is not None:
                raise Stopped(self.number)
            yield
        finally:
            self.open = False


@contextlib.contextmanager
def stop_on_signals(save: Callable[[], str]) -> Iterator[Signals]:
    """Inside, signals wait for `Signals.allowed`; then `save` is called and says how to go on.

    Raises:
        Stopped: with what `save` said.
    """
    signals = Signals()
    caught = signal.SIGTERM, signal.SIGINT
    # Python lets only the main thread set handlers; a run in another one does without.
    main = threading.current_thread() is threading.main_thread()
    former = {number: signal.signal(number, signals.catch) for number in caught if main}
    try:
        yield signals
        with signals.allowed():
            pass
    except Stopped as stop:
        raise Stopped(stop.number, save()) from None
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


# ----------------------------------------------------------------------------- steps not finite


class Skips(nn.Module):
    """Steps that changed nothing because something in them was not finite.

    Buffers: `count` () int64, in all; `in_a_row` () int64, up to the last step; `step` () int64 and
    `image_ids` (B,) int64 of the latest. They stay on the device: no step waits to see them.
    """

    def __init__(self, batch: int):
        super().__init__()
        for name in "count", "in_a_row", "step":
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))
        self.register_buffer("image_ids", torch.zeros(batch, dtype=torch.int64))

    @torch.no_grad()
    def update(self, good: Tensor, image_ids: Tensor, step: int) -> None:
        """Count a step: `good` () bool, its photos (B,), and how many steps came before it."""
        self.count += ~good
        self.in_a_row.copy_((self.in_a_row + 1) * ~good)
        self.step.copy_(self.step.where(good, step + 1))
        last = self.image_ids[: len(image_ids)]
        last.copy_(last.where(good, image_ids))


@torch.no_grad()
def finite(*values: Tensor) -> Tensor:
    """() bool, on the device: whether every number in all of `values` is finite."""
    return torch.stack([value.isfinite().all() for value in values]).all()


def skip_unless(good: Tensor, run, batch: Batch) -> None:
    """Have the next `optimizer.step()` do nothing, to weights, moments and step count, unless good.

    The switch is the one that PyTorch's GradScaler uses: a fused optimizer reads `found_inf` on the
    device. A `state_dict` does not have it.
    """
    run.optimizer.found_inf = (~good).float()
    run.skips.update(good, batch.image_ids, run.global_step)


def kept(logs: dict[str, Tensor], good: Tensor) -> dict[str, Tensor]:
    """The logged values of a good step; of another NaN, which no mean takes in."""
    return {name: value.float().where(good, torch.nan) for name, value in logs.items()}


def watch(run, spread: float, loss: float) -> None:
    """Look at the steps since the last time, where the run waits for the device anyway.

    Args:
        spread, loss: means since then; `spread` is the deviation of a batch's similarities.

    Raises:
        InputError: the last steps were all not finite; it names the photos of the latest.
    """
    skips, now = run.skips, run.global_step
    rate = run.optimizer.param_groups[0]["lr"]
    if skips.in_a_row >= SKIPS_IN_A_ROW:
        names = ", ".join(run.photos[image].name for image in skips.image_ids.tolist())
        raise InputError(
            f"step {int(skips.step)}: loss, gradient or embeddings were not finite in "
            f"{int(skips.in_a_row)} steps in a row, at a learning rate of {rate:g}, so none of "
            "them was taken: lower --learning_rate, or look at the photos of the latest batch: "
            f"{names}")
    if now - run.options.log_step < skips.step <= now:
        say(f"step {int(skips.step)} was not finite and left out, {int(skips.count)} so far")
    collapsed = spread < COLLAPSED
    if collapsed and not run.collapsed:
        say(f"step {now}: collapse: the similarities of a batch are all alike (deviation "
            f"{spread:.1e}), and the loss is {loss:.4f} (twice the margin: "
            f"{2 * run.options.margin:g}). Try a lower --learning_rate, or more --easy_epochs")
    elif run.collapsed and not collapsed:
        say(f"step {now}: no more collapse: similarities differ again (deviation {spread:.1e})")
    run.collapsed = collapsed


# ------------------------------------------------------------------------------------ broken photos


def report_bad_photos(run, batch: Batch) -> None:
    """Name and count photos of a batch, still on the CPU, that another had to stand in for.

    Raises:
        InputError: there are more than --max_bad_photos.
    """
    for image in sorted(set(batch.bad_photos.tolist()) - {NO_PHOTO} - set(run.bad_photos)):
        run.bad_photos.append(image)
        try:
            load_photo(run.photos[image])
            reason = f"photo {run.photos[image]} could not be read, but now it can"
        except InputError as error:
            reason = str(error)
        count, limit = len(run.bad_photos), run.options.max_bad_photos
        if count > limit:
            raise InputError(f"{reason}. It is bad photo {count}, more than --max_bad_photos "
                             f"{limit}: look at the folder with check_data.py")
        say(f"{reason}. Another takes its place; {count} bad so far")


def say(line: str) -> None:
    """A warning, above the progress bar."""
    tqdm.write(f"warning: {' '.join(line.split())}", file=sys.stderr)
