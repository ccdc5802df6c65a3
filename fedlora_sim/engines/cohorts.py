"""Drawn cohorts of many runs, and a rule's weights of their clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedlora_sim.engines.cohort_draws import (
    are_all,
    distinct,
    draw_numbers,
    draw_parts,
    draw_slots,
    numbers_law,
    places,
)
from fedlora_sim.engines.draws import allocation_scores, carried_directions
from fedlora_sim.errors import InputError, expected
from fedlora_sim.federation import Federation
from fedlora_sim.rules import AggregationRule
from fedlora_sim.rules.base import sum_over_clients
from fedlora_sim.runtime import one_thread, resolve_device, torch_dtype
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
        weights: unnormalized weight of each slot, same shape; 0 where a slot has no client.
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


def draw(scenario: Scenario, seeds: Sequence[int]) -> Cohorts:
    """Return the cohorts of one run per seed."""
    _, device = place_of(scenario)
    federation = scenario.federation
    clients, times = draw_slots(federation, scenario.rounds, seeds, device)
    ranks = torch.tensor(federation.ranks, device=device)
    if scenario.allocation == "random":
        groups = torch.arange(federation.r_max, device=device)
        members = carried_directions(ranks[clients], allocation_scores(scenario, seeds, device))
    else:
        levels, groups = _partitions(federation, device)
        members = ranks[clients].unsqueeze(-1) >= levels
    return Cohorts(clients, _weights(scenario, clients, times), ranks, groups, members)


def _weights(scenario: Scenario, clients: Tensor, times: Tensor) -> Tensor:
    """Return the unnormalized weights of drawn clients, in the dtype of the run."""
    federation, (dtype, device) = scenario.federation, place_of(scenario)
    if federation.sampling == "size_weighted":  # whose draws know the sample numbers already
        return times.to(dtype)
    return times * torch.tensor(federation.num_samples, dtype=dtype, device=device)[clients]


def _partitions(federation: Federation, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the rank levels, and the partition of each direction, from 0."""
    levels = torch.tensor(federation.levels, device=device)
    directions = torch.arange(federation.r_max, device=device)
    return levels, torch.searchsorted(levels, directions + 1)


# The weights, normalized by the rule


def empty_direction(run: int, t: int, direction: int) -> InputError:
    """Return the error of `empty_partition='error'`; all three are counted from 0."""
    return expected(
        "empty_partition",
        "error",
        f"a contributor to every direction; direction {direction + 1} has none in round {t + 1} "
        f"of run {run} (choose zero or carry)",
    )


TABLE = 100_000
"""Combinations times cohort slots of a table; a longer one has only the rows that occur."""

SUMMED = 64
"""Cohorts of a batch are a multiple of this: `Tensor.sum` adds the last few in another order."""


