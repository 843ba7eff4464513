"""Losses beside MKT's, each against a plain loop or another library's form."""

import copy
import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import ovml.losses
from ovml import UserError
from ovml.losses import (
    AsymmetricLoss,
    BinaryCrossEntropy,
    LearnedMarginRankingLoss,
    Loss,
    MultiMatchingLoss,
    RankingLoss,
    SpreadMarginRankingLoss,
    ZLPRLoss,
    ranking_loss,
)

LOSSES = [
    BinaryCrossEntropy(),
    AsymmetricLoss(detach_focus=False),
    AsymmetricLoss(2.0, 1.0, 0.0, scale=3.0, offset=-1.0, detach_focus=False),
    ZLPRLoss(2.0, -0.5),
    MultiMatchingLoss(4.0),
    LearnedMarginRankingLoss(),
    SpreadMarginRankingLoss(0.5),
    RankingLoss(temperature=0.1),
]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def loop(loss, logits, targets):
    """The formulas, pair by pair or label by label."""
    rows = []
    for scores, marks in zip(logits.double().tolist(), targets.tolist(), strict=True):
        present = [s for s, m in zip(scores, marks, strict=True) if m == 1]
        absent = [s for s, m in zip(scores, marks, strict=True) if m == 0]
        if hasattr(loss, "scale"):
            present, absent = (
                [loss.scale * s + getattr(loss, "offset", 0) for s in side] for side in (present, absent)
            )
        if isinstance(loss, BinaryCrossEntropy):
            rows.append(-sum(math.log(sigmoid(s)) for s in present) - sum(math.log(sigmoid(-s)) for s in absent))
        elif isinstance(loss, AsymmetricLoss):
            shifted = [max(sigmoid(s) - loss.clip, 0) for s in absent]
            rows.append(
                -sum((1 - sigmoid(s)) ** loss.gamma_present * math.log(sigmoid(s)) for s in present)
                - sum(q**loss.gamma_absent * math.log(1 - q) for q in shifted)
            )
        elif isinstance(loss, ZLPRLoss):
            rows.append(math.log(1 + sum(map(math.exp, absent))) + math.log(1 + sum(math.exp(-s) for s in present)))
        elif isinstance(loss, MultiMatchingLoss):
            rows.append((present, absent))
        else:
            margin = loss.margin if hasattr(loss, "margin") else None
            if isinstance(loss, RankingLoss):
                margin, size = loss.margin * loss.temperature, loss.temperature
            elif margin is None:
                known = present + absent
                mean = sum(known) / max(len(known), 1)
                margin = size = loss.factor * math.sqrt(sum((s - mean) ** 2 for s in known) / max(len(known), 1))
            else:
                size = margin
            hinges = [margin + n - p for p in present for n in absent]
            # Without any spread all scores are alike, and each pair costs 1.
            violating = [h / size for h in hinges if h > 0] if size else [1.0] * len(hinges)
            rows.append(sum(violating) / (len(violating) + 1e-8))
    if isinstance(loss, MultiMatchingLoss):
        pairs = [s for present, absent in rows for s in present + absent]
        present = [s for present, _ in rows for s in present]
        total = math.log(sum(map(math.exp, pairs))) if pairs else 0
        return sum(total - s for s in present) / max(len(present), 1)
    return sum(rows) / len(rows)


@st.composite
def batches(draw):
    size, labels = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    number = size * labels
    logits = draw(st.lists(st.floats(-4, 4, width=32), min_size=number, max_size=number))
    marks = draw(st.lists(st.sampled_from([-1, 0, 1]), min_size=number, max_size=number))
    return torch.tensor(logits).view(size, labels), torch.tensor(marks).view(size, labels)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
