"""Derivations of gains and drifts that are drawn once, against Gaussian integrals."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
from derivation_cases import CLOSE, POSITIVE, TOP, evaluate, federations, ranks_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profiles import examples

from analysis import closed_form
from analysis.derivations import floors, persistent, persistent_cohorts
from analysis.derivations.symbols import S1, S2, K, Q, c, g, m, n, nu, pi, t, tau
from analysis.derivations.unequal import squares
from fedlora_sim import Scenario


def gaussian(order: int, mean: float, std: float) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights that integrate polynomials up to 2 order - 1 exactly."""
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


@settings(max_examples=examples(20))
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


@settings(max_examples=examples(15))
@given(
    case=federations(),
    mean=st.floats(0.1, 1.1),
    spread=POSITIVE,
    drift=st.floats(-0.5, 0.5),
    rounds=st.integers(1, 6),
)
def test_full_participation_equals_the_numbers(case, mean, spread, drift, rounds):
    clients, carriers, _ = case
    found = closed_form.energy_trajectory(
        Scenario(
            ranks_of(clients, carriers), rounds=rounds, drift_std=0.25, heterogeneity="persistent"
        ),
        "fedavg",
        initial_amplitude=2.0,
        gain_mean=mean,
        gain_std=spread,
        drift_mean=drift,
    )
    law = persistent.aggregate_law()
    values = {g: mean, nu: spread, c: drift, tau: 0.25, pi: sp.Rational(carriers, clients)}
    values[squares] = sp.Rational(carriers, clients**2)
    exact = {s: sp.Rational(v) if isinstance(v, float) else v for s, v in values.items()}
    aggregate = {
        persistent.mu: law.gain_mean.subs(exact),
        persistent.s: sp.sqrt(law.gain_variance.subs(exact)),
        persistent.b: law.drift_mean.subs(exact),
        persistent.s_drift: sp.sqrt(law.drift_variance.subs(exact)),
        persistent.start: 2,
    }
    wanted = evaluate(persistent.energy_after(rounds), aggregate)
    assert found[-1, TOP] == pytest.approx(wanted, rel=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(("clients", "carriers", "size"), [(3, 2, 2), (4, 3, 2), (3, 1, 2)])
@pytest.mark.parametrize("rounds", [1, 3])
def test_random_cohorts_equal_the_numbers(clients, carriers, size, rounds):
    derived = persistent_cohorts.energy_after(rounds, clients, carriers, size)
    for mean, spread, drift in ((0.9, 0.3, 0.2), (1.1, 0.05, -0.4), (0.5, 0.6, 0.0)):
        found = closed_form.energy_trajectory(
            Scenario(
                ranks_of(clients, carriers),
                rounds=rounds,
                cohort_size=size,
                drift_std=0.25,
                heterogeneity="persistent",
            ),
            "fedavg",
            initial_amplitude=2.0,
            gain_mean=mean,
            gain_std=spread,
            drift_mean=drift,
        )
        values = {g: mean, nu: spread, c: drift, tau: 0.25, persistent.start: 2}
        assert found[-1, TOP] == pytest.approx(evaluate(derived, values), rel=CLOSE)


@settings(max_examples=examples(15))
@given(case=federations(), mean=st.floats(0.1, 0.9), drift=st.floats(-0.5, 0.5))
def test_floor_of_persistent_drifts_equals_the_numbers(case, mean, drift):
    clients, carriers, size = case
    ranks = ranks_of(clients, carriers)
    setting = {"gain_mean": mean, "drift_mean": drift, "drift_std": 0.25, "cohort_size": size}
    found = closed_form.energy_floor(
        Scenario(ranks, heterogeneity="persistent", **setting), "fedavg"
    )
    cohort = {K: clients, m: size, pi: sp.Rational(carriers, clients)}
    values = {s: e.subs(cohort) for s, e in floors.fedavg_cohort_moments().items()}
    values |= {g: mean, c: drift, tau: 0.25, n: carriers}
    wanted = evaluate(persistent_cohorts.drift_floor(), values)
    assert found[TOP] == pytest.approx(wanted, rel=CLOSE)
    spread = closed_form.energy_floor(
        Scenario(ranks, heterogeneity="persistent", gain_std=0.1, **setting), "fedavg"
    )
    assert spread[TOP] == np.inf, "the mean over normal gains has no floor"


def test_floor_of_persistent_drifts_in_known_cases():
    assert persistent_cohorts.drift_floor(2) == persistent_cohorts.drift_floor(4)
    # nothing random in the weights: each draw settles at B / (1 - A)
    still = {S2: S1**2, Q: S1**2 / n}
    derived = persistent_cohorts.drift_floor().subs(still)
    known = S1**2 * (c**2 + tau**2 / n) / (1 - g * S1) ** 2
    assert sp.simplify(derived - known) == 0
    effect = persistent_cohorts.persistence_effect()
    wanted = 2 * g * S1 * S2 * tau**2 / (n * (1 - g * S1) * (1 - g**2 * S2))
    assert sp.simplify(effect - wanted) == 0
