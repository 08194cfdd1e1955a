"""The loss against `oracle.py`, a slow writing of the same formulas, and against closed forms."""

import math
from types import SimpleNamespace

import oracle
import pytest
import torch
import torch.nn.functional as F

import fne_loss
from fne_loss import NO_NEGATIVE, FNELoss, RunningGaussian
from memory_bank import EMPTY, MemoryBank

DTYPES = [(torch.float32, 1e-5), (torch.float64, 1e-10)]
SETTINGS = {"margin": 0.4, "tau": 0.7, "prior": 0.05, "min_count": 10}
FLOOR = 0.02
# name: D, M, batches put into the bank before, image ids of the batch
CASES = {
    "alone": (4, 5, [], [3]),
    "alone_with_bank": (5, 6, [4], [3]),
    "two": (5, 4, [], [3, 8]),
    "two_of_one_photo": (5, 4, [3], [3, 3]),
    "partly_filled": (7, 30, [9, 9], [3, 8, 9, 2, 5, 0]),
    "wrapped": (7, 11, [8, 8, 11, 5], [3, 8, 9, 2, 5, 0, 7, 6]),
    "captions_of_one_photo": (9, 25, [10, 10], [1, 1, 2, 3, 3, 3, 4, 5, 6, 7]),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On busy cores the threads of such small operations mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def embeddings(count, dim, dtype):
    """Two online and two momentum views of the same `count` things, around a common direction."""
    base = torch.randn(count, dim, dtype=dtype) + 0.8
    return [F.normalize(base + 0.6 * torch.randn_like(base), dim=1) for _ in range(4)]


def make_case(name, dtype=torch.float64):
    """A batch, a bank that shows some of its photos, and a loss with fitted statistics."""
    torch.manual_seed(sum(map(ord, name)))
    dim, size, earlier, ids = CASES[name]
    bank = MemoryBank(size, dim).to(dtype)
    for batch in earlier:
        _, _, images, texts = embeddings(batch, dim, dtype)
        bank.enqueue(images, texts, torch.randint(0, 12, (batch,)))
    criterion = FNELoss(**SETTINGS, posterior_floor=FLOOR)
    statistics = oracle.Statistics(), oracle.Statistics()
    for _ in range(4):
        images, texts, _, _ = embeddings(12, dim, dtype)
        criterion.update_statistics(images, texts, torch.arange(12))
        oracle.update_statistics(*statistics, *oracle.lists(images, texts), list(range(12)))
    inputs = [*embeddings(len(ids), dim, dtype), torch.tensor(ids)]
    return SimpleNamespace(
        inputs=inputs, bank=bank, ids=ids, criterion=criterion, statistics=statistics,
        candidate_ids=ids + bank.image_ids.tolist(),
    )


def directions(case):
    """Anchors (B) and candidates (C) of i2t, then of t2i, as lists."""
    images, texts, image_keys, text_keys, _ = oracle.lists(*case.inputs)
    image_bank, text_bank = oracle.lists(case.bank.image_keys, case.bank.text_keys)
    return (images, text_keys + text_bank), (texts, image_keys + image_bank)


def oracle_weights(case, anchors, candidates, **changes):
    settings = SETTINGS | {"floor": FLOOR} | changes
    return oracle.weights(
        anchors, candidates, case.ids, case.candidate_ids, *case.statistics, **settings
    )


def gaussian(mean, variance, count=300):
    fitted = RunningGaussian()
    fitted.count.fill_(count)
    fitted.mean.fill_(mean)
    fitted.m2.fill_(variance * (count - 1))
    return fitted


@pytest.fixture
def sampled(monkeypatch):
    """Replace the draw by the heaviest candidate, and keep what it was given."""
    given = []

    def heaviest(weights, fallback):
        given.append((weights, fallback))
        return weights.argmax(dim=1).where(weights.sum(dim=1) > 0, fallback)

    monkeypatch.setattr(fne_loss, "sample_negatives", heaviest)
    return given


# The whole step


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_step_is_the_oracles(name, dtype, tolerance, sampled):
    case = make_case(name, dtype)
    loss, *draws = case.criterion(*case.inputs, case.bank, return_draws=True)
    expected = 0.0
    for (anchors, candidates), (weights, fallback), draw in zip(directions(case), sampled, draws):
        wanted = torch.tensor(oracle_weights(case, anchors, candidates), dtype=dtype)
        torch.testing.assert_close(weights, wanted, rtol=0, atol=tolerance)
        assert torch.equal(weights == 0, wanted == 0)
        assert fallback.tolist() == oracle.fallbacks(
            anchors, candidates, case.ids, case.candidate_ids
        )
        expected += oracle.hinge(anchors, candidates, draw.negatives.tolist(), SETTINGS["margin"])
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
    loss, *draws = case.criterion(*case.inputs, case.bank, return_draws=True)
    assert torch.equal(plain, loss)
    expected = 0.0
    for (anchors, candidates), draw in zip(directions(case), draws):
        negatives = draw.negatives.tolist()
        expected += oracle.hinge(anchors, candidates, negatives, SETTINGS["margin"])
        weights = oracle_weights(case, anchors, candidates)
        allowed = sum(not oracle.is_excluded(i, c) for i in case.ids for c in case.candidate_ids)
        if allowed:
            kept = sum(w > 0 for row in weights for w in row)
            assert draw.cut.item() == pytest.approx(1 - kept / allowed)
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
    loss, *draws = case.criterion(*embeds, ids, case.bank, return_draws=True)
    assert not any(value.requires_grad for draw in draws for value in draw)
    loss.backward()
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
                "infonce": lambda: fne_loss.infonce_loss(*anchors, ids, torch.tensor(2.0)),
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
    anchors = images.requires_grad_(), texts.requires_grad_()
    loss, *draws = FNELoss()(*anchors, image_keys, text_keys, ids, bank, return_draws=True)
    loss.backward()
    assert loss.item() == 0
    assert not images.grad.any() and not texts.grad.any()  # also false for NaN
    for draw in draws:
        assert draw.negatives.tolist() == [NO_NEGATIVE] * batch
        assert draw.posterior.isfinite().all() and draw.cut.isfinite()


def test_published_settings_are_the_defaults():
    loss = FNELoss()
    values = loss.margin, loss.tau, loss.prior, loss.posterior_floor, loss.min_count
    assert values == (0.2, 0.5, 1e-4, 1e-3, 200)


@pytest.mark.parametrize("prior", [0, 1, -0.1])
def test_prior_is_a_probability(prior):
    with pytest.raises(ValueError, match=f"prior is a probability in .* got {prior}"):
        FNELoss(prior=prior)


# Statistics


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_running_gaussian_is_the_oracles(dtype):
    """In double precision whatever the values come in."""
    torch.manual_seed(0)
    fitted, wanted = RunningGaussian(), oracle.Statistics()
    assert (fitted.count.item(), fitted.mean.item(), fitted.variance.item()) == (0, 0, 0)
    for shape in [(0,), (1,), (5,), (2, 3), (0,), (40,)]:
        values = 0.3 + 0.1 * torch.randn(shape, dtype=dtype).requires_grad_()
        mask = torch.rand(shape) < 0.5
        values = values.masked_fill(~mask, -torch.inf)  # what is masked out may be anything
        for given, used in ((values[mask], None), (values, mask), (values, torch.zeros_like(mask))):
            fitted.update(given, used)
            wanted.update([] if used is not None and not used.any() else values[mask].tolist())
            got = fitted.count.item(), fitted.mean.item(), fitted.m2.item(), fitted.variance.item()
            assert got == pytest.approx(
                (wanted.count, wanted.mean, wanted.m2, wanted.variance), rel=1e-12
            )
    assert wanted.count > 20
    assert not any(buffer.requires_grad for buffer in fitted.buffers())
    fitted.reset()
    assert [buffer.item() for buffer in fitted.buffers()] == [0, 0, 0]


def test_mean_moves_before_the_deviations_are_taken():
    """By hand: 0 and 2 give m2 = 2; a 4 moves the mean to 2 and adds 4. (Welford's gives 8.)"""
    fitted = RunningGaussian()
    fitted.update(torch.tensor([0.0, 2.0]))
    fitted.update(torch.tensor([4.0]))
    assert (fitted.count.item(), fitted.mean.item(), fitted.m2.item()) == (3, 2, 6)
    assert fitted.variance.item() == 3


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("ids", [[4], [0, 1], [5, 5], [0, 0, 1, 2, 2, 2, 3, 4], list(range(9))])
def test_update_statistics_is_the_oracles(ids, dtype, tolerance):
    torch.manual_seed(len(ids))
    criterion, wanted = FNELoss(), (oracle.Statistics(), oracle.Statistics())
    for _ in range(3):
        images, texts, _, _ = embeddings(len(ids), 5, dtype)
        criterion.update_statistics(images, texts, torch.tensor(ids))
        oracle.update_statistics(*wanted, *oracle.lists(images, texts), ids)
    for got, side in zip((criterion.positive, criterion.negative), wanted):
        assert got.count.item() == side.count
        assert got.mean.item() == pytest.approx(side.mean, abs=tolerance)
        assert got.m2.item() == pytest.approx(side.m2, abs=tolerance)
    criterion.reset_statistics()
    assert not any(buffer.item() for buffer in criterion.buffers())


@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 1, 2, 2, 2, 3, 4]])
def test_confident_pairs_are_the_oracles(ids):
    torch.manual_seed(1)
    found = []
    for _ in range(20):
        similarity = torch.rand(8, 8) + 0.5 * torch.eye(8)
        got = fne_loss.confident_pairs(similarity, torch.tensor(ids)).tolist()
        assert got == oracle.confident_pairs(similarity.tolist(), ids)
        found += got
    assert 20 < sum(found) < len(found) - 20


