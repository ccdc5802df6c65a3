"""Spectral fidelity: agreement with the reference, number by number or in law."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from designs import each_value, pairwise
from simulator_cases import LAWS, RULES, SIGMAS, assert_close

from fedlora_sim import Federation, Scenario, simulate
from fedlora_sim.engines import spectral
from fedlora_sim.engines.cohort_draws import cohort_counts
from fedlora_sim.federation import draw_cohorts
from fedlora_sim.reference.simulators import spectral_reference

SAMPLES = (5, 1, 2, 7, 3, 3, 1)
RANKS = "1x3,3x2,4x2"
NOISE = {"gain_mean": 0.9, "gain_std": 0.4, "drift_mean": 0.1, "drift_std": 0.2}


def scenario(law, **changes):
    size = None if law == "full" else 2
    options = {"num_samples": SAMPLES, "rounds": 12, "sampling": law, "cohort_size": size}
    return Scenario(RANKS, **{**options, **changes})


def reference(run, rule, seeds):
    return np.stack([spectral_reference(run, rule, seed) for seed in seeds]) ** 2


EQUAL = (3,) * len(SAMPLES)
"""Clients of a rank are exchangeable: the engine counts carriers only."""


@pairwise(rule=RULES, law=LAWS, empty_partition=["carry", "zero"], samples=[SAMPLES, EQUAL])
def test_without_noise_it_is_the_reference(rule, law, empty_partition, samples):
    options = {"empty_partition": empty_partition, "num_samples": samples}
    run = scenario(law, gain_mean=-0.95, drift_mean=0.05, **options)
    energy = simulate(run, rule=rule, seed=range(3)).energy
    assert_close(energy, reference(run, rule, range(3)))


@pairwise(rule=RULES, law=LAWS, empty_partition=["carry", "zero"])
def test_persistent_heterogeneity_is_the_reference(rule, law, empty_partition):
    run = scenario(law, empty_partition=empty_partition, heterogeneity="persistent", **NOISE)
    energy = simulate(run, rule=rule, seed=range(3)).energy
    assert_close(energy, reference(run, rule, range(3)))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("noise", [NOISE, {"gain_std": 0.3}, {"drift_std": 0.3}])
def test_fresh_noise_in_factor_space_is_the_reference(law, noise):
    run = scenario(law, **noise)
    energy = simulate(run, rule="zero_pad", seed=range(3)).energy
    assert_close(energy, reference(run, "zero_pad", range(3)))


RUNS, ROUNDS = 3000, 5


def client_loop(run, rule, rng):
    """Return energies of runs with separate draws per client: (runs, rounds + 1, r_max)."""
    federation = run.federation
    counts = draw_cohorts(federation, RUNS * ROUNDS, rng).reshape(RUNS, ROUNDS, -1)
    weights = federation.cohort_weights(np.arange(federation.num_clients), counts)
    members = federation.members.astype(float)
    x = np.tile(run.initial_amplitudes, (RUNS, 1))
    states = [x]
    for t in range(ROUNDS):
        shape = (RUNS, federation.num_clients, federation.r_max)
        gain = run.gain_mean + run.gain_std * rng.standard_normal(shape)
        drift = run.drift_mean + run.drift_std * rng.standard_normal(shape)
        carried = weights[:, t, :, None] * members
        total = weights[:, t].sum(1)[:, None] if rule == "fedavg" else carried.sum(1)
        lost = x if run.empty_partition == "carry" else np.zeros_like(x)
        local = (carried * (gain * x[:, None] + drift)).sum(1)
        x = np.where(total > 0, local / np.where(total > 0, total, 1), lost)
        states.append(x)
    return np.stack(states, 1) ** 2


@pytest.mark.slow
@pairwise(
    law=LAWS,
    case=[("fedavg", "zero"), ("raflora", "zero"), ("raflora", "carry")],
    samples=[SAMPLES, EQUAL],
)
def test_fresh_noise_in_product_space_agrees_in_law(law, case, samples):
    rule, policy = case
    run = scenario(law, rounds=ROUNDS, empty_partition=policy, num_samples=samples, **NOISE)
    fast = simulate(run, rule=rule, seed=range(RUNS)).energy.values
    slow = client_loop(run, rule, np.random.default_rng(1))
    spread = np.sqrt((fast.var(0) + slow.var(0)) / RUNS)
    assert np.all(np.abs(fast.mean(0) - slow.mean(0)) <= SIGMAS * spread)
    # Compare the variance within a round too, not only the mean.
    spread = np.sqrt(((fast - fast.mean(0)) ** 2).var(0) + ((slow - slow.mean(0)) ** 2).var(0))
    assert np.all(np.abs(fast.var(0) - slow.var(0)) <= SIGMAS * spread / np.sqrt(RUNS))


def test_rounds_directions_and_seeds_have_independent_noise():
    run = Scenario("2x1", rounds=2, gain_mean=0.0, drift_std=1.0)
    amplitude = np.sqrt(simulate(run, rule="fedavg", seed=range(RUNS)).energy.values[:, 1:])
    flat = amplitude.reshape(RUNS, -1)
    correlation = np.corrcoef(flat.T) - np.eye(flat.shape[1])
    assert np.all(np.abs(correlation) <= SIGMAS / np.sqrt(RUNS))
    assert len(np.unique(flat)) == flat.size


@pytest.mark.slow
@pairwise(rule=RULES, law=LAWS, heterogeneity=["fresh", "persistent"])
def test_a_run_is_the_same_bits_alone_and_among_others(rule, law, heterogeneity):
    run = Scenario(
        "2x9,5x7,7x8",
        rounds=3,
        sampling=law,
        cohort_size=None if law == "full" else 9,
        heterogeneity=heterogeneity,
        **NOISE,
    )
    among = simulate(run, rule=rule, seed=range(40)).energy.values
    for seed in range(0, 40, 3):
        np.testing.assert_array_equal(simulate(run, rule=rule, seed=seed).energy[0], among[seed])


@each_value(rule=RULES, heterogeneity=["fresh", "persistent"])
def test_float32_follows_float64(rule, heterogeneity):
    run = scenario("without_replacement", heterogeneity=heterogeneity, **NOISE)
    double = simulate(run, rule=rule, seed=range(5)).energy
    single = simulate(run.replace(dtype="float32"), rule=rule, seed=range(5)).energy
    assert_close(single, double, "iteration", torch.float32)


@pytest.mark.parametrize("law", ["without_replacement", "bernoulli", "size_weighted"])
def test_raflora_loses_exactly_the_partitions_without_contributor(law):
    """Gain 1 and no drift: under `zero` a partition lives until its first empty round."""
    run = scenario(law, empty_partition="zero")
    members = run.federation.members
    for seed in range(5):
        brought = cohort_counts(run, seed) @ members > 0
        alive = np.vstack([np.ones(4, bool), np.logical_and.accumulate(brought)])
        energy = simulate(run, rule="raflora", seed=seed).energy[0]
        assert_close(energy, alive * run.initial_amplitudes**2)
        carried = simulate(run.replace(empty_partition="carry"), rule="raflora", seed=seed).energy
        assert_close(carried[0], np.tile(run.initial_amplitudes**2, (run.rounds + 1, 1)))


@pytest.mark.parametrize(("rule", "power"), [("fedavg", 2), ("zero_pad", 4), ("raflora", 0)])
def test_full_participation_by_hand(rule, power):
    run = scenario("full", gain_mean=0.9)
    coverage = Federation(RANKS, SAMPLES).coverage()
    rounds = np.arange(run.rounds + 1)[:, None]
    wanted = run.initial_amplitudes**2 * (0.81 * coverage**power) ** rounds
    assert_close(simulate(run, rule=rule).energy[0], wanted, "iteration")


@pytest.mark.parametrize("how", ["account", "persistent"])
def test_batches_with_a_place_per_cohort_slot_are_bounded(monkeypatch, how):
    """Also where the clients of a rank are exchangeable, which allows larger batches elsewhere."""
    most, sizes, draw = 20_000, [], spectral.draw

    def drawn(*arguments):
        cohorts = draw(*arguments)
        sizes.append(cohorts.clients.numel() * len(cohorts.groups))
        return cohorts

    monkeypatch.setattr(spectral, "draw", drawn)
    monkeypatch.setattr(spectral, "BATCH_ELEMENTS", most)
    run = Scenario("2x20,30x20", rounds=4, cohort_size=20)
    if how == "persistent":
        run = run.replace(heterogeneity="persistent", gain_std=0.1)
    simulate(run, "raflora", seed=range(20), ledger=how == "account")
    assert sizes
    assert max(sizes) <= most
