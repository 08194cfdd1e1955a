"""Encoders travel in the checkpoint: they come back to the bit, and a hostile one is refused."""

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
from model import DualEncoder

STATISTICS = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
TOKENIZER = load_tokenizer("tiny-bert", ROOT / "vocab" / "shapes.txt")


@pytest.mark.parametrize("image, text", [
    *((image, "bert") for image in IMAGE_KINDS), *(("vit", text) for text in TEXT_KINDS)])
def test_encoders_come_back_to_the_bit(folders, image, text):
    """And describe themselves alike, so that a run goes on with the same texts."""
    model = build(folders, image, text, RES, embed_size=8)
    content = stored.describe_encoders(model, None, *STATISTICS)
    assert not {"_name_or_path", "auto_map"} & json.loads(content["image"]).keys()
    back = stored.read_stored_encoders({"encoders": content}, model.state_dict(), "x", set())
    assert back.read_tokenizer() is None and back.pixel_statistics == STATISTICS
    towers = [back.build_encoder(side, None) for side in ("image", "text")]
    again = DualEncoder(*towers, 8, image_res=RES, max_tokens=12).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.encode_image(photos()), model.encode_image(photos()))
    assert torch.equal(again.encode_text(IDS, MASK), model.encode_text(IDS, MASK))
    assert stored.describe_encoders(again, None, *STATISTICS) == content


def test_a_tokenizer_comes_back():
    text = stored.tokenizer_to_json(TOKENIZER, len(TOKENIZER))
    back = stored.StoredEncoders("x", {}, tokenizer=text).read_tokenizer()
    words = ["two red circles", "unknown ünknown words"]
    assert back(words)["input_ids"] == TOKENIZER(words)["input_ids"]
    assert back.special_tokens_map == TOKENIZER.special_tokens_map
    assert stored.tokenizer_to_json(TOKENIZER, len(TOKENIZER) - 1) is None
    assert stored.tokenizer_to_json(object(), 9) is None  # a slow one


def test_a_flag_comes_before_what_is_stored():
    content = {"image": "{}", "text": "{}", "tokenizer": "{}", "pixel_statistics": STATISTICS}

    def kept(*named):
        taken = stored.read_stored_encoders({"encoders": content}, {}, "x", set(named))
        return {name for name in content if getattr(taken, name) is not None}

    assert kept() == content.keys()
    assert kept("image_stats") == content.keys() - {"pixel_statistics"}
    assert kept("image_encoder") == {"text", "tokenizer"}
    assert kept("text_encoder") == kept("vocab") == {"image", "pixel_statistics"}
    assert stored.read_stored_encoders({}, {}, "x", set()) is None


@pytest.fixture
def altered(finished, tmp_path):
    """A copy of a finished run, with its checkpoints changed; the folder."""
    def write(change):
        folder = shutil.copytree(finished, tmp_path / "run")
        for name in "model_best.pth.tar", "checkpoint.pth.tar":
            state = torch.load(folder / name, weights_only=True)
            change(state)
            torch.save(state, folder / name)
        return folder
    return write


def without_names(state):
    """As where the encoders' folders are gone."""
    state["options"].update(image_encoder="gone/image", text_encoder="gone/text", vocab="gone.txt")


def test_a_checkpoint_needs_no_encoder_folders(altered, finished, data, tmp_path):
    folder = altered(without_names)
    for source, output in (finished, "a.json"), (folder, "b.json"):
        evaluation.main([str(source / "model_best.pth.tar"), "--data_path", str(data), *CPU,
                         "--output", str(tmp_path / output), "--workers", "0"])
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    train.main(["--resume", str(folder / "checkpoint.pth.tar"), "--data_path", str(data), *CPU,
                "--num_epochs", "4", "--workers", "0"])
    states = [checkpoint.read(path / "checkpoint.pth.tar") for path in (finished, folder)]
    assert states[0]["encoders"] == states[1]["encoders"] and states[1]["epoch"] == 4