def test_a_tie_is_not_confident():
    similarity = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.9, 0.0], [0.0, 0.0, 0.5]])
    assert fne_loss.confident_pairs(similarity, torch.arange(3)).tolist() == [False, True, True]
    assert fne_loss.confident_pairs(similarity.T, torch.arange(3)).tolist() == [False, True, True]


# Posterior and weights

GAUSSIANS = {
    "apart": (gaussian(0.7, 0.004), gaussian(0.35, 0.006)),
    "equal": (gaussian(0.6, 0.01), gaussian(0.3, 0.01)),
    "narrow_negative": (gaussian(0.5, 0.02), gaussian(0.4, 0.001)),
    "needles": (gaussian(0.9, 1e-6), gaussian(0.1, 2e-6)),
}


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("name", GAUSSIANS)
@pytest.mark.parametrize("prior", [1e-4, 0.3])
def test_posterior_is_the_oracles_in_the_middle_and_in_both_tails(name, prior, dtype, tolerance):
    values = torch.cat([torch.linspace(-1, 1, 41), torch.tensor([-1e3, -10.0, 10.0, 1e3])])
    values = values.to(dtype).reshape(9, 5)
    got = fne_loss.false_negative_posterior(values, *GAUSSIANS[name], prior)
    sides = [oracle.Statistics(g.count.item(), g.mean.item(), g.m2.item()) for g in GAUSSIANS[name]]
    wanted = [[oracle.posterior(v, *sides, prior) for v in row] for row in values.tolist()]
    assert got.dtype == dtype and (got >= 0).all() and (got <= 1).all()
    torch.testing.assert_close(got, torch.tensor(wanted, dtype=dtype), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_posterior_in_the_tails_belongs_to_the_wider_gaussian(dtype):
    tails = torch.tensor([-1e3, 1e3], dtype=dtype)
    for name, wanted in {"apart": [0, 0], "narrow_negative": [1, 1], "equal": [0, 1]}.items():
        assert fne_loss.false_negative_posterior(tails, *GAUSSIANS[name], 1e-4).tolist() == wanted


def test_posterior_with_equal_variances_is_a_rising_logistic_curve():
    values = torch.linspace(-1, 2, 61, dtype=torch.float64)
    got = fne_loss.false_negative_posterior(values, *GAUSSIANS["equal"], 0.1)
    slope, middle = (0.6 - 0.3) / 0.01, (0.6 + 0.3) / 2
    wanted = torch.sigmoid(slope * (values - middle) + math.log(0.1 / 0.9))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
    assert (got.diff() >= 0).all() and got[0] < 1e-6 and got[-1] > 1 - 1e-6


def test_posterior_of_statistics_without_spread_is_finite():
    values = torch.tensor([-1.0, 0.3, 0.5, 1.0])
    for counts in [(0, 0), (1, 1), (300, 300)]:
        sides = gaussian(0.5, 0.0, counts[0]), gaussian(0.3, 0.0, counts[1])
        got = fne_loss.false_negative_posterior(values, *sides, 1e-4)
        assert got.tolist() == [0, 0, 1, 1]  # the nearer of two needles


def small_weights(similarity, positive, negative, **changes):
    options = {"margin": 0.25, "tau": 2.0, "prior": 0.5, "posterior_floor": 0.5, "min_count": 200}
    similarity = torch.tensor([similarity])
    return fne_loss.sampling_weights(
        similarity, torch.tensor([0.75]), similarity < -1, positive, negative, **options | changes
    )[0].tolist()


def test_posterior_is_used_from_one_confident_pair_more_than_min_count():
    for count, wanted in ((199, 0.02), (200, 0.02), (201, 1.0), (202, 1.0)):
        sides = gaussian(0.8, 0.001, count), gaussian(0.3, 0.001)
        got = small_weights([0.85], *sides, margin=0.2)
        exponent = 2.0 * (0.01 if wanted < 1 else 1.0)  # tau times distance squared or posterior
        assert got == pytest.approx([math.exp(-exponent)], rel=1e-5)


def test_borders_belong_to_the_cut_and_to_true_negatives():
    """s == mean - margin is cut; a posterior equal to the floor is not suspicious."""
    same = gaussian(0.5, 0.01), gaussian(0.5, 0.01)  # posterior = prior = 0.5 exactly
    got = small_weights([0.125, 0.25, 0.5, 1.0], *same)
    assert got == pytest.approx([0, 0, math.exp(-2 * 0.0625), math.exp(-2 * 0.0625)])
    assert small_weights([0.5], *same, posterior_floor=0.49) == pytest.approx([math.exp(-1)])


def test_reported_posterior_is_zero_until_it_is_used():
    case = make_case("wrapped")
    count = case.criterion.positive.count.item()
    for min_count, used in ((count, False), (count - 1, True)):
        case.criterion.min_count = min_count
        images, _, _, text_keys, ids = case.inputs
        draw = case.criterion.draw(images, text_keys, case.bank.text_keys, ids, case.bank.image_ids)
        assert draw.posterior.any().item() == used


# Draws


def chi_square(drawn, weights):
    """Pearson's statistic of drawn indices against probabilities weights / sum."""
    counts = torch.bincount(drawn, minlength=len(weights)).double()
    weights = torch.as_tensor(weights, dtype=torch.float64)
    assert not counts[weights == 0].any(), "drew a candidate without weight"
    expected = len(drawn) * weights / weights.sum()
    return (((counts - expected).square() / expected)[weights > 0]).sum().item()


@pytest.mark.parametrize("scale", [1.0, 1e-20])
def test_draw_frequencies_are_the_weights(scale):
    torch.manual_seed(0)
    weights = torch.tensor([1, 0, 0.9, 0.6, 0.01, 0.3, 0.5, 0.5, 0.2, 0.05, 0.7, 0])
    rows = (scale * weights).expand(200_000, 12)
    drawn = fne_loss.sample_negatives(rows, torch.full((200_000,), 1))
    # 10 candidates with weight: 9 degrees of freedom, exceeded by chance once in a thousand.
    assert chi_square(drawn, weights) < 27.88


def test_rows_without_weight_take_their_fallback():
    weights = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 0.0]])
    fallback = torch.tensor([2, 0, NO_NEGATIVE])
    assert fne_loss.sample_negatives(weights, fallback).tolist() == [2, 1, NO_NEGATIVE]


