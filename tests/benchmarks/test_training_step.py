"""The benchmark of a training step counts the operations of the bare encoders."""

import pytest
import training_step
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig

from encoders.loading import BUILT_IN


@pytest.mark.parametrize("length", [16, 40])
def test_necessary_flops_are_those_that_pytorch_counts(
        encoders_as_shipped, monkeypatch, length):
    monkeypatch.setattr(training_step, "TOKENS", length)
    flags = ["--image_encoder", "small-vit", "--batch_size_train", "4", "--queue_size", "8",
             "--embed_size", "0", "--text_encoder", "bert-192"]
    monkeypatch.setitem(BUILT_IN, "bert-192", lambda size, words: BertConfig(
        vocab_size=words, hidden_size=192, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=500))
    run = training_step.make_run([*training_step.SMALL, *flags], "cpu")
    for encoder in run.model, run.objective.momentum_model:  # fused attention is not counted
        encoder.image_encoder.set_attn_implementation("eager")
        encoder.text_encoder.set_attn_implementation("eager")
    batch = training_step.random_batch(run)
    with FlopCounterMode(display=False) as counter:
        training_step.bare_encoders(run, batch)
    assert counter.get_total_flops() == pytest.approx(training_step.necessary_flops(run), rel=0.01)
