"""The client model of the matrix fidelity: what a client makes of the factors it received.

A client takes every received column pair as one direction `(u_i, v_i)` with amplitude
`x_i = |b_i| |a_i|` in the adapter and `z_i = u_i^T Z v_i` in a base that the server has corrected
by Z. It brings the whole to `a_{k,i} (x_i + z_i) + b_{k,i}`, so that its adapter returns with that
less z_i, optionally mixes directions within its subspace, and optionally turns its basis away.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedlora_sim.allocation import carried_directions
from fedlora_sim.lora import LoRAFactors


def split_directions(
    state: LoRAFactors, u0: Tensor, v0: Tensor, *, sorted_columns: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Unit directions and amplitudes of factor columns.

    A lost column has zero factors and no direction of its own for a drift to act along: it falls
    back on an initial one. Where columns keep their place that is its own. Where an SVD sorts them
    it is one that no living column has taken: the initial directions that the living ones have
    least of, in their order.

    Args:
        state: global factors, batch dimension S.
        u0: initial left basis, (S, d_out, r).
        v0: initial right basis, (S, d_in, r).
        sorted_columns: whether aggregation sorts the columns.

    Returns:
        u (S, d_out, r), v (S, d_in, r) and amplitudes x (S, r), non-negative.
    """
    lost = state.lost_columns()
    norm_b = torch.where(lost, 1.0, state.lora_B.norm(dim=-2))
    norm_a = torch.where(lost, 1.0, state.lora_A.norm(dim=-1))
    u, v = state.lora_B / norm_b.unsqueeze(-2), state.lora_A.mT / norm_a.unsqueeze(-2)
    gone = lost.unsqueeze(-2)
    if sorted_columns and bool(lost.any()):
        taken = (u0.mT @ torch.where(gone, 0.0, u)).square().sum(-1)
        free = carried_directions(lost.sum(-1), -taken)
        source = _matched(lost, free).unsqueeze(-2)
        u0, v0 = (side.gather(-1, source.expand_as(side)) for side in (u0, v0))
    u, v = torch.where(gone, u0, u), torch.where(gone, v0, v)
    return u, v, torch.where(lost, 0.0, state.column_amplitudes())


def _matched(lost: Tensor, free: Tensor) -> Tensor:
    """For the n-th true entry of `lost` the index of the n-th of `free`, (S, r)."""
    one, other = ((~mask).to(torch.int8).argsort(dim=-1, stable=True) for mask in (lost, free))
    return torch.empty_like(one).scatter_(-1, one, other)


def local_factors(
    u: Tensor, v: Tensor, amplitude: Tensor, carried: Tensor, *, frozen_a: bool
) -> tuple[Tensor, Tensor]:
    """Local factors of given amplitudes, zero in directions that the client does not carry.

    Args:
        u: left directions, (S, 1, d_out, r).
        v: right directions, (S, 1, d_in, r).
        amplitude: signed local amplitudes, (S, m, r).
        carried: which directions each client slot carries, boolean (S, m, r).
        frozen_a: A stays the unit directions, common to all clients, and B has the amplitude;
            else the two share it evenly.

    Returns:
        lora_A (S, m, r, d_in) and lora_B (S, m, d_out, r), the sign on B.
    """
    if frozen_a:
        own = carried.to(amplitude.dtype)
        return (v * own.unsqueeze(-2)).mT, u * (own * amplitude).unsqueeze(-2)
    root = torch.where(carried, amplitude.abs().sqrt(), 0.0)
    lora_b = u * (root * amplitude.sign()).unsqueeze(-2)
    lora_a = (v * root.unsqueeze(-2)).mT
    return lora_a, lora_b
