"""Derivations of recursion, floors, trajectories and persistent draws, against the numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import sympy as sp
from derivation_cases import AWAY, CLOSE, POSITIVE, TOP, evaluate, federations, ranks_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profiles import examples

from analysis import closed_form
from analysis.cohorts.shares import weight_moments
from analysis.derivations import floors, trajectories
from analysis.derivations.cohorts import without_replacement
from analysis.derivations.symbols import (
    P0,
    S1,
    S2,
    K,
    Q,
    c,
    g,
    m,
    nu,
    pi,
    t,
    tau,
    x1,
    x1_start,
    x2,
    x2_start,
)
from fedlora_sim import Scenario
from fedlora_sim.federation import Federation


def cohort_values(case: tuple[int, int, int]) -> dict[sp.Symbol, object]:
    clients, carriers, size = case
    cohort = {K: clients, m: size, pi: sp.Rational(carriers, clients)}
    return {s: e.subs(cohort) for s, e in floors.fedavg_cohort_moments().items()}


@pytest.mark.parametrize("num_clients", [2, 4])
def test_recursion_does_not_depend_on_the_number_of_clients(num_clients):
    assert floors.second_moment_recursion(num_clients) == floors.second_moment_recursion()
    assert floors.mean_recursion(num_clients) == floors.mean_recursion()


def test_recursion_is_the_sum_of_its_parts():
    parts = floors.rate() * x2 + floors.cross() * x1 + floors.noise()
    assert sp.expand(parts - floors.second_moment_recursion()) == 0


def test_recursion_has_the_announced_form():
    announced = (g**2 * S2 + nu**2 * Q) * x2 + 2 * g * c * S2 * x1 + tau**2 * Q + c**2 * S2
    assert sp.expand(floors.second_moment_recursion() - announced) == 0


@settings(max_examples=examples(20))
@given(
    case=federations(),
    gain=st.floats(0.1, 0.9),
    spread=POSITIVE,
    drift=POSITIVE,
    rounds=st.integers(1, 9),
)
def test_rate_floor_and_trajectory_equal_the_numbers(case, gain, spread, drift, rounds):
    clients, carriers, size = case
    ranks = ranks_of(clients, carriers)
    setting = {"cohort_size": size, "gain_mean": gain, "gain_std": spread}
    values = {g: gain, nu: spread, tau: drift, x2_start: 4, t: rounds} | cohort_values(case)
    rate = evaluate(floors.rate(), values)
    assert closed_form.energy_rate(Scenario(ranks, **setting), "fedavg")[TOP] == pytest.approx(
        rate, rel=CLOSE
    )
    if abs(1 - rate) < AWAY:
        return
    floor = closed_form.energy_floor(Scenario(ranks, **setting), "fedavg", drift_std=drift)
    wanted = evaluate(floors.floor(), values) if rate < 1 else np.inf
    assert floor[TOP] == pytest.approx(wanted, rel=CLOSE)
    path = closed_form.energy_trajectory(
        Scenario(ranks, rounds=rounds, **setting), "fedavg", initial_amplitude=2.0, drift_std=drift
    )
    assert path[-1, TOP] == pytest.approx(evaluate(floors.energy_after(), values), rel=CLOSE)


@settings(max_examples=examples(20))
@given(
    case=federations(),
    gain=st.floats(0.1, 0.9),
    spread=POSITIVE,
    mean=st.floats(-0.5, 0.5),
    rounds=st.integers(1, 9),
)
def test_trajectories_with_drift_equal_the_numbers(case, gain, spread, mean, rounds):
    clients, carriers, size = case
    values = {g: gain, nu: spread, tau: 0.25, c: mean} | cohort_values(case)
    derived = trajectories.coefficients()
    numbers = [evaluate(getattr(derived, f.name), values) for f in dataclasses.fields(derived)]
    alpha, _, rate, _, _ = numbers
    if min(abs(1 - rate), abs(1 - alpha), abs(rate - alpha)) < AWAY:
        return  # 0/0 there; the limits have a separate test
    setting = {"gain_mean": gain, "gain_std": spread, "drift_mean": mean, "drift_std": 0.25}
    setting |= {"cohort_size": size, "initial_amplitude": 2.0, "spectrum_decay": 1.0}
    scenario = Scenario(ranks_of(clients, carriers), rounds=rounds, **setting)
    start = values | {x1_start: 2, x2_start: 4, t: rounds}
    after = trajectories.moments_after()
    for found, expression in (
        (closed_form.mean_trajectory(scenario, "fedavg"), after.mean),
        (closed_form.energy_trajectory(scenario, "fedavg"), after.energy),
    ):
        wanted = evaluate(trajectories.as_recursion(expression), start)
        assert found[-1, TOP] == pytest.approx(wanted, rel=CLOSE, abs=CLOSE)


def stepped(values: dict[sp.Symbol, object], rounds: int) -> tuple[sp.Expr, sp.Expr]:
    """Return both moments after some rounds, by powers of the round's matrix."""
    matrix = trajectories.round_matrix().subs(values)
    state = sp.Matrix([values[x2_start], values[x1_start], 1])
    for _ in range(rounds):
        state = matrix * state
    return state[0], state[1]


