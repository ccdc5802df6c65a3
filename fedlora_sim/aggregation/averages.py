"""The two ways to average adapters: as products, or factor by factor."""

from __future__ import annotations

import torch
from torch import Tensor

from fedlora_sim.aggregation.cohort import Cohort
from fedlora_sim.errors import expected
from fedlora_sim.lora import LoRAFactors, best_factors
from fedlora_sim.lowrank import LowRankProduct


def with_columns(product: LowRankProduct, factors: LoRAFactors, mask: Tensor) -> LowRankProduct:
    """A product plus chosen columns of a global adapter.

    Args:
        product: the cohort's weighted sum.
        factors: factors of rank r_max.
        mask: weight of every rank index, (..., r_max).
    """
    dtype = product.dtype
    scaling = mask * factors.scaling
    return product.plus(factors.lora_B.to(dtype), factors.lora_A.to(dtype), scaling)


def split(product: LowRankProduct, r: int) -> LoRAFactors:
    """Best rank-r approximation of a product, `B = U sqrt(S)`, `A = sqrt(S) V^T`."""
    return best_factors(product, r)


def average_factors(
    cohort: Cohort,
    shares_b: Tensor,
    shares_a: Tensor,
    *,
    scaling_on_b: bool = False,
    kept: LoRAFactors | None = None,
    mask: Tensor | None = None,
) -> LoRAFactors:
    """Average A and B apart, position by position.

    Factors can only be averaged when they are written with one scaling. Equal scalings are kept,
    and the factors averaged as they are; otherwise each client's is split evenly, sqrt(s_k) on A
    and on B, and the result has scaling 1.

    Args:
        cohort: the updates.
        shares_b: weight of every (client, direction) on B, (..., K, r_max).
        shares_a: the same on A.
        scaling_on_b: put scalings that differ on B alone, for rules that leave A as it is.
        kept: the last global adapter, where columns of it stay; None keeps nothing.
        mask: 1 for every rank index that is kept, (..., r_max).

    Returns:
        Factors of rank r_max.

    Raises:
        ValueError: if scalings differ and one of them is not positive.
    """
    scaling, on_b, on_a = _common_scaling(cohort, scaling_on_b)
    batch, d_out, d_in = _dims(cohort.updates[0])
    batch = torch.broadcast_shapes(batch, shares_b.shape[:-2])
    lora_b = shares_b.new_zeros(*batch, d_out, cohort.r_max)
    lora_a = shares_a.new_zeros(*batch, cohort.r_max, d_in)
    weights_b, weights_a = on_b * shares_b, on_a * shares_a

    def add(k: int, update: LoRAFactors) -> None:
        held = cohort.positions[k]
        w_b, w_a = weights_b[..., k, held], weights_a[..., k, held]
        lora_b.index_add_(-1, held, update.lora_B.to(cohort.dtype) * w_b.unsqueeze(-2))
        lora_a.index_add_(-2, held, update.lora_A.to(cohort.dtype) * w_a.unsqueeze(-1))

    for k in range(cohort.num_clients):
        add(k, cohort.updates[k])
    if kept is not None and mask is not None:
        last = kept.rescale(scaling)
        lora_b += last.lora_B.to(cohort.dtype) * mask.unsqueeze(-2)
        lora_a += last.lora_A.to(cohort.dtype) * mask.unsqueeze(-1)
    return LoRAFactors(lora_a, lora_b, scaling)


def _dims(update: LoRAFactors) -> tuple[torch.Size, int, int]:
    return update.lora_A.shape[:-2], update.d_out, update.d_in


def _common_scaling(cohort: Cohort, scaling_on_b: bool) -> tuple[float, Tensor, Tensor]:
    """The scaling of the average, and what of each client's goes to B and to A, (K, 1)."""
    scalings = cohort.scaling
    one = torch.ones_like(scalings).unsqueeze(-1)
    if bool((scalings == scalings[0]).all()):
        return cohort.updates[0].scaling, one, one
    if scaling_on_b:
        return 1.0, scalings.unsqueeze(-1), one
    if bool((scalings <= 0).any()):
        raise expected("scaling", scalings.tolist(), "positive scalings where they differ")
    root = scalings.sqrt().unsqueeze(-1)
    return 1.0, root, root
