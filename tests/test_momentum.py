"""The momentum encoder: how it is copied, and how an update moves it towards the online model."""

import pytest
import torch
from helpers.encoders import photos, same

from model import MomentumUpdate, momentum_copy, update_momentum


@pytest.mark.parametrize("freeze", [None, "image", "text", "both"])
def test_the_momentum_copy_shares_a_frozen_encoder_and_copies_the_rest(dual, freeze):
    model = dual(freeze=freeze, embed_size=16)
    copy = momentum_copy(model)
    for side in "image", "text":
        online, momentum = (getattr(m, f"{side}_encoder") for m in (model, copy))
        assert (online is momentum) == (freeze in (side, "both"))
        pairs = list(zip(online.parameters(), momentum.parameters(), strict=True))
        assert all((p.data_ptr() == k.data_ptr()) == (online is momentum) for p, k in pairs)
        assert all(torch.equal(p, k) for p, k in pairs)
    assert copy.image_projection is not model.image_projection
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert model.text_projection.weight.requires_grad
    with torch.no_grad():
        assert torch.equal(copy.encode_image(photos()), model.encode_image(photos()))


@pytest.mark.parametrize("m", [0.0, 0.9, 0.995])
@pytest.mark.parametrize(("image", "freeze"), [("vit", None), ("resnet", None), ("resnet", "text")])
def test_the_momentum_encoder_is_the_exponential_moving_average(dual, m, image, freeze):
    model = dual(image, freeze=freeze)
    copy = momentum_copy(model)
    wanted = {name: value.clone() for name, value in copy.state_dict().items()}
    parameters = {name for name, _ in model.named_parameters()}
    frozen = f"{freeze}_encoder."
    for step in range(4):
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if not name.startswith(frozen):
                    value.add_(torch.randn_like(value) if value.is_floating_point() else step + 1)
        for name, q in model.state_dict().items():
            k = wanted[name]
            wanted[name] = m * k + (1 - m) * q if name in parameters else q.clone()
        update_momentum(copy, model, m)
        for name, value in copy.state_dict().items():
            same(value, wanted[name])
    changed = any(not torch.equal(wanted[name], model.state_dict()[name]) for name in parameters)
    assert changed == (m > 0)
    assert image == "vit" or len(wanted) > len(parameters)  # there were buffers


@pytest.mark.parametrize("image", ["vit", "resnet"])
def test_an_update_made_before_weights_are_loaded_uses_the_loaded_ones(dual, image):
    """A resumed run is built first, and then reads its checkpoint. Buffers count too."""
    model = dual(image)
    copy = momentum_copy(model)
    update = MomentumUpdate(copy, model)
    online = {name: value + 1 for name, value in model.state_dict().items()}
    momentum = {name: 2 * value for name, value in copy.state_dict().items()}
    model.load_state_dict(online)
    copy.load_state_dict(momentum)
    update(0.9)
    parameters = {name for name, _ in model.named_parameters()}
    assert image == "vit" or len(online) > len(parameters)  # there are buffers
    for name, value in copy.state_dict().items():
        averaged = 0.9 * momentum[name] + 0.1 * online[name]
        same(value, averaged if name in parameters else online[name])
