"""The authors' checkpoints: recognised, read without running code, mapped, scored, fine-tuned."""

import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import oracle
from helpers.paths import GOLDEN
from helpers.photos import released_of_six, six_photos
from helpers.runs import CPU
from helpers.steps import recorded

import checkpoint
import train
from common.errors import InputError
from data import NO_PHOTO, Batch
from encoders.processors import load_tokenizer
from inputs.captions import Captions, pad_captions
from model import update_momentum
from training.options import parse
from training.run import build_run

FOLDER = GOLDEN / "released_checkpoint"
RELEASED, IMAGE, TEXT = (str(FOLDER / name)
                         for name in ("model_best.pth.tar", "image_encoder", "text_encoder"))


@pytest.fixture(scope="module")
def expected():
    return {key: torch.from_numpy(value) if value.dtype.kind in "fi" else value.tolist()
            for key, value in np.load(FOLDER / "expected.npz").items()}


@pytest.fixture
def altered(tmp_path):
    """Writes the released checkpoint with its first model dictionary changed."""
    def write(change):
        state = checkpoint.read(FOLDER / "model_best.pth.tar")
        change(state)
        path = tmp_path / "altered.pth.tar"
        torch.save(state, path)
        return path
    return write


def released_momentum_model():
    """The momentum towers of the released checkpoint, in evaluation mode."""
    options = SimpleNamespace(image_encoder=IMAGE, text_encoder=TEXT, text_pooling="padded",
                              image_res=32)
    state = checkpoint.read(FOLDER / "model_best.pth.tar")
    return checkpoint.released_dual_encoder(options, state, FOLDER, momentum=True)


def test_embeddings_are_those_of_the_released_program(expected):
    model = checkpoint.load_released(RELEASED, IMAGE, TEXT)
    assert not model.training
    with torch.no_grad():
        images = model.encode_image(expected["pixel_values"])
        texts = model.encode_text(expected["input_ids"], expected["attention_mask"])
    torch.testing.assert_close(images, expected["image_embeds"], rtol=0, atol=1e-5)
    torch.testing.assert_close(texts, expected["text_embeds"], rtol=0, atol=1e-5)
    # What a loader gets that picks the momentum encoder is far away, and is what ours gives for it.
    with torch.no_grad():
        keys = released_momentum_model().encode_image(expected["pixel_values"])
    torch.testing.assert_close(keys, expected["momentum_image_embeds"], rtol=0, atol=1e-5)
    assert (keys - images).abs().max() > 0.1


def test_token_ids_are_those_of_the_released_program(expected):
    """Also a caption of 51 words, which both cut to 30 tokens."""
    captions = Captions(expected["captions"], load_tokenizer(TEXT, ""), 30, 30)
    ids, mask = pad_captions([captions[i] for i in range(len(captions))], 0, 30)
    assert torch.equal(ids, expected["input_ids"])
    assert torch.equal(mask, expected["attention_mask"])


def test_fidelity_note_2_padding_is_averaged_only_as_released(expected):
    """A released checkpoint averages the padding too; our own pooling gives other embeddings."""
    model = checkpoint.load_released(RELEASED, IMAGE, TEXT)
    inputs = expected["input_ids"], expected["attention_mask"]
    short = [tensor[:, : int(expected["attention_mask"].sum(1).max())] for tensor in inputs]
    model.text_pooling = "tokens"
    with torch.no_grad():
        ours, ours_shorter = model.encode_text(*inputs), model.encode_text(*short)
    # Captions that fill all 30 places have no padding, and there both are the same.
    full = expected["attention_mask"].sum(1) == 30
    gap = (ours - expected["text_embeds"]).abs().amax(1)
    assert full.any() and gap[full].max() < 1e-5 and gap[~full].min() > 1e-2
    torch.testing.assert_close(ours, ours_shorter, rtol=0, atol=1e-5)


@pytest.fixture
def photos(tmp_path):
    return six_photos(tmp_path / "images", "flickr30k")