def test_draw_frequencies_through_the_loss_leave_out_excluded_and_empty_slots():
    """100 equal anchors of one photo, so only the bank has candidates. In it the photo itself
    (slot 9) and two empty slots are as similar as can be, and must not be drawn."""
    case = make_case("wrapped")
    case.criterion.tau, case.criterion.prior = 3.0, 0.5
    axes = torch.eye(7, dtype=torch.float64)
    cosines = torch.tensor([0.1, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9, 0.95, 1, 1, 1])[:, None]
    bank_keys = cosines * axes[0] + (1 - cosines**2).sqrt() * axes[1]
    bank_ids = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 9, 0, EMPTY, EMPTY])
    key = 0.8 * axes[0] + 0.6 * axes[2]
    anchors, keys = axes[0].expand(100, 7), key.expand(100, 7)
    ids = torch.zeros(100, dtype=torch.int64)
    torch.manual_seed(0)
    draws = [case.criterion.draw(anchors, keys, bank_keys, ids, bank_ids) for _ in range(200)]
    slots = torch.cat([draw.negatives for draw in draws]) - 100  # (20000,)
    case.ids, case.candidate_ids = [0], [0, *bank_ids.tolist()]
    candidates = oracle.lists(key, *bank_keys)
    weights = oracle_weights(case, oracle.lists(axes[0]), candidates, tau=3.0, prior=0.5)[0][1:]
    assert [weight > 0 for weight in weights] == [False] + 8 * [True] + 3 * [False]
    assert max(weights) > 4 * min(weights[1:9])
    assert (slots >= 0).all()
    assert chi_square(slots, weights) < 24.32  # 7 degrees of freedom, by chance 1 in 1000


