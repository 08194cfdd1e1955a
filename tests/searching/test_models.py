"""Where a model is found, and the fingerprint by which an index belongs to it."""

import shutil

import pytest
import torch

import export
from searching.models import fingerprint


@pytest.fixture
def model(exported):
    return export.read_model(exported)[0]


def test_a_checkpoint_and_its_export_have_one_fingerprint(model, finished, exported, tmp_path):
    wanted = fingerprint(model)
    assert wanted == fingerprint(export.read_model(finished / "model_best.pth.tar")[0])
    assert wanted == fingerprint(export.read_model(shutil.copytree(exported, tmp_path / "x"))[0])
    export.main([str(finished / "model_best.pth.tar"), str(tmp_path / "half"), "--dtype",
                 "bfloat16"])
    assert wanted != fingerprint(export.read_model(tmp_path / "half")[0])


def change_weight(model):
    with torch.no_grad():
        next(model.image_encoder.parameters())[0, 0] += 1e-3


def change_projection(model):
    with torch.no_grad():
        model.image_projection.bias[3] += 1e-3


@pytest.mark.parametrize("change", [
    change_weight, change_projection,
    lambda model: setattr(model, "bf16", True),
    lambda model: setattr(model, "image_pooling", "own"),
    lambda model: setattr(model, "preparation", model.preparation._replace(image_res=96)),
    lambda model: setattr(model, "preparation", model.preparation._replace(mean=[0.5] * 3)),
    lambda model: setattr(model, "preparation", model.preparation._replace(std=[0.5] * 3)),
    lambda model: setattr(model.image_encoder.config, "layer_norm_eps", 1e-3)])
def test_what_changes_a_photos_embedding_changes_the_fingerprint(model, change):
    before = fingerprint(model)
    assert fingerprint(model) == before
    change(model)
    assert fingerprint(model) != before


def test_the_text_encoder_does_not_change_the_fingerprint(model):
    before = fingerprint(model)
    with torch.no_grad():
        model.text_projection.bias += 1
    model.preparation = model.preparation._replace(max_words=3, prefix="x ")
    assert fingerprint(model) == before
