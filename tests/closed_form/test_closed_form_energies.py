"""Means and energies of every rule against complete distributions and against their limits."""

from __future__ import annotations

import numpy as np
import pytest
from closed_form_cases import (
    COMMON_RULES,
    FACTOR,
    RANKS,
    SAMPLES,
    SPREAD_RULES,
    evolve,
    federation_keywords,
    two_points,
)

from analysis import closed_form
from fedlora_sim import Scenario
from fedlora_sim.federation import SAMPLINGS, Federation
from fedlora_sim.tolerances import relative

CLOSE = relative("factorization")
ITERATED = relative("iteration")
START, ROUNDS = 1.5, 2
POLICIES = {"raflora": ("zero", "carry"), "rbla": ("zero", "carry")}


def compare(rule, policy, sampling, allocation, spread, rounds=ROUNDS):
    given = federation_keywords(sampling)
    fed = Federation(RANKS, given["num_samples"], given["cohort_size"], sampling)
    keywords = {**given, **spread, "allocation": allocation, "empty_partition": policy}
    paths = [
        path(Scenario(RANKS, rounds=rounds, **keywords), rule, initial_amplitude=START)[-1]
        for path in (closed_form.mean_trajectory, closed_form.energy_trajectory)
    ]
    gains = two_points(spread["gain_mean"], spread.get("gain_std", 0))
    drifts = two_points(spread["drift_mean"], spread.get("drift_std", 0))
    for i in range(fed.r_max):
        x, p = evolve(
            rule, fed, i, START, rounds, policy=policy, allocation=allocation, gains=gains,
            drifts=drifts,
        )  # fmt: skip
        np.testing.assert_allclose([path[i] for path in paths], [p @ x, p @ x**2], rtol=CLOSE)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("rule", SPREAD_RULES)
def test_clients_that_differ(rule, sampling):
    spread = {"gain_mean": 0.8, "gain_std": 0.3, "drift_mean": 0.2, "drift_std": 0.1}
    for policy in POLICIES.get(rule, ("zero",)):
        compare(rule, policy, sampling, "svd", spread)


