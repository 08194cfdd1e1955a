"""What would slow a run down: encoders that are not compiled, and waiting for the device."""

import functools

import pytest
import torch
import transformers
from helpers.stopping import in_a_child, status_of
from torch.utils._python_dispatch import TorchDispatchMode

from model import DualEncoder, compile_encoders, momentum_copy

RES = 32
IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0], [2, 9, 8, 3, 0]])
MASK = (IDS != 0).long()
SIZES = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
             initializer_range=0.3)


def small():
    """Return a dual encoder of the published types, but small."""
    torch.manual_seed(0)
    vision = transformers.ViTConfig(image_size=RES, patch_size=8, **SIZES)
    text = transformers.BertConfig(vocab_size=40, max_position_embeddings=12, **SIZES)
    return DualEncoder(transformers.ViTModel(vision), transformers.BertModel(text), image_res=RES,
                       max_tokens=12)


def photos(number=3):
    return torch.randn(number, 3, RES, RES, generator=torch.Generator().manual_seed(2))


def test_each_compiled_encoder_runs_as_one_graph():
    """Warm-up, validation and FNE run as one graph for each encoder, momentum encoders included.

    In a child process: compiling starts threads, after which a fork of this process could not run a
    backward pass.
    """
    assert status_of(in_a_child(check_graphs)) == 0


@pytest.mark.parametrize(("version", "warns"), [
    ("4.57.1", False), ("5.8.0", False), ("5.9.0", True), ("5.17.2", True), ("5.18.0.dev0", False)])
def test_a_version_whose_compiled_attention_is_slow_is_warned_of(
        version, warns, monkeypatch, capsys):
    monkeypatch.setattr(transformers, "__version__", version)
    compile_encoders()
    assert ("transformers>=5.18" in capsys.readouterr().err) == warns


def check_graphs():
    """Count the graphs that are made and run.

    All four encoders share the code whose graphs PyTorch counts. Past its limit they would not be
    compiled.
    """
    graphs, runs = [], []

    def backend(graph, examples):
        graphs.append(graph)
        return lambda *inputs: (runs.append(graph), graph.forward(*inputs))[1]

    def encode(encoder, size, length):
        """Return how many graphs a forward pass of both encoders makes, and how many it runs."""
        before = len(graphs), len(runs)
        encoder.encode_image(photos(size))
        encoder.encode_text(torch.full((size, length), 5), torch.ones(size, length))
        return len(graphs) - before[0], len(runs) - before[1]

    def epoch(momentum):
        """Run steps with captions of two lengths, and a validation whose last batch is short."""
        counts = []
        for length in 9, 7:
            counts.append(encode(model.train(), 4, length))
            with torch.no_grad():
                counts += [encode(copy.train(), 4, length)] if momentum else []
        with torch.no_grad():
            return counts + [encode(model.eval(), *shape) for shape in ((6, 8), (3, 6))]

    torch.compile = functools.partial(torch.compile, backend=backend)
    model = small()
    copy = momentum_copy(model)
    with torch._dynamo.config.patch(recompile_limit=4):  # the usual 8 takes longer to reach
        compile_encoders(model, copy)
        assert [ran for _, ran in epoch(False) + epoch(True)] == [2] * 10
        assert epoch(True) == [(0, 2)] * 6
        assert 4 < len(graphs) < torch._dynamo.config.recompile_limit


class ReadsNothingBack(TorchDispatchMode):
    """Fail where Python reads a tensor's number, for which it would wait for a GPU."""

    def __torch_dispatch__(self, function, types, inputs=(), settings=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "a number is read back"
        return function(*inputs, **settings or {})


@pytest.mark.skipif(int(transformers.__version__.split(".")[0]) < 5,
                    reason="transformers 4 takes no prepared mask")
@pytest.mark.parametrize("mask", [MASK, torch.ones_like(MASK)])
def test_no_step_reads_the_mask_back(mask):
    """transformers by itself reads a mask (B, L) back, to see whether it has zeros."""
    model, ids = small().eval(), IDS.clone()
    wanted = model.encode_text(ids, mask)
    assert model.uses_4d_mask
    with ReadsNothingBack():
        model.train().encode_image(photos())
        got = model.eval().encode_text(ids, mask)
    assert torch.equal(got, wanted)
    with pytest.raises(AssertionError, match="read back"), ReadsNothingBack():
        model.text_encoder(input_ids=ids, attention_mask=mask)
    model.uses_4d_mask = False
    assert torch.equal(model.encode_text(ids, mask), wanted)
