"""The project's one table of numerical tolerances, by kind of comparison and dtype.

Kinds:
    exact: same arithmetic in the same order; only bit-equality is allowed to pass.
    reduction: sums and products in another order.
    factorization: results that went through a QR, SVD or eigenvalue problem.
    iteration: results of many rounds, each of which went through a factorization.
    training: parameters after tens of optimiser steps computed in another order.
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
}


def relative(kind: str, dtype: str | torch.dtype = "float64") -> float:
    """Largest relative difference (in norm) that two equal results of this kind may show."""
    return RELATIVE[kind][str(dtype).removeprefix("torch.")]
