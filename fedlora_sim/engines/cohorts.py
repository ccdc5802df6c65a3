"""Drawn cohorts of many runs, and a rule's weights of their clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.engines.draws import (
    allocation_scores,
    are_persistent,
    carried_directions,
    cohort_counts_of_runs,
    leading_directions,
)
from fedlora_sim.errors import InputError, expected
from fedlora_sim.federation import cohort_slots
from fedlora_sim.rules import AggregationRule
from fedlora_sim.runtime import resolve_device, torch_dtype
from fedlora_sim.scenario import Scenario


def place_of(scenario: Scenario) -> tuple[torch.dtype, torch.device]:
    """Return the dtype of spectral runs and their device, which may not support float64."""
    dtype = torch_dtype(scenario.dtype)
    return dtype, resolve_device(scenario.device, dtype, "spectral")


@dataclass(frozen=True, eq=False)
class Cohorts:
    """Drawn cohorts; a dimension of size 1 means that all runs or rounds are equal.

    Args:
        clients: client in each cohort slot, (S or 1, T or 1, m).
        weights: unnormalized weight of each slot, same shape.
        ranks: rank of each client, (K,).
        groups: group of each rank index, (r_max,): its partition or, if clients carry other
            directions than the first ones, the index itself.
        members: which groups each slot carries, boolean (S or 1, T or 1, m, groups).
    """

    clients: Tensor
    weights: Tensor
    ranks: Tensor
    groups: Tensor
    members: Tensor

    def round(self, t: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the clients, weights and carried directions of round t.

        Shapes (S or 1, m), (S or 1, m) and (S or 1, m, r_max).
        """
        members = self.members[:, t % self.members.shape[1]][..., self.groups]
        row = t % self.clients.shape[1]
        return self.clients[:, row], self.weights[:, row], members


def _counts(scenario: Scenario, seeds: Sequence[int]) -> NDArray[np.integer[Any]]:
    """Return how often each client is drawn, (S or 1, T or 1, K)."""
    if scenario.federation.sampling == "full":  # all rounds are equal: one row represents them
        return np.ones((1, 1, scenario.federation.num_clients), dtype=np.int64)
    return cohort_counts_of_runs(scenario, seeds)


def draw(scenario: Scenario, seeds: Sequence[int]) -> Cohorts:
    """Return the cohorts of one run per seed."""
    dtype, device = place_of(scenario)
    federation = scenario.federation
    counts = _counts(scenario, seeds)
    slots, drawn = cohort_slots(counts, federation.max_cohort)
    weights = torch.from_numpy(federation.cohort_weights(slots, drawn)).to(dtype).to(device)
    clients = torch.from_numpy(slots).to(device)
    ranks = torch.tensor(federation.ranks, device=device)
    if scenario.allocation == "random":
        groups = torch.arange(federation.r_max, device=device)
        members = _random_members(scenario, seeds, ranks, clients)
    else:
        levels = torch.tensor(federation.levels, device=device)
        groups = torch.searchsorted(levels, torch.arange(federation.r_max, device=device) + 1)
        members = leading_directions(ranks[clients], federation.r_max)[..., levels - 1]
    return Cohorts(clients, weights, ranks, groups, members)


def _random_members(
    scenario: Scenario, seeds: Sequence[int], ranks: Tensor, clients: Tensor
) -> Tensor:
    """Return the directions of each slot under random allocation, (S, T, m, r_max)."""
    scores = torch.from_numpy(np.stack([allocation_scores(scenario, seed) for seed in seeds]))
    slots = clients.expand(*scores.shape[:2], -1)
    index = slots.unsqueeze(-1).expand(*slots.shape, scores.shape[-1])
    # Sort participants only.
    return carried_directions(ranks[slots], scores.to(clients.device).gather(2, index))


# The weights, normalized by the rule


def empty_direction(run: int, t: int, direction: int) -> InputError:
    """Return the error of `empty_partition='error'`; all three are counted from 0."""
    return expected(
        "empty_partition",
        "error",
        f"a contributor to every direction; direction {direction + 1} has none in round {t + 1} "
        f"of run {run} (choose zero or carry)",
    )


