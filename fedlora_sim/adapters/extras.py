"""Tensors next to the LoRA factors: trained ones are averaged, the base model's own must agree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedlora_sim.adapters.layers import without_samples
from fedlora_sim.adapters.reading import AdapterFolder
from fedlora_sim.errors import expected


def average_extras(clients: Sequence[AdapterFolder], weights: Sequence[float]) -> dict[str, Tensor]:
    """Average `modules_to_save`, trained biases and resized embeddings by sample count.

    Args:
        clients: folders that agree in their keys and shapes.
        weights: sample count of every client. Those without samples take no part.

    Returns:
        Tensors by key, in the clients' dtype, or the one that holds all of theirs. A tensor that is
        the same everywhere stays unchanged. Of a counter, such as the `num_batches_tracked` of
        BatchNorm, the largest is returned: it is no weight.

    Raises:
        InputError: if frozen weights differ by more than their precision, or whole numbers differ
            that are no counters.
    """
    total = sum(weights)
    present = []
    for client, weight in zip(clients, weights, strict=True):
        if weight > 0:
            present.append((client, weight / total))
            continue
        with without_samples(client, weight):
            for key in client.extras:
                client.tensor(key)
    return {key: _average(key, present) for key in clients[0].extras}


def _average(key: str, clients: Sequence[tuple[AdapterFolder, float]]) -> Tensor:
    first_client = clients[0][0]
    first, order = first_client.tensor(key), first_client.token_indices(key)
    kept, is_same = first, True
    mean = torch.zeros(first.shape, dtype=_summed_in(first))
    for client, share in clients:
        tensor = _in_order(client.tensor(key), client.token_indices(key), order)
        if tensor.is_floating_point() != first.is_floating_point():
            raise expected(
                f"{key} in {client.path}", tensor.dtype, f"{first.dtype}, as in {first_client.path}"
            )
        is_equal = tensor.dtype == first.dtype and torch.equal(tensor, first)
        is_same &= is_equal
        if not tensor.is_floating_point() and tensor.ndim == 0:
            kept = torch.maximum(kept, tensor)
        elif client.is_frozen(key) or not tensor.is_floating_point():
            if not is_equal and not _same_but_for_precision(tensor, kept):
                what = "frozen weights" if client.is_frozen(key) else "whole numbers"
                where = f"{key} in {client.path}"
                raise expected(where, f"{what} that differ", f"the same as in {first_client.path}")
            if _digits(tensor) > _digits(kept):
                kept = tensor
        else:
            mean = mean.to(torch.promote_types(mean.dtype, _summed_in(tensor)))
            mean += share * tensor.to(mean.dtype)
            kept = kept.to(torch.promote_types(kept.dtype, tensor.dtype))
    is_averaged = first.is_floating_point() and not first_client.is_frozen(key)
    return mean.to(kept.dtype) if is_averaged and not is_same else kept


def _same_but_for_precision(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers, each rounded to its own floating-point type."""
    if one.dtype == other.dtype or not one.is_floating_point():
        return False
    types = [torch.finfo(x.dtype) for x in (one, other)]
    wide = torch.promote_types(one.dtype, other.dtype)
    one, other = one.to(wide), other.to(wide)
    rounding = max(t.eps for t in types) * torch.maximum(one.abs(), other.abs())
    rounding += max(t.eps * t.smallest_normal for t in types)
    return bool(((one - other).abs() <= rounding).all())


def _digits(tensor: Tensor) -> float:
    return -torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0


def _in_order(rows: Tensor, tokens: list[int] | None, order: list[int] | None) -> Tensor:
    """Rows of single tokens in another order of the same tokens; anything else unchanged."""
    if tokens is None or order is None or tokens == order:
        return rows
    return rows[[tokens.index(token) for token in order]]


def _summed_in(tensor: Tensor) -> torch.dtype:
    """Single precision for halves, whose whole embeddings would not fit in double."""
    return torch.float32 if tensor.element_size() <= 2 else torch.float64
