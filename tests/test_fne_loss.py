"""The loss as a whole, and its in-batch controls, against `oracle.py` and closed forms."""

import math

import pytest
import torch
from helpers import oracle
from helpers.cases import (
    CASES,
    DTYPES,
    SETTINGS,
    directions,
    embeddings,
    excluded_in_batch,
    make_case,
    oracle_weights,
    step_of_the_method,
)
from torch._subclasses import FakeTensorMode

import fne_loss
from fne_loss import NO_NEGATIVE, FNELoss
from memory_bank import EMPTY, MemoryBank
from negative_sampling import Direction, positive_and_drawn_keys
from training.objectives.sigmoid import sigmoid_loss

# The whole step


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_step_is_the_oracles(name, dtype, tolerance, sampled):
    case = make_case(name, dtype)
    draws = case.criterion.draw(*case.inputs, case.bank)
    loss = case.criterion.hinge_of(*case.inputs[:2], *draws)
    expected = 0.0
    for (anchors, candidates), (weights, fallback), draw in zip(directions(case), sampled, draws):
        wanted = torch.tensor(oracle_weights(case, anchors, candidates), dtype=dtype)
        torch.testing.assert_close(weights, wanted, rtol=0, atol=tolerance)
        assert torch.equal(weights == 0, wanted == 0)
        assert fallback.tolist() == oracle.fallbacks(
            anchors, candidates, case.ids, case.candidate_ids
        )
        expected += oracle.hinge(anchors, candidates, draw.indices.tolist(), SETTINGS["margin"])
    assert loss.item() == pytest.approx(expected, rel=0, abs=tolerance)


def test_cases_put_every_branch_in_play():
    """Posterior, distance, cut, exclusion, empty slot, violated and kept margin all occur."""
    case = make_case("captions_of_one_photo")
    anchors, candidates = directions(case)[0]
    flat = [w for row in oracle_weights(case, anchors, candidates) for w in row]
    distance_only = [
        w for row in oracle_weights(case, anchors, candidates, floor=1.0) for w in row
    ]
    assert 10 < sum(a != b for a, b in zip(flat, distance_only)) < sum(w > 0 for w in flat) - 10
    allowed = sum(not oracle.is_excluded(i, c) for i in case.ids for c in case.candidate_ids)
    assert 10 < sum(w > 0 for w in flat) < allowed - 10
    assert EMPTY in case.candidate_ids
    assert set(case.ids) & set(case.bank.image_ids.tolist())


@pytest.mark.parametrize("name", CASES)
def test_draws_are_reported_as_they_are_used(name):
    case = make_case(name)
    torch.manual_seed(5)
    plain = case.criterion(*case.inputs, case.bank)
    torch.manual_seed(5)
    draws = case.criterion.draw(*case.inputs, case.bank)
    loss = case.criterion.hinge_of(*case.inputs[:2], *draws)
    assert torch.equal(plain, loss)
    expected = 0.0
    for (anchors, candidates), draw in zip(directions(case), draws):
        negatives = draw.indices.tolist()
        expected += oracle.hinge(anchors, candidates, negatives, SETTINGS["margin"])
        weights = oracle_weights(case, anchors, candidates)
        allowed = sum(not oracle.is_excluded(i, c) for i in case.ids for c in case.candidate_ids)
        if allowed:
            kept = sum(w > 0 for row in weights for w in row)
            assert draw.cut_share.item() == pytest.approx(1 - kept / allowed)
        for i, negative in enumerate(negatives):
            if negative != NO_NEGATIVE:
                value = oracle.dot(anchors[i], candidates[negative])
                wanted = oracle.posterior(value, *case.statistics, SETTINGS["prior"])
                assert draw.posterior[i].item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert loss.item() == pytest.approx(expected, abs=1e-10)


def test_gradient_reaches_the_anchors_only(sampled):
    case = make_case("captions_of_one_photo")
    *embeds, ids = [tensor.requires_grad_(tensor.is_floating_point()) for tensor in case.inputs]
    banked = case.bank.image_keys.requires_grad_(), case.bank.text_keys.requires_grad_()
    draws = case.criterion.draw(*embeds, ids, case.bank)
    assert not any(value.requires_grad for draw in draws for value in draw)
    case.criterion.hinge_of(*embeds[:2], *draws).backward()
    assert embeds[0].grad.any() and embeds[1].grad.any()
    assert [tensor.grad for tensor in (*embeds[2:], *banked)] == [None] * 4
    torch.autograd.gradcheck(
        lambda a, b: case.criterion(a, b, *embeds[2:], ids, case.bank), tuple(embeds[:2])
    )