@given(batches())
def test_the_formula_in_a_plain_loop(loss, batch):
    logits, targets = batch
    if isinstance(loss, SpreadMarginRankingLoss):
        logits = logits.round(decimals=1)  # scores that differ by nothing but rounding have no spread to speak of
    assert float(loss(logits, targets).detach()) == pytest.approx(loop(loss, logits, targets), abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_unknown_labels_take_no_part(loss):
    torch.manual_seed(0)
    logits = torch.randn(5, 9, requires_grad=True)
    targets = torch.randint(-1, 2, (5, 9))
    changed = torch.where(targets == -1, torch.full_like(logits, 50.0), logits)
    assert float(loss(logits, targets).detach()) == pytest.approx(float(loss(changed, targets).detach()), rel=1e-5)
    loss(logits, targets).backward()
    assert (logits.grad[targets == -1] == 0).all()
    assert logits.grad.isfinite().all()
    assert logits.grad.any()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_gradient_by_finite_differences(loss):
    if isinstance(loss, SpreadMarginRankingLoss):
        return_constant = loss  # its margin is a constant to the gradient, and no finite difference knows that
        logits = torch.randn(3, 6, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(1))
        targets = torch.tensor([[1, 0, -1, 0, 1, 0]] * 3)
        known = targets != -1
        spread = torch.stack([row[mask].std(correction=0) for row, mask in zip(logits, known, strict=True)]).detach()
        expected = torch.autograd.grad(ranking_loss(logits / (0.5 * spread[:, None]), targets), logits)[0]
        found = torch.autograd.grad(return_constant(logits, targets), logits)[0]
        torch.testing.assert_close(found, expected, check_dtype=False)
        return
    torch.manual_seed(0)
    logits = torch.randn(3, 6, dtype=torch.float64)
    targets = torch.tensor([[1, 0, -1, 0, 1, 0]] * 3)
    leaf = logits.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(leaf, targets), leaf)
    step = 1e-6  # too small for a pair to cross the margin, so the number of violating pairs stays the constant it is
    for row in range(3):
        for column in range(6):
            nudge = torch.zeros_like(logits)
            nudge[row, column] = step
            with torch.no_grad():
                slope = (loss(logits + nudge, targets) - loss(logits - nudge, targets)) / (2 * step)
            assert float(grad[row, column]) == pytest.approx(float(slope), abs=1e-6, rel=1e-5)
    assert (grad != 0).any(dim=1).all()


def test_binary_cross_entropy_is_torchs():
    logits, targets = torch.randn(4, 8), torch.randint(0, 2, (4, 8))
    theirs = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="sum") / 4
    torch.testing.assert_close(BinaryCrossEntropy()(logits, targets), theirs)
    torch.testing.assert_close(AsymmetricLoss(0.0, 0.0, 0.0)(logits, targets), theirs)


