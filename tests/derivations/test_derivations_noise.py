"""Noise, signal and traffic of a round: derived, enumerated, and the same as the numbers."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
from derivation_cases import CLOSE, TOP, cohorts, evaluate, federations, ranks_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profiles import examples

from analysis import closed_form
from analysis.cohorts.shares import weight_moments
from analysis.derivations import communication, contributors, noise
from analysis.derivations.symbols import P0, H, K, c, g, m, n, nu, pi, tau, x
from fedlora_sim import Scenario
from fedlora_sim.federation import Federation


@settings(max_examples=examples(20))
@given(case=federations(most=30))
def test_noise_gain_equals_the_numbers(case):
    clients, carriers, size = case
    federation = Federation(ranks_of(clients, carriers), None, size)
    fedavg = weight_moments("cohort", federation).sum_of_squares[TOP]
    raflora = weight_moments("contributors", federation)
    values = {K: clients, n: carriers, m: size, pi: sp.Rational(carriers, clients)}
    ratio = evaluate(noise.amplification(), values)
    ranks = ranks_of(clients, carriers)
    gains = [
        closed_form.noise_gain(Scenario(ranks, cohort_size=size), rule)[TOP]
        for rule in ("raflora", "fedavg")
    ]
    assert gains[0] / gains[1] == pytest.approx(ratio, rel=CLOSE)
    assert raflora.sum_of_squares[TOP] / fedavg == pytest.approx(ratio, rel=CLOSE)
    bound = evaluate(noise.amplification_bound(), values | {P0: float(raflora.empty[TOP])})
    assert ratio >= bound * (1 - CLOSE)


def test_one_round_has_the_same_signal_to_noise_ratio():
    assert noise.ratio_difference() == 0
    assert sp.simplify(noise.variance_ratio() - (m / H) ** 2) == 0
    for weight, derived_round in ((1 / m, noise.fedavg_round()), (1 / H, noise.raflora_round())):
        explicit = noise.one_round(3)
        same = dict.fromkeys(sp.symbols("w_1:4", positive=True), weight.subs(H, 3))
        for name in ("signal", "variance", "ratio"):
            difference = getattr(explicit, name).subs(same) - getattr(derived_round, name).subs(
                H, 3
            )
            assert sp.simplify(difference) == 0


@settings(max_examples=examples(15))
@given(case=federations(most=20), gain=st.floats(0.5, 1.1))
def test_noise_to_signal_equals_the_numbers(case, gain):
    clients, carriers, size = case
    values = {K: clients, n: carriers, m: size, g: gain, c: 0, nu: 0.25, tau: 0.5, x: 2}
    # the mean of 1 / SNR over H given H > 0: SNR is linear in H
    assert sp.simplify(noise.fedavg_round().ratio / H).has(H) is False
    inverse = evaluate(contributors.inverse_contributors(), values)
    kept = 1 - evaluate(contributors.extinction().without_replacement, values)
    wanted = np.sqrt(inverse / kept / evaluate(noise.fedavg_round().ratio.subs(H, 1), values))
    for rule in ("fedavg", "raflora"):
        found = closed_form.noise_to_signal(
            Scenario(ranks_of(clients, carriers), gain_std=0.25, drift_std=0.5, cohort_size=size),
            rule,
            initial_amplitude=2.0,
            gain_mean=gain,
        )
        assert found[TOP] == pytest.approx(wanted, rel=CLOSE)


def test_cauchys_gap_is_never_negative():
    numerator, denominator = sp.fraction(sp.together(noise.inverse_bound_gap()))
    squares = sp.symbols("h_1:4", positive=True)
    chances = sp.symbols("P_1:4", positive=True)
    rng = np.random.default_rng(0)
    for draw in rng.integers(1, 30, size=(20, 6)):
        values = dict(zip((*squares, *chances), map(int, draw), strict=True))
        assert numerator.subs(values) >= 0
        assert denominator.subs(values) > 0
    assert sp.simplify(numerator.subs(dict.fromkeys(squares, 2))) == 0


def test_traffic_is_the_mean_over_cohorts():
    ranks, size = (1, 2, 5), 2
    values = {communication.d_in: 7, communication.d_out: 3, m: size, K: 3}
    values[communication.mean_rank] = sp.Rational(sum(ranks), 3)
    sums = [sum(ranks[k] for k in cohort) for cohort in cohorts(3, size)]
    mean = sp.Rational(sum(sums), len(sums))
    assert communication.stack_rank().subs(values) == mean
    assert communication.factors().upload.subs(values) == 10 * mean
    assert communication.stacked().download.subs(values) == size * 10 * mean
    assert communication.frozen_factor().upload.subs(values) == 3 * mean
    assert communication.stack_overhead() == m
    assert communication.dense_residual().subs(values) == size * 21
    assert communication.stack_rank(2) == communication.stack_rank(4)
    rank = communication.break_even_rank()
    size_there = communication.adapter_size().subs(communication.r, rank)
    assert sp.simplify(size_there - communication.d_in * communication.d_out) == 0


@settings(max_examples=examples(20))
@given(case=federations(), widths=st.tuples(st.integers(1, 99), st.integers(1, 99)))
def test_traffic_equals_the_numbers(case, widths):
    clients, carriers, size = case
    values = {
        K: clients,
        m: size,
        communication.mean_rank: sp.Rational(clients + carriers, clients),
    }
    values |= {communication.d_in: widths[0], communication.d_out: widths[1]}
    traffic = {
        "fedavg": communication.factors(),
        "raflora": communication.factors(),
        "ffa": communication.frozen_factor(),
        "flora": communication.stacked(),
    }
    wide = dict(zip(("d_in", "d_out"), widths, strict=True))
    scenario = Scenario(ranks_of(clients, carriers), cohort_size=size, **wide)
    for rule, wanted in traffic.items():
        found = closed_form.communication(scenario, rule)
        assert found.upload == pytest.approx(evaluate(wanted.upload, values), rel=CLOSE)
        assert found.download == pytest.approx(evaluate(wanted.download, values), rel=CLOSE)
    residual = min(
        evaluate(communication.dense_residual(), values),
        evaluate(communication.stacked_residual(), values),
    )
    found = closed_form.communication(scenario, "fedex")
    assert found.download - found.upload == pytest.approx(residual, rel=CLOSE)
    found = closed_form.communication(scenario.replace(sampling="bernoulli"), "flora")
    wanted = evaluate(communication.stacked_bernoulli(), values)
    assert found.download == pytest.approx(wanted, rel=CLOSE)


def test_residual_of_fedex_loses_a_rank_where_all_contribute():
    weights = sp.symbols("w_1:4", positive=True)
    determinant = communication.residual_determinant()
    assert sp.expand(determinant - sp.prod(weights) * (1 - sum(weights))) == 0
    whole = sp.Matrix([sp.Rational(1, 2), sp.Rational(1, 3), sp.Rational(1, 6)])
    assert (sp.diag(*whole) - whole * whole.T).rank() == 2
