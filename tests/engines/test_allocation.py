"""Rank allocation: the directions of each client, and equal draws in all engines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2
from simulator_cases import ALL_RULES, CANONICAL, assert_close, quick

from fedlora_sim import Federation, Scenario, simulate
from fedlora_sim.engines import cohorts
from fedlora_sim.engines.draws import (
    allocation_scores,
    carried_directions,
    client_draws,
    leading_directions,
)
from fedlora_sim.errors import InputError
from fedlora_sim.finetune.exchange import Directions
from fedlora_sim.finetune.local import Stack
from fedlora_sim.reference.aggregation import held_reference
from fedlora_sim.rules import get_rule
from fedlora_sim.simulate import simulate_many

ONCE_IN_TWO_MILLION = 5e-7


@quick
@given(
    rows=st.lists(
        st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=4, unique_by=tuple
    ),
    rank=st.integers(1, 5),
)
def test_the_highest_scores_are_carried_and_of_equals_the_first(rows, rank):
    importance = Scenario("5", allocation="importance")
    held = carried_directions(torch.full((len(rows),), rank), torch.tensor(rows))
    for mask, row in zip(held, rows, strict=True):
        assert mask.nonzero().flatten().tolist() == held_reference(importance, rank, [], row)


def test_falling_scores_are_svd_allocation():
    ranks = torch.tensor([[1, 4], [3, 2]])
    scores = torch.arange(4, 0, -1).expand(2, 2, -1)
    assert torch.equal(carried_directions(ranks, scores), leading_directions(ranks, 4))


RANDOM = Scenario("1x1,2x1,3x1,5x1", rounds=4000, allocation="random")


def random_masks(scenario, seed):
    """Return directions of every round and client, boolean (T, K, r_max)."""
    scores = allocation_scores(scenario, [seed])[0]
    return carried_directions(torch.tensor(scenario.ranks), scores).numpy()


def test_random_allocation_gives_every_client_its_rank():
    held = random_masks(RANDOM, 0).sum(-1)
    np.testing.assert_array_equal(held, np.tile(RANDOM.ranks, (RANDOM.rounds, 1)))


def test_random_allocation_is_uniform_over_subsets():
    """All subsets of r_k directions are equally frequent, by the chi-square test."""
    held = random_masks(RANDOM, 0)
    for k, subsets in ((0, 5), (1, 10), (2, 10), (3, 1)):
        counts = np.unique(held[:, k], axis=0, return_counts=True)[1]
        assert len(counts) == subsets
        expected = RANDOM.rounds / subsets
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert subsets == 1 or statistic <= chi2.isf(ONCE_IN_TWO_MILLION, subsets - 1)


def test_random_allocation_is_drawn_for_every_round_and_client():
    """Draws of two clients (rank 2 of 5), or of one in two rounds, are independent."""
    held = random_masks(RANDOM.replace(ranks="2x2,5x1"), 1)[:, :2]
    rounds = held[:-1:2], held[1::2]
    for first, second in ((held[:, 0], held[:, 1]), (rounds[0][:, 0], rounds[1][:, 0])):
        table = np.zeros((10, 10))
        one, other = (
            np.unique(side, axis=0, return_inverse=True)[1].ravel() for side in (first, second)
        )
        np.add.at(table, (one, other), 1)
        expected = len(first) / 100
        statistic = ((table - expected) ** 2 / expected).sum()
        assert statistic <= chi2.isf(ONCE_IN_TWO_MILLION, 99)


def test_coverage_under_random_allocation_is_the_mean_of_the_draws():
    scenario = RANDOM.replace(num_samples=(4, 3, 2, 1))
    federation = Federation(scenario.ranks, scenario.num_samples)
    share = federation.weights @ random_masks(scenario, 2)
    spread = share.std(0) / np.sqrt(len(share))
    assert np.all(np.abs(share.mean(0) - federation.coverage("random")) <= 5 * spread)


def test_fidelities_use_the_same_directions():
    """Rounds, cohort and directions are those of the draws."""
    small = RANDOM.replace(rounds=6, cohort_size=2)
    seeds = (3, 8)
    drawn = cohorts.draw(small, seeds)
    order = allocation_scores(small, seeds).argsort(descending=True)  # of each place's directions
    for t in range(small.rounds):
        clients, _, members = drawn.round(t)
        for s, j in np.ndindex(2, 2):
            held = order[s, t, j, : small.ranks[clients[s, j]]]
            np.testing.assert_array_equal(members[s, j].nonzero().flatten(), held.sort().values)
    training = Directions(small.replace(fidelity="training"), 8, 5)
    for t in range(small.rounds):
        start = Stack({"layer": (None, None)}, torch.ones(2))
        held = training.of(t, np.array([0, 2]), [1, 3], task_on_cpu(), start, [])
        for j, own in enumerate(held["layer"]):
            np.testing.assert_array_equal(own, order[1, t, j, : len(own)].sort().values)
        assert [len(own) for own in held["layer"]] == [1, 3]


def task_on_cpu():
    """Return the part of a task that an allocation without gradients needs."""

    class Task:
        device = torch.device("cpu")

    return Task


@pytest.mark.slow
@pytest.mark.parametrize("fidelity", ["spectral", "matrix"])
def test_draws_do_not_depend_on_the_rule(fidelity):
    """With gain 0 the number of nonzero directions is the rank of the cohort's client."""
    scenario = RANDOM.replace(
        fidelity=fidelity, rounds=6, cohort_size=1, gain_mean=0.0, drift_mean=1.0
    )
    alive = {
        rule: simulate(scenario, rule=rule, seed=4).energy[0, 1:] > 1e-9
        for rule in ALL_RULES
        if rule not in (CANONICAL, "raflora", "rbla", "flora", "fedex:residual_rank=1")
    }
    first = alive.pop("fedavg")
    assert 0 < int(first.sum()) < first.size
    for rule, found in alive.items():
        assert found.equals(first), rule


