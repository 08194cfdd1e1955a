"""Types of encoders that are refused, with the reason; and the table in docs/encoders.md."""

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
    """Return the rows of the page's tables that have `columns` columns, by model type."""
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
def test_an_unsupported_type_is_refused_before_weights_are_loaded(tmp_path, kind, side, config):
    """The folder has no weights, so loading them would fail with another error."""
    config().save_pretrained(tmp_path)
    for pretrained in True, False:
        with pytest.raises(InputError) as caught:
            load_encoder(str(tmp_path), side, 32, None, pretrained)
        message = str(caught.value)
        assert message.startswith(f"--{side}_encoder {tmp_path}: ") and "\n" not in message
        assert kind in message and REFUSED.get(kind, "") in message
        assert "docs/encoders.md" in message


@pytest.mark.parametrize("kind", SUPPORTED)
def test_a_type_for_the_other_side_is_refused(kind):
    config = SimpleNamespace(model_type=kind)
    for side in "image", "text":
        if side in SUPPORTED[kind].sides:
            assert find_family(config, side) is SUPPORTED[kind]
        else:
            other = SUPPORTED[kind].sides[0]
            with pytest.raises(InputError, match=f"^--{side}_encoder x: .*{kind} .*"
                                                 f"--{other}_encoder"):
                find_family(config, side, "x")


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_a_timm_model_without_timm_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(
        {"model_type": "timm_wrapper", "architecture": "resnet18"}))
    with pytest.raises(InputError, match="^--image_encoder .*timm") as caught:
        load_encoder(str(tmp_path), "image", 32)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------- the page


def test_the_page_has_the_table_of_supported_types():
    table = rows(7)
    assert list(table) == list(SUPPORTED)
    for kind, (sides, poolings, excluded, sizes, loader_class, example) in table.items():
        family = SUPPORTED[kind]
        assert tuple(sides.split(" and ")) == family.sides
        assert tuple(re.findall(r"`(\w+)`", poolings)) == family.poolings
        tokens = family.excluded_tokens(SimpleNamespace(num_register_tokens=4))
        assert excluded == {0: "", 1: "class token", 5: "class token, registers"}[tokens], kind
        expected_sizes = "interpolated" if family.interpolates_positions else "as it is"
        assert sizes == (expected_sizes if "image" in family.sides else "")
        classes = family.classes or (family.loader_class,)
        assert loader_class == " or ".join(f"`{name}`" for name in classes) and example


def test_the_page_has_the_reasons_for_refusals():
    assert rows(2) == {kind: [reason] for kind, reason in REFUSED.items()}


# --------------------------------------------------------------------------------------- tokenizers


def word_tokenizer(**special):
    core = load_tokenizer("tiny-bert", ROOT / "vocab" / "shapes.txt").backend_tokenizer
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **special)


@pytest.mark.parametrize(("special", "pad"), [
    (dict(eos_token="[SEP]"), "[SEP]"), (dict(unk_token="[UNK]"), "[PAD]"),
    (dict(eos_token="[SEP]", pad_token="[MASK]"), "[MASK]")])
def test_a_tokenizer_without_padding_token_gets_one(tmp_path, special, pad):
    """The tokenizers of GPT-2 and Llama have none; a tokenizer that has one keeps it."""
    tokenizer = word_tokenizer(**special)
    tokenizer.save_pretrained(tmp_path)
    transformers.GPT2Config().save_pretrained(tmp_path)
    assert (tokenizer.pad_token_id is None) == ("pad_token" not in special)
    got = load_tokenizer(str(tmp_path), "no matter")
    assert got.pad_token_id == got.convert_tokens_to_ids(pad) and len(got) == len(tokenizer)
