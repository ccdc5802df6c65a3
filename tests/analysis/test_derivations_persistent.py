"""Derivations of gains and drifts that are drawn once, against Gaussian integrals."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
from derivation_cases import CLOSE, evaluate
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.derivations import persistent
from analysis.derivations.symbols import c, g, nu, pi, t, tau
from analysis.derivations.unequal import squares


def gaussian(order: int, mean: float, std: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights that integrate polynomials up to 2 order - 1 exactly."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    return mean + std * nodes, weights / weights.sum()


def test_steins_recursion_gives_the_gaussian_integrals():
    mu, s, A = persistent.mu, persistent.s, persistent.A
    density = sp.exp(-(A**2) / 2) / sp.sqrt(2 * sp.pi)
    standard = [sp.integrate(A**j * density, (A, -sp.oo, sp.oo)) for j in range(7)]
    for order in range(7):
        powers = sp.Poly((mu + s * A) ** order, A).terms()
        integral = sum(value * standard[j] for (j,), value in powers)
        assert sp.expand(integral - persistent.gain_power(order)) == 0


@settings(max_examples=20, deadline=None)
@given(
    mean=st.floats(-1.1, 1.1),
    spread=st.floats(0.01, 0.5),
    drift=st.floats(-1.0, 1.0),
    rounds=st.integers(0, 6),
)
def test_mean_energy_is_the_integral_over_draws(mean, spread, drift, rounds):
    values = {persistent.mu: mean, persistent.s: spread, persistent.b: drift}
    values |= {persistent.s_drift: 0.25, persistent.start: 2}
    A, own = gaussian(rounds + 2, mean, spread)
    B, other = gaussian(3, drift, 0.25)
    x = np.full((A.size, B.size), 2.0)
    for _ in range(rounds):
        x = A[:, None] * x + B
    found = own @ x**2 @ other
    assert found == pytest.approx(evaluate(persistent.energy_after(rounds), values), rel=CLOSE)


@pytest.mark.parametrize("rounds", [0, 1, 5])
def test_amplitude_of_a_draw_is_the_iterated_map(rounds):
    A, B, start = sp.Rational(2, 3), sp.Rational(1, 7), sp.Integer(4)
    x = start
    for _ in range(rounds):
        x = A * x + B
    values = {persistent.A: A, persistent.B: B, persistent.start: start, t: rounds}
    assert persistent.amplitude_after().subs(values) == x


def test_draws_come_to_rest_and_their_mean_does_not():
    A = persistent.A
    assert sp.simplify(persistent.approach() - A**t) == 0
    announced = persistent.B**2 / (1 - A) ** 2
    assert sp.simplify(persistent.floor_of_a_draw() - announced) == 0
    assert persistent.mean_growth() == sp.oo


def test_aggregates_add_up_means_and_variances():
    law = persistent.aggregate_law()
    assert sp.expand(law.gain_mean - g * pi) == 0
    assert sp.expand(law.gain_variance - nu**2 * squares) == 0
    assert sp.expand(law.drift_mean - c * pi) == 0
    assert sp.expand(law.drift_variance - tau**2 * squares) == 0
