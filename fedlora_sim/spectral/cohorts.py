"""Who takes part in a batch of spectral runs, with which weight and which directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedlora_sim.allocation import carried_directions, leading_directions
from fedlora_sim.draws import allocation_scores, cohort_counts
from fedlora_sim.federation import cohort_slots
from fedlora_sim.scenario import Scenario


@dataclass(frozen=True, eq=False)
class Cohorts:
    """The drawn cohorts; a dimension of 1 stands for runs or rounds that are all alike.

    Args:
        clients: client in each cohort slot, (S or 1, T or 1, m).
        weights: unnormalised weight of each slot, same shape.
        ranks: rank of every client, (K,).
        groups: which rank indices belong together, (r_max,): the partition of each, or, where
            clients carry other directions than the first ones, the index itself.
        members: which groups each slot carries, boolean (S or 1, T or 1, m, groups).
    """

    clients: Tensor
    weights: Tensor
    ranks: Tensor
    groups: Tensor
    members: Tensor

    def round(self, t: int) -> tuple[Tensor, Tensor, Tensor]:
        """Clients (S or 1, m), weights and directions carried (S or 1, m, r_max) of round t."""
        members = self.members[:, t % self.members.shape[1]][..., self.groups]
        row = t % self.clients.shape[1]
        return self.clients[:, row], self.weights[:, row], members


def draw(
    scenario: Scenario, seeds: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Cohorts:
    """The cohorts of one run per seed."""
    federation = scenario.federation
    if federation.sampling == "full":  # every round alike: one row stands for all
        counts = np.ones((1, 1, federation.num_clients), dtype=np.int64)
    else:
        counts = np.stack([cohort_counts(scenario, seed) for seed in seeds])
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
    """Directions of every slot under random allocation, (S, T, m, r_max)."""
    scores = torch.from_numpy(np.stack([allocation_scores(scenario, seed) for seed in seeds]))
    slots = clients.expand(*scores.shape[:2], -1)
    index = slots.unsqueeze(-1).expand(*slots.shape, scores.shape[-1])
    # Only who takes part is sorted.
    return carried_directions(ranks[slots], scores.to(clients.device).gather(2, index))
