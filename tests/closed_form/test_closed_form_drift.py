"""The drift law: its closed forms by brute force, by limits, and by runs of the simulator."""

from __future__ import annotations

import numpy as np
import pytest
from closed_form_cases import COMMON_RULES, RANKS, SPREAD_RULES, evolve, federation_keywords

from analysis import closed_form
from analysis.closed_form.drift import SERIES_BELOW
from analysis.cohorts.shares import drawn_shares
from analysis.predict import predict
from fedlora_sim import Scenario, simulate
from fedlora_sim.federation import Federation
from fedlora_sim.randomness import stream
from fedlora_sim.tolerances import relative

CLOSE = relative("iteration")
LAW = {"local_loss": "drift", "drift_levels": (0.3, 0.2)}
THREE = Scenario("1x4,2x4,4x4", local_loss="drift", drift_levels=(0.3, 0.2, 0.1), rounds=40)
COHORTS = THREE.replace(cohort_size=5)


@pytest.mark.parametrize("rule", [*COMMON_RULES, "ffa"])
@pytest.mark.parametrize("policy", ["zero", "carry"])
def test_mean_and_deviation_are_those_of_the_whole_distribution(rule: str, policy: str) -> None:
    given = federation_keywords("bernoulli")
    scenario = Scenario(RANKS, rounds=3, gain_mean=0.9, empty_partition=policy, **LAW, **given)
    start = scenario.initial_amplitudes
    for i, c in enumerate(LAW["drift_levels"]):
        x, p = evolve(
            rule, Federation(RANKS, **_federation(given)), i, start[i], 3,
            policy=policy, gains=[(1.0, 0.9)], drifts=[(1.0, c)],
        )  # fmt: skip
        mean = p @ x
        wanted = np.sqrt(p @ (x - mean) ** 2)
        found = closed_form.drift_trajectory(scenario, rule)[3, i]
        np.testing.assert_allclose(found, mean, rtol=CLOSE)
        spread = closed_form.drift_std(scenario, rule)[3, i]
        np.testing.assert_allclose(spread, wanted, rtol=1e-6, atol=1e-7)
        energy = closed_form.energy_trajectory(scenario, rule)[3, i]
        np.testing.assert_allclose(energy, p @ x**2, rtol=CLOSE)


def _federation(given: dict) -> dict:
    return {name: given[name] for name in ("num_samples", "cohort_size", "sampling")}


@pytest.mark.parametrize("rule", SPREAD_RULES)
def test_the_deviation_contains_the_clients_noise(rule: str) -> None:
    given = federation_keywords("without_replacement")
    scenario = Scenario(RANKS, rounds=2, gain_std=0.2, drift_std=0.1, **LAW, **given)
    energy = closed_form.energy_trajectory(scenario, rule)
    mean = closed_form.drift_trajectory(scenario, rule)
    spread = closed_form.drift_std(scenario, rule)
    np.testing.assert_allclose(spread**2, energy - mean**2, atol=CLOSE)
    assert (spread[1:] > 0).all()
    stays = scenario.replace(heterogeneity="persistent", num_samples=None)
    apart = (
        closed_form.energy_trajectory(stays, rule) - closed_form.drift_trajectory(stays, rule) ** 2
    )
    np.testing.assert_allclose(closed_form.drift_std(stays, rule) ** 2, apart, atol=CLOSE)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("rule", closed_form.RULES)
def test_given_cohorts_are_those_of_a_run(rule: str, schedule: str) -> None:
    scenario = COHORTS.replace(learning_rate_schedule=schedule, gain_mean=0.95, rounds=12)
    if rule == "hetlora":
        with pytest.raises(ValueError, match=r"rule='hetlora'"):
            closed_form.drift_trajectory(scenario, rule, shares=drawn_shares(scenario, 3))
        return
    for policy in ("carry", "zero"):
        one = scenario.replace(empty_partition=policy)
        path = closed_form.drift_trajectory(one, rule, shares=drawn_shares(one, 3))
        run = simulate(one, rule=rule, seed=3).energy.values[0]
        np.testing.assert_allclose(path**2, run, rtol=CLOSE)


