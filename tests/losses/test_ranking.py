import warnings

import pytest
import torch
from deterministic import AsOnAGPU
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ovml.losses import Loss, RankingLoss, ranking_loss


def naive_row(scores, marks, margin=1.0):
    """Sum over all pairs, one by one; the count of violating pairs is a plain number."""
    present = [i for i, mark in enumerate(marks.tolist()) if mark == 1]
    absent = [i for i, mark in enumerate(marks.tolist()) if mark == 0]
    total, count = scores.sum() * 0, 0
    for p in present:
        for n in absent:
            gap = margin + scores[n] - scores[p]
            if gap > 0:
                total = total + gap
                count += 1
    return total / (count + 1e-8)


def naive(logits, targets, margin=1.0):
    rows = [naive_row(s, t, margin) for s, t in zip(logits, targets, strict=True)]
    return torch.stack(rows).mean()


def value_and_gradient(function, logits, *args):
    logits = logits.detach().clone().requires_grad_()
    loss = function(logits, *args)
    loss.backward()
    return loss.detach(), logits.grad


def from_reference(marks):
    """The published code's 1 present, -1 absent, 0 unknown in our convention."""
    return torch.where(marks == 1, 1, torch.where(marks == -1, 0, -1))


def example(batch=6, labels=40, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, labels, generator=generator, dtype=torch.float64).to(dtype)
    return logits, torch.randint(-1, 2, (batch, labels), generator=generator)


@st.composite
def batches(draw, element):
    batch, labels = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    size = batch * labels
    logits = torch.tensor(draw(st.lists(element, min_size=size, max_size=size)), dtype=torch.float32)
    marks = draw(st.lists(st.sampled_from([-1, 0, 1]), min_size=size, max_size=size))
    return logits.view(batch, labels), torch.tensor(marks).view(batch, labels)


quarters = batches(st.integers(-12, 12).map(lambda i: i / 4))
floats = batches(st.floats(-4, 4, width=32))
margins = st.sampled_from([0.0, 0.25, 1.0, 2.5])


@pytest.mark.parametrize("case", range(6))
def test_value_and_gradient_of_the_published_code(golden, case):
    logits, marks = golden[f"rank{case}.logits"], golden[f"rank{case}.labels"]
    loss, grad = value_and_gradient(ranking_loss, logits, from_reference(marks))
    torch.testing.assert_close(loss, golden[f"rank{case}.loss"].squeeze(), atol=1e-5, rtol=0)
    torch.testing.assert_close(grad, golden[f"rank{case}.grad"], atol=1e-5, rtol=0)


@given(quarters, margins)
def test_all_pairs_with_exact_ties_at_the_hinge(batch, margin):
    logits, targets = batch
    loss, grad = value_and_gradient(ranking_loss, logits, targets, margin)
    expected, expected_grad = value_and_gradient(naive, logits, targets, margin)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(grad, expected_grad, atol=1e-6, rtol=1e-6)


@given(floats, margins)
def test_all_pairs_with_floats(batch, margin):
    logits, targets = batch
    gaps = margin + logits.double().unsqueeze(1) - logits.double().unsqueeze(2)
    assume(bool((gaps.abs() > 1e-5).all()))  # nearer to the edge than float32 can tell
    loss, grad = value_and_gradient(ranking_loss, logits, targets, margin)
    expected, expected_grad = value_and_gradient(naive, logits.double(), targets, margin)
    torch.testing.assert_close(loss, expected.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grad, expected_grad.float(), atol=1e-6, rtol=1e-5)


@given(floats, margins)
def test_gradient_of_a_row_sums_to_zero_even_at_the_edge(batch, margin):
    _, grad = value_and_gradient(ranking_loss, *batch, margin)
    assert grad.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(grad.sum(1), torch.zeros(len(grad)), atol=1e-5, rtol=0)


def test_rounding_at_the_edge_counts_a_pair_on_both_sides_or_on_none():
    # -1e-9 - 1 rounds to -1, but -1 + 1 is exactly 0: two comparisons that disagree about one pair.
    _, grad = value_and_gradient(ranking_loss, torch.tensor([[-1e-9, -1.0]]), torch.tensor([[1, 0]]))
    torch.testing.assert_close(grad.sum(), torch.tensor(0.0))
    assert grad.abs().max() <= 1


