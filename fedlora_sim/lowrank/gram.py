"""The SVD of a low-rank product from its two Gram matrices: half the work of the QR path.

With `G_B = B^T B = L L^T` (Cholesky) and `G_A = A A^T`, both R x R, the one symmetric
eigenproblem `L^T G_A L = X Lambda X^T` holds everything: the singular values are `sqrt(Lambda)`,

    V = A^T (L X Lambda^{-1/2}),    U = B (G_A L X Lambda^{-1}),

without inverting L. Squaring halves the digits, so the Grams of half- and single-precision factors
are accumulated in float64, where their products of 24-bit numbers are exact; and the result is
trusted only where every wanted singular value stands clear of the rounding of the Gram matrices,
and no singular vector is a small difference of large columns, which `B` and `A` in their own
precision could not hold.

Source: our derivation; for the loss of digits, Golub and Van Loan, Matrix Computations, Sec. 8.6.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk
from torch import Tensor

from fedlora_sim.lowrank.blocks import (
    Blocks,
    project_left,
    project_right,
    ranks_of,
    stack_left,
    stack_right,
)
from fedlora_sim.lowrank.dense import SVD
from fedlora_sim.threads import blas_threads, one_thread
from fedlora_sim.tolerances import relative

# Rows turned to float64 at a time: with some hundred columns they stay in a core's own cache.
ROWS = 1024
# Multiplications from which two threads on one layer gain more than they wait: a tenth of a second.
SHARED_FROM = 4_000_000_000
EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class GramCore:
    """What is left of a product once its long dimensions are summed over, all in float64.

    Args:
        left: coefficients of U in the columns of B, (..., R, r).
        values: singular values, (..., r), descending.
        right: coefficients of V in the rows of A, (..., R, r).
        trusted: whether rounding left every value its digits, boolean (...).
    """

    left: Tensor
    values: Tensor
    right: Tensor
    trusted: Tensor

    def lift(self, blocks: Blocks, dtype: torch.dtype) -> SVD:
        """Singular vectors from coefficients, in the given dtype."""
        u = project_left(blocks, self.left.to(dtype))
        return u, self.values.to(dtype), project_right(blocks, self.right.to(dtype))


def gram_core(blocks: Blocks, weights: Tensor, r: int, dtype: torch.dtype) -> GramCore:
    """Solve the core of `sum_k B_k diag(w_k) A_k` for its leading `r` triplets.

    Args:
        blocks: factors in any floating-point dtype.
        weights: column weights, (..., R).
        r: triplets wanted, at most R.
        dtype: dtype of the result; sets how clear of rounding the values must stand.

    Returns:
        The core; where it is not `trusted`, take the QR path.
    """
    if blocks[0][0].device.type != "cpu":
        grams = _gram(blocks, left=True), _gram(blocks, left=False)
        return _solve(*grams, weights.double(), r, dtype)
    with one_thread() if _is_small(blocks, weights.shape[-1]) else nullcontext():
        grams = _gram(blocks, left=True), _gram(blocks, left=False)
    # Some hundred columns: threads that share one such factorisation mostly wait for each other.
    with one_thread():
        return _solve(*grams, weights.double(), r, dtype)


def _solve(g_b: Tensor, g_a: Tensor, w: Tensor, r: int, dtype: torch.dtype) -> GramCore:
    """The core of two Gram matrices, which are overwritten, and the column weights."""
    # Columns brought to equal norms on both sides: unbalanced pairs are not ill-conditioned ones.
    square_b, square_a = (g.diagonal(dim1=-2, dim2=-1).clone() for g in (g_b, g_a))
    norm_b, norm_a = square_b.sqrt() * w.abs(), square_a.sqrt()
    live = (norm_b > 0) & (norm_a > 0)
    t = torch.where(live, (norm_a / torch.where(live, norm_b, 1.0)).sqrt(), 0.0)
    on_a, on_b = torch.where(live, 1.0 / torch.where(live, t, 1.0), 0.0), w * t
    for g, scale in ((g_b, on_b), (g_a, on_a)):
        g.mul_(scale.unsqueeze(-1)).mul_(scale.unsqueeze(-2))

    diagonal = g_b.diagonal(dim1=-2, dim2=-1)
    shift = EPS * diagonal.sum(-1)
    shift = torch.where(shift > 0, shift, 1.0)
    diagonal += shift.unsqueeze(-1)
    lower, failed = torch.linalg.cholesky_ex(g_b)
    lower = torch.nan_to_num(lower) if bool(failed.any()) else lower
    in_a = g_a @ lower
    values, x = torch.linalg.eigh(lower.mT @ in_a)
    values, x = values[..., -r:].flip(-1), x[..., -r:].flip(-1)

    norms = [torch.linalg.matrix_norm(g) for g in (g_b, g_a)]
    rounding = (shift + 4 * EPS * norms[0]) * norms[1]
    clear = rounding <= relative("factorization", dtype) / 4 * values[..., -1]
    trusted = clear & (failed == 0) & (values[..., -1] > 0)
    safe = torch.where(values > 0, values, 1.0).unsqueeze(-2)
    left = on_b.unsqueeze(-1) * (in_a @ (x / safe))
    right = on_a.unsqueeze(-1) * (lower @ (x / safe.sqrt()))
    summed = torch.maximum(_largest_sum(left, square_b), _largest_sum(right, square_a))
    trusted &= torch.finfo(dtype).eps * summed <= relative("factorization", dtype) / 4
    return GramCore(left, values.clamp_min(0).sqrt(), right, trusted)


def _is_small(blocks: Blocks, columns: int) -> bool:
    """Whether the Gram matrices of one layer are too little work to share between threads."""
    B, A = blocks[0]
    return (B.shape[-2] + A.shape[-1]) * columns**2 < SHARED_FROM


def _largest_sum(coefficients: Tensor, squares: Tensor) -> Tensor:
    """Largest size of what is summed into one singular vector, itself of norm 1: (...)."""
    return (squares.unsqueeze(-1) * coefficients.square()).sum(-2).amax(-1).sqrt()


def _gram(blocks: Blocks, left: bool) -> Tensor:
    """`B^T B` of all columns, or `A A^T` of all rows, (..., R, R) in float64."""
    first = blocks[0][0]
    if first.ndim == 2 and first.device.type == "cpu":
        with blas_threads(torch.get_num_threads()):
            return _symmetric_gram(blocks, left)
    stacked = (stack_left(blocks).mT if left else stack_right(blocks)).double()
    return stacked @ stacked.mT


def _symmetric_gram(blocks: Blocks, left: bool) -> Tensor:
    """One layer on the CPU: BLAS's symmetric update, half the work of a product, row by row."""
    total = sum(ranks_of(blocks))
    axis = 1 if left else 0
    factors = [_as_array(B if left else A) for B, A in blocks]
    length = factors[0].shape[1 - axis]
    gram = np.zeros((total, total), order="F")
    # One buffer for all parts: fresh memory would cost a third of the time in page faults.
    buffer = np.empty((min(ROWS, length), total) if left else (total, min(ROWS, length)))
    for start in range(0, length, ROWS):
        size = min(ROWS, length - start)
        rows = slice(start, start + size)
        part = buffer[:size] if left else buffer[:, :size]
        np.concatenate([f[rows] if left else f[:, rows] for f in factors], axis=axis, out=part)
        gram = dsyrk(1.0, part.T, 1.0, gram, trans=1 - axis, lower=1, overwrite_c=1)
    lower = torch.from_numpy(gram)  # BLAS leaves the other half as it was: zero
    full = lower + lower.mT
    full.diagonal().mul_(0.5)
    return full


def _as_array(x: Tensor) -> NDArray[np.floating]:
    """NumPy knows float16, not bfloat16; both are exact in float32."""
    return (x if x.dtype in (torch.float32, torch.float64) else x.float()).detach().numpy()
