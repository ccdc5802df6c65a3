"""Derivations of the rules' multipliers, noise, traffic and sensitivities."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import sympy as sp
from derivation_cases import CLOSE, TOP, evaluate, federations, ranks_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profiles import examples

from analysis import closed_form
from analysis.cohorts.shares import share_laws, weight_moments
from analysis.derivations import base_rules, multipliers
from analysis.derivations.symbols import S1, S2, H, Q, W, c, g, m, nu, t, tau, x
from fedlora_sim import Scenario
from fedlora_sim.federation import Federation
from fedlora_sim.tolerances import relative


@pytest.mark.parametrize("share", [Fraction(1, 4), Fraction(2, 3), Fraction(1)])
def test_multipliers_equal_the_numbers(share):
    rules = ("fedavg", "zero_pad", "ffa", "raflora", "rbla")
    for rule in rules:
        wanted = getattr(multipliers, rule)().subs(W, sp.Rational(share))
        found = closed_form.multiplier(rule, float(share))
        assert found == pytest.approx(float(wanted), rel=CLOSE)
    found = closed_form.multiplier("fedex", float(share))
    assert found == pytest.approx(float(base_rules.fedex_total().subs(W, sp.Rational(share))))
    # hetlora's share is that of the norms, H / m in the limit
    limit = multipliers.hetlora_limit().subs({H: share.numerator, m: share.denominator})
    assert closed_form.multiplier("hetlora", float(share)) == pytest.approx(float(limit), rel=CLOSE)


def test_multipliers_do_not_depend_on_the_number_of_contributors():
    for count in (2, 4):
        averaged = multipliers.clients(count)
        assert sp.simplify(averaged.product_average() - W * x) == 0
        assert sp.simplify(averaged.factor_average() - W**2 * x) == 0
        assert sp.simplify(sp.Add(*averaged.weights) - 1) == 0


def test_hetlora_weights_tend_to_uniform():
    for number, size in ((1, 3), (2, 5)):
        weight = multipliers.hetlora_weight(number, size)
        assert sp.limit(weight, x, 0) == sp.Rational(1, size)
        energy = sp.Symbol("E_1", positive=True)
        assert sp.limit(weight, energy, 0) == sp.Rational(1, number)


def test_partition_of_raflora_is_that_of_fedavg_over_its_share():
    assert multipliers.raflora_identity() == 1
    assert multipliers.raflora_identity(5, 3) == 1


def test_flora_dilutes_increments_only():
    a, b = sp.symbols("a b", real=True)
    assert sp.expand(multipliers.flora() - x - W * ((a - 1) * x + b)) == 0
    moments = base_rules.flora_moments()
    step = g - 1
    announced = {
        "gain": 1 + step * S1,
        "shift": c * S1,
        "rate": 1 + 2 * step * S1 + step**2 * S2 + nu**2 * Q,
        "cross": 2 * (c * S1 + step * c * S2),
        "noise": tau**2 * Q + c**2 * S2,
    }
    for name, value in announced.items():
        assert sp.expand(getattr(moments, name) - value) == 0
    assert base_rules.flora_moments(4) == moments


def test_fedex_keeps_w_over_one_plus_w():
    assert sp.simplify(base_rules.fedex_total_limit() - W / (1 + W)) == 0
    state = sp.Matrix([1, 0])
    for rounds in range(4):
        after = base_rules.fedex_total_after().subs(t, rounds)
        assert sp.simplify(sum(state) - after) == 0
        state = base_rules.fedex_map().subs(base_rules.a, 1) * state
    rest = base_rules.fedex_rest_point()
    assert rest.adapter == 0
    assert sp.simplify(rest.base - base_rules.b / (1 - base_rules.a)) == 0


def test_fedex_energy_map_is_the_square_of_its_round():
    x_, z = base_rules.x, base_rules.z
    step = base_rules.fedex_map() * sp.Matrix([x_, z])
    squares = sp.Matrix([step[0] ** 2, step[0] * step[1], step[1] ** 2])
    mapped = base_rules.fedex_energy_map() * sp.Matrix([x_**2, x_ * z, z**2])
    powers = {s: W**j for j, s in enumerate(sp.symbols("W_1:5", positive=True), start=1)}
    assert sp.expand(mapped.subs(powers) - squares) == sp.zeros(3, 1)


@settings(max_examples=examples(15))
@given(case=federations(most=20), gain=st.floats(0.5, 1.1))
def test_base_rules_equal_the_numbers(case, gain):
    clients, carriers, size = case
    ranks, setting = ranks_of(clients, carriers), {"cohort_size": size, "gain_mean": gain}
    moments = weight_moments("cohort", Federation(ranks, None, size))
    values = {S1: float(moments.mean[TOP]), S2: float(moments.second[TOP]), nu: 0.25, g: gain}
    values[Q] = float(moments.sum_of_squares[TOP])
    found = closed_form.energy_rate(Scenario(ranks, gain_std=0.25, **setting), "flora")[TOP]
    assert found == pytest.approx(evaluate(base_rules.flora_moments().rate, values), rel=CLOSE)
    law = share_laws(Federation(ranks, None, size))[TOP]
    powers = {
        symbol: float(law.expect(law.share**j))
        for j, symbol in enumerate(sp.symbols("W_1:5", positive=True), start=1)
    }
    matrix = base_rules.fedex_energy_map().subs(base_rules.a, gain).subs(powers)
    radius = np.abs(np.linalg.eigvals(np.array(matrix, dtype=float))).max()
    found = closed_form.energy_rate(Scenario(ranks, **setting), "fedex")[TOP]
    # eigenvalues of a nearly defective matrix have half the digits
    assert found == pytest.approx(radius, rel=np.sqrt(relative("factorization")))


@pytest.mark.parametrize("gain", [0.9, 1.0])
def test_fedex_trajectory_and_floor_equal_the_numbers(gain):
    ranks, setting = ranks_of(5, 3), {"gain_mean": gain, "sampling": "bernoulli"}
    path = closed_form.energy_trajectory(
        Scenario(ranks, rounds=4, cohort_size=3, **setting), "fedex", initial_amplitude=2.0
    )
    law = share_laws(Federation(ranks, None, 3, "bernoulli"))[TOP]
    moments = {
        symbol: float(law.expect(law.share**j))
        for j, symbol in enumerate(sp.symbols("W_1:5", positive=True), start=1)
    }
    matrix = base_rules.fedex_energy_map().subs(base_rules.a, gain).subs(moments)
    state = sp.Matrix([4, 0, 0])
    for t_, energy in enumerate(path[:, TOP]):
        assert energy == pytest.approx(float(state[0] + 2 * state[1] + state[2]), rel=CLOSE), t_
        state = matrix * state
    rest = base_rules.fedex_rest_point()
    held = float((rest.adapter + rest.base).subs({base_rules.a: 0.9, base_rules.b: 0.2}) ** 2)
    floor = closed_form.energy_floor(Scenario(ranks, gain_mean=0.9, drift_mean=0.2), "fedex")
    assert floor[TOP] == pytest.approx(held, rel=CLOSE)
