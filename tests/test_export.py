"""An exported model: its embeddings are the checkpoint's, whichever library loads it."""

import json
import os
import re
import resource
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from helpers.encoders import IDS, MASK, RES, build, make, photos
from helpers.encoders import SIZES as ENCODER_SIZES
from helpers.paths import GOLDEN, ROOT
from helpers.runs import CPU, command, contents, expect_exit
from helpers.stopping import in_a_child, status_of
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import checkpoint
import encoders.folder
import evaluation
import export
import train
from common.errors import InputError
from common.folders import LIST
from encoders.folder import DTYPES, read_folder, write_folder
from encoders.loading import load_encoder
from encoders.preparation import Preparation
from encoders.processors import load_tokenizer
from encoders.sentence import cleaning_tokenizer, layout
from inputs.captions import clean_caption
from model import DualEncoder

FOLDER = GOLDEN / "released_checkpoint"
RELEASED = [str(FOLDER / "model_best.pth.tar"), "--image_encoder", str(FOLDER / "image_encoder"),
            "--text_encoder", str(FOLDER / "text_encoder")]
TOKENIZER = load_tokenizer("tiny-bert", ROOT / "vocab" / "shapes.txt")
CAPTIONS = ["A dog (brown) runs -- fast/quickly!", "Two boys, a ball.\n", "a " * 9 + "red circle",
            "  a  \t man\tand\n\n a <person> x ", "It's \"the\" small green star: #1; ~ok*"]
SIDES = "image_0_Transformer", "text_0_Transformer"


def export_to(folder, *words):
    export.main([str(word) for word in words[:1]] + [str(folder), *map(str, words[1:])])
    return folder


@pytest.fixture(scope="module")
def ours(exported):
    """A finished run's best checkpoint, exported."""
    return exported


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    return export_to(tmp_path_factory.mktemp("export") / "released", *RELEASED)


@pytest.fixture
def copy(ours, tmp_path):
    return shutil.copytree(ours, tmp_path / "copy")


@torch.no_grad()
def embed(model, paths, texts=CAPTIONS):
    """Embeddings of photo files and captions with nothing but what the model's folder says."""
    captions = model.preparation.captions(texts)
    rows = captions.padded([captions[index] for index in range(len(captions))])
    return model.encode_image(model.preparation.pixels(paths)), model.encode_text(*rows)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Photos of several sizes and modes."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    sizes = {"a.png": (40, 30, 3), "b.jpg": (90, 200, 3), "c.png": (301, 77, 3), "d.png": (50, 50)}
    for name, size in sizes.items():
        pixels = random.integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(pixels).resize((size[1] * 2, size[0])).save(folder / name)
    return [folder / name for name in sizes]


def test_embeddings_are_the_checkpoints_to_the_bit(ours, finished, data, tmp_path):
    """evaluation.py and train.py --test both take the folder as a checkpoint."""
    outputs = []
    for number, source in enumerate([finished / "model_best.pth.tar", ours]):
        outputs.append(tmp_path / f"{number}.npz")
        evaluation.main([str(source), "--data_path", str(data), "--workers", "0", *CPU,
                         "--save_embeddings", str(outputs[-1])])
    left, right = (np.load(path) for path in outputs)
    names = set(left.files) - {"facts"}  # a folder does not know at which step it was made
    assert left.files == right.files and "statistics" in names
    assert all(np.array_equal(left[name], right[name]) for name in names)
    train.main(["--test", "--resume", str(ours), "--data_path", str(data), "--workers", "0", *CPU,
                "--logger_name", str(tmp_path / "tested")])
    results = [json.loads((folder / "test_results.json").read_text())
               for folder in (tmp_path / "tested", finished)]
    assert results[1].pop("zero_shot")  # of the run, whose first weights no folder has
    assert results[0] == results[1]