@pytest.mark.parametrize("use", ["fne", "triplet", "infonce"])
def test_autocast_changes_nothing_for_float32_embeddings(use):
    case = make_case("captions_of_one_photo", torch.float32)
    images, texts, image_keys, text_keys, ids = case.inputs

    def run(enabled):
        torch.manual_seed(0)
        case.criterion.reset_statistics()
        anchors = images.clone().requires_grad_(), texts.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            case.criterion.update_statistics(*anchors, ids)
            loss = {
                "fne": lambda: case.criterion(*anchors, image_keys, text_keys, ids, case.bank),
                "triplet": lambda: fne_loss.triplet_loss(*anchors, ids, 0.4, False),
                "infonce": lambda: fne_loss.infonce_loss(
                    fne_loss.cosine(*anchors), ids, torch.tensor(2.0)),
            }[use]()
        loss.backward()
        buffers = [buffer.clone() for buffer in case.criterion.buffers()]
        return [loss.detach(), *(anchor.grad for anchor in anchors), *buffers]

    for inside, outside in zip(run(True), run(False)):
        assert inside.dtype == outside.dtype and torch.equal(inside, outside)


@pytest.mark.parametrize("name", ["wrapped", "captions_of_one_photo"])
def test_bfloat16_embeddings_cost_only_their_rounding(name, sampled):
    """All arithmetic on bf16 embeddings is at least float32, so only the inputs are coarser."""
    case = make_case(name, torch.float32)
    *embeds, ids = case.inputs
    rounded = [tensor.bfloat16() for tensor in embeds]
    runs = {}
    for kind, given in {
        "float32": embeds, "bfloat16": rounded, "widened": [r.float() for r in rounded]
    }.items():
        with torch.autocast("cpu", torch.bfloat16):
            case.criterion.reset_statistics()
            case.criterion.update_statistics(*given[:2], ids)
            runs[kind] = case.criterion(*given, ids, case.bank), *case.criterion.buffers()
        runs[kind] = [value.clone() for value in runs[kind]]
    for coarse, exact in zip(runs["bfloat16"], runs["widened"]):
        torch.testing.assert_close(coarse, exact, rtol=0, atol=1e-6)
    # bf16 keeps 8 bits: each product of unit rows moves by about 2 ** -8 at most.
    assert runs["bfloat16"][0].item() == pytest.approx(runs["float32"][0].item(), abs=2e-2)


@pytest.mark.parametrize("name", ["alone", "all_of_one_photo"])
def test_without_any_allowed_candidate_there_is_no_loss(name):
    batch, stored = (1, 0) if name == "alone" else (3, 5)
    images, texts, image_keys, text_keys = embeddings(batch, 4, torch.float32)
    bank, ids = MemoryBank(7, 4), torch.full((batch,), 2)
    if stored:
        bank.enqueue(*embeddings(stored, 4, torch.float32)[:2], torch.full((stored,), 2))
    anchors, criterion = (images.requires_grad_(), texts.requires_grad_()), FNELoss()
    draws = criterion.draw(*anchors, image_keys, text_keys, ids, bank)
    loss = criterion.hinge_of(*anchors, *draws)
    loss.backward()
    assert loss.item() == 0
    assert not images.grad.any() and not texts.grad.any()  # also false for NaN
    for draw in draws:
        assert draw.indices.tolist() == [NO_NEGATIVE] * batch
        assert draw.posterior.isfinite().all() and draw.cut_share.isfinite()


def test_published_settings_are_the_defaults():
    loss = FNELoss()
    values = loss.margin, loss.tau, loss.prior, loss.posterior_floor, loss.min_count
    assert values == (0.2, 0.5, 1e-4, 1e-3, 200)


@pytest.mark.parametrize("prior", [0, 1, -0.1])
def test_prior_is_a_probability(prior):
    with pytest.raises(ValueError, match=f"prior is a probability in .* got {prior}"):
        FNELoss(prior=prior)


# Losses


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_hinge_is_the_oracles(dtype, tolerance):
    torch.manual_seed(0)
    anchors, keys = embeddings(5, 4, dtype)[0], embeddings(9, 4, dtype)[1]
    for negatives in ([1, 0, 8, 5, 2], [NO_NEGATIVE, 0, NO_NEGATIVE, 8, 8]):
        got = fne_loss.hinge(anchors, keys, torch.tensor(negatives), 0.5)
        wanted = oracle.hinge(*oracle.lists(anchors, keys), negatives, 0.5)
        assert wanted > 0.05
        assert got.item() == pytest.approx(wanted, abs=tolerance)


def test_hinge_gives_no_gradient_to_keys():
    anchors, keys = embeddings(4, 5, torch.float64)[0], embeddings(7, 5, torch.float64)[1]
    negatives = torch.tensor([4, 0, NO_NEGATIVE, 6])
    keys.requires_grad_()
    anchors.requires_grad_()
    fne_loss.hinge(anchors, keys, negatives, 2.1).backward()  # every margin is violated
    assert keys.grad is None
    lead = (keys[negatives] - keys[:4]).detach() / 4
    lead[2] = 0
    torch.testing.assert_close(anchors.grad, lead)