@dataclass(frozen=True, eq=False)
class CohortShares:
    """A rule's weights of drawn cohorts.

    Args:
        clients: client in each cohort slot, (S or 1, T or 1, m).
        shares: normalized weight of each slot in each group of directions, (S, T, m, groups).
        groups: group of each direction, (r_max,).
    """

    clients: Tensor
    shares: Tensor
    groups: Tensor

    @classmethod
    def of(cls, scenario: Scenario, rule: AggregationRule, cohorts: Cohorts) -> CohortShares:
        """Return the rule's weights of drawn cohorts.

        Raises:
            InputError: if a partition has no contributors under `empty_partition='error'`.
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
            raise empty_direction(run, t, direction)

    def total(self) -> Tensor:
        """Return `sum_k w_k`, (S, T, r_max)."""
        return self.shares.sum(-2)[..., self.groups]

    def squares(self) -> Tensor:
        """Return `sum_k w_k**2`, (S, T, r_max)."""
        return self.shares.square().sum(-2)[..., self.groups]

    def mean_of(self, values: Tensor) -> Tensor:
        """Return `sum_k w_k y_k`, (S, T, r_max).

        For values (S, K, r_max) that are equal in all rounds.
        """
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


@dataclass(frozen=True, eq=False)
class CarrierShares:
    """A rule's weights where the clients of a rank are exchangeable.

    A cohort's sums then follow from the number of carriers of each group alone, of which few
    combinations occur.

    Args:
        shares: normalized weights of each combination, (U, m, groups).
        groups: group of each direction, (r_max,).
        index: combination of each cohort, (S or 1, T or 1).
    """

    shares: Tensor
    groups: Tensor
    index: Tensor

    @classmethod
    def of(
        cls,
        scenario: Scenario,
        rule: AggregationRule,
        counts: NDArray[np.integer[Any]],
    ) -> Self:
        """Return the rule's weights of drawn cohorts; clients are drawn at most once.

        Args:
            scenario: its clients have equal sample numbers and carry the leading directions.
            rule: the server rule.
            counts: participation of each client, 0 or 1, (S or 1, T or 1, K).
        """
        federation, (dtype, device) = scenario.federation, place_of(scenario)
        levels, slots = np.array(federation.levels), federation.max_cohort
        members = np.asarray(federation.ranks)[:, None] >= levels
        # Whole numbers below 2**24: float32 counts them exactly, and multiplies fast.
        carriers = counts.astype(np.float32) @ members.astype(np.float32)
        code = carriers.astype(np.int64) @ (slots + 1) ** np.arange(len(levels))
        found, index = _distinct(code, (slots + 1) ** len(levels))
        numbers = found[:, None] // (slots + 1) ** np.arange(len(levels)) % (slots + 1)
        carried = torch.from_numpy(np.arange(slots)[:, None] < numbers[:, None])
        carried = carried.to(device)
        # Equal weights, up to a common factor; all clients carry the first level.
        shares = rule.direction_weights(carried[..., 0].to(dtype), carried)
        groups = np.searchsorted(levels, np.arange(federation.r_max) + 1)
        return cls(shares, torch.from_numpy(groups).to(device), torch.from_numpy(index).to(device))

    def total(self) -> Tensor:
        """Return `sum_k w_k`, (S or 1, T or 1, r_max)."""
        return self.shares.sum(-2)[:, self.groups][self.index]

    def squares(self) -> Tensor:
        """Return `sum_k w_k**2`, (S or 1, T or 1, r_max)."""
        return self.shares.square().sum(-2)[:, self.groups][self.index]


def _distinct(codes: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct codes below `size`, and the position of each code among them.

    As `numpy.unique`, without sorting millions of codes.
    """
    occurs = np.zeros(size, dtype=bool)
    occurs[codes] = True
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[codes]


MOST_COMBINATIONS = 1_000_000
"""Numbers of carriers that a table holds."""


def counts_carriers(scenario: Scenario) -> bool:
    """Return True if clients of equal rank differ in nothing, and each is drawn at most once."""
    federation = scenario.federation
    if are_persistent(scenario):
        return False
    # Refusals under `error` name the run and the round: they need every cohort.
    plain = scenario.allocation == "svd" and scenario.empty_partition != "error"
    once = federation.sampling in ("full", "without_replacement", "bernoulli")
    few = (federation.max_cohort + 1) ** len(federation.levels) <= MOST_COMBINATIONS
    return plain and once and few and len(set(federation.weights.tolist())) == 1


def shares_of(
    scenario: Scenario, rule: AggregationRule, seeds: Sequence[int]
) -> CohortShares | CarrierShares:
    """Return the rule's weights of the cohorts of one run per seed, for sums over each cohort."""
    if counts_carriers(scenario):
        return CarrierShares.of(scenario, rule, _counts(scenario, seeds))
    return CohortShares.of(scenario, rule, draw(scenario, seeds))
