"""Tensors beside the LoRA factors: trained ones are averaged, the base model's own must agree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedlora_sim.adapters.reading import AdapterFolder
from fedlora_sim.errors import expected


def average_extras(clients: Sequence[AdapterFolder], weights: Sequence[float]) -> dict[str, Tensor]:
    """Mean of `modules_to_save`, trained biases and resized embeddings, by sample count.

    Args:
        clients: folders that agree in their keys and shapes.
        weights: sample count of every client.

    Returns:
        Tensors by key, in the clients' dtype. A tensor that is the same everywhere stays as it is.

    Raises:
        InputError: if frozen weights or whole numbers, which have no mean, differ.
    """
    total = sum(weights)
    shares = [weight / total for weight in weights]
    return {key: _average(key, clients, shares) for key in clients[0].extras}


def _average(key: str, clients: Sequence[AdapterFolder], shares: Sequence[float]) -> Tensor:
    first, order = clients[0].tensor(key), clients[0].token_indices(key)
    mean, dtype, same = torch.zeros(first.shape, dtype=_summed_in(first)), first.dtype, True
    for client, share in zip(clients, shares, strict=True):
        tensor = _in_order(client.tensor(key), client.token_indices(key), order)
        equal = torch.equal(tensor, first)
        if not equal and (client.is_frozen(key) or not tensor.is_floating_point()):
            what = "frozen weights" if client.is_frozen(key) else "whole numbers"
            where = f"{key} in {client.path}"
            raise expected(where, f"{what} that differ", f"the same as in {clients[0].path}")
        if tensor.is_floating_point():
            mean += share * tensor.to(mean.dtype)
            dtype = torch.promote_types(dtype, tensor.dtype)
        same &= equal
    return first if same else mean.to(dtype)


def _in_order(rows: Tensor, tokens: list[int] | None, order: list[int] | None) -> Tensor:
    """Rows of single tokens in another order of the same tokens; anything else unchanged."""
    if tokens is None or order is None or tokens == order:
        return rows
    return rows[[tokens.index(token) for token in order]]


def _summed_in(tensor: Tensor) -> torch.dtype:
    """Single precision for halves, whose whole embeddings would not fit in double."""
    return torch.float32 if tensor.element_size() <= 2 else torch.float64
