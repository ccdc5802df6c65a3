"""Measurements of series with known rates, floors and extinctions."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.collapse import collapse_report
from analysis.collapse.measure import (
    KINDS,
    Collapse,
    by_partition,
    extinct_round,
    measure,
    of_partitions,
    series_of,
    versus,
)
from analysis.collapse.predict import RandomWalk
from analysis.collapse.scenarios import standards
from analysis.stats import proportion_interval
from analysis.stats.intervals import Measurement
from fedlora_sim.tolerances import relative

ERROR = 0.05
FULL, COHORTS = standards()["full"], standards()["cohorts"]


def energies(*factors: float, runs: int = 2, rounds: int = 20) -> np.ndarray:
    """Return energies that change by these factors per round, (runs, rounds + 1, partitions)."""
    path = np.array(factors) ** np.arange(rounds + 1)[:, None]
    return np.tile(path, (runs, 1, 1))


def test_geometric_decays_are_measured_exactly() -> None:
    found = measure(3 * energies(1.0, 0.9, 0.2), FULL, ERROR)
    np.testing.assert_allclose(found["rate"].value, [1.0, 0.9, 0.2], rtol=1e-12)
    for name in ("rate", "late_rate", "left", "extinct"):
        np.testing.assert_array_equal(found[name].low, found[name].high)
    np.testing.assert_array_equal(found["extinct"].value, [0, 0, 1])
    assert np.isnan(found["floor"].value[1])  # it still falls
    assert found["floor"].value[0] == pytest.approx(1.0)


def test_the_numbers_of_a_scenario_share_its_error() -> None:
    """Each number has an equal part, divided equally among the three partitions."""
    energy = energies(1.0, 0.9, 0.8, runs=40)
    energy[:, -1, 1:] = np.where(np.arange(40)[:, None] < 15, 1e-9, energy[:, -1, 1:])
    found = measure(energy, COHORTS, ERROR)["extinct"]
    wanted = proportion_interval(np.arange(40)[:, None] < 15, ERROR / (len(KINDS) * 3))
    np.testing.assert_allclose(found.value, [0, 0.375, 0.375])
    for name in ("low", "high"):
        ends = getattr(found, name)[1:]
        np.testing.assert_allclose(ends, getattr(wanted, name)[0], rtol=relative("reduction"))


def test_rates_are_relative_to_the_shared_partition() -> None:
    """A gain of one half for all directions is not a collapse."""
    found = measure(energies(0.5, 0.5, 0.5), FULL, ERROR)
    np.testing.assert_allclose(found["rate"].value, 0.5)
    np.testing.assert_allclose(found["relative_rate"].value, 1.0)
    assert of_partitions(found) is Collapse.KEEPS


def test_growth_is_not_a_collapse() -> None:
    assert of_partitions(measure(energies(1.0, 1.1, 1.5), FULL, ERROR)) is Collapse.KEEPS


def test_a_slow_decay_is_a_collapse_and_a_loss_that_stops_is_not() -> None:
    slow = measure(energies(1.0, 1.0, 0.97), FULL, ERROR)
    assert by_partition(slow) == (Collapse.KEEPS, Collapse.COLLAPSES)
    stops = energies(1.0, 1.0, 0.5)
    stops[:, 3:, 2] = 0.125
    assert of_partitions(measure(stops, FULL, ERROR)) is Collapse.KEEPS
    stops[:, 3:, 2] = 0.001
    assert of_partitions(measure(stops, FULL, ERROR)) is Collapse.COLLAPSES


@pytest.mark.slow
def test_intervals_contain_the_rate_of_a_random_walk_with_deaths() -> None:
    """For runs of any length; at most a few of many studies may miss."""
    rng = np.random.default_rng(5)
    steps, chance = np.log([0.9, 0.5]), 0.2
    true = float(np.exp(steps.mean()))
    missed = 0
    for _ in range(60):
        log = np.cumsum(rng.choice(steps, (200, 20)), axis=1)
        dead = np.cumsum(rng.random((200, 20)) < chance, axis=1) > 0
        path = np.concatenate([np.ones((200, 1)), np.where(dead, 0.0, np.exp(log))], axis=1)
        found = measure(np.stack([np.ones_like(path), path], -1), COHORTS, ERROR)["rate"]
        missed += not found.low[1] <= true <= found.high[1]
        assert found.low[1] < found.value[1] < found.high[1]
    assert missed == 0  # the rate has a small part of the error


def test_runs_extinct_at_once_have_no_energy_to_lose() -> None:
    path = energies(1.0, 1.0)
    path[:, 1:, 1] = 0
    found = measure(path, FULL, ERROR)
    assert found["rate"].value[1] == 0
    assert np.isnan(found["late_rate"].value[1])
    assert np.isnan(found["left"].value[1])
    assert of_partitions(found) is Collapse.COLLAPSES


def test_one_survivor_of_several_runs_has_no_bounds() -> None:
    path = energies(1.0, 0.5)
    path[0, 1:, 1] = 0
    drawn, alike = (measure(path, standard, ERROR) for standard in (COHORTS, FULL))
    for name in ("rate", "late_rate", "left", "relative_rate", "relative_late"):
        assert drawn[name].value[1] > 0
        assert (drawn[name].low[1], drawn[name].high[1]) == (0, np.inf)
        assert alike[name].low[1] == alike[name].high[1]  # nothing is drawn
    assert of_partitions(drawn) is Collapse.UNDECIDED
    found = versus(path, energies(1.0, 0.9), COHORTS, ERROR)
    assert (found.low[1], found.high[1]) == (0, np.inf)
    path[1, COHORTS.late[0] + 1 :, 1] = 0  # the survivor is lost in the late window's first round
    late = measure(path, COHORTS, ERROR)["late_rate"]
    assert (late.value[1], late.low[1], late.high[1]) == (0, 0, np.inf)


def test_a_trajectory_alone_is_exact() -> None:
    found = measure(energies(1.0, 0.5, runs=1), COHORTS, ERROR)
    for name in ("rate", "late_rate", "left", "extinct"):
        np.testing.assert_array_equal(found[name].low, found[name].high)
    assert of_partitions(found) is Collapse.COLLAPSES


def test_few_survivors_of_a_report_have_no_exact_rate() -> None:
    part = collapse_report("fedavg", scenarios=["cohorts"], seeds=2).scenarios[0]
    numbers = part.rules["fedavg"].numbers
    for name in ("late_rate", "left"):
        found = numbers[name]
        known = ~np.isnan(found.value[1:])
        assert known.any()
        assert (found.low[1:] < found.high[1:])[known].all()
    assert part.verdict("fedavg") is Collapse.UNDECIDED


def test_partitions_lost_with_the_shared_one_are_extinct() -> None:
    path = energies(0.02, 0.02, 0.6)
    found = measure(path, FULL, ERROR)
    np.testing.assert_array_equal(found["extinct"].value, [1, 1, 0])  # 0.6**20 is left
    assert extinct_round(path, FULL) == (11, 11, np.inf)
    assert by_partition(found) == (Collapse.COLLAPSES, Collapse.UNDECIDED)


def test_partitions_that_return_are_not_extinct() -> None:
    """A server with a state restores what a cohort without contributors set to zero."""
    path = energies(1.0, 0.9)
    path[:, 5, 1] = 0
    found = measure(path, FULL, ERROR)
    assert found["rate"].value[1] == pytest.approx(0.9)
    assert found["extinct"].value[1] == 0
    assert extinct_round(path, FULL) == (np.inf, np.inf)
    path[:, 12:, 1] = 0
    assert measure(path, FULL, ERROR)["extinct"].value[1] == 1
    assert extinct_round(path, FULL) == (np.inf, 12)


def test_a_lost_shared_partition_is_not_a_reference() -> None:
    series = series_of(energies(0.0, 0.5), relative=True)
    assert np.isnan(series[:, 1:, 1]).all()


def test_rho_is_the_share_of_the_shared_partition_at_the_end() -> None:
    found = measure(np.array([3.0, 1.0]) * energies(1.0, 1.0), FULL, ERROR)
    assert found["rho"].value[0] == pytest.approx(0.75)


KEPT = {"extinct": (0.0, 0.1), "relative_late": (0.99, 1.0), "left": (0.9, 1.0)}
"""Ends of the intervals of a partition that keeps its energy."""


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, Collapse.KEEPS),
        ({"extinct": (0.4, 0.6)}, Collapse.UNDECIDED),
        ({"relative_late": (0.9, 1.1)}, Collapse.UNDECIDED),
        ({"left": (0.001, 0.5)}, Collapse.UNDECIDED),
        ({"extinct": (0.6, 0.7)}, Collapse.COLLAPSES),
        ({"relative_late": (0.9, 0.97)}, Collapse.COLLAPSES),
        ({"left": (0.001, 0.009)}, Collapse.COLLAPSES),
    ],
)
def test_undecided_where_intervals_reach_both_sides(changed, verdict) -> None:
    numbers = {
        name: Measurement(*(np.full(2, x) for x in (low, low, high)), 9)
        for name, (low, high) in {**KEPT, **changed}.items()
    }
    assert of_partitions(numbers) is verdict


def test_a_walk_of_one_outcome_is_a_geometric_decay() -> None:
    walk = RandomWalk.of(np.array([0.3]), np.array([1.0]), 20)
    assert walk.typical == pytest.approx(0.09)
    assert walk.mean == pytest.approx(0.09)
    assert walk.extinct[7] == 0
    assert walk.extinct[8] == 1  # 0.09**8 < 1e-8


def test_a_walk_is_the_binomial_law_of_its_outcomes() -> None:
    walk = RandomWalk.of(np.array([0.0, 0.5, 1.0]), np.array([0.1, 0.4, 0.5]), 6)
    np.testing.assert_allclose(walk.extinct, 1 - 0.9 ** np.arange(7), atol=1e-12)
    assert walk.typical == pytest.approx(0.5 ** (2 * 4 / 9))
    assert walk.mean == pytest.approx(0.4 * 0.25 + 0.5)
    rng = np.random.default_rng(1)
    drawn = np.cumprod(rng.choice([0.0, 0.5, 1.0], (20_000, 6), p=[0.1, 0.4, 0.5]) ** 2, axis=1)
    np.testing.assert_allclose(walk.median[1:], np.median(drawn, axis=0))
