"""What TensorBoard and the terminal get to see of a run.

Nothing here changes the run: it reads weights, statistics and bank, and takes no random number.
"""

import platform
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torchvision
import transformers
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from common.errors import InputError, printable
from common.terminal import print_status, progress
from common.version import commit
from data import Batch, LoadedSplit
from figures import galleries, pages
from figures.picks import fixed_choice
from inputs.photos import eval_pixels, load_photo, normalize
from training import oracle
from training.run import Run

EXAMPLES = 4  # rows of a gallery


class Board:
    """A run's TensorBoard file, and its lines and bar on the terminal.

    Args:
        purge_step: what the file holds from this step on is written again, and shown no more.
    """

    def __init__(self, run: Run, train_set: LoadedSplit, val_set: LoadedSplit, purge_step: int):
        self.run, self.train_set, self.val_set = run, train_set, val_set
        self.writer = SummaryWriter(run.options.logger_name, purge_step=purge_step)
        for name, text in describe(run).items():
            self.writer.add_text(f"run/{name}", text, run.global_step)
        self.bar, self.loss = None, None
        if not run.options.no_figures:
            from figures import plots, sheets  # load matplotlib, not needed without figures

            self.plots, self.sheets = plots, sheets

    def batches(self, loader) -> Iterator[Batch]:
        """An epoch's batches behind its bar: loss, rate and time to go."""
        run = self.run
        self.bar = progress(loader, f"epoch {run.epoch + 1}/{run.options.num_epochs}",
                            len(loader.batch_sampler), initial=run.step, mininterval=1.0,
                            unit="step", dynamic_ncols=True)
        yield from self.bar

    def write_values(self, values: dict[str, float]) -> None:
        """Write what `monitor.take_values` gave, and show the loss beside the bar."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, self.run.global_step)
        self.loss = values["train/loss"]
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{self.loss:.4f}", refresh=False)

    def write_validation(self, metrics: dict[str, float], embeds: tuple[Tensor, Tensor]) -> None:
        """Write a validation's metrics and figures, and print its lines; `embeds` of the whole
        split. Call it before `run.best_rsum` takes the new value."""
        run = self.run
        for name, value in metrics.items():
            self.writer.add_scalar(f"val/{name}", value, run.global_step)
        print_status(validation_lines(run, metrics, self.loss))
        if not run.options.no_figures:
            try:
                self.write_figures(*embeds)
            except InputError as error:  # a figure is not worth a run
                print_status(f"no galleries at step {run.global_step}: {error}")

    def pause(self) -> None:
        """What went on since the last step, such as a validation, is no part of the bar's pace."""
        if self.bar is not None:
            self.bar.unpause()

    def write_figures(self, image_embeds: Tensor, text_embeds: Tensor) -> None:
        """The distributions, what FNE draws for a fixed handful of training pairs, and the best
        five results of a fixed handful of validation pairs."""
        run, sheets = self.run, {}
        if run.bank is not None and (run.criterion.negative.count > 1) and (
                run.criterion.positive.count > 1):
            figure = self.plots.distribution_figure(run.counts.cpu().numpy(), run.criterion,
                                                    run.position)
            self.write_picture("distributions", self.plots.png(figure))
        if run.bank is not None and len(run.bank):
            for side, rows in drawn_negatives(run, self.train_set).items():
                sheets[f"negatives/{side}"] = rows, f"training pairs and their negatives, {side}"
        val = galleries.Library(self.val_set.split, self.val_set.photos)
        texts = fixed_choice(EXAMPLES, len(val.split.captions))
        for side in "i2t", "t2i":
            rows = galleries.retrieval_rows(side, val, image_embeds, text_embeds, texts)
            sheets[f"retrieval/{side}"] = rows, f"validation pairs and their best five, {side}"
        for tag, (rows, title) in sheets.items():
            title = f"{title}, {run.position}; ✓ = a match, faint = not compared"
            self.write_picture(tag, pages.jpeg(self.sheets.sheet(rows, title)))

    def write_picture(self, tag: str, encoded: bytes) -> None:
        """Add a PNG or JPEG file as it is; add_image would decode it, and keep it three times as
        large."""
        image = Summary.Image(encoded_image_string=encoded, colorspace=3)
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self.writer.file_writer.add_summary(summary, self.run.global_step)

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *error) -> None:
        if self.bar is not None:
            self.bar.close()
        self.writer.close()