def test_the_released_model_is_the_same_to_the_bit(released):
    model = DualEncoder.from_pretrained(released)
    wanted = checkpoint.load_released(RELEASED[0], RELEASED[2], RELEASED[4])
    given = {name: torch.from_numpy(value) for name, value in np.load(
        FOLDER / "expected.npz").items() if value.dtype.kind in "fi"}
    text = given["input_ids"], given["attention_mask"]
    with torch.no_grad():
        assert torch.equal(model.encode_image(given["pixel_values"]),
                           wanted.encode_image(given["pixel_values"]))
        assert torch.equal(model.encode_text(*text), wanted.encode_text(*text))
    assert model.preparation.padded and not model.training


@pytest.mark.parametrize("image, text, head", [
    ("vit", "bert", "linear"), ("clip", "clip", "linear"), ("siglip", "siglip", "mlp"),
    ("resnet", "bert", "mlp")])
def test_every_kind_of_encoder_comes_back_to_the_bit(folders, tmp_path, image, text, head):
    """Also with encoders that sentence_transformers cannot express; the folder then has none of
    its files."""
    model = build(folders, image, text, RES, embed_size=8, head=head)
    rows = model.text_encoder
    words = 40 if hasattr(rows, "pair") else rows.config.vocab_size
    tokenizer = small_tokenizer(words)
    model.preparation = Preparation(tokenizer, RES, [0.1] * 3, [0.2] * 3, 30, 12, "", False,
                                    {"options": {}})
    model.save_pretrained(tmp_path / "x")
    again = DualEncoder.from_pretrained(tmp_path / "x")
    assert torch.equal(again.encode_image(photos()), model.encode_image(photos()))
    assert torch.equal(again.encode_text(IDS, MASK), model.encode_text(IDS, MASK))
    assert (tmp_path / "x" / "modules.json").is_file() == (not layout(model, model.preparation)[1])


def small_tokenizer(words):
    """Of so many words."""
    names = ["[UNK]", "[PAD]", *(f"word{number}" for number in range(words - 2))]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, "[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]")


def test_a_loaded_model_is_saved_as_the_same_files(ours, tmp_path):
    DualEncoder.from_pretrained(ours).save_pretrained(tmp_path / "again")
    assert {path.relative_to(ours): content for path, content in contents(ours).items()
            if path.name != LIST} == {
        path.relative_to(tmp_path / "again"): content
        for path, content in contents(tmp_path / "again").items()}
    with pytest.raises(InputError, match="preparation"):
        model = DualEncoder.from_pretrained(ours)
        model.preparation = None
        model.save_pretrained(tmp_path / "none")


def test_bfloat16_is_half_as_large_and_loads_in_float32(finished, ours, tmp_path, paths):
    half = export_to(tmp_path / "half", finished / "model_best.pth.tar", "--dtype", "bfloat16")
    name = Path(SIDES[1]) / "model.safetensors"
    assert 1.9 < (ours / name).stat().st_size / (half / name).stat().st_size < 2.1
    models = [DualEncoder.from_pretrained(folder) for folder in (ours, half)]
    assert {weight.dtype for weight in models[1].parameters()} == {torch.float32}
    for left, right in zip(*(embed(model, paths) for model in models)):
        assert 0 < (left - right).abs().max() < 0.05


def test_the_folder_holds_the_online_model_alone(ours, finished):
    weights = [path for path in ours.rglob("*") if path.suffix == ".safetensors"]
    assert not list(ours.rglob("*.tar")) and not list(ours.rglob("*.bin"))
    kept = sum(value.numel() for path in weights for value in load_file(path).values())
    state = checkpoint.read(finished / "model_best.pth.tar")
    assert kept == sum(value.numel() for value in state["model"].values())
    text = "".join(path.read_text() for path in ours.rglob("*.json"))
    assert str(finished) not in text and "logger_name" not in text


def test_the_card_describes_the_model(ours, released, finished):
    card = (ours / "README.md").read_text()
    results = json.loads((finished / "test_results.json").read_text())
    for text in "`shapes`", f"rsum {results['rsum']:.1f}", "30 words", "DualEncoder", "Licence":
        assert text in card
    assert "SentenceTransformer" in card and "rsum on val" in (
        released / "README.md").read_text()


