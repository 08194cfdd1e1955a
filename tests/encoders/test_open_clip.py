"""Pairs of open_clip: embeddings and logits are the library's own, from a file to the number."""

import json

import pytest
import torch
from helpers.pairs import WORDS, embed, make_tokenizer, same
from PIL import Image
from safetensors.torch import save_file

import evaluation
import export
from common.errors import InputError
from common.options import parse_export
from model import DualEncoder

open_clip = pytest.importorskip("open_clip")

LENGTH = 24
CAPTIONS = ["Two dogs play in the snow.", "A red car!  isn't it <nice>, 42nd",
            "Ein Straßenfest – über 100 Leute", "x " * 200]
TEXT = {"context_length": LENGTH, "width": 32, "heads": 2, "layers": 2}
CONFIGS = {
    "clip": {"embed_dim": 16, "text_cfg": TEXT | {"vocab_size": 49408}, "vision_cfg": {
        "image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}},
    "siglip": {
        "embed_dim": 64, "init_logit_bias": -10.0, "custom_text": True,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit",
                       "timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": TEXT | {
            "vocab_size": len(WORDS), "hf_tokenizer_name": "its/own", "no_causal_mask": True,
            "proj_bias": True, "pool_type": "last", "tokenizer_kwargs": {"clean": "canonicalize"}}},
}
PREPROCESSING = {
    "clip": {"mean": [0.4, 0.5, 0.6], "std": [0.3] * 3, "interpolation": "bicubic",
             "resize_mode": "shortest"},
    "siglip": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear",
               "resize_mode": "squash"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return the folders of small random pairs in open_clip's format, by kind."""
    root = tmp_path_factory.mktemp("open_clip")
    for kind, config in CONFIGS.items():
        folder = root / kind
        folder.mkdir()
        (folder / "open_clip_config.json").write_text(json.dumps(
            {"model_cfg": config, "preprocess_cfg": PREPROCESSING[kind]}))
        torch.manual_seed(0)
        settings = {name: value for name, value in config.items() if name != "custom_text"}
        kind_of_model = open_clip.CLIP if kind == "clip" else open_clip.CustomTextCLIP
        model = kind_of_model(**settings)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
        save_file({name: value.clone() for name, value in model.state_dict().items()},
                  folder / "open_clip_model.safetensors")
    make_tokenizer(length=LENGTH).save_pretrained(root / "siglip")
    return root


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_embeddings_and_logits_are_those_of_the_library(folders, photos, kind):
    library_name = f"local-dir:{folders / kind}"
    pair, _, prepare = open_clip.create_model_and_transforms(library_name)
    pixels = torch.stack([prepare(Image.open(photo)) for photo in photos])
    tokens = open_clip.get_tokenizer(library_name)(CAPTIONS)
    model = DualEncoder.from_pretrained(folders / kind)
    image_embeds, text_embeds = embed(model, photos, CAPTIONS)
    same(image_embeds, pair.eval().encode_image(pixels, normalize=True))
    same(text_embeds, pair.encode_text(tokens, normalize=True))
    same(model.logits_per_image(image_embeds, text_embeds), pair.get_logits(pixels, tokens)[0])
    assert model.preparation.max_tokens == LENGTH
    assert (text_embeds[0] - text_embeds[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_export_needs_no_file_of_the_pair(folders, photos, tmp_path, kind):
    export.export(parse_export("", [str(folders / kind), str(tmp_path)]))
    before, after = (DualEncoder.from_pretrained(place) for place in (folders / kind, tmp_path))
    assert all(map(torch.equal, embed(before, photos), embed(after, photos)))
    assert after.logit_scale == before.logit_scale and after.logit_bias == before.logit_bias
    assert "cannot load it" in (tmp_path / "README.md").read_text()


def test_a_repository_of_the_hub_is_taken_by_either_name(folders, photos, monkeypatch):
    """With a folder in place of the Hub."""
    from encoders import hub, open_clip_pairs

    monkeypatch.setattr(hub.huggingface_hub, "hf_hub_download",
                        lambda name, file, **more: str((folders / "clip" / file).resolve(True)))
    monkeypatch.setattr(open_clip_pairs, "snapshot_download",
                        lambda name, **more: str(folders / "clip"))
    wanted = embed(DualEncoder.from_pretrained(folders / "clip"), photos)
    for name in "hf-hub:somebody/pair", "somebody/pair":
        assert all(map(torch.equal, embed(DualEncoder.from_pretrained(name), photos), wanted))


@pytest.mark.parametrize(("change", "reason"), [
    (lambda config: config.update(multimodal_cfg={}), "writes captions"),
    (lambda config: config["text_cfg"].update(hf_model_name="roberta-base"), "transformers"),
    (lambda config: config["text_cfg"].update(tokenizer_mode="clips"), "tokens"),
    (lambda config: config["text_cfg"].update(tokenizer_kwargs={"reduction_mask": "random"}),
     "tokens"),
    (lambda config: config["vision_cfg"].update(nonsense=5), "nonsense")])
def test_a_kind_that_is_not_supported_is_refused_in_one_line(folders, tmp_path, change, reason):
    content = json.loads((folders / "clip" / "open_clip_config.json").read_text())
    change(content["model_cfg"])
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=reason) as caught:
        DualEncoder.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [
    {"timm_model_name": "hf_hub:evil/model"}, {"timm_model_name": "/etc/passwd"},
    {"layers": 10**9}, {"width": 64}])
def test_a_stored_configuration_leads_to_no_other_file(folders, tmp_path, change):
    export.export(parse_export("", [str(folders / "clip"), str(tmp_path / "out")]))
    path = tmp_path / "out" / "image_0_Transformer" / "config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["vision_cfg"].update(change)
    path.write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        DualEncoder.from_pretrained(tmp_path / "out")
    assert str(tmp_path / "out") in str(caught.value) and "\n" not in str(caught.value)


def test_without_the_library_one_line_says_what_to_install(folders, monkeypatch, capsys):
    import builtins

    imported = builtins.__import__

    def refuse(name, *arguments, **more):
        if name.split(".")[0] == "open_clip":
            raise ImportError("No module named 'open_clip'")
        return imported(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(SystemExit) as caught:
        evaluation.main([str(folders / "clip"), "--data_path", str(folders)])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1
    assert "requirements-pairs.txt" in error