@pytest.mark.parametrize("allocation", ["svd", "random"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("rule", COMMON_RULES)
def test_clients_that_agree(rule, sampling, allocation):
    for policy in POLICIES.get(rule, ("zero",)):
        compare(rule, policy, sampling, allocation, {"gain_mean": 0.8, "drift_mean": 0.2}, 3)


def test_clients_that_differ_under_random_allocation():
    spread = {"gain_mean": 1.1, "gain_std": 0.3, "drift_mean": -0.2, "drift_std": 0.1}
    for rule in ("fedavg", "raflora", "flora"):
        compare(rule, "zero", "without_replacement", "random", spread, 1)


@pytest.mark.parametrize("rule", [r for r in closed_form.RULES if r != "hetlora"])
@pytest.mark.parametrize("drift", [0.0, 0.3])
def test_trajectories_tend_to_the_floor(rule, drift):
    given = {**federation_keywords("without_replacement"), "gain_mean": 0.7, "drift_mean": drift}
    if rule in SPREAD_RULES:
        given |= {"gain_std": 0.2, "drift_std": 0.1}
    floor = closed_form.energy_floor(Scenario(RANKS, **given), rule)
    for start in (0.0, 5.0):
        path = closed_form.energy_trajectory(
            Scenario(RANKS, rounds=400, **given), rule, initial_amplitude=start
        )
        np.testing.assert_allclose(path[-1], floor, rtol=ITERATED, atol=ITERATED)


@pytest.mark.parametrize("rule", closed_form.RULES)
def test_the_rate_is_the_remaining_share_of_energy(rule):
    given = {"gain_mean": 0.9, "cohort_size": None if rule == "hetlora" else 2}
    rate = closed_form.energy_rate(Scenario(RANKS, **given), rule)
    path = closed_form.energy_trajectory(
        Scenario(RANKS, rounds=100, **given), rule, initial_amplitude=1.0
    )
    np.testing.assert_allclose(path[-1] / path[-2], rate, rtol=ITERATED)


def test_fedex_settles_at_its_share():
    share = closed_form.coverage(Scenario(RANKS, num_samples=SAMPLES))
    path = closed_form.mean_trajectory(
        Scenario(RANKS, rounds=3000, num_samples=SAMPLES), "fedex", initial_amplitude=2.0
    )
    np.testing.assert_allclose(path[-1], np.where(share == 1, 2.0, 2 * share / (1 + share)))
    np.testing.assert_array_equal(
        closed_form.energy_rate(Scenario(RANKS, cohort_size=2), "fedex"), 1.0
    )


def test_flora_dilutes_increments_and_keeps_the_base():
    given = {"cohort_size": 2, "spectrum_decay": 1.0}
    still = closed_form.energy_trajectory(Scenario(RANKS, rounds=50, **given), "flora")
    np.testing.assert_array_equal(still, 1.0)
    grown = closed_form.mean_trajectory(
        Scenario(RANKS, rounds=50, drift_mean=0.1, **given), "flora"
    )
    share = closed_form.coverage(Scenario(RANKS))
    np.testing.assert_allclose(grown[-1], 1 + 50 * 0.1 * share, rtol=CLOSE)


def test_hetlora_by_its_definition():
    x = np.array([2.0, 1.0, 0.5])
    ranks = (1, 2, 3)
    path = closed_form.energy_trajectory(
        Scenario(ranks, rounds=6, gain_mean=0.9, drift_mean=0.05), "hetlora", initial_amplitude=x
    )
    for t in range(6):
        y = 0.9 * x + 0.05
        norms = [np.linalg.norm(y[:r]) for r in ranks]
        x = np.array([(sum(norms[i:]) / sum(norms)) ** 2 * y[i] for i in range(3)])
        np.testing.assert_allclose(path[t + 1], x**2, rtol=CLOSE)
    floor = closed_form.energy_floor(Scenario(ranks, gain_mean=0.9), "hetlora")
    np.testing.assert_array_equal(floor, 0.0)
    assert np.isinf(closed_form.energy_floor(Scenario(ranks), "hetlora")[0])
    held = Scenario(ranks, gain_mean=0.9, drift_mean=0.05, rounds=400)
    last = closed_form.energy_trajectory(held, "hetlora")[-1]
    np.testing.assert_allclose(closed_form.energy_floor(held, "hetlora"), last, rtol=CLOSE)
    # the shared direction grows without end, decides all norms, and the weights become uniform
    grows = Scenario(ranks, drift_mean=0.05, rounds=2_000)
    floor = closed_form.energy_floor(grows, "hetlora")
    assert np.isinf(floor[0])
    near = closed_form.energy_trajectory(grows, "hetlora")[-1, 1:]
    np.testing.assert_allclose(floor[1:], near, rtol=1e-2)
    for share, energy in zip((2 / 3, 1 / 3), floor[1:], strict=True):
        np.testing.assert_allclose(energy, (0.05 * share**2 / (1 - share**2)) ** 2, rtol=CLOSE)


def test_critical_heterogeneity_stops_the_suppression():
    for rule in SPREAD_RULES:
        given = {**federation_keywords("bernoulli"), "gain_mean": 0.9}
        critical = closed_form.critical_gain_std(Scenario(RANKS, **given), rule)
        rate = closed_form.energy_rate(Scenario(RANKS, **given), rule, gain_std=critical)
        np.testing.assert_allclose(rate, 1.0, rtol=CLOSE)
        floors = [
            closed_form.energy_floor(
                Scenario(RANKS, drift_std=1.0, **given), rule, gain_std=f * critical
            )
            for f in (0.99, 1.01)
        ]
        assert np.isfinite(floors[0]).all()
        assert np.isinf(floors[1]).all()
    np.testing.assert_array_equal(closed_form.critical_gain_std(Scenario(RANKS), "raflora"), 0.0)


def test_overflow_is_infinite_and_never_undefined():
    for rule in closed_form.RULES:
        given = {"gain_mean": -1e6, "drift_mean": 0.0 if rule == "hetlora" else 1e5}
        given["cohort_size"] = None if rule == "hetlora" else 2
        if rule == "hetlora":
            given["gain_mean"] = 1.0
        energy = closed_form.energy_trajectory(
            Scenario(RANKS, rounds=100, **given), rule, initial_amplitude=1.0
        )
        assert not np.isnan(energy).any()
        assert rule == "hetlora" or np.isinf(energy[-1]).all()


@pytest.mark.parametrize("rule", [*FACTOR, "fedex"])
@pytest.mark.parametrize("argument", ["gain_std", "drift_std"])
def test_spread_in_factor_space_is_refused(rule, argument):
    for function in (closed_form.energy_floor, closed_form.energy_trajectory):
        given = {argument: 0.1}
        with pytest.raises(
            ValueError, match=rf"{argument}=0.1: expected 0 for a rule that averages"
        ):
            function(Scenario(RANKS, rounds=3, **given), rule)


def test_hetlora_names_its_missing_closed_forms():
    with pytest.raises(ValueError, match=r"cohort_size=2: expected full participation"):
        closed_form.energy_trajectory(
            Scenario(RANKS, rounds=3, cohort_size=2), "hetlora", initial_amplitude=1.0
        )
    with pytest.raises(ValueError, match=r"sampling='with_replacement': expected full, without"):
        closed_form.energy_rate(
            Scenario(RANKS, cohort_size=2, sampling="with_replacement"), "hetlora"
        )
    with pytest.raises(ValueError, match=r"drift_mean=.*: expected 0 for rule='hetlora'"):
        closed_form.energy_rate(Scenario(RANKS, drift_mean=0.1), "hetlora")
    with pytest.raises(ValueError, match=r"cohort_size=2: expected full participation"):
        closed_form.energy_floor(
            Scenario(RANKS, gain_mean=0.9, drift_mean=0.1, cohort_size=2), "hetlora"
        )