class NoBoard:
    """The board of the processes that show nothing, beside the first one's."""

    def batches(self, loader) -> Iterator[Batch]:
        yield from loader

    def show_nothing(self, *what) -> None:
        """In place of everything that a `Board` writes or shows."""

    write_values = write_validation = pause = show_nothing

    def __enter__(self) -> "NoBoard":
        return self

    def __exit__(self, *error) -> None:
        pass


def validation_lines(run: Run, metrics: dict[str, float], loss: float | None) -> str:
    """A validation in two lines, with the change of rsum against the best one before."""
    recalls = ", ".join(f"{side} " + "/".join(f"{metrics[f'{side}_r{k}']:.1f}" for k in (1, 5, 10))
                        for side in ("i2t", "t2i"))
    change = "new best"
    if run.best_rsum >= 0:
        more = metrics["rsum"] - run.best_rsum
        change = f"new best, {more:+.1f}" if more > 0 else f"{more:+.1f} from best"
    when = run.position if run.global_step else "before the first step"
    training = "" if loss is None else f"loss {loss:.4f}, "
    return (f"{when}: {training}rsum {metrics['rsum']:.1f} ({change})\n"
            f"  val R@1/5/10: {recalls}")


def describe(run: Run) -> dict[str, str]:
    """Command, options, versions and the code's commit, in Markdown for the text tab."""
    rows = "\n".join(f"| {name} | `{printable(str(value))}` |"
                     for name, value in sorted(vars(run.options).items()))
    versions = {"python": platform.python_version(), "torch": torch.__version__,
                "torchvision": torchvision.__version__, "transformers": transformers.__version__,
                "device": (torch.cuda.get_device_name(run.device) if run.device.type == "cuda"
                           else "CPU"),
                "commit": commit()}
    command = printable(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    return {"command": f"    {command}",
            **({} if run.options.oracle == oracle.OFF else
               {"oracle": oracle.text(run.options.oracle)}),
            "options": f"| option | value |\n|---|---|\n{rows}",
            "versions": "| package | version |\n|---|---|\n" + "\n".join(
                f"| {name} | {value} |" for name, value in versions.items())}


# -------------------------------------------------------------------------- what the sampler draws


def drawn_negatives(run: Run, train_set: LoadedSplit) -> dict[str, list]:
    """Gallery rows, i2t and t2i, of a fixed handful of training pairs against the bank as it is."""
    library = galleries.Library(train_set.split, train_set.photos)
    pairs = library.pairs(fixed_choice(EXAMPLES, len(train_set.captions)))
    bank = galleries.Pairs(run.bank.image_ids.cpu(), run.bank.text_ids.cpu())
    images, texts = embed_pairs(run, run.model, train_set, pairs)
    image_keys, text_keys = embed_pairs(run, run.momentum_model, train_set, pairs)
    captions = text_keys, run.bank.text_keys
    return {
        "i2t": galleries.negative_rows("i2t", library, run.criterion, images, text_keys,
                                       run.bank.text_keys, pairs, bank, captions),
        "t2i": galleries.negative_rows("t2i", library, run.criterion, texts, image_keys,
                                       run.bank.image_keys, pairs, bank, captions),
    }


@torch.no_grad()
def embed_pairs(
    run: Run, model: nn.Module, train_set: LoadedSplit, pairs: galleries.Pairs
) -> tuple[Tensor, Tensor]:
    """(B, D), (B, D) of a few training pairs under a `DualEncoder`, in evaluation mode and without
    augmentation."""
    options, was_training = run.options, model.training
    model.eval()
    if run.features is not None:
        features = run.features[pairs.image_ids.to(run.device)]
    else:
        pixels = torch.stack([eval_pixels(load_photo(train_set.photos[image]), options.image_res)
                              for image in pairs.image_ids.tolist()]).to(run.device)
        features = model.image_features(normalize(pixels, *run.pixel_statistics))
    input_ids, mask = train_set.captions.padded(
        [train_set.captions[text] for text in pairs.text_ids.tolist()])
    embeds = (model.project_image(features),
              model.encode_text(input_ids.to(run.device), mask.to(run.device)))
    model.train(was_training)
    return embeds
