"""Averages of a cohort's updates in product and in factor space, and results in one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedlora_sim.errors import expected
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.lowrank import LowRankProduct, pad_last
from fedlora_sim.rules.cohort import Aggregated, Cohort, StackedUpdates


def with_columns(product: LowRankProduct, factors: LoRAFactors, mask: Tensor) -> LowRankProduct:
    """Return a product plus selected columns of a global adapter.

    Args:
        product: the cohort's weighted sum.
        factors: factors of rank r_max.
        mask: weight of each rank index, (..., r_max).
    """
    dtype = product.dtype
    scaling = mask * factors.scaling
    return product.plus(factors.lora_B.to(dtype), factors.lora_A.to(dtype), scaling)


def average_factors(
    cohort: Cohort,
    shares_b: Tensor,
    shares_a: Tensor,
    *,
    scaling_on_b: bool = False,
    kept: LoRAFactors | None = None,
    mask: Tensor | None = None,
) -> LoRAFactors:
    """Average A and B separately, position by position.

    Factors can be averaged only if all use the same scaling. Equal scalings are kept and the
    factors are averaged unchanged. Unequal scalings are split evenly, sqrt(s_k) on A and on B, and
    the result has scaling 1.

    Args:
        cohort: the updates.
        shares_b: weight of each (client, direction) on B, (..., K, r_max).
        shares_a: weight of each (client, direction) on A, same shape.
        scaling_on_b: apply unequal scalings to B only, for rules that leave A unchanged.
        kept: the last global adapter, from which columns are kept; None keeps nothing.
        mask: 1 for every rank index that is kept, (..., r_max).

    Returns:
        Factors of rank r_max.

    Raises:
        InputError: if the scalings differ and one of them is not positive.
    """
    scaling, on_b, on_a = _common_scaling(cohort, scaling_on_b)
    lora_b, lora_a = _summed(cohort, on_b * shares_b, on_a * shares_a)
    if kept is not None and mask is not None:
        last = kept.rescale(scaling)
        lora_b += last.lora_B.to(cohort.dtype) * mask.unsqueeze(-2)
        lora_a += last.lora_A.to(cohort.dtype) * mask.unsqueeze(-1)
    return LoRAFactors(lora_a, lora_b, scaling)


def _summed(cohort: Cohort, weights_b: Tensor, weights_a: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted sums of B and of A for weights (..., K, r_max), each new in memory."""
    updates = cohort.updates
    if isinstance(updates, StackedUpdates):
        return updates.summed(weights_b, weights_a)
    batch, d_out, d_in = _dims(updates[0])
    batch = torch.broadcast_shapes(batch, weights_b.shape[:-2])
    lora_b = weights_b.new_zeros(*batch, d_out, cohort.r_max)
    lora_a = weights_a.new_zeros(*batch, cohort.r_max, d_in)

    def add(k: int, update: LoRAFactors) -> None:
        held = cohort.positions[k]
        w_b, w_a = weights_b[..., k, held], weights_a[..., k, held]
        lora_b.index_add_(-1, held, update.lora_B.to(cohort.dtype) * w_b.unsqueeze(-2))
        lora_a.index_add_(-2, held, update.lora_A.to(cohort.dtype) * w_a.unsqueeze(-1))

    for k in range(cohort.num_clients):
        add(k, updates[k])
    return lora_b, lora_a


def _dims(update: LoRAFactors) -> tuple[torch.Size, int, int]:
    return update.lora_A.shape[:-2], update.d_out, update.d_in


def _common_scaling(cohort: Cohort, scaling_on_b: bool) -> tuple[float, Tensor, Tensor]:
    """Return the scaling of the average, and each client's factor on B and on A, (K, 1)."""
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


def zero_factors(cohort: Cohort, shares: Tensor) -> LoRAFactors:
    """Return an adapter of rank r_max that is zero, for rules that average no adapter.

    Args:
        cohort: the updates.
        shares: normalized weights, (..., K, r_max).
    """
    first = cohort.updates[0]
    batch = torch.broadcast_shapes(first.lora_A.shape[:-2], shares.shape[:-2])
    zeros = first.lora_A.new_zeros
    r, dtype = cohort.r_max, cohort.dtype
    return LoRAFactors(
        zeros(*batch, r, first.d_in, dtype=dtype), zeros(*batch, first.d_out, r, dtype=dtype)
    )


# Results of rules that aggregate one layer at a time, stacked into one batch


def stacked(parts: Sequence[Tensor], batch: tuple[int, ...]) -> Tensor:
    """Return tensors of one shape as one tensor with leading dimensions `batch`."""
    return torch.stack(list(parts)).reshape((*batch, *parts[0].shape))


def stacked_factors(parts: Sequence[LoRAFactors], batch: tuple[int, ...]) -> LoRAFactors:
    """Return the factors of one batch, written in the first one's scaling."""
    scaling = parts[0].scaling
    same = [p if p.scaling == scaling else p.rescale(scaling) for p in parts]
    lora_a, lora_b = (
        stacked([getattr(p, side) for p in same], batch) for side in ("lora_A", "lora_B")
    )
    return LoRAFactors(lora_a, lora_b, scaling)


def stacked_bases(results: Sequence[Aggregated], batch: tuple[int, ...]) -> LowRankProduct:
    """Return the base corrections as one product, with columns of zeros where one has fewer."""
    pairs = []
    for result in results:
        like = result.adapter.product.B
        empty = (like[..., :0], like.new_zeros(0, result.adapter.d_in))
        pairs.append(empty if result.base is None else (result.base.B, result.base.A))
    most = max(b.shape[-1] for b, _ in pairs)
    b = stacked([pad_last(b, most) for b, _ in pairs], batch)
    a = stacked([pad_last(a.mT, most).mT for _, a in pairs], batch)
    return LowRankProduct([(b, a)], b.new_ones(most))
