"""Encoders stored in a checkpoint: built again to the bit, and refused where they are hostile."""

import json
import shutil

import pytest
import torch
from helpers.encoders import IDS, IMAGE_KINDS, MASK, RES, TEXT_KINDS, build, photos
from helpers.paths import ROOT
from helpers.runs import CPU, expect_exit
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import checkpoint
import evaluation
import train
from common.errors import InputError
from encoders import stored
from encoders.processors import load_tokenizer
from inputs.fitting import PUBLISHED_FIT
from model import DualEncoder

STATISTICS = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
TOKENIZER = load_tokenizer("tiny-bert", ROOT / "vocab" / "shapes.txt")


@pytest.mark.parametrize("image, text", [
    *((image, "bert") for image in IMAGE_KINDS), *(("vit", text) for text in TEXT_KINDS)])
def test_stored_encoders_are_built_again_to_the_bit(folders, image, text):
    """Their description is the same again, so that a resumed run stores the same texts."""
    model = build(folders, image, text, RES, embed_size=8)
    content = stored.describe_encoders(model, None, *STATISTICS, PUBLISHED_FIT)
    assert not {"_name_or_path", "auto_map"} & json.loads(content["image"]).keys()
    read = stored.read_stored_encoders({"encoders": content}, model.state_dict(), "x", set())
    assert read.read_tokenizer() is None and read.pixel_statistics == STATISTICS
    encoders = [read.build_encoder(side, None) for side in ("image", "text")]
    again = DualEncoder(*encoders, 8, image_res=RES, max_tokens=12).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.encode_image(photos()), model.encode_image(photos()))
    assert torch.equal(again.encode_text(IDS, MASK), model.encode_text(IDS, MASK))
    assert stored.describe_encoders(again, None, *STATISTICS, PUBLISHED_FIT) == content


def test_a_stored_tokenizer_gives_the_same_token_ids():
    text = stored.tokenizer_to_json(TOKENIZER, len(TOKENIZER))
    read = stored.StoredEncoders("x", {}, tokenizer=text).read_tokenizer()
    words = ["two red circles", "unknown ünknown words"]
    assert read(words)["input_ids"] == TOKENIZER(words)["input_ids"]
    assert read.special_tokens_map == TOKENIZER.special_tokens_map
    assert stored.tokenizer_to_json(TOKENIZER, len(TOKENIZER) - 1) is None
    assert stored.tokenizer_to_json(object(), 9) is None  # a slow one


def test_a_flag_replaces_what_is_stored():
    content = {"image": "{}", "text": "{}", "tokenizer": "{}", "pixel_statistics": STATISTICS}

    def fields_kept(*flags):
        read = stored.read_stored_encoders({"encoders": content}, {}, "x", set(flags))
        return {name for name in content if getattr(read, name) is not None}

    assert fields_kept() == content.keys()
    assert fields_kept("image_stats") == content.keys() - {"pixel_statistics"}
    assert fields_kept("image_encoder") == {"text", "tokenizer"}
    assert fields_kept("text_encoder") == fields_kept("vocab") == {"image", "pixel_statistics"}
    assert stored.read_stored_encoders({}, {}, "x", set()) is None


@pytest.fixture
def altered(finished, tmp_path):
    """Return a function that copies a finished run, and changes its checkpoints in place."""
    def copy_run(change):
        folder = shutil.copytree(finished, tmp_path / "run")
        for name in "model_best.pth.tar", "checkpoint.pth.tar":
            state = torch.load(folder / name, weights_only=True)
            change(state)
            torch.save(state, folder / name)
        return folder
    return copy_run


def name_missing_folders(state):
    """Have a checkpoint name folders of encoders that do not exist."""
    state["options"].update(image_encoder="gone/image", text_encoder="gone/text", vocab="gone.txt")


def test_a_checkpoint_needs_no_encoder_folders(altered, finished, data, tmp_path):
    folder = altered(name_missing_folders)
    for source, output in (finished, "a.json"), (folder, "b.json"):
        evaluation.main([str(source / "model_best.pth.tar"), "--data_path", str(data), *CPU,
                         "--output", str(tmp_path / output), "--workers", "0"])
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    train.main(["--resume", str(folder / "checkpoint.pth.tar"), "--data_path", str(data), *CPU,
                "--num_epochs", "4", "--workers", "0"])
    states = [checkpoint.read(path / "checkpoint.pth.tar") for path in (finished, folder)]
    assert states[0]["encoders"] == states[1]["encoders"] and states[1]["epoch"] == 4


