"""The project's one table of numerical tolerances, by kind of comparison and dtype.

Kinds:
    exact: same arithmetic in the same order; results must be equal bit by bit.
    reduction: sums and products in another order.
    factorization: results of a QR, SVD or eigenvalue decomposition.
    iteration: results of many rounds with a factorization in each.
    training: parameters after tens of optimizer steps computed in another order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the closed forms use the table without torch
    import torch

RELATIVE: dict[str, dict[str, float]] = {
    "exact": {"float64": 0.0, "float32": 0.0},
    "reduction": {"float64": 1e-13, "float32": 2e-6},
    "factorization": {"float64": 1e-12, "float32": 2e-5},
    "iteration": {"float64": 1e-9, "float32": 1e-3},
    "training": {"float64": 1e-7, "float32": 1e-2},
}

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Relative distance of adjacent numbers in each dtype."""

ROUNDING_UNITS = 8.0
"""Allowed number of roundings of inputs and result for a call in a narrower dtype."""

SPECTRAL_GAP = 0.02
"""Smallest gap between singular values, relative to the largest, for laws about singular vectors:

rounding mixes the vectors of closer ones.
"""

SMALL_STEP = 1e-8
"""Change of the inputs, relative to their norm, for tests of continuity; far above rounding."""

LARGEST_SLOPE = 1e4
"""Largest effect of such a change under a continuous rule: a rotation of singular vectors at the

smallest gap, with room for ill-conditioned factors. A jump has 1e6 of it and more.
"""


def relative(kind: str, dtype: str | torch.dtype = "float64") -> float:
    """Return the largest relative difference (in norm) of two equal results of this kind."""
    return RELATIVE[kind][str(dtype).removeprefix("torch.")]


def narrow_error(dtype: str | torch.dtype, size: float, change: float) -> float:
    """Return the largest error norm of a call in a dtype, relative to the same call in float64.

    A stable computation gives a rounded result of rounded inputs (Higham 2002, Sec. 1.5). Its error
    is a few roundings of the result's size plus the effect of rounding the inputs. That effect is
    measured: it is the conditioning of the case.

    Args:
        dtype: dtype of the call.
        size: norm to which the result's own rounding is relative.
        change: norm of the change of the result in float64 when each entry of the inputs changes by
            `EPS[dtype]` relative to itself, with random sign.
    """
    return ROUNDING_UNITS * (EPS[str(dtype).removeprefix("torch.")] * size + change)