def command(photos, tmp_path, *more):
    return ["--dataset", "flickr", "--data_path", str(photos), "--resume", RELEASED,
            "--image_encoder", IMAGE, "--text_encoder", TEXT, "--workers", "0",
            "--logger_name", str(tmp_path / "run"), *CPU, *more]


def test_one_command_scores_it(photos, tmp_path, capsys):
    train.main(command(photos, tmp_path, "--test"))
    results = json.loads((tmp_path / "run" / "test_results.json").read_text())
    assert "R@10" in capsys.readouterr().out and 0 <= results["rsum"] <= 600


def test_settings_come_from_it(photos, tmp_path):
    options, given = parse("", command(photos, tmp_path, "--test"))
    path = FOLDER / "model_best.pth.tar"
    checkpoint.merge_options(options, given, checkpoint.read(path), path)
    assert (options.image_res, options.text_pooling, options.embed_size) == (32, "padded", 0)
    assert (options.queue_size, options.nums_right_sims) == (64, 20)


def test_fine_tuning_carries_everything_over(photos, tmp_path, capsys):
    path = released_of_six(RELEASED, tmp_path / "six.pth.tar")
    train.main(command(photos, tmp_path, "--num_epochs", "1", "--batch_size_train", "4",
                       "--resume", path))
    assert "optimizer, statistics and epoch count start fresh" in capsys.readouterr().out
    state = checkpoint.read(tmp_path / "run" / "checkpoint.pth.tar")
    released = checkpoint.read(FOLDER / "model_best.pth.tar")["model"][0]
    ids = released["idx_queue"][0] % 6
    start = int(released["queue_ptr"])
    touched = [(start + i) % 64 for i in range(12)]  # 12 pairs in 3 steps of 4
    kept = [slot for slot in range(64) if slot not in touched]
    assert torch.equal(state["bank"]["image_ids"][kept], ids[kept])
    assert torch.equal(state["bank"]["text_keys"][kept], released["text_queue"].T[kept])
    assert int(state["bank"]["pointer"]) == (start + 12) % 64
    momentum = state["momentum_model"]["text_encoder.embeddings.word_embeddings.weight"]
    released_momentum = released["text_encoder_m.embeddings.word_embeddings.weight"]
    online = released["text_encoder.embeddings.word_embeddings.weight"]
    assert (momentum - released_momentum).abs().max() < (online - released_momentum).abs().max()


