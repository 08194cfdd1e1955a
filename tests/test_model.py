"""The dual encoder on small encoders of several types: embeddings, freezing, speed and memory."""

import re

import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers.encoders import (
    IDS,
    IMAGE_KINDS,
    MASK,
    PAD,
    TEXT_KINDS,
    WIDTH,
    photos,
    same,
)

import model
from common.errors import InputError
from encoders.loading import load_encoder
from model import DualEncoder, compile_encoders, enable_gradient_checkpointing, momentum_copy

# --------------------------------------------------------------------------------------- embeddings


@pytest.mark.parametrize("head", ["linear", "mlp"])
@torch.no_grad()
def test_a_projection_is_linear_or_has_one_hidden_layer(dual, head):
    model = dual("clip", "bert", embed_size=6, head=head)
    for features, project, projection in [
            (model.image_features(photos()), model.project_image, model.image_projection),
            (model.text_features(IDS, MASK), model.project_text, model.text_projection)]:
        layers = [value for name, value in projection.state_dict().items()]  # weight, bias, ...
        rows = features @ layers[0].T + layers[1]
        if head == "mlp":
            assert rows.shape[1] == 12
            rows = rows * (1 + torch.erf(rows / 2**0.5)) / 2  # GELU
            rows = rows @ layers[2].T + layers[3]
        same(project(features), rows / rows.norm(dim=1, keepdim=True))


@pytest.mark.parametrize(("settings", "named"), [
    (dict(freeze="both"), "--freeze both"), (dict(head="mlp"), "--head mlp")])
def test_without_projections_none_can_be_trained(dual, settings, named):
    with pytest.raises(InputError, match=f"{named}.*--embed_size"):
        dual(**settings)


@pytest.mark.parametrize("image", IMAGE_KINDS)
@pytest.mark.parametrize("text", TEXT_KINDS)
@torch.no_grad()
def test_embeddings_of_both_sides_are_unit_rows_of_one_width(dual, image, text):
    model = dual(image, text, embed_size=16)
    images, texts = model.encode_image(photos()), model.encode_text(IDS, MASK)
    assert images.shape == texts.shape == (3, 16) and model.embed_size == 16
    for rows in images, texts:
        same(rows.norm(dim=1), torch.ones(3))
        assert (rows[0] - rows[1]).abs().max() > 1e-3
    same(images, F.normalize(model.image_projection(model.image_features(photos()))))
    same(texts, F.normalize(model.text_projection(model.text_features(IDS, MASK))))


@torch.no_grad()
def test_vit_features_are_the_mean_over_all_tokens(dual):
    model = dual()
    tokens = model.image_encoder(pixel_values=photos()).last_hidden_state  # (3, 1 + 16, W)
    assert tokens.shape == (3, 17, WIDTH) and model.embed_size == WIDTH
    assert torch.equal(model.image_features(photos()), tokens.mean(dim=1))  # to the bit
    same(model.encode_image(photos()), F.normalize(tokens.mean(dim=1)))


@pytest.mark.parametrize("text", TEXT_KINDS)
@torch.no_grad()
def test_a_caption_has_the_same_embedding_in_a_batch_and_alone(dual, text):
    model = dual(text=text, embed_size=16)
    alone = torch.cat([model.encode_text(ids[mask][None], mask[mask][None].long())
                       for ids, mask in zip(IDS, MASK.bool())])
    same(model.encode_text(IDS, MASK), alone)


@pytest.mark.parametrize("text", TEXT_KINDS)
@pytest.mark.parametrize("pad", [PAD, 0])
@torch.no_grad()
def test_the_amount_of_padding_does_not_change_an_embedding(dual, text, pad):
    model, ids = dual(text=text, embed_size=16), IDS.masked_fill(MASK == 0, pad)
    got = [model.encode_text(F.pad(ids, (0, more), value=pad), F.pad(MASK, (0, more)))
           for more in (0, 3, 7)]
    same(got[1], got[0])
    same(got[2], got[0])


@torch.no_grad()
def test_bert_features_are_the_mean_over_real_tokens(dual):
    model = dual()
    for ids, mask, got in zip(IDS, MASK.bool(), model.encode_text(IDS, MASK)):
        tokens = model.text_encoder(input_ids=ids[mask][None]).last_hidden_state[0]
        same(got, F.normalize(tokens.mean(dim=0), dim=0))
    states = model.text_encoder(input_ids=IDS, attention_mask=MASK).last_hidden_state
    weights = MASK[:, :, None].float()
    assert torch.equal(model.text_features(IDS, MASK),  # to the bit
                       (states * weights).sum(dim=1) / weights.sum(dim=1))


