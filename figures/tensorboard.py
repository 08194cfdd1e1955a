"""What TensorBoard and the terminal show of a run.

Nothing here changes the run: it reads weights, statistics and memory bank, and takes no random
number.
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
from common.ranks import is_main
from common.terminal import print_status, progress
from common.version import commit
from data import Batch, LoadedSplit
from figures import galleries, pages
from figures.picks import fixed_choice
from inputs.fitting import fitted_pixels
from inputs.photos import load_from, normalize
from training.objectives.base import NegativeSampler
from training.run import Run
from training.true_matches import ORACLE_TEXT

EXAMPLES = 4  # rows of a gallery


class Board:
    """The TensorBoard file of a run, and its lines and bar on the terminal.

    Args:
        run: the state of the training.
        train_set: the training pairs, of which the galleries of negatives show a few.
        val_set: the validation pairs, of which the galleries of results show a few.
        purge_step: the global step from which on earlier entries of the file are hidden, because a
            resumed run writes them again.
    """

    def __init__(self, run: Run, train_set: LoadedSplit, val_set: LoadedSplit, purge_step: int):
        self.run, self.train_set, self.val_set = run, train_set, val_set
        self.writer = SummaryWriter(run.options.logger_name, purge_step=purge_step)
        for name, text in describe(run).items():
            self.writer.add_text(f"run/{name}", text, run.global_step)
        self.bar, self.loss = None, None
        if not run.options.no_figures:
            from figures import plots, sheets  # these load matplotlib, which only figures need

            self.plots, self.sheets = plots, sheets

    def batches(self, loader) -> Iterator[Batch]:
        """Yield the batches of an epoch, and show its bar: loss, steps per second, time to go."""
        run = self.run
        self.bar = progress(loader, f"epoch {run.epoch + 1}/{run.options.num_epochs}",
                            len(loader.batch_sampler), initial=run.step, mininterval=1.0,
                            unit="step", dynamic_ncols=True)
        yield from self.bar

    def write_values(self, values: dict[str, float]) -> None:
        """Write scalars at the current step, and show the loss beside the bar.

        Args:
            values: by tag, as `monitor.take_values` returns them.
        """
        for name, value in values.items():
            self.writer.add_scalar(name, value, self.run.global_step)
        self.loss = values["train/loss"]
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{self.loss:.4f}", refresh=False)

    def write_validation(self, metrics: dict[str, float], embeds: tuple[Tensor, Tensor]) -> None:
        """Write the metrics and figures of a validation, and print its two lines.

        Call it before `run.best_rsum` takes the new value: the lines compare the two.

        Args:
            metrics: the scores of the validation split, by name.
            embeds: (N_i, D) and (N_t, D) unit rows of the whole validation split.
        """
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
        """Leave the time since the last step, such as that of a validation, out of the bar's rate.
        """
        if self.bar is not None:
            self.bar.unpause()

    def write_figures(self, image_embeds: Tensor, text_embeds: Tensor) -> None:
        """Write the distributions, the gallery of negatives and the gallery of results.

        The galleries show the same few pairs each time: what FNE draws for training pairs, and the
        best five results for validation pairs.

        Args:
            image_embeds: (N_i, D) unit rows of the whole validation split.
            text_embeds: (N_t, D) unit rows of the whole validation split.
        """
        run, sheets = self.run, {}
        sampler = run.objective.sampler()
        if sampler is not None and min(sampler.criterion.negative.count,
                                       sampler.criterion.positive.count) > 1:
            figure = self.plots.distribution_figure(sampler.similarity_counts.cpu().numpy(),
                                                    sampler.criterion, run.position)
            self.write_picture("distributions", self.plots.png_bytes(figure))
        if sampler is not None and len(sampler.bank):
            for direction, rows in drawn_negatives(run, sampler, self.train_set).items():
                sheets[f"negatives/{direction}"] = (
                    rows, f"training pairs and their negatives, {direction}")
        val = galleries.Library(self.val_set.split, self.val_set.photos)
        texts = fixed_choice(EXAMPLES, len(val.split.captions))
        for direction in "i2t", "t2i":
            rows = galleries.retrieval_rows(direction, val, image_embeds, text_embeds, texts)
            sheets[f"retrieval/{direction}"] = (
                rows, f"validation pairs and their best five, {direction}")
        for tag, (rows, title) in sheets.items():
            title = f"{title}, {run.position}; ✓ = a match, faint = not compared"
            self.write_picture(tag, pages.jpeg_bytes(self.sheets.sheet(rows, title)))

    def write_picture(self, tag: str, encoded: bytes) -> None:
        """Add the bytes of a PNG or JPEG file to the TensorBoard file as they are.

        `SummaryWriter.add_image` would decode the picture, and keep it three times as large.
        """
        image = Summary.Image(encoded_image_string=encoded, colorspace=3)
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self.writer.file_writer.add_summary(summary, self.run.global_step)

    def flush(self) -> None:
        """Write all entries to the disk."""
        self.writer.flush()

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *error) -> None:
        if self.bar is not None:
            self.bar.close()
        self.writer.close()


class NoBoard:
    """A `Board` that shows nothing, for all processes of a run but the first."""

    def batches(self, loader) -> Iterator[Batch]:
        yield from loader

    def show_nothing(self, *arguments) -> None:
        """Do nothing, in place of every method by which a `Board` writes or shows something."""

    write_values = write_validation = pause = flush = show_nothing

    def __enter__(self) -> "NoBoard":
        return self

    def __exit__(self, *error) -> None:
        pass


def make_board(
    run: Run, train_set: LoadedSplit, val_set: LoadedSplit, purge_step: int
) -> Board | NoBoard:
    """Return a `Board` in the first process of a run, and a `NoBoard` in all others."""
    return Board(run, train_set, val_set, purge_step) if is_main() else NoBoard()


def validation_lines(run: Run, metrics: dict[str, float], loss: float | None) -> str:
    """Return a validation in two lines, with the change of rsum against the best one before.

    Args:
        run: the state of the training, with `best_rsum` as it was before this validation.
        metrics: the scores of the validation split, by name.
        loss: the last mean loss that was logged; None where there is none yet.
    """
    recalls = []
    for direction in "i2t", "t2i":
        values = [f"{metrics[f'{direction}_r{k}']:.1f}" for k in (1, 5, 10)]
        recalls.append(f"{direction} {'/'.join(values)}")
    change = "new best"
    if run.best_rsum >= 0:
        difference = metrics["rsum"] - run.best_rsum
        change = f"{difference:+.1f} from best"
        if difference > 0:
            change = f"new best, {difference:+.1f}"
    position = run.position if run.global_step else "before the first step"
    training = "" if loss is None else f"loss {loss:.4f}, "
    return (f"{position}: {training}rsum {metrics['rsum']:.1f} ({change})\n"
            f"  val R@1/5/10: {', '.join(recalls)}")


def describe(run: Run) -> dict[str, str]:
    """Return command, options and versions of a run as Markdown, by name, for the text tab."""
    command = printable(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    options = "\n".join(f"| {name} | `{printable(str(value))}` |"
                        for name, value in sorted(vars(run.options).items()))
    on_gpu = run.device.type == "cuda"
    versions = {"python": platform.python_version(), "torch": torch.__version__,
                "torchvision": torchvision.__version__, "transformers": transformers.__version__,
                "device": torch.cuda.get_device_name(run.device) if on_gpu else "CPU",
                "commit": commit()}
    texts = {"command": f"    {command}"}
    if run.options.oracle != "off":
        texts["oracle"] = ORACLE_TEXT[run.options.oracle]
    texts["options"] = f"| option | value |\n|---|---|\n{options}"
    texts["versions"] = "| package | version |\n|---|---|\n" + "\n".join(
        f"| {name} | {version} |" for name, version in versions.items())
    return texts


# -------------------------------------------------------------------------- what the sampler draws


def drawn_negatives(
    run: Run, sampler: NegativeSampler, train_set: LoadedSplit
) -> dict[str, list]:
    """Return the galleries of what FNE draws for a few training pairs from the bank as it is.

    Args:
        run: the state of the training.
        sampler: what its objective draws negatives with.
        train_set: the training pairs.

    Returns:
        The rows of "i2t" and of "t2i", as `galleries.negative_rows` returns them.
    """
    criterion, stored = sampler.criterion, sampler.bank
    library = galleries.Library(train_set.split, train_set.photos)
    pairs = library.pairs(fixed_choice(EXAMPLES, len(train_set.captions)))
    bank = galleries.Pairs(stored.image_ids.cpu(), stored.text_ids.cpu())
    image_embeds, text_embeds = embed_pairs(run, run.model, train_set, pairs)  # (B, D) each
    image_keys, text_keys = embed_pairs(run, sampler.momentum_model, train_set, pairs)
    captions = text_keys, stored.text_keys
    image_ids, text_ids = (ids.to(run.device) for ids in pairs)  # (B,), (B,)
    to_texts = sampler.match_posterior(image_ids, torch.cat([text_ids, stored.text_ids]))  # (B, C)
    to_images = sampler.match_posterior(torch.cat([image_ids, stored.image_ids]), text_ids)
    if to_images is not None:
        to_images = to_images.T.contiguous()  # (B, C)
    bar = sampler.match_bar
    return {
        "i2t": galleries.negative_rows("i2t", library, criterion, image_embeds, text_keys,
                                       stored.text_keys, pairs, bank, captions, to_texts, bar),
        "t2i": galleries.negative_rows("t2i", library, criterion, text_embeds, image_keys,
                                       stored.image_keys, pairs, bank, captions, to_images, bar),
    }


@torch.no_grad()
def embed_pairs(
    run: Run, model: nn.Module, train_set: LoadedSplit, pairs: galleries.Pairs
) -> tuple[Tensor, Tensor]:
    """Return the embeddings of a few training pairs, in evaluation mode and without augmentation.

    Args:
        model: the dual encoder, or its momentum copy; its mode is restored afterwards.
        pairs: the B pairs.

    Returns:
        (B, D) unit rows of the photos and (B, D) of the captions.
    """
    options, was_training = run.options, model.training
    model.eval()
    if run.image_features is not None:
        image_features = run.image_features[pairs.image_ids.to(run.device)]
    else:
        pixels = torch.stack([
            fitted_pixels(load_from(train_set.photos, image), options.image_res, run.photo_fit)
            for image in pairs.image_ids.tolist()]).to(run.device)
        image_features = model.image_features(normalize(pixels, *run.pixel_statistics))
    if run.text_features is not None:
        text_features = run.text_features[pairs.text_ids.to(run.device)]
    else:
        input_ids, mask = train_set.captions.padded(
            [train_set.captions[text] for text in pairs.text_ids.tolist()])
        text_features = model.text_features(input_ids.to(run.device), mask.to(run.device))
    embeds = model.project_image(image_features), model.project_text(text_features)
    model.train(was_training)
    return embeds