@pytest.mark.parametrize("name", ["partly_filled", "captions_of_one_photo"])
def test_every_candidate_with_weight_is_drawn_and_no_other(name):
    case = make_case(name)
    seen = [[set() for _ in case.ids] for _ in range(2)]
    for _ in range(300):
        _, *draws = case.criterion(*case.inputs, case.bank, return_draws=True)
        for direction, draw in zip(seen, draws):
            for row, negative in zip(direction, draw.negatives.tolist()):
                row.add(negative)
    for (anchors, candidates), direction in zip(directions(case), seen):
        fallback = oracle.fallbacks(anchors, candidates, case.ids, case.candidate_ids)
        for i, weights in enumerate(oracle_weights(case, anchors, candidates)):
            wanted = {c for c, weight in enumerate(weights) if weight} or {fallback[i]}
            assert direction[i] == wanted


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


def test_gather_drawn_takes_rows_of_the_joined_candidates():
    keys, bank_keys = torch.randn(5, 3), torch.randn(4, 3)
    negatives = torch.tensor([4, 0, 5, 8, NO_NEGATIVE])
    gathered, rows = fne_loss.gather_drawn(keys, bank_keys, negatives)
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


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("log_scale", [0.0, 2.5, 6.0])
@pytest.mark.parametrize("name", CASES)
def test_infonce_is_the_oracles(name, log_scale, dtype, tolerance):
    case = make_case(name, dtype)
    images, texts, _, _, ids = case.inputs
    got = fne_loss.infonce_loss(images, texts, ids, torch.tensor(log_scale, dtype=dtype))
    scale = min(math.exp(log_scale), 100.0)
    wanted = oracle.infonce(*oracle.lists(images, texts), case.ids, scale)
    assert got.item() == pytest.approx(wanted, rel=tolerance, abs=10 * tolerance)


@pytest.mark.parametrize("use", ["triplet_hardest", "triplet_all", "infonce"])
def test_gradients_of_the_in_batch_losses(use):
    images, texts, _, _, ids = make_case("captions_of_one_photo").inputs
    inputs = images.requires_grad_(), texts.requires_grad_()
    log_scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    if use == "infonce":
        fne_loss.infonce_loss(*inputs, ids, log_scale).backward()
        assert log_scale.grad.abs() > 1e-3
        inputs = (*inputs, log_scale)
        torch.autograd.gradcheck(lambda a, b, s: fne_loss.infonce_loss(a, b, ids, s), inputs)
    else:
        hardest = use == "triplet_hardest"
        loss = fne_loss.triplet_loss(*inputs, ids, 0.4, hardest)
        assert loss.item() > 0.1
        torch.autograd.gradcheck(
            lambda a, b: fne_loss.triplet_loss(a, b, ids, 0.4, hardest), inputs
        )