def test_drawn_keys_are_rows_of_the_joined_candidates():
    keys, bank_keys = torch.randn(5, 3), torch.randn(4, 3)
    negatives = torch.tensor([4, 0, 5, 8, NO_NEGATIVE])
    gathered, rows = positive_and_drawn_keys(
        Direction(None, keys, bank_keys), slice(5), negatives)
    joined = torch.cat([keys, bank_keys])
    assert torch.equal(gathered[:5], keys)
    assert torch.equal(gathered[rows[:4]], joined[negatives[:4]])
    assert rows[4] == NO_NEGATIVE


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("max_violation", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_triplet_is_the_oracles(name, max_violation, dtype, tolerance):
    case = make_case(name, dtype)
    images, texts, _, _, ids = case.inputs
    got = fne_loss.triplet_loss(images, texts, ids, 0.4, max_violation)
    wanted = oracle.triplet(*oracle.lists(images, texts), case.ids, 0.4, max_violation)
    assert got.item() == pytest.approx(wanted, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("max_violation", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_triplet_of_embeddings_is_that_of_their_similarity(name, max_violation):
    images, texts, _, _, ids = make_case(name).inputs
    similarity = fne_loss.cosine(images, texts)
    assert torch.equal(fne_loss.triplet_from_similarity(similarity, ids, 0.4, max_violation),
                       fne_loss.triplet_loss(images, texts, ids, 0.4, max_violation))


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("log_scale", [0.0, 2.5, 4.6])
@pytest.mark.parametrize("name", CASES)
def test_infonce_is_the_oracles(name, log_scale, dtype, tolerance):
    case = make_case(name, dtype)
    images, texts, _, _, ids = case.inputs
    similarity = fne_loss.cosine(images, texts)
    got = fne_loss.infonce_loss(similarity, ids, torch.tensor(log_scale, dtype=dtype))
    scale = math.exp(log_scale)
    wanted = oracle.infonce(*oracle.lists(images, texts), case.ids, scale)
    assert got.item() == pytest.approx(wanted, rel=tolerance, abs=10 * tolerance)


@pytest.mark.parametrize("name", CASES)
def test_what_is_excluded_further_is_no_negative_of_the_in_batch_losses(name):
    case = make_case(name)
    images, texts, _, _, ids = case.inputs
    similarity, excluded = fne_loss.cosine(images, texts), excluded_in_batch(case)
    embeds = oracle.lists(images, texts)
    for hardest in True, False:
        got = fne_loss.triplet_from_similarity(similarity, ids, 0.4, hardest, excluded)
        assert got.item() == pytest.approx(
            oracle.triplet(*embeds, case.ids, 0.4, hardest, excluded.tolist()), abs=1e-10)
    got = fne_loss.infonce_loss(similarity, ids, torch.tensor(2.5), excluded)
    assert got.item() == pytest.approx(
        oracle.infonce(*embeds, case.ids, math.exp(2.5), excluded.tolist()), rel=1e-6)
    got = sigmoid_loss(similarity, ids, torch.tensor(2.5), torch.tensor(-7.0), excluded)
    assert got.item() == pytest.approx(
        oracle.sigmoid(*embeds, case.ids, math.exp(2.5), -7.0, excluded.tolist()), rel=1e-6)


@pytest.mark.parametrize("use", ["triplet_hardest", "triplet_all", "infonce", "sigmoid"])
def test_gradients_of_the_in_batch_losses(use):
    images, texts, _, _, ids = make_case("captions_of_one_photo").inputs
    inputs = images.requires_grad_(), texts.requires_grad_()
    log_scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    if use == "infonce":
        def infonce(images, texts, log_scale):
            return fne_loss.infonce_loss(fne_loss.cosine(images, texts), ids, log_scale)

        infonce(*inputs, log_scale).backward()
        assert log_scale.grad.abs() > 1e-3
        torch.autograd.gradcheck(infonce, (*inputs, log_scale))
    elif use == "sigmoid":
        def sigmoid(images, texts, log_scale, bias):
            return sigmoid_loss(fne_loss.cosine(images, texts), ids, log_scale, bias)

        bias = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
        sigmoid(*inputs, log_scale, bias).backward()
        assert log_scale.grad.abs() > 1e-3 and bias.grad.abs() > 1e-3
        torch.autograd.gradcheck(sigmoid, (*inputs, log_scale, bias))
    else:
        hardest = use == "triplet_hardest"
        loss = fne_loss.triplet_loss(*inputs, ids, 0.4, hardest)
        assert loss.item() > 0.1
        torch.autograd.gradcheck(
            lambda a, b: fne_loss.triplet_loss(a, b, ids, 0.4, hardest), inputs
        )


def test_a_step_reads_no_number_back():
    """Fake tensors have no data, so whatever would make a GPU wait for a number raises here."""
    with FakeTensorMode() as mode:
        step_of_the_method(FNELoss(), MemoryBank(20, 6), "cpu")
        with pytest.raises(Exception, match="item|local_scalar|data"):
            float(mode.from_tensor(torch.ones(())))
