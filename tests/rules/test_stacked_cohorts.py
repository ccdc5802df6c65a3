"""A stacked cohort gives each rule what the same clients give it one by one."""

from __future__ import annotations

import pytest
import torch
from simulator_cases import ALL_RULES, assert_close

from fedlora_sim import LoRAFactors
from fedlora_sim.rules import get_rule
from fedlora_sim.rules.cohort import Cohort, StackedUpdates

SEEDS, CLIENTS, R, D_OUT, D_IN = 2, 3, 4, 9, 7


def stacked_cohort(rule):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    ranks = torch.tensor([[4, 2, 1], [2, 4, 4]])
    members = ranks.unsqueeze(-1) > torch.arange(R)
    a = normal(SEEDS, 1, R, D_IN) if rule.frozen_a else normal(SEEDS, CLIENTS, R, D_IN)
    a = a * members.unsqueeze(-1)
    b = normal(SEEDS, CLIENTS, D_OUT, R) * members.unsqueeze(-2)
    weights = torch.tensor([[3.0, 1.0, 2.0], [1.0, 0.0, 4.0]], dtype=torch.float64)
    positions = [torch.arange(R)] * CLIENTS
    scaling = torch.ones(CLIENTS, dtype=torch.float64)
    updates = StackedUpdates(LoRAFactors(a, b))
    return Cohort(updates, weights, members, positions, scaling, (1, 2, 4))


@pytest.mark.parametrize("name", ALL_RULES)
def test_a_rule_gives_the_same_for_a_list_of_clients(name):
    rule = get_rule(name)
    cohort = stacked_cohort(rule)
    listed = Cohort(
        list(cohort.updates),
        cohort.weights,
        cohort.members,
        cohort.positions,
        cohort.scaling,
        cohort.rank_levels,
    )
    found, wanted = (rule.aggregate(x, empty_partition="zero") for x in (cohort, listed))
    assert_close(found.adapter.delta(), wanted.adapter.delta(), "factorization")
    assert_close(found.delta(), wanted.delta(), "factorization")
    assert_close(cohort.norms(), listed.norms())


def test_items_are_views_of_one_client():
    updates = stacked_cohort(get_rule("fedavg")).updates
    assert len(updates) == CLIENTS
    assert [u.rank for u in updates[1:]] == [R, R]
    updates.factors.lora_A[:, 2, 1] = 5.0
    assert bool((updates[-1].lora_A[:, 1] == 5.0).all())
    with pytest.raises(IndexError):
        updates[CLIENTS]


def test_ffa_refuses_a_stack_with_different_a():
    rule = get_rule("ffa")
    cohort = stacked_cohort(rule)
    cohort.updates.factors.lora_A[0, 1, 0, 0] += 1.0
    with pytest.raises(ValueError, match=r"updates\[...\].lora_A.*the same A"):
        rule.aggregate(cohort)
