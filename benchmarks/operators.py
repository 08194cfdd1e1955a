"""Count the operators of a training step by its parts, and the graph breaks of its loss.

    python benchmarks/operators.py
    python benchmarks/operators.py --chunk 8

A step of FNE in the structure of the published setting: a ViT and a BERT of 12 layers, their
momentum encoders, B 32, M 8,224, negatives drawn as on a GPU. Encoders and photos are small, which
changes no count. It runs on a CPU. Each operator is about one kernel that a GPU launches, where
views and empty tensors launch none. "casts" are changes of type, and "of weights" those of the
encoders' weights.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    from common.start import begin_command
    begin_command()

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training_step import PUBLISHED, make_run, random_batch, step
from transformers import BertConfig, ViTConfig

import negative_sampling
from common.errors import exit_on_input_error
from encoders.loading import BUILT_IN
from training import guard
from training.run import Run

WIDTH = dict(hidden_size=48, num_attention_heads=4, intermediate_size=96)
NARROW_ENCODERS = {"vit-base": lambda size, words, **more: ViTConfig(
    image_size=size, **WIDTH, **more),
                   "bert-base": lambda size, words, **more: BertConfig(**WIDTH, **more)}
# In the order of a step.
PARTS = ["photos made ready and online encoders", "ranking of the batch and statistics",
         "momentum update", "histograms of similarities", "momentum encoders",
         "draw, posterior, hinge", "backward", "clipping, check of the gradients, optimizer",
         "logged values", "memory bank"]
WITHOUT_KERNEL = ("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty")


class OperatorCounter(TorchDispatchMode):
    """Count the operators that compute, from one call of `lap` to the next.

    Args:
        weights: tensors whose casts are counted on their own.
    """

    def __init__(self, weights: list[torch.Tensor]):
        super().__init__()
        self.weights = {weight.data_ptr() for weight in weights}
        self.counts = Counter()
        self.laps: list[Counter] = []

    def __torch_dispatch__(self, function, types, inputs=(), settings=None):
        name = function.overloadpacket.__name__
        if not function.is_view and name not in WITHOUT_KERNEL:
            self.counts["operators"] += 1
            if name == "_to_copy":
                self.counts["casts"] += 1
                self.counts["of weights"] += inputs[0].data_ptr() in self.weights
        return function(*inputs, **(settings or {}))

    def lap(self, name: str) -> None:
        """Keep the counts since the last lap, if there are any, and start anew."""
        if self.counts:
            self.laps.append(self.counts)
        self.counts = Counter()

    def lap_around(self, call: Callable) -> Callable:
        """Return `call` with a lap before and after it."""

        def with_laps(*arguments, **keywords):
            self.lap("")
            result = call(*arguments, **keywords)
            self.lap("")
            return result

        return with_laps


def count_operators(run: Run) -> dict[str, Counter]:
    """Count the operators of a step of `run`, which changes it in place.

    Returns:
        For each of `PARTS` the numbers of "operators", "casts" and casts "of weights".
    """
    batch = random_batch(run)
    step(run, batch)  # the first one also makes the optimizer's moments
    counter = OperatorCounter([*run.model.parameters(),
                               *run.objective.momentum_model.parameters()])
    run.clock = SimpleNamespace(lap=counter.lap)
    objective = run.objective
    with (mock.patch.object(negative_sampling, "EXACT_UP_TO", 2**62),
          mock.patch.object(objective, "update_momentum",
                            counter.lap_around(objective.update_momentum)),
          mock.patch.object(guard, "guarded_step", counter.lap_around(guard.guarded_step)),
          mock.patch.object(objective, "after_step", counter.lap_around(objective.after_step)),
          counter):
        step(run, batch)
    return dict(zip(PARTS, counter.laps, strict=True))


def graph_breaks(run: Run) -> tuple[int, int]:
    """Return how many graphs `torch.compile` makes of draw and hinge, and its breaks."""
    batch, dim = run.options.batch_size_train, run.model.embed_size
    embeds = torch.nn.functional.normalize(torch.randn(4, batch, dim), dim=2)
    ids = torch.arange(batch)
    with mock.patch.object(negative_sampling, "EXACT_UP_TO", 2**62):
        torch._dynamo.reset()
        found = torch._dynamo.explain(run.objective.draw_and_hinge)(
            *embeds.requires_grad_().unbind(), ids, ids, 0, (None, None))
    return found.graph_count, found.graph_break_count


def print_counts(short: bool, chunk: int) -> None:
    """Print the table of operators, and the graphs and breaks of the loss.

    Args:
        short: Whether to count with encoders of two layers and a small bank.
        chunk: Of --chunk; 0 for a step without.
    """
    layers = {"num_hidden_layers": 2 if short else 12}
    narrow = {name: lambda size, words, config=config: config(size, words, **layers)
              for name, config in NARROW_ENCODERS.items()}
    flags = [*PUBLISHED, "--image_res", "64", "--chunk", str(chunk),
             *(["--queue_size", "64"] if short else [])]
    with mock.patch.dict(BUILT_IN, narrow):
        runs = {precision: make_run([*flags, "--precision", precision], "cpu")
                for precision in ("fp32", "bf16")}
    for run in runs.values():
        run.train_mode()
    fp32, bf16 = (count_operators(run) for run in runs.values())
    print("| part | operators in float32 | in bfloat16 | casts | of weights |")
    print("|---|---|---|---|---|")
    for part in PARTS:
        print(f"| {part} | {fp32[part]['operators']:,} | {bf16[part]['operators']:,} | "
              f"{bf16[part]['casts']:,} | {bf16[part]['of weights']:,} |")
    graphs, breaks = graph_breaks(runs["fp32"])
    print(f"\ndraw and hinge under torch.compile: graphs {graphs}, breaks {breaks}")


def main(argv: list[str] | None = None) -> None:
    """Run the command with the arguments `argv`, or with those of the process."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true",
                        help="encoders of two layers and a small bank, to see that it runs")
    parser.add_argument("--chunk", type=int, default=0,
                        help="of train.py; 0 for none (%(default)s)")
    arguments = parser.parse_args(argv)
    with exit_on_input_error():
        print_counts(arguments.short, arguments.chunk)


if __name__ == "__main__":
    main()
