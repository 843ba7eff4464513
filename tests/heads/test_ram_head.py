"""RAM's head against the reference numbers of the published code."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ram_reference import TOLERANCE, close, iterations_of

from ovml.encoders import ImageFeatures
from ovml.heads import OptimalTransportHead, RAMHead, TeacherFeatures
from ovml.heads.sinkhorn import batch_sinkhorn, sinkhorn
from ovml.losses import MultiMatchingLoss
from ovml.utils.errors import UserError
from ovml.utils.parts import build, describe

CASES = ["match0", "match1", "match2"]


@pytest.fixture(params=CASES)
def case(request, ram_golden, ram_json):
    """A case's tensors and numbers by their short names, and the head with its scale and temperatures."""
    name = request.param
    tensors = {k.removeprefix(f"{name}."): v for k, v in ram_golden.items() if k.startswith(f"{name}.")}
    numbers = ram_json[name]
    head = RAMHead(numbers["local_temperature"], logit_scale=numbers["logit_scale"])
    assert float(head.tau_global.detach()) == pytest.approx(numbers["temperature"], rel=1e-6)
    return tensors, numbers, head


def inputs(tensors, learning=False):
    given = [tensors[name].clone().requires_grad_(learning) for name in ("global", "patches", "labels")]
    return ImageFeatures(*given[:2]), given[2], given


def teacher_of(tensors):
    nothing = torch.zeros_like(tensors["global"])  # the teacher's global embeddings are not used
    return TeacherFeatures(nothing, tensors["teacher_patches"], tensors["teacher_labels"])


def selected(numbers, tensor):
    """The images and patches that the reference keeps of a large tensor."""
    images = slice(None) if numbers["plan_images"] == "all" else slice(1)
    return tensor[images, :: numbers["plan_patch_step"]]


def watched(head):
    """Make a head note the problems that it solves and their plans."""
    seen, solve = [], head.transport

    def transport(cost, rows, columns, epsilon):
        plan = solve(cost, rows, columns, epsilon)
        seen.append((cost, rows, columns, epsilon, plan))
        return plan

    head.transport = transport
    return seen


def check_plan(seen, tensors, numbers, mode):
    ((cost, rows, columns, epsilon, plan),) = seen
    assert epsilon == pytest.approx(numbers[f"epsilon_{mode}"])
    close(rows, tensors[f"{mode}.row_marginal"])
    close(plan.sum(dim=2), tensors[f"{mode}.plan_row_sums"])
    close(plan.sum(dim=1), tensors[f"{mode}.plan_column_sums"])
    close(selected(numbers, plan), tensors[f"{mode}.plan"])
    close(selected(numbers, cost), tensors[f"{mode}.cost"])
    iterations = numbers[f"iterations_{mode}"]
    assert iterations_of(cost, rows, columns, epsilon, plan) == iterations


def test_evaluation(case):
    tensors, numbers, head = case
    features, labels, _ = inputs(tensors)
    seen = watched(head)
    with torch.no_grad():
        score = head(features, labels).exp()
        whole, local = head.training_logits(features, labels, tensors["targets"], None)
    close(score, tensors["eval.score"])
    close(whole, tensors["eval.global_logits"])
    close(local, tensors["eval.local_logits"])
    check_plan(seen[:1], tensors, numbers, "eval")


def test_training(case):
    tensors, numbers, head = case
    features, labels, leaves = inputs(tensors, learning=True)
    seen = watched(head)
    whole, local = head.training_logits(features, labels, tensors["targets"], teacher_of(tensors))
    close(whole, tensors["train.global_logits"])
    close(local, tensors["train.local_logits"])
    close((whole.softmax(-1) + local.softmax(-1)) / 2, tensors["train.score"])
    check_plan(seen, tensors, numbers, "train")
    prior = head.prior(tensors["teacher_patches"], tensors["teacher_labels"], tensors["targets"]).exp()
    close(selected(numbers, prior), tensors["train.knowledge_q"])
    assert float(prior.min()) == pytest.approx(numbers["smallest_q"], rel=1e-3)
    losses = [MultiMatchingLoss()(logits, tensors["targets"]) for logits in (whole, local)]
    total = sum(losses)
    total.backward()
    losses = [loss.detach() for loss in losses]
    assert float(losses[0]) == pytest.approx(numbers["loss_global"], rel=TOLERANCE)
    assert float(losses[1]) == pytest.approx(numbers["loss_local"], rel=TOLERANCE)
    assert float(sum(losses)) == pytest.approx(numbers["loss"], rel=TOLERANCE)
    for leaf, name in zip(leaves, ("global", "patches", "labels"), strict=True):
        close(leaf.grad, tensors[f"train.grad_{name}"])
    assert float(head.tau_global.grad) == pytest.approx(numbers["grad_temperature"], rel=TOLERANCE)
    assert float(head.tau_local.grad) == pytest.approx(numbers["grad_local_temperature"], rel=TOLERANCE)


