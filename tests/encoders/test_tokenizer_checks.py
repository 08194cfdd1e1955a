"""Tokenizers that fail, or fill the memory, only once they are used."""

import json
import os
import time

import pytest
import transformers
from helpers.paths import ROOT
from tokenizers import Tokenizer, models

from common.errors import InputError
from encoders import tokenizer_checks
from encoders.processors import load_tokenizer
from encoders.stored import StoredEncoders, tokenizer_to_json
from encoders.tokenizer_checks import check_tokenizer

SOUND = load_tokenizer("tiny-bert", ROOT / "vocab" / "shapes.txt")
LETTERS = {chr(code): code - 31 for code in range(32, 127)}


def replace(pattern, content, kind="String"):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def sequence(*parts):
    return {"type": "Sequence", "normalizers": list(parts)}


def bpe(**settings):
    return {"type": "BPE", "vocab": {"[PAD]": 0, "[UNK]": 96} | LETTERS, "merges": [],
            "unk_token": "[UNK]"} | settings


def changed(**parts):
    """Return the sound tokenizer as JSON, with parts of it replaced."""
    return json.loads(SOUND.backend_tokenizer.to_str()) | parts


def read(content):
    """Read a tokenizer as it comes from a checkpoint or a folder of export.py."""
    text = json.dumps({"tokenizer": content, "special_tokens": {"pad_token": "[PAD]"}})
    return StoredEncoders("x", {}, tokenizer=text).read_tokenizer()


BOMB = sequence(*[replace("e", "ee")] * 33)
UNIGRAM = {"type": "Unigram", "vocab": [["[PAD]", 0.0], ["a", -1.0]], "unk_id": None}
HOSTILE = {
    "a bomb": changed(normalizer=BOMB),
    "a bomb of another letter": changed(normalizer=sequence(*[replace("q", "qq")] * 40)),
    "a bomb of one word": changed(normalizer=sequence(*[replace("zebra", "zebrazebra")] * 40)),
    "a bomb of a regex": changed(normalizer=sequence(*[replace("zebr[a-c]", "x" * 12, "Regex"),
                                                       *[replace("x", "xx")] * 20])),
    "a bomb under the limit of growth": changed(normalizer=sequence(
        *[replace("e", "e" * 90)] * 2)),
    "a bomb before words are told apart": changed(pre_tokenizer=None, normalizer=sequence(
        {"type": "Prepend", "prepend": "e" * 10**6})),
    "a dropout": changed(model=bpe(dropout=0.1)),
    "a dropout of all": changed(model=bpe(dropout=1.0)),
    "no unknown token": changed(model={"type": "WordLevel", "vocab": {"[PAD]": 0, "dog": 1},
                                       "unk_token": "[UNK]"}, post_processor=None),
    "WordPiece without its unknown token": changed(model=dict(
        type="WordPiece", unk_token="[NONE]", continuing_subword_prefix="##",
        max_input_chars_per_word=100, vocab={"[PAD]": 0, "dog": 1}), post_processor=None),
    "unk_id null": changed(model=UNIGRAM, post_processor=None),
    "words of no letters": changed(pre_tokenizer={"type": "FixedLength", "length": 0}),
    "a post-processor of a million tokens": changed(post_processor={
        "type": "TemplateProcessing", "pair": [], "special_tokens": {
            "[PAD]": {"id": "[PAD]", "ids": [0] * 10, "tokens": ["[PAD]"] * 10}},
        "single": [{"Sequence": {"id": "A", "type_id": 0}},
                   *[{"SpecialToken": {"id": "[PAD]", "type_id": 0}}] * 10**5]}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_tokenizer_that_fails_only_when_it_is_used_is_refused(name):
    start = time.monotonic()
    with pytest.raises(InputError, match="^x: its tokenizer") as caught:
        read(HOSTILE[name])
    assert "\n" not in str(caught.value) and time.monotonic() - start < 20
    assert os.getpid() == PID


PID = os.getpid()
SOUND_ONES = {
    "BERT's": changed(),
    "byte level": changed(
        model=bpe(vocab={"[PAD]": 0} | {letter: number + 1 for number, letter in enumerate(
            sorted({chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 324)]}))},
            unk_token=None),
        pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                       "use_regex": True}, post_processor=None),
    "as SentencePiece": changed(
        normalizer=sequence({"type": "Prepend", "prepend": "\u2581"}, replace(" ", "\u2581")),
        model=UNIGRAM | {"vocab": [["[PAD]", 0.0], ["[UNK]", 0.0], ["a", -1.0]], "unk_id": 1},
        pre_tokenizer=None, post_processor=None),
    "fractions written out": changed(normalizer=sequence(replace("\u00bd", " 1/2 "),
                                                         {"type": "NFKD"}, replace(" {2,}", " ",
                                                                                   "Regex"))),
}


