"""Pretrained pairs as models: embeddings and logits are those of transformers, file to number."""

import functools
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
import transformers as T
from helpers.pairs import (
    CAPTIONS,
    LENGTH,
    MODELS,
    RES,
    clip_processor,
    embed,
    make_pair,
    make_tokenizer,
    same,
    save_pair,
)
from PIL import Image

import checkpoint
from common.errors import InputError
from common.options import parse_scoring
from encoders.pairs import with_names_of_today
from encoders.processors import tokenizer_of
from model import DualEncoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a function that saves a pair of a kind once, and returns its folder."""
    return functools.cache(lambda kind: save_pair(tmp_path_factory.mktemp(kind), kind))


def inputs_of(folder, kind, photos, **size):
    """Return the pixels and tokens that the pair's own processor and tokenizer give."""
    tokenizer = T.AutoTokenizer.from_pretrained(folder)
    processor = T.AutoImageProcessor.from_pretrained(folder)
    pixels = processor([Image.open(photo) for photo in photos], return_tensors="pt", **size)
    padding = "max_length" if kind == "siglip" else True
    tokens = tokenizer(CAPTIONS, return_tensors="pt", truncation=True, max_length=LENGTH,
                       padding=padding)
    names = ["input_ids"] if kind == "siglip" else ["input_ids", "attention_mask"]
    return pixels["pixel_values"], {name: tokens[name] for name in names}


@torch.no_grad()
def check_parity(model, pair, photos, pixels, tokens, **more):
    """Compare embeddings and logits with those of the pair of transformers itself."""
    image_embeds, text_embeds = embed(model, photos)
    logits = model.logits_per_image(image_embeds, text_embeds)
    if isinstance(pair, T.BlipForImageTextRetrieval):
        output = pair(pixel_values=pixels, use_itm_head=False, **tokens, **more)
        same(logits, output.itm_score)
        return
    image_features = pair.get_image_features(pixel_values=pixels, **more)
    text_features = pair.get_text_features(**tokens)
    for got, features in (image_embeds, image_features), (text_embeds, text_features):
        features = getattr(features, "pooler_output", features)  # a tensor of transformers 4
        same(got, F.normalize(features, dim=1))
    same(logits, pair(pixel_values=pixels, **tokens, **more).logits_per_image)


@pytest.mark.parametrize("kind", MODELS)
def test_embeddings_and_logits_are_the_pairs_own(folder, photos, kind):
    model = DualEncoder.from_pretrained(folder(kind))
    pair = type(make_pair(kind)).from_pretrained(folder(kind)).eval()
    check_parity(model, pair, photos, *inputs_of(folder(kind), kind, photos))
    assert not model.training and model.preparation.max_tokens == LENGTH
    assert embed(model, photos)[0].std() > 0.01


@pytest.mark.parametrize("kind", MODELS)
def test_so_they_are_at_another_photo_size(folder, photos, tmp_path, kind):
    """As --image_res of a command gives it: positions are interpolated, photos fitted alike."""
    state = checkpoint.read(folder(kind))
    size = 48
    options, given = parse_scoring("", [str(folder(kind)), "--image_res", str(size)])
    checkpoint.merge_options(options, given, state, folder(kind))
    options.data_path = tmp_path
    tokenizer = tokenizer_of(options)
    model = checkpoint.model_for_testing(options, state, folder(kind), tokenizer)
    preparation = DualEncoder.from_pretrained(folder(kind)).preparation
    model.preparation = preparation._replace(image_res=size)
    pair = type(make_pair(kind)).from_pretrained(folder(kind)).eval()
    resized = round(size * 38 / RES) if kind == "align" else size
    square = {"height": resized, "width": resized}
    sizes = dict(size=square)
    if preparation.photo_fit.fit == "crop":
        sizes = dict(size={"shortest_edge": size}, crop_size=square)
    elif kind == "align":
        sizes |= dict(crop_size={"height": size, "width": size})
    more = {} if kind == "align" else {"interpolate_pos_encoding": True}
    check_parity(model, pair, photos, *inputs_of(folder(kind), kind, photos, **sizes), **more)


def test_a_cut_caption_keeps_its_end_token(folder):
    captions = DualEncoder.from_pretrained(folder("clip")).preparation.captions(CAPTIONS)
    assert len(captions[2]) == LENGTH and captions[2][0] == 1 and captions[2][-1] == 2


def test_captions_reach_the_tokenizer_as_they_are(folder):
    """Capitals and full stops count."""
    model = DualEncoder.from_pretrained(folder("clip"))
    captions = model.preparation.captions(["Two dogs.", "two dogs"])
    wanted = make_tokenizer()(["Two dogs.", "two dogs"])["input_ids"]
    assert [captions[i].tolist() for i in (0, 1)] == wanted and wanted[0] != wanted[1]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_siglip_pads_on_the_side_of_its_tokenizer(tmp_path, photos, padding_side):
    save_pair(tmp_path, "siglip", make_tokenizer(padding_side=padding_side))
    model = DualEncoder.from_pretrained(tmp_path)
    pair = T.SiglipModel.from_pretrained(tmp_path).eval()
    check_parity(model, pair, photos, *inputs_of(tmp_path, "siglip", photos))