def test_importance_of_the_spectral_fidelity_is_how_far_a_client_would_move():
    """One client of rank 1 takes only the direction that its gain changes most."""
    scenario = Scenario("1x1,3x1", cohort_size=1, rounds=1, allocation="importance", gain_std=0.5)
    drops = simulate(scenario, rule="fedavg", seed=range(40)).energy.values
    kept = (drops[:, 1] > 0).sum(-1)
    assert set(kept.tolist()) == {1, 3}
    for seed in np.flatnonzero(kept == 1).tolist():
        moved = (
            np.abs(client_draws(scenario, [seed]).gain[0, 0, 0].numpy() - 1)
            * scenario.initial_amplitudes
        )
        assert drops[seed, 1].argmax() == moved.argmax()
    sizes = simulate(scenario.replace(ranks="3x2"), rule="fedavg", seed=range(40)).energy.values
    assert (sizes[:, 1] > 0).all()


@pytest.mark.parametrize("allocation", ["random", "importance"])
@pytest.mark.parametrize("fidelity", ["matrix", "training"])
def test_a_gauge_needs_svd_allocation(allocation, fidelity):
    scenario = Scenario("2x2", fidelity=fidelity, allocation=allocation, rounds=1)
    for call in (
        lambda: simulate(scenario, rule=CANONICAL),
        lambda: simulate(scenario, rule=get_rule("raflora", canonicalize=True)),
        lambda: simulate_many([scenario.replace(allocation="svd"), scenario], rule=CANONICAL),
    ):
        with pytest.raises(InputError, match=f"allocation='{allocation}'.*svd.*canonicalize"):
            call()


@pytest.mark.parametrize("fidelity", ["spectral", "matrix"])
@pytest.mark.parametrize("rule", ["fedavg", "flora", "fedex", "ffa", "rbla", "zero_pad"])
def test_full_rank_leaves_nothing_to_allocate(fidelity, rule):
    """All clients carry everything, so all allocations are equal."""
    scenario = Scenario("3x4", fidelity=fidelity, d_in=5, d_out=4, rounds=4, cohort_size=2)
    scenario = scenario.replace(gain_std=0.2, heterogeneity="persistent")
    wanted = simulate(scenario, rule=rule, seed=range(2)).energy
    for allocation in ("random", "importance"):
        other = simulate(scenario.replace(allocation=allocation), rule=rule, seed=range(2)).energy
        assert_close(other, wanted, "iteration")
