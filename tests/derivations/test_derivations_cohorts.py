"""Derivations of coverage, cohorts and contributors, against enumeration and the numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import sympy as sp
from derivation_cases import CLOSE, TOP, cohorts, draws, evaluate, federations, ranks_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profiles import examples

from analysis import closed_form
from analysis.cohorts.shares import share_laws, weight_moments
from analysis.derivations import cohorts as derived
from analysis.derivations import contributors, rates, unequal
from analysis.derivations.symbols import K, d, m, n, pi
from fedlora_sim import Scenario
from fedlora_sim.federation import Federation

ORDERS = ("first", "second", "third", "fourth")


def values_of(case: tuple[int, int, int]) -> dict[sp.Symbol, object]:
    clients, carriers, size = case
    return {K: clients, n: carriers, m: size, pi: sp.Rational(carriers, clients)}


def test_coverage_is_the_weight_of_those_who_carry():
    samples = sp.symbols("n_1:4", positive=True)
    ranks = sp.symbols("r_1:4", positive=True)
    given_numbers = dict(zip(samples, (5, 2, 3), strict=True))
    given_numbers |= dict(zip(ranks, (4, 8, 16), strict=True))
    numbers = closed_form.coverage(Scenario([4, 8, 16], num_samples=[5, 2, 3]))
    for level in (4, 8, 16):
        wanted = evaluate(rates.coverage(), given_numbers | {rates.level: level})
        assert numbers[level - 1] == pytest.approx(wanted, rel=CLOSE)


def test_coverage_falls_by_the_weight_of_those_who_stop():
    first, *rest = sp.symbols("n_1:4", positive=True)
    assert sp.simplify(rates.coverage_step() - first / sp.Add(first, *rest)) == 0


def test_staircase_has_one_rate_per_partition():
    assert sp.simplify(rates.staircase_rate() - pi**2) == 0
    ranks = "4x5,8x3,16x2"
    for covered, q in zip(
        closed_form.coverage(Scenario(ranks)),
        closed_form.energy_rate(Scenario(ranks), "fedavg"),
        strict=True,
    ):
        assert q == pytest.approx(evaluate(rates.staircase_rate(), {pi: covered}), rel=CLOSE)


@pytest.mark.parametrize("num_levels", [2, 3, 4])
def test_collapse_bound_gap_is_never_negative(num_levels):
    numerator, denominator = sp.fraction(rates.collapse_bound_gap(num_levels))
    for part in (numerator, denominator):
        polynomial = sp.Poly(sp.expand(part), *part.free_symbols)
        assert min(polynomial.coeffs()) > 0


@settings(max_examples=examples(20))
@given(energy=st.lists(st.floats(0.1, 9.0), min_size=3, max_size=3), rounds=st.integers(1, 9))
def test_collapse_bound_equals_the_numbers(energy, rounds):
    bound = rates.collapse_bound(3)
    symbols = sp.symbols("E_1:4", positive=True)
    values = dict(zip(symbols, energy, strict=True)) | {sp.Symbol("pi_2", positive=True): 0.5}
    C, factor = evaluate(bound.constant, values), evaluate(bound.factor, values)
    numbers = closed_form.collapse_bound(
        Scenario("1x4,2x2,3x2", rounds=rounds), initial_amplitude=np.sqrt(energy)
    )
    assert numbers == pytest.approx(C * factor ** np.arange(rounds + 1), rel=CLOSE)


def test_share_moments_have_the_announced_forms():
    announced = pi**2 + pi * (1 - pi) * (K - m) / (m * (K - 1))
    assert sp.simplify(derived.without_replacement().second - announced) == 0
    with_replacement = pi**2 + pi * (1 - pi) / m
    assert sp.simplify(derived.with_replacement().second - with_replacement) == 0


def test_limits_of_share_moments():
    for order, name in enumerate(ORDERS, start=1):
        value = getattr(derived.without_replacement(), name)
        assert sp.simplify(value.subs(m, K) - pi**order) == 0, "full participation"
        for law in (derived.without_replacement(), derived.with_replacement()):
            assert sp.simplify(getattr(law, name).subs(pi, 1) - 1) == 0, "everybody contributes"
            assert sp.simplify(getattr(law, name).subs(m, 1) - pi) == 0, "one client"
    assert sp.simplify(derived.relative_variance().subs(m, K)) == 0


@pytest.mark.parametrize(("clients", "carriers", "size"), [(5, 2, 3), (6, 4, 2), (5, 3, 5)])
def test_share_moments_equal_the_sum_over_all_cohorts(clients, carriers, size):
    values = values_of((clients, carriers, size))
    laws = (
        (derived.without_replacement(), cohorts(clients, size)),
        (derived.with_replacement(), draws(clients, size)),
    )
    for law, outcomes in laws:
        hits = [[sum(k == j for k in one) for j in range(carriers)] for one in outcomes]
        for order, name in enumerate(ORDERS, start=1):
            wanted = sum(sp.Rational(sum(h), size) ** order for h in hits) / len(hits)
            assert getattr(law, name).subs(values) == wanted
        squares = sum(sp.Rational(sum(c**2 for c in h), size**2) for h in hits) / len(hits)
        assert law.squares.subs(values) == squares


@settings(max_examples=examples(25))
@given(case=federations(fewest=4))
def test_share_moments_equal_the_numbers(case):
    clients, carriers, size = case
    laws = (
        ("without_replacement", "cohort", derived.without_replacement()),
        ("with_replacement", "cohort", derived.with_replacement()),
        ("bernoulli", "federation", derived.bernoulli_unnormalized()),
    )
    for sampling, normalizer, expressions in laws:
        federation = Federation(ranks_of(clients, carriers), None, size, sampling)
        law = share_laws(federation, normalizer)[TOP]
        for order, name in enumerate(ORDERS, start=1):
            wanted = evaluate(getattr(expressions, name), values_of(case))
            assert law.expect(law.share**order) == pytest.approx(wanted, rel=CLOSE)
        squares = evaluate(expressions.squares, values_of(case))
        assert law.expect(law.squares) == pytest.approx(squares, rel=CLOSE)


@settings(max_examples=examples(10))
@given(case=federations(fewest=4, most=15))
def test_bernoulli_with_renormalization_equals_the_numbers(case):
    clients, carriers, size = case
    values = values_of(case) | {derived.share: sp.Rational(size, clients)}
    federation = Federation(ranks_of(clients, carriers), None, size, "bernoulli")
    law = share_laws(federation, "cohort")[TOP]
    for order in (1, 2, 3, 4):
        if size == clients:
            continue  # 0^0: no client is ever missing
        wanted = evaluate(derived.bernoulli_renormalized(order), values)
        assert law.expect(law.share**order) == pytest.approx(wanted, rel=CLOSE)
    if size < clients:
        squares = evaluate(derived.bernoulli_squares(), values)
        assert law.expect(law.squares) == pytest.approx(squares, rel=CLOSE)


@settings(max_examples=examples(20))
@given(case=federations())
def test_extinction_equals_the_numbers(case):
    clients, carriers, size = case
    ranks = ranks_of(clients, carriers)
    laws = {
        "without_replacement": contributors.extinction().without_replacement,
        "with_replacement": contributors.extinction().with_replacement,
        "bernoulli": contributors.extinction().bernoulli_renormalized,
    }
    for sampling, expression in laws.items():
        found = closed_form.extinction_probability(
            Scenario(ranks, cohort_size=size, sampling=sampling)
        )
        assert found[TOP] == pytest.approx(evaluate(expression, values_of(case)), rel=CLOSE, abs=0)
    drawn = contributors.extinction_probability(size).subs({K: clients, n: carriers})
    assert drawn == contributors.extinction().without_replacement.subs(values_of(case))
    unconditional = share_laws(Federation(ranks, None, size, "bernoulli"), "federation")[TOP].empty
    wanted = evaluate(contributors.extinction().bernoulli, values_of(case))
    assert unconditional == pytest.approx(wanted, rel=CLOSE, abs=0)


@settings(max_examples=examples(15))
@given(case=federations(most=20))
def test_inverse_contributors_equal_the_numbers(case):
    clients, carriers, size = case
    laws = {
        "without_replacement": contributors.inverse_contributors(),
        "with_replacement": contributors.inverse_contributors_with_replacement(),
    }
    if size < clients:
        laws["bernoulli"] = contributors.inverse_contributors_bernoulli()
    for sampling, expression in laws.items():
        federation = Federation(ranks_of(clients, carriers), None, size, sampling)
        found = weight_moments("contributors", federation).sum_of_squares[TOP]
        assert found == pytest.approx(evaluate(expression, values_of(case)), rel=CLOSE)


def test_repeated_clients_are_counted_by_pairs_of_draws():
    clients, size = 3, 4
    counted = [sum(one.count(k) ** 2 for k in range(clients)) for one in draws(clients, size)]
    wanted = sp.Rational(sum(counted), len(counted))
    assert contributors.repeated_client_squares().subs({n: clients, d: size}) == wanted


SAMPLES = st.lists(st.integers(1, 50), min_size=4, max_size=4)


@settings(max_examples=examples(15))
@given(counts=SAMPLES, carriers=st.integers(1, 3), size=st.integers(1, 4))
def test_unequal_sample_counts_equal_the_numbers(counts, carriers, size):
    ranks = [2] * carriers + [1] * (4 - carriers)
    federation = Federation(tuple(ranks), tuple(counts), size, "without_replacement")
    values = dict(zip(sp.symbols("n_1:5", positive=True), counts, strict=True))
    law = share_laws(federation, "cohort")[TOP]
    for power in (1, 2, 3, 4):
        wanted = evaluate(unequal.share_moment(power, 4, carriers, size), values)
        assert law.expect(law.share**power) == pytest.approx(wanted, rel=CLOSE)
    for normalizer in ("cohort", "contributors"):
        only = normalizer == "contributors"
        wanted = unequal.share_squares(4, carriers, size, contributors_only=only)
        found = weight_moments(normalizer, federation).sum_of_squares[TOP]
        assert found == pytest.approx(evaluate(wanted, values), rel=CLOSE)


@settings(max_examples=examples(15))
@given(counts=SAMPLES, carriers=st.integers(1, 3), size=st.integers(1, 4))
def test_unbiased_weights_equal_the_numbers(counts, carriers, size):
    ranks = [2] * carriers + [1] * (4 - carriers)
    shares = [sp.Rational(count, sum(counts)) for count in counts][:carriers]
    values = {K: 4, m: size, pi: sum(shares), unequal.squares: sum(s**2 for s in shares)}
    for sampling, independent in (("without_replacement", False), ("bernoulli", True)):
        federation = Federation(tuple(ranks), tuple(counts), size, sampling)
        law = share_laws(federation, "federation")[TOP]
        second = evaluate(unequal.unbiased_second_moment(independent=independent), values)
        assert law.expect(law.share) == pytest.approx(float(sum(shares)), rel=CLOSE)
        assert law.expect(law.share**2) == pytest.approx(second, rel=CLOSE)
        squares = evaluate(unequal.unbiased_sum_of_squares(), values)
        assert law.expect(law.squares) == pytest.approx(squares, rel=CLOSE)


def test_sums_over_clients_do_not_depend_on_their_number():
    assert unequal.unbiased_second_moment(2) == unequal.unbiased_second_moment(4)
    assert unequal.unbiased_sum_of_squares(2) == unequal.unbiased_sum_of_squares(4)
    assert unequal.unbiased_mean(2) == sp.Add(*sp.symbols("p_1:3", positive=True))


def test_equal_counts_are_a_case_of_unequal_ones():
    equal = unequal.unbiased_second_moment().subs(unequal.squares, pi / K)
    assert sp.simplify(equal - derived.without_replacement().second) == 0
    counts = dict.fromkeys(sp.symbols("n_1:4", positive=True), 1)
    case = {K: 3, m: 2, pi: sp.Rational(1, 3)}
    assert unequal.share_moment(2).subs(counts) == derived.without_replacement().second.subs(case)


def test_bernoulli_cohort_of_a_size_is_one_without_replacement():
    given_size, uniform = derived.bernoulli_given_size(), derived.without_replacement()
    for field in dataclasses.fields(uniform):
        difference = getattr(given_size, field.name) - getattr(uniform, field.name).subs(
            m, derived.size
        )
        assert sp.simplify(difference) == 0
