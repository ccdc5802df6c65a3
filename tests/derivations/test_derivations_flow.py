"""Derivations of the logistic flow and its phase transition, against ODEs and the numbers."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
from derivation_cases import CLOSE, DIGITS, TOP, evaluate, federations, ranks_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profiles import examples
from scipy.integrate import solve_ivp

from analysis import closed_form
from analysis.cohorts.shares import weight_moments
from analysis.derivations import flow, flow_cohorts, sensitivities
from analysis.derivations.symbols import P0, W, t, x
from fedlora_sim import Scenario
from fedlora_sim.federation import Federation
from fedlora_sim.tolerances import relative

NEAR = 0.05  # closer to the threshold differences lose digits
TARGETS, TIMES, STARTS = st.floats(0.2, 3.0), st.floats(0.05, 2.0), st.floats(0.05, 4.0)


def growth(target: float, time: float) -> sp.Expr:
    """Return G = exp(2 M T) of exact numbers."""
    return sp.exp(2 * sp.Rational(target) * sp.Rational(time))


def test_forms_that_were_announced():
    M, G, omega, y = flow.M, flow.G, flow.omega, flow.y
    assert sp.expand(flow.amplitude_flow() - 2 * x * (M - x)) == 0
    assert flow.balance() == 0
    assert sp.simplify(flow.local_map() - M * G * x / (M + x * (G - 1))) == 0
    assert sp.simplify(flow.local_map_without_target() - x / (1 + 2 * flow.T * x)) == 0
    affine = y / (omega * G) + (G - 1) / (M * omega * G)
    assert sp.simplify(flow.inverse_round_map() - affine) == 0
    assert sp.simplify(flow.floor() - M * (omega * G - 1) / (G - 1)) == 0
    assert sp.simplify(flow.critical_time() - sp.log(1 / omega) / (2 * M)) == 0


def test_local_map_is_the_flow_of_the_factors():
    target, time, start = 1.3, 0.7, 0.2
    accuracy = relative("factorization")

    def descent(_, factors):
        b, a = factors
        return [-(b * a - target) * a, -(b * a - target) * b]

    path = solve_ivp(
        descent, (0, time), [start**0.5] * 2, rtol=accuracy, atol=accuracy, method="DOP853"
    )
    values = {x: start, flow.M: target, flow.G: growth(target, time)}
    assert path.y[:, -1].prod() == pytest.approx(evaluate(flow.local_map(), values), rel=CLOSE)


@settings(max_examples=examples(20))
@given(target=TARGETS, time=TIMES, start=STARTS)
def test_local_map_equals_the_numbers(target, time, start):
    values = {x: start, flow.M: target, flow.G: growth(target, time), flow.T: time}
    found = closed_form.flow_map(start, target, time)
    assert found == pytest.approx(evaluate(flow.local_map(), values), rel=CLOSE)
    nothing = closed_form.flow_map(start, 0.0, time)
    wanted = evaluate(flow.local_map_without_target(), values)
    assert nothing == pytest.approx(wanted, rel=CLOSE)


def multiplier(rule: str, K: int, n: int) -> sp.Rational:
    """Return omega of a rule with full participation."""
    return sp.Rational(n, K) ** {"fedavg": 1, "zero_pad": 2, "raflora": 0}[rule]


@settings(max_examples=examples(25))
@given(
    rule=st.sampled_from(["fedavg", "zero_pad", "raflora"]),
    case=federations(),
    target=TARGETS,
    time=TIMES,
    start=STARTS,
    rounds=st.integers(1, 12),
)
def test_trajectory_floor_and_rate_equal_the_numbers(rule, case, target, time, start, rounds):
    clients, carriers, _ = case
    ranks = ranks_of(clients, carriers)
    values = {flow.omega: multiplier(rule, clients, carriers), flow.start: start, t: rounds}
    values |= {flow.M: target, flow.G: growth(target, time)}
    slope = evaluate(flow.threshold(), values)
    if abs(np.log(slope)) < NEAR:
        return
    path = closed_form.flow_trajectory(
        Scenario(ranks, rounds=rounds, local_time=time, local_loss="quadratic"),
        rule,
        target=target,
        initial_amplitude=start,
    )
    assert path[-1, TOP] == pytest.approx(evaluate(flow.amplitude_after(), values), rel=CLOSE)
    floor = closed_form.flow_floor(
        Scenario(ranks, local_time=time, local_loss="quadratic"), rule, target=target
    )[TOP]
    assert floor == pytest.approx(max(evaluate(flow.floor(), values), 0.0), rel=CLOSE)
    rate = closed_form.flow_rate(
        Scenario(ranks, local_time=time, local_loss="quadratic"), rule, target=target
    )[TOP]
    side = flow.approach().below if slope < 1 else flow.approach().above
    assert rate == pytest.approx(evaluate(side, values), rel=CLOSE)
    threshold = closed_form.collapse_threshold(
        Scenario(ranks, local_loss="quadratic"), rule, target=target
    )[TOP]
    wanted = evaluate(flow.critical_time(), values)
    assert threshold == pytest.approx(wanted, rel=CLOSE, abs=CLOSE)


def test_critical_amplitude_is_the_limit_and_falls_as_one_over_t():
    ranks, target, start = ranks_of(10, 5), 1.5, 0.8
    time = float(
        closed_form.collapse_threshold(
            Scenario(ranks, local_loss="quadratic"), "fedavg", target=target
        )[TOP]
    )
    path = closed_form.flow_trajectory(
        Scenario(ranks, rounds=50, local_time=time, local_loss="quadratic"),
        "fedavg",
        target=target,
        initial_amplitude=start,
    )
    values = {flow.start: start, flow.M: target, flow.G: 2, t: 50}
    wanted = evaluate(flow.critical_amplitude(), values)
    assert path[-1, TOP] == pytest.approx(wanted, rel=CLOSE)
    exact = {flow.start: 2, flow.M: 3, flow.G: 4, t: 7}
    generic = flow.amplitude_after().subs(exact)
    assert sp.limit(generic, flow.omega, sp.Rational(1, 4)) == flow.critical_amplitude().subs(exact)
    assert sp.simplify(flow.critical_law() - flow.M / (flow.G - 1)) == 0


def test_limits_of_the_flow():
    assert flow.long_run().below == 0
    assert sp.simplify(flow.long_run().above - flow.floor()) == 0
    limits = flow.limits()
    assert limits.no_training == x
    assert limits.full_training == flow.M
    assert limits.floor_full_training == flow.M * flow.omega
    assert limits.floor_undiluted == flow.M
    assert sp.simplify(flow.approach().above * flow.approach().below) == 1
    above = sensitivities.flow_floor_gap().subs(W, 1 / (1 + x)).subs(flow.G, 1 + flow.y)
    assert sp.simplify(above).is_positive


@settings(max_examples=examples(15))
@given(case=federations(), target=TARGETS, time=TIMES, start=STARTS, rounds=st.integers(1, 9))
def test_random_cohorts_equal_the_numbers(case, target, time, start, rounds):
    clients, carriers, size = case
    ranks, setting = ranks_of(clients, carriers), {"cohort_size": size}
    inverse = float(weight_moments("cohort", Federation(ranks, None, size)).inverse[TOP])
    values = {flow_cohorts.mean_inverse: inverse, flow.start: start, t: rounds}
    values |= {flow.M: target, flow.G: growth(target, time)}
    if abs(evaluate(flow.G / flow_cohorts.mean_inverse, values) - 1) < NEAR:
        return
    path = closed_form.flow_trajectory(
        Scenario(ranks, rounds=rounds, local_time=time, local_loss="quadratic", **setting),
        "fedavg",
        target=target,
        initial_amplitude=start,
    )
    wanted = evaluate(flow_cohorts.harmonic_amplitude_after(), values)
    assert path[-1, TOP] == pytest.approx(wanted, rel=CLOSE)
    floor = closed_form.flow_floor(
        Scenario(ranks, local_time=time, local_loss="quadratic", **setting), "fedavg", target=target
    )[TOP]
    wanted = max(evaluate(flow_cohorts.harmonic_floor(), values), 0.0)
    assert floor == pytest.approx(wanted, rel=CLOSE)


@settings(max_examples=examples(15))
@given(case=federations(), target=TARGETS, time=TIMES, start=STARTS, rounds=st.integers(1, 6))
def test_carried_directions_equal_the_numbers(case, target, time, start, rounds):
    clients, carriers, size = case
    path = closed_form.flow_trajectory(
        Scenario(
            ranks_of(clients, carriers),
            rounds=rounds,
            local_time=time,
            cohort_size=size,
            empty_partition="carry",
            local_loss="quadratic",
        ),
        "raflora",
        target=target,
        initial_amplitude=start,
    )
    empty = closed_form.extinction_probability(
        Scenario(ranks_of(clients, carriers), cohort_size=size)
    )[TOP]
    values = {P0: sp.Rational(float(empty)), flow.M: sp.Rational(target)}
    values[flow.G] = growth(target, time)
    inverse = sp.N(1 / sp.Rational(start), DIGITS)
    for _ in range(rounds):
        step = flow_cohorts.carried_inverse_map().subs(flow.y, inverse)
        inverse = sp.N(step.subs(values), DIGITS)
    assert path[-1, TOP] == pytest.approx(float(1 / inverse), rel=CLOSE)
    assert flow_cohorts.carried_floor() == flow.M


@pytest.mark.slow
def test_a_fixed_multiplier_is_a_case_of_a_random_one():
    fixed = {flow_cohorts.mean_inverse: 1 / flow.omega}
    assert sp.simplify(flow_cohorts.mean_inverse_map().subs(fixed) - flow.inverse_round_map()) == 0
    assert sp.simplify(flow_cohorts.harmonic_floor().subs(fixed) - flow.floor()) == 0
    same = flow_cohorts.harmonic_amplitude_after().subs(fixed) - flow.amplitude_after()
    assert sp.simplify(same.subs({flow.M: 2, flow.G: 3, flow.start: 5, t: 4})) == 0
    assert flow_cohorts.mean_inverse_map(2) == flow_cohorts.mean_inverse_map(4)


@settings(max_examples=examples(15))
@given(case=federations(), target=TARGETS)
def test_typical_threshold_equals_the_numbers(case, target):
    clients, carriers, size = case
    ranks = ranks_of(clients, carriers)
    found = closed_form.collapse_threshold(
        Scenario(ranks, cohort_size=size, local_loss="quadratic"), "fedavg", target=target
    )[TOP]
    log_share = float(weight_moments("cohort", Federation(ranks, None, size)).log_mean[TOP])
    values = dict(zip(sp.symbols("omega_1:3", positive=True), [sp.exp(log_share)] * 2, strict=True))
    values |= dict.fromkeys(sp.symbols("P_1:3", positive=True), sp.Rational(1, 2))
    drift = flow_cohorts.typical_threshold().subs(values | {flow.G: growth(target, float(found))})
    assert float(sp.N(drift)) == pytest.approx(0.0, abs=CLOSE)


@settings(max_examples=examples(10))
@given(targets=st.lists(st.floats(0.2, 3.0), min_size=2, max_size=2))
def test_unlike_targets_equal_the_numbers(targets):
    ranks = [2, 2, 1, 1, 1]
    per_client = [*targets, 1.0, 1.0, 1.0]
    values = dict(zip(sp.symbols("M_1:3", positive=True), targets, strict=True))
    values |= dict.fromkeys(sp.symbols("p_1:3", positive=True), sp.Rational(1, 5))
    slopes = {
        "fedavg": flow_cohorts.threshold_product(),
        "zero_pad": flow_cohorts.threshold_factors(),
    }
    for rule, slope in slopes.items():
        time = float(
            closed_form.collapse_threshold(
                Scenario(ranks, local_loss="quadratic"), rule, target=per_client
            )[TOP]
        )
        assert evaluate(slope, values | {flow.T: time}) == pytest.approx(1.0, rel=CLOSE)


def test_unlike_targets_delay_the_collapse():
    jensen = flow_cohorts.jensen()
    assert jensen.gap == 0
    assert jensen.curvature.is_positive
    equal = dict.fromkeys(sp.symbols("M_1:3", positive=True), flow.M)
    halves = dict.fromkeys(sp.symbols("p_1:3", positive=True), W / 2)
    slope = flow_cohorts.threshold_product().subs(equal | halves)
    assert sp.simplify(slope - W * sp.exp(2 * flow.M * flow.T)) == 0


@settings(max_examples=examples(15))
@given(case=federations(), target=TARGETS, time=TIMES, start=STARTS)
def test_frozen_factor_equals_the_numbers(case, target, time, start):
    clients, carriers, _ = case
    ranks = ranks_of(clients, carriers)
    values = {W: sp.Rational(carriers, clients), flow.M: target, x: start}
    values[flow_cohorts.e] = sp.exp(-sp.Rational(time))
    floor = closed_form.flow_floor(
        Scenario(ranks, local_time=time, local_loss="quadratic"), "ffa", target=target
    )[TOP]
    assert floor == pytest.approx(evaluate(flow_cohorts.frozen_floor(), values), rel=CLOSE)
    rate = closed_form.flow_rate(
        Scenario(ranks, local_time=time, local_loss="quadratic"), "ffa", target=target
    )[TOP]
    assert rate == pytest.approx(evaluate(flow_cohorts.frozen_rate(), values), rel=CLOSE)
    path = closed_form.flow_trajectory(
        Scenario(ranks, rounds=1, local_time=time, local_loss="quadratic"),
        "ffa",
        target=target,
        initial_amplitude=start,
    )
    wanted = evaluate(W * flow_cohorts.frozen_local_map(), values)
    assert path[-1, TOP] == pytest.approx(wanted, rel=CLOSE)