def test_a_checkpoint_without_stored_encoders_loads_them_by_name(altered, data):
    folder = altered(lambda state: state.pop("encoders"))
    evaluation.main([str(folder / "model_best.pth.tar"), "--data_path", str(data), *CPU,
                     "--workers", "0"])


def config(**values):
    """Return a function that sets values in both configurations of a checkpoint."""
    def change(state):
        for side in "image", "text":
            content = json.loads(state["encoders"][side]) | values
            state["encoders"][side] = json.dumps(content)
    return change


def tokenizer(change):
    """Return a function that changes the tokenizer of a checkpoint."""
    def alter(state):
        content = json.loads(state["encoders"]["tokenizer"])
        change(content)
        state["encoders"]["tokenizer"] = json.dumps(content)
    return alter


@pytest.mark.parametrize("change, named", [
    (config(model_type="vit_mae"), "vit_mae"),
    (config(model_type="bert"), "bert"),
    (config(model_type=None), "None"),
    (config(depths=[1, 1, 10**9]), "depths [1, 1, 1000000000]"),
    (config(num_hidden_layers=10**12), "num_hidden_layers 1000000000000"),
    (config(hidden_sizes=[10**7, 96, 192]), "weights: "),
    (config(hidden_sizes="x"), "image encoder"),
    (config(to_dict=1), "to_dict"),
    (config(patch_size=8), "embeddings.patch_embeddings.weight"),
    (lambda state: state["encoders"].update(image="{" * 10**5), "JSON"),
    (lambda state: state["encoders"].update(image="[1]"), "JSON"),
    (lambda state: state["encoders"].update(image=5), "encoders"),
    (lambda state: state.update(encoders=[]), "encoders"),
    (lambda state: state["encoders"].update(tokenizer="{}"), "tokenizer"),
    (tokenizer(lambda content: content["special_tokens"].clear()), "padding token"),
    (tokenizer(lambda content: content["special_tokens"].update(__class__="x")), "tokenizer"),
    (tokenizer(lambda content: content["tokenizer"]["model"].update(type="x")), "tokenizer"),
    (tokenizer(lambda content: content["tokenizer"]["model"]["vocab"].update(many=99999)),
     "token 99999"),
    (tokenizer(lambda content: content["tokenizer"]["post_processor"].update(sep=["x", 88888])),
     "token 88888"),
    (lambda state: state["encoders"].update(pixel_statistics=[[0, 0, 0], [1, 1, 0]]),
     "mean and std"),
    (lambda state: state["encoders"].update(pixel_statistics=[[0, 0], [1, 1]]), "mean and std"),
])
def test_a_hostile_checkpoint_is_refused_in_one_line(altered, data, capsys, change, named):
    path = altered(change) / "model_best.pth.tar"
    line = expect_exit([str(path), "--data_path", str(data), *CPU], 2, capsys, [named],
                       evaluation.main)
    assert str(path) in line


def test_no_code_kernel_or_path_of_a_configuration_is_followed(
        altered, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('ran', 'w')")
    folder = altered(config(auto_map={"AutoModel": "evil.Evil"}, _name_or_path=str(tmp_path),
                            attn_implementation="someone/kernel", num_labels=10**10,
                            _attn_implementation_internal="someone/kernel"))
    evaluation.main([str(folder / "model_best.pth.tar"), "--data_path", str(data), *CPU,
                     "--workers", "0"])
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [
    dict(model_type="timm_wrapper", architecture="hf-hub:someone/model"),
    dict(model_type="timm_wrapper", architecture="resnet18", model_args={"checkpoint_path": "x"})])
def test_a_timm_configuration_that_names_a_file_is_refused(content):
    with pytest.raises(InputError, match="^x .*(architecture|model_args)"):
        stored.config_from_json(json.dumps(content), "image", 100, "x")


def test_an_encoder_with_buffers_far_larger_than_its_weights_is_refused():
    with torch.device("meta"):
        trial = torch.nn.Linear(3, 2)
        trial.register_buffer("large", torch.zeros(10**9), persistent=False)
    with pytest.raises(InputError, match="4.0 GB"):
        stored.check_shapes(trial, {"weight": torch.Size([2, 3]), "bias": torch.Size([2])}, "x")


def test_a_special_token_that_only_the_wrapper_knows_is_stored():
    core = Tokenizer.from_str(TOKENIZER.backend_tokenizer.to_str())
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]")
    assert stored.StoredEncoders("x", {}, tokenizer=stored.tokenizer_to_json(
        wrapped, len(TOKENIZER))).read_tokenizer().pad_token_id == wrapped.pad_token_id