def test_the_code_of_the_card_runs(ours, tmp_path, monkeypatch, capsys):
    """Both ways of loading, where the other library is there; they print the same cosine."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 30), "red").save("photo.jpg")
    ways = re.findall(r"```python\n(.*?)```", (ours / "README.md").read_text(), re.DOTALL)
    assert len(ways) == 2
    printed = []
    for code in ways:
        if "sentence_transformers" in code:
            pytest.importorskip("sentence_transformers")
        exec(code.replace("FOLDER", str(ours)), {})
        printed.append(float(re.search(r"-?\d\.\d+", capsys.readouterr().out)[0]))
    assert printed[0] == pytest.approx(printed[1], abs=1e-3)


def test_a_new_run_starts_from_its_weights(ours, data, tmp_path):
    train.main(command(data, tmp_path / "run", "--init", str(ours), "--num_epochs", "1",
                       "--learning_rate", "0"))
    state = checkpoint.read(tmp_path / "run" / "checkpoint.pth.tar")
    wanted = read_folder(ours)["model"]
    assert all(torch.equal(state["model"][name], value) for name, value in wanted.items())
    assert "init" not in state["options"] and "init_weights" not in state["options"]


# ------------------------------------------------------------------------------- averaged weights


@pytest.fixture(scope="module")
def fine_tuned(data, tmp_path_factory):
    """The folder of a run that fine-tuned two pretrained encoders, and their own folders."""
    folder = tmp_path_factory.mktemp("fine_tuned")
    torch.manual_seed(3)
    make("vit").save_pretrained(folder / "vit")
    bert = BertConfig(vocab_size=len(TOKENIZER), max_position_embeddings=32, **ENCODER_SIZES)
    BertModel(bert).save_pretrained(folder / "bert")
    TOKENIZER.save_pretrained(folder / "bert")
    train.main(command(
        data, folder / "run", "--image_encoder", str(folder / "vit"), "--text_encoder",
        str(folder / "bert"), "--embed_size", "0", "--image_res", str(RES), "--num_epochs", "1",
        "--learning_rate", "1e-3"))
    return folder


def exported_weights(folder, *words):
    return read_folder(export_to(folder, *words))["model"]


def test_averaged_weights_are_those_of_both_ends_and_of_a_hand(fine_tuned, tmp_path):
    """At 0 and 1 to the bit; the other end are the encoders that the checkpoint names."""
    trained_path = fine_tuned / "run" / "checkpoint.pth.tar"
    trained = checkpoint.read(trained_path)["model"]
    begun = {f"{side}_encoder.{name}": value
             for side, kind in (("image", "vit"), ("text", "bert"))
             for name, value in load_encoder(str(fine_tuned / kind), side,
                                             RES).state_dict().items()}
    assert begun.keys() == trained.keys()
    moved = [name for name in trained if not torch.equal(trained[name], begun[name])]
    assert len(moved) > 20
    for alpha, wanted in (0, begun), (1, trained):
        found = exported_weights(tmp_path / str(alpha), trained_path, "--average", alpha)
        assert all(torch.equal(found[name], wanted[name]) for name in trained)
    found = exported_weights(tmp_path / "half", trained_path, "--average", 0.5)
    for name in trained:
        torch.testing.assert_close(found[name], 0.5 * trained[name] + 0.5 * begun[name])
    card = (tmp_path / "half" / "README.md").read_text()
    about = json.loads((tmp_path / "half" / "config.json").read_text())["about"]
    assert about["average"] == 0.5 and not about["recalls"] and about["statistics"] is None
    assert "0.5 times the trained weights" in card and "not measured" in card


def test_weights_are_averaged_with_those_of_a_model_that_is_named(finished, ours, tmp_path):
    trained_path = finished / "checkpoint.pth.tar"
    trained, other = checkpoint.read(trained_path)["model"], read_folder(ours)["model"]
    found = exported_weights(tmp_path / "out", trained_path, "--average", 0.25, "--average_with",
                             ours)
    for name in trained:
        torch.testing.assert_close(found[name], 0.25 * trained[name] + 0.75 * other[name])


def test_an_average_that_cannot_be_is_refused(finished, fine_tuned, tmp_path, capsys):
    """Nothing is left behind."""
    run, other = finished / "model_best.pth.tar", fine_tuned / "run" / "checkpoint.pth.tar"
    for words, named in (
            (["--average", "0.5"], "--average 0.5"),
            (["--average", "0.5", "--average_with", str(other)], "--average_with"),
            (["--average", "1.5"], "--average 1.5"), (["--average_with", str(other)], "--average"),
            (["--average", "1", "--average_with", str(tmp_path / "none")], "none")):
        expect_exit([str(run), str(tmp_path / "out"), *words], 2, capsys, [named],
                    main=export.main)
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------- what cleans and resizes


def test_the_tokenizer_cleans_as_training_does():
    core = TOKENIZER.backend_tokenizer
    core.no_truncation()
    for prefix in "", "query: ":
        cleaning = Tokenizer.from_str(json.dumps(cleaning_tokenizer(json.loads(core.to_str()),
                                                                    prefix)))
        texts = [*CAPTIONS, "x\n", "\n", "a\x1c\x1cb", "a\u00a0\u2003b", "ÀÉ ünïcode", "---", "a\t"]
        for text in texts:
            wanted = core.encode(prefix + clean_caption(text, 10**6))
            if clean_caption(text):
                assert cleaning.encode(text).ids == wanted.ids, text


@pytest.mark.parametrize("model_name", ["ours", "released", "bfloat16"])
def test_sentence_transformers_gives_our_vectors(model_name, request, finished, tmp_path, paths):
    library = pytest.importorskip("sentence_transformers")
    if model_name == "bfloat16":
        folder = export_to(tmp_path / "half", finished / "model_best.pth.tar", "--dtype",
                           "bfloat16")
    else:
        folder = request.getfixturevalue(model_name)
    images, texts = embed(DualEncoder.from_pretrained(folder), paths)
    other = library.SentenceTransformer(str(folder), device="cpu")
    got = other.encode([Image.open(path) for path in paths]), other.encode(CAPTIONS)
    for left, right in zip(got, (images, texts)):
        torch.testing.assert_close(torch.from_numpy(left), right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("image, text, poolings, size, head", [
    ("vit", "bert", ("own", "own"), 8, "linear"), ("vit", "bert", ("cls", "cls"), 0, "linear"),
    ("vit", "bert", ("mean", "padded"), 8, "mlp"), ("resnet", "bert", ("mean", "tokens"), 8, "mlp"),
    ("resnet", "bert", ("mean", "tokens"), 0, "linear")])
def test_sentence_transformers_supports_every_pooling_and_projection(
        folders, tmp_path, paths, image, text, poolings, size, head):
    library = pytest.importorskip("sentence_transformers")
    model = build(folders, image, text, RES, embed_size=size, image_pooling=poolings[0],
                  text_pooling=poolings[1], head=head)
    core = small_tokenizer(40)
    core.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    model.preparation = Preparation(core, RES, [0.1] * 3, [0.2] * 3, 30, 12, "word3 ",
                                    poolings[1] == "padded", {"options": {}})
    model.save_pretrained(tmp_path / "x")
    texts = ["Word5 word6!", "word7", " ".join(f"word{n}" for n in range(20))]
    images, captions = embed(model, paths, texts)
    other = library.SentenceTransformer(str(tmp_path / "x"), device="cpu")
    got = other.encode([Image.open(path) for path in paths]), other.encode(texts)
    for left, right in zip(got, (images, captions)):
        torch.testing.assert_close(torch.from_numpy(left), right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_name", ["ours", "released"])
def test_onnx_gives_our_vectors(model_name, finished, tmp_path, paths):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    source = RELEASED if model_name == "released" else [finished / "model_best.pth.tar"]
    folder = export_to(tmp_path / "x", *source, "--onnx")
    model = DualEncoder.from_pretrained(folder)
    images, _ = embed(model, paths)
    session = runtime.InferenceSession(folder / "image.onnx", providers=["CPUExecutionProvider"])
    pixels = model.preparation.pixels(paths).numpy()
    [got] = session.run(None, {"pixel_values": pixels})
    torch.testing.assert_close(torch.from_numpy(got), images, rtol=0, atol=1e-4)


def test_a_missing_library_is_named(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    expect_exit([str(finished / "model_best.pth.tar"), str(tmp_path / "x"), "--onnx"], 2, capsys,
                ["--onnx", "requirements-export.txt"], export.main)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------- what is refused


def test_only_an_earlier_export_is_replaced(finished, ours, tmp_path, capsys):
    path = finished / "model_best.pth.tar"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    shutil.copytree(ours, tmp_path / "unlisted", ignore=shutil.ignore_patterns(LIST))
    for out in "full", "file", "unlisted":
        before = contents(tmp_path)
        expect_exit([str(path), str(tmp_path / out)], 2, capsys, [str(tmp_path / out)], export.main)
        assert contents(tmp_path) == before
    expect_exit([str(ours), str(ours)], 2, capsys, [str(ours)], export.main)
    again = shutil.copytree(ours, tmp_path / "again")
    export_to(again, path)
    assert len(contents(again)) == len(contents(ours))


def test_what_somebody_put_into_an_export_stays(finished, ours, tmp_path, capsys):
    """An edited card too; an edited file of the model is not replaced, and ends the command."""
    path = finished / "model_best.pth.tar"
    folder = shutil.copytree(ours, tmp_path / "x")
    theirs = {"LICENSE": b"mine", "onnx/config.json": b"{}", "README.md": b"licence: mine"}
    (folder / "onnx").mkdir()
    for name, content in theirs.items():
        (folder / name).write_bytes(content)
    export_to(folder, path, "--dtype", "bfloat16")
    assert {name: (folder / name).read_bytes() for name in theirs} == theirs
    assert DualEncoder.from_pretrained(folder)
    weights = folder / SIDES[0] / "model.safetensors"
    assert weights.stat().st_size < (ours / SIDES[0] / "model.safetensors").stat().st_size
    (folder / "config.json").write_bytes(b"{}")
    before = contents(tmp_path)
    expect_exit([str(path), str(folder)], 2, capsys, ["config.json"], export.main)
    assert contents(tmp_path) == before


def test_a_disk_without_room_leaves_the_earlier_export(finished, ours, tmp_path):
    """The child may write no file larger than 20 kB."""
    folder = shutil.copytree(ours, tmp_path / "x")
    before = contents(tmp_path)

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        export.main([str(finished / "model_best.pth.tar"), str(folder)])

    assert status_of(in_a_child(limited)) == 2
    assert contents(tmp_path) == before


def test_files_have_the_permissions_of_any_new_file(finished, tmp_path):
    former = os.umask(0o027)
    try:
        folder = export_to(tmp_path / "x", finished / "model_best.pth.tar")
        DualEncoder.from_pretrained(folder).save_pretrained(tmp_path / "again")
    finally:
        os.umask(former)
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path


def change_json(name, **changes):
    """Return a function that changes the object in the JSON file `name` of a folder."""
    def change(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))

    return change


def change_weights(change):
    """Return a function that applies `change` to the weights of a folder's image encoder."""
    def change_file(folder):
        path = folder / SIDES[0] / "model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path)

    return change_file


