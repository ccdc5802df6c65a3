"""Two aggregation rules for fedlora-sim in an external package.

`Tempered` is defined by its weights per client and direction. `Momentum` implements a step with a
state that is kept from round to round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedlora_sim import LoRAFactors
from fedlora_sim.rules import Aggregated, AggregationRule, Context, Properties, State


@dataclass(frozen=True)
class Tempered(AggregationRule):
    """Average of the products, data weights to a power: `p_k` proportional to `n_k**beta`.

    Args:
        beta: 1 is FedAvg; 0 counts all clients that take part alike.
    """

    beta: float = 0.5

    name: ClassVar[str] = "tempered"
    source: ClassVar[str] = "fedlora-momentum"

    @property
    def properties(self) -> Properties:
        """FedAvg's laws, except those about the data weights."""
        is_fedavg = self.beta == 1
        return replace(
            super().properties,
            weight_repetition=is_fedavg,
            transpose=True,
            linear=True,
            exact=is_fedavg,
            best_approximation=is_fedavg,
            rank_bound=True,
            energy_hull="whole",
            gauge="full",
            partition_identity=False,
            equal_ranks_fedavg=is_fedavg,
            low_rank_client="dilutes",
            continuous=True,
            # a function of the share of the tempered weights, not of the data weights
            multiplier=self.multiplier if is_fedavg else None,
        )

    def direction_weights(
        self, weights: Tensor, members: Tensor, norms: Tensor | None = None
    ) -> Tensor:
        tempered = torch.where(weights > 0, weights**self.beta, 0.0)
        shares = tempered / tempered.sum(-1, keepdim=True)
        return shares.unsqueeze(-1) * members

    def multiplier(self, coverage: Tensor) -> Tensor:
        """Return `W` of the tempered weights."""
        return coverage


@dataclass(frozen=True)
class Momentum:
    """FedAvg with server momentum: the global update has a velocity.

    `v <- beta v + (mean of the products - last update)`, then `last update + learning_rate v`,
    truncated to the highest rank. The velocity is that of the full dense update.

    Args:
        beta: share of the velocity that is kept.
        learning_rate: learning rate of the server.
    """

    beta: float = 0.9
    learning_rate: float = 1.0

    name: ClassVar[str] = "momentum"
    source: ClassVar[str] = "FedAvgM: Hsu, Qi, Brown 2019, arXiv 1909.06335, Sec. 4.3"

    @property
    def properties(self) -> Properties:
        """Laws of the first round, which equals FedAvg if the learning rate is 1."""
        is_fedavg = self.learning_rate == 1
        return Properties(
            single_client=is_fedavg,
            identical_clients=is_fedavg,
            transpose=True,
            linear=is_fedavg,
            exact=is_fedavg,
            best_approximation=is_fedavg,
            rank_bound=True,
            energy_hull="whole" if is_fedavg else None,
            gauge="full",
            partition_identity=False,
            equal_ranks_fedavg=is_fedavg,
            low_rank_client="dilutes" if is_fedavg else None,
            continuous=True,
            batched=True,
            stateless=False,
            multiplier=self.first_multiplier if is_fedavg else None,
        )

    def first_multiplier(self, coverage: Tensor) -> Tensor:
        """Return `W` of the first round."""
        return coverage

    def step(
        self,
        updates: Sequence[LoRAFactors],
        weights: Sequence[float],
        context: Context,
        state: State,
    ) -> tuple[Aggregated, State]:
        given = updates[0].dtype
        wide = given if given in (torch.float32, torch.float64) else torch.float32
        total = sum(weights)
        pairs = zip(updates, weights, strict=True)
        mean = torch.stack([w / total * update.to(wide).delta() for update, w in pairs]).sum(0)
        last = torch.zeros_like(mean)
        if context.previous is not None:
            last = context.previous.to(wide).delta()
        velocity = mean - last
        if "velocity" in state:
            velocity = velocity + self.beta * state["velocity"]
        whole = last + self.learning_rate * velocity
        adapter = LoRAFactors.from_delta(whole, context.r_max)
        return Aggregated(adapter.to(given)), {"velocity": velocity}
