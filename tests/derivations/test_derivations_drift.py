"""Derivations of the drift law, against the closed forms and against sums written out."""

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
from analysis.derivations import drift, flow
from analysis.derivations.symbols import P0, S1, S2, Q, W, c, g, nu, t, tau, x1, x1_start, x2
from analysis.derivations.symbols import x as amplitude
from fedlora_sim import Scenario
from fedlora_sim.federation import Federation

POSITIVE = st.floats(0.05, 0.95)


def law(case: tuple[int, int, int], **changes) -> Scenario:
    """Return a federation whose second direction is carried by some clients."""
    clients, carriers, size = case
    given = {"cohort_size": size, "local_loss": "drift", "spectrum_decay": 1.0, "rounds": 4}
    return Scenario(ranks_of(clients, carriers), **given | changes)


def moments_of(scenario: Scenario, normalizer: str = "cohort") -> dict[sp.Symbol, float]:
    moments = weight_moments(normalizer, scenario.federation)
    return {S1: moments.mean[TOP], S2: moments.second[TOP], Q: moments.sum_of_squares[TOP]}


@settings(max_examples=examples(15))
@given(case=federations(most=9), gain=POSITIVE, drifts=POSITIVE, noise=st.sampled_from([0, 0.2]))
def test_moments_are_those_of_the_closed_forms(case, gain, drifts, noise):
    fields = {"gain_mean": gain, "drift_mean": drifts, "gain_std": noise, "drift_std": noise}
    scenario = law(case, **fields)
    values = moments_of(scenario) | {g: gain, c: drifts, nu: noise, tau: noise}
    path = closed_form.drift_trajectory(scenario, "fedavg")[:, TOP]
    spread = closed_form.drift_std(scenario, "fedavg")[:, TOP] ** 2
    for round_ in range(5):
        wanted = evaluate(drift.mean_after(), values | {x1_start: 1.0, t: round_})
        assert path[round_] == pytest.approx(wanted, rel=CLOSE)
    for rule, expression in (
        ("fedavg", drift.variance_recursion()),
        ("flora", drift.flora_variance()),
    ):
        mean = closed_form.drift_trajectory(scenario, rule)[:, TOP]
        spread = closed_form.drift_std(scenario, rule)[:, TOP] ** 2
        for old, new in ((0, 1), (2, 3)):
            here = values | {x1: mean[old], drift.V: spread[old]}
            wanted = evaluate(expression, here)
            assert spread[new] == pytest.approx(wanted, rel=1e-6, abs=1e-12)


@settings(max_examples=examples(15))
@given(case=federations(most=9), gain=POSITIVE, drifts=POSITIVE)
def test_floors_and_settling_are_those_of_the_closed_forms(case, gain, drifts):
    scenario = law(case, gain_mean=gain, drift_mean=drifts, rounds=900, cohort_size=None)
    share = closed_form.coverage(scenario)[TOP]
    values = {W: share, g: gain, c: drifts}
    for rule, expression in (
        ("fedavg", drift.full_floor()),
        ("zero_pad", drift.zero_pad_floor()),
        ("raflora", drift.raflora_saturation()),
    ):
        found = closed_form.drift_floor(scenario, rule)[TOP]
        assert found == pytest.approx(evaluate(expression, values), rel=CLOSE)
    assert evaluate(drift.full_floor(), values) < evaluate(drift.raflora_saturation(), values)
    within = 0.07
    rounds = closed_form.drift_settling(scenario, "fedavg", within=within, initial_amplitude=0.0)[
        TOP
    ]
    exact = evaluate(drift.settling_rounds(), {S1: share, g: gain, drift.epsilon: within})
    assert rounds - 1 - 1e-6 <= exact <= rounds + 1e-6
    cohorts = law(case, gain_mean=gain, drift_mean=drifts, rounds=900)
    values = moments_of(cohorts) | {g: gain, c: drifts, nu: 0, tau: 0}
    if values[S2] * gain**2 < 0.95:
        last = closed_form.drift_std(cohorts, "fedavg")[-1, TOP] ** 2
        assert last == pytest.approx(evaluate(drift.variance_floor(), values), rel=1e-6, abs=1e-12)


@settings(max_examples=examples(15))
@given(case=federations(most=9), drifts=POSITIVE)
def test_growth_is_that_of_the_closed_forms(case, drifts):
    scenario = law(case, drift_mean=drifts)
    empty = closed_form.extinction_probability(scenario)[TOP]
    grown = drift.raflora_growth()
    values = {P0: empty, c: drifts, x1_start: 1.0}
    mean = closed_form.drift_trajectory(scenario, "raflora")[:, TOP]
    spread = closed_form.drift_std(scenario, "raflora")[:, TOP] ** 2
    for round_ in range(5):
        here = values | {t: round_}
        assert mean[round_] == pytest.approx(evaluate(grown.mean, here), rel=CLOSE)
        assert spread[round_] == pytest.approx(evaluate(grown.variance, here), rel=CLOSE, abs=1e-12)
    gained = closed_form.drift_growth(scenario, "flora")[TOP]
    assert gained == pytest.approx(
        evaluate(drift.flora_growth(), moments_of(scenario) | {c: drifts}), rel=CLOSE
    )
    full = law(case, drift_mean=drifts, cohort_size=None)
    share = Federation(full.ranks).coverage()[TOP]
    into_base = closed_form.drift_growth(full, "fedex")[TOP]
    assert into_base == pytest.approx(evaluate(drift.fedex_growth(), {W: share, c: drifts}))