@given(quarters, st.integers(-8, 8))
def test_a_shift_of_a_row_changes_nothing(batch, shift):
    logits, targets = batch
    loss, grad = value_and_gradient(ranking_loss, logits, targets)
    shifted, shifted_grad = value_and_gradient(ranking_loss, logits + shift / 4, targets)
    torch.testing.assert_close(shifted, loss)
    torch.testing.assert_close(shifted_grad, grad, atol=0, rtol=0)


@given(quarters, st.randoms())
def test_gradient_follows_a_permutation_of_labels(batch, random):
    logits, targets = batch
    order = list(range(logits.shape[1]))
    random.shuffle(order)
    loss, grad = value_and_gradient(ranking_loss, logits, targets)
    permuted, permuted_grad = value_and_gradient(ranking_loss, logits[:, order], targets[:, order])
    torch.testing.assert_close(permuted, loss)
    torch.testing.assert_close(permuted_grad, grad[:, order], atol=0, rtol=0)


@given(quarters, st.sampled_from([-100.0, 0.5, 100.0]))
def test_unknown_labels_take_no_part(batch, elsewhere):
    logits, targets = batch
    unknown = targets == -1
    loss, grad = value_and_gradient(ranking_loss, logits, targets)
    assert (grad[unknown] == 0).all()
    moved, moved_grad = value_and_gradient(ranking_loss, logits.masked_fill(unknown, elsewhere), targets)
    torch.testing.assert_close(moved, loss)
    torch.testing.assert_close(moved_grad, grad, atol=0, rtol=0)


def test_margin():
    logits, targets = torch.tensor([[0.9, 0.4]]), torch.tensor([[1, 0]])
    for margin, expected in ((0.0, 0.0), (0.5, 0.0), (0.75, 0.25), (2.0, 1.5)):
        torch.testing.assert_close(ranking_loss(logits, targets, margin), torch.tensor(expected))
        torch.testing.assert_close(RankingLoss(margin)(logits, targets), torch.tensor(expected))


def test_module_is_the_function():
    logits, targets = example()
    assert isinstance(RankingLoss(), Loss)
    assert RankingLoss().margin == 1.0
    torch.testing.assert_close(RankingLoss()(logits, targets), ranking_loss(logits, targets))


def test_mean_is_over_images_with_zero_for_those_of_one_kind():
    logits, targets = example(batch=3)
    targets[1] = 0
    targets[2] = -1
    torch.testing.assert_close(ranking_loss(logits, targets), ranking_loss(logits[:1], targets[:1]) / 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_of_the_same_values(dtype):
    logits, targets = example(dtype=dtype)
    loss, grad = value_and_gradient(ranking_loss, logits, targets)
    expected, expected_grad = value_and_gradient(ranking_loss, logits.float(), targets)
    assert loss.dtype == torch.float32
    assert grad.dtype == dtype
    torch.testing.assert_close(loss, expected, atol=0, rtol=0)
    torch.testing.assert_close(grad, expected_grad.to(dtype), atol=0, rtol=0)


def test_float16_gradient_stands_a_gradient_scaler():
    logits, targets = example(dtype=torch.float16)
    logits.requires_grad_()
    (ranking_loss(logits, targets) * 2.0**16).backward()
    _, expected = value_and_gradient(ranking_loss, logits.float(), targets)
    assert logits.grad.isfinite().all()
    torch.testing.assert_close(logits.grad.float(), expected * 2.0**16, atol=0, rtol=1e-3)


def test_double_precision():
    logits, targets = example(dtype=torch.float64)
    loss, grad = value_and_gradient(ranking_loss, logits, targets)
    expected, expected_grad = value_and_gradient(naive, logits, targets)
    assert loss.dtype == grad.dtype == torch.float64
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(grad, expected_grad, atol=1e-12, rtol=1e-12)


def test_gradient_of_the_sum_of_hinges_by_finite_differences():
    # Away from the hinge the count stays put, so differences see it as the constant it is.
    logits, targets = example(batch=2, labels=8, dtype=torch.float64)
    assert torch.autograd.gradcheck(ranking_loss, (logits.requires_grad_(), targets), eps=1e-7)


@pytest.mark.parametrize("mark", [0, -1, 1])
def test_one_kind_of_label_alone_gives_zero(mark):
    logits, _ = example()
    loss, grad = value_and_gradient(ranking_loss, logits, torch.full(logits.shape, mark))
    assert loss == 0
    assert (grad == 0).all()


def test_no_violating_pair_gives_zero():
    loss, grad = value_and_gradient(ranking_loss, torch.tensor([[5.0, 0.0, 4.0]]), torch.tensor([[1, 0, 0]]))
    assert loss == 0
    assert (grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64])
