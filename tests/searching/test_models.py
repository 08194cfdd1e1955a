"""Where a model is found, and the fingerprint by which an index belongs to it."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.paths import GOLDEN

import export
from common.errors import InputError
from encoders import hub
from searching import models
from searching.models import fingerprint, model_place


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


def test_files_and_folders_come_before_names_of_the_hub(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "snapshot_download", lambda *given, **more: pytest.fail("asked"))
    monkeypatch.chdir(exported.parent)
    for path in Path(exported.name), exported, GOLDEN / "released_checkpoint/model_best.pth.tar":
        assert model_place(path) == path
    assert model_place(Path("runs/x/y.tar")) == Path("runs/x/y.tar")  # no name of the Hub


def test_a_model_on_the_hub_is_downloaded_without_pickles(exported, monkeypatch):
    requests = []

    def download(name, **settings):
        requests.append((name, settings["allow_patterns"]))
        return str(exported)

    monkeypatch.setattr(models, "snapshot_download", download)
    monkeypatch.setattr(hub, "hub_error", lambda: None)
    assert model_place(Path("somebody/model")) == exported
    assert requests == [("somebody/model", ["*.json", "*/model.safetensors", "README.md"])]


def test_a_name_that_is_nowhere_is_refused(offline):
    with pytest.raises(InputError, match="somebody/model"):
        model_place(Path("somebody/model"))
