"""The loops that README and docs show, run as they stand there."""

import re

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers.paths import ROOT
from helpers.together import run_together

D = 256


class TwoTowers(torch.nn.Module):
    """Two linear towers onto the unit sphere."""

    def __init__(self):
        super().__init__()
        self.image, self.text = torch.nn.Linear(12, D), torch.nn.Linear(9, D)

    def forward(self, photos, captions):
        return F.normalize(self.image(photos), dim=1), F.normalize(self.text(captions), dim=1)


def block_of(page):
    """The Python code of a page that has the loss in a loop."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    [block] = [block for block in blocks if "bank.enqueue" in block]
    return block


def pairs():
    """40 photos with a caption each, in batches of 8."""
    torch.manual_seed(0)
    base = torch.randn(40, 5)
    photos, captions = base @ torch.randn(5, 12), base @ torch.randn(5, 9)
    return [(photos[rows], captions[rows], torch.arange(40)[rows])
            for rows in torch.arange(40).split(8)]


def loss_of(model, loader):
    """The in-batch triplet loss of a model on all batches."""
    from fne_loss import triplet_loss

    with torch.no_grad():
        return sum(float(triplet_loss(*model(photos, captions), ids, 0.2, True))
                   for photos, captions, ids in loader)


def test_the_loop_of_the_readme_trains():
    torch.manual_seed(1)
    model, loader = TwoTowers(), pairs()
    names = {"model": model, "loader": loader, "epochs": 20,
             "optimizer": torch.optim.Adam(model.parameters(), lr=0.01)}
    before = loss_of(model, loader)
    exec(block_of("README.md"), names)
    assert loss_of(model, loader) < before / 2
    assert len(names["bank"]) == 20 * 40 and names["criterion"].positive.count > 0
    moved = [not torch.equal(key, query) for key, query in
             zip(names["momentum_model"].parameters(), model.parameters())]
    assert all(moved)


def train_by_the_page(rank, count):
    """The loop of docs/own_loop.md on this process's rows; its model and bank.

    Each process begins with weights of its own, and the loop has to make them those of the first.
    """
    torch.manual_seed(1 + rank)
    model = TwoTowers()
    names, rows = {}, slice(rank * 8 // count, (rank + 1) * 8 // count)
    exec(block_of("docs/own_loop.md"), names)
    loader = [tuple(part[rows] for part in batch) for batch in pairs()]
    return names["train"](model, loader, 3, D)


@pytest.mark.parametrize("count", [2, 4])
def test_the_loop_of_several_processes_trains_as_one(tmp_path, count):
    """Weights and bank are those of one process, but for rounding."""
    def call(count):
        model, bank = train_by_the_page(dist.get_rank(), count)
        return [parameter.detach() for parameter in model.parameters()], bank.state_dict()

    [(alone, bank)] = run_alone(tmp_path, lambda: call(1))
    for weights, other in run_together(count, lambda: call(count), tmp_path / "many"):
        for one, many in zip(alone, weights):
            torch.testing.assert_close(many, one, rtol=1e-4, atol=1e-6)
        assert torch.equal(other["image_ids"], bank["image_ids"]) and len(other) == len(bank)
        torch.testing.assert_close(other["image_keys"], bank["image_keys"], rtol=1e-4, atol=1e-5)


def test_the_loop_of_several_processes_draws_anew_in_each_step(tmp_path):
    names, seeds = {}, []
    exec(block_of("docs/own_loop.md"), names)

    class Recorded(names["FNELoss"]):
        def forward(self, *tensors, **settings):
            seeds.append(torch.initial_seed())
            return super().forward(*tensors, **settings)

    names["FNELoss"] = Recorded
    run_alone(tmp_path, lambda: names["train"](TwoTowers(), pairs(), 2, D))
    assert len(seeds) == len(set(seeds)) == 2 * len(pairs())


def run_alone(tmp_path, call):
    """`call()` in a process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0,
                            world_size=1)
    try:
        return [call()]
    finally:
        dist.destroy_process_group()
