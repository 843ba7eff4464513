"""The asymmetric loss and its gradient against the published code."""

import math

import pytest
import torch

from ovml import UserError
from ovml.losses import AsymmetricLoss

CASES = ["trained", "default", "no_clip"]


def published(settings, detached, **options):
    """The published loss: it sums over images and takes no logarithm below 1e-8."""
    gammas = settings["gamma_absent"], settings["gamma_present"], settings["clip"]
    return AsymmetricLoss(*gammas, detach_focus=detached, eps=1e-8, reduction="sum", **options)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("detached", [True, False], ids=["detached", "not_detached"])
def test_sum_and_gradient_are_the_published_ones(kin_golden, kin_golden_json, case, detached):
    settings, name = kin_golden_json["asl"][case], f"asl.{case}.{'detached' if detached else 'not_detached'}"
    logits, targets = kin_golden["asl.logits"].clone().requires_grad_(), kin_golden["asl.targets"]
    loss = published(settings, detached)(logits, targets)
    loss.backward()
    assert loss.item() == pytest.approx(settings["loss_sum"], rel=1e-4)
    close(logits.grad, kin_golden[f"{name}.grad"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("detached", [True, False], ids=["detached", "not_detached"])
@pytest.mark.parametrize("kind", ["present", "absent"])
def test_one_label_at_each_logit_of_a_grid(kin_golden, kin_golden_json, case, detached, kind):
    loss = published(kin_golden_json["asl"][case], detached)
    logits = kin_golden["asl.grid"][:, None].clone().requires_grad_()
    targets = torch.full(logits.shape, int(kind == "present"))
    losses = torch.stack([loss(row[None], target[None]) for row, target in zip(logits, targets, strict=True)])
    losses.sum().backward()
    close(losses.detach(), kin_golden[f"asl.{case}.grid_{kind}"])
    key = f"asl.{case}.{'detached' if detached else 'not_detached'}.grid_grad_{kind}"
    close(logits.grad[:, 0], kin_golden[key])


@pytest.mark.parametrize("arguments", [(4.0, 0.0, 0.05), (2.0, 1.0, 0.05), (4.0, 1.0, 0.0), (0.5, 0.5, 0.3)])
def test_constant_weights_change_the_gradient_and_not_the_value(arguments):
    """The gradient of a label is its focusing weight times the gradient of its logarithm."""
    gamma_absent, gamma_present, clip = arguments
    z = torch.linspace(-4, 4, 40, dtype=torch.float64)
    for target in (0, 1):
        targets = torch.full((1, 40), target)
        grads = []
        for detached in (True, False):
            logits = z[None].clone().requires_grad_()
            loss = AsymmetricLoss(*arguments, detach_focus=detached)(logits, targets)
            loss.backward()
            grads.append((float(loss.detach()), logits.grad[0]))
        assert grads[0][0] == grads[1][0]
        p = z.sigmoid()
        q = (p - clip).clamp(min=0)
        # log(1 - q) has the slope -p (1 - p) / (1 - q) where q > 0, log(p) has the slope 1 - p
        expected = q**gamma_absent * p * (1 - p) / (1 - q) if target == 0 else -((1 - p) ** gamma_present) * (1 - p)
        torch.testing.assert_close(grads[0][1], torch.where((target == 1) | (q > 0), expected, 0.0))


def test_sum_and_mean_over_images():
    logits, targets = torch.randn(5, 7), torch.randint(-1, 2, (5, 7))
    mean = AsymmetricLoss()(logits, targets)
    torch.testing.assert_close(AsymmetricLoss(reduction="sum", factor=0.5)(logits, targets), 2.5 * mean)


def test_below_the_least_logarithm_nothing_is_pulled():
    logits = torch.tensor([[-20.0, -13.0]], requires_grad=True)
    loss = AsymmetricLoss(2.0, 1.0, eps=1e-6)(logits, torch.tensor([[1, 1]]))
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-6) + 13, abs=1e-3)
    assert logits.grad[0, 0] == 0
    assert logits.grad[0, 1] == pytest.approx(-1, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 1}, "AsymmetricLoss: eps must be from 0 to below 1; got 1"),
        ({"factor": 0}, "AsymmetricLoss: factor must be greater than 0; got 0"),
        ({"reduction": "total"}, "AsymmetricLoss: reduction must be 'mean' or 'sum'"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        AsymmetricLoss(**arguments)