def test_floors_are_the_end_of_trajectories_and_not_those_of_another_share() -> None:
    long = THREE.replace(gain_mean=0.9, rounds=600)
    for rule in closed_form.RULES:
        floor = closed_form.drift_floor(long, rule)
        last = closed_form.drift_trajectory(long, rule)[-1]
        # fedex moves what its adapter holds into the base slowly
        np.testing.assert_allclose(floor, last, rtol=1e-6 if rule == "fedex" else CLOSE)
    covered, c = closed_form.coverage(THREE), THREE.drift_means
    floor = closed_form.drift_floor(THREE, "fedavg")
    assert np.isinf(floor[0])
    W, c = covered[1:], c[1:]
    np.testing.assert_allclose(floor[1:], W * c / (1 - W), rtol=CLOSE)
    assert (np.abs(floor[1:] / (c / (1 - W)) - 1) > 0.2).all()
    np.testing.assert_allclose(
        closed_form.drift_floor(THREE, "zero_pad")[1:], W**2 * c / (1 - W**2), rtol=CLOSE
    )
    saturated = closed_form.drift_floor(long, "raflora")
    np.testing.assert_allclose(saturated, THREE.drift_means / 0.1, rtol=CLOSE)


def test_growth_is_that_of_late_rounds() -> None:
    for scenario in (THREE, COHORTS):
        long = scenario.replace(rounds=400)
        for rule in closed_form.RULES:
            if rule == "hetlora" and scenario is COHORTS:
                continue
            for policy in ("carry", "zero"):
                path = closed_form.drift_trajectory(long.replace(empty_partition=policy), rule)
                growth = closed_form.drift_growth(long.replace(empty_partition=policy), rule)
                np.testing.assert_allclose(path[-1] - path[-2], growth, atol=1e-5)
    g = closed_form.drift_growth(THREE.replace(gain_mean=1.1), "raflora")
    assert np.isinf(g).all()
    W, c = closed_form.coverage(THREE), THREE.drift_means
    undiluted = np.where(W == 1, c, c * W / (1 + W))
    np.testing.assert_allclose(closed_form.drift_growth(THREE, "fedex"), undiluted, rtol=CLOSE)


@pytest.mark.parametrize("within", [0.3, 0.02])
def test_settling_is_the_first_round_within_a_share_of_the_floor(within: float) -> None:
    for scenario in (THREE, COHORTS.replace(gain_mean=-0.8), COHORTS.replace(gain_mean=0.0)):
        for rule in ("fedavg", "zero_pad", "ffa"):
            rounds = closed_form.drift_settling(scenario, rule, within=within)
            floor = closed_form.drift_floor(scenario, rule)
            path = closed_form.drift_trajectory(scenario, rule)
            near = np.abs(path - floor) <= within * np.abs(floor) * (1 + CLOSE)
            for i, settled in enumerate(rounds):
                if np.isinf(settled):
                    assert np.isinf(floor[i])
                else:
                    assert near[int(settled) :, i].all()
                    assert settled == 0 or not near[int(settled) - 1, i]
    for rule in ("fedex", "hetlora"):
        with pytest.raises(ValueError, match=f"rule='{rule}'"):
            closed_form.drift_settling(THREE, rule)
    with pytest.raises(ValueError, match="within=0"):
        closed_form.drift_settling(THREE, "fedavg", within=0)


@pytest.mark.parametrize(
    ("rule", "noise"),
    [("fedavg", {"drift_std": 0.1}), ("raflora", {"gain_std": 0.1}), ("zero_pad", {}),
     ("fedex", {}), ("flora", {"drift_std": 0.1})],
)  # fmt: skip
def test_intervals_contain_the_runs_that_they_promise(rule: str, noise: dict) -> None:
    scenario, runs = COHORTS.replace(rounds=12, **noise), 2_000
    interval = closed_form.drift_interval(scenario, rule, confidence=0.8)
    assert 0 < interval.coverage_error < 0.01
    amplitude = np.sqrt(simulate(scenario, rule=rule, seed=range(runs)).energy.values)[:, 1:]

    def inside(values: np.ndarray) -> np.ndarray:
        low, high = interval.low[1:] * (1 - CLOSE), interval.high[1:] * (1 + CLOSE)
        return ((values >= low) & (values <= high)).mean(0)

    # both the interval and the runs are samples; with few cohorts the distribution has steps
    error = 5 * np.hypot(np.sqrt(0.16 / runs), interval.coverage_error)
    assert (inside(amplitude) > 0.8 - error).all()
    assert (inside(amplitude)[6:, 1:] < 0.8 + error + 0.02).all()
    assert (inside(amplitude + 2 * amplitude.std(0))[6:, 1:] < 0.8 - error).all()