def test_scores_depend_on_the_batch_as_published(case):
    tensors, numbers, head = case
    features, labels, _ = inputs(tensors)
    with torch.no_grad():
        together = head(features, labels).exp()
        alone, iterations = [], []
        for image in range(len(together)):
            one, seen = ImageFeatures(*(x[image : image + 1] for x in features)), watched(head)
            alone.append(head(one, labels).exp())
            iterations.append(iterations_of(*seen[0]))
    assert iterations == numbers["iterations_eval_each_image_alone"]
    moved = float((torch.cat(alone) - together).abs().max())
    assert moved == pytest.approx(numbers["score_max_abs_difference_alone"], rel=0.02, abs=1e-6)


def test_the_loss(ram_golden, ram_json):
    logits = ram_golden["mmc.logits"].clone().requires_grad_()
    loss = MultiMatchingLoss()(logits, ram_golden["mmc.targets"])
    assert float(loss.detach()) == pytest.approx(ram_json["mmc"]["loss"], rel=1e-6)
    loss.backward()
    close(logits.grad, ram_golden["mmc.grad"])
    nothing = MultiMatchingLoss()(logits, torch.zeros_like(ram_golden["mmc.targets"]))
    assert float(nothing.detach()) == ram_json["mmc"]["loss_without_present"] == 0


@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6)),
    epsilon=st.floats(0.1, 2),
    seed=st.integers(0, 999),
)
def test_without_a_tolerance_it_is_the_plan_in_logarithms(sizes, epsilon, seed):
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(sizes, generator=generator, dtype=torch.float64)
    a, b = (torch.rand(sizes[0], n, generator=generator, dtype=torch.float64).softmax(-1) for n in sizes[1:])
    found, expected = (solve(cost, a, b, epsilon, 20, 0.0) for solve in (batch_sinkhorn, sinkhorn))
    torch.testing.assert_close(found, expected)


def test_plans_stop_together():
    """A problem that is done at once goes on as long as another of its batch."""
    easy, hard = torch.zeros(1, 4, 5), 2 * torch.rand(1, 4, 5, generator=torch.Generator().manual_seed(0))
    a, b = torch.full((2, 4), 1 / 4), torch.full((2, 5), 1 / 5)
    both = batch_sinkhorn(torch.cat([easy, hard]), a, b, 0.05, 100, 1e-3)
    assert torch.equal(both[1:], batch_sinkhorn(hard, a[:1], b[:1], 0.05, 100, 1e-3))
    counts = [
        iterations_of(cost, a[:1], b[:1], 0.05, batch_sinkhorn(cost, a[:1], b[:1], 0.05)) for cost in (easy, hard)
    ]
    assert counts[0] < counts[1]


def test_traced_it_is_the_same():
    generator = torch.Generator().manual_seed(1)
    cost, a, b = torch.rand(2, 4, 5, generator=generator), torch.full((2, 4), 1 / 4), torch.full((2, 5), 1 / 5)

    class Plan(torch.nn.Module):
        def forward(self, cost, a, b):
            return batch_sinkhorn(cost, a, b, 0.1)

    traced = torch.export.export(Plan(), (cost, a, b)).module()
    torch.testing.assert_close(traced(cost, a, b), batch_sinkhorn(cost, a, b, 0.1))


def test_the_scale_is_the_clip_s_once():
    head = RAMHead()
    head.set_logit_scale(30.0)
    assert float(head.scale) == 30
    assert float(head.tau_global.detach()) == pytest.approx(1 / 30)
    head.tau_global.data.fill_(0.5)
    head.set_logit_scale(100.0)  # a trained head in another model
    assert float(head.scale) == 30
    assert float(head.tau_global.detach()) == 0.5
    given = RAMHead(logit_scale=20.0)
    given.set_logit_scale(100.0)
    assert float(given.scale) == 20
    assert dict(head.named_parameters()).keys() == {"tau_global", "tau_local"}
    assert "clip_scale" in head.state_dict()
    assert describe(build(describe(given), RAMHead, "here")) == describe(given)


@pytest.mark.parametrize("scale", [0.0, float("inf"), float("nan")])
def test_a_damaged_scale_is_one_line(scale):
    with pytest.raises(UserError, match="RAMHead: the CLIP's factor of the cosines is .*; give the head's logit_scale"):
        RAMHead().set_logit_scale(scale)


def test_it_is_ovml_s_head_up_to_the_plan():
    """With both plans run to the end, the two heads score the same."""
    generator = torch.Generator().manual_seed(2)
    features = ImageFeatures(torch.randn(3, 8, generator=generator), torch.randn(3, 6, 8, generator=generator))
    labels = torch.randn(5, 8, generator=generator)
    ends = {"local_temperature": 0.05, "iterations": 500, "tolerance": 0.0}
    own = OptimalTransportHead(temperature=1 / 30, cost_scale=30.0, **ends)
    torch.testing.assert_close(RAMHead(logit_scale=30.0, **ends)(features, labels), own(features, labels))


@pytest.mark.parametrize("arguments", [{"local_temperature": 0.0}, {"logit_scale": -1.0}, {"iterations": 0}])
def test_wrong_arguments_end_in_one_line(arguments):
    with pytest.raises(UserError, match=next(iter(arguments))) as info:
        RAMHead(**arguments)
    assert "\n" not in str(info.value)
