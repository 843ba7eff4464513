"""Sinkhorn's plan against its definition, and RAM's head against the paper's formulas as loops."""

import json
import math

import pytest
import torch
from commands import SMALL
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from test_spatial_softmax import cosine, features

from ovml import OVMultiLabelClassifier, UserError
from ovml.cli.main import main
from ovml.encoders import ImageFeatures
from ovml.heads import OptimalTransportHead, TeacherFeatures
from ovml.heads.sinkhorn import sinkhorn
from ovml.training.step_rows import StepRows


def problem(batch=3, rows=5, columns=7, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(batch, rows, columns, generator=generator, dtype=dtype)
    a = torch.randn(batch, rows, generator=generator, dtype=dtype).softmax(dim=-1)
    b = torch.randn(batch, columns, generator=generator, dtype=dtype).softmax(dim=-1)
    return cost, a, b


def naive_sinkhorn(cost, a, b, epsilon, iterations):
    """The textbook's scaling of rows and columns, number by number."""
    kernel = [[math.exp(-c / epsilon) for c in row] for row in cost]
    right = [1.0] * len(b)
    for _ in range(iterations):
        left = [x / sum(k * r for k, r in zip(row, right, strict=True)) for x, row in zip(a, kernel, strict=True)]
        right = [y / sum(kernel[p][j] * left[p] for p in range(len(a))) for j, y in enumerate(b)]
    return [[left[p] * kernel[p][j] * right[j] for j in range(len(b))] for p in range(len(a))]


# ---------------------------------------------------------------------- sinkhorn


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    epsilon=st.floats(0.05, 10),
    iterations=st.integers(1, 20),
    seed=st.integers(0, 999),
)
def test_it_is_the_textbook_loop(rows, columns, epsilon, iterations, seed):
    cost, a, b = problem(2, rows, columns, seed)
    found = sinkhorn(cost, a, b, epsilon, iterations, 0.0)
    problems = zip(cost.tolist(), a.tolist(), b.tolist(), strict=True)
    expected = [naive_sinkhorn(*one, epsilon, iterations) for one in problems]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    epsilon=st.floats(0.05, 10),
    tolerance=st.sampled_from([1e-2, 1e-4, 1e-8]),
    seed=st.integers(0, 999),
)
def test_the_plan_has_the_marginals(rows, columns, epsilon, tolerance, seed):
    cost, a, b = problem(3, rows, columns, seed)
    plan = sinkhorn(cost, a, b, epsilon, 5000, tolerance)
    assert (plan >= 0).all()
    torch.testing.assert_close(plan.sum(dim=-2), b)
    assert ((plan.sum(dim=-1) - a).abs().sum(dim=-1) <= tolerance * 1.01 + 1e-12).all()


@given(rows=st.permutations(range(5)), columns=st.permutations(range(7)), batch=st.permutations(range(3)))
def test_permutations_permute_the_plan(rows, columns, batch):
    cost, a, b = problem()
    permuted = sinkhorn(cost[batch][:, rows][:, :, columns], a[batch][:, rows], b[batch][:, columns])
    torch.testing.assert_close(permuted, sinkhorn(cost, a, b)[batch][:, rows][:, :, columns])


def test_a_plan_does_not_depend_on_what_it_is_computed_with():
    cost, a, b = problem(batch=6)
    cost = cost * torch.tensor([0.0, 0.01, 0.1, 1, 2, 5]).view(-1, 1, 1)  # they take from 1 to many iterations
    together = sinkhorn(cost, a, b, 0.1, 200, 1e-3)
    alone = torch.stack([sinkhorn(*one, 0.1, 200, 1e-3) for one in zip(cost, a, b, strict=True)])
    assert torch.equal(together, alone)


