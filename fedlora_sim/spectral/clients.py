"""The factor-space round, client by client: `x' = (sum w sqrt|y|) (sum w sgn(y) sqrt|y|)`.

A client's amplitude `y_k = a_k x + b_k` sits half in each factor, `sqrt|y|` in A and
`sgn(y) sqrt|y|` in B; the server averages the halves, not the products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedlora_sim.spectral.recursion import CohortShares


def run_clients(
    initial: Tensor, shares: CohortShares, gains: Tensor, drifts: Tensor, rounds: int
) -> Tensor:
    """Amplitudes under factor averaging.

    Args:
        initial: (S, r_max).
        shares: normalised cohort weights, (S or 1, T or 1, m, M).
        gains: (S, T or 1, K, r_max).
        drifts: (S, T or 1, K, r_max), in units of the amplitude.
        rounds: T.

    Returns:
        (S, T + 1, r_max).
    """
    x, states = initial, [initial]
    runs = torch.arange(len(initial), device=initial.device).unsqueeze(1)
    for t in range(rounds):
        clients = shares.clients[:, t % shares.clients.shape[1]]
        gain = gains[:, t % gains.shape[1]][runs, clients]
        drift = drifts[:, t % drifts.shape[1]][runs, clients]
        y = gain * x.unsqueeze(1) + drift
        root = y.abs().sqrt()
        w = shares.shares[:, t % shares.clients.shape[1]][..., shares.partition]
        x = (w * root).sum(1) * (w * root * y.sign()).sum(1)
        states.append(x)
    return torch.stack(states, dim=1)