EXACT = {
    trajectories.gain: sp.Rational(1, 3),
    trajectories.rate: sp.Rational(3, 4),
    trajectories.shift: sp.Rational(1, 5),
    trajectories.cross: sp.Rational(-2, 7),
    trajectories.noise: sp.Rational(1, 9),
    x1_start: 2,
    x2_start: 5,
}


@pytest.mark.parametrize("rounds", [0, 1, 4])
def test_closed_form_of_both_moments_is_the_iterated_map(rounds):
    after = trajectories.moments_after()
    energy, mean = stepped(EXACT, rounds)
    assert after.energy.subs(EXACT | {t: rounds}) == energy
    assert after.mean.subs(EXACT | {t: rounds}) == mean


@pytest.mark.parametrize(
    ("case", "special"),
    [
        ("unit_rate", {trajectories.rate: 1}),
        ("unit_gain", {trajectories.gain: 1}),
        ("rate_is_gain", {trajectories.rate: sp.Rational(1, 3)}),
        ("all_one", {trajectories.rate: 1, trajectories.gain: 1}),
    ],
)
@pytest.mark.parametrize("rounds", [1, 5])
def test_degenerate_cases_are_the_iterated_map(case, special, rounds):
    values = EXACT | special
    energy, mean = stepped(values, rounds)
    found = getattr(trajectories.degenerate_energy(), case)
    assert sp.simplify(found.subs(values | {t: rounds}) - energy) == 0
    if trajectories.gain in special:
        assert trajectories.degenerate_mean().subs(values | {t: rounds}) == mean


@pytest.mark.parametrize("case", ["unit_rate", "unit_gain", "rate_is_gain", "all_one"])
def test_degenerate_cases_equal_the_numbers(case):
    # a direction that all clients carry has q' = gain = 1 for perfect gains
    clients, carriers, size = 10, 10 if case == "all_one" else 5, 4
    unit = 1.0 if case in ("unit_gain", "all_one") else 0.75
    weights = weight_moments("cohort", Federation(ranks_of(clients, carriers), None, size))
    gain = unit / weights.mean[TOP]
    common = gain**2 * weights.second[TOP]
    wanted = {"unit_gain": common, "rate_is_gain": unit}.get(case, 1.0)
    spread = np.sqrt((wanted - common) / weights.sum_of_squares[TOP])
    path = closed_form.energy_trajectory(
        Scenario(
            ranks_of(clients, carriers), rounds=7, cohort_size=size, drift_mean=0.3, drift_std=0.25
        ),
        "fedavg",
        initial_amplitude=2.0,
        gain_mean=gain,
        gain_std=spread,
    )
    values = {g: float(gain), nu: float(spread), tau: 0.25, c: 0.3, t: 7, x1_start: 2, x2_start: 4}
    values |= cohort_values((clients, carriers, size))
    expression = trajectories.as_recursion(getattr(trajectories.degenerate_energy(), case))
    assert path[-1, TOP] == pytest.approx(evaluate(expression, values), rel=CLOSE)


