"""An exported pair is a folder of its own type: transformers and sentence-transformers load it."""

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
    embed,
    make_pair,
    make_tokenizer,
    same,
    save_pair,
)
from PIL import Image

import checkpoint
import export
from common.errors import InputError
from encoders.pair_folder import pair_weights
from encoders.pairs import LogitScale
from model import DualEncoder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a function that saves and exports a pair of a kind once, and returns both folders."""
    @functools.cache
    def of_kind(kind):
        folder = save_pair(tmp_path_factory.mktemp(kind), kind)
        export.export(export.parse_export("", [str(folder), str(folder / "out")]))
        return folder, folder / "out"

    return of_kind


@pytest.mark.parametrize("kind", MODELS)
def test_transformers_loads_the_same_weights(exported, kind):
    folder, out = exported(kind)
    pair_type = type(make_pair(kind))
    before, after = (pair_type.from_pretrained(place).state_dict() for place in (folder, out))
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", MODELS)
def test_this_program_loads_it_to_the_bit(exported, photos, kind):
    folder, out = exported(kind)
    before, after = DualEncoder.from_pretrained(folder), DualEncoder.from_pretrained(out)
    assert all(map(torch.equal, embed(before, photos), embed(after, photos)))
    if kind == "blip_retrieval":
        assert before.logit_scale is after.logit_scale is None
    else:
        assert after.logit_scale == pytest.approx(before.logit_scale, rel=1e-6)
    assert after.preparation.photo_fit == before.preparation.photo_fit
    assert after.preparation.max_tokens == LENGTH


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "blip_retrieval"])
def test_sentence_transformers_gives_our_vectors(exported, photos, kind):
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6")
    folder, out = exported(kind)
    model = sentence_transformers.SentenceTransformer(str(out), device="cpu")
    image_embeds, text_embeds = embed(DualEncoder.from_pretrained(folder), photos)
    same(model.encode([Image.open(photo) for photo in photos]), image_embeds)
    same(model.encode(CAPTIONS), text_embeds)
    same(model.encode(CAPTIONS[1]), text_embeds[1])


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_processor_in_it_prepares_photos_and_captions(exported, photos, kind):
    """So that whoever knows the type needs nothing of ours."""
    folder, out = exported(kind)
    processor, pair = T.AutoProcessor.from_pretrained(out), T.AutoModel.from_pretrained(out)
    inputs = processor(text=CAPTIONS, images=[Image.open(photo) for photo in photos],
                       return_tensors="pt", truncation=True,
                       padding="max_length" if kind == "siglip" else True)
    model = DualEncoder.from_pretrained(folder)
    with torch.no_grad():
        logits = pair.eval()(**inputs).logits_per_image
    same(logits, model.logits_per_image(*embed(model, photos)))


def resized(folder, size):
    """Return the model of a folder for photos of another size, with its preparation."""
    model = DualEncoder.from_pretrained(folder)
    fit = DualEncoder(model.image_encoder, model.text_encoder, image_res=size,
                      max_tokens=model.preparation.max_tokens)
    fit.preparation = model.preparation._replace(image_res=size)
    return fit.eval()


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "blip_retrieval"])
def test_a_table_of_positions_is_interpolated_for_good(exported, photos, tmp_path, kind):
    """A model for photos of another size becomes a pair of that size."""
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6")
    model = resized(exported(kind)[0], 48)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["vision_config"]["image_size"] == (32 if kind == "align" else 48)
    again = DualEncoder.from_pretrained(tmp_path)
    assert again.preparation.image_res == 48 and not again.image_encoder_kwargs
    for got, wanted in zip(embed(again, photos), embed(model, photos)):
        same(got, wanted)
    elsewhere = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    same(elsewhere.encode([Image.open(photo) for photo in photos]), embed(model, photos)[0])


def test_cleaned_captions_with_a_prefix_are_those_of_others_too(exported, photos, tmp_path):
    """Whoever reads tokenizer.json gets captions cleaned; this program cleans them once."""
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6")
    model = DualEncoder.from_pretrained(exported("clip")[0])
    model.preparation = model.preparation._replace(cleaning="published", prefix="a red ")
    model.save_pretrained(tmp_path)
    again = DualEncoder.from_pretrained(tmp_path)
    assert again.preparation.cleaning == "published" and again.preparation.prefix == "a red "
    wanted = embed(model, photos)[1]
    assert torch.equal(embed(again, photos)[1], wanted)
    elsewhere = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    same(elsewhere.encode(CAPTIONS), wanted)
    assert not torch.equal(wanted, embed(DualEncoder.from_pretrained(exported("clip")[0]),
                                         photos)[1])


@pytest.mark.parametrize("kind", ["clip", "siglip", "align"])
def test_a_trained_scale_goes_into_the_pair(exported, kind):
    model = DualEncoder.from_pretrained(exported(kind)[0])
    model.set_logit_scale(LogitScale(7.5, -2.25 if kind == "siglip" else 0.0))
    weights = pair_weights(model, 32)
    pair = make_pair(kind)
    pair.load_state_dict(weights)
    ones = F.normalize(torch.ones(1, 8), dim=1)
    logits = model.logits_per_image(ones, ones).item()
    if kind == "align":
        assert 1 / pair.temperature.item() == pytest.approx(logits)
    else:
        bias = pair.logit_bias.item() if kind == "siglip" else 0.0
        assert pair.logit_scale.exp().item() + bias == pytest.approx(logits)


def test_padding_on_the_left_is_kept(photos, tmp_path):
    save_pair(tmp_path / "pair", "siglip", make_tokenizer(padding_side="left"))
    model = DualEncoder.from_pretrained(tmp_path / "pair")
    model.save_pretrained(tmp_path / "out")
    again = DualEncoder.from_pretrained(tmp_path / "out")
    assert torch.equal(embed(again, photos)[1], embed(model, photos)[1])
    assert T.AutoTokenizer.from_pretrained(tmp_path / "out").padding_side == "left"


def test_bfloat16_halves_the_file(exported, photos, tmp_path):
    folder, out = exported("clip")
    export.export(export.parse_export("", [str(folder), str(tmp_path), "--dtype", "bfloat16"]))
    small, large = ((place / "model.safetensors").stat().st_size for place in (tmp_path, out))
    assert small < 0.65 * large
    assert T.CLIPModel.from_pretrained(tmp_path).dtype == torch.float32
    for got, wanted in zip(embed(DualEncoder.from_pretrained(tmp_path), photos),
                           embed(DualEncoder.from_pretrained(folder), photos)):
        assert F.cosine_similarity(got, wanted).min() > 0.99


@pytest.mark.parametrize("change", [
    lambda ours: ours.update(format="x"), lambda ours: ours.update(preparation=5),
    lambda ours: ours["preparation"].update(image_res=10**9),
    lambda ours: ours["preparation"].update(photo_fit={"fit": "x"}),
    lambda ours: ours["preparation"].update(photo_fit={"enlargement": 1e9}),
    lambda ours: ours["preparation"].update(mean="abc"),
    lambda ours: ours.update(tokenizer_normalizer={"type": "Nothing"})])
def test_what_is_ours_is_checked(exported, tmp_path, change):
    place = shutil.copytree(exported("clip")[1], tmp_path / "copy")
    ours = json.loads((place / "fne.json").read_text())
    change(ours)
    (place / "fne.json").write_text(json.dumps(ours))
    with pytest.raises(InputError) as caught:
        DualEncoder.from_pretrained(place)
    assert str(place) in str(caught.value) and "\n" not in str(caught.value)


def test_the_card_says_how_to_load_it(exported):
    folder, out = exported("clip")
    card = (out / "README.md").read_text()
    assert "from transformers import AutoProcessor, CLIPModel" in card
    assert f"The pretrained pair `{folder.name}`" in card and str(folder.parent) not in card
    assert "SentenceTransformer" in card
    assert "cannot load it: a BlipForImageTextRetrieval" in (
        exported("blip_retrieval")[1] / "README.md").read_text()
    assert not (exported("blip_retrieval")[1] / "modules.json").exists()


def test_a_projection_makes_it_a_folder_of_ours(exported, tmp_path):
    model = DualEncoder.from_pretrained(exported("clip")[0])
    other = DualEncoder(model.image_encoder, model.text_encoder, embed_size=6, image_res=32,
                        max_tokens=LENGTH)
    other.preparation = model.preparation
    other.save_pretrained(tmp_path)
    assert not (tmp_path / "fne.json").exists()
    assert (tmp_path / "image_0_Transformer" / "config.json").exists()
    assert DualEncoder.from_pretrained(tmp_path).embed_size == 6


def test_a_checkpoint_of_a_trained_scale_gives_it_to_the_model(tmp_path):
    scale = checkpoint.trained_logit_scale({"log_scale": torch.tensor(2.0)}, tmp_path)
    assert scale.scale == pytest.approx(torch.tensor(2.0).exp().item()) and scale.bias == 0
    assert checkpoint.trained_logit_scale({}, tmp_path) is None
    for wrong in torch.tensor(torch.nan), torch.ones(3), "x", torch.tensor(900.0):
        with pytest.raises(InputError):
            checkpoint.trained_logit_scale({"log_scale": wrong}, tmp_path)


def test_a_siglip_with_its_first_tokenizer_comes_along(photos, tmp_path):
    """That of sentencepiece, which has no form as tokenizer.json."""
    sentencepiece = pytest.importorskip("sentencepiece")
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6")
    (tmp_path / "texts.txt").write_text("two dogs play in the snow\na red car a b c d e f\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "texts.txt"), model_prefix=str(tmp_path / "spiece"), vocab_size=38,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2)
    tokenizer = T.SiglipTokenizer(str(tmp_path / "spiece.model"), model_max_length=LENGTH)
    save_pair(tmp_path / "pair", "siglip", tokenizer)
    model = DualEncoder.from_pretrained(tmp_path / "pair")
    image_embeds, text_embeds = embed(model, photos)
    tokens = tokenizer(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt")
    pair = T.SiglipModel.from_pretrained(tmp_path / "pair").eval()
    with torch.no_grad():
        features = pair.get_text_features(input_ids=tokens["input_ids"])
    same(text_embeds, F.normalize(getattr(features, "pooler_output", features), dim=1))
    model.save_pretrained(tmp_path / "out")
    assert all(map(torch.equal, embed(DualEncoder.from_pretrained(tmp_path / "out"), photos),
                   (image_embeds, text_embeds)))
    elsewhere = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    same(elsewhere.encode(CAPTIONS), text_embeds)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_onnx_files_give_our_vectors(exported, photos, tmp_path, kind):
    """Captions are given as `preparation` pads them; the pair's own padding is in the file."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = exported(kind)[0]
    export.export(export.parse_export("", [str(folder), str(tmp_path), "--onnx"]))
    model = DualEncoder.from_pretrained(folder)
    image_embeds, text_embeds = embed(model, photos)
    captions = model.preparation.captions(CAPTIONS)
    rows = [captions[number] for number in range(len(captions))]
    length = max(len(row) for row in rows)
    assert length == LENGTH  # the file takes captions of that length
    input_ids, mask = captions.padded(rows)
    inputs = {"image": {"pixel_values": model.preparation.pixels(photos)},
              "text": {"input_ids": input_ids, "attention_mask": mask}}
    for side, wanted in ("image", image_embeds), ("text", text_embeds):
        session = runtime.InferenceSession(tmp_path / f"{side}.onnx",
                                           providers=["CPUExecutionProvider"])
        [found] = session.run(None, {name: value.numpy() for name, value in inputs[side].items()})
        same(found, wanted)
