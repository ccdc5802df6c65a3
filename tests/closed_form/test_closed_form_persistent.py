"""Persistent heterogeneity against tensor quadrature over every client's gain and drift."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from closed_form_cases import RANKS, SAMPLES, outcomes, server
from cohort_cases import cohorts
from scipy.special import roots_hermitenorm

from analysis import closed_form
from analysis.closed_form.persistent import gamma_rule, normal_rule
from fedlora_sim import Scenario
from fedlora_sim.federation import SAMPLINGS, Federation
from fedlora_sim.tolerances import relative

CLOSE = relative("factorization")
ITERATED = relative("iteration")
START, ROUNDS = 1.3, 2
LAW = {"gain_mean": 0.9, "gain_std": 0.3, "drift_mean": 0.2, "drift_std": 0.25}


def nodes(mean: float, std: float, order: int) -> list[tuple[float, float]]:
    x, w = roots_hermitenorm(order)
    return list(zip(w / math.sqrt(2 * math.pi), mean + std * x, strict=True))


def brute(rule, fed, i, policy, law=LAW):
    """Return mean and energy after two rounds, exact: polynomials of low degree in every draw."""
    own = [int(r > i) for r in fed.ranks]
    table = list(client_weights(rule, fed, i))
    gains, drifts = (
        nodes(law["gain_mean"], law["gain_std"], ROUNDS + 1),
        nodes(law["drift_mean"], law["drift_std"], 2),
    )
    total = np.zeros(2)
    for choice in itertools.product(itertools.product(gains, drifts), repeat=sum(own)):
        mass = math.prod(pa * pb for (pa, _), (pb, _) in choice)
        a, b = np.zeros(len(own)), np.zeros(len(own))
        a[np.array(own) > 0] = [value for (_, value), _ in choice]
        b[np.array(own) > 0] = [value for _, (_, value) in choice]
        x, z, p = np.array([START]), np.zeros(1), np.ones(1)
        for _ in range(ROUNDS):
            parts = []
            for chance, weights in table:
                k = weights > 0
                reached = a[k, None] * (x + z) + b[k, None]
                parts.append((*server(rule, policy, x, z, weights[k], reached), chance * p))
            x, z, p = (np.concatenate(part) for part in zip(*parts, strict=True))
        total += mass * np.array([p @ (x + z), p @ (x + z) ** 2])
    return total


def client_weights(rule, fed, i):
    """Yield probability and weight of every client, from the cohorts of `outcomes`."""
    for (chance, counts), (_, weights) in zip(
        cohorts(fed), outcomes(rule, fed, "svd", i), strict=True
    ):
        own = np.array([c > 0 and r > i for c, r in zip(counts, fed.ranks, strict=True)])
        full = np.zeros(len(own))
        full[own] = weights
        yield float(chance), full


CASES = [(rule, "full", SAMPLES, "zero") for rule in ("fedavg", "ffa", "raflora", "flora")]
CASES += [
    (rule, sampling, None, policy)
    for sampling in SAMPLINGS
    for rule, policy in (
        ("fedavg", "zero"),
        ("raflora", "zero"),
        ("raflora", "carry"),
        ("flora", "zero"),
    )
]


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "sampling", "samples", "policy"), CASES)
def test_two_rounds(rule, sampling, samples, policy):
    size = 3 if sampling == "full" else 2
    fed = Federation(RANKS, samples, size, sampling)
    asked = {"cohort_size": size, "sampling": sampling, "num_samples": samples, **LAW}
    asked |= {"initial_amplitude": START, "spectrum_decay": 1.0}
    asked |= {"heterogeneity": "persistent", "empty_partition": policy}
    mean = closed_form.mean_trajectory(Scenario(RANKS, rounds=ROUNDS, **asked), rule)[-1]
    energy = closed_form.energy_trajectory(Scenario(RANKS, rounds=ROUNDS, **asked), rule)[-1]
    for i in range(fed.r_max):
        found = brute(rule, fed, i, policy)
        np.testing.assert_allclose([mean[i], energy[i]], found, rtol=CLOSE)


def test_both_routes_agree_over_many_rounds():
    asked = {"spectrum_decay": 0.5, "heterogeneity": "persistent", **LAW}
    for rule in ("fedavg", "raflora", "flora"):
        full = closed_form.energy_trajectory(Scenario(RANKS, rounds=60, **asked), rule)
        # with replacement and one client all values are drawn every time
        alone = closed_form.energy_trajectory(Scenario([2], rounds=60, **asked), rule)
        drawn = closed_form.energy_trajectory(
            Scenario([2], rounds=60, cohort_size=1, sampling="with_replacement", **asked), rule
        )
        np.testing.assert_allclose(drawn, alone, rtol=ITERATED)
        assert (full[-1] > 0).all()


def test_one_round_is_fresh_and_common_clients_always_are():
    asked = {"initial_amplitude": START, "spectrum_decay": 1.0, "cohort_size": 2, **LAW}
    for rule in ("fedavg", "raflora", "flora"):
        fresh, kept = (
            closed_form.energy_trajectory(Scenario(RANKS, rounds=4, heterogeneity=h, **asked), rule)
            for h in ("fresh", "persistent")
        )
        np.testing.assert_allclose(fresh[1], kept[1], rtol=CLOSE)
        assert (kept[2:] > fresh[2:]).all()
    common = {"cohort_size": 2, "gain_mean": 0.9, "drift_mean": 0.1}
    for rule in closed_form.RULES:
        if rule != "hetlora":
            fresh, kept = (
                closed_form.energy_trajectory(
                    Scenario(RANKS, rounds=4, heterogeneity=h, **common), rule
                )
                for h in ("fresh", "persistent")
            )
            np.testing.assert_array_equal(fresh, kept)


@pytest.mark.slow
def test_gains_without_bound_have_no_floor_and_drifts_have_one():
    asked = {"gain_mean": 0.7, "drift_mean": 0.2, "drift_std": 0.3, "heterogeneity": "persistent"}
    for rule in ("fedavg", "raflora", "flora", "ffa"):
        for known in (
            {"cohort_size": 2},
            {"num_samples": SAMPLES},
            {"cohort_size": 2, "empty_partition": "carry"},
        ):
            floor = closed_form.energy_floor(Scenario(RANKS, **asked, **known), rule)
            path = closed_form.energy_trajectory(
                Scenario(RANKS, rounds=250, **asked, **known), rule, initial_amplitude=2.0
            )
            np.testing.assert_allclose(path[-1], floor, rtol=ITERATED)
            none = closed_form.energy_floor(Scenario(RANKS, gain_std=0.01, **asked, **known), rule)
            np.testing.assert_array_equal(none, np.inf)
    path = closed_form.energy_trajectory(
        Scenario("2x3", rounds=400, gain_mean=0.8, gain_std=0.15, heterogeneity="persistent"),
        "fedavg",
        initial_amplitude=1.0,
    )
    growth = path[1:] / path[:-1]
    assert growth[0, 0] < 1 < growth[-1, 0]
    assert (np.diff(growth[:, 0]) > 0).all()


def test_overflow_is_infinite():
    asked = {"spectrum_decay": 1.0, "heterogeneity": "persistent", "gain_std": 50.0}
    for known in ({}, {"cohort_size": 2}):
        for mean in (-3.0, 0.0, 3.0):
            path = closed_form.energy_trajectory(
                Scenario(RANKS, rounds=200, drift_mean=1.0, **asked, **known),
                "fedavg",
                gain_mean=mean,
            )
            assert not np.isnan(path).any()
            assert np.isinf(path[-1]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": SAMPLES}, r"num_samples=.*: expected equal values, or full participation"),
        ({"allocation": "random"}, r"allocation='random': expected 'svd' with persistent"),
        ({"rounds": 501}, r"rounds=501: expected at most 500 with random cohorts"),
        ({"heterogeneity": "persistant"}, "did you mean 'persistent'"),
    ],
)
def test_bad_input_is_named(change, message):
    asked = {"cohort_size": 2, "gain_std": 0.1, "rounds": 3}
    asked |= {"heterogeneity": "persistent"} | change
    with pytest.raises(ValueError, match=message):
        closed_form.energy_trajectory(Scenario(RANKS, **asked), "fedavg")


@pytest.mark.parametrize("order", [1, 2, 9, 120])
def test_quadrature_is_exact_for_polynomials(order):
    for degree in range(0, min(2 * order, 40), 3):
        x, w = normal_rule(order)
        wanted = 0.0 if degree % 2 else math.prod(range(1, degree, 2))
        size = w @ np.abs(x) ** degree  # odd moments cancel
        assert w @ x**degree == pytest.approx(wanted, rel=ITERATED, abs=ITERATED * size)
        for freedom in (1, 2, 7):
            x, w = gamma_rule(order, freedom / 2)
            wanted = math.prod(freedom + 2 * j for j in range(degree))
            assert w @ (2 * x) ** degree == pytest.approx(wanted, rel=ITERATED)


def test_every_energy_within_the_range_of_numbers_is_right():
    rounds, nu = 160, 2
    found = closed_form.energy_trajectory(
        Scenario([1, 2], rounds=rounds, cohort_size=1, heterogeneity="persistent"),
        "fedavg",
        initial_amplitude=1.0,
        gain_std=float(nu),
    )[:, 1]
    moments = [1, 1]  # E[a**j] of a normal gain of mean 1, in whole numbers
    for j in range(1, 2 * rounds):
        moments.append(moments[j] + j * nu**2 * moments[j - 1])
    exact = [Fraction(moments[2 * t], 2**t) for t in range(rounds + 1)]
    for value, wanted in zip(found, exact, strict=True):
        if wanted < Fraction(1.7e308):
            assert value == pytest.approx(float(wanted), rel=relative("iteration"))
        else:
            assert value == np.inf
    assert 100 < np.isfinite(found).sum() < rounds