@pytest.mark.parametrize("name", SOUND_ONES)
def test_a_sound_tokenizer_is_taken(name):
    assert len(read(SOUND_ONES[name])) > 1


def test_a_folders_tokenizer_is_tried_too(tmp_path):
    SOUND.save_pretrained(tmp_path)
    assert len(load_tokenizer(str(tmp_path), "")) == len(SOUND)
    (tmp_path / "tokenizer.json").write_text(json.dumps(HOSTILE["words of no letters"]))
    with pytest.raises(InputError, match=f"^--text_encoder {tmp_path}: its tokenizer"):
        load_tokenizer(str(tmp_path), "")


class Slow:
    """A tokenizer of transformers without a fast one, which does as `call` says."""

    def __init__(self, call):
        self.call = call

    def __call__(self, texts, **settings):
        return {"input_ids": [self.call(text) for text in texts]}


@pytest.mark.parametrize("call, words", [
    (lambda text: [1] * len(text), None),
    (lambda text: [1] * 100 * (len(text) + 1), "tokens of"),
    (lambda text: os.urandom(1) and list(os.urandom(9)), "each time"),
    (lambda text: [-1], "no numbers"),
    (lambda text: [[1]], "no numbers"),
    (lambda text: 1 // 0, "does not tokenise a text"),
    (lambda text: [1] * 10**9, "does not tokenise a text"),
    (lambda text: os.abort(), "ends the program"),
    (lambda text: os._exit(0), "ends the program"),
    (lambda text: (_ for _ in ()).throw(SystemExit(3)), "does not tokenise a text"),
])
def test_whatever_a_tokenizer_does_is_told(call, words):
    if words is None:
        check_tokenizer(Slow(call), "x")
    else:
        with pytest.raises(InputError, match=f"^x: .*{words}"):
            check_tokenizer(Slow(call), "x")


@pytest.mark.parametrize("call", [lambda text: [1] * sum(iter(lambda: 1, 0)),
                                  lambda text: time.sleep(60)])
def test_a_tokenizer_without_end_is_given_up(monkeypatch, call):
    """One that computes, and one that waits."""
    monkeypatch.setattr(tokenizer_checks, "CPU_SECONDS", 1)
    monkeypatch.setattr(tokenizer_checks, "WALL_SECONDS", 4)
    start = time.monotonic()
    with pytest.raises(InputError, match="within 1 s"):
        check_tokenizer(Slow(call), "x")
    assert time.monotonic() - start < 20


def test_the_trial_waits_for_no_thread_of_its_parent(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setattr(tokenizer_checks, "WALL_SECONDS", 20)
    SOUND.backend_tokenizer.encode_batch_fast(["a dog"] * 10_000)  # starts its threads
    check_tokenizer(SOUND, "x")


def test_a_token_that_a_pattern_names_is_among_the_texts():
    parts = list(tokenizer_checks.objects_in([{"a": [replace("\u1234word", "y")]}]))
    assert [text for part in parts for text in tokenizer_checks.pattern_texts(part)] == [
        "\u1234word"]


def test_a_tokenizer_is_stored_as_it_was_after_its_trial():
    text = tokenizer_to_json(SOUND, len(SOUND))
    core = Tokenizer.from_str(SOUND.backend_tokenizer.to_str())
    again = transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]")
    before = core.to_str()
    check_tokenizer(again, "x")
    assert core.to_str() == before and tokenizer_to_json(SOUND, len(SOUND)) == text
    assert isinstance(core.model, models.WordPiece)
