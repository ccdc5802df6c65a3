"""The public closed forms: values by hand, limits, simulation of the recursion, bad input."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from analysis import closed_form
from analysis.cohorts import shares
from fedlora_sim import Scenario
from fedlora_sim.federation import SAMPLINGS, Federation, draw_cohorts
from fedlora_sim.randomness import stream
from fedlora_sim.tolerances import relative

RANKS = "1x4,2x3,4x3"
UNEQUAL = (5, 1, 2, 7, 3, 3, 1, 8, 2, 4)
CLOSE = relative("reduction")
ITERATED = relative("iteration")
SIGMAS = 5.0


def test_coverage_by_hand():
    np.testing.assert_allclose(closed_form.coverage(Scenario("1x2,3x2")), [1, 0.5, 0.5], rtol=CLOSE)
    np.testing.assert_allclose(
        closed_form.coverage(Scenario([1, 2], num_samples=[3, 1])), [1, 0.25], rtol=CLOSE
    )


def test_extinction_by_hand():
    P0 = closed_form.extinction_probability(Scenario(RANKS, cohort_size=4))
    wanted = [0, math.comb(4, 4) / math.comb(10, 4)] + [math.comb(7, 4) / math.comb(10, 4)] * 2
    np.testing.assert_allclose(P0, wanted, rtol=CLOSE)
    sized = closed_form.extinction_probability(
        Scenario([1, 2], cohort_size=2, num_samples=[3, 1], sampling="size_weighted")
    )
    np.testing.assert_allclose(sized, [0, 0.75**2], rtol=CLOSE)
    np.testing.assert_array_equal(closed_form.extinction_probability(Scenario(RANKS)), 0)


def test_rates_by_hand_under_full_participation():
    pi = closed_form.coverage(Scenario(RANKS, num_samples=UNEQUAL))
    given = {"num_samples": UNEQUAL, "gain_mean": 0.9}
    for rule, wanted in (("fedavg", pi**2), ("zero_pad", pi**4), ("raflora", pi**0)):
        q = closed_form.energy_rate(Scenario(RANKS, **given), rule)
        np.testing.assert_allclose(q, 0.81 * wanted, rtol=CLOSE)


def test_heterogeneous_gains_add_their_variance():
    p = np.array([0.5, 0.25, 0.25])
    q = closed_form.energy_rate(Scenario([1, 2, 2], num_samples=[2, 1, 1], gain_std=0.2), "fedavg")
    np.testing.assert_allclose(q, [1 + 0.04 * p @ p, 0.25 + 0.04 * 0.125], rtol=CLOSE)
    q = closed_form.energy_rate(Scenario([1, 2, 2], num_samples=[2, 1, 1], gain_std=0.2), "raflora")
    np.testing.assert_allclose(q, [1 + 0.04 * p @ p, 1 + 0.04 * 0.5], rtol=CLOSE)


def test_raflora_loses_partitions_under_zero_that_carry_keeps():
    P0 = closed_form.extinction_probability(Scenario(RANKS, cohort_size=3))
    for samples in (None, UNEQUAL):
        given = {"cohort_size": 3, "num_samples": samples}
        zero = closed_form.energy_rate(Scenario(RANKS, empty_partition="zero", **given), "RAFLORA")
        carry = closed_form.energy_rate(
            Scenario(RANKS, empty_partition="carry", **given), "raflora"
        )
        np.testing.assert_allclose(zero, 1 - P0, rtol=CLOSE)
        np.testing.assert_array_equal(carry, 1.0)


def test_raflora_without_spread_never_samples(monkeypatch):
    monkeypatch.setattr(shares, "ENUMERATION_LIMIT", 1)
    monkeypatch.setattr(shares, "CELL_LIMIT", 1)
    given = {"cohort_size": 3, "num_samples": UNEQUAL}
    closed_form.energy_rate(Scenario(RANKS, **given), "raflora")
    with pytest.warns(shares.MonteCarloWarning):
        closed_form.energy_rate(Scenario(RANKS, gain_std=0.1, **given), "raflora")


@pytest.mark.parametrize("rule", ["fedavg", "raflora"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_equal_ranks_make_fedavg_and_raflora_the_same(rule, sampling):
    given = {"num_samples": [1, 2, 3, 4], "sampling": sampling, "gain_mean": 0.8, "gain_std": 0.3}
    given["cohort_size"] = None if sampling == "full" else 2
    floor = closed_form.energy_floor(Scenario("3x4", drift_std=0.1, **given), rule)
    other = closed_form.energy_floor(Scenario("3x4", drift_std=0.1, **given), "fedavg")
    np.testing.assert_allclose(floor, other, rtol=relative("factorization"))


def test_arguments_may_differ_by_direction():
    gains = np.array([1.0, 0.9, 0.8, 0.7])
    together = closed_form.energy_rate(Scenario(RANKS, cohort_size=3), "fedavg", gain_mean=gains)
    for i, g in enumerate(gains):
        alone = closed_form.energy_rate(Scenario(RANKS, cohort_size=3), "fedavg", gain_mean=g)
        assert together[i] == alone[i]


@pytest.mark.parametrize(("rule", "policy"), [("fedavg", "zero"), ("raflora", "carry")])
def test_trajectory_tends_to_the_floor(rule, policy):
    given = {"cohort_size": 3, "gain_mean": 0.9, "gain_std": 0.2, "drift_std": 0.05}
    given["empty_partition"] = policy
    floor = closed_form.energy_floor(Scenario(RANKS, **given), rule)
    rate = closed_form.energy_rate(
        Scenario(RANKS, cohort_size=3, gain_mean=0.9, gain_std=0.2, empty_partition=policy), rule
    )
    for start in (0.0, 3.0):
        path = closed_form.energy_trajectory(
            Scenario(RANKS, rounds=400, **given), rule, initial_amplitude=start
        )
        np.testing.assert_allclose(path[-1], floor, rtol=ITERATED)
        # the distance to the floor shrinks by q' every round
        np.testing.assert_allclose(path[1] - floor, rate * (path[0] - floor), rtol=ITERATED)


def test_first_round_by_hand():
    g, nu, c, tau = 0.9, 0.2, 0.3, 0.1
    x = np.array([2.0, -1.0])
    spread = {"gain_mean": g, "gain_std": nu, "drift_mean": c, "drift_std": tau}
    # ranks 1 and 2, one of both clients per round: W is 0 or 1 for direction 2
    given = {"cohort_size": 1, **spread}
    energy = closed_form.energy_trajectory(
        Scenario([1, 2], rounds=1, **given), "fedavg", initial_amplitude=x
    )
    mean = closed_form.mean_trajectory(
        Scenario([1, 2], rounds=1, **given), "fedavg", initial_amplitude=x
    )
    update = (g * x + c) ** 2 + nu**2 * x**2 + tau**2
    np.testing.assert_allclose(energy, [x**2, update * [1, 0.5]], rtol=CLOSE)
    np.testing.assert_allclose(mean, [x, (g * x + c) * [1, 0.5]], rtol=CLOSE)
    given["empty_partition"] = "carry"
    energy = closed_form.energy_trajectory(
        Scenario([1, 2], rounds=1, **given), "raflora", initial_amplitude=x
    )
    mean = closed_form.mean_trajectory(
        Scenario([1, 2], rounds=1, **given), "raflora", initial_amplitude=x
    )
    np.testing.assert_allclose(energy[1], [update[0], (update[1] + 1) / 2], rtol=CLOSE)
    np.testing.assert_allclose(mean[1], [2.1, (g * -1 + c - 1) / 2], rtol=CLOSE)


def simulated(rule: str, policy: str, fed: Federation, rounds: int, spread: dict, runs: int):
    """Return amplitudes (runs, r_max) after `rounds`, from the rule's definition."""
    rng = stream(11, rule, policy, str(fed.sampling))
    members = fed.members.astype(float)
    x = np.full((runs, fed.r_max), 1.5)
    for _ in range(rounds):
        counts = draw_cohorts(fed, runs, rng)
        sized = fed.sampling == "size_weighted"
        v = (counts if sized else counts * np.array(fed.num_samples))[:, :, None] * members
        if rule == "raflora":
            norm = v.sum(axis=1, keepdims=True)
        else:
            norm = v[:, :, :1].sum(axis=1, keepdims=True)  # every client carries direction 0
        w = np.divide(v, norm, out=np.zeros_like(v), where=norm > 0)
        a = rng.normal(spread["gain_mean"], spread["gain_std"], v.shape)
        b = rng.normal(spread["drift_mean"], spread["drift_std"], v.shape)
        new = (w * (a * x[:, None] + b)).sum(axis=1)
        if rule == "zero_pad":
            new = new * w.sum(axis=1)
        empty = w.sum(axis=1) == 0
        x = np.where(empty & (policy == "carry"), x, new)
    return x


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "policy", "nu", "tau"),
    [
        ("fedavg", "zero", 0.3, 0.2),
        ("raflora", "zero", 0.3, 0.2),
        ("raflora", "carry", 0.3, 0.2),
        ("zero_pad", "zero", 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_trajectory_matches_a_simulated_recursion(rule, policy, nu, tau, sampling):
    ranks, samples, rounds, runs = (1, 2, 2, 3), (3, 1, 2, 2), 3, 20_000
    size = None if sampling == "full" else 2
    fed = Federation(ranks, samples, size, sampling)
    spread = {"gain_mean": 0.9, "gain_std": nu, "drift_mean": 0.2, "drift_std": tau}
    given = {"cohort_size": size, "num_samples": samples, **spread}
    given |= {"initial_amplitude": 1.5, "spectrum_decay": 1.0}
    given |= {"empty_partition": policy, "sampling": sampling}
    x = simulated(rule, policy, fed, rounds, spread, runs)
    for path, values in (
        (closed_form.energy_trajectory(Scenario(ranks, rounds=rounds, **given), rule), x**2),
        (closed_form.mean_trajectory(Scenario(ranks, rounds=rounds, **given), rule), x),
    ):
        error = values.std(axis=0) / math.sqrt(runs)
        assert np.all(np.abs(values.mean(axis=0) - path[-1]) <= SIGMAS * error + ITERATED)


def test_floor_is_infinite_without_suppression():
    given = {"gain_std": 0.0, "drift_std": 0.1}
    floor = closed_form.energy_floor(Scenario(RANKS, gain_mean=1.0, **given), "raflora")
    np.testing.assert_array_equal(floor, np.inf)
    floor = closed_form.energy_floor(Scenario(RANKS, gain_mean=1.0, **given), "fedavg")
    assert np.isinf(floor[0])
    assert np.isfinite(floor[1:]).all()
    floor = closed_form.energy_floor(
        Scenario(RANKS, cohort_size=3, gain_mean=1.0, empty_partition="carry", **given), "raflora"
    )
    np.testing.assert_array_equal(floor, np.inf)


def test_floor_is_zero_without_drift():
    for rule in ("fedavg", "zero_pad", "raflora"):
        floor = closed_form.energy_floor(
            Scenario(RANKS, cohort_size=3, gain_mean=0.9, gain_std=0.0, drift_std=0.0), rule
        )
        np.testing.assert_array_equal(floor, 0.0)


def test_collapse_bound_holds_and_is_tight_at_the_start():
    energy = np.array([4.0, 1.0, 0.5, 0.5])
    pi = closed_form.coverage(Scenario(RANKS, num_samples=UNEQUAL))
    bound = closed_form.collapse_bound(
        Scenario(RANKS, rounds=30, num_samples=UNEQUAL), initial_amplitude=np.sqrt(energy)
    )
    assert bound.shape == (31,)
    assert bound[0] == pytest.approx(2.0 / 4.0, rel=CLOSE)
    np.testing.assert_allclose(bound[1:] / bound[:-1], pi[1] ** 2, rtol=ITERATED)
    energies = energy * pi ** (2 * np.arange(31)[:, None])
    tail = energies[:, 1:].sum(axis=1) / energies.sum(axis=1)
    assert np.all(tail <= bound)


def test_collapse_bound_is_zero_with_one_level():
    np.testing.assert_array_equal(
        closed_form.collapse_bound(Scenario("2x3", rounds=4), initial_amplitude=np.sqrt(1.0)), 0.0
    )


BASE = {"gain_mean": 1.0, "gain_std": 0.0, "drift_std": 0.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "raflra"}, r"rule='raflra'.*did you mean 'raflora'"),
        ({"rule": "lora"}, r"rule='lora': expected one of"),
        ({"cohort_size": 11}, r"cohort_size=11: expected at most the federation's 10 clients"),
        ({"cohort_size": 0}, r"cohort_size=0: expected a whole number of at least 1"),
        ({"gain_std": -0.1}, r"gain_std=-0.1: expected finite numbers of at least 0"),
        ({"drift_std": [0.1, 0.1]}, r"drift_std=\[0.1, 0.1\]: expected .* per direction \(4\)"),
        ({"gain_mean": math.nan}, r"gain_mean=nan: expected finite numbers"),
        ({"gain_mean": "much"}, r"gain_mean='much': expected finite numbers"),
        ({"num_samples": [1, 2]}, r"num_samples=\[1.0, 2.0\]: expected 10 values"),
        ({"sampling": "bernouli"}, r"sampling='bernouli'.*did you mean 'bernoulli'"),
        ({"empty_partition": "keep"}, r"empty_partition='keep': expected one of carry"),
        (
            {"rule": "zero_pad", "gain_std": 0.1},
            r"gain_std=0.1: expected 0 for a rule that averages",
        ),
        (
            {"rule": "zero_pad", "drift_std": 0.1},
            r"drift_std=0.1: expected 0 for a rule that averages",
        ),
        ({"ranks": [2, 0]}, r"ranks=0: expected a whole number of at least 1"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"rule": "fedavg", "ranks": RANKS, **BASE} | change
    rule, ranks = given.pop("rule"), given.pop("ranks")
    values = {name: given.pop(name) for name in BASE}
    with pytest.raises(ValueError, match=message):
        closed_form.energy_floor(Scenario(ranks, **given), rule, **values)


def test_error_policy_refuses_only_partitions_that_can_be_empty():
    q = closed_form.energy_rate(Scenario(RANKS, cohort_size=8, empty_partition="error"), "raflora")
    np.testing.assert_array_equal(q, 1.0)
    with pytest.raises(ValueError, match=r"empty_partition='error'.*empty with probability up to"):
        closed_form.energy_rate(Scenario(RANKS, cohort_size=7, empty_partition="error"), "raflora")


@pytest.mark.parametrize(
    ("rounds", "start", "message"),
    [
        (0, 1.0, r"rounds=0: expected a whole number"),
        (3, math.nan, r"initial_amplitude=nan: expected finite numbers"),
        (3, [0, 1, 1, 1], r"initial_amplitude=\[0.0, 1.0, .*\]: expected energy in the first 1"),
    ],
)
def test_bad_bound_input_is_named(rounds, start, message):
    with pytest.raises(ValueError, match=message):
        closed_form.collapse_bound(Scenario(RANKS, rounds=rounds), initial_amplitude=start)


def test_bad_trajectory_input_is_named():
    for rounds, start, message in ((2.5, 1.0, "rounds=2.5"), (2, [1, 2], "initial_amplitude=")):
        with pytest.raises(ValueError, match=message):
            closed_form.mean_trajectory(
                Scenario(RANKS, rounds=rounds), "fedavg", initial_amplitude=start
            )


def test_lower_participation_is_milder_on_the_mean():
    sizes = (2, 4, 6, 8, 10)
    q = [closed_form.energy_rate(Scenario(RANKS, cohort_size=m), "fedavg")[-1] for m in sizes]
    assert all(a > b for a, b in itertools.pairwise(q))
