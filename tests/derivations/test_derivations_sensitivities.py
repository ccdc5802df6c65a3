"""Elasticities of rates and floors: quotients of logarithms, their sums, and the numbers."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
from derivation_cases import AWAY, CLOSE, POSITIVE, TOP, evaluate, federations, ranks_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profiles import examples

from analysis import closed_form
from analysis.derivations import base_rules, floors
from analysis.derivations import sensitivities as derived
from analysis.derivations.cohorts import without_replacement
from analysis.derivations.symbols import S1, S2, K, c, g, m, n, nu, pi, tau, x
from fedlora_sim import Scenario


def quotient(quantity: sp.Expr, parameter: sp.Symbol, values: dict[sp.Symbol, object]) -> float:
    """Return elasticity by a symmetric difference of logarithms, in high precision."""
    step = sp.Rational(1, 10**12)
    sides = [
        sp.log(sp.N(quantity.subs(values | {parameter: values[parameter] * factor}), 60))
        for factor in (1 + step, 1 - step)
    ]
    return float((sides[0] - sides[1]) / (sp.log(1 + step) - sp.log(1 - step)))


def test_elasticities_are_quotients_of_logarithms():
    values = {K: 12, m: 4, pi: sp.Rational(1, 3), g: sp.Rational(9, 10)}
    values |= {nu: sp.Rational(1, 5), tau: sp.Rational(1, 7)}
    moments = floors.fedavg_cohort_moments()
    pairs = (
        (derived.rate_elasticities(), floors.rate().subs(moments)),
        (derived.floor_elasticities(), floors.floor().subs(moments)),
    )
    names = {"gain_mean": g, "gain_std": nu, "drift_std": tau, "coverage": pi, "cohort_size": m}
    for found, quantity in pairs:
        for name, symbol in names.items():
            wanted = quotient(quantity, symbol, values)
            assert evaluate(getattr(found, name), values) == pytest.approx(wanted, abs=CLOSE)


def test_elasticities_add_up():
    assert derived.floor_decomposition() == 0
    shares = derived.moment_elasticities()
    assert sp.simplify(shares.squared_sum + shares.sum_of_squares) == 1
    spread = derived.rate_elasticities()
    assert sp.simplify(spread.gain_mean + spread.gain_std) == 2, "q' is quadratic in both"
    assert derived.floor_elasticities().drift_std == 2


NAMES = {"gain_mean": g, "gain_std": nu, "drift_std": tau, "coverage": pi, "cohort_size": m}


@settings(max_examples=examples(20))
@given(case=federations(fewest=4), gain=st.floats(0.1, 0.95), spread=POSITIVE)
def test_elasticities_equal_the_numbers(case, gain, spread):
    clients, carriers, size = case
    values = {K: clients, m: size, pi: sp.Rational(carriers, clients), g: gain, nu: spread, tau: 1}
    found = closed_form.sensitivities(
        Scenario(ranks_of(clients, carriers), cohort_size=size),
        "fedavg",
        gain_mean=gain,
        gain_std=spread,
    )
    rate = evaluate(floors.rate().subs(floors.fedavg_cohort_moments()), values)
    for name in NAMES:
        wanted = evaluate(getattr(derived.rate_elasticities(), name), values)
        assert found[name].rate[TOP] == pytest.approx(wanted, rel=CLOSE, abs=CLOSE)
        if rate < 1 - AWAY:
            wanted = evaluate(getattr(derived.floor_elasticities(), name), values)
            assert found[name].floor[TOP] == pytest.approx(wanted, rel=CLOSE, abs=CLOSE)


@pytest.mark.parametrize("case", [(12, 4, 5), (9, 8, 2), (7, 3, 7)])
@pytest.mark.parametrize("rule", ["zero_pad", "flora"])
def test_elasticities_of_other_maps_equal_the_numbers(rule, case):
    clients, carriers, size = case
    values = {K: clients, m: size, pi: sp.Rational(carriers, clients), g: sp.Rational(7, 8)}
    values |= {nu: sp.Rational(1, 5), tau: 1}
    moments = without_replacement()
    if rule == "zero_pad":
        # common gain and drift, and every share enters twice
        weights = {S1: moments.second, S2: moments.fourth, nu: 0, tau: 0, c: 1}
        rate, floor = floors.rate().subs(weights), floors.floor_with_drift().subs(weights)
    else:
        weights = floors.fedavg_cohort_moments() | {c: 0}
        step = base_rules.flora_moments()
        rate, floor = step.rate.subs(weights), (step.noise / (1 - step.rate)).subs(weights)
    found = closed_form.sensitivities(
        Scenario(ranks_of(clients, carriers), cohort_size=size),
        rule,
        gain_mean=7 / 8,
        gain_std=0.0 if rule == "zero_pad" else 0.2,
    )
    for name in ("gain_mean", "coverage", "cohort_size"):
        for number, quantity in ((found[name].rate, rate), (found[name].floor, floor)):
            wanted = quotient(quantity, NAMES[name], values)
            assert number[TOP] == pytest.approx(wanted, rel=CLOSE)


def test_a_larger_cohort_suppresses_more():
    effect = derived.participation_effect().subs(pi, 1 / (1 + x)).subs(K, 1 + n)
    assert sp.simplify(effect).is_negative


@settings(max_examples=examples(15))
@given(case=federations(), gain=st.floats(0.1, 0.95))
def test_constants_written_out_equal_the_numbers(case, gain):
    clients, carriers, size = case
    values = {K: clients, m: size, pi: sp.Rational(carriers, clients), g: gain, tau: 0.25}
    ranks, setting = ranks_of(clients, carriers), {"cohort_size": size, "gain_mean": gain}
    floor = closed_form.energy_floor(
        Scenario(ranks, gain_std=0.0, drift_std=0.25, **setting), "fedavg"
    )
    assert floor[TOP] == pytest.approx(evaluate(derived.data_dependent_floor(), values), rel=CLOSE)
    critical = np.sqrt(evaluate(derived.critical_heterogeneity(), values))
    number = closed_form.critical_gain_std(Scenario(ranks, **setting), "fedavg")[TOP]
    assert number == pytest.approx(critical, rel=CLOSE)
    rate = closed_form.energy_rate(Scenario(ranks, **setting), "fedavg", gain_std=critical)
    assert rate[TOP] == pytest.approx(1.0, rel=CLOSE)


def test_flow_elasticities_diverge_at_the_threshold():
    found = derived.flow_elasticities()
    G, omega, M, T = derived.G, derived.omega, derived.M, derived.T
    assert sp.simplify(found.multiplier - omega * G / (omega * G - 1)) == 0
    slope = derived.flow_floor_slope() - M * G / (G - 1)
    assert sp.simplify(slope) == 0
    values = {M: sp.Rational(6, 5), T: sp.Rational(1, 2), omega: sp.Rational(2, 3)}
    floor = derived.flow_floor().subs(G, sp.exp(2 * M * T))
    exact = values | {G: sp.exp(2 * values[M] * values[T])}
    for name, symbol in (("target", M), ("local_time", T), ("multiplier", omega)):
        wanted = quotient(floor, symbol, values)
        assert evaluate(getattr(found, name), exact) == pytest.approx(wanted, abs=CLOSE)