def test_where_nothing_is_random_the_interval_is_the_run() -> None:
    interval = closed_form.drift_interval(THREE, "hetlora")
    path = closed_form.drift_trajectory(THREE, "hetlora")
    np.testing.assert_array_equal(interval.low, path)
    np.testing.assert_array_equal(interval.high, path)
    assert interval.coverage_error == 0
    with pytest.raises(ValueError, match=r"confidence=1\.5"):
        closed_form.drift_interval(THREE, "fedavg", confidence=1.5)
    with pytest.raises(ValueError, match="heterogeneity='persistent'"):
        closed_form.drift_interval(
            THREE.replace(drift_std=0.1, heterogeneity="persistent"), "fedavg"
        )


def test_the_drift_of_a_run_is_the_one_that_was_given() -> None:
    for rule in ("fedavg", "raflora", "zero_pad", "flora", "ffa", "rbla"):
        scenario = COHORTS.replace(gain_mean=0.95)
        amplitude = np.sqrt(simulate(scenario, rule=rule, seed=5).energy.values[0])
        share = drawn_shares(scenario, 5)
        found = closed_form.implied_drift(amplitude[:-1], amplitude[1:], share, rule, gain=0.95)
        np.testing.assert_array_equal(np.isnan(found), share == 0)
        given = np.broadcast_to(scenario.drift_means, found.shape)
        np.testing.assert_allclose(found[share > 0], given[share > 0], rtol=1e-6)
        wrong = closed_form.implied_drift(amplitude[:-1], amplitude[1:], share, rule)
        some = (share > 0) & (amplitude[:-1] > 0)  # a gain changes nothing of no amplitude
        assert (np.abs(wrong - given)[some] > 1e-3 * given[some]).all()
    with pytest.raises(ValueError, match="rule='fedex'"):
        closed_form.implied_drift(1.0, 1.0, 0.5, "fedex")


def test_predictions_carry_the_drift_law_and_a_reason_elsewhere() -> None:
    theory = predict(COHORTS, "fedavg")
    for name in ("drift_floor", "drift_growth", "drift_settling", "drift_std"):
        np.testing.assert_array_equal(theory[name], getattr(closed_form, name)(COHORTS, "fedavg"))
    np.testing.assert_array_equal(
        theory.mean_amplitude, closed_form.drift_trajectory(COHORTS, "fedavg")
    )
    assert theory.half_life.reason.startswith("drift_levels=")
    falling = predict(COHORTS.replace(learning_rate_schedule="linear"), "fedavg")
    assert falling.drift_floor.reason.startswith("learning_rate_schedule='linear'")
    assert np.isfinite(falling.drift_std).all()
    affine = predict(Scenario("1x2,2x2", drift_mean=0.1), "fedavg")
    assert affine.drift_floor.reason.startswith("local_loss='none': expected 'drift'")


def test_an_unscheduled_drift_law_of_one_drift_is_the_affine_client() -> None:
    noise = {"gain_mean": 0.9, "gain_std": 0.1, "drift_mean": 0.1, "drift_std": 0.1}
    plain = Scenario("1x4,2x4", cohort_size=3, rounds=9, **noise)
    law = plain.replace(local_loss="drift")
    for rule in ("fedavg", "zero_pad"):
        found, wanted = (simulate(s, rule=rule, seed=range(3)).energy for s in (law, plain))
        np.testing.assert_array_equal(found, wanted)


# Why the drift is what it is