def test_what_does_not_change_the_plan():
    cost, a, b = problem()
    plan = sinkhorn(cost, a, b, 0.1, 1000, 1e-12)
    shifted = cost + torch.randn(3, 5, 1, dtype=torch.float64) + torch.randn(3, 1, 7, dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(shifted, a, b, 0.1, 1000, 1e-12), plan)
    torch.testing.assert_close(sinkhorn(3 * cost, a, b, 0.3, 1000, 1e-12), plan)
    torch.testing.assert_close(sinkhorn(cost.mT, b, a, 0.1, 1000, 1e-12).mT, plan)
    torch.testing.assert_close(sinkhorn(cost, 4 * a, 4 * b, 0.1, 1000, 1e-12), 4 * plan)


def test_a_large_epsilon_gives_the_product_of_the_marginals():
    cost, a, b = problem()
    torch.testing.assert_close(sinkhorn(cost, a, b, 1e6), a.unsqueeze(-1) * b.unsqueeze(-2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_small_epsilon_gives_the_cheapest_plan(dtype):
    cost, _, _ = problem(batch=4, rows=6, columns=6, dtype=dtype)
    uniform = torch.full((4, 6), 1 / 6, dtype=dtype)
    plan = sinkhorn(cost, uniform, uniform, 1e-3, 5000, 1e-5)  # exp(-1 / 1e-3) underflows
    assert plan.isfinite().all()
    for one, costs in zip(plan, cost, strict=True):
        rows, columns = linear_sum_assignment(costs.numpy())
        cheapest = costs[rows, columns].sum().item() / 6
        assert (one * costs).sum().item() == pytest.approx(cheapest, abs=2e-3)


def test_rows_and_columns_without_mass():
    cost, a, b = problem()
    a[:, 2], b[:, 1] = 0, 0
    a, b = a / a.sum(-1, keepdim=True), b / b.sum(-1, keepdim=True)
    plan = sinkhorn(cost, a, b, 0.1, 1000, 1e-10)
    assert torch.equal(plan[:, 2], torch.zeros(3, 7, dtype=plan.dtype))
    assert torch.equal(plan[:, :, 1], torch.zeros(3, 5, dtype=plan.dtype))
    torch.testing.assert_close(plan.sum(dim=-1), a)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full(dtype):
    cost, a, b = (x.to(dtype) for x in problem())
    plan = sinkhorn(cost, a, b, 0.01)
    assert plan.dtype == dtype
    assert torch.equal(plan, sinkhorn(cost.float(), a.float(), b.float(), 0.01).to(dtype))


def test_no_gradient_flows_through_the_plan():
    cost, a, b = problem()
    assert not sinkhorn(cost.requires_grad_(), a.requires_grad_(), b).requires_grad


def test_no_problem_at_all_is_no_plan():
    assert sinkhorn(torch.zeros(0, 2, 3), torch.zeros(0, 2), torch.zeros(0, 3)).shape == (0, 2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row_marginal": torch.ones(4)}, r"must go together; got \[2, 3\], \[4\] and \[3\]"),
        ({"column_marginal": torch.ones(1, 3)}, "must go together"),
        ({"cost": torch.ones(3)}, "must go together"),
        ({"epsilon": 0}, "epsilon must be greater than 0; got 0"),
        ({"iterations": 0}, "iterations must be at least 1; got 0"),
        ({"tolerance": -1.0}, r"tolerance must not be negative; got -1\.0"),
    ],
)
def test_wrong_arguments_of_sinkhorn_are_one_line(changes, message):
    arguments = {"cost": torch.ones(2, 3), "row_marginal": torch.ones(2), "column_marginal": torch.ones(3)}
    with pytest.raises(UserError, match=message) as error:
        sinkhorn(**{**arguments, **changes})
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------- the head


def softmax(values):
    exponentials = [math.exp(v - max(values)) for v in values]
    return [e / sum(exponentials) for e in exponentials]


def published_score(whole, patches, labels, head):
    """The paper's score of one image, number by number."""
    cosines = [[cosine(patch, label) for label in labels] for patch in patches]
    cost = [[1 - share for share in softmax([head.cost_scale * c for c in row])] for row in cosines]
    presence = softmax([max(row) / head.presence_temperature for row in cosines])
    uniform = [1 / len(labels)] * len(labels)
    plan = naive_sinkhorn(cost, presence, uniform, head.epsilon, head.iterations)
    moved = [sum(plan[p][j] * cosines[p][j] for p in range(len(patches))) for j in range(len(labels))]
    local_scores = softmax([value / head.local_temperature for value in moved])
    global_scores = softmax([cosine(whole, label) / head.temperature for label in labels])
    return [(x + y) / 2 for x, y in zip(local_scores, global_scores, strict=True)]


@pytest.mark.parametrize(
    "arguments", [{}, {"local_temperature": 0.05, "epsilon": 0.3}, {"cost_scale": 10, "presence_temperature": 1}]
)
def test_it_is_the_logarithm_of_the_published_score(arguments):
    head = OptimalTransportHead(learned=False, tolerance=0.0, **{"local_temperature": 0.02, **arguments})
    image, labels = features(batch=3, patches=4, dtype=torch.float64), torch.randn(6, 8, dtype=torch.float64)
    found = head(image, labels)
    pairs = zip(image.global_embeds.tolist(), image.patch_embeds.tolist(), strict=True)
    expected = torch.tensor([published_score(*pair, labels.tolist(), head) for pair in pairs], dtype=torch.float64)
    torch.testing.assert_close(found.exp(), expected)
    assert torch.equal(found.argsort(dim=1), expected.argsort(dim=1))  # of labels
    assert torch.equal(found.argsort(dim=0), expected.argsort(dim=0))  # of images


def test_scores_that_underflow_keep_their_order():
    head = OptimalTransportHead(temperature=1e-4, local_temperature=1e-5)
    scores = head(features(), torch.randn(5, 8))
    assert scores.exp().eq(0).any()
    assert scores.isfinite().all()
    # The best of one stream and the best of the other may both have 1/2, as published; the rest is told apart.
    assert all(len(row.unique()) >= 4 > len(row.exp().unique()) for row in scores)


@given(order=st.permutations(range(5)))
def test_order_of_labels_and_images_does_not_matter(order):
    torch.manual_seed(0)
    image, labels, head = features(batch=5), torch.randn(5, 8), OptimalTransportHead()
    with torch.no_grad():
        expected = head(image, labels)
        torch.testing.assert_close(head(image, labels[order]), expected[:, order], atol=1e-4, rtol=1e-4)
        moved = ImageFeatures(*(x[order] for x in image))
        torch.testing.assert_close(head(moved, labels), expected[order], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("budget", [1, 70])
def test_images_in_chunks_give_the_same_scores_and_gradients(budget, monkeypatch):
    results = []
    labels, weights = torch.randn(7, 8), torch.randn(6, 7)
    for value in (10**9, budget):
        monkeypatch.setattr("ovml.heads.chunks.CPU_BUDGET", value)
        head = OptimalTransportHead(local_temperature=0.02)
        image = ImageFeatures(*(x.clone().requires_grad_() for x in features(batch=6)))
        scores = head(image, labels)
        (scores * weights).sum().backward()
        results.append((scores, *(x.grad for x in image), *(p.grad for p in head.parameters())))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_a_fixed_plan():
    head = OptimalTransportHead(local_temperature=0.02).double()
    image = ImageFeatures(*(x.requires_grad_() for x in features(patches=3, dtype=torch.float64)))
    labels = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    whole, patches, names = (torch.nn.functional.normalize(x, dim=-1) for x in (*image, labels))
    cosines = patches @ names.T
    moved = (head.plan(cosines).detach() * cosines).sum(dim=1)
    streams = (whole @ names.T / head.log_temperature.exp(), moved / head.log_local_temperature.exp())
    expected = (streams[0].softmax(dim=1) + streams[1].softmax(dim=1)).log() - math.log(2)
    weights = torch.randn(2, 4, dtype=torch.float64)
    inputs = [*image, labels, *head.parameters()]
    gradients = [torch.autograd.grad((s * weights).sum(), inputs) for s in (expected, head(image, labels))]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
        assert one.abs().sum() > 0


def test_zero_and_no_images():
    labels, head = torch.randn(4, 8), OptimalTransportHead()
    image = ImageFeatures(torch.zeros(1, 8, requires_grad=True), torch.zeros(1, 3, 8, requires_grad=True))
    scores = head(image, labels)
    scores.sum().backward()
    torch.testing.assert_close(scores.exp(), torch.full((1, 4), 0.25))
    assert all(embeds.grad.isfinite().all() for embeds in image)
    assert head(features(batch=0), labels).shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scored_in_full(dtype):
    head, image, labels = OptimalTransportHead(local_temperature=0.02), features(), torch.randn(4, 8)
    image, labels = ImageFeatures(*(x.to(dtype) for x in image)), labels.to(dtype)
    wide = ImageFeatures(*(x.float() for x in image))
    torch.testing.assert_close(head(image, labels), head(wide, labels.float()))
    assert head.to(dtype)(image, labels).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "OptimalTransportHead: temperature must be greater than 0; got 0"),
        ({"local_temperature": -1}, "local_temperature must be greater than 0"),
        ({"epsilon": 0}, "epsilon must be greater than 0"),
        ({"cost_scale": 0}, "cost_scale must be greater than 0"),
        ({"presence_temperature": 0}, "presence_temperature must be greater than 0"),
        ({"iterations": 0}, "iterations must be greater than 0; got 0"),
        ({"tolerance": -1}, "tolerance must be 0 or greater, and finite; got -1"),
        ({"knowledge": -1}, "knowledge must be 0 or greater, and finite; got -1"),
    ],
)
def test_bad_arguments_of_the_head_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        OptimalTransportHead(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("learned", [True, False])
def test_a_loaded_model_scores_the_same_to_the_last_bit(tiny, tmp_path, learned):
    head = OptimalTransportHead(0.02, 0.1, learned=learned)
    model = OVMultiLabelClassifier(tiny, ["cat", "dog"], head=head).eval()
    for parameter in model.model.head.parameters():
        parameter.data += 0.3
    model.save_pretrained(tmp_path / "saved")
    again = OVMultiLabelClassifier.from_pretrained(tmp_path / "saved")
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(again(pixels, ["a", "b c"]), model(pixels, ["a", "b c"]))


def test_fit_trains_it_with_the_paper_s_loss(tmp_path, capsys):
    out = tmp_path / "runs"
    arguments = ["fit", "--config", "demo.yaml", *SMALL, "--model.head", "ovml.heads.OptimalTransportHead"]
    arguments += ["--model.loss", "ovml.losses.MultiMatchingLoss", "--trainer.max_epochs", "1"]
    arguments += ["--trainer.default_root_dir", str(out), "--data.cache_dir", str(tmp_path / "cache")]
    assert main([*arguments, "--trainer.enable_progress_bar", "false"]) == 0
    run = out / "version_0"
    assert set(json.loads((run / "results.json").read_text())) == {"zero-shot", "vision", "prompt"}
    head = OVMultiLabelClassifier.from_pretrained(run).model.head
    assert head.log_temperature.item() != pytest.approx(math.log(0.01), abs=1e-7)


# ---------------------------------------------------------------------- the teacher's knowledge, in training


def knowledge_loop(patches, labels, targets, scale):
    """log Q of every image, patch and label, number by number."""
    batches = []
    for image, marks in zip(patches.tolist(), targets.tolist(), strict=True):
        preferred = []
        for patch in image:
            exponentials = [math.exp(scale * cosine(patch, label)) for label in labels.tolist()]
            preferred.append([e / sum(exponentials) for e in exponentials])
        seen_at = [[0.0] * len(marks) for _ in image]
        for label in range(len(marks)):
            exponentials = [math.exp(20 * row[label]) for row in preferred]
            for p, e in enumerate(exponentials):
                seen_at[p][label] = math.log(e / sum(exponentials))
        batches.append(seen_at)
    least = min(value for rows in batches for row in rows for value in row)
    for rows, marks in zip(batches, targets.tolist(), strict=True):
        for row in rows:
            row[:] = [least if mark == 0 else value for value, mark in zip(row, marks, strict=True)]
    return batches


def test_the_plan_in_training_is_bound_to_what_the_teacher_sees(monkeypatch):
    head = OptimalTransportHead(cost_scale=5.0, local_temperature=0.05, iterations=200, tolerance=0.0)
    generator = torch.Generator().manual_seed(4)
    student, teacher = (
        ImageFeatures(torch.randn(3, 6, generator=generator), torch.randn(3, 4, 6, generator=generator))
        for _ in range(2)
    )
    labels, targets = torch.randn(5, 6, generator=generator), torch.randint(-1, 2, (3, 5), generator=generator)
    monkeypatch.setattr("ovml.heads.chunks.CPU_BUDGET", 20)  # an image at a time
    whole, local = head.training_logits(student, labels, targets, TeacherFeatures(*teacher, labels))
    bound = knowledge_loop(teacher.patch_embeds, labels, targets, 5.0)
    for b in range(3):
        cosines = [[cosine(p, label) for label in labels.tolist()] for p in student.patch_embeds[b].tolist()]
        cost = []
        for p, row in enumerate(cosines):
            total = sum(math.exp(5.0 * c) for c in row)
            cost.append([1 - math.exp(5.0 * c) / total - 0.05 * bound[b][p][j] for j, c in enumerate(row)])
        weights = [math.exp(max(row) / 0.1) for row in cosines]
        marginal = [w / sum(weights) for w in weights]
        plan = naive_sinkhorn(cost, marginal, [1 / 5] * 5, 0.1 + 0.05, 200)
        for j in range(5):
            expected = sum(plan[p][j] * cosines[p][j] for p in range(4)) / 0.05
            assert float(local[b, j]) == pytest.approx(expected, abs=1e-4)
            expected = cosine(student.global_embeds[b].tolist(), labels[j].tolist()) / 0.01
            assert float(whole[b, j]) == pytest.approx(expected, abs=1e-3)


def test_without_a_teacher_the_losses_are_of_the_two_streams_of_the_score():
    head = OptimalTransportHead(local_temperature=0.05)
    some, labels = features(), torch.randn(5, features().global_embeds.shape[1])
    whole, local = head.training_logits(some, labels, torch.ones(len(some.global_embeds), 5), None)
    expected = ((whole.softmax(-1) + local.softmax(-1)) / 2).log()
    torch.testing.assert_close(head(some, labels), expected)


def features_of(model, batch):
    """Features of the adapted and of the original tower, as a training step has them."""
    rows = StepRows(batch["labels"], model.stage)
    return model.objective._features(model.model, model.teacher, batch, rows, model.stage)


def test_the_classifier_hands_the_teacher_over_also_without_distillation():
    seen = []

    class Spy(OptimalTransportHead):
        def training_logits(self, features, label_embeds, targets, teacher):
            seen.append(teacher)
            return super().training_logits(features, label_embeds, targets, teacher)

    model = OVMultiLabelClassifier("ovml-demo", labels=["a", "b"], head=Spy(), distillation_weight=0.0)
    size = model.model.image_processor.size
    batch = {"pixel_values": torch.randn(2, 3, size, size), "labels": torch.tensor([[1, 0], [0, 1]])}
    student, teacher = features_of(model, batch)
    assert teacher is not None
    teacher = TeacherFeatures(*teacher, labels := model.model.embed_labels())
    logits = model.objective._logits(model.model, student, labels, batch["labels"], teacher)
    assert len(logits) == 2
    assert seen == [teacher]
    plain = OVMultiLabelClassifier("ovml-demo", labels=["a", "b"], distillation_weight=0.0)
    assert features_of(plain, batch)[1] is None