def change_projection(change):
    """Return a function that applies `change` to the weights of a folder's image projection."""
    def change_file(folder):
        path = folder / "image_2_Dense" / "model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path)

    return change_file


def change_preparation(**values):
    """Return a function that sets values under "preparation" in a folder's config.json."""
    def change_file(folder):
        content = json.loads((folder / "config.json").read_text())
        content["preparation"] |= values
        (folder / "config.json").write_text(json.dumps(content))

    return change_file


def nested(depth):
    """Return a list in a list, and so on."""
    value = []
    for _ in range(depth):
        value = [value]
    return value


def delete(name):
    """Return a function that deletes a file of a folder."""
    return lambda folder: (folder / name).unlink()


def overwrite(name, content):
    """Return a function that writes other bytes into a file of a folder."""
    return lambda folder: (folder / name).write_bytes(content)


TEXT_WEIGHTS = f"{SIDES[1]}/model.safetensors"


@pytest.mark.parametrize("change, named", [
    (delete("tokenizer.json"), "tokenizer.json"),
    (delete(f"{SIDES[0]}/config.json"), f"{SIDES[0]}/config.json"),
    (delete(TEXT_WEIGHTS), TEXT_WEIGHTS),
    (overwrite(TEXT_WEIGHTS, b"x"), TEXT_WEIGHTS),
    (overwrite(TEXT_WEIGHTS, struct.pack("<Q", 2**60) + b"{"), TEXT_WEIGHTS),
    (lambda folder: (folder / TEXT_WEIGHTS).rename(folder / SIDES[1] / "pytorch_model.bin"),
     TEXT_WEIGHTS),
    (overwrite("config.json", b"[" * 10**5), "config.json"),
    (change_json("config.json", format="x"), ""),
    (change_json("config.json", model=5), ""),
    (change_json("config.json", preparation={}), ""),
    (change_json("config.json", about={"options": 3}), ""),
    (change_json(f"{SIDES[0]}/config.json", hidden_sizes=[8, 8, 8]), ""),
    (change_json(f"{SIDES[1]}/config.json", num_hidden_layers=10**9), ""),
    (change_json(f"{SIDES[1]}/config.json", model_type="x"), ""),
    (change_json("config.json", about={"options": {}, "recalls": {"val_rsum": 10**400}}),
     "config.json"),
    (change_json("config.json", about={"options": {}, "recalls": {"val_rsum": "x"}}), "recalls"),
    (change_json("config.json", about={"options": {}, "recalls": {"test": [1]}}), "recalls"),
    (change_json("config.json", about={"options": {}, "recalls": {"test": {"i2t_r1": {}}}}),
     "recalls"),
    (change_json("config.json", about={"options": {}, "recalls": 5}), "recalls"),
    (change_json("config.json", about={"options": {}, "statistics": [[10**400] * 3] * 2}),
     "config.json"),
    (change_json("config.json", about={"options": {"loss": "\ud800"}}), "config.json"),
    (change_json("config.json", about={"options": {"\udfff": 1}}), "config.json"),
    (change_json("config.json", about={"options": {"x": nested(900)}}), "config.json"),
    (change_json(f"{SIDES[0]}/config.json", x=nested(900)), f"{SIDES[0]}/config.json"),
    (change_json(f"{SIDES[1]}/config.json", x="\ud800"), f"{SIDES[1]}/config.json"),
    (change_json(f"{SIDES[1]}/config.json", vocab_size=10**400), f"{SIDES[1]}/config.json"),
    (change_json("tokenizer.json", x=nested(900)), "tokenizer.json"),
    (change_json("tokenizer_config.json", pad_token="\ud800"), "tokenizer_config.json"),
    (change_preparation(prefix="\ud800"), "config.json"),
    (change_preparation(mean=[10**400, 0, 0]), "config.json"),
    (change_preparation(image_res=10**400), "config.json"),
    (change_projection(lambda weights: weights["linear.weight"].zero_()), "image_projection"),
    (change_projection(lambda weights: weights["linear.weight"].fill_(1e38)), "image_projection"),
    (change_projection(lambda weights: weights["linear.bias"].fill_(1e12)), "image_projection"),
    (change_projection(lambda weights: [value.zero_() for value in weights.values()]),
     "image_projection"),
    (change_weights(lambda weights: weights.popitem()), ""),
    (change_weights(lambda weights: weights.update(x=torch.ones(1))), ""),
    (change_weights(lambda weights: weights[max(weights)].fill_(torch.nan)), "NaN"),
])
def test_a_hostile_folder_is_refused_in_one_line(copy, data, capsys, change, named):
    """The message names the file, or at least the folder."""
    change(copy)
    with pytest.raises(InputError) as caught:
        DualEncoder.from_pretrained(copy)
    message = str(caught.value)
    assert "\n" not in message and str(copy) in message and named in message
    expect_exit([str(copy), "--data_path", str(data), *CPU, "--workers", "0"], 2, capsys, [],
                evaluation.main)