def test_integer_kinds_of_targets(dtype):
    logits, targets = example()
    torch.testing.assert_close(ranking_loss(logits, targets.to(dtype)), ranking_loss(logits, targets))


def test_transposed_input_is_fine_and_silent():
    logits, targets = example()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss, grad = value_and_gradient(ranking_loss, logits.T.contiguous().T, targets.T.contiguous().T)
    expected, expected_grad = value_and_gradient(ranking_loss, logits, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_score_shows(value):
    logits = torch.tensor([[value, 0.0, 1.0]])
    assert not ranking_loss(logits, torch.tensor([[0, 0, 1]])).isfinite()


def test_inputs_stay_as_they_are():
    logits, targets = example()
    before = logits.clone(), targets.clone()
    value_and_gradient(ranking_loss, logits, targets)
    assert torch.equal(logits, before[0])
    assert torch.equal(targets, before[1])


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.long), r"\[2, 3\] and \[2, 4\]"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.long), r"\[B, L\]"),
        (torch.zeros(2, 3), torch.zeros(2, 3), "integers"),
        (torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long), "floats"),
        (torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long), "empty"),
        (torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.long), "empty"),
    ],
)
def test_wrong_inputs(logits, targets, message):
    with pytest.raises(ValueError, match=message):
        ranking_loss(logits, targets)


def test_labels_of_open_images():
    logits, _ = example(8, 7186)
    targets = (torch.rand(8, 7186, generator=torch.Generator().manual_seed(1)) < 0.002).long()
    loss, grad = value_and_gradient(ranking_loss, logits, targets)
    assert loss.isfinite()
    row, row_grad = value_and_gradient(naive, logits[:1].double(), targets[:1])
    torch.testing.assert_close(ranking_loss(logits[:1], targets[:1]), row.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grad[:1] * 8, row_grad.float(), atol=1e-6, rtol=1e-4)


class LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else (result,):
            if isinstance(item, torch.Tensor):
                self.elements = max(self.elements, item.untyped_storage().nbytes() // item.element_size())
        return result


def test_no_tensor_of_all_pairs():
    logits, targets = example(2, 60_000)
    logits.requires_grad_()
    with LargestTensor() as largest:
        ranking_loss(logits, targets).backward()
    assert logits.numel() <= largest.elements <= 2 * logits.numel()
    assert logits.grad.isfinite().all()


def test_on_a_gpu_no_sum_is_in_the_order_of_threads_and_nothing_is_waited_for(monkeypatch):
    """Sums of floats by atomic additions are refused there; operations whose size is read from the GPU wait."""
    logits, targets = example()
    grads = []
    for _ in range(2):
        logits = logits.detach().requires_grad_()
        with AsOnAGPU() as spy:
            ranking_loss(logits, targets).backward()
        grads.append(logits.grad)
        monkeypatch.setattr("ovml.losses.ranking._most_present", lambda present: present.shape[1])  # as on a GPU
    assert grads[0].equal(grads[1])
    waiting = ("nonzero", "_local_scalar_dense", "bincount", "masked_select", "unique")
    assert spy.counts["searchsorted"] == 1
    assert not {*waiting} & spy.counts.keys()
