"""Encoders that are not in the table: named, with the reason; and the table that people read."""

import importlib.util
import json
import re
from types import SimpleNamespace

import pytest
import transformers
from helpers.paths import ROOT

from common.errors import InputError
from encoders.families import REFUSED, SUPPORTED, find_family
from encoders.loading import load_encoder
from encoders.processors import load_tokenizer

DOC = (ROOT / "docs" / "encoders.md").read_text()
SIZES = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)


def rows(columns):
    """Rows of the document's table with so many columns, by type."""
    cells = [[cell.strip() for cell in line.strip("| ").split("|")]
             for line in DOC.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in cells if len(row) == columns}


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("kind", "side", "config"), [
    ("vit_mae", "image", lambda: transformers.ViTMAEConfig(image_size=32, patch_size=8, **SIZES)),
    ("siglip2", "image", lambda: transformers.Siglip2Config()),
    ("funnel", "text", lambda: transformers.FunnelConfig()),
    ("bart", "text", lambda: transformers.BartConfig()),
    ("clip_text_model", "text", lambda: transformers.CLIPTextConfig()),
    ("deberta-v2", "text", lambda: transformers.DebertaV2Config()),
])
def test_what_cannot_work_is_refused_before_it_is_loaded(tmp_path, kind, side, config):
    """There are no weights in the folder, and none are asked for."""
    config().save_pretrained(tmp_path)
    reason = re.escape(f" ({REFUSED[kind]})") if kind in REFUSED else ""
    for pretrained in True, False:
        with pytest.raises(InputError) as caught:
            load_encoder(str(tmp_path), side, 32, None, pretrained)
        assert re.fullmatch(
            f"--{side}_encoder {tmp_path}: models of type {kind} are not supported{reason}; "
            "docs/encoders.md lists those that are", str(caught.value))


@pytest.mark.parametrize("kind", SUPPORTED)
def test_a_model_for_the_other_side(kind):
    config = SimpleNamespace(model_type=kind)
    for side in "image", "text":
        if side in SUPPORTED[kind].sides:
            assert find_family(config, side) is SUPPORTED[kind]
        else:
            other = SUPPORTED[kind].sides[0]
            with pytest.raises(InputError, match=f"^--{side}_encoder x: models of type {kind} are "
                                                 f"for the other side, --{other}_encoder;"):
                find_family(config, side, "x")


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_a_timm_model_without_timm(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(
        {"model_type": "timm_wrapper", "architecture": "resnet18"}))
    with pytest.raises(InputError, match="^--image_encoder .*: it needs a package more .*timm lib"
                       ) as caught:
        load_encoder(str(tmp_path), "image", 32)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------ the document


def test_the_document_has_the_table():
    table = rows(7)
    assert list(table) == list(SUPPORTED)
    for kind, (sides, poolings, left_out, sizes, loader, example) in table.items():
        family = SUPPORTED[kind]
        assert tuple(sides.split(" and ")) == family.sides
        assert tuple(re.findall(r"`(\w+)`", poolings)) == family.poolings
        tokens = family.excluded_tokens(SimpleNamespace(num_register_tokens=4))
        assert left_out == {0: "", 1: "class token", 5: "class token, registers"}[tokens], kind
        photos = "interpolated" if family.interpolates_positions else "as it is"
        assert sizes == (photos if "image" in family.sides else "")
        assert loader == f"`{family.loader_class}`" and example


def test_the_document_has_the_reasons():
    assert rows(2) == {kind: [reason] for kind, reason in REFUSED.items()}


# --------------------------------------------------------------------------------------- tokenizers


def word_tokenizer(**special):
    core = load_tokenizer("tiny-bert", ROOT / "vocab" / "shapes.txt").backend_tokenizer
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **special)


@pytest.mark.parametrize(("special", "pad"), [
    (dict(eos_token="[SEP]"), "[SEP]"), (dict(unk_token="[UNK]"), "[PAD]"),
    (dict(eos_token="[SEP]", pad_token="[MASK]"), "[MASK]")])
def test_a_tokenizer_without_padding_token_gets_one(tmp_path, special, pad):
    """As those of GPT-2 and Llama; one that has its own keeps it."""
    tokenizer = word_tokenizer(**special)
    tokenizer.save_pretrained(tmp_path)
    transformers.GPT2Config().save_pretrained(tmp_path)
    assert (tokenizer.pad_token_id is None) == ("pad_token" not in special)
    got = load_tokenizer(str(tmp_path), "no matter")
    assert got.pad_token_id == got.convert_tokens_to_ids(pad) and len(got) == len(tokenizer)
