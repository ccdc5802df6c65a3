"""The project's one table of numerical tolerances, by kind of comparison and dtype.

Kinds:
    exact: same arithmetic in the same order; only bit-equality is allowed to pass.
    reduction: sums and products in another order.
    factorization: results that went through a QR, SVD or eigenvalue problem.
    iteration: results of many rounds, each of which went through a factorization.
    training: parameters after tens of optimiser steps computed in another order.
    dtype: the same call in a narrower dtype and in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the closed forms need the table and no torch
    import torch

RELATIVE: dict[str, dict[str, float]] = {
    "exact": {"float64": 0.0, "float32": 0.0},
    "reduction": {"float64": 1e-13, "float32": 2e-6},
    "factorization": {"float64": 1e-12, "float32": 2e-5},
    "iteration": {"float64": 1e-9, "float32": 1e-3},
    "training": {"float64": 1e-7, "float32": 1e-2},
    "dtype": {"float64": 0.0, "float32": 1e-4, "float16": 4e-3, "bfloat16": 3e-2},
}

SPECTRAL_GAP = 0.02
"""Least distance of neighbouring singular values, as a share of the largest, at which laws speak of
singular vectors: rounding turns closer ones into each other."""

SMALL_STEP = 1e-8
"""Change of the inputs, relative to their norm, that tests continuity: rounding stays far below."""

LARGEST_SLOPE = 1e4
"""Most that a continuous rule makes of such a change: a turn of singular vectors at the least gap,
and room for ill-conditioned factors. A jump makes 1e6 of it and more."""


def relative(kind: str, dtype: str | torch.dtype = "float64") -> float:
    """Largest relative difference (in norm) that two equal results of this kind may show."""
    return RELATIVE[kind][str(dtype).removeprefix("torch.")]