@pytest.mark.parametrize("name", ["README.md", "tokenizer.json", TEXT_WEIGHTS, SIDES[1]])
def test_no_link_out_of_a_folder_is_followed(copy, tmp_path, data, capsys, name):
    """The Hub's cache alone has its files in a folder beside."""
    (copy / name).rename(tmp_path / "elsewhere")
    (copy / name).symlink_to(tmp_path / "elsewhere")
    expect_exit([str(copy), str(tmp_path / "again")], 2, capsys, [name], export.main)
    assert not (tmp_path / "again").exists()
    cached = tmp_path / "models--a--b" / "snapshots" / "0"
    cached.parent.mkdir(parents=True)
    copy.rename(cached)
    (tmp_path / "elsewhere").rename(tmp_path / "models--a--b" / "blob")
    (cached / name).unlink()
    (cached / name).symlink_to(tmp_path / "models--a--b" / "blob")
    assert DualEncoder.from_pretrained(cached)


def test_a_card_without_end_is_cut(copy, paths):
    with open(copy / "README.md", "r+b") as file:
        file.truncate(2**40)
    assert len(DualEncoder.from_pretrained(copy).preparation.card) == 2**20


def test_unknown_keys_and_pickles_are_ignored(copy, paths):
    wanted = embed(DualEncoder.from_pretrained(copy), paths)
    for name in "config.json", f"{SIDES[0]}/config.json":
        change_json(name, auto_map={"AutoModel": "evil.Evil"}, more=5)(copy)
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n")
    (copy / SIDES[0] / "pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n")
    assert all(map(torch.equal, embed(DualEncoder.from_pretrained(copy), paths), wanted))


