"""The spectral round client by client, for what has no shortcut through the cohort's sum.

The global update is `x + z` in every direction: x in the adapter, z in the base. A client brings
the total to `a (x + z) + b`, or where its own training takes it, and returns its adapter, that
less z: y. Averaged as products
the adapters give `sum w y`; averaged factor by factor, where an amplitude sits half in A,
`sqrt|y|`, and half in B, `sgn(y) sqrt|y|`, they give the product of the two averages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora_sim.aggregation import AggregationRule
from fedlora_sim.allocation import carried_directions
from fedlora_sim.errors import expected
from fedlora_sim.lowrank import LowRankProduct
from fedlora_sim.scenario import Scenario
from fedlora_sim.spectral.cohorts import Cohorts
from fedlora_sim.spectral.flow import LocalMap

# What clients make of the total: round, runs (S, 1), clients (S or 1, m) and the total (S, 1,
# r_max) to (S, m, r_max).
Local = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class AffineClients:
    """Clients who bring the total to `a x + b`.

    Args:
        gains: (S, T or 1, K, r_max).
        drifts: (S, T or 1, K, r_max), in units of the amplitude.
    """

    gains: Tensor
    drifts: Tensor

    def __call__(self, t: int, runs: Tensor, clients: Tensor, total: Tensor) -> Tensor:
        """Amplitudes that the clients of round t reach."""
        gain = self.gains[:, t % self.gains.shape[1]][runs, clients]
        return gain * total + self.drifts[:, t % self.drifts.shape[1]][runs, clients]


@dataclass(frozen=True, eq=False)
class FittingClients:
    """Clients who follow the flow to targets of their own, alike in every round.

    Args:
        local: coefficients (S, K, r_max).
    """

    local: LocalMap

    def __call__(self, t: int, runs: Tensor, clients: Tensor, total: Tensor) -> Tensor:
        """Amplitudes that the clients of round t reach."""
        return self.local.of(runs, clients)(total)


def run_clients(
    scenario: Scenario,
    rule: AggregationRule,
    initial: Tensor,
    cohorts: Cohorts,
    local: Local,
) -> Tensor:
    """Amplitudes of the whole update, round by round.

    Args:
        scenario: the federation, its allocation and its policy.
        rule: the server rule.
        initial: (S, r_max).
        cohorts: who takes part, with which weight and which directions.
        local: what every client brings the total to.

    Returns:
        (S, T + 1, r_max).

    Raises:
        ValueError: if a direction stays without contributors under `empty_partition='error'`.
    """
    zero = torch.zeros_like(initial)
    x, z = (zero, initial) if rule.space == "none" else (initial, zero)
    states = [initial]
    runs = torch.arange(len(initial), device=initial.device).unsqueeze(1)
    for t in range(scenario.rounds):
        clients, weights, members = cohorts.round(t)
        total = (x + z).unsqueeze(1)
        reached = local(t, runs, clients, total)
        if scenario.allocation == "importance":
            members = carried_directions(cohorts.ranks[clients], (reached - total).abs())
        y = (reached - z.unsqueeze(1)) * members
        norms = y.square().sum(-1).sqrt() if rule.weights_from_norms else None
        shares = rule.direction_weights(weights, members, norms)
        new_x, more = average_amplitudes(rule, y, shares)
        if rule.has_empty_partition_policy:
            empty = ~(members & (weights > 0).unsqueeze(-1)).any(-2)
            _refuse_empty(scenario, empty, t)
            new_x = torch.where(empty & (scenario.empty_partition == "carry"), x, new_x)
        x, z = new_x, z + more
        states.append(x + z)
    return torch.stack(states, dim=1)


def average_amplitudes(rule: AggregationRule, y: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """What the server makes of adapters that share a basis.

    Args:
        rule: the server rule.
        y: amplitudes of the clients' adapters, (S, m, r_max), zero where a client has none.
        shares: the rule's weights, (S, m, r_max).

    Returns:
        The new adapter and what the base gains, each (S, r_max).
    """
    exact = (shares * y).sum(1)
    adapter = exact
    if rule.space == "none":
        adapter = torch.zeros_like(exact)
    elif rule.space == "factor" and not rule.frozen_a:
        root = y.abs().sqrt()
        adapter = (shares * root).sum(1) * (shares * root * y.sign()).sum(1)
    if not rule.residual_in_base:
        return adapter, torch.zeros_like(exact)
    return adapter, _kept_residual(rule, exact - adapter)


def _kept_residual(rule: AggregationRule, residual: Tensor) -> Tensor:
    """What the rule keeps of a residual that is diagonal in the basis, (S, r_max)."""
    ones = torch.ones_like(residual)
    exact = LowRankProduct([(torch.diag_embed(residual), torch.diag_embed(ones))], ones)
    kept = rule.compress(exact)
    return residual if kept is exact else kept.dense().diagonal(dim1=-2, dim2=-1)


def _refuse_empty(scenario: Scenario, empty: Tensor, t: int) -> None:
    if scenario.empty_partition == "error" and bool(empty.any()):
        run, direction = empty.nonzero()[0].tolist()
        raise expected(
            "empty_partition",
            "error",
            f"a contributor to every direction; direction {direction + 1} has none in round "
            f"{t + 1} of run {run} (choose zero or carry)",
        )
