"""The deliberate differences that concern the program as a whole; the README numbers them.

Notes 2, 4, 5 and 6 have their tests beside the code that they concern:
`test_released_checkpoints.py` and `test_golden.py`.
"""

import json

import numpy as np
import pytest
import torch
from helpers.paths import ROOT
from helpers.runs import CPU, command

import evaluation
import train
from data import NO_PHOTO, Collator, load_eval_set, read_split
from encoders.processors import load_tokenizer
from evaluation import encode_split
from inputs.captions import Captions
from metrics.retrieval import retrieval_metrics
from model import build_model
from training.options import parse

VOCAB = ROOT / "vocab" / "flickr30k.txt"


def test_fidelity_note_1_validation_returns_to_training_mode(data):
    """As released, evaluation leaves dropout off: two passes agree. Ours has it on again."""
    options, _ = parse("", ["--dataset", "shapes", "--workers", "0", "--data_path", str(data),
                            *CPU])
    tokenizer = load_tokenizer(options.text_encoder, options.vocab)
    model = build_model(options, tokenizer)
    inputs = torch.arange(5, 21).reshape(1, 16), torch.ones(1, 16, dtype=torch.int64)
    encode_split(model, load_eval_set(options, "val", tokenizer), options)
    assert model.training
    assert not torch.equal(model.encode_text(*inputs), model.encode_text(*inputs))
    model.eval()  # the published behaviour until the next epoch
    assert torch.equal(model.encode_text(*inputs), model.encode_text(*inputs))


def test_fidelity_note_3_long_captions_are_cut_in_training_too():
    """30 rare words make far more than 30 tokens; as released they would all be kept here."""
    tokenizer = load_tokenizer("small-bert", VOCAB)
    text = " ".join(["xylophonist"] * 40)
    released = tokenizer([" ".join(text.split()[:30])])["input_ids"][0]
    captions = Captions([text], tokenizer, 30, 30)
    ours = captions[0]
    assert len(released) > 60 and len(ours) == 30
    items = [(torch.zeros(3, 2, 2, dtype=torch.uint8), ours, 0, 0, NO_PHOTO)]
    assert Collator(captions)(items).input_ids.shape == (1, 30)


def test_fidelity_note_7_test_needs_no_resume_and_data_path_is_a_flag(tmp_path, capsys):
    """As released, --test without --resume scores random weights; ours asks for a checkpoint."""
    with pytest.raises(SystemExit) as caught:
        train.main(["--dataset", "flickr", "--data_path", str(tmp_path), "--test",
                    "--logger_name", str(tmp_path), *CPU])
    assert caught.value.code == 2 and "model_best.pth.tar" in capsys.readouterr().err
    spelled = [parse("", [flag, "somewhere"])[0].data_path
               for flag in ("--data_path", "--image_root")]
    assert spelled[0] == spelled[1] and str(spelled[0]) == "somewhere"


def test_fidelity_note_8_the_test_split_is_scored_once(data, tmp_path, monkeypatch):
    """As released, every validation scores it too: here seven of them, but one test at the end."""
    scored = []

    def spy(model, eval_set, *rest):
        scored.append(eval_set.split.source.name)
        return encode_split(model, eval_set, *rest)

    monkeypatch.setattr(evaluation, "encode_split", spy)
    train.main(command(data, tmp_path, "--num_epochs", "2"))
    assert scored == ["shapes_val.json"] * 7 + ["shapes_test.json"]


def test_fidelity_note_9_captions_are_mapped_to_photos(tmp_path, monkeypatch):
    """A photo with six captions shifts all after it where five are assumed; ours is not misled."""
    monkeypatch.chdir(tmp_path)
    records = [{"image": f"{number}.jpg", "caption": [f"{number} {k}" for k in range(count)]}
               for number, count in enumerate((6, 5, 5, 5))]
    (tmp_path / "coco_test.json").write_text(json.dumps(records))
    split = read_split("mscoco", "test", tmp_path)
    images = np.eye(4)
    perfect = images[split.image_of_text]  # a model that makes no mistake
    assert retrieval_metrics(images, perfect, split.image_of_text)["rsum"] == 600
    assumed = np.arange(len(perfect)) // 5 % 4
    assert retrieval_metrics(images, perfect, assumed)["t2i_r1"] < 100
    five = read_split("mscoco", "test", tmp_path, captions_per_image=5)
    assert len(five.captions) == 20 and "0 5" in split.captions and "0 5" not in five.captions