def test_a_clip_of_sentence_transformers_is_found_in_its_folder(folder, photos, tmp_path):
    shutil.copytree(folder("clip"), tmp_path / "0_CLIPModel")
    (tmp_path / "modules.json").write_text(json.dumps([{
        "idx": 0, "name": "0", "path": "0_CLIPModel",
        "type": "sentence_transformers.models.CLIPModel"}]))
    for got, wanted in zip(embed(DualEncoder.from_pretrained(tmp_path), photos),
                           embed(DualEncoder.from_pretrained(folder("clip")), photos)):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(("change", "named"), [
    (lambda folder: (folder / "model.safetensors").unlink(), ""),
    (lambda folder: (folder / "preprocessor_config.json").unlink(missing_ok=True) or
     (folder / "processor_config.json").unlink(missing_ok=True), ""),
    (lambda folder: [path.unlink() for path in folder.glob("token*")], "tokenizer"),
    (lambda folder: make_bert().save_pretrained(folder), "bert"),
    (lambda folder: T.CLIPImageProcessor(
        size={"height": 32, "width": 40}, do_center_crop=False).save_pretrained(folder), "40"),
])
def test_a_pair_without_one_of_its_parts_is_one_line(folder, tmp_path, change, named):
    place = tmp_path / "pair"
    shutil.copytree(folder("clip"), place)
    change(place)
    with pytest.raises(InputError) as caught:
        DualEncoder.from_pretrained(place)
    message = str(caught.value)
    assert str(place) in message and named in message and "\n" not in message


@pytest.mark.parametrize(("file", "content"), [
    ("config.json", {"text_config": {"num_hidden_layers": 10**9}}),
    ("config.json", {"vision_config": {"num_hidden_layers": 10**9}}),
    ("config.json", {"text_config": {"hidden_size": 10**9}}),
    ("config.json", {"model_type": "no_such_type"}),
    ("preprocessor_config.json", {"size": {"shortest_edge": 10**9}, "crop_size": {
        "height": 10**9, "width": 10**9}}),
    ("preprocessor_config.json", {"size": {"shortest_edge": 10**9}}),
    ("preprocessor_config.json", {"image_std": [0, 0, 0]}),
    ("preprocessor_config.json", {"resample": 77})])
def test_a_hostile_pair_is_one_line(folder, tmp_path, file, content):
    """Nothing of such a size is made, and nothing waits."""
    place = tmp_path / "pair"
    shutil.copytree(folder("clip"), place)
    changed = json.loads((place / file).read_text())
    for name, value in content.items():
        changed[name] = changed[name] | value if isinstance(changed.get(name), dict) else value
    (place / file).write_text(json.dumps(changed))
    with pytest.raises(InputError) as caught:
        DualEncoder.from_pretrained(place)
    assert str(place) in str(caught.value) and "\n" not in str(caught.value)


def test_a_modules_file_leads_to_no_other_folder(folder, photos, tmp_path):
    place = tmp_path / "pair"
    shutil.copytree(folder("clip"), place)
    (place / "modules.json").write_text(json.dumps([
        {"path": str(folder("siglip")), "type": "sentence_transformers.models.CLIPModel"}]))
    wanted = embed(DualEncoder.from_pretrained(folder("clip")), photos)
    assert all(map(torch.equal, embed(DualEncoder.from_pretrained(place), photos), wanted))


def make_bert():
    return T.BertModel(T.BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1,
                                    num_attention_heads=2, intermediate_size=24))


def test_a_pair_whose_file_lacks_a_projection_is_refused(folder, tmp_path):
    """A BLIP that writes captions has none; with random ones it would score all the same."""
    T.CLIPVisionModel(make_pair("clip").config.vision_config).save_pretrained(tmp_path)
    for name in "config.json", "tokenizer.json", "tokenizer_config.json":
        shutil.copy(folder("clip") / name, tmp_path)
    clip_processor().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no weights for .* random"):
        DualEncoder.from_pretrained(tmp_path)
    save_pair(tmp_path / "blip", "blip")
    config = json.loads((tmp_path / "blip" / "config.json").read_text())
    config["architectures"] = ["BlipForConditionalGeneration"]
    (tmp_path / "blip" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="BlipForConditionalGeneration.*ImageTextRetrieval"):
        DualEncoder.from_pretrained(tmp_path / "blip")


def test_weights_of_earlier_checkpoints_get_their_names_of_today():
    """These held both sides' projections, and the logit scale, in each half of a CLIP."""
    one = torch.ones(1)
    earlier = {f"{side}_encoder.clip.{name}": one for side in ("image", "text") for name in (
        f"{'vision' if side == 'image' else 'text'}_model.x", "visual_projection.weight",
        "text_projection.weight", "logit_scale")}
    assert set(with_names_of_today(earlier | {"image_projection.bias": one})) == {
        "image_encoder.pair.vision_model.x", "image_encoder.pair.visual_projection.weight",
        "text_encoder.pair.text_model.x", "text_encoder.pair.text_projection.weight",
        "image_projection.bias"}