@torch.no_grad()
def test_fidelity_note_2_padded_pooling_averages_all_tokens(dual):
    model = dual(text_pooling="padded")
    tokens = model.text_encoder(input_ids=IDS, attention_mask=MASK).last_hidden_state
    same(model.encode_text(IDS, MASK), F.normalize(tokens.mean(dim=1)))
    assert (model.encode_text(IDS, MASK) - dual().encode_text(IDS, MASK))[1].abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["vit", "clip", "siglip"])
@pytest.mark.parametrize("res", [24, 48])
@torch.no_grad()
def test_vision_transformers_take_photos_of_another_size(dual, kind, res):
    model = dual(kind, embed_size=16, res=res)
    got = model.encode_image(photos(res=res))
    if kind == "vit":
        output = model.image_encoder(photos(res=res), interpolate_pos_encoding=True)
        states = output.last_hidden_state
        assert states.shape[1] == 1 + (res // 8) ** 2
        same(got, F.normalize(model.image_projection(states.mean(dim=1))))
    assert got.shape == (3, 16) and got.isfinite().all()


def test_encoders_of_different_width_need_a_projection(dual):
    with pytest.raises(InputError, match="24 .*32.*--embed_size"):
        dual("clip", "bert")


# ------------------------------------------------------------------------------------- convolutions


@pytest.mark.parametrize("kind", ["resnet", "mobilenet"])
@torch.no_grad()
def test_feature_maps_are_averaged_over_positions_in_any_memory_format(dual, folders, kind):
    model = dual(kind, embed_size=16)
    plain = transformers.AutoModel.from_pretrained(folders / kind).eval()
    features = plain(pixel_values=photos()).last_hidden_state.mean(dim=(2, 3))
    assert features.std() > 1e-3
    weights = [weight for weight in model.image_encoder.parameters() if weight.ndim == 4]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    assert any(not weight.is_contiguous() for weight in weights) and model.channels_last
    same(model.image_features(photos()), features, 1e-4)
    same(model.image_features(photos().to(memory_format=torch.channels_last)), features, 1e-4)


@pytest.mark.parametrize("kind", ["resnet", "mobilenet"])
def test_batch_norm_keeps_its_statistics_in_training(dual, kind):
    model = dual(kind, embed_size=16)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    wanted = model.image_features(photos())
    copy = momentum_copy(model)
    for encoder in model.train(), copy.train():
        same(encoder.image_features(5 * photos() + 3), model.image_features(5 * photos() + 3))
        same(encoder.image_features(photos()[:1]), wanted[:1])
        assert sum("running_mean" in name for name in before) > 3
        assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())
    assert any(parameter.requires_grad for parameter in model.image_encoder.parameters())


def test_the_real_mobilenet_gives_1280_features(shared, dual, folders):
    folder = str(shared / "encoders" / "mobilenet_v2")
    encoder = load_encoder(folder, "image", 64, pretrained=True)
    text = load_encoder(str(folders / "bert"), "text", 64, pretrained=True)
    model = DualEncoder(encoder, text, embed_size=16, image_res=64, max_tokens=12).eval()
    features = model.image_features(photos(2, 64).clamp(-1, 1))
    assert features.shape == (2, 1280) and features.min() >= 0 and features.std() > 0.1


# ---------------------------------------------------------------------------------------- freezing


@pytest.mark.parametrize(("freeze", "trained_side"), [("image", "text"), ("text", "image")])
@pytest.mark.parametrize("embed_size", [0, 16])
def test_a_frozen_encoder_gets_no_gradient(dual, freeze, trained_side, embed_size):
    model = dual(freeze=freeze, embed_size=embed_size).train()
    frozen, trained = (getattr(model, f"{side}_encoder") for side in (freeze, trained_side))
    assert model.training and not any(module.training for module in frozen.modules())
    assert all(module.training for module in trained.modules())
    (model.encode_image(photos()) * model.encode_text(IDS, MASK)).sum().backward()
    assert all(not p.requires_grad and p.grad is None for p in frozen.parameters())
    assert sum(p.grad is not None for p in trained.parameters()) > 10
    for projection in model.image_projection, model.text_projection:
        assert all(p.grad.abs().sum() > 0 for p in projection.parameters())


