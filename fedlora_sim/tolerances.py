"""The project's one table of numerical tolerances, by kind of comparison and dtype.

Kinds:
    exact: same arithmetic in the same order; only bit-equality is allowed to pass.
    reduction: sums and products in another order.
    factorization: results that went through a QR, SVD or eigenvalue problem.
    iteration: results of many rounds, each of which went through a factorization.
    training: parameters after tens of optimiser steps computed in another order.
"""

from __future__ import annotations

import torch

RELATIVE: dict[str, dict[torch.dtype, float]] = {
    "exact": {torch.float64: 0.0, torch.float32: 0.0},
    "reduction": {torch.float64: 1e-13, torch.float32: 2e-6},
    "factorization": {torch.float64: 1e-12, torch.float32: 2e-5},
    "iteration": {torch.float64: 1e-9, torch.float32: 1e-3},
    "training": {torch.float64: 1e-7, torch.float32: 1e-2},
}


def relative(kind: str, dtype: torch.dtype = torch.float64) -> float:
    """Largest relative difference (in norm) that two equal results of this kind may show."""
    return RELATIVE[kind][dtype]
