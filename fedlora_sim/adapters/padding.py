"""Factors padded with zeros.

PEFT allows a rank above min(d_in, d_out): the one rank of a federation is above that of its narrow
modules, such as a router or a value head. The engine computes with matrices that can have the rank.
Rows of zeros that are appended to B, and columns to A, change no rule's result: they stay zero, and
are left out when the factors are written.
"""

from __future__ import annotations

from torch import Tensor

from fedlora_sim.lora import LoRAFactors
from fedlora_sim.lowrank import pad_last


def wide_factors(lora_a: Tensor, lora_b: Tensor, scaling: float, width: int = 0) -> LoRAFactors:
    """Return factors whose dimensions are at least `width` and at least their rank.

    Args:
        lora_a: (..., r, d_in).
        lora_b: (..., d_out, r).
        scaling: the LoRA scaling.
        width: least d_in and d_out.
    """
    width = max(width, lora_a.shape[-2])
    if lora_a.shape[-1] < width:
        lora_a = pad_last(lora_a, width)
    if lora_b.shape[-2] < width:
        lora_b = pad_last(lora_b.mT, width).mT
    return LoRAFactors(lora_a, lora_b, scaling)


def resized(update: LoRAFactors, rank: int, scaling: float, *, frozen_a: bool) -> LoRAFactors:
    """Return the leading components of an update in another rank and scaling.

    Args:
        update: of any rank; components of zeros are appended where it is below the one wanted.
        rank: rank wanted.
        scaling: scaling to write it with.
        frozen_a: whether the change of scaling goes to B alone, and is not shared by A and B.
    """
    lora_a = pad_last(update.lora_A.mT, max(rank, update.rank)).mT[..., :rank, :]
    lora_b = pad_last(update.lora_B, max(rank, update.rank))[..., :rank]
    if frozen_a:
        return wide_factors(lora_a, lora_b * (update.scaling / scaling), scaling)
    cut = wide_factors(lora_a, lora_b, update.scaling)
    return cut if scaling == update.scaling else cut.rescale(scaling)
