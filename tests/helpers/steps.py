"""Single training steps: a run, a batch for it, and what a step was given and gave."""

import torch
import torch.nn.functional as F

import checkpoint
import train
from common.ranks import local_rows
from data import NO_PHOTO, Batch
from encoders.processors import load_tokenizer
from helpers.runs import command
from inputs.captions import Captions
from training.objectives.base import Objective
from training.options import parse
from training.run import build_run
from training.true_matches import TrueMatches

B = 16
SIZES, COLOURS = ("", "small ", "large "), ("red", "green", "blue", "black")
SHAPES = "circle", "square", "star", "cross", "triangle"
TEXTS = [f"a {SIZES[n % 3]}{COLOURS[n % 4]} {SHAPES[n % 5]}" for n in range(B)]  # all different


def make_run(folder, *more, train_set=None):
    """A run at its start whose photos nobody reads, and two batches for it."""
    torch.manual_seed(0)
    options, _ = parse("", command(folder, folder, *more))
    tokenizer = load_tokenizer(options.text_encoder, options.vocab)
    model = checkpoint.model_for_training(options, None, None, tokenizer)
    run = build_run(options, model, tokenizer, 7, train_set)
    run.photos = [folder / f"photo_{number}.jpg" for number in range(24)]
    captions = Captions(TEXTS, tokenizer, 30, 30)
    ids, mask = captions.padded([captions[number] for number in range(B)])
    batches = [Batch(torch.randint(0, 256, (B, 3, 64, 64), dtype=torch.uint8), ids, mask,
                     torch.arange(B) + shift, torch.arange(B), torch.full((B,), NO_PHOTO))
               for shift in (0, 8)]
    return run, [batch.to(run.device) for batch in batches]


def run_on_its_way(folder, *more):
    """A run with two steps of its second epoch, the first of FNE, behind it; and a batch."""
    run, batches = make_run(folder, *more)
    run.epoch = 1
    for batch in batches:
        take_step(run, batch)
    return run, batches[0]


def run_with_a_bank(folder, *more):
    """A run at the start of FNE, its bank full of random keys, without dropout; and a batch.
    What it computes depends on no random number but that of the draw."""
    run, batches = make_run(folder, *more)
    run.epoch = 1
    run.model.eval()
    run.objective.eval()
    size, dim = run.objective.bank.image_keys.shape
    keys = F.normalize(torch.randn(2, size, dim, generator=torch.Generator().manual_seed(0)), dim=2)
    ids = torch.arange(100, 100 + size, device=run.device)
    run.objective.bank.enqueue(*keys.to(run.device), ids)
    return run, batches[0]


def take_step(run, batch):
    """One training step on this process's part of a batch, counted; its loss."""
    loss = train.training_step(run, local_part(batch))
    run.global_step += 1
    return loss


def local_part(batch):
    """What this process has of a batch: pixels and tokens of its own pairs, ids of all."""
    local = local_rows(len(batch.image_ids))
    return batch._replace(pixels=batch.pixels[local], input_ids=batch.input_ids[local],
                          attention_mask=batch.attention_mask[local])


def kept(run):
    """All that a bad step must leave as it is, but for the counts of such steps."""
    state = checkpoint.pack(run)
    return {name: state[name] for name in ("model", "optimizer", "log_scale") if name in state}


def clone(state):
    """A copy of a state that later steps leave alone."""
    return torch.utils._pytree.tree_map(
        lambda value: value.clone() if isinstance(value, torch.Tensor) else value, state)


def all_finite(state):
    """Whether all numbers in a state's tensors are finite."""
    return all(value.isfinite().all() for value in torch.utils._pytree.tree_leaves(state)
               if isinstance(value, torch.Tensor))


def recorded(monkeypatch, owner, name):
    """A list that gets (arguments, result) of each call of a function or method from now on."""
    calls, function = [], getattr(owner, name)

    def record(*arguments, **keywords):
        result = function(*arguments, **keywords)
        calls.append((arguments, result))
        return result

    monkeypatch.setattr(owner, name, record)
    return calls


def set_matches(run, matrix):
    """Have the objective of a run know the true matches (N_t, N_i)."""
    for objective in run.objective.modules():
        if isinstance(objective, Objective):
            objective.matches = TrueMatches(matrix)
