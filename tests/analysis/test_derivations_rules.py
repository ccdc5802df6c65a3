"""Derivations of what rules do, their noise, traffic and sensitivities."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import sympy as sp
from derivation_cases import AWAY, CLOSE, POSITIVE, TOP, cohorts, evaluate, federations, ranks_of
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import closed_form
from analysis.cohorts.moments import share_laws, weight_moments
from analysis.derivations import base_rules, communication, contributors, floors, multipliers, noise
from analysis.derivations import sensitivities as derived
from analysis.derivations.cohorts import without_replacement
from analysis.derivations.symbols import P0, S1, S2, H, K, Q, W, c, g, m, n, nu, pi, t, tau, x
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


@settings(max_examples=15, deadline=None)
@given(case=federations(most=20), gain=st.floats(0.5, 1.1))
def test_base_rules_equal_the_numbers(case, gain):
    clients, carriers, size = case
    ranks, setting = ranks_of(clients, carriers), {"cohort_size": size, "gain_mean": gain}
    moments = weight_moments("cohort", Federation(ranks, None, size))
    values = {S1: float(moments.mean[TOP]), S2: float(moments.second[TOP]), nu: 0.25, g: gain}
    values[Q] = float(moments.sum_of_squares[TOP])
    found = closed_form.energy_rate("flora", ranks, gain_std=0.25, **setting)[TOP]
    assert found == pytest.approx(evaluate(base_rules.flora_moments().rate, values), rel=CLOSE)
    law = share_laws(Federation(ranks, None, size))[TOP]
    powers = {
        symbol: float(law.expect(law.share**j))
        for j, symbol in enumerate(sp.symbols("W_1:5", positive=True), start=1)
    }
    matrix = base_rules.fedex_energy_map().subs(base_rules.a, gain).subs(powers)
    radius = np.abs(np.linalg.eigvals(np.array(matrix, dtype=float))).max()
    found = closed_form.energy_rate("fedex", ranks, **setting)[TOP]
    # eigenvalues of a matrix that is nearly defective hold half the digits
    assert found == pytest.approx(radius, rel=np.sqrt(relative("factorization")))


@pytest.mark.parametrize("gain", [0.9, 1.0])
def test_fedex_trajectory_and_floor_equal_the_numbers(gain):
    ranks, setting = ranks_of(5, 3), {"gain_mean": gain, "sampling": "bernoulli"}
    path = closed_form.energy_trajectory(
        "fedex", ranks, 4, initial_amplitude=2.0, cohort_size=3, **setting
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
    floor = closed_form.energy_floor("fedex", ranks, gain_mean=0.9, drift_mean=0.2)
    assert floor[TOP] == pytest.approx(held, rel=CLOSE)


@settings(max_examples=20, deadline=None)
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
        closed_form.noise_gain(rule, ranks, cohort_size=size)[TOP] for rule in ("raflora", "fedavg")
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


@settings(max_examples=15, deadline=None)
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
            rule,
            ranks_of(clients, carriers),
            amplitude=2.0,
            gain_mean=gain,
            gain_std=0.25,
            drift_std=0.5,
            cohort_size=size,
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


@settings(max_examples=20, deadline=None)
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
    arguments = (ranks_of(clients, carriers), *widths)
    for rule, wanted in traffic.items():
        found = closed_form.communication(rule, *arguments, cohort_size=size)
        assert found.upload == pytest.approx(evaluate(wanted.upload, values), rel=CLOSE)
        assert found.download == pytest.approx(evaluate(wanted.download, values), rel=CLOSE)
    residual = min(
        evaluate(communication.dense_residual(), values),
        evaluate(communication.stacked_residual(), values),
    )
    found = closed_form.communication("fedex", *arguments, cohort_size=size)
    assert found.download - found.upload == pytest.approx(residual, rel=CLOSE)
    found = closed_form.communication("flora", *arguments, cohort_size=size, sampling="bernoulli")
    wanted = evaluate(communication.stacked_bernoulli(), values)
    assert found.download == pytest.approx(wanted, rel=CLOSE)


def test_residual_of_fedex_loses_a_rank_where_all_contribute():
    weights = sp.symbols("w_1:4", positive=True)
    determinant = communication.residual_determinant()
    assert sp.expand(determinant - sp.prod(weights) * (1 - sum(weights))) == 0
    whole = sp.Matrix([sp.Rational(1, 2), sp.Rational(1, 3), sp.Rational(1, 6)])
    assert (sp.diag(*whole) - whole * whole.T).rank() == 2


def quotient(quantity: sp.Expr, parameter: sp.Symbol, values: dict[sp.Symbol, object]) -> float:
    """Elasticity by a symmetric difference of logarithms, in high precision."""
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


@settings(max_examples=20, deadline=None)
@given(case=federations(fewest=4), gain=st.floats(0.1, 0.95), spread=POSITIVE)
def test_elasticities_equal_the_numbers(case, gain, spread):
    clients, carriers, size = case
    values = {K: clients, m: size, pi: sp.Rational(carriers, clients), g: gain, nu: spread, tau: 1}
    found = closed_form.sensitivities(
        "fedavg", ranks_of(clients, carriers), cohort_size=size, gain_mean=gain, gain_std=spread
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
        rule,
        ranks_of(clients, carriers),
        cohort_size=size,
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


@settings(max_examples=15, deadline=None)
@given(case=federations(), gain=st.floats(0.1, 0.95))
def test_constants_written_out_equal_the_numbers(case, gain):
    clients, carriers, size = case
    values = {K: clients, m: size, pi: sp.Rational(carriers, clients), g: gain, tau: 0.25}
    ranks, setting = ranks_of(clients, carriers), {"cohort_size": size, "gain_mean": gain}
    floor = closed_form.energy_floor("fedavg", ranks, gain_std=0.0, drift_std=0.25, **setting)
    assert floor[TOP] == pytest.approx(evaluate(derived.data_dependent_floor(), values), rel=CLOSE)
    critical = np.sqrt(evaluate(derived.critical_heterogeneity(), values))
    number = closed_form.critical_gain_std("fedavg", ranks, **setting)[TOP]
    assert number == pytest.approx(critical, rel=CLOSE)
    rate = closed_form.energy_rate("fedavg", ranks, gain_std=critical, **setting)
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
