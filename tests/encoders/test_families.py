"""A small random model of every supported type: pooled rightly, trained, saved and loaded."""

import copy
import functools
import importlib.util
import io
import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import transformers as T

from common.errors import InputError
from encoders.families import REFUSED, SUPPORTED, choose_pooling
from encoders.loading import load_encoder
from encoders.lora import (
    AdapterSettings,
    add_adapters,
    own_projection,
    remove_adapters,
    write_adapters,
)
from model import DualEncoder, momentum_copy

WIDTH, WORDS, RES, PATCH, REGISTERS = 16, 40, 32, 8, 3
PAD, FIRST, LAST = 1, 2, 3
IDS = torch.tensor([[FIRST, 5, 6, 7, 9, 11, LAST], [FIRST, 8, LAST, PAD, PAD, PAD, PAD],
                    [FIRST, 9, 8, 12, LAST, PAD, PAD]])
MASK = (IDS != PAD).long()
LONGEST = 20
SPECIAL = dict(pad_token_id=PAD, bos_token_id=FIRST, eos_token_id=LAST)
SIZES = dict(hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
             initializer_range=0.3)
VISION = dict(image_size=RES, patch_size=PATCH, **SIZES)
TEXT = dict(vocab_size=WORDS, max_position_embeddings=24, **SIZES, **SPECIAL)
DINO = dict(mlp_ratio=2, **VISION)
SWIN = dict(image_size=RES, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2],
            window_size=4, initializer_range=0.3)
NEXT = dict(hidden_sizes=[8, WIDTH], depths=[1, 1], num_stages=2, initializer_range=0.3)
CONV = dict(embedding_size=8, hidden_sizes=[8, WIDTH], depths=[1, 1])
PAIR = dict(text_config=TEXT, vision_config=VISION)
T5 = dict(vocab_size=WORDS, d_model=WIDTH, d_kv=8, d_ff=24, num_layers=1, num_heads=2, **SPECIAL)
NETWORK = dict(image_size=RES, width_coefficient=0.25, depth_coefficient=0.2, hidden_dim=16,
               kernel_sizes=[3, 3], in_channels=[32, 16], out_channels=[16, 24],
               depthwise_padding=[], strides=[1, 2], num_block_repeats=[1, 1],
               expand_ratios=[1, 4], initializer_range=0.3)
ROPE = dict(num_key_value_heads=1, **TEXT)

