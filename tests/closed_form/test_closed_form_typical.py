"""Survival, typical rate and spread against complete distributions of a few rounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from closed_form_cases import RANKS, evolve, federation_keywords, two_points
from hypothesis import given
from hypothesis import strategies as st

from analysis import closed_form
from fedlora_sim import Scenario
from fedlora_sim.federation import SAMPLINGS, Federation
from fedlora_sim.tolerances import relative

CLOSE = relative("factorization")
ROUNDS = 3
RULES = [rule for rule in closed_form.RULES if rule != "hetlora"]


@pytest.mark.parametrize("allocation", ["svd", "random"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("rule", RULES)
def test_a_few_rounds(rule, sampling, allocation):
    known = federation_keywords(sampling) | {"allocation": allocation}
    fed = Federation(RANKS, known["num_samples"], known["cohort_size"], sampling)
    for policy in ("zero", "carry") if rule in ("raflora", "rbla") else ("zero",):
        asked = known | {"empty_partition": policy}
        alive = closed_form.survival(Scenario(RANKS, rounds=ROUNDS, **asked), rule)
        assert (np.diff(alive, axis=0) <= 0).all()
        np.testing.assert_array_equal(alive[0], 1.0)
        for i in range(fed.r_max):
            x, p = evolve(
                rule, fed, i, 1.0, ROUNDS, policy=policy, allocation=allocation,
                gains=two_points(0.8, 0), drifts=two_points(0, 0),
            )  # fmt: skip
            lives = np.abs(x) > CLOSE  # a residual of zero is only rounding
            assert p[lives].sum() == pytest.approx(alive[-1, i], rel=CLOSE)
            if rule == "fedex":
                continue
            logs, q = np.log(x[lives] ** 2), p[lives] / p[lives].sum()
            rate = closed_form.typical_rate(Scenario(RANKS, gain_mean=0.8, **asked), rule)[i]
            spread = closed_form.log_energy_std(
                Scenario(RANKS, rounds=ROUNDS, gain_mean=0.8, **asked), rule
            )[-1, i]
            assert math.log(rate) * ROUNDS == pytest.approx(q @ logs, rel=CLOSE)
            variance = q @ (logs - q @ logs) ** 2
            assert spread**2 == pytest.approx(variance, rel=CLOSE, abs=CLOSE)


@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from(["fedavg", "zero_pad", "hetlora"]))
def test_typical_is_below_the_mean(long, size, rule):
    asked = {"cohort_size": size}
    ranks = (1,) * (6 - long) + (2,) * long
    alive = closed_form.survival(Scenario(ranks, rounds=1, **asked), rule)[1]
    mean = closed_form.energy_rate(Scenario(ranks, **asked), rule) / alive
    assert (closed_form.typical_rate(Scenario(ranks, **asked), rule) <= mean * (1 + CLOSE)).all()


def test_fedex_rate_is_that_of_its_energies():
    asked = {"gain_mean": np.array([0.9, 0.7])}
    scenario = Scenario(RANKS, rounds=300)
    typical = closed_form.typical_rate(scenario, "fedex", **asked)
    np.testing.assert_allclose(typical, closed_form.energy_rate(scenario, "fedex", **asked))
    path = closed_form.mean_trajectory(scenario, "fedex", initial_amplitude=1.0, **asked)
    np.testing.assert_allclose((path[-1] / path[-2]) ** 2, typical, rtol=relative("iteration"))
    np.testing.assert_array_equal(
        closed_form.typical_rate(Scenario(RANKS, cohort_size=2), "fedex"), 1.0
    )
    np.testing.assert_array_equal(
        closed_form.log_energy_std(Scenario(RANKS, rounds=4), "fedex"), 0.0
    )


def test_no_gain_leaves_nothing():
    for rule in ("fedavg", "zero_pad", "raflora", "rbla", "hetlora"):
        rate = closed_form.typical_rate(Scenario(RANKS, gain_mean=0.0, cohort_size=2), rule)
        np.testing.assert_array_equal(rate, 0.0)
    flora = closed_form.typical_rate(Scenario(RANKS, gain_mean=0.0), "flora")
    np.testing.assert_allclose(flora, (1 - closed_form.coverage(Scenario(RANKS))) ** 2)


def test_full_participation_is_not_random():
    for rule in closed_form.RULES:
        np.testing.assert_array_equal(closed_form.survival(Scenario(RANKS, rounds=5), rule), 1.0)
        spread = closed_form.log_energy_std(Scenario(RANKS, rounds=5, gain_mean=0.9), rule)
        np.testing.assert_allclose(spread, 0.0, atol=CLOSE)


def test_survival_is_a_probability():
    for rounds in (50, 100, 1000):
        for size in (1, 2):
            alive = closed_form.survival(
                Scenario("2x3,8x2", rounds=rounds, cohort_size=size), "fedex"
            )
            assert ((alive >= 0) & (alive <= 1)).all()


def test_half_lives_by_hand():
    lives = closed_form.half_life([0.25, 0.5, 1.0, 1.5, 0.0])
    np.testing.assert_allclose(lives, [0.5, 1.0, math.inf, math.inf, 0.0])
    for bad in (-0.1, math.nan, "fast"):
        with pytest.raises(ValueError, match="rate="):
            closed_form.half_life(bad)


def test_cases_without_closed_form_are_refused():
    alone = {"gain_mean": 0.9, "cohort_size": 2}
    with pytest.raises(ValueError, match=r"cohort_size=2: expected full participation for"):
        closed_form.typical_rate(Scenario(RANKS, **alone), "fedex")
    with pytest.raises(ValueError, match=r"cohort_size=2: expected full participation for"):
        closed_form.log_energy_std(Scenario(RANKS, rounds=3, **alone), "fedex")
    with pytest.raises(ValueError, match="allocation='importance': expected 'svd' or 'random'"):
        closed_form.survival(Scenario(RANKS, rounds=3, allocation="importance"), "fedavg")
    with pytest.raises(ValueError, match="empty_partition='error'"):
        closed_form.survival(
            Scenario(RANKS, rounds=3, cohort_size=1, empty_partition="error"), "rbla"
        )
    with pytest.raises(ValueError, match="rounds=0"):
        closed_form.survival(Scenario(RANKS, rounds=0), "rbla")