def test_with_both_encoders_frozen_the_projections_alone_get_gradients(dual):
    model = dual(freeze="both", embed_size=16, head="mlp").train()
    assert model.freezes("image") and model.freezes("text")
    assert not any(module.training for encoder in (model.image_encoder, model.text_encoder)
                   for module in encoder.modules())
    images, texts, *features = model(photos(), None, IDS, MASK)
    (images * texts).sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"{side}_projection.{layer}.{part}" for side in ("image", "text") for layer in (0, 2)
        for part in ("weight", "bias")}
    # Known features take the place of the inputs.
    again = model(None, features[0], torch.empty(3, 0), torch.empty(3, 0), features[1])
    assert torch.equal(again[0], images) and torch.equal(again[1], texts)


# --------------------------------------------------------------------------------- speed and memory


@pytest.mark.parametrize("image", IMAGE_KINDS)
@pytest.mark.parametrize("text", TEXT_KINDS)
def test_bf16_runs_the_encoders_alone_and_changes_embeddings_little(dual, image, text):
    model, dtypes = dual(image, text, embed_size=16), set()
    wanted = model.encode_image(photos()), model.encode_text(IDS, MASK)
    for encoder in model.image_encoder, model.text_encoder:
        for name, module in encoder.named_modules():
            # The last layers of CLIP-style encoders belong to the pooling, which is float32.
            is_pooling = re.search(r"(visual|text)_projection$|_model\.head(\.|$)", name)
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and not is_pooling:
                module.register_forward_hook(
                    lambda module, inputs, output: dtypes.add(output.dtype))
    model.bf16 = True
    assert model.image_features(photos()).dtype == torch.float32
    got = model.encode_image(photos()), model.encode_text(IDS, MASK)
    assert dtypes == {torch.bfloat16}
    for rows, exact in zip(got, wanted):
        assert rows.dtype == torch.float32
        same(rows.norm(dim=1), torch.ones(3))
        assert (rows * exact).sum(dim=1).min() > 0.99 and not torch.equal(rows, exact)
    got[0].sum().backward()
    assert all(parameter.grad is None or parameter.grad.dtype == torch.float32
               for parameter in model.parameters())


@pytest.mark.parametrize(("image", "text"), [("vit", "bert"), ("clip", "clip")])
def test_gradient_checkpointing_does_not_change_the_gradients(dual, image, text):
    """Dropout is on: the second forward pass drops what the first one did."""
    model, saved_tensors = dual(image, text, embed_size=16).train(), []

    def gradients():
        model.zero_grad()
        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved_tensors.append(x), x)[1],
                                                      lambda x: x):
            loss = (model.encode_image(photos()) * model.encode_text(IDS, MASK)).sum()
        loss.backward()
        count = len(saved_tensors)
        saved_tensors.clear()
        return count, [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    plain_count, wanted = gradients()
    enable_gradient_checkpointing(model)
    count, got = gradients()
    assert count < 0.7 * plain_count
    same(got, wanted, 1e-6)


def test_gradient_checkpointing_is_refused_where_an_encoder_has_none(dual):
    with pytest.raises(InputError, match="--grad_checkpointing: .*image encoder.*MobileNetV2"):
        enable_gradient_checkpointing(dual("mobilenet", embed_size=16))
    # An encoder that is frozen needs none.
    enable_gradient_checkpointing(dual("mobilenet", embed_size=16, freeze="image"))
    with pytest.raises(InputError, match="--grad_checkpointing: .*--freeze both"):
        enable_gradient_checkpointing(dual(embed_size=16, freeze="both"))


def test_compiled_encoders_keep_the_names_of_their_weights(dual):
    model = dual()
    names = list(model.state_dict())
    compile_encoders(model)
    assert list(model.state_dict()) == names
    for encoder in model.image_encoder, model.text_encoder:
        assert encoder._compiled_call_impl is not None


# ------------------------------------------------------------------ weights that give no embedding


@pytest.mark.parametrize("change", [
    lambda weight: weight.zero_(), lambda weight: weight.fill_(1e38),
    lambda weight: weight.fill_(torch.nan), lambda weight: weight.mul_(1e-30)])
@pytest.mark.parametrize("name", ["image_projection", "text_projection"])
def test_a_projection_that_gives_no_embeddings_is_refused(dual, name, change):
    sound = dual("vit", "bert", embed_size=8)
    model.check_embeddings(sound, "x")
    with torch.no_grad():
        change(getattr(sound, name).weight)
    with pytest.raises(InputError, match=f"^x: its {name}"):
        model.check_embeddings(sound, "x")


def test_a_text_encoder_that_gives_no_embeddings_is_refused(dual):
    sound = dual("vit", "bert", embed_size=0)
    with torch.no_grad():
        for name, value in sound.text_encoder.named_parameters():
            if "LayerNorm" in name:
                value.zero_()
    with pytest.raises(InputError, match="^x: its text encoder"):
        model.check_embeddings(sound, "x")