def test_a_checkpoint_from_before_loads_by_name(altered, data):
    folder = altered(lambda state: state.pop("encoders"))
    evaluation.main([str(folder / "model_best.pth.tar"), "--data_path", str(data), *CPU,
                     "--workers", "0"])


def config(**values):
    """Change both configurations in a checkpoint."""
    def change(state):
        for side in "image", "text":
            content = json.loads(state["encoders"][side]) | values
            state["encoders"][side] = json.dumps(content)
    return change


def tokenizer(change):
    def alter(state):
        content = json.loads(state["encoders"]["tokenizer"])
        change(content)
        state["encoders"]["tokenizer"] = json.dumps(content)
    return alter


@pytest.mark.parametrize("change, told", [
    (config(model_type="vit_mae"), "type vit_mae are not supported"),
    (config(model_type="bert"), "are for the other side"),
    (config(model_type=None), "not supported"),
    (config(depths=[1, 1, 10**9]), "has depths [1, 1, 1000000000], more than its"),
    (config(num_hidden_layers=10**12), "num_hidden_layers 1000000000000, more than"),
    (config(hidden_sizes=[10**7, 96, 192]), "is not that of its weights"),
    (config(hidden_sizes="x"), "its image encoder"),
    (config(to_dict=1), "sets to_dict"),
    (config(patch_size=8), "is not that of its weights: embeddings.patch_embeddings.weight"),
    (lambda state: state["encoders"].update(image="{" * 10**5), "is no JSON"),
    (lambda state: state["encoders"].update(image="[1]"), "is no JSON"),
    (lambda state: state["encoders"].update(image=5), "is not what a run saves"),
    (lambda state: state.update(encoders=[]), "is not what a run saves"),
    (lambda state: state["encoders"].update(tokenizer="{}"), "its tokenizer cannot be read"),
    (tokenizer(lambda content: content["special_tokens"].clear()), "no padding token"),
    (tokenizer(lambda content: content["special_tokens"].update(__class__="x")), "cannot be read"),
    (tokenizer(lambda content: content["tokenizer"]["model"].update(type="x")), "cannot be read"),
    (tokenizer(lambda content: content["tokenizer"]["model"]["vocab"].update(many=99999)),
     "has a token 99999"),
    (tokenizer(lambda content: content["tokenizer"]["post_processor"].update(sep=["x", 88888])),
     "has a token 88888"),
    (lambda state: state["encoders"].update(pixel_statistics=[[0, 0, 0], [1, 1, 0]]), "mean and"),
    (lambda state: state["encoders"].update(pixel_statistics=[[0, 0], [1, 1]]), "mean and std"),
])
def test_a_hostile_checkpoint_is_refused_in_one_line(altered, data, capsys, change, told):
    path = altered(change) / "model_best.pth.tar"
    line = expect_exit([str(path), "--data_path", str(data), *CPU], 2, capsys, [told],
                       evaluation.main)
    assert str(path) in line


def test_nothing_of_a_configuration_is_followed(altered, data, tmp_path, monkeypatch):
    """Neither code that it names, nor a kernel, nor a path."""
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
def test_a_timm_configuration_names_no_file(content):
    with pytest.raises(InputError, match="no plain numbers or names"):
        stored.config_from_json(json.dumps(content), "image", 100, "x")


def test_an_encoder_may_not_hold_much_beside_its_weights():
    with torch.device("meta"):
        trial = torch.nn.Linear(3, 2)
        trial.register_buffer("large", torch.zeros(10**9), persistent=False)
    with pytest.raises(InputError, match="asks for 4.0 GB beside its weights"):
        stored.check_shapes(trial, {"weight": torch.Size([2, 3]), "bias": torch.Size([2])}, "x")


def test_a_tokenizer_of_the_wrapper_alone_stays_as_it_is():
    core = Tokenizer.from_str(TOKENIZER.backend_tokenizer.to_str())
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]")
    assert stored.StoredEncoders("x", {}, tokenizer=stored.tokenizer_to_json(
        wrapped, len(TOKENIZER))).read_tokenizer().pad_token_id == wrapped.pad_token_id