def walk(path: float, persistence: float, factor: float, *, steps: int = 64) -> float:
    """Return the drift of a path that bends, from the correlations of its steps; brute force.

    Columns shrink by the root of a factor per round; movements have given correlations.
    """
    rounds = 60
    place = np.arange(rounds * steps) * path / steps
    of_round = np.repeat(np.arange(rounds), steps)
    own = np.exp(-np.abs(place[-steps:, None] - place[None]) / persistence)
    left = np.sqrt(factor) ** (rounds - 1 - of_round)
    overlap = (own * left).sum(axis=0) * (path / steps) ** 2
    return float(2 * overlap[:-steps].sum() + overlap[-steps:].sum())


@pytest.mark.parametrize("factor", [0.2, 0.5, 0.7])
def test_adams_drift_is_that_of_a_path_that_forgets_its_direction(factor: float) -> None:
    for path in (0.1, 0.7, 3.0):
        found = closed_form.adam_drift(path, 1.3, factor)
        np.testing.assert_allclose(found, walk(path, 1.3, factor), rtol=2e-3)
        # a path of another persistence has another drift
        assert abs(closed_form.adam_drift(path, 1.5, factor) / walk(path, 1.3, factor) - 1) > 3e-3


def test_the_drift_is_proportional_to_the_path_where_nothing_is_diluted() -> None:
    path = np.geomspace(1e-6, 1e3, 40)
    np.testing.assert_allclose(closed_form.adam_drift(path, 0.7), 2 * 0.7 * path, rtol=CLOSE)
    np.testing.assert_allclose(closed_form.drift_exponent(path, 0.7), 1.0, rtol=CLOSE)


def test_the_exponent_is_the_slope_and_falls_from_two_to_one() -> None:
    path, step = np.geomspace(1e-5, 1e4, 60), 1e-5
    for mu, g in ((0.5, 1.0), (0.9, 0.95), (0.05, 1.0)):
        power = closed_form.drift_exponent(path, 1.0, mu, g)
        up, down = (closed_form.adam_drift(path * np.exp(d), 1.0, mu, g) for d in (step, -step))
        np.testing.assert_allclose(power, np.log(up / down) / (2 * step), rtol=1e-5)
        assert (np.diff(power) < 1e-9).all()
        assert power[0] == pytest.approx(2, rel=1e-3)
        assert power[-1] == pytest.approx(1, rel=1e-3)
        q = np.sqrt(mu * g)
        short = closed_form.adam_drift(1e-6, 1.0, mu, g)
        assert short == pytest.approx(1e-12 * (1 + q) / (1 - q), rel=1e-4)


def test_the_series_continues_the_formula() -> None:
    below, above = (SERIES_BELOW * (1 + d) for d in (-1e-12, 1e-12))
    for mu in (0.0, 0.5):
        found = closed_form.adam_drift([below, above], 1.0, mu)
        assert found[0] == pytest.approx(found[1], rel=1e-11)


def test_weight_decay_shrinks_both_factors() -> None:
    rng = stream(0, "decay")
    b, a = rng.standard_normal((2, 5))
    x = np.outer(b, a)
    for _ in range(7):
        b, a = b * (1 - 0.1 * 0.02), a * (1 - 0.1 * 0.02)
    gain = closed_form.adamw_gain(0.1, 7, 0.02)
    np.testing.assert_allclose(np.outer(b, a), gain * x, rtol=CLOSE)
    assert closed_form.adamw_gain(0.1, 7, 0.02, frozen_a=True) == pytest.approx(gain**0.5)
    with pytest.raises(ValueError, match=r"weight_decay=20"):
        closed_form.adamw_gain(0.1, 7, 20.0)


@pytest.mark.parametrize(
    ("given", "name"),
    [((0.0, 1.0), "path"), ((1.0, -1.0), "persistence"), ((1.0, 1.0, 1.1), "multiplier"),
     ((1.0, 1.0, 1.0, -0.1), "gain")],
)  # fmt: skip
def test_bad_lengths_and_factors_are_named(given: tuple, name: str) -> None:
    for function in (closed_form.adam_drift, closed_form.drift_exponent):
        with pytest.raises(ValueError, match=f"{name}="):
            function(*given)