def test_a_kept_round_is_one_of_two_outcomes():
    """At P0 = 0 the variance is that of an undiluted round, at P0 = 1 nothing happens."""
    kept = drift.carry_variance()
    assert sp.expand(kept.subs(P0, 0) - g**2 * drift.V) == 0
    assert sp.expand(kept.subs(P0, 1) - drift.V) == 0


def test_a_variance_has_no_part_of_the_cohort_where_the_share_is_constant():
    alone = drift.variance_recursion().subs({S2: S1**2, nu: 0, tau: 0})
    assert sp.expand(alone - g**2 * S1**2 * drift.V) == 0
    assert x2 not in alone.free_symbols


@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_schedules_are_the_sums_written_out(rounds):
    sums = drift.scheduled_sums()
    for name in ("linear", "cosine"):
        scenario = Scenario("1x2", rounds=rounds, local_loss="drift", learning_rate_schedule=name)
        wanted = evaluate(getattr(sums, name), {drift.T: rounds})
        assert scenario.training_scales.sum() == pytest.approx(wanted, rel=CLOSE)
    diluted = Scenario(
        "1x1,2x2",
        rounds=rounds,
        local_loss="drift",
        learning_rate_schedule="linear",
        drift_mean=0.3,
    )
    last = closed_form.drift_trajectory(diluted, "fedavg", initial_amplitude=0.8)[-1, TOP]
    values = {W: sp.Rational(2, 3), c: 0.3, x1_start: 0.8, drift.T: rounds}
    assert last == pytest.approx(evaluate(drift.linear_schedule(), values), rel=CLOSE)


# The optimizer


def test_adam_moves_by_the_learning_rate_in_every_step():
    """The simulator's own Adam, for a constant gradient of any size."""
    torch = pytest.importorskip("torch")
    from fedlora_sim.engines.matrix import _adam, _moments

    assert drift.adam_step().subs(sp.Symbol("G", real=True, nonzero=True), -3) == -1
    gradient = torch.tensor([1e-3, -2.0, 50.0], dtype=torch.float64)
    moments = _moments(gradient)
    for step in range(1, 12):
        moved = _adam(gradient.clone(), moments, step)
        np.testing.assert_allclose(moved, gradient.sign(), rtol=1e-4)


def test_a_step_is_linear_for_a_long_column_and_quadratic_for_a_short_one():
    drifted = drift.drift_of_step().subs(drift.cosine, 1)
    exponent = sp.diff(drifted, drift.L) * drift.L / drifted
    assert sp.limit(exponent, amplitude, sp.oo) == 1
    assert sp.limit(exponent, amplitude, 0) == 2
    assert sp.simplify(drifted - ((sp.sqrt(amplitude) + drift.L) ** 2 - amplitude)) == 0
    # without overlap the drift does not depend on the amplitude
    assert drift.drift_of_step().subs(drift.cosine, 0) == drift.L**2


def test_a_path_is_a_line_where_it_is_short_and_a_random_walk_where_it_is_long():
    square = drift.path_square()
    for length, wanted in ((1e-6, 1e-12), (1e6, 2e6)):
        assert evaluate(square, {drift.L: length, drift.ell: 1}) == pytest.approx(wanted, rel=1e-5)
    # two halves of a path and their overlap are the path
    halves = 2 * square.subs(drift.L, drift.L / 2)
    halves += 2 * drift.path_overlap().subs({drift.k: 1, drift.L: drift.L / 2})
    assert sp.simplify(halves - square) == 0


@pytest.mark.parametrize("factor", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("ratio", [0.01, 0.3, 4.0])
def test_the_drift_and_its_exponent_are_those_of_the_closed_forms(factor, ratio):
    ell = 0.6
    values = {drift.s: ratio, drift.ell: ell, drift.q: sp.sqrt(sp.Rational(factor))}
    arguments = (ratio * ell, ell, factor)
    wanted = evaluate(drift.adam_drift(), values)
    assert closed_form.adam_drift(*arguments) == pytest.approx(wanted, rel=CLOSE)
    power = evaluate(drift.drift_exponent(), values)
    assert closed_form.drift_exponent(*arguments) == pytest.approx(power, rel=CLOSE)
    assert 1 - CLOSE <= power <= 2
    assert closed_form.adam_drift(*arguments[:2], 1.0, factor) == pytest.approx(wanted, rel=CLOSE)


def test_the_limits_of_the_drift():
    limits = drift.drift_limits()
    assert limits.undiluted == limits.long == 2 * drift.L * drift.ell
    assert sp.simplify(limits.short - drift.L**2 * (1 + drift.q) / (1 - drift.q)) == 0
    assert sp.simplify(drift.drift_exponent().subs(drift.q, 1)) == 1


def test_weight_decay_and_gradient_descent_are_gains():
    values = {drift.eta: 0.01, drift.lamda: 0.1, drift.n: 7}
    found = closed_form.adamw_gain(0.01, 7, 0.1)
    assert found == pytest.approx(evaluate(drift.adamw_gain(), values), rel=CLOSE)
    added = drift.sgd_drift()
    assert added.subs(amplitude, 0) == 0
    gain = sp.simplify(added / amplitude) + 1
    assert amplitude not in gain.free_symbols
    # many small steps towards a target far away are the flow's growth of a small amplitude
    growth = float(sp.limit(gain.subs({drift.eta: 1 / drift.n, drift.G: 0.5}), drift.n, sp.oo))
    assert growth == pytest.approx(evaluate(flow.G, {flow.G: sp.E}), rel=CLOSE)
