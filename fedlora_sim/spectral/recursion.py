"""One round of one direction as a random affine map, and the loop that applies it to a batch.

The clients of a cohort return `a_k x + b_k`; in product space the server forms their weighted sum.
With fresh independent Gaussian gains and drifts that sum is itself Gaussian given the cohort, with
mean `(g x + c) sum w` and variance `(nu**2 x**2 + tau**2) sum w**2`, so that one normal draw per
direction replaces one per client: exact in law, and K times cheaper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fedlora_sim.aggregation import AggregationRule
from fedlora_sim.errors import expected
from fedlora_sim.scenario import Scenario
from fedlora_sim.spectral.cohorts import Cohorts


@dataclass(frozen=True, eq=False)
class Recursion:
    """`x' = alpha x + beta + hypot(gamma x, delta) z`, per run, round and direction.

    Args:
        initial: amplitudes at round 0, (S, r_max).
        alpha, beta, gamma, delta: coefficients, (S, T, r_max).
        noise: standard normal z, (S, T, r_max).
    """

    initial: Tensor
    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    delta: Tensor
    noise: Tensor

    def run(self) -> Tensor:
        """Amplitudes of every round, (S, T + 1, r_max)."""
        x = self.initial
        states = [x]
        for t in range(self.alpha.shape[1]):
            spread = torch.hypot(self.gamma[:, t] * x, self.delta[:, t])
            x = torch.addcmul(self.beta[:, t], self.alpha[:, t], x).addcmul_(
                spread, self.noise[:, t]
            )
            states.append(x)
        return torch.stack(states, dim=1)

    @classmethod
    def concatenate(cls, parts: Sequence[Recursion]) -> Recursion:
        """One batch of several, along the first dimension."""
        if len(parts) == 1:
            return parts[0]
        names = [f.name for f in fields(cls)]
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True, eq=False)
class CohortShares:
    """The rule's weights of drawn cohorts.

    Args:
        clients: client in each cohort slot, (S or 1, T or 1, m).
        shares: normalised weight of each slot in each group of directions, (S, T, m, groups).
        groups: group of each direction, (r_max,).
    """

    clients: Tensor
    shares: Tensor
    groups: Tensor

    @classmethod
    def of(cls, scenario: Scenario, rule: AggregationRule, cohorts: Cohorts) -> CohortShares:
        """Ask the rule for its weights of drawn cohorts.

        Raises:
            ValueError: if a partition stays without contributors under `empty_partition='error'`.
        """
        shares = rule.direction_weights(cohorts.weights, cohorts.members)
        result = cls(cohorts.clients, shares, cohorts.groups)
        if rule.has_empty_partition_policy and scenario.empty_partition == "error":
            result._refuse_empty()
        return result

    def _refuse_empty(self) -> None:
        empty = (self.shares.sum(-2) == 0).nonzero()
        if len(empty):
            run, t, h = empty[0].tolist()
            direction = int((self.groups == h).nonzero()[0])
            raise expected(
                "empty_partition",
                "error",
                f"a contributor to every direction; direction {direction + 1} has none in round "
                f"{t + 1} of run {run} (choose zero or carry)",
            )

    def total(self) -> Tensor:
        """`sum_k w_k`, (S, T, r_max)."""
        return self.shares.sum(-2)[..., self.groups]

    def squares(self) -> Tensor:
        """`sum_k w_k**2`, (S, T, r_max)."""
        return self.shares.square().sum(-2)[..., self.groups]

    def mean_of(self, values: Tensor) -> Tensor:
        """`sum_k w_k y_k`, (S, T, r_max), for values (S, K, r_max) that stay every round."""
        runs = torch.arange(len(values), device=values.device)[:, None, None]
        return torch.cat(
            [
                torch.einsum(
                    "stm,stmd->std",
                    self.shares[..., h].expand(len(values), -1, -1),
                    values[..., self.groups == h][runs, self.clients],
                )
                for h in range(self.shares.shape[-1])
            ],
            dim=-1,
        )
