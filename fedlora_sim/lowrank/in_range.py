"""Products outside the range of their dtype: computed at another scale, and put back exactly.

A float32 holds entries of 1e19, and their product's amplitude has 38 digits: sums of it overflow,
though the balanced factors of the result are numbers like any others. Multiplying by a power of
two is exact, and every step of an SVD or a sum commutes with it. So a product that leaves the safe
range is multiplied by `2**-(2 m)`, half of it on either side, solved, and put back: its factors by
`2**m` each, its singular values by `2**(2 m)`. Nothing is rescaled that stayed in range, and what
is rescaled has the bits that it would have without limits of the range.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from fedlora_sim.errors import expected
from fedlora_sim.lazy import LazySequence
from fedlora_sim.lowrank.blocks import Blocks
from fedlora_sim.lowrank.dtypes import compute_dtype

SAFE = {torch.float32: 2.0**38, torch.float64: 2.0**400}
"""Largest amplitude, and one over the smallest, at which no sum or square leaves the range.

Beyond 2**39 and 2**457 LAPACK's SVD rescales by itself, by other numbers than powers of two.
"""
_NOTHING = -(2**20)  # exponent of zero, below all others

T = TypeVar("T")


def exponent(x: Tensor) -> Tensor:
    """The e with `2**(e-1) <= |x| < 2**e`, int64; far below all others for zero."""
    _, e = torch.frexp(x.double() if x.device.type != "mps" else x)
    return torch.where(x == 0, _NOTHING, e.long())


def times_power(x: Tensor, e: Tensor) -> Tensor:
    """`x * 2**e`, exact unless the result leaves the range; e broadcasts against x."""
    half = torch.div(e, 2, rounding_mode="floor")
    two = torch.tensor(2.0, dtype=torch.float64 if x.device.type != "mps" else torch.float32)
    first, second = (torch.pow(two.to(x.device), part).to(x.dtype) for part in (half, e - half))
    return x * first * second


def largest(x: Tensor) -> Tensor:
    """The largest `|x|` of each matrix, (...); NaN if there is one."""
    return torch.linalg.vector_norm(x, float("inf"), (-2, -1))


def is_safe(amplitude: Tensor, dtype: torch.dtype) -> bool:
    """Whether amplitudes are so far from the limits of the dtype that nothing got lost."""
    limit = SAFE[dtype]
    return bool(((amplitude <= limit) & (amplitude >= 1 / limit)).all())  # NaN is not


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
        solve: what is computed of blocks and weights.
        amplitude_of: largest amplitude of a result, (...), to tell whether it stayed in range.

    Returns:
        The result, and the m, (...), of the scale `2**-(2 m)` at which it is; None for 1.
    """
    dtype = compute_dtype(blocks[0][0].dtype)
    found = None
    try:
        found = solve(blocks, weights)
        if is_safe(amplitude_of(found), dtype):
            return found, None
    except torch.linalg.LinAlgError:  # infinities and NaN have no SVD
        pass
    own = _exponents(blocks, weights)
    live = own > _NOTHING // 2
    m = torch.where(live, torch.div(own, 2, rounding_mode="floor"), 0)
    if found is not None and not bool(m.any()):  # zero, or as large as it looks
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
    """Amplitudes put back, `values * 2**(2 m)`, m broadcast from the left.

    Raises:
        InputError: if the dtype does not hold them.
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
    """Exponent of the largest column `|b| |w| |a|` of a product, (...)."""
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