@dataclass(frozen=True, eq=False)
class ShareSums:
    """Sums of a rule's normalized weights over each cohort.

    Where the clients of a rank are exchangeable they follow from the number of carriers of each
    group of directions. Few combinations of numbers occur: they are the rows of a table.

    Args:
        total: `sum_k w_k`, (S or 1, T or 1, groups), or (U, groups) with an index.
        squares: `sum_k w_k**2`, same shape.
        groups: group of each direction, (r_max,).
        index: row of each run and round, (S or 1, T or 1); None if there is no table.
    """

    total: Tensor
    squares: Tensor
    groups: Tensor
    index: Tensor | None = None

    @classmethod
    def of(cls, scenario: Scenario, rule: AggregationRule, seeds: Sequence[int]) -> ShareSums:
        """Return the sums of the cohorts of one run per seed.

        Raises:
            InputError: if a partition has no contributors under `empty_partition='error'`.
        """
        if counts_carriers(scenario):
            return cls._of_carriers(scenario, rule, seeds)
        if scenario.allocation == "random" or are_all(scenario.federation):
            each = CohortShares.of(scenario, rule, draw(scenario, seeds))
            return cls(*each.sums(), each.groups)
        with one_thread():  # the order of a sum's terms could depend on their number
            return cls._of_drawn(scenario, rule, seeds)

    @classmethod
    def _of_drawn(
        cls, scenario: Scenario, rule: AggregationRule, seeds: Sequence[int]
    ) -> ShareSums:
        federation, (_, device) = scenario.federation, place_of(scenario)
        levels, groups = _partitions(federation, device)
        ranks, sums = torch.tensor(federation.ranks, device=device), []
        for drawn in draw_parts(federation, scenario.rounds, seeds, device):
            # Cohorts are the last dimension in memory, along which sums are fast.
            clients, times = (functional.pad(x, (0, -x.shape[1] % SUMMED), value=1) for x in drawn)
            weights = _weights(scenario, clients, times)
            members = ranks[clients].unsqueeze(1) >= levels[:, None]
            shares = rule.direction_weights(weights.T, members.permute(2, 0, 1))
            both = (sum_over_clients(shares), sum_over_clients(shares.square()))
            sums.append([x[: drawn[0].shape[1]] for x in both])
        shape = (len(seeds), scenario.rounds, -1)
        total, squares = (torch.cat(side).reshape(shape) for side in zip(*sums, strict=True))
        _refuse_empty(scenario, rule, total, groups)
        return cls(total, squares, groups)

    @classmethod
    def _of_carriers(
        cls, scenario: Scenario, rule: AggregationRule, seeds: Sequence[int]
    ) -> ShareSums:
        federation, (dtype, device) = scenario.federation, place_of(scenario)
        law = numbers_law(federation)
        index = draw_numbers(federation, scenario.rounds, seeds, device)
        numbers = torch.from_numpy(law.numbers).to(device)
        if len(numbers) * places(federation) > TABLE:
            found, index = distinct(index, len(numbers))
            numbers = numbers[found]
        # Clients of a rank level and above carry it.
        carriers = numbers.flip(-1).cumsum(-1).flip(-1)
        carried = torch.arange(places(federation), device=device)[:, None] < carriers[:, None]
        # Equal weights, up to a common factor; all clients carry the first level.
        shares = rule.direction_weights(carried[..., 0].to(dtype), carried)
        _, groups = _partitions(federation, device)
        return cls(shares.sum(-2), shares.square().sum(-2), groups, index)

    def totals(self) -> Tensor:
        """Return `sum_k w_k` of each direction, (S or 1, T or 1, r_max)."""
        rows = self.total if self.index is None else self.total[self.index]
        return rows[..., self.groups]


def counts_carriers(scenario: Scenario) -> bool:
    """Return True if clients of equal rank differ in nothing, and each is drawn at most once."""
    federation = scenario.federation
    # Refusals under `error` name the run and the round: they need every cohort.
    plain = scenario.allocation == "svd" and scenario.empty_partition != "error"
    once = federation.sampling in ("full", "without_replacement", "bernoulli")
    alike = len(set(federation.weights.tolist())) == 1
    return plain and once and alike and numbers_law(federation).by_rank


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
        _refuse_empty(scenario, rule, shares.sum(-2), cohorts.groups)
        return cls(cohorts.clients, shares, cohorts.groups)

    def sums(self) -> tuple[Tensor, Tensor]:
        """Return `sum_k w_k` and `sum_k w_k**2`, both (S, T, groups)."""
        return self.shares.sum(-2), self.shares.square().sum(-2)

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


def _refuse_empty(scenario: Scenario, rule: AggregationRule, total: Tensor, groups: Tensor) -> None:
    if not rule.has_empty_partition_policy or scenario.empty_partition != "error":
        return
    empty = (total == 0).nonzero()
    if len(empty):
        run, t, h = empty[0].tolist()
        raise empty_direction(run, t, int((groups == h).nonzero()[0]))