def test_init_starts_a_new_run_only(ours, data, tmp_path, capsys):
    for words in ["--test"], ["--resume", str(ours)]:
        expect_exit(command(data, tmp_path / "run", "--init", str(ours), *words), 2, capsys,
                    ["--init"])
    expect_exit(command(data, tmp_path / "run", "--init", RELEASED[0]), 2, capsys, ["--resume"])
    expect_exit(["--resume", str(ours), "--data_path", str(data), *CPU, "--logger_name",
                 str(tmp_path / "run")], 2, capsys, ["start a new run from it with --init"])


def test_a_model_is_pulled_from_the_hub_and_pushed_to_it(ours, tmp_path, monkeypatch):
    """With a folder in place of the Hub."""
    hub = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo",
                        lambda self, repo_id, **more: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder",
                        lambda self, folder_path, **more: shutil.copytree(folder_path, hub))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download",
                        lambda name, filename, **more: str(hub / filename))
    monkeypatch.setattr(encoders.folder, "snapshot_download", lambda name, **more: str(hub))
    DualEncoder.from_pretrained(ours).push_to_hub("someone/model")
    assert {path.name for path in hub.rglob("*")} | {LIST} == {
        path.name for path in ours.rglob("*")}
    weights = DualEncoder.from_pretrained("someone/model", revision="main").state_dict()
    wanted = DualEncoder.from_pretrained(ours).state_dict()
    assert all(torch.equal(weights[name], value) for name, value in wanted.items())


def test_a_name_that_is_nowhere_is_one_line(offline):
    with pytest.raises(InputError, match="^someone/model is no checkpoint"):
        DualEncoder.from_pretrained("someone/model")


def test_dtypes_are_those_of_the_flag(folders, tmp_path):
    model = build(folders, "vit", "bert", RES)
    prepared = Preparation(object(), RES, [0.1] * 3, [0.2] * 3, 30, 12, "", False, {"options": {}})
    with pytest.raises(InputError, match="no fast one"):
        (tmp_path / "x").mkdir()
        write_folder(tmp_path / "x", model, prepared, DTYPES["float32"])
