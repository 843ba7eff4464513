"""Entropic optimal transport by Sinkhorn's algorithm."""

from __future__ import annotations

import torch
from torch import Tensor

from ovml.utils.errors import UserError, check_positive
from ovml.utils.tensors import full_precision


@torch.no_grad()
def sinkhorn(
    cost: Tensor,
    row_marginal: Tensor,
    column_marginal: Tensor,
    epsilon: float = 0.1,
    iterations: int = 100,
    tolerance: float = 1e-4,
) -> Tensor:
    r"""Compute the transport plan of entropy-regularised optimal transport (Cuturi, NeurIPS 2013, arXiv 1306.0895).

    `T = argmin_{T >= 0} <T, C> - epsilon * H(T)` with row sums `a` and column sums `b`. The plan has the form
    `T = exp(u + v - C / epsilon)`. The iterations fit `u` to the rows and `v` to the columns in turn, as logarithms,
    so a small epsilon does not underflow.

    Each plan of a batch stops on its own, so it does not depend on the rest of the batch. No gradient flows through
    the plan.

    Args:
        cost: `[..., P, L]`.
        row_marginal: `[..., P]`, not negative.
        column_marginal: `[..., L]`, not negative, with the same sum as `row_marginal`.
        epsilon: Weight of the entropy. As it goes to 0, the plan approaches that of minimum cost and needs more
            iterations; as it goes to infinity, the plan approaches `a b^T / sum(a)`.
        iterations: Maximum number of updates of rows and columns.
        tolerance: A plan stops when the L1 distance of its row sums from `row_marginal`, divided by the sum of the
            marginal, is at most this value. Column sums are always exact.

    Returns:
        The plan `[..., P, L]` in the dtype of `cost`, computed in float32 or wider.

    Raises:
        UserError: Shapes do not fit, or an argument is out of its range.

    Example:
        >>> plan = sinkhorn(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.full((2,), 0.5), torch.full((2,), 0.5), 0.01)
        >>> [[round(share, 3) for share in row] for row in plan.tolist()]
        [[0.5, 0.0], [0.0, 0.5]]
    """
    _check(cost, row_marginal, column_marginal, epsilon, iterations, tolerance)
    kernel = -full_precision(cost) / epsilon
    rows, columns = row_marginal.to(kernel.dtype), column_marginal.to(kernel.dtype)
    log_rows, log_columns = rows.log(), columns.log()
    total = rows.sum(dim=-1)

    u = log_rows - kernel.logsumexp(dim=-1)
    v = log_columns - (kernel + u.unsqueeze(-1)).logsumexp(dim=-2)
    for _ in range(iterations - 1):
        new_u = log_rows - (kernel + v.unsqueeze(-2)).logsumexp(dim=-1)
        # The plan's row sums are `a * exp(u - new_u)`; for rows without mass this would be nan.
        error = (rows * (u - new_u).expm1().abs()).masked_fill(rows == 0, 0).sum(dim=-1)
        finished = (error <= tolerance * total).unsqueeze(-1)
        # A traced graph cannot branch on values; the remaining iterations then change nothing.
        if not torch.compiler.is_compiling() and bool(finished.all()):
            break
        u = torch.where(finished, u, new_u)
        v = torch.where(finished, v, log_columns - (kernel + u.unsqueeze(-1)).logsumexp(dim=-2))
    plan: Tensor = (kernel + u.unsqueeze(-1) + v.unsqueeze(-2)).exp()
    return plan.to(cost.dtype)


@torch.no_grad()
def batch_sinkhorn(
    cost: Tensor,
    row_marginal: Tensor,
    column_marginal: Tensor,
    epsilon: float = 0.1,
    iterations: int = 100,
    tolerance: float = 1e-3,
) -> Tensor:
    r"""Compute the transport plans of a batch as the published code of RAM (CVPR 2025) does, which all stop together.

    With `K = exp(-C / epsilon)` and `r = c = 1`, repeat `r = a / (K c)`, `c = b / (K^T r)`; then `T = r c K`. The
    iterations end when the mean change of `r` over the rows is below `tolerance` for every plan of the batch, so a plan
    depends on those it is computed with. `sinkhorn` is stricter, independent of the batch, and works for small epsilon,
    where `K` underflows: with costs up to 1, below about 0.02.

    Args:
        cost: `[B, P, L]`.
        row_marginal: `[B, P]`, not negative.
        column_marginal: `[B, L]`, not negative, with the same sum as `row_marginal`.
        epsilon: Weight of the entropy.
        iterations: Maximum number of updates of rows and columns.
        tolerance: Mean change of `r` below which a plan is done.

    Returns:
        The plans `[B, P, L]`, in the dtype of `cost`. Column sums are exact, row sums are not.

    Raises:
        UserError: Shapes do not fit, or an argument is out of its range.

    Example:
        >>> plan = batch_sinkhorn(torch.rand(2, 3, 4), torch.full((2, 3), 1 / 3), torch.full((2, 4), 1 / 4))
        >>> plan.sum(dim=1).allclose(torch.full((2, 4), 1 / 4))
        True
    """
    _check(cost, row_marginal, column_marginal, epsilon, iterations, tolerance)
    kernel = (-full_precision(cost) / epsilon).exp()
    rows, columns = row_marginal.to(kernel.dtype).unsqueeze(-1), column_marginal.to(kernel.dtype).unsqueeze(-1)
    r, c = torch.ones_like(rows), torch.ones_like(columns)
    finished = torch.zeros((), dtype=torch.bool, device=cost.device)
    for _ in range(iterations):
        new_r = rows / (kernel @ c)
        new_c = columns / (kernel.transpose(-2, -1) @ new_r)
        change = (new_r - r).abs().mean(dim=(-2, -1))
        r, c = torch.where(finished, r, new_r), torch.where(finished, c, new_c)
        finished = finished | (change < tolerance).all()
        # A traced graph cannot branch on values; the remaining iterations then change nothing.
        if not torch.compiler.is_compiling() and bool(finished):
            break
    return (r * c.transpose(-2, -1) * kernel).to(cost.dtype)


def _check(cost: Tensor, rows: Tensor, columns: Tensor, epsilon: float, iterations: int, tolerance: float) -> None:
    if cost.ndim < 2 or rows.shape != cost.shape[:-1] or columns.shape != (*cost.shape[:-2], cost.shape[-1]):
        raise UserError(
            "sinkhorn: cost [..., P, L], row_marginal [..., P] and column_marginal [..., L] must go together; got "
            f"{list(cost.shape)}, {list(rows.shape)} and {list(columns.shape)}"
        )
    check_positive("sinkhorn", epsilon=epsilon)
    if iterations < 1:
        raise UserError(f"sinkhorn: iterations must be at least 1; got {iterations}")
    if not tolerance >= 0:
        raise UserError(f"sinkhorn: tolerance must not be negative; got {tolerance}")
