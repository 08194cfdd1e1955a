"""Token ids of captions: without padding, whatever the tokenizer's file says."""

import pytest
import transformers
from helpers.paths import ROOT
from tokenizers import Tokenizer

from data import load_eval_set, load_split
from encoders.processors import load_tokenizer
from inputs.captions import Captions, clean_caption, token_ids
from training.options import parse

TEXTS = ["a red circle", "a blue square left of a green ring", "circle"]


def shapes_tokenizer():
    return load_tokenizer("small-bert", ROOT / "vocab" / "shapes.txt")


def test_a_tokenizer_whose_file_pads_to_128_does_not_pad(tmp_path):
    """The file of all-MiniLM-L6-v2 does: 116 of 128 tokens of a caption would be padding."""
    shapes_tokenizer().save_pretrained(tmp_path)
    transformers.BertConfig().save_pretrained(tmp_path)
    file = str(tmp_path / "tokenizer.json")
    core = Tokenizer.from_file(file)
    core.enable_padding(length=128, pad_id=0, pad_token="[PAD]")
    core.enable_truncation(128)
    core.save(file)
    tokenizer = load_tokenizer(str(tmp_path), "no matter")
    assert {len(encoding.ids) for encoding in tokenizer.backend_tokenizer.encode_batch(TEXTS)} \
        == {128}
    got = token_ids(TEXTS, tokenizer, 30)
    assert got == shapes_tokenizer()(TEXTS)["input_ids"]
    captions = Captions(TEXTS, tokenizer, 30, 30)
    ids, mask = captions.padded([captions[index] for index in range(3)])
    assert mask.sum(dim=1).tolist() == [len(row) for row in got] == captions.lengths.tolist()
    assert ids.shape == (3, 11) and (ids[mask == 1] != tokenizer.pad_token_id).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_slow_tokenizer_does_not_pad(side):
    """ByT5 has no fast tokenizer. Its pad_token_id is 0, and each byte is a token."""
    tokenizer = transformers.ByT5Tokenizer(padding_side=side)
    assert getattr(tokenizer, "backend_tokenizer", None) is None
    got = token_ids(TEXTS, tokenizer, 15)
    assert [len(row) for row in got] == [13, 15, 7]
    assert all(row[-1] == tokenizer.eos_token_id and 0 not in row for row in got)
    assert token_ids(["a red circle"] * 2, tokenizer, 5) == [[100, 35, 117, 104, 1]] * 2


def test_a_prefix_stands_before_each_caption():
    """The prefix is neither cleaned nor counted as words, but its tokens count."""
    captions = Captions(["A Red Circle!", "circle"], shapes_tokenizer(), 2, 6, prefix="Circle: ")
    tokens = [shapes_tokenizer().convert_ids_to_tokens(captions[index]) for index in range(2)]
    start = ["circle", "[UNK]"]
    assert tokens == [["[CLS]", *start, "a", "red", "[SEP]"], ["[CLS]", *start, "circle", "[SEP]"]]
    assert len(Captions(["a red circle"], shapes_tokenizer(), 30, 4, prefix="Circle: ")[0]) == 4


def test_training_and_evaluation_put_the_prefix_before_captions(data):
    """Tested through the functions with which both commands load a split."""
    options = parse("", ["--dataset", "shapes", "--data_path", str(data)])[0]
    for load, name in (load_split, "train"), (load_eval_set, "val"):
        options.caption_prefix = ""
        without = load(options, name, shapes_tokenizer()).captions
        options.caption_prefix = "circle: "
        loaded = load(options, name, shapes_tokenizer())
        caption = "circle: " + clean_caption(loaded.split.captions[0])
        wanted = shapes_tokenizer()(caption)["input_ids"]
        assert loaded.captions[0].tolist() == wanted != without[0].tolist()