def test_trajectories_tend_to_the_floors():
    limit = trajectories.as_recursion(trajectories.limit_energy())
    assert sp.simplify(limit - floors.floor_with_drift()) == 0
    assert sp.simplify(floors.floor_with_drift().subs(c, 0) - floors.floor()) == 0
    assert sp.simplify(floors.mean_recursion().subs(x1, floors.mean_floor())) == sp.simplify(
        floors.mean_floor()
    )


def test_drift_noise_alone_leaves_a_variance():
    variance = trajectories.deterministic_share_variance()
    assert sp.simplify(variance - tau**2 * Q / (1 - g**2 * S1**2)) == 0


@settings(max_examples=examples(15))
@given(case=federations(fewest=4), gain=st.floats(0.1, 0.9), rounds=st.integers(1, 6))
def test_factor_space_is_the_same_map_with_squared_shares(case, gain, rounds):
    clients, carriers, size = case
    moments = without_replacement()
    cohort = {K: clients, m: size, pi: sp.Rational(carriers, clients)}
    values = {S1: moments.second.subs(cohort), S2: moments.fourth.subs(cohort), Q: 0, nu: 0, tau: 0}
    values |= {g: gain, c: 0.3, x1_start: 2, x2_start: 4, t: rounds}
    path = closed_form.energy_trajectory(
        Scenario(ranks_of(clients, carriers), rounds=rounds, drift_mean=0.3, cohort_size=size),
        "zero_pad",
        initial_amplitude=2.0,
        gain_mean=gain,
    )
    derived = trajectories.coefficients()
    gain_, rate = (evaluate(value, values) for value in (derived.gain, derived.rate))
    if abs(gain_ - rate) < AWAY:
        return
    after = trajectories.as_recursion(trajectories.moments_after().energy)
    assert path[-1, TOP] == pytest.approx(evaluate(after, values), rel=CLOSE)


def test_energy_at_the_boundary_grows_linearly():
    generic = floors.energy_after()
    critical = floors.energy_at_boundary()
    values = {g: 1, S2: 1, Q: sp.Rational(1, 4), tau: sp.Rational(1, 3), x2_start: 2, t: 6}
    limit = sp.limit(generic.subs(values), nu, 0)
    assert sp.simplify(limit - critical.subs(values)) == 0


@settings(max_examples=examples(15))
@given(case=federations(), gain=st.floats(0.1, 1.2), spread=POSITIVE)
def test_raflora_carry_equals_the_numbers(case, gain, spread):
    clients, carriers, size = case
    ranks = ranks_of(clients, carriers)
    found = weight_moments("contributors", Federation(ranks, cohort_size=size))
    values = {g: gain, nu: spread, S2: float(found.second[TOP]), P0: float(found.empty[TOP])}
    values[Q] = float(found.sum_of_squares[TOP])
    wanted = evaluate(floors.carry().coeff(x2), values)
    rate = closed_form.energy_rate(
        Scenario(ranks, cohort_size=size, empty_partition="carry"),
        "raflora",
        gain_mean=gain,
        gain_std=spread,
    )
    assert rate[TOP] == pytest.approx(wanted, rel=CLOSE)
    assert floors.carry_excess() == 0
    under_zero = closed_form.energy_rate(
        Scenario(ranks, cohort_size=size, empty_partition="zero"),
        "raflora",
        gain_mean=gain,
        gain_std=spread,
    )
    wanted = evaluate(floors.raflora_rate(), values)
    assert under_zero[TOP] == pytest.approx(wanted, rel=CLOSE)


def test_rate_is_one_at_the_critical_heterogeneity():
    case = (10, 3, 4)
    values = cohort_values(case) | {g: sp.Rational(9, 10)}
    critical = evaluate(floors.critical_gain_std(), values)
    ranks, setting = ranks_of(10, 3), {"cohort_size": 4, "gain_mean": 0.9}
    at = closed_form.energy_rate(Scenario(ranks, **setting), "fedavg", gain_std=critical)
    assert at[TOP] == pytest.approx(1.0, rel=CLOSE)
    for factor, finite in ((1 - CLOSE, True), (1 + CLOSE, False)):
        floor = closed_form.energy_floor(
            Scenario(ranks, drift_std=0.1, **setting), "fedavg", gain_std=critical * factor
        )
        assert np.isfinite(floor[TOP]) == finite
