"""Low-rank products `sum_k B_k diag(w_k) A_k` and their SVDs by Gram, QR or dense computation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk, dtrmm
from torch import Tensor

from fedlora_sim.errors import check_choice, check_positive_int, expected
from fedlora_sim.randomness import normals
from fedlora_sim.runtime import blas_threads, full_precision, map_on_threads, one_thread
from fedlora_sim.tolerances import relative

# Blocks: a low-rank product as one pair of factors per client.
#
# `sum_k B_k diag(w_k) A_k`. The clients' factors are not copied; the column weights are applied in
# the small core, so that no weighted copy of a factor is made.

Blocks = Sequence[tuple[Tensor, Tensor]]
"""Pairs `B_k` (..., d_out, r_k) and `A_k` (..., r_k, d_in) of one dtype and device."""


def ranks_of(blocks: Blocks) -> list[int]:
    """Return the number of columns of each block."""
    return [B.shape[-1] for B, _ in blocks]


def stack_left(blocks: Blocks) -> Tensor:
    """Return all columns next to each other, (..., d_out, R)."""
    return blocks[0][0] if len(blocks) == 1 else torch.cat([B for B, _ in blocks], dim=-1)


def stack_right(blocks: Blocks) -> Tensor:
    """Return all rows below each other, (..., R, d_in)."""
    return blocks[0][1] if len(blocks) == 1 else torch.cat([A for _, A in blocks], dim=-2)


def project_left(blocks: Blocks, coefficients: Tensor) -> Tensor:
    """Return `B C` for coefficients (..., R, r), in their dtype: (..., d_out, r)."""
    parts = coefficients.split(ranks_of(blocks), dim=-2)
    return _sum_of_products([(B.to(c.dtype), c) for (B, _), c in zip(blocks, parts, strict=True)])


def project_right(blocks: Blocks, coefficients: Tensor) -> Tensor:
    """Return `C^T A` for coefficients (..., R, r), in their dtype: (..., r, d_in)."""
    parts = coefficients.split(ranks_of(blocks), dim=-2)
    return _sum_of_products(
        [(c.mT, A.to(c.dtype)) for (_, A), c in zip(blocks, parts, strict=True)]
    )


def dense_product(blocks: Blocks, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `sum_k B_k diag(w_k) A_k`, (..., d_out, d_in), with one block in memory at a time."""
    total, start = None, 0
    for k in range(len(blocks)):  # by index: a loop variable would hold one block too many
        total, start = _add_block(total, blocks[k], weights, start, dtype)
    assert total is not None  # a product has at least one block
    return total


def _add_block(
    total: Tensor | None,
    block: tuple[Tensor, Tensor],
    weights: Tensor,
    start: int,
    dtype: torch.dtype,
) -> tuple[Tensor, int]:
    B, A = block
    end = start + B.shape[-1]
    w = weights[..., start:end].to(dtype)
    return _add_product(total, B.to(dtype) * w.unsqueeze(-2), A.to(dtype)), end


