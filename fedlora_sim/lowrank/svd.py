"""`low_rank_svd`: the leading triplets of a low-rank product, by whichever path is right."""

from __future__ import annotations

import torch
from torch import Tensor

from fedlora_sim.errors import check_choice, check_positive_int
from fedlora_sim.lowrank.blocks import Blocks, dense_product
from fedlora_sim.lowrank.dense import SVD, check_svd, fix_signs
from fedlora_sim.lowrank.dtypes import compute_dtype
from fedlora_sim.lowrank.gram import gram_core
from fedlora_sim.lowrank.in_range import at_full_scale, solve_in_range
from fedlora_sim.lowrank.qr import qr_core, qr_svd
from fedlora_sim.threads import map_on_threads

METHODS = ("auto", "gram", "qr", "dense")


def low_rank_svd(B: Tensor, A: Tensor, r: int, method: str = "auto") -> SVD:
    """Leading `r` singular triplets of `B @ A`, which is formed only where that is cheaper.

    Args:
        B: (..., d_out, R).
        A: (..., R, d_in).
        r: triplets wanted; capped at min(R, d_out, d_in).
        method: `auto`, or one path: `gram`, `qr` or `dense` (see `blocks_svd`).

    Returns:
        U (..., d_out, r), S (..., r) in descending order and Vh (..., r, d_in), the sign of each
        pair fixed so that the same product gives the same vectors.

    Raises:
        ValueError: if the method is unknown, or r no whole number of at least 1.
    """
    u, s, vh, m = scaled_svd([(B, A)], B.new_ones(B.shape[-1]), r, method)
    s = at_full_scale(s, m, "largest singular value of the product")
    return u.to(B.dtype), s.to(B.dtype), vh.to(B.dtype)


@torch.no_grad()
def scaled_svd(
    blocks: Blocks, weights: Tensor, r: int, method: str = "auto"
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Leading triplets as of `blocks_svd`, of a product of any size.

    Returns:
        U, S, Vh and m, (...): the singular values are `S * 2**(2 m)`, and the balanced factors
        `U sqrt(S) * 2**m` and `2**m * sqrt(S) Vh`. None stands for m = 0: in the usual range
        nothing is rescaled.
    """
    (u, s, vh), m = solve_in_range(
        blocks,
        weights,
        lambda own, w: blocks_svd(own, w, r, method),
        lambda found: found[1].amax(-1),
    )
    return u, s, vh, m


@torch.no_grad()
def blocks_svd(blocks: Blocks, weights: Tensor, r: int, method: str = "auto") -> SVD:
    """Leading triplets of `sum_k B_k diag(w_k) A_k` in the compute dtype, signs fixed.

    `auto` forms the product where R >= min(d_out, d_in); else it takes the Gram path for inputs
    up to float32, falling back to QR in float64 where rounding would show, layer by layer, and the
    QR path for float64, whose last digits the Gram path would lose.

    Args:
        blocks: pairs `B_k` (..., d_out, r_k), `A_k` (..., r_k, d_in).
        weights: column weights, broadcastable to (..., R).
        r: triplets wanted; capped at min(R, d_out, d_in).
        method: `auto | gram | qr | dense`; a path that is named is taken without a fallback.

    Returns:
        U (..., d_out, r), S (..., r) and Vh (..., r, d_in).
    """
    path, r, dtype = _choose(blocks, weights, r, method)
    if path == "dense":
        dense = dense_product(blocks, weights, dtype)
        u, s, vh = torch.linalg.svd(check_svd(dense), full_matrices=False)
        return fix_signs(u[..., :r], s[..., :r], vh[..., :r, :])
    blocks, weights = _gather(blocks, weights)
    if path == "qr":
        return fix_signs(*qr_svd(blocks, weights, r, dtype))
    return fix_signs(*_gram_svd(blocks, weights, r, dtype, fall_back=path == "auto"))


@torch.no_grad()
def blocks_singular_values(blocks: Blocks, weights: Tensor, r: int, method: str = "auto") -> Tensor:
    """Leading `r` singular values alone, (..., r): from the core, no singular vector is formed.

    Args and paths as for `blocks_svd`.
    """
    path, r, dtype = _choose(blocks, weights, r, method)
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


def _choose(blocks: Blocks, weights: Tensor, r: int, method: str) -> tuple[str, int, torch.dtype]:
    """The path, the triplets that there are, and the compute dtype."""
    limit, dtype, device = _form(*blocks[0])
    total = weights.shape[-1]
    path, r = check_choice("method", method, METHODS), check_positive_int("r", r)
    if path == "auto":
        if total >= limit:
            path = "dense"
        elif dtype == torch.float64 or device.type == "mps":  # MPS has no float64
            path = "qr"
    return path, min(r, total, limit), dtype


def _gather(blocks: Blocks, weights: Tensor) -> tuple[Blocks, Tensor]:
    """All blocks at hand, since the core's paths pass over them more than once, in one batch."""
    held = list(blocks)
    batch = torch.broadcast_shapes(held[0][0].shape[:-2], weights.shape[:-1])
    pairs = [(_expand(B, batch), _expand(A, batch)) for B, A in held]
    return pairs, weights.expand(*batch, -1)


def _form(B: Tensor, A: Tensor) -> tuple[int, torch.dtype, torch.device]:
    """min(d_out, d_in), compute dtype and device, without holding on to the factors."""
    return min(B.shape[-2], A.shape[-1]), compute_dtype(B.dtype), B.device


def _expand(x: Tensor, batch: torch.Size) -> Tensor:
    return x.expand(*batch, *x.shape[-2:])


def _gram_svd(blocks: Blocks, weights: Tensor, r: int, dtype: torch.dtype, fall_back: bool) -> SVD:
    """The Gram path: layers in one batch on a GPU, spread over the threads on a CPU."""
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
    """Solve all layers of a batch at once; those that the Gram path cannot hold again, by QR."""
    core = gram_core(blocks, weights, r, dtype)
    if not fall_back or bool(core.trusted.all()):
        return core.lift(blocks, dtype)
    if not core.trusted.ndim or not bool(core.trusted.any()):
        return _careful_svd(blocks, weights, r, dtype)
    return _mend(core.lift(blocks, dtype), ~core.trusted, blocks, weights, r, dtype)


def _careful_svd(blocks: Blocks, weights: Tensor, r: int, dtype: torch.dtype) -> SVD:
    """QR in float64: what the Gram path declines has lost its digits to cancellation already."""
    u, s, vh = qr_svd(blocks, weights, r, torch.float64)
    return u.to(dtype), s.to(dtype), vh.to(dtype)


def _mend(
    svd: SVD, bad: Tensor, blocks: Blocks, weights: Tensor, r: int, dtype: torch.dtype
) -> SVD:
    """Solve the layers of a batch that the Gram path could not be trusted with again, by QR."""
    again = _careful_svd([(B[bad], A[bad]) for B, A in blocks], weights[bad], r, dtype)
    for whole, part in zip(svd, again, strict=True):
        whole[bad] = part
    return svd
