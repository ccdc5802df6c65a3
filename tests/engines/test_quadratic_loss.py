"""The quadratic loss at spectral fidelity: the exact flow, its floors and thresholds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from designs import each_value, pairwise
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from simulator_cases import LAWS, SIGMAS, assert_close, quick

from fedlora_sim import Federation, Scenario, simulate
from fedlora_sim.engines.cohort_draws import cohort_counts
from fedlora_sim.engines.draws import client_targets
from fedlora_sim.engines.spectral import LocalMap
from fedlora_sim.errors import InputError
from fedlora_sim.reference.simulators import spectral_reference
from fedlora_sim.tolerances import relative

SAMPLES = (5, 1, 2, 7, 3, 3, 1)
RANKS = "1x3,3x2,4x2"
SEEDS = range(3)
RULES = ("fedavg", "raflora", "zero_pad", "rbla", "hetlora", "hetlora:data_weighted=true", "ffa")
WITHOUT_MAP = ("flora", "fedex", "fedex:residual_rank=1")
FITTING = {"local_loss": "quadratic", "target_decay": 0.8, "spectrum_decay": 0.6}


def scenario(law="without_replacement", **changes):
    options = {
        "num_samples": SAMPLES,
        "rounds": 9,
        "sampling": law,
        "cohort_size": None if law == "full" else 2,
        **FITTING,
    }
    return Scenario(RANKS, **{**options, **changes})


def assert_reference(run, rule):
    wanted = np.stack([spectral_reference(run, rule, seed) for seed in SEEDS]) ** 2
    assert_close(simulate(run, rule=rule, seed=SEEDS).energy, wanted)


@pairwise(rule=RULES, law=LAWS, empty_partition=["carry", "zero"], target_std=[0.0, 0.6])
def test_it_is_the_reference(rule, law, empty_partition, target_std):
    assert_reference(scenario(law, empty_partition=empty_partition, target_std=target_std), rule)


@pairwise(rule=RULES, allocation=["random", "importance"], target_std=[0.0, 0.3])
def test_it_is_the_reference_for_any_carried_directions(rule, allocation, target_std):
    assert_reference(scenario(allocation=allocation, target_std=target_std), rule)


@pytest.mark.parametrize("rule", RULES)
def test_without_a_target_amplitudes_only_fall(rule):
    run = scenario("full", target_amplitude=0.0)
    assert_reference(run, rule)
    energy = simulate(run, rule=rule).energy
    assert (energy.diff("round") < 0).all()


@quick
@given(x=st.floats(0.01, 5), m=st.floats(-2, 3), time=st.floats(0.01, 3), frozen_a=st.booleans())
def test_the_map_is_the_flow_of_the_two_factors(x, m, time, frozen_a):
    """Integrated in the factors, without assuming balance."""
    start = [1.0, x] if frozen_a else [np.sqrt(x), np.sqrt(x)]

    def slope(_, factors):
        a, b = factors
        return [0.0 if frozen_a else (m - a * b) * b, (m - a * b) * a]

    precise = {"rtol": relative("factorization"), "atol": 0.0, "method": "DOP853"}
    end = solve_ivp(slope, (0.0, time), start, **precise).y[:, -1]
    local = LocalMap.fitting(torch.tensor([m], dtype=torch.float64), time, frozen_a=frozen_a)
    reached = local(torch.tensor([x], dtype=torch.float64))
    assert_close(reached, [end.prod()], "iteration", scale=max(x, abs(m)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_map_is_a_number_for_any_target(dtype):
    targets = torch.tensor([-1e20, -1e3, -1e-20, 0.0, 1e-20, 1e3, 1e20], dtype=dtype)
    local = LocalMap.fitting(targets, 2.0, frozen_a=False)
    for x in (0.0, 1e-3, 1.0):
        reached = local(torch.full_like(targets, x))
        assert torch.isfinite(reached).all()
        wanted = [0, 0, x / (1 + 4 * x), x / (1 + 4 * x), x / (1 + 4 * x)]
        wanted += [1e3, 1e20] if x else [0, 0]
        assert_close(reached, wanted, "reduction", dtype)


@pytest.mark.parametrize("rule", ["fedavg", "zero_pad", "raflora", "rbla", "ffa"])
def test_full_participation_ends_at_the_floor(rule):
    """`m (w G - 1) / (G - 1)` above the threshold `w G = 1`, and nothing below."""
    time, target = 0.6, 0.9
    run = scenario("full", rounds=400, local_time=time, target_amplitude=target, target_decay=1.0)
    coverage = Federation(RANKS, SAMPLES).coverage()
    share = {"zero_pad": coverage**2, "raflora": 1.0, "rbla": 1.0}.get(rule, coverage)
    growth = np.exp(2 * target * time)
    floor = np.maximum(target * (share * growth - 1) / (growth - 1), 0) * np.ones(4)
    if rule == "ffa":  # linear, so it never collapses
        left = np.exp(-time)
        floor = target * coverage * (1 - left) / (1 - coverage * left)
    energy = simulate(run, rule=rule).energy[0, -1]
    assert_close(energy, floor**2, "iteration")
    assert (floor > 0).all() == (rule not in ("fedavg", "zero_pad"))


def test_at_the_threshold_the_inverse_grows_by_a_constant():
    """`y' = y + (G - 1) / m`: neither a floor nor a rate."""
    run = Scenario("1x1,2x1", rounds=50, local_time=np.log(2) / 2, local_loss="quadratic")
    inverse = simulate(run, rule="fedavg").energy[0, :, 1].values ** -0.5
    assert_close(inverse, inverse[0] + np.arange(51), "iteration")


def test_targets_are_drawn_once_per_client():
    run = scenario(target_std=0.5, target_amplitude=2.0)
    targets = client_targets(run, 0)
    assert targets.shape == (7, 4)
    assert_close(targets / targets[:, :1], np.tile(0.8 ** np.arange(4.0), (7, 1)))
    np.testing.assert_array_equal(targets, client_targets(run.replace(rounds=3), 0))
    alike = client_targets(run.replace(target_std=0.0), 0)
    assert_close(alike, np.tile(run.target_amplitudes, (7, 1)))
    first = np.stack([client_targets(run, seed)[:, 0] for seed in range(300)]) / 2 - 1
    # A mean of normals, and a sum of squared ones.
    assert abs(first.mean()) <= SIGMAS * 0.5 / np.sqrt(first.size)
    assert abs((first**2).mean() / 0.25 - 1) <= SIGMAS * np.sqrt(2 / first.size)


@pytest.mark.slow
@pairwise(rule=RULES, law=LAWS, target_std=[0.0, 0.4])
def test_a_run_is_the_same_bits_alone_and_among_others(rule, law, target_std):
    run = scenario(law, rounds=4, target_std=target_std, empty_partition="zero")
    among = simulate(run, rule=rule, seed=range(40)).energy.values
    for seed in range(0, 40, 7):
        np.testing.assert_array_equal(simulate(run, rule=rule, seed=seed).energy[0], among[seed])


@each_value(rule=RULES, target_std=[0.0, 0.4])
def test_float32_follows_float64(rule, target_std):
    run = scenario(target_std=target_std)
    double = simulate(run, rule=rule, seed=SEEDS).energy
    single = simulate(run.replace(dtype="float32"), rule=rule, seed=SEEDS).energy
    assert_close(single, double, "iteration", torch.float32)


@pytest.mark.parametrize("rule", ["raflora", "rbla", "fedavg", "zero_pad"])
@pytest.mark.parametrize("target_std", [0.0, 0.2])
def test_directions_without_contributor_are_lost_permanently(rule, target_std):
    """Zero factors have no gradient: later clients of a higher rank cannot revive them."""
    run = scenario(empty_partition="zero", target_std=target_std, rounds=20, cohort_size=1)
    members = run.federation.members
    for seed in SEEDS:
        brought = cohort_counts(run, seed) @ members > 0
        alive = np.vstack([np.ones(4, bool), np.logical_and.accumulate(brought)])
        assert not alive.all()
        energy = simulate(run, rule=rule, seed=seed).energy[0].values
        np.testing.assert_array_equal(energy > 0, alive)
        frozen = simulate(run, rule="ffa", seed=seed).energy[0].values
        assert (frozen[1:][brought] > 0).all()


def test_a_partition_without_contributors_is_refused_under_error():
    for target_std in (0.0, 0.2):
        run = scenario(empty_partition="error", cohort_size=1, target_std=target_std)
        with pytest.raises(InputError, match="empty_partition='error'"):
            simulate(run, rule="raflora", seed=SEEDS)


@pytest.mark.parametrize("rule", WITHOUT_MAP)
def test_rules_without_an_exact_map_are_refused(rule):
    with pytest.raises(InputError, match=f"rule='{rule}'.*local_loss='quadratic'"):
        simulate(scenario(), rule=rule)
