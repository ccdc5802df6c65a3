"""Symbolic derivations: internal consistency, and agreement with the numeric closed forms."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import closed_form
from analysis.cohorts.moments import weight_moments
from analysis.derivations import floors, rates
from fedlora_sim.federation import Federation
from fedlora_sim.tolerances import relative

CLOSE = 100 * relative("factorization")  # 1 - q' loses up to two digits below
ROUND = sp.Symbol("t", integer=True, nonnegative=True)
TOP = -1  # the highest partition, where coverage is lowest


def evaluate(expression: sp.Expr, values: dict[sp.Symbol, object]) -> float:
    return float(sp.N(expression.subs(values), 30))


@functools.cache
def energy_after() -> sp.Expr:
    return floors.energy_after(ROUND)  # solving the recurrence takes longer than using it


@st.composite
def federations(draw: st.DrawFn) -> tuple[int, int, int]:
    """Clients K, contributors n of the top partition, cohort size m."""
    K = draw(st.integers(2, 60))
    return K, draw(st.integers(1, K - 1)), draw(st.integers(1, K))


def ranks_of(K: int, n: int) -> str:
    return f"1x{K - n},2x{n}"


def test_cohort_rate_has_the_announced_form():
    K, m, pi = rates.K, rates.m, rates.pi
    announced = pi**2 + pi * (1 - pi) * (K - m) / (m * (K - 1))
    assert sp.simplify(rates.cohort_second_moment() - announced) == 0
    assert sp.simplify(rates.cohort_second_moment().subs(m, K) - pi**2) == 0
    with_replacement = pi**2 + pi * (1 - pi) / m
    assert sp.simplify(rates.replacement_second_moment() - with_replacement) == 0


@settings(max_examples=30, deadline=None)
@given(case=federations())
def test_cohort_rates_equal_the_numbers(case):
    K, n, m = case
    values = {rates.K: K, rates.m: m, rates.pi: sp.Rational(n, K)}
    for sampling, expression in (
        ("without_replacement", rates.cohort_second_moment()),
        ("with_replacement", rates.replacement_second_moment()),
    ):
        q = closed_form.energy_rate("fedavg", ranks_of(K, n), cohort_size=m, sampling=sampling)
        assert q[TOP] == pytest.approx(evaluate(expression, values), rel=CLOSE)


@settings(max_examples=20, deadline=None)
@given(case=federations())
def test_extinction_equals_the_numbers(case):
    K, n, m = case
    wanted = evaluate(rates.extinction_probability(m), {rates.K: K, rates.n: n})
    found = closed_form.extinction_probability(ranks_of(K, n), m)
    assert found[TOP] == pytest.approx(wanted, rel=CLOSE, abs=0.0)


def test_repeated_clients_enter_the_sum_of_squares():
    K, n, m = 7, 3, 4
    squares = rates.repeated_client_squares().subs({rates.n: n})
    mass = [sp.binomial(m, d) * sp.Rational(n, K) ** d * sp.Rational(K - n, K) ** (m - d)
            for d in range(m + 1)]  # fmt: skip
    fed = Federation(ranks_of(K, n), cohort_size=m, sampling="with_replacement")
    fedavg = sum(p * squares.subs(rates.d, d) for d, p in enumerate(mass)) / m**2
    raflora = sum(p * squares.subs(rates.d, d) / d**2 for d, p in enumerate(mass) if d)
    for normaliser, wanted in (("cohort", fedavg), ("contributors", raflora)):
        found = weight_moments(normaliser, fed).sum_of_squares[TOP]
        assert found == pytest.approx(float(wanted), rel=relative("reduction"))


def test_staircase_has_one_rate_per_partition():
    assert sp.simplify(rates.staircase_rate() - rates.pi**2) == 0
    ranks = "4x5,8x3,16x2"
    for pi, q in zip(
        closed_form.coverage(ranks), closed_form.energy_rate("fedavg", ranks), strict=True
    ):
        assert q == pytest.approx(evaluate(rates.staircase_rate(), {rates.pi: pi}), rel=CLOSE)


@pytest.mark.parametrize("num_levels", [2, 3, 4])
def test_collapse_bound_gap_is_never_negative(num_levels):
    numerator, denominator = sp.fraction(rates.collapse_bound_gap(num_levels))
    for part in (numerator, denominator):
        polynomial = sp.Poly(sp.expand(part), *part.free_symbols)
        assert min(polynomial.coeffs()) > 0


@pytest.mark.parametrize("num_clients", [2, 4])
def test_recursion_does_not_depend_on_the_number_of_clients(num_clients):
    assert floors.second_moment_recursion(num_clients) == floors.second_moment_recursion()
    assert floors.mean_recursion(num_clients) == floors.mean_recursion()


def test_recursion_is_the_sum_of_its_parts():
    parts = floors.rate() * floors.x2 + floors.cross() * floors.x1 + floors.noise()
    assert sp.expand(parts - floors.second_moment_recursion()) == 0


POSITIVE = st.floats(0.01, 0.5)


@settings(max_examples=30, deadline=None)
@given(
    case=federations(), g=st.floats(0.1, 0.9), nu=POSITIVE, tau=POSITIVE, rounds=st.integers(1, 9)
)
def test_rate_floor_and_trajectory_equal_the_numbers(case, g, nu, tau, rounds):
    K, n, m = case
    ranks, exact = ranks_of(K, n), sp.Rational(n, K)
    spread = {"cohort_size": m, "gain_mean": g, "gain_std": nu}
    values = {floors.g: g, floors.nu: nu, floors.tau: tau, floors.x2_start: 4}
    cohort = {rates.K: K, rates.m: m, rates.pi: exact}
    values |= {s: e.subs(cohort) for s, e in floors.fedavg_cohort_moments().items()}
    rate = evaluate(floors.rate(), values)
    assert closed_form.energy_rate("fedavg", ranks, **spread)[TOP] == pytest.approx(rate, rel=CLOSE)
    if abs(1 - rate) < 1e-2:
        return  # the floor is ill-conditioned there
    floor = closed_form.energy_floor("fedavg", ranks, **spread, drift_std=tau)
    wanted = evaluate(floors.floor(), values) if rate < 1 else np.inf
    assert floor[TOP] == pytest.approx(wanted, rel=CLOSE)
    path = closed_form.energy_trajectory(
        "fedavg", ranks, rounds, initial_amplitude=2.0, drift_std=tau, **spread
    )
    after = evaluate(energy_after(), values | {ROUND: rounds})
    assert path[-1, TOP] == pytest.approx(after, rel=CLOSE)


@settings(max_examples=20, deadline=None)
@given(case=federations(), g=st.floats(0.1, 1.2), nu=POSITIVE)
def test_raflora_carry_equals_the_numbers(case, g, nu):
    K, n, m = case
    found = weight_moments("contributors", Federation(ranks_of(K, n), cohort_size=m))
    values = {floors.g: g, floors.nu: nu, floors.S2: found.second[TOP], floors.P0: found.empty[TOP]}
    values[floors.Q] = found.sum_of_squares[TOP]
    wanted = evaluate(floors.carry(floors.second_moment_recursion()).coeff(floors.x2), values)
    rate = closed_form.energy_rate(
        "raflora", ranks_of(K, n), cohort_size=m, gain_mean=g, gain_std=nu, empty_partition="carry"
    )
    assert rate[TOP] == pytest.approx(wanted, rel=CLOSE)


def test_rate_is_one_at_the_critical_heterogeneity():
    K, n, m, g = 10, 3, 4, sp.Rational(9, 10)
    cohort = {rates.K: K, rates.m: m, rates.pi: sp.Rational(n, K)}
    moments = {s: e.subs(cohort) for s, e in floors.fedavg_cohort_moments().items()}
    critical = evaluate(floors.critical_gain_std(), moments | {floors.g: g})
    setting = {"cohort_size": m, "gain_mean": 0.9}
    at = closed_form.energy_rate("fedavg", ranks_of(K, n), gain_std=critical, **setting)
    assert at[TOP] == pytest.approx(1.0, rel=CLOSE)
    for factor, finite in ((1 - CLOSE, True), (1 + CLOSE, False)):
        floor = closed_form.energy_floor(
            "fedavg", ranks_of(K, n), gain_std=critical * factor, drift_std=0.1, **setting
        )
        assert np.isfinite(floor[TOP]) == finite
