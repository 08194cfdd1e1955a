"""A Hub that cannot be reached: errors of one line without delay, and the cache is used."""

import json
import os
import socket
import subprocess
import sys
import time

import huggingface_hub
import pytest
import transformers
from helpers.paths import ROOT

import common.hub
from common.errors import InputError
from encoders import hub
from encoders.hub import check_texts
from encoders.processors import load_tokenizer, wordpiece_tokenizer

# In a process of its own: huggingface_hub reads the variables when it is imported.
PROGRAM = """
import contextlib, io, json, sys, time
from argparse import Namespace
import transformers
from common.errors import InputError
from encoders.processors import load_tokenizer, pixel_statistics
from encoders.loading import load_encoder
from model import DualEncoder

def timed(function, *arguments):
    start = time.perf_counter()
    try:
        result = type(function(*arguments)).__name__
    except InputError as error:
        result = str(error)
    return result, time.perf_counter() - start

transformers.BertModel, transformers.AutoImageProcessor, transformers.AutoTokenizer  # imports them
print(json.dumps([
    timed(load_tokenizer, "bert-base-uncased", ""),
    timed(load_encoder, "google/vit-base-patch16-384", "image", 32),
    timed(load_encoder, "someone/bert", "text", 32),
    timed(load_encoder, "someone/else", "text", 32, None, False),
    timed(pixel_statistics, Namespace(image_encoder="someone/vit", image_stats="auto")),
    timed(load_encoder, sys.argv[1], "image", 32),
    timed(load_tokenizer, "someone/bert", ""),
    timed(DualEncoder.from_pretrained, "someone/model"),
    timed(DualEncoder.from_pretrained, "no/such/folder"),
]))
"""


@pytest.fixture(scope="module")
def unreachable(tmp_path_factory):
    """Return the results of `PROGRAM` with their seconds, and what it printed on stderr."""
    home = tmp_path_factory.mktemp("home")
    cached = home / "hub" / "models--someone--bert"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    transformers.BertModel(transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24)).save_pretrained(cached / "snapshots" / "abc")
    load_tokenizer("tiny-bert", ROOT / "vocab" / "shapes.txt").save_pretrained(
        cached / "snapshots" / "abc")
    variables = {name: value for name, value in os.environ.items()
                 if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE")}
    variables |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(home / "nothing")], cwd=ROOT,
                          env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_a_model_that_cannot_be_had_is_an_error_of_one_line(unreachable):
    results, printed = unreachable
    for number, flag in ((0, "--text_encoder bert-base-uncased"),
                         (1, "--image_encoder google/vit-base-patch16-384"),
                         (3, "--text_encoder someone/else"),
                         (4, "--image_stats auto: someone/vit"), (7, "someone/model")):
        line = results[number][0]
        assert line.startswith(flag) and "\n" not in line
        assert "http://127.0.0.1:9" in line and "Connection refused" in line
    assert printed == ""


def test_what_is_in_the_cache_is_used(unreachable):
    results = unreachable[0]
    assert results[2][0] == "BertModel"
    assert "Tokenizer" in results[6][0] and "--" not in results[6][0]


def test_the_error_of_a_missing_folder_does_not_speak_of_the_hub(unreachable):
    line = unreachable[0][5][0]
    assert "--image_encoder" in line and "nothing" in line and "127.0.0.1" not in line


def test_the_error_of_a_missing_model_folder_does_not_speak_of_the_hub(unreachable):
    line = unreachable[0][8][0]
    assert line.startswith("no/such/folder") and "127.0.0.1" not in line


@pytest.mark.parametrize("silent", ["server", "name server"])
def test_a_hub_that_does_not_answer_is_given_up(monkeypatch, silent):
    """A server that takes connections and never answers, and a name that is never found."""
    hub.hub_error.cache_clear()
    monkeypatch.setattr(common.hub, "HUB_TIMEOUT", 0.5)
    start = time.perf_counter()
    with socket.create_server(("127.0.0.1", 0)) as server:
        if silent == "server":
            monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
            monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT",
                                f"http://127.0.0.1:{server.getsockname()[1]}")
        else:
            monkeypatch.setattr(common.hub, "get_session", lambda: time.sleep(20))
        reason = hub.hub_error()
        assert hub.use_cache_only("someone/model")
    hub.hub_error.cache_clear()
    assert time.perf_counter() - start < 5 and reason is not None, reason


def test_an_unreachable_hub_costs_little_time(unreachable):
    """transformers by itself takes 23 seconds for each file. Imports are not counted."""
    seconds = [time for _, time in unreachable[0]]
    assert sum(seconds) < 4, seconds


@pytest.mark.parametrize(("name", "asks"), [
    ("bert-base-uncased", True), ("google/vit-base-patch16-384", True), ("timm/resnet18", True),
    ("/data/vit", False), ("../vit", False), ("a/b/c", False), ("", False)])
def test_a_hub_name_has_its_form_and_is_no_folder(tmp_path, monkeypatch, name, asks):
    monkeypatch.chdir(tmp_path)
    assert hub.is_hub_name(name) == asks
    if asks:
        (tmp_path / name).mkdir(parents=True)
        assert not hub.is_hub_name(name)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"),
                                  lambda path: path.mkdir(), lambda path: endless(path)])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "vocab.txt"])
def test_texts_without_end_are_not_read(tmp_path, name, make):
    """transformers would read them as a whole, or wait for a pipe."""
    make(tmp_path / name)
    with pytest.raises(OSError, match=name):
        check_texts(tmp_path)
    if name == "vocab.txt":
        with pytest.raises(InputError, match=f"--vocab .*{name}"):
            wordpiece_tokenizer(tmp_path / name)


def endless(path):
    path.write_bytes(b"")
    os.truncate(path, 2**40)
