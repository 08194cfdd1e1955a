"""A pretrained pair through every command: scored, searched with, fine-tuned, taken along."""

import json
import shlex

import pytest
import torch
import transformers
from helpers.pairs import make_tokenizer, save_pair
from helpers.paths import ROOT
from helpers.runs import CPU, expect_exit

import evaluation
import export
import search
import train
from model import DualEncoder

TRAINED_TYPES = {"clip": "CLIPModel", "siglip": "SiglipModel", "align": "AlignModel",
                 "blip_retrieval": "BlipForImageTextRetrieval"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Return the folder of small pairs, by kind."""
    root = tmp_path_factory.mktemp("pairs")
    for kind in TRAINED_TYPES:
        save_pair(root / kind, kind, make_tokenizer(lower=True))
    return root


def words(data, *more):
    return ["--dataset", "shapes", "--data_path", str(data), "--workers", "0", *CPU, *more]


def fine_tuning(pair, data, folder, *more):
    """Return the command of a short fine-tuning of a pair."""
    return words(data, "--init", str(pair), "--recipe", "clip", "--loss", "infonce",
                 "--learning_rate", "1e-3", "--lr_warmup", "0", "--num_epochs", "2",
                 "--batch_size_train", "16", "--no_figures", "--logger_name", str(folder), *more)


@pytest.mark.parametrize("kind", TRAINED_TYPES)
def test_a_pair_is_scored_fine_tuned_exported_and_searched(pairs, data, tmp_path, kind, capsys):
    """What it was before its first step is what evaluation.py says of it."""
    pair, run, out = pairs / kind, tmp_path / "run", tmp_path / "out"
    evaluation.main([str(pair), *words(data, "--split", "val", "--output",
                                       str(tmp_path / "val.json"))])
    zero_shot = json.loads((tmp_path / "val.json").read_text())
    train.main(fine_tuning(pair, data, run))
    results = json.loads((run / "test_results.json").read_text())
    for name in "i2t_r1", "t2i_r10", "rsum":
        assert results["zero_shot"][name] == pytest.approx(zero_shot[name])
    export.main([str(run / "model_best.pth.tar"), str(out)])
    export.main([str(run / "checkpoint.pth.tar"), str(tmp_path / "last")])
    last = getattr(transformers, TRAINED_TYPES[kind]).from_pretrained(tmp_path / "last")
    trained = last.state_dict()
    before = getattr(transformers, TRAINED_TYPES[kind]).from_pretrained(pair).state_dict()
    assert trained.keys() == before.keys()
    assert any(not torch.equal(trained[name], before[name]) for name in trained)
    evaluation.main([str(out), *words(data, "--output", str(tmp_path / "test.json"))])
    again = json.loads((tmp_path / "test.json").read_text())
    assert again["rsum"] == pytest.approx(results["rsum"])
    capsys.readouterr()
    for model in pair, out:
        search.main([str(model), "--photos", str(data / "images"), "a red car", *CPU, "--index",
                     str(tmp_path / f"{model.name}.st"), "--workers", "0"])
        assert ".png" in capsys.readouterr().out


def test_the_outline_says_how_photos_and_captions_are_prepared(pairs, data, tmp_path, capsys):
    train.main(fine_tuning(pairs / "clip", data, tmp_path / "run", "--num_epochs", "1"))
    text = " ".join(capsys.readouterr().out.split())
    assert "photos cropped to the middle 32 x 32" in text and "captions as they are" in text
    assert "recipe clip: " in text
    train.main(fine_tuning(pairs / "clip", data, tmp_path / "other", "--num_epochs", "1",
                           "--image_fit", "squash", "--captions", "published"))
    text = " ".join(capsys.readouterr().out.split())
    assert "photos squashed to 32 x 32" in text and "clean words" in text


def test_a_pair_is_tested_without_writing_to_its_folder(pairs, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in (pairs / "clip").iterdir())
    train.main(words(data, "--test", "--resume", str(pairs / "clip")))
    results = json.loads((tmp_path / "runs" / "shapes_clip" / "test_results.json").read_text())
    assert "rsum" in results
    assert sorted(path.name for path in (pairs / "clip").iterdir()) == before


def test_a_stopped_fine_tuning_goes_on_to_the_bit(pairs, data, tmp_path):
    steps = "--lr_schedule", "steps", "--loss", "sigmoid"
    train.main(fine_tuning(pairs / "siglip", data, tmp_path / "whole", *steps))
    parts = fine_tuning(pairs / "siglip", data, tmp_path / "parts", *steps)
    train.main([*parts, "--num_epochs", "1"])
    train.main([word for word in parts if word not in ("--init", str(pairs / "siglip"))]
               + ["--resume", "auto"])
    for name in "whole", "parts":
        export.main([str(tmp_path / name / "checkpoint.pth.tar"), str(tmp_path / f"{name}_out")])
    models = [DualEncoder.from_pretrained(tmp_path / f"{name}_out") for name in ("whole", "parts")]
    assert models[0].logit_scale == models[1].logit_scale
    assert models[0].logit_bias == models[1].logit_bias
    for name, value in models[0].state_dict().items():
        assert torch.equal(models[1].state_dict()[name], value)


def test_the_commands_of_the_readme_run_with_a_small_pair(pairs, data, tmp_path, monkeypatch):
    """With a small pair in place of the Hub's, and the embedded photos in place of Flickr30K."""
    section = (ROOT / "README.md").read_text().partition("## Pretrained pairs")[2]
    lines = section.partition("```bash\n")[2].partition("```")[0].splitlines()
    monkeypatch.chdir(tmp_path)
    commands = {"evaluation.py": evaluation, "search.py": search, "train.py": train,
                "export.py": export}
    names = []
    for line in lines:
        _, command, *arguments = shlex.split(line.replace("$DATA_PATH/f30k/images", str(data)))
        names.append(command)
        arguments = [str(pairs / "clip") if word.startswith("openai/") else
                     str(data / "images") if word == "~/Pictures" else
                     "shapes" if word == "flickr" else word for word in arguments]
        if command in ("evaluation.py", "train.py"):
            arguments += ["--dataset", "shapes", "--workers", "0", *CPU]
        if command == "train.py":
            arguments += ["--num_epochs", "1", "--batch_size_train", "16", "--no_figures"]
        if command == "search.py":
            arguments += ["--index", "index.st", *CPU]
        commands[command].main(arguments)
    assert names == ["evaluation.py", "search.py", "train.py", "export.py"]
    assert transformers.CLIPModel.from_pretrained("models/flickr_clip")


@pytest.mark.parametrize("main", [evaluation.main, export.main, search.main])
def test_a_name_that_is_nowhere_is_one_line(main, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    more = {evaluation.main: words(data), export.main: [str(tmp_path / "out")],
            search.main: ["--photos", str(data / "images"), "a dog", *CPU]}[main]
    expect_exit(["somebody/no-such-pair", *more], 2, capsys, ["somebody/no-such-pair"], main)
    assert not (tmp_path / "out").exists()