CONFIGS = {  # by model type
    "vit": lambda: T.ViTConfig(**VISION),
    "deit": lambda: T.DeiTConfig(**VISION),
    "vit_msn": lambda: T.ViTMSNConfig(**VISION),
    "beit": lambda: T.BeitConfig(**VISION),
    "data2vec-vision": lambda: T.Data2VecVisionConfig(**VISION),
    "dinov2": lambda: T.Dinov2Config(**DINO),
    "dinov2_with_registers": lambda: T.Dinov2WithRegistersConfig(
        num_register_tokens=REGISTERS, **DINO),
    "dinov3_vit": lambda: T.DINOv3ViTConfig(num_register_tokens=REGISTERS, **VISION),
    "dinov3_convnext": lambda: T.DINOv3ConvNextConfig(
        image_size=RES, hidden_sizes=[8, 8, 8, WIDTH], depths=[1] * 4, initializer_range=0.3),
    "swin": lambda: T.SwinConfig(**SWIN),
    "swinv2": lambda: T.Swinv2Config(**SWIN),
    "convnext": lambda: T.ConvNextConfig(**NEXT),
    "convnextv2": lambda: T.ConvNextV2Config(**NEXT),
    "resnet": lambda: T.ResNetConfig(layer_type="basic", **CONV),
    "regnet": lambda: T.RegNetConfig(groups_width=8, **CONV),
    "mobilenet_v1": lambda: T.MobileNetV1Config(depth_multiplier=0.125),
    "mobilenet_v2": lambda: T.MobileNetV2Config(depth_multiplier=0.1),
    "timm_wrapper": lambda: T.TimmWrapperConfig(
        architecture="vit_tiny_patch16_224", model_args=dict(
            img_size=RES, patch_size=PATCH, embed_dim=WIDTH, depth=1, num_heads=2)),
    "clip": lambda: T.CLIPConfig(projection_dim=12, **PAIR),
    "metaclip_2": lambda: T.MetaClip2Config(projection_dim=12, **PAIR),
    "siglip": lambda: T.SiglipConfig(**PAIR | dict(text_config=TEXT | {"projection_size": WIDTH})),
    "altclip": lambda: T.AltCLIPConfig(projection_dim=12, **PAIR | dict(
        text_config=TEXT | {"project_dim": 14, "type_vocab_size": 1})),
    "chinese_clip": lambda: T.ChineseCLIPConfig(projection_dim=12, **PAIR),
    "align": lambda: T.AlignConfig(text_config=TEXT, vision_config=NETWORK, projection_dim=8),
    "blip": lambda: T.BlipConfig(projection_dim=12, architectures=["BlipModel"], **PAIR),
    "bert": lambda: T.BertConfig(**TEXT),
    "roberta": lambda: T.RobertaConfig(**TEXT),
    "xlm-roberta": lambda: T.XLMRobertaConfig(**TEXT),
    "camembert": lambda: T.CamembertConfig(**TEXT),
    "mpnet": lambda: T.MPNetConfig(**TEXT),
    "electra": lambda: T.ElectraConfig(embedding_size=WIDTH, **TEXT),
    "albert": lambda: T.AlbertConfig(embedding_size=8, **TEXT),
    "distilbert": lambda: T.DistilBertConfig(
        vocab_size=WORDS, dim=WIDTH, n_layers=1, n_heads=2, hidden_dim=24,
        max_position_embeddings=24, initializer_range=0.3, pad_token_id=PAD),
    "modernbert": lambda: T.ModernBertConfig(cls_token_id=FIRST, sep_token_id=LAST,
                                             local_attention=8, **TEXT),
    "t5": lambda: T.T5Config(**T5),
    "mt5": lambda: T.MT5Config(**T5),
    "umt5": lambda: T.UMT5Config(**T5),
    "gpt2": lambda: T.GPT2Config(vocab_size=WORDS, n_positions=24, n_embd=WIDTH, n_layer=1,
                                 n_head=2, bos_token_id=FIRST, eos_token_id=LAST),
    "gpt_neox": lambda: T.GPTNeoXConfig(**TEXT),
    "llama": lambda: T.LlamaConfig(**ROPE),
    "mistral": lambda: T.MistralConfig(**ROPE),
    "qwen2": lambda: T.Qwen2Config(**ROPE),
    "qwen3": lambda: T.Qwen3Config(head_dim=8, **ROPE),
}
# Types of whose feature map one position would be left for a smaller photo.
LARGER = {"mobilenet_v1": 64, "mobilenet_v2": 64, "dinov3_convnext": 64}
# Pairs of open_clip are no models of transformers: test_open_clip.py has some.
ENCODERS = [(kind, side) for kind, family in SUPPORTED.items() if kind != "open_clip"
            for side in family.sides]