def _sum_of_products(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    total = pairs[0][0] @ pairs[0][1]
    for left, right in pairs[1:]:
        total = _add_product(total, left, right)
    return total


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Return `total + left @ right`, in place if torch has a fused operation."""
    if total is None:
        return left @ right
    if total.ndim == 2:
        return total.addmm_(left, right)
    if total.ndim == left.ndim == right.ndim == 3:
        return total.baddbmm_(left, right)
    return total.add_(left @ right)


# Compute dtype and padding


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the compute dtype: float32 for half precision, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def pad_last(x: Tensor, size: int) -> Tensor:
    """Append zeros to the last dimension up to `size`."""
    return torch.nn.functional.pad(x, (0, size - x.shape[-1]))


# Dense SVD with fixed signs

SVD = tuple[Tensor, Tensor, Tensor]
"""U (..., d_out, r), S (..., r) in descending order and Vh (..., r, d_in)."""


def check_svd(W: Tensor) -> Tensor:
    """Return the matrix if all entries are finite; LAPACK prints its own messages otherwise.

    Raises:
        LinAlgError: if an entry is not finite.
    """
    if not bool(torch.isfinite(torch.linalg.vector_norm(W, float("inf"), (-2, -1))).all()):
        raise torch.linalg.LinAlgError("a matrix with entries that are not finite has no SVD")
    return W


@torch.no_grad()
def sign_fixed_svd(W: Tensor) -> SVD:
    """Return the thin SVD of a dense matrix, with the signs of `low_rank_svd`."""
    u, s, vh = fix_signs(*torch.linalg.svd(W.to(compute_dtype(W.dtype)), full_matrices=False))
    return u.to(W.dtype), s.to(W.dtype), vh.to(W.dtype)


def fix_signs(u: Tensor, s: Tensor, vh: Tensor) -> SVD:
    """Make the entry of largest magnitude of each left singular vector positive, in place.

    An SVD determines each pair (u, v) up to a common sign. Optimizers and noise act on the factors,
    so a sign chosen by the library would make a run depend on the machine.
    """
    # The larger of the two extremes avoids the copy that abs() would make.
    negative = -u.amin(dim=-2, keepdim=True) > u.amax(dim=-2, keepdim=True)
    sign = torch.where(negative, -1.0, 1.0).to(u.dtype)
    return u.mul_(sign), s, vh.mul_(sign.mT)


# Matrices of few directions. Clients that move amplitudes and turn nothing share their directions,
# and their sum has no more of them than one client, however many columns it has.
#
# The range of such a matrix is found by one product with a fixed Gaussian matrix (Halko, Martinsson
# and Tropp 2011, SIAM Review 53(2), Alg. 4.1). The residual outside of it is computed, and is a
# certificate: where it is at the level of rounding, the SVD within the range is as accurate as that
# of the whole matrix. Elsewhere the whole matrix is decomposed.

RANGE_FROM = 32
"""Size of a matrix from which its range is cheaper than its SVD."""
RANGE_ROUNDING = 16.0
"""Rounding errors of the norm of a matrix that its residual may have."""
OVERSAMPLED = 4
"""Columns of the Gaussian matrix beyond the wanted ones, which keep it well conditioned."""


def leading_svd(W: Tensor, r: int) -> SVD:
    """Return the leading `r` triplets of a dense matrix (..., m, n); signs are not fixed.

    Raises:
        LinAlgError: if an entry is not finite.
    """
    check_svd(W)
    columns = r + OVERSAMPLED
    if min(W.shape[-2:]) < max(RANGE_FROM, 3 * columns):
        return _whole_svd(W, r)
    q, _ = torch.linalg.qr(W @ _test_matrix(W.shape[-1], columns, W.dtype, W.device))
    within = q.mT @ W
    residual = torch.linalg.matrix_norm(W - q @ within)
    bound = RANGE_ROUNDING * torch.finfo(W.dtype).eps * torch.linalg.matrix_norm(W)
    lies_within = residual <= bound
    if not bool(lies_within.any()):
        return _whole_svd(W, r)
    q_right, core = torch.linalg.qr(within.mT)
    u, s, vh = _whole_svd(core.mT, r)
    found = (q @ u, s, vh @ q_right.mT)
    if not bool(lies_within.all()):
        for all_of_them, others in zip(found, _whole_svd(W[~lies_within], r), strict=True):
            all_of_them[~lies_within] = others
    return found


def _whole_svd(W: Tensor, r: int) -> SVD:
    u, s, vh = torch.linalg.svd(W, full_matrices=False)
    return u[..., :r], s[..., :r], vh[..., :r, :]


@lru_cache(maxsize=32)
def _test_matrix(n: int, r: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a fixed Gaussian matrix, (n, r)."""
    return normals([0], "range of a matrix", n * r, device).view(n, r).to(dtype).to(device)


# Matrices whose singular vectors are probably known. Clients that move amplitudes and turn nothing
# leave the directions of the last round in place. With orthonormal u and v and `h_i = u_i^T W v_i`,
#
#     ||W - u diag(h) v^T||_F <= a few rounding errors of ||W||_F
#
# is a certificate that u, |h| and v, sorted, are an SVD of W: LAPACK guarantees no smaller error.


@dataclass(frozen=True, eq=False)
class StartingDirections:
    """Directions that are probably the leading singular vectors of a matrix.

    Args:
        u: unit columns, (..., d_out, r).
        v: unit columns, (..., d_in, r).
        gap: distance of both Gram matrices from the identity in the Frobenius norm, (...).
    """

    u: Tensor
    v: Tensor
    gap: Tensor

    @classmethod
    def of(cls, u: Tensor, v: Tensor) -> StartingDirections:
        """Return directions with the test how orthonormal they are."""
        one = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
        gaps = [torch.linalg.vector_norm((x.mT @ x - one).flatten(-2), dim=-1) for x in (u, v)]
        return cls(u, v, torch.maximum(*gaps))

    @property
    def orthonormal(self) -> Tensor:
        """Where the directions are orthonormal up to rounding, boolean (...)."""
        eps, r = torch.finfo(self.u.dtype).eps, self.u.shape[-1]
        return self.gap <= RANGE_ROUNDING * eps * r**0.5

    @property
    def have_values(self) -> Tensor:
        """Where the amplitudes of columns on the directions are singular values, boolean (...).

        A gap of g changes each singular value by at most g relative to itself (Eisenstat and Ipsen
        1995, SIAM J. Numer. Anal. 32, Thm. 3.3), however small it is.
        """
        return self.gap <= relative("factorization", self.u.dtype) / 4

    def sorted(self, values: Tensor) -> SVD:
        """Return the triplets of `u diag(values) v^T`, values (..., r) of either sign."""
        size, order = values.abs().sort(dim=-1, descending=True, stable=True)
        place = order.unsqueeze(-2)
        signed = self.v * torch.where(values < 0, -1.0, 1.0).to(values.dtype).unsqueeze(-2)
        u, v = (x.gather(-1, place.expand_as(x)) for x in (self.u, signed))
        return u, size, v.mT


def svd_near(W: Tensor, near: StartingDirections | None, r: int) -> SVD:
    """Return the leading r triplets of dense matrices; signs are not fixed.

    Args:
        W: (S, d_out, d_in).
        near: r directions for each matrix, to be tested; None for `leading_svd`.
        r: number of triplets.

    Returns:
        U (S, d_out, r), S (S, r) in descending order and Vh (S, r, d_in), as accurate as those of
        `leading_svd` whatever the directions are.

    Raises:
        LinAlgError: if an entry is not finite.
    """
    if near is None:
        return leading_svd(W, r)
    values = (near.u * (W @ near.v)).sum(-2)
    rest = torch.baddbmm(W, near.u * values.unsqueeze(-2), near.v.mT, alpha=-1)
    left, size = (torch.linalg.vector_norm(x.flatten(-2), dim=-1) for x in (rest, W))
    bound = RANGE_ROUNDING * torch.finfo(W.dtype).eps * size
    trusted = near.orthonormal & (left <= bound)  # False for NaN
    found = near.sorted(values)
    if not bool(trusted.all()):
        for whole, part in zip(found, leading_svd(W[~trusted], r), strict=True):
            whole[~trusted] = part
    return found


# Gram path: the SVD of a low-rank product from its two Gram matrices, at half the cost of QR.
#
# With `G_B = B^T B = L L^T` (Cholesky) and `G_A = A A^T`, both R x R, the symmetric eigenproblem
# `L^T G_A L = X Lambda X^T` gives the singular values `sqrt(Lambda)` and
#
#     V = A^T (L X Lambda^{-1/2}), U = B (G_A L X Lambda^{-1}),
#
# without inverting L. Gram matrices halve the number of correct digits. The Gram matrices of half-
# and single-precision factors are therefore accumulated in float64, where the products of 24-bit
# numbers are exact. The result is trusted only if every requested singular value is well above the
# rounding error of the Gram matrices and no singular vector is a small difference of large columns,
# which `B` and `A` could not represent in their own precision.
#
# Source: our derivation; for the loss of digits, Golub and Van Loan, Matrix Computations, Sec. 8.6.

# Rows converted to float64 at a time: with a few hundred columns they fit in a core's own cache.
ROWS = 1024
# Multiplications above which two threads on one layer are faster than one: 0.1 seconds.
SHARED_FROM = 4_000_000_000
EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class GramCore:
    """The small core of a product after summing over its long dimensions, in float64.

    Args:
        left: coefficients of U in the columns of B, (..., R, r).
        values: singular values, (..., r), descending.
        right: coefficients of V in the rows of A, (..., R, r).
        trusted: whether every value is accurate despite rounding, boolean (...).
        is_wide: whether singular vectors may be small differences of large columns, which have to
            be summed in float64.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    trusted: Tensor
    is_wide: bool = False

    def lift(self, blocks: Blocks, dtype: torch.dtype) -> SVD:
        """Return the singular vectors in the given dtype."""
        sums = torch.float64 if self.is_wide else dtype
        u = project_left(blocks, self.left.to(sums))
        v = project_right(blocks, self.right.to(sums))
        return u.to(dtype), self.values.to(dtype), v.to(dtype)


def gram_core(blocks: Blocks, weights: Tensor, r: int, dtype: torch.dtype) -> GramCore:
    """Solve the core of `sum_k B_k diag(w_k) A_k` for its leading `r` triplets.

    Args:
        blocks: factors in any floating-point dtype.
        weights: column weights, (..., R).
        r: number of triplets, at most R.
        dtype: dtype of the result; determines the required accuracy.

    Returns:
        The core; use the QR path where it is not `trusted`.
    """
    if blocks[0][0].device.type != "cpu":
        grams = _gram(blocks, left=True), _gram(blocks, left=False)
        return _solve(*grams, weights.double(), r, dtype)
    with one_thread() if _is_small(blocks, weights.shape[-1]) else nullcontext():
        grams = _gram(blocks, left=True), _gram(blocks, left=False)
    # A few hundred columns: threads that share one such factorization mostly wait for each other.
    with one_thread(), blas_threads(1):
        if weights.ndim > 1:
            return _solve(*grams, weights.double(), r, dtype)
        core = _solve(grams[0].clone(), grams[1].clone(), weights.double(), r, dtype)
        if bool(core.trusted):
            return core
        graded = _graded_core(grams, weights.double(), r, dtype)
        return graded if bool(graded.trusted) else core


def _solve(g_b: Tensor, g_a: Tensor, w: Tensor, r: int, dtype: torch.dtype) -> GramCore:
    """Return the core of two Gram matrices and the column weights; overwrites the matrices."""
    # Scale columns to equal norms on both sides: unbalanced pairs are not ill-conditioned.
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
    values, x = leading_eigenpairs(_congruent(lower, g_a), r)

    norms = [torch.linalg.matrix_norm(g) for g in (g_b, g_a)]
    rounding = (shift + 4 * EPS * norms[0]) * norms[1]
    clear = rounding <= relative("factorization", dtype) / 4 * values[..., -1]
    trusted = clear & (failed == 0) & (values[..., -1] > 0)
    safe = torch.where(values > 0, values, 1.0).unsqueeze(-2)
    across = lower @ x
    left = on_b.unsqueeze(-1) * (g_a @ (across / safe))
    right = on_a.unsqueeze(-1) * (across / safe.sqrt())
    trusted &= _is_liftable(left, square_b, right, square_a, dtype)
    return GramCore(left, values.clamp_min(0).sqrt(), right, trusted)


def _is_liftable(
    left: Tensor, square_b: Tensor, right: Tensor, square_a: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return True where no singular vector is a small difference of large columns, (...)."""
    summed = torch.maximum(_largest_sum(left, square_b), _largest_sum(right, square_a))
    return torch.finfo(dtype).eps * summed <= relative("factorization", dtype) / 4


def _congruent(lower: Tensor, g: Tensor) -> Tensor:
    """Return `L^T G L` for lower triangular L, (..., R, R), and symmetric G."""
    if lower.ndim > 2 or lower.device.type != "cpu":
        return lower.mT @ (g @ lower)
    upper = lower.numpy().T  # row by row in memory, so that BLAS reads the transpose
    half = dtrmm(1.0, upper, g.numpy().T)
    return torch.from_numpy(dtrmm(1.0, upper, half, side=1, trans_a=1, overwrite_b=1))


# Leading eigenpairs of a core, with a certificate.
#
# The sum of the clients' ranks R is often several times the wanted rank r. LAPACK's `dsyevr` finds
# r of R eigenpairs at a third to a half of the cost of all. Its result is checked: let X and
# Lambda be the pairs found, theta the smallest of the values, and delta some roundings of the
# largest.
#
#     ||M X - X Lambda||_F <= delta,  ||X^T X - I||_F <= some roundings,
#     (theta + delta) I - (M - X Lambda X^T) is positive definite (its Cholesky factor exists).
#
# The first line proves that the values are eigenvalues, the second one that no larger one is
# missing, both up to delta. All pairs are computed if one of the three fails.
#
# References: Parlett, The Symmetric Eigenvalue Problem, Secs. 3.3 (inertia) and 11.5 (residuals).

PARTIAL_FROM = 384
"""Size of a core below which all eigenpairs cost no more than some of them and their check."""


def leading_eigenpairs(core: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Return the `r` largest eigenvalues of symmetric matrices, descending, and their vectors.

    Args:
        core: (..., n, n) in float64.
        r: number of pairs, at most n.

    Returns:
        Values (..., r) and orthonormal vectors (..., n, r).
    """
    if core.ndim == 2 and core.device.type == "cpu" and _takes_some(core.shape[-1], r):
        found = _some_eigenpairs(core, r)
        if found is not None and are_leading(core, *found):
            return found
    values, x = torch.linalg.eigh(core)
    return values[..., -r:].flip(-1), x[..., -r:].flip(-1)


def _takes_some(n: int, r: int) -> bool:
    """Return True if r of n eigenpairs are computed alone."""
    return n >= max(PARTIAL_FROM, 3 * r)


def _some_eigenpairs(core: Tensor, r: int) -> tuple[Tensor, Tensor] | None:
    n = len(core)
    if not bool(torch.isfinite(core.sum())):
        return None
    try:
        values, x = scipy.linalg.eigh(
            core.numpy(), subset_by_index=(n - r, n - 1), driver="evr", check_finite=False
        )
    except (np.linalg.LinAlgError, ValueError):
        return None
    if len(values) < r:
        return None
    return torch.from_numpy(values[::-1].copy()), torch.from_numpy(x[:, ::-1].copy())


def are_leading(core: Tensor, values: Tensor, x: Tensor) -> bool:
    """Return True if pairs are proved to be the leading eigenpairs of a matrix, up to rounding.

    Args:
        core: symmetric, (n, n).
        values: (r,), descending.
        x: (n, r).
    """
    n = len(core)
    rounding = 4 * n * EPS
    delta = rounding * float(values[0])
    scaled = x * values
    residual = torch.linalg.matrix_norm(core @ x - scaled)
    apart = torch.linalg.matrix_norm(x.mT @ x - torch.eye(x.shape[-1], dtype=x.dtype))
    if not (float(residual) <= delta and float(apart) <= rounding):  # False for NaN
        return False
    rest = scaled @ x.mT - core
    rest.diagonal().add_(float(values[-1]) + 2 * delta)
    return int(torch.linalg.cholesky_ex(rest)[1]) == 0


# Graded products, as late in a rank collapse, where amplitudes differ by orders of magnitude.
#
# The Gram matrix of columns of unit norm may be well-conditioned where that of the columns is not.
# With `B = Q_B L_B^T D_B` and `A = D_A L_A Q_A^T`, L_B and L_A the Cholesky factors for unit
# columns, the core `K = L_B^T D_B W D_A L_A` has the singular values of the product; sorted by
# amplitude, it is graded, and rounding is relative to the grade. The eigenpairs of `K K^T` are
# taken level by level: those within `LEVEL` of the largest are accurate, and the rest is found
# again after these are removed from K.
#
# References: Demmel and Veselic 1992, "Jacobi's method is more accurate than QR", Sec. 2 (scaled
# condition number); Fukaya et al. 2020 (shifted CholeskyQR).

LEVEL = 1e-7
MOST_LEVELS = 4


def _graded_core(grams: tuple[Tensor, Tensor], w: Tensor, r: int, dtype: torch.dtype) -> GramCore:
    """Return the core of one product whose amplitudes differ by orders of magnitude.

    Args:
        grams: `B^T B` and `A A^T`, (R, R) in float64.
        w: column weights, (R,).
        r: number of triplets, at most R.
        dtype: dtype of the result.

    Returns:
        The core; not trusted if the columns themselves are nearly dependent.
    """
    total = len(w)
    square_b, square_a = (g.diagonal().clone() for g in grams)
    size = square_b.sqrt() * w.abs() * square_a.sqrt()
    order = size.argsort(descending=True, stable=True)
    order = order[size[order] > 0]
    empty = w.new_zeros(total, r)
    none = GramCore(empty, w.new_zeros(r), empty, w.new_zeros(()) > 0)
    if len(order) < r:
        return none
    factors, conditions = [], []
    for g in grams:
        norm = g.diagonal()[order].sqrt()
        unit = g[order][:, order] / norm / norm.unsqueeze(-1)
        unit.diagonal().add_(len(order) * EPS)
        lower, failed = torch.linalg.cholesky_ex(unit)
        if int(failed):
            return none
        inverse = torch.linalg.solve_triangular(
            lower, torch.eye(len(order), dtype=lower.dtype), upper=False
        )
        conditions.append(float(torch.linalg.matrix_norm(unit)) * float(inverse.square().sum()))
        factors.append((lower, inverse, norm))
    (l_b, inverse_b, norm_b), (l_a, inverse_a, norm_a) = factors
    tolerance = relative("factorization", dtype) / 4
    scale = norm_b * w[order] * norm_a
    core = l_b.mT @ (scale.unsqueeze(-1) * l_a)
    found = _by_levels(core, r, tolerance) if max(conditions) * EPS <= tolerance else None
    if found is None:
        return none
    u, values, v = found
    left, right = w.new_zeros(total, r), w.new_zeros(total, r)
    left[order] = inverse_b.mT @ u / norm_b.unsqueeze(-1)
    right[order] = inverse_a.mT @ v / norm_a.unsqueeze(-1)
    summed = torch.maximum(_largest_sum(left, square_b), _largest_sum(right, square_a))
    return GramCore(left, values, right, EPS * summed <= tolerance, is_wide=True)


def _by_levels(core: Tensor, r: int, tolerance: float) -> SVD | None:
    """Return the leading triplets of a matrix in float64, level by level of their size.

    Args:
        core: (m, n), m <= n costs least.
        r: number of triplets.
        tolerance: largest relative error of a value.

    Returns:
        U (m, r), S (r,) and V (n, r); None if rounding is larger.
    """
    noise = 4 * EPS * float(torch.linalg.matrix_norm(core))
    u, s, v = core.new_zeros(core.shape[0], 0), core.new_zeros(0), core.new_zeros(core.shape[1], 0)
    for _ in range(MOST_LEVELS):
        values, x = leading_eigenpairs(core @ core.mT, r - len(s))
        kept = int((values >= LEVEL * values[0]).sum())
        if not kept or not bool(values[0] > 0):
            return None
        values, x = values[:kept].sqrt(), x[:, :kept]
        if not noise <= tolerance * float(values[-1]):
            return None
        across = x.mT @ core
        u, s, v = (
            torch.cat([u, x], -1),
            torch.cat([s, values]),
            torch.cat([v, across.mT / values], -1),
        )
        if len(s) == r:
            is_descending = bool((s.diff() <= tolerance * s[:-1]).all())
            return (u, s.cummin(0).values, v) if is_descending else None
        core = core - x @ across
    return None


def _is_small(blocks: Blocks, columns: int) -> bool:
    """Return True if the Gram matrices of one layer are too small to share between threads."""
    B, A = blocks[0]
    return (B.shape[-2] + A.shape[-1]) * columns**2 < SHARED_FROM


def _largest_sum(coefficients: Tensor, squares: Tensor) -> Tensor:
    """Return the largest magnitude of the terms that add up to a unit singular vector, (...)."""
    return (squares.unsqueeze(-1) * coefficients.square()).sum(-2).amax(-1).sqrt()


def _gram(blocks: Blocks, left: bool) -> Tensor:
    """Return `B^T B` of all columns or `A A^T` of all rows, (..., R, R) in float64."""
    first = blocks[0][0]
    if first.ndim == 2 and first.device.type == "cpu":
        with blas_threads(torch.get_num_threads()):
            return _symmetric_gram(blocks, left)
    stacked = (stack_left(blocks).mT if left else stack_right(blocks)).double()
    return stacked @ stacked.mT


def _symmetric_gram(blocks: Blocks, left: bool) -> Tensor:
    """Return the Gram matrix of one layer on the CPU.

    Uses the symmetric update of BLAS, at half the cost of a product, row by row.
    """
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
    return _mirrored(gram)


def _mirrored(gram: NDArray[np.float64]) -> Tensor:
    """Return the symmetric matrix whose lower half BLAS has written; the other half is zero."""
    lower = torch.from_numpy(gram)
    full = lower + lower.mT
    full.diagonal().mul_(0.5)
    return full


def _as_array(x: Tensor) -> NDArray[np.floating]:
    """Return a NumPy array; NumPy has float16 but not bfloat16, and both are exact in float32."""
    return (x if x.dtype in (torch.float32, torch.float64) else x.float()).detach().numpy()


# QR path: Householder QR of both stacks, then the SVD of their small core


def qr_core(blocks: Blocks, weights: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return Q_B, the core `R_B R_A^T` and Q_A of `B W = Q_B R_B` and `A^T = Q_A R_A`."""
    q_b, r_b = torch.linalg.qr(stack_left(blocks).to(dtype) * weights.to(dtype).unsqueeze(-2))
    q_a, r_a = torch.linalg.qr(stack_right(blocks).to(dtype).mT)
    return q_b, r_b @ r_a.mT, q_a


def qr_svd(blocks: Blocks, weights: Tensor, r: int, dtype: torch.dtype) -> SVD:
    """Return the leading `r` triplets of `B W A`, backward stable for every condition number.

    O((d_out + d_in) R^2), two to three times the work of the Gram path.
    """
    q_b, core, q_a = qr_core(blocks, weights, dtype)
    u, s, vh = leading_svd(core, r)
    return q_b @ u, s, vh @ q_a.mT


# Square path: more columns than min(d_out, d_in). The product itself is formed, in float64, and the
# leading eigenpairs of its smaller Gram matrix give the triplets, as in the Gram path.

COLUMNS = 256
"""Columns multiplied at a time; a product of few columns mostly waits for memory."""


def _is_square_core(blocks: Blocks, r: int, dtype: torch.dtype) -> bool:
    """Return True on the CPU, in single precision, if few triplets are wanted."""
    limit, _, device = _form(*blocks[0])
    return dtype == torch.float32 and device.type == "cpu" and _takes_some(limit, r)


def _square_svd(dense: Tensor, r: int, dtype: torch.dtype) -> SVD:
    """Return the leading triplets of a matrix in float64; by a dense SVD if untrusted."""
    if dense.ndim > 2:
        flat = check_svd(dense).flatten(0, -3)
        parts = map_on_threads(lambda i: _square_svd(flat[i], r, dtype), range(len(flat)))
        u, s, vh = (torch.stack(x).unflatten(0, dense.shape[:-2]) for x in zip(*parts, strict=True))
        return u, s, vh
    check_svd(dense)
    is_tall = dense.shape[0] > dense.shape[1]
    tolerance = relative("factorization", dtype) / 4
    with blas_threads(torch.get_num_threads()):
        found = _by_levels(dense.mT if is_tall else dense, r, tolerance)
    if found is None:
        return leading_svd(dense.to(dtype), r)
    one, s, other = found
    u, v = (other, one) if is_tall else (one, other)
    return u.to(dtype), s.to(dtype), v.mT.to(dtype)


def _product_in_double(blocks: Blocks, weights: Tensor) -> Tensor:
    """Return `sum_k B_k diag(w_k) A_k` in float64, a few blocks at a time."""
    total: Tensor | None = None
    pending: list[tuple[Tensor, Tensor]] = []
    start = width = 0
    for k in range(len(blocks)):  # by index: a loop variable would hold one block too many
        B, A = blocks[k]
        end = start + B.shape[-1]
        w = weights[..., start:end].double().unsqueeze(-2)
        pending.append((B.double() * w, A.double()))
        width, start = width + B.shape[-1], end
        del B, A
        if width >= COLUMNS or k == len(blocks) - 1:
            total = _add_product(total, stack_left(pending), stack_right(pending))
            pending, width = [], 0
    assert total is not None  # a product has at least one block
    return total


# Lazy sequence

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class LazySequence(Sequence[T], Generic[T]):
    """A sequence of `length` items, made by `get(k)` on each access.

    It makes thousands of clients available with only one in memory.

    Args:
        length: number of items.
        get: makes item k, for k from 0 to length - 1.
    """

    length: int
    get: Callable[[int], T]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, k: Any) -> Any:
        indices = range(self.length)[k]  # checks the bounds and resolves negative indices
        if isinstance(k, slice):
            return LazySequence(len(indices), lambda i: self.get(indices[i]))
        return self.get(indices)

    def __iter__(self) -> Iterator[T]:
        """Yield the items in order, without keeping an item while the next one is made."""
        return map(self.get, range(self.length))


# Range: products that overflow their dtype are computed at another scale.
#
# float32 factors with entries of 1e19 have a product of amplitude 1e38. Sums of such products
# overflow, although the balanced factors of the result are representable. Multiplication by a power
# of two is exact and commutes with every step of an SVD or a sum. A product that leaves the safe
# range is therefore multiplied by `2**-(2 m)`, half on either side, and solved; then its factors
# are multiplied by `2**m` each and its singular values by `2**(2 m)`. Products in the safe range
# are not rescaled, and rescaling does not change any bit of a result.

SAFE = {torch.float32: 2.0**38, torch.float64: 2.0**400}
"""Largest amplitude, and inverse of the smallest, at which no sum or square leaves the range.

Beyond 2**39 and 2**457 LAPACK's SVD rescales internally, by factors that are not powers of two.
"""
_NOTHING = -(2**20)  # exponent of zero: below all others


def exponent(x: Tensor) -> Tensor:
    """Return the e with `2**(e-1) <= |x| < 2**e`, int64; a very small number for zero."""
    _, e = torch.frexp(x.double() if x.device.type != "mps" else x)
    return torch.where(x == 0, _NOTHING, e.long())


def times_power(x: Tensor, e: Tensor) -> Tensor:
    """Return `x * 2**e`, exact unless the result leaves the range; e broadcasts against x."""
    half = torch.div(e, 2, rounding_mode="floor")
    two = torch.tensor(2.0, dtype=torch.float64 if x.device.type != "mps" else torch.float32)
    first, second = (torch.pow(two.to(x.device), part).to(x.dtype) for part in (half, e - half))
    return x * first * second


def largest(x: Tensor) -> Tensor:
    """Return the largest `|x|` of each matrix, (...); NaN if an entry is NaN."""
    return torch.linalg.vector_norm(x, float("inf"), (-2, -1))


def is_safe(amplitude: Tensor, dtype: torch.dtype) -> bool:
    """Return True if amplitudes are far enough from the limits of the dtype to be accurate."""
    limit = SAFE[dtype]
    return bool(((amplitude <= limit) & (amplitude >= 1 / limit)).all())  # False for NaN


@full_precision()
def solve_in_range(
    blocks: Blocks,
    weights: Tensor,
    solve: Callable[[Blocks, Tensor], T],
    amplitude_of: Callable[[T], Tensor],
) -> tuple[T, Tensor | None]:
    """Solve a product, at another scale if it leaves the safe range.

    Args:
        blocks: pairs `B_k` (..., d_out, r_k), `A_k` (..., r_k, d_in).
        weights: column weights, (..., R).
        solve: function of blocks and weights.
        amplitude_of: largest amplitude of a result, (...), to check whether it stayed in range.

    Returns:
        The result at scale `2**-(2 m)`, and m, (...); None for m = 0.
    """
    dtype = compute_dtype(blocks[0][0].dtype)
    found = None
    try:
        found = solve(blocks, weights)
        if is_safe(amplitude_of(found), dtype):
            return found, None
    except torch.linalg.LinAlgError:  # infinity and NaN have no SVD
        pass
    own = _exponents(blocks, weights)
    live = own > _NOTHING // 2
    m = torch.where(live, torch.div(own, 2, rounding_mode="floor"), 0)
    if found is not None and not bool(m.any()):  # zero, or in range
        return found, None
    of_weights = exponent(weights).amax(-1)
    of_weights = torch.where(of_weights > _NOTHING // 2, of_weights, 0)
    to_b, to_a = (e[..., None, None] for e in (of_weights - m, -m))

    def scaled(k: int) -> tuple[Tensor, Tensor]:
        B, A = blocks[k]
        return times_power(B.to(dtype), to_b), times_power(A.to(dtype), to_a)

    within = LazySequence(len(blocks), scaled)
    return solve(within, times_power(weights, -of_weights.unsqueeze(-1))), m


def at_full_scale(values: Tensor, m: Tensor | None, what: str) -> Tensor:
    """Return scaled amplitudes at full scale, `values * 2**(2 m)`, m broadcast from the left.

    Raises:
        InputError: if they overflow the dtype.
    """
    if m is None:
        return values
    found = times_power(values, 2 * m.reshape(m.shape + (1,) * (values.ndim - m.ndim)))
    if not bool(torch.isfinite(found).all()):
        largest = float(exponent(values).amax() + 2 * m.amax())
        limit = torch.finfo(values.dtype).max
        raise expected(what, f"about 2**{largest:.0f}", f"at most {limit:.2g}, for {values.dtype}")
    return found


def _exponents(blocks: Blocks, weights: Tensor) -> Tensor:
    """Return the exponent of the largest column `|b| |w| |a|` of a product, (...)."""
    largest, start = None, 0
    for k in range(len(blocks)):  # by index: a loop variable would hold one block too many
        B, A = blocks[k]
        end = start + B.shape[-1]
        columns = [B.abs().amax(-2), weights[..., start:end], A.abs().amax(-1)]
        e = sum(exponent(x) for x in columns)
        own = torch.as_tensor(e).clamp_min(_NOTHING).amax(-1)
        largest = own if largest is None else torch.maximum(largest, own)
        start = end
        del B, A, columns
    assert largest is not None  # a product has at least one block
    return largest


# `low_rank_svd` and `blocks_svd`: the leading triplets by the most suitable path

METHODS = ("auto", "gram", "qr", "dense")


def low_rank_svd(B: Tensor, A: Tensor, r: int, method: str = "auto") -> SVD:
    """Return the leading `r` singular triplets of `B @ A`.

    The product is formed only if that is cheaper.

    Args:
        B: (..., d_out, R).
        A: (..., R, d_in).
        r: number of triplets; capped at min(R, d_out, d_in).
        method: `auto`, or one path: `gram`, `qr` or `dense` (see `blocks_svd`).

    Returns:
        U (..., d_out, r), S (..., r) in descending order and Vh (..., r, d_in). The sign of each
        pair is fixed, so that equal products give equal vectors.

    Raises:
        InputError: if the method is unknown, or r is not a whole number of at least 1.
    """
    u, s, vh, m = scaled_svd([(B, A)], B.new_ones(B.shape[-1]), r, method)
    s = at_full_scale(s, m, "largest singular value of the product")
    return u.to(B.dtype), s.to(B.dtype), vh.to(B.dtype)


@torch.no_grad()
def scaled_svd(
    blocks: Blocks,
    weights: Tensor,
    r: int,
    method: str = "auto",
    near: StartingDirections | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the leading triplets of a product of any size, as `blocks_svd`.

    Returns:
        U, S, Vh and m, (...): the singular values are `S * 2**(2 m)`, and the balanced factors
        `U sqrt(S) * 2**m` and `2**m * sqrt(S) Vh`. None means m = 0: nothing is rescaled in the
        usual range.
    """
    (u, s, vh), m = solve_in_range(
        blocks,
        weights,
        lambda own, w: blocks_svd(own, w, r, method, near),
        lambda found: found[1].amax(-1),
    )
    return u, s, vh, m


@torch.no_grad()
def blocks_svd(
    blocks: Blocks,
    weights: Tensor,
    r: int,
    method: str = "auto",
    near: StartingDirections | None = None,
) -> SVD:
    """Return leading triplets of `sum_k B_k diag(w_k) A_k` in the compute dtype, with fixed signs.

    `auto` forms the product if R >= min(d_out, d_in); for inputs up to float32, it takes the
    leading eigenpairs of its Gram matrix where they cost less than an SVD. Otherwise it takes the
    Gram path for inputs up to float32, with a fallback to QR in float64 for layers where rounding
    would be visible, and the QR path for float64, because the Gram path would lose the last
    digits.

    Args:
        blocks: pairs `B_k` (..., d_out, r_k), `A_k` (..., r_k, d_in).
        weights: column weights, broadcastable to (..., R).
        r: number of triplets; capped at min(R, d_out, d_in).
        method: `auto | gram | qr | dense`; a named path is taken without a fallback.
        near: r directions that are probably close to the singular vectors. `auto` starts from them
            where the product is not much larger than the factors.

    Returns:
        U (..., d_out, r), S (..., r) and Vh (..., r, d_in).
    """
    path, r, dtype = _choose(blocks, weights, r, method)
    if near is not None and method == "auto" and _fits(near, blocks, weights, r):
        return fix_signs(*svd_near(dense_product(blocks, weights, dtype), near, r))
    if path == "dense":
        if method == "auto" and _is_square_core(blocks, r, dtype):
            return fix_signs(*_square_svd(_product_in_double(blocks, weights), r, dtype))
        return fix_signs(*leading_svd(dense_product(blocks, weights, dtype), r))
    blocks, weights = _gather(blocks, weights)
    if path == "qr":
        return fix_signs(*qr_svd(blocks, weights, r, dtype))
    return fix_signs(*_gram_svd(blocks, weights, r, dtype, fall_back=path == "auto"))


@torch.no_grad()
def blocks_singular_values(blocks: Blocks, weights: Tensor, r: int, method: str = "auto") -> Tensor:
    """Return the leading `r` singular values, (..., r), without forming singular vectors.

    Arguments and paths as for `blocks_svd`.
    """
    path, r, dtype = _choose(blocks, weights, r, method)
    if method == "auto" and len(blocks) == 1 and dtype == torch.float64:
        norms, are_values = _column_norms(blocks[0], weights)
        found = norms.sort(descending=True).values[..., :r]
        if bool(are_values.all()):
            return found
        if bool(are_values.any()):
            ((B, A),), others = _gather(blocks, weights)[0], ~are_values
            rest = [(B[others], A[others])]
            found[others] = _solved_values(
                rest, weights.expand(norms.shape)[others], r, path, dtype
            )
            return found
    return _solved_values(blocks, weights, r, path, dtype)


def _solved_values(
    blocks: Blocks, weights: Tensor, r: int, path: str, dtype: torch.dtype
) -> Tensor:
    if path == "dense":
        return torch.linalg.svdvals(check_svd(dense_product(blocks, weights, dtype)))[..., :r]
    blocks, weights = _gather(blocks, weights)
    if path != "qr":
        core = gram_core(blocks, weights, r, dtype)
        if path == "gram" or bool(core.trusted.all()):
            return core.values.to(dtype)
    careful = dtype if path == "qr" else torch.float64
    core_matrix = check_svd(qr_core(blocks, weights, careful)[1])
    return torch.linalg.svdvals(core_matrix)[..., :r].to(dtype)


def _column_norms(block: tuple[Tensor, Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return `|b_i| |w_i| |a_i|`, (..., R), and whether these are the singular values, (...).

    They are if the columns of B and the rows of A are orthogonal, as those of an SVD are. Cosines
    at the level of rounding change a value by as much relative to itself.
    """
    B, A = block
    norms, rounding = [], 16 * torch.finfo(B.dtype).eps
    orthogonal = torch.ones((), dtype=torch.bool, device=B.device)
    for columns in (B, A.mT):
        norm = torch.linalg.vector_norm(columns, dim=-2)
        unit = columns / torch.where(norm > 0, norm, 1.0).unsqueeze(-2)
        cosines = unit.mT @ unit
        off = cosines - torch.diag_embed(cosines.diagonal(dim1=-2, dim2=-1))
        orthogonal = orthogonal & (off.abs().amax((-2, -1)) <= rounding)
        norms.append(norm)
    return norms[0] * weights.abs() * norms[1], orthogonal


def _choose(blocks: Blocks, weights: Tensor, r: int, method: str) -> tuple[str, int, torch.dtype]:
    """Return the path, the number of triplets and the compute dtype."""
    limit, dtype, device = _form(*blocks[0])
    total = weights.shape[-1]
    path, r = check_choice("method", method, METHODS), check_positive_int("r", r)
    if path == "auto":
        if total >= limit:
            path = "dense"
        elif dtype == torch.float64 or device.type == "mps":  # MPS has no float64
            path = "qr"
    return path, min(r, total, limit), dtype


def _fits(near: StartingDirections, blocks: Blocks, weights: Tensor, r: int) -> bool:
    """Return True if a product can start from directions, at a lower cost than without."""
    B, A = blocks[0]
    return near.u.shape[-1] == r and 2 * weights.shape[-1] >= min(B.shape[-2], A.shape[-1])


def _gather(blocks: Blocks, weights: Tensor) -> tuple[Blocks, Tensor]:
    """Return all blocks in memory and in one batch, because the core reads them more than once."""
    held = list(blocks)
    batch = torch.broadcast_shapes(held[0][0].shape[:-2], weights.shape[:-1])
    pairs = [(_expand(B, batch), _expand(A, batch)) for B, A in held]
    return pairs, weights.expand(*batch, -1)


def _form(B: Tensor, A: Tensor) -> tuple[int, torch.dtype, torch.device]:
    """Return min(d_out, d_in), compute dtype and device, keeping no reference to the factors."""
    return min(B.shape[-2], A.shape[-1]), compute_dtype(B.dtype), B.device


def _expand(x: Tensor, batch: torch.Size) -> Tensor:
    return x.expand(*batch, *x.shape[-2:])


def _gram_svd(blocks: Blocks, weights: Tensor, r: int, dtype: torch.dtype, fall_back: bool) -> SVD:
    """Return the SVD by the Gram path: one batch on a GPU, layers spread over threads on a CPU."""
    batch, device = blocks[0][0].shape[:-2], blocks[0][0].device.type
    if not batch or device != "cpu":
        return _gram_svd_together(blocks, weights, r, dtype, fall_back)
    flat = [(B.flatten(0, -3), A.flatten(0, -3)) for B, A in blocks]
    flat_weights = weights.reshape(-1, weights.shape[-1])

    def solve(i: int) -> SVD:
        layer = [(B[i], A[i]) for B, A in flat]
        return _gram_svd(layer, flat_weights[i], r, dtype, fall_back)

    parts = map_on_threads(solve, range(len(flat_weights)))
    u, s, vh = (torch.stack(x).unflatten(0, batch) for x in zip(*parts, strict=True))
    return u, s, vh


def _gram_svd_together(
    blocks: Blocks, weights: Tensor, r: int, dtype: torch.dtype, fall_back: bool
) -> SVD:
    """Solve all layers of a batch at once; repeat those that the Gram path cannot resolve by QR."""
    core = gram_core(blocks, weights, r, dtype)
    if not fall_back or bool(core.trusted.all()):
        return core.lift(blocks, dtype)
    if not core.trusted.ndim or not bool(core.trusted.any()):
        return _careful_svd(blocks, weights, r, dtype)
    return _mend(core.lift(blocks, dtype), ~core.trusted, blocks, weights, r, dtype)


def _careful_svd(blocks: Blocks, weights: Tensor, r: int, dtype: torch.dtype) -> SVD:
    """Return the SVD by QR in float64.

    Products that the Gram path declines have already lost digits to cancellation.
    """
    u, s, vh = qr_svd(blocks, weights, r, torch.float64)
    return u.to(dtype), s.to(dtype), vh.to(dtype)


def _mend(
    svd: SVD, bad: Tensor, blocks: Blocks, weights: Tensor, r: int, dtype: torch.dtype
) -> SVD:
    """Solve the layers that the Gram path could not resolve again by QR."""
    again = _careful_svd([(B[bad], A[bad]) for B, A in blocks], weights[bad], r, dtype)
    for whole, part in zip(svd, again, strict=True):
        whole[bad] = part
    return svd


# `LowRankProduct`: a lazy weighted sum of low-rank products


@dataclass(frozen=True, eq=False)
class LowRankProduct:
    """`sum_k B_k diag(w_k) A_k` in blocks; its rank may exceed min(d_out, d_in).

    Args:
        blocks: pairs `B_k` (..., d_out, r_k), `A_k` (..., r_k, d_in); any sequence, including one
            that loads a pair when it is indexed.
        weights: weight of each column, (..., R) or (R,), R the sum of the r_k.
        near: directions from which an SVD may start, for one batch dimension.
    """

    blocks: Blocks
    weights: Tensor
    near: StartingDirections | None = None

    @property
    def columns(self) -> int:
        """Number of columns R of all blocks together, an upper bound of the rank."""
        return self.weights.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype of the product."""
        return compute_dtype(self.blocks[0][0].dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the product, (d_out, d_in)."""
        return self.blocks[0][0].shape[-2], self.blocks[0][1].shape[-1]

    @property
    def B(self) -> Tensor:
        """All weighted columns next to each other, (..., d_out, R)."""
        return stack_left(self.blocks).to(self.dtype) * self.weights.to(self.dtype).unsqueeze(-2)

    @property
    def A(self) -> Tensor:
        """All rows below each other, (..., R, d_in)."""
        return stack_right(self.blocks).to(self.dtype)

    def plus(self, B: Tensor, A: Tensor, weights: Tensor) -> LowRankProduct:
        """Return the sum of this product and `B diag(weights) A`.

        Args:
            B: (..., d_out, q).
            A: (..., q, d_in).
            weights: (..., q) or (q,).
        """
        batch = torch.broadcast_shapes(self.weights.shape[:-1], weights.shape[:-1])
        both = (w.to(self.weights.dtype).expand(*batch, -1) for w in (self.weights, weights))
        own, count = self.blocks, len(self.blocks)
        blocks = LazySequence(count + 1, lambda k: own[k] if k < count else (B, A))
        return LowRankProduct(blocks, torch.cat(list(both), dim=-1), self.near)

    def at(self, i: int) -> LowRankProduct:
        """Return the i-th product of a batch."""
        batch = self.blocks[0][0].shape[:-2]
        blocks = [(B[i], A[i]) for B, A in self.blocks]
        return LowRankProduct(blocks, self.weights.expand(*batch, -1)[i])

    @torch.no_grad()
    def dense(self) -> Tensor:
        """Return the dense product, (..., d_out, d_in), summed block by block.

        Raises:
            InputError: if an entry overflows the dtype.
        """
        found, m = solve_in_range(
            self.blocks,
            self.weights,
            lambda blocks, weights: dense_product(blocks, weights, self.dtype),
            largest,
        )
        return at_full_scale(found, m, "largest entry of the product")

    def svd(self, r: int | None = None, method: str = "auto") -> SVD:
        """Return U, S and Vh of the leading `r` triplets (all when None); see `blocks_svd`.

        Raises:
            InputError: if a singular value overflows the dtype; `scaled_svd` returns the factors
                even then.
        """
        u, s, vh, m = self.scaled_svd(r, method)
        return u, at_full_scale(s, m, "largest singular value of the product"), vh

    def scaled_svd(
        self, r: int | None = None, method: str = "auto"
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the triplets and the power of two by which to multiply S; see `scaled_svd`."""
        return scaled_svd(self.blocks, self.weights, self._wanted(r), method, self.near)

    def singular_values(self, r: int | None = None, method: str = "auto") -> Tensor:
        """Return the leading `r` singular values, (..., r), from the core; cheaper than `svd`.

        Raises:
            InputError: if one overflows the dtype.
        """
        values, m = self._singular_values(r, method)
        return at_full_scale(values, m, "largest singular value of the product")

    def amplitudes(self, r: int | None = None) -> Tensor:
        """Return the leading `r` singular values in float64, which holds those of any float32."""
        values, m = self._singular_values(r, "auto")
        return at_full_scale(values.double(), m, "largest singular value of the product")

    @torch.no_grad()
    def _singular_values(self, r: int | None, method: str) -> tuple[Tensor, Tensor | None]:
        return solve_in_range(
            self.blocks,
            self.weights,
            lambda own, w: blocks_singular_values(own, w, self._wanted(r), method),
            lambda values: values.amax(-1),
        )

    def _wanted(self, r: int | None) -> int:
        return min(self.columns, *self.shape) if r is None else r
