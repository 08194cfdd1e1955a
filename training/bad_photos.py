"""Photos of the training split that turn out broken while a run trains."""

from common.errors import InputError
from common.terminal import warn
from data import NO_PHOTO, Batch
from inputs.photos import load_from
from training.run import Run


def count_bad_photos(run: Run, batch: Batch) -> None:
    """Add photos that could not be read to `run.bad_photos` in place, with a warning for each.

    Args:
        run: the run.
        batch: still on the CPU, with the ids of all its pairs.

    Raises:
        InputError: there are more than --max_bad_photos.
    """
    for image in sorted(set(batch.bad_photos.tolist()) - {NO_PHOTO} - set(run.bad_photos)):
        run.bad_photos.append(image)
        try:
            load_from(run.photos, image)
            reason = f"photo {run.photos[image]} could not be read, but now it can"
        except InputError as error:
            reason = str(error)
        count, limit = len(run.bad_photos), run.options.max_bad_photos
        if count > limit:
            raise InputError(f"{reason}. It is bad photo {count}, more than --max_bad_photos "
                             f"{limit}: look at the folder with python -m scripts.check_data")
        warn(f"{reason}. Another takes its place; {count} bad so far")