IMAGE_KINDS = [kind for kind, side in ENCODERS if side == "image"]
TEXT_KINDS = [kind for kind, side in ENCODERS if side == "text"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a function that saves a model of a type once, and returns its folder."""
    @functools.cache
    def saved(kind):
        if kind == "timm_wrapper" and not importlib.util.find_spec("timm"):
            pytest.skip("timm is not installed")
        torch.manual_seed(0)
        model = T.AutoModel.from_config(CONFIGS[kind]()).train()
        path = tmp_path_factory.mktemp(kind)
        if kind in ("resnet", "regnet", "mobilenet_v1", "mobilenet_v2"):  # batch norm has seen some
            model(pixel_values=torch.randn(8, 3, RES, RES) + 1)
        model.save_pretrained(path)
        return str(path)

    return saved


@pytest.fixture(scope="module")
def dual(folder):
    """Return a function that builds a `DualEncoder` with one encoder of a type."""
    @functools.cache
    def loaded(kind, side):
        return load_encoder(folder(kind), side, RES)

    def build(kind, side, pretrained=True, res=None, **settings):
        res = res or LARGER.get(kind, RES)
        names = {"image": "vit", "text": "bert", side: kind}
        encoders = [copy.deepcopy(loaded(name, its_side)) for its_side, name in names.items()]
        if not pretrained:
            encoders = [load_encoder(folder(name), its_side, res, None, False)
                        for its_side, name in names.items()]
        torch.manual_seed(1)
        settings = dict(embed_size=8, max_tokens=LONGEST) | settings
        model = DualEncoder(*encoders, image_res=res, **settings).eval()
        model.res = res
        return model

    return build


def photos(model):
    """Return three photos of the size that the model was built for."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(3, 3, model.res, model.res, generator=generator)


def embed(model, side):
    return model.encode_image(photos(model)) if side == "image" else model.encode_text(IDS, MASK)


def features(model, side):
    if side == "image":
        return model.image_features(photos(model))
    return model.text_features(IDS, MASK)


def same(got, wanted, tolerance=1e-5):
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------------------------------- each type


def test_there_is_a_configuration_of_every_type():
    assert CONFIGS.keys() == SUPPORTED.keys() - {"open_clip"}
    assert not REFUSED.keys() & SUPPORTED.keys()
    for kind, config in CONFIGS.items():
        assert kind == "timm_wrapper" or config().model_type == kind


@pytest.mark.parametrize(("kind", "side"), ENCODERS)
@torch.no_grad()
def test_an_embedding_does_not_depend_on_its_batch(dual, kind, side):
    model = dual(kind, side)
    batch = embed(model, side)
    if side == "image":
        alone = [model.encode_image(photo[None]) for photo in photos(model)]
    else:
        alone = [model.encode_text(ids[mask][None], mask[mask][None].long())
                 for ids, mask in zip(IDS, MASK.bool())]
        same(model.encode_text(F.pad(IDS, (0, 9), value=PAD), F.pad(MASK, (0, 9))), batch)
    same(torch.cat(alone), batch)
    for other in 1, 2:
        assert (batch[0] - batch[other]).abs().max() > 1e-3
    assert torch.equal(embed(model, side), batch)


# Weights that an encoder has and does not use: heads of its first task, and BLIP's attention to
# photos. Keys' biases have no gradient: they add the same to all logits of a softmax.
UNUSED = "pooler|mask_token|crossattention"


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("kind", "side"), ENCODERS)
def test_two_steps_train_all_weights_of_an_encoder(dual, kind, side, bf16):
    model = dual(kind, side).train()
    model.bf16 = bf16
    encoder = getattr(model, f"{side}_encoder")
    unused = f"{UNUSED}|^layernorm" if kind.startswith("convnext") else UNUSED
    used = {name: weight for name, weight in encoder.named_parameters()
            if not re.search(unused, name)}
    before = {name: weight.detach().clone() for name, weight in used.items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, eps=1e-20)
    for _ in range(2):
        similarity = model.encode_image(photos(model)) @ model.encode_text(IDS, MASK).T
        loss = F.cross_entropy(5 * similarity, torch.arange(3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.dtype == torch.float32 and loss.isfinite()
    assert len(used) > 5
    assert [name for name, weight in used.items() if torch.equal(weight, before[name])] == []
    assert all(weight.isfinite().all() for weight in used.values())


@pytest.mark.parametrize(("kind", "side"), ENCODERS)
@torch.no_grad()
def test_features_under_bf16_are_float32(dual, kind, side):
    model = dual(kind, side)
    exact = features(model, side)
    model.bf16 = True
    got = features(model, side)
    assert got.dtype == torch.float32 and not torch.equal(got, exact)
    if (kind, side) != ("align", "image"):  # whose features are the network's output itself
        assert (got != got.bfloat16())[got != 0].float().mean() > 0.5
    assert F.cosine_similarity(got, exact).min() > 0.98


@pytest.mark.parametrize(("kind", "side"), ENCODERS)
@torch.no_grad()
def test_an_encoder_is_the_same_after_saving(dual, kind, side):
    model, file = dual(kind, side), io.BytesIO()
    torch.save(model.state_dict(), file)
    again = dual(kind, side, pretrained=False)
    assert not torch.equal(embed(again, side), embed(model, side))
    file.seek(0)
    again.load_state_dict(torch.load(file))
    assert torch.equal(embed(again, side), embed(model, side))


CONVOLUTIONAL = ["align", "dinov3_convnext", "convnext", "convnextv2", "resnet", "regnet",
                 "mobilenet_v1", "mobilenet_v2"]  # on the image side
SETTINGS = AdapterSettings(rank=2, alpha=8, dropout=0.0)
NAMES = {"image": "vit", "text": "bert"}
NEEDS_PEFT = pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="needs peft")


@pytest.mark.parametrize(("kind", "side"),
                         [(kind, side) for kind, side in ENCODERS
                          if side == "text" or kind not in CONVOLUTIONAL])
@NEEDS_PEFT
def test_adapters_of_an_encoder_are_trained_alone_and_merged(dual, kind, side):
    """The base keeps its bits, and is that of the momentum encoder too."""
    model = dual(kind, side, freeze="text" if side == "image" else "image")
    plain = embed(model, side).detach()
    add_adapters(model, NAMES, SETTINGS)
    same(embed(model, side), plain)  # an adapter begins as nothing
    model.train()
    momentum = momentum_copy(model)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.Adam(list(trained.values()), lr=0.01, eps=1e-20)
    for _ in range(2):
        similarity = model.encode_image(photos(model)) @ model.encode_text(IDS, MASK).T
        optimizer.zero_grad()
        F.cross_entropy(5 * similarity, torch.arange(3)).backward()
        optimizer.step()
    changed = {name for name, weight in model.named_parameters()
               if not torch.equal(weight, before[name])}
    assert changed == trained.keys() == model.state_dict().keys()
    adapters = {name for name in trained if ".lora_" in name}
    assert len(adapters) >= 8 and all(name.startswith(f"{side}_encoder.") for name in adapters)
    projections = ["image_projection", "text_projection"]
    if own := own_projection(getattr(model, f"{side}_encoder")):
        projections.append(f"{side}_encoder.pair.{own}")
    assert trained.keys() - adapters == {
        f"{name}.{part}" for name in projections
        for part, _ in model.get_submodule(name).named_parameters()}
    for name, weight in momentum.named_parameters():
        online = model.get_parameter(name)
        assert (weight is online) is (name not in trained)
    model.eval()
    adapted = embed(model, side).detach()
    assert (adapted - plain).abs().max() > 1e-3
    remove_adapters(model, merge=True)
    same(embed(model, side), adapted)
    assert model.state_dict().keys() == dual(kind, side).state_dict().keys()


@NEEDS_PEFT
@torch.no_grad()
def test_adapters_of_half_a_pair_are_read_by_peft_into_the_whole_pair(dual, folder, tmp_path):
    import peft

    model = dual("clip", "image", freeze="text")
    add_adapters(model, NAMES, SETTINGS)
    for name, weight in model.state_dict().items():
        if name.startswith("image_encoder."):
            weight.copy_(torch.randn_like(weight))
    wanted = features(model, "image")
    write_adapters(model, tmp_path, SETTINGS)
    pair = peft.PeftModel.from_pretrained(T.CLIPModel.from_pretrained(folder("clip")),
                                          tmp_path / "image").eval()
    states = pair.base_model.model.vision_model(photos(model)).pooler_output
    same(pair.base_model.model.visual_projection(states), wanted)
    assert not (tmp_path / "text").exists()


@NEEDS_PEFT
@pytest.mark.parametrize("kind", CONVOLUTIONAL)
def test_a_convolutional_encoder_takes_no_adapters(dual, kind):
    with pytest.raises(InputError, match="--image_encoder .*--lora"):
        add_adapters(dual(kind, "image"), NAMES, SETTINGS)


# ------------------------------------------------------------------------------------------ pooling


def last_layer(model, side):
    """Return the output of transformers for photos or captions, before pooling."""
    if side == "image":
        return model.image_encoder(pixel_values=photos(model))
    return model.text_encoder(input_ids=IDS, attention_mask=MASK)


@pytest.mark.parametrize(("kind", "excluded"), [
    ("vit", 0), ("deit", 0), ("vit_msn", 0), ("beit", 1), ("data2vec-vision", 1), ("dinov2", 1),
    ("dinov2_with_registers", 1 + REGISTERS), ("dinov3_vit", 1 + REGISTERS),
    ("dinov3_convnext", 1), ("swin", 0), ("swinv2", 0)])
@torch.no_grad()
def test_an_image_mean_leaves_out_the_excluded_tokens(dual, kind, excluded):
    """ViT's mean includes its class token, as published; others are over the patches alone."""
    model = dual(kind, "image")
    states = last_layer(model, "image").last_hidden_state
    assert torch.equal(features(model, "image"), states[:, excluded:].mean(dim=1))
    more = {"vit": 1, "vit_msn": 1, "deit": 2}.get(kind, 0)
    patches = (2 if kind == "dinov3_convnext" else RES // PATCH) ** 2
    assert states[:, excluded:].shape[1] == patches + more


@pytest.mark.parametrize("kind", ["convnext", "convnextv2", "resnet", "regnet", "mobilenet_v1",
                                  "mobilenet_v2"])
@torch.no_grad()
def test_a_feature_map_is_averaged_over_its_positions(dual, kind):
    model = dual(kind, "image")
    mean = last_layer(model, "image").last_hidden_state.mean(dim=(2, 3))
    same(features(model, "image"), mean)


# All that --image_pooling and --text_pooling take beside "auto".
POOLINGS = {"image": ("mean", "cls", "own"), "text": ("tokens", "padded", "cls", "last", "own")}
OTHER_POOLINGS = [
    (kind, side, pooling) for kind, side in ENCODERS for pooling in SUPPORTED[kind].poolings
    if pooling not in ("mean", "tokens") and SUPPORTED[kind].sides != ("image", "text")]


@pytest.mark.parametrize(("kind", "side", "pooling"), OTHER_POOLINGS)
@torch.no_grad()
def test_other_poolings_are_what_their_names_say(dual, kind, side, pooling):
    model = dual(kind, side, **{f"{side}_pooling": pooling})
    output, got = last_layer(model, side), features(model, side)
    states = output.last_hidden_state
    wanted = {
        "cls": lambda: states[:, 0], "padded": lambda: states.mean(dim=1),
        "last": lambda: torch.stack([row[mask][-1] for row, mask in zip(states, MASK.bool())]),
        "own": lambda: output.pooler_output}[pooling]()
    same(got, wanted)
    plain = features(dual(kind, side, **{f"{side}_pooling": "mean" if side == "image" else "tokens"}
                          ), side) if kind != "timm_wrapper" else torch.zeros_like(got)
    assert (got - plain).abs().max() > 1e-3


@pytest.mark.parametrize("kind", TEXT_KINDS)
@torch.no_grad()
def test_tokens_is_the_mean_over_real_tokens(dual, kind):
    model = dual(kind, "text", text_pooling="tokens")
    if SUPPORTED[kind].poolings == ("own",):  # what "tokens" means for CLIP-style text encoders
        assert model.text_pooling == "own"
        return
    states = last_layer(model, "text").last_hidden_state
    wanted = [row[mask].mean(dim=0) for row, mask in zip(states, MASK.bool())]
    same(model.text_features(IDS, MASK), torch.stack(wanted))


@pytest.mark.parametrize(("kind", "side"), ENCODERS)
def test_a_pooling_that_a_family_does_not_have_is_refused(kind, side):
    encoder = SimpleNamespace(config=SimpleNamespace(model_type=kind))
    poolings = SUPPORTED[kind].poolings
    for pooling in POOLINGS[side]:
        if pooling in poolings:
            assert choose_pooling(encoder, side, pooling) == pooling
        elif (pooling, poolings) != ("tokens", ("own",)):
            with pytest.raises(InputError, match=f"^--{side}_pooling {pooling}: .*{kind} .*"
                                                 f"{poolings[0]}.*encoders.md"):
                choose_pooling(encoder, side, pooling)


def test_a_model_with_a_pooling_that_it_does_not_have_is_refused(dual):
    with pytest.raises(InputError, match="^--image_pooling cls: .*swin .*mean"):
        dual("swin", "image", image_pooling="cls")
    with pytest.raises(InputError, match="^--text_pooling last: .*t5 .*tokens, "):
        dual("t5", "text", text_pooling="last")


@pytest.mark.parametrize(("kind", "side"), [("vit", "image"), ("bert", "text")])
def test_a_pooler_that_the_file_lacks_is_refused(tmp_path, folder, dual, kind, side):
    """The file of google/vit-base-patch16-384 has none."""
    model = T.AutoModel.from_pretrained(folder(kind), add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path), side, RES)
    assert encoder.missing_weights == ["pooler.dense.bias", "pooler.dense.weight"]
    encoders = {"image_encoder": load_encoder(folder("vit"), "image", RES),
                "text_encoder": load_encoder(folder("bert"), "text", RES),
                f"{side}_encoder": encoder}
    DualEncoder(**encoders, image_res=RES, max_tokens=LONGEST)
    with pytest.raises(InputError, match=f"^--{side}_pooling own: .*dense.bias"):
        DualEncoder(**encoders, image_res=RES, **{f"{side}_pooling": "own"})


# ------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("kind", IMAGE_KINDS)
@torch.no_grad()
def test_photos_of_another_size_are_encoded_or_refused(dual, kind):
    """Only timm's transformers take no other size than their own."""
    if kind == "timm_wrapper":
        with pytest.raises(InputError, match="^--image_res 48: .*--image_encoder"):
            dual(kind, "image", res=48)
        return
    model = dual(kind, "image", res=48)
    embeds = embed(model, "image")
    assert embeds.shape == (3, 8) and (embeds[0] - embeds[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_captions_longer_than_the_table_of_positions_are_refused(dual, kind):
    """Refused when the model is built, not in the middle of a run or on the device."""
    tables = dict.fromkeys(("roberta", "xlm-roberta", "camembert", "mpnet", "altclip"), 22)
    tables |= dict.fromkeys(("bert", "electra", "albert", "distilbert", "gpt2", "clip",
                             "metaclip_2", "siglip", "chinese_clip", "align", "blip"), 24)
    if kind not in tables:
        dual(kind, "text", max_tokens=100)
        return
    model = dual(kind, "text", max_tokens=tables[kind])
    ids = torch.full((1, tables[kind]), 5)
    assert model.encode_text(ids, torch.ones_like(ids)).isfinite().all()
    longer = tables[kind] + 1
    with pytest.raises(InputError, match=f"^--max_tokens {longer}: .*--text_encoder"
                       ) as caught:
        dual(kind, "text", max_tokens=longer)
    assert "\n" not in str(caught.value)


def test_the_head_of_siglip_is_applied_once_in_float32(dual):
    """It is not applied inside the vision model as well."""
    model, dtypes = dual("siglip", "image"), []
    model.image_encoder.pair.vision_model.head.register_forward_hook(
        lambda module, inputs, output: dtypes.append(output.dtype))
    model.bf16 = True
    features(model, "image")
    assert dtypes == [torch.float32]
