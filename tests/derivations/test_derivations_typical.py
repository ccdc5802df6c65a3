"""Derivations of the typical direction: walks, survival and the gap to the mean."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
from derivation_cases import CLOSE, TOP, evaluate, federations, ranks_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profiles import examples

from analysis import closed_form
from analysis.cohorts.shares import weight_moments
from analysis.derivations import typical
from analysis.derivations.cohorts import relative_variance
from analysis.derivations.symbols import P0, K, m, pi, t
from fedlora_sim import Scenario
from fedlora_sim.federation import Federation


@settings(max_examples=examples(20))
@given(case=federations(), rounds=st.integers(1, 9))
def test_walk_and_survival_equal_the_numbers(case, rounds):
    clients, carriers, size = case
    ranks, setting = ranks_of(clients, carriers), {"cohort_size": size}
    moments = weight_moments("cohort", Federation(ranks, None, size))
    values = {typical.ell: float(moments.log_mean[TOP]), P0: float(moments.empty[TOP]), t: rounds}
    values[typical.v] = float(moments.log_variance[TOP])
    for gain in (1.0, 0.8):
        shifted = values | {typical.ell: values[typical.ell] + sp.log(sp.Rational(gain))}
        found = closed_form.typical_rate(Scenario(ranks, **setting), "fedavg", gain_mean=gain)[TOP]
        assert found == pytest.approx(evaluate(typical.typical_rate(), shifted), rel=CLOSE)
    dropped = setting | {"empty_partition": "zero"}
    alive = closed_form.survival(Scenario(ranks, rounds=rounds, **dropped), "raflora")[-1, TOP]
    assert alive == pytest.approx(evaluate(typical.survival(), values), rel=CLOSE)
    spread = closed_form.log_energy_std(Scenario(ranks, rounds=rounds, **setting), "fedavg")[
        -1, TOP
    ]
    wanted = np.sqrt(evaluate(typical.log_energy().variance, values))
    assert spread == pytest.approx(wanted, rel=CLOSE, abs=CLOSE)


@settings(max_examples=examples(20))
@given(a=st.floats(0.05, 1.0), b=st.floats(0.05, 1.0), p=st.floats(0.0, 1.0))
def test_typical_is_never_above_the_mean(a, b, p):
    values = dict(zip(sp.symbols("a b p", positive=True), (a, b, p), strict=True))
    assert evaluate(typical.jensen_gap(), values) >= -CLOSE
    if a != b and 0 < p < 1:
        assert evaluate(typical.jensen_curvature(), values) < 0


def test_gap_vanishes_at_both_ends():
    a, b, p = sp.symbols("a b p", positive=True)
    for end in (0, 1):
        gap = sp.expand_log(typical.jensen_gap().subs(p, end), force=True)
        assert sp.simplify(gap) == 0
    assert sp.simplify(typical.jensen_gap().subs(b, a)).equals(0)
    e = sp.Symbol("e", positive=True)
    assert typical.small_fluctuation_gap() == 2 * e**2


def test_variation_helps_the_mean_and_hurts_the_typical_direction():
    found = typical.opposite_corrections()
    assert sp.expand(found.mean - 1) == -sp.expand(found.typical - 1)
    case = (1000, 500, 100)  # many clients: W varies little
    ranks = ranks_of(*case[:2])
    ratios = [
        closed_form.energy_rate(Scenario(ranks, cohort_size=case[2]), "fedavg")[TOP] / 0.25,
        closed_form.typical_rate(Scenario(ranks, cohort_size=case[2]), "fedavg")[TOP] / 0.25,
    ]
    cohort = {K: case[0], pi: sp.Rational(1, 2), m: case[2]}
    variance = float(relative_variance().subs(cohort))
    (e,) = found.mean.free_symbols
    for ratio, expression in zip(ratios, (found.mean, found.typical), strict=True):
        wanted = float(expression.subs(e, sp.sqrt(variance)))
        # what is left out is of the order of the variance squared
        assert ratio == pytest.approx(wanted, abs=10 * variance**2)


def test_log_walk_is_the_sum_of_its_steps():
    for rounds in (1, 2, 3):
        steps = sp.symbols(f"z_1:{rounds + 1}")
        square = sp.Poly(sp.expand((2 * sp.Add(*steps)) ** 2), *steps)
        moment = {0: 1, 1: typical.ell, 2: typical.v + typical.ell**2}
        mean_square = sum(
            value * sp.prod([moment[power] for power in powers]) for powers, value in square.terms()
        )
        variance = sp.expand(mean_square - (2 * rounds * typical.ell) ** 2)
        assert sp.expand(variance - typical.log_energy().variance.subs(t, rounds)) == 0


@pytest.mark.slow
def test_mean_over_median_grows_with_the_variance():
    law = typical.log_normal()
    walk = typical.log_energy()
    assert sp.simplify(law.ratio - sp.exp(walk.variance / 2)) == 0
    assert sp.simplify(law.median - typical.typical_rate() ** t) == 0
    z, center = sp.symbols("z center", real=True)
    spread = sp.Symbol("spread", positive=True)
    values = {center: sp.Rational(1, 3), spread: sp.Rational(2, 5)}
    density = sp.exp(-((z - center) ** 2) / (2 * spread**2)) / (spread * sp.sqrt(2 * sp.pi))
    whole = sp.Integral((sp.exp(z) * density).subs(values), (z, -sp.oo, sp.oo))
    wanted = sp.exp(values[center] + values[spread] ** 2 / 2)
    assert float(whole.evalf()) == pytest.approx(float(wanted), rel=CLOSE)


def test_lifetime_is_the_mean_of_a_geometric_law():
    assert sp.simplify(typical.mean_lifetime() * P0) == 1
