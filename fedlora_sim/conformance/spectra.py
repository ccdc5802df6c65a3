"""Where singular vectors are well defined: singular values that lie apart."""

from __future__ import annotations

import torch
from torch import Tensor

from fedlora_sim.lora import LoRAFactors
from fedlora_sim.tolerances import SPECTRAL_GAP


def lie_apart(update: LoRAFactors) -> bool:
    """Whether all singular values of an update, zero after its rank, lie apart."""
    values = torch.linalg.svdvals(update.delta())[: update.rank]
    return bool((_gaps(values) >= SPECTRAL_GAP * values[0]).all()) and bool(values[0] > 0)


def gap_at(matrix: Tensor, r: int) -> bool:
    """Whether a matrix has a gap after its r-th singular value, or none beyond it."""
    values = torch.linalg.svdvals(matrix)
    if r >= len(values):
        return True
    return bool(values[r - 1] - values[r] >= SPECTRAL_GAP * values[0])


def _gaps(values: Tensor) -> Tensor:
    return values - torch.cat([values[1:], values.new_zeros(1)])