def test_fine_tuning_in_its_own_folder_does_not_overwrite_it(photos, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    released = (FOLDER / "model_best.pth.tar").read_bytes()
    (folder / "model_best.pth.tar").write_bytes(released)
    arguments = command(photos, tmp_path, "--num_epochs", "1", "--batch_size_train", "4")
    arguments[arguments.index("--resume") + 1] = str(folder / "model_best.pth.tar")
    train.main(arguments)
    assert (folder / "previous_1" / "model_best.pth.tar").read_bytes() == released
    assert (folder / "model_best.pth.tar").read_bytes() != released


def run_from_it(photos, tmp_path):
    """A run at its first step from the released checkpoint, with dropout off."""
    options, given = parse("", command(photos, tmp_path))
    path = FOLDER / "model_best.pth.tar"
    state = checkpoint.read(path)
    checkpoint.merge_options(options, given, state, path)
    tokenizer = load_tokenizer(TEXT, "")
    model = checkpoint.model_for_training(options, state, path, tokenizer)
    run = build_run(options, model, tokenizer, steps_per_epoch=10)
    checkpoint.unpack(run, state, path)
    run.model.eval()
    run.objective.momentum_model.eval()
    return run


@torch.no_grad()
def embeddings_of_a_step(run, batch):
    """Online embeddings and momentum keys of a batch, (B, D) each: by the released towers, loaded
    anew, the momentum ones a step closer to the online ones."""
    online, momentum = checkpoint.load_released(RELEASED, IMAGE, TEXT), released_momentum_model()
    update_momentum(momentum, online, run.options.momentum)
    pixels = train.normalize(batch.pixels, *run.pixel_statistics)
    text = batch.input_ids, batch.attention_mask
    return (online.encode_image(pixels), online.encode_text(*text),
            momentum.encode_image(pixels), momentum.encode_text(*text))


def test_a_step_from_it_gives_the_loss_of_the_formulas(photos, tmp_path, expected, monkeypatch):
    """The loop's loss against the oracle's hinge on what the loop drew, from embeddings that are
    computed here."""
    run = run_from_it(photos, tmp_path)
    batch = Batch(torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8),
                  expected["input_ids"][:6], expected["attention_mask"][:6],
                  torch.arange(1000, 1006), torch.arange(6), torch.full((6,), NO_PHOTO))
    embeds = images, texts, image_keys, text_keys = embeddings_of_a_step(run, batch)
    bank = run.objective.bank
    image_bank, text_bank = bank.image_keys.clone(), bank.text_keys.clone()
    draws = recorded(monkeypatch, run.objective.criterion, "draw")

    loss = train.training_step(run, batch)

    [(given, (i2t, t2i))] = draws
    for got, wanted in zip(given, embeds):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    candidates = torch.cat([text_keys, text_bank]), torch.cat([image_keys, image_bank])
    wanted = (oracle.hinge(*oracle.lists(images, candidates[0]), i2t.indices.tolist(), 0.2)
              + oracle.hinge(*oracle.lists(texts, candidates[1]), t2i.indices.tolist(), 0.2))
    assert loss.item() == pytest.approx(wanted, abs=1e-5)
    assert wanted > 0.01


@pytest.mark.parametrize("side", ["visual_encoder", "text_encoder"])
def test_anything_missing_left_over_or_reshaped_is_listed(altered, side):
    def change(state):
        model = state["model"][0]
        dense = [key for key in model if key.startswith(side + ".") and "intermediate" in key]
        model[side + ".surplus.weight"] = torch.zeros(2)
        del model[dense[0]]
        model[dense[2]] = torch.zeros(3, 3)

    with pytest.raises(InputError) as caught:
        checkpoint.load_released(altered(change), IMAGE, TEXT)
    message = str(caught.value)
    assert "\n" not in message and "surplus.weight" in message
    assert all(part in message for part in ("missing:", "left over:", "other shape:"))


class Payload:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return open, ("payload-ran", "w")


def broken_files(tmp_path):
    whole = (FOLDER / "model_best.pth.tar").read_bytes()
    contents = {"text": b"no checkpoint", "empty": b"", "cut": whole[: len(whole) // 2],
                "pickle": pickle.dumps(Payload())}
    paths = [tmp_path / name for name in contents]
    for path, content in zip(paths, contents.values()):
        path.write_bytes(content)
    torch.save({"model": [Payload()]}, tmp_path / "code")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other")
    return [*paths, tmp_path / "code", tmp_path / "other", tmp_path / "missing", tmp_path]


def test_what_is_no_checkpoint_ends_in_one_line(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for path in broken_files(tmp_path):
        arguments = command(photos, tmp_path, "--test")
        arguments[arguments.index("--resume") + 1] = str(path)
        with pytest.raises(SystemExit) as caught:
            train.main(arguments)
        assert caught.value.code == 2
        output = capsys.readouterr()
        assert output.err.count("\n") == 1 and path.name in output.err, path
    assert not (tmp_path / "payload-ran").exists()


def test_another_architecture_ends_in_one_line(photos, tmp_path, capsys):
    config = json.loads((FOLDER / "image_encoder" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    arguments = command(photos, tmp_path, "--test")
    arguments[arguments.index("--image_encoder") + 1] = str(tmp_path)
    with pytest.raises(SystemExit) as caught:
        train.main(arguments)
    assert caught.value.code == 2 and "missing: " in capsys.readouterr().err
