"""Every rule under every allocation at matrix fidelity, against reference and spectral fidelity."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from designs import each_value, pairwise
from simulator_cases import ALL_RULES, CANONICAL, FACTOR_RULES, LAWS, assert_close

from fedlora_sim import Scenario, simulate
from fedlora_sim.engines import matrix as matrix_run
from fedlora_sim.engines.cohort_draws import draw_slots
from fedlora_sim.engines.draws import CPU, allocation_scores, client_draws, initial_basis
from fedlora_sim.reference.aggregation import held_reference
from fedlora_sim.reference.simulators import matrix_reference
from fedlora_sim.rules import AggregationRule, get_rule
from fedlora_sim.tolerances import relative

SAMPLES = (5, 1, 2, 7, 3)
NOISE = {"gain_std": 0.2, "drift_std": 0.1}
ALL = {**NOISE, "subspace_noise": 0.2, "basis_drift": 0.3}
SEEDS = range(2)
ALLOCATIONS = ("svd", "random", "importance")


def possible(rule, allocation, **others):
    """Yield the possible combinations: canonical factors need SVD allocation."""
    return rule != CANONICAL or allocation == "svd"


some_cases = each_value(rule=ALL_RULES, allocation=ALLOCATIONS, only=possible)


def scenario(law="without_replacement", **changes):
    options = {
        "fidelity": "matrix",
        "d_out": 7,
        "d_in": 9,
        "rounds": 4,
        "num_samples": SAMPLES,
        "sampling": law,
        "cohort_size": None if law == "full" else 2,
    }
    return Scenario("1x2,3x2,4x1", **{**options, **changes})


def assert_reference(run, rule, seeds=SEEDS):
    result = simulate(run, rule=rule, seed=seeds)
    pairs = (matrix_reference(run, rule, seed) for seed in seeds)
    values, projected = (np.stack(side) for side in zip(*pairs, strict=True))
    assert_close(result.energy, values**2, "iteration")
    scale = np.linalg.norm(values**2)
    assert_close(result.projected_energy, projected**2, "iteration", scale=scale)


@pytest.mark.slow
@pairwise(rule=ALL_RULES, allocation=ALLOCATIONS, law=LAWS, only=possible)
def test_disturbed_runs_are_the_reference(rule, allocation, law):
    policy = "zero" if law == "bernoulli" else "carry"
    assert_reference(scenario(law, allocation=allocation, empty_partition=policy, **ALL), rule)


@pairwise(
    rule=ALL_RULES,
    allocation=ALLOCATIONS,
    disturbed=["subspace_noise", "basis_drift"],
    only=possible,
)
def test_persistent_clients_are_the_reference(rule, allocation, disturbed):
    noise = {**NOISE, "heterogeneity": "persistent", disturbed: 0.3}
    assert_reference(scenario(allocation=allocation, empty_partition="zero", **noise), rule)


@each_value(rule=ALL_RULES, shape=[(4, 4), (12, 4), (4, 12)])
def test_layers_that_ranks_fill_are_the_reference(rule, shape):
    assert_reference(scenario(d_out=shape[0], d_in=shape[1], **ALL), rule)


@pytest.mark.parametrize("rule", ["raflora", "rbla", "fedavg", "ffa"])
def test_lost_directions_come_back_as_in_the_reference(rule):
    run = scenario(allocation="random", empty_partition="zero", cohort_size=1, drift_std=0.3)
    assert_reference(run, rule, range(10))


@pytest.mark.parametrize("rule", ["fedavg", "raflora", "zero_pad", "rbla", "ffa"])
def test_a_lost_direction_comes_back_where_nothing_lives(rule):
    """With gain 0 and one client, the energies are the squared drifts of what it carries.

    Random allocation loses some directions first. A later drift on a surviving direction would
    add to it, or appear between two.
    """
    run = Scenario("1x3,3x1", fidelity="matrix", d_out=5, d_in=4, rounds=6, cohort_size=1)
    run = run.replace(allocation="random", empty_partition="zero", gain_mean=0.0, drift_std=1.0)
    energy = simulate(run, rule=rule, seed=range(6)).energy.values
    for seed in range(6):
        clients, _ = draw_slots(run.federation, run.rounds, [seed], CPU)
        scores, draws = allocation_scores(run, [seed])[0], client_draws(run, [seed])
        for t in range(run.rounds):
            held = held_reference(run, run.ranks[clients[0, t, 0]], scores[t, 0].numpy(), [])
            drifts = np.zeros(3)
            drifts[held] = draws.round(t, clients[:, t])[1][0, 0, held]
            assert_close(energy[seed, t + 1], np.sort(drifts**2)[::-1], "iteration")


@pytest.mark.slow
@pairwise(
    rule=[rule for rule in ALL_RULES if rule != CANONICAL],
    allocation=["svd", "importance"],
    law=LAWS,
)
def test_without_noise_it_is_the_spectral_fidelity(rule, allocation, law):
    """Amplitudes stay in their order: the columns that SVD sorts stay where they are."""
    run = scenario(law, allocation=allocation, spectrum_decay=0.5, gain_mean=0.9, rounds=5)
    assert_spectral(run, rule)


@pairwise(
    rule=[*FACTOR_RULES, "fedex", "ffa", "flora"],
    allocation=ALLOCATIONS,
    law=["full", "with_replacement", "bernoulli"],
)
def test_with_gains_rules_that_keep_columns_in_place_are_the_spectral_fidelity(
    rule, allocation, law
):
    """Gains may change signs, which factors store in their columns and amplitudes in their value.

    The spectral fidelity draws the fresh gains of linear rules as a sum; persistent gains are
    equal in all fidelities.
    """
    gains = {"gain_mean": 0.8, "gain_std": 0.6, "heterogeneity": "persistent"}
    assert_spectral(scenario(law, allocation=allocation, **gains), rule)


def assert_spectral(run, rule):
    matrix = simulate(run, rule=rule, seed=SEEDS)
    spectral = simulate(run.replace(fidelity="spectral"), rule=rule, seed=SEEDS)
    assert_close(matrix.projected_energy, spectral.energy, "iteration")
    in_order = np.sort(spectral.energy.values)[..., ::-1]
    assert_close(matrix.energy, in_order, "iteration")


def test_drifts_differ_where_an_amplitude_has_turned_its_sign():
    """Spectral -1 + 0.1 has size 0.9; with the sign in the column it is 1.1."""
    run = Scenario("1x1", fidelity="matrix", d_out=3, d_in=3, rounds=2, gain_mean=-1.0)
    run = run.replace(drift_mean=0.1)
    sizes = {
        fidelity: np.sqrt(simulate(run.replace(fidelity=fidelity), rule="zero_pad").energy.values)
        for fidelity in ("spectral", "matrix")
    }
    assert_close(sizes["spectral"].ravel(), [1.0, 0.9, 1.0])
    assert_close(sizes["matrix"].ravel(), [1.0, 0.9, 0.8], "factorization")


def test_flora_keeps_every_direction_and_fedex_what_its_base_took():
    run = scenario("full", rounds=60)
    coverage = run.federation.coverage()
    start = run.initial_amplitudes
    for rule, left in (("flora", np.ones(4)), ("fedex", coverage / (1 + coverage))):
        left = np.where(coverage < 1, left, 1.0)
        energy = simulate(run, rule=rule).projected_energy[0, -1]
        assert_close(np.sqrt(energy), left * start, "iteration")


class Watched:
    """A rule that records its inputs."""

    def __init__(self, rule, monkeypatch):
        self.seen, self.rule = [], get_rule(rule)
        original = AggregationRule.aggregate

        def aggregate(chosen, cohort, *args, **options):
            # The engine uses the memory of the factors again in the next round.
            own = [
                replace(u, lora_A=u.lora_A.clone(), lora_B=u.lora_B.clone()) for u in cohort.updates
            ]
            cohort = replace(cohort, updates=own)
            result = original(chosen, cohort, *args, **options)
            self.seen.append((cohort, result))
            return result

        monkeypatch.setattr(AggregationRule, "aggregate", aggregate)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_the_a_of_ffa_is_the_initial_basis_throughout(allocation, monkeypatch):
    run, watched = scenario(allocation=allocation, **ALL), Watched("ffa", monkeypatch)
    simulate(run, rule=watched.rule, seed=SEEDS)
    v0 = torch.stack([torch.from_numpy(initial_basis(run, seed)[1].T) for seed in SEEDS])
    assert len(watched.seen) == run.rounds
    for cohort, result in watched.seen:
        for k, update in enumerate(cohort.updates):
            rows = cohort.members[:, k]
            # Scaled to unit length in every round, which leaves some rounding.
            assert_close(update.lora_A[rows], v0[rows])
            assert not update.lora_A[~rows].any()
        some = (cohort.members & (cohort.weights > 0).unsqueeze(-1)).any(1)
        assert_close(result.adapter.lora_A[some], v0[some])


@pytest.mark.slow
@some_cases
def test_clients_without_weight_and_batches_change_nothing(rule, allocation, monkeypatch):
    """Cohorts of different sizes are padded to one size; a single run has only its own padding."""
    run = scenario("bernoulli", allocation=allocation, empty_partition="zero", **ALL)
    whole = simulate(run, rule=rule, seed=range(4)).energy
    monkeypatch.setattr(matrix_run, "BATCH_ELEMENTS", 1)
    assert_close(simulate(run, rule=rule, seed=range(4)).energy, whole, "iteration")


@pytest.mark.slow
@some_cases
def test_float32_follows_float64(rule, allocation):
    run = scenario(allocation=allocation, **ALL)
    double = simulate(run, rule=rule, seed=SEEDS)
    single = simulate(run.replace(dtype="float32"), rule=rule, seed=SEEDS)
    assert_close(single.energy, double.energy, "iteration", torch.float32)


def test_singular_values_are_those_of_adapter_and_base_together(monkeypatch):
    watched = Watched("fedex", monkeypatch)
    run = scenario(**ALL)
    energy = simulate(run, rule=watched.rule, seed=0).energy[0].values
    base = torch.zeros(7, 9, dtype=torch.float64)
    for (_, result), row in zip(watched.seen, energy[1:], strict=True):
        base = base + result.base.dense()[0]
        values = torch.linalg.svdvals(result.adapter.delta()[0] + base)
        assert_close(row, values[:4].square(), "iteration")
    assert float(values[4]) > relative("iteration")