def test_asymmetric_loss_is_finite_for_sure_mistakes():
    logits = torch.tensor([[80.0, -80.0]], requires_grad=True)
    loss = AsymmetricLoss()(logits, torch.tensor([[0, 1]]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("kind", [BinaryCrossEntropy, AsymmetricLoss, ZLPRLoss])
def test_learned_scale_and_offset_begin_where_they_are_told_and_learn(kind):
    logits, targets = torch.randn(4, 8), torch.randint(0, 2, (4, 8))
    loss = kind(scale=3.0, offset=-1.0, learned=True)
    torch.testing.assert_close(loss(logits, targets), kind(scale=3.0, offset=-1.0)(logits, targets))
    loss(logits, targets).backward()
    assert len(list(loss.parameters())) == 2
    assert all(p.grad.abs() > 0 for p in loss.parameters())


def test_the_learned_scale_of_a_matching_loss_is_the_scale():
    logits, targets = torch.randn(4, 8), torch.randint(0, 2, (4, 8))
    loss = MultiMatchingLoss(scale=3.0, learned=True)
    torch.testing.assert_close(loss(logits, targets), MultiMatchingLoss(scale=3.0)(logits, targets))
    loss(logits, targets).backward()
    assert loss.log_scale.grad.abs() > 0


@pytest.mark.parametrize("target", [0, -1])
@pytest.mark.parametrize("loss", [*LOSSES, MultiMatchingLoss(learned=True)], ids=lambda loss: type(loss).__name__)
def test_a_batch_without_a_present_label_keeps_its_graph(loss, target):
    """The backward pass of a step must reach the weights, if with zeros: other processes wait for it."""
    logits = torch.randn(3, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(loss(logits, torch.full((3, 5), target)), logits)
    assert grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_double_precision_stays(loss):
    logits, targets = torch.randn(4, 30, dtype=torch.float64), torch.randint(-1, 2, (4, 30))
    assert loss(logits, targets).dtype == torch.float64


def test_a_learned_margin_grows_for_wrong_order_and_shrinks_for_right():
    for logits, sign in (([[0.0, 0.3]], -1), ([[0.08, 0.0]], 1)):
        loss = LearnedMarginRankingLoss(0.1)
        loss(torch.tensor(logits), torch.tensor([[1, 0]])).backward()
        assert torch.sign(loss.log_margin.grad) == sign


def test_a_spread_margin_does_not_see_the_size_of_the_scores():
    logits, targets = torch.randn(4, 30), torch.randint(-1, 2, (4, 30))
    loss = SpreadMarginRankingLoss()
    torch.testing.assert_close(loss(logits / 100 + 3, targets), loss(logits, targets), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_half_precision_is_computed_in_full(loss):
    logits, targets = torch.randn(4, 30).bfloat16(), torch.randint(-1, 2, (4, 30))
    found = loss(logits, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(logits.float(), targets), rtol=1e-5, atol=1e-6)


def test_every_loss_is_among_those_that_are_tested():
    exported = (getattr(ovml.losses, name) for name in ovml.losses.__all__)
    losses = {found for found in exported if inspect.isclass(found) and issubclass(found, Loss)}
    assert {loss for loss in losses if not inspect.isabstract(loss)} == set(map(type, LOSSES))


LEARNED = [cls(scale=3.0, learned=True) for cls in (BinaryCrossEntropy, AsymmetricLoss, MultiMatchingLoss, ZLPRLoss)]
EXTREME = [
    *LOSSES,
    *LEARNED,
    AsymmetricLoss(),
    AsymmetricLoss(2.0, 1.0, eps=1e-6),
    AsymmetricLoss(clip=0),
    AsymmetricLoss(0.5, 0.5, 0.0),
    AsymmetricLoss(0.0, 2.0, 0.3),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("loss", EXTREME, ids=repr)
def test_large_logits_have_a_finite_loss_and_gradient(loss, dtype):
    loss = copy.deepcopy(loss)
    sizes = torch.tensor([0, 1e-4, 1, 16, 17, 18, 40, 89, 104, 1e3, 1e4])
    sizes = torch.cat([sizes, -sizes])
    logits = torch.stack([sizes, sizes.flip(0), sizes]).to(dtype).requires_grad_()
    targets = torch.tensor([[0], [1], [0]]).repeat(1, len(sizes))
    targets[2, ::2], targets[0, 3] = 1, -1
    value = loss(logits, targets)
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())
    for column in range(len(sizes)):  # each by itself, where nothing larger hides it
        alone = logits.detach()[:, column : column + 1].requires_grad_()
        loss(alone, targets[:, column : column + 1]).backward()
        assert alone.grad.isfinite().all()


@pytest.mark.parametrize("logit", [-30.0, -1.0, 0.0, 5.0, 16.0, 30.0])
@pytest.mark.parametrize("arguments", [(4.0, 0.0, 0.0), (2.0, 1.0, 0.05), (1.0, 3.0, 0.5)])
def test_the_asymmetric_loss_is_its_formula_far_out(logit, arguments):
    gamma_absent, gamma_present, clip = arguments
    z = torch.tensor([[logit]], dtype=torch.float64)
    p, not_p = float(z.sigmoid()), float((-z).sigmoid())
    expected = {
        0: -(max(p - clip, 0) ** gamma_absent) * math.log(min(not_p + clip, 1)),
        1: -(not_p**gamma_present) * math.log(p),
    }
    for target, value in expected.items():
        found = AsymmetricLoss(*arguments)(z.float(), torch.tensor([[target]]))
        assert float(found) == pytest.approx(value, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: BinaryCrossEntropy(scale=0), "BinaryCrossEntropy: scale must be greater than 0; got 0"),
        (lambda: AsymmetricLoss(clip=1), "clip from 0 to below 1"),
        (lambda: LearnedMarginRankingLoss(0), "margin must be greater than 0"),
        (lambda: SpreadMarginRankingLoss(-1), "factor must be greater than 0"),
        (lambda: RankingLoss(temperature=0), "temperature must be greater than 0"),
    ],
)
def test_wrong_settings_end_in_one_line(make, text):
    with pytest.raises(UserError, match=text):
        make()
