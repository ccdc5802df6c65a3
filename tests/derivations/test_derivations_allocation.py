"""Derivations of random allocation, against enumeration and the numbers."""

from __future__ import annotations

import pytest
import sympy as sp
from derivation_cases import CLOSE, cohorts, evaluate
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profiles import examples

from analysis import closed_form
from analysis.cohorts.shares import weight_moments
from analysis.derivations import allocation
from analysis.derivations.cohorts import without_replacement
from analysis.derivations.symbols import K, m, pi
from fedlora_sim import Scenario
from fedlora_sim.federation import Federation

RANKS = st.lists(st.integers(1, 8), min_size=3, max_size=8)


@settings(max_examples=examples(20))
@given(ranks=RANKS, size=st.integers(1, 8))
def test_random_shares_equal_the_numbers(ranks, size):
    size = min(size, len(ranks))
    chances = [sp.Rational(rank, max(ranks)) for rank in ranks]
    values = {K: len(ranks), m: size, pi: sum(chances) / len(ranks)}
    values[allocation.mean_square] = sum(u**2 for u in chances) / len(ranks)
    found = weight_moments("cohort", Federation(tuple(ranks), None, size), "random")
    derived = allocation.share_moments()
    for number, expression in (
        (found.mean, derived.first),
        (found.second, derived.second),
        (found.sum_of_squares, derived.squares),
    ):
        assert number == pytest.approx(evaluate(expression, values), rel=CLOSE)


def test_extinction_equals_the_numbers():
    ranks = (1, 2, 4)
    values = dict(zip(sp.symbols("u_1:4", positive=True), (0.25, 0.5, 1.0), strict=True))
    found = weight_moments("cohort", Federation(ranks, None, 2), "random").empty
    wanted = evaluate(allocation.extinction_probability(), values)
    assert found == pytest.approx(wanted, rel=CLOSE)


def test_coverage_equals_the_numbers():
    ranks, counts = (1, 3, 4), (5, 2, 1)
    values = dict(zip(sp.symbols("r_1:4", positive=True), ranks, strict=True))
    shares = [sp.Rational(count, sum(counts)) for count in counts]
    values |= dict(zip(sp.symbols("p_1:4", positive=True), shares, strict=True))
    wanted = evaluate(allocation.coverage(), values | {sp.Symbol("R", positive=True): 4})
    found = weight_moments("federation", Federation(ranks, counts, 2), "random").mean
    assert found == pytest.approx(wanted, rel=CLOSE)
    assert closed_form.coverage(Scenario(ranks, num_samples=counts))[0] == 1.0, (
        "unlike SVD-based allocation"
    )


def test_second_moment_is_the_sum_over_cohorts_and_subsets():
    chances = [sp.Rational(1, 4), sp.Rational(1, 2), sp.Integer(1)]
    total = sp.Integer(0)
    for cohort in cohorts(3, 2):
        for carried in range(4):
            chance, count = sp.Integer(1), 0
            for bit, k in enumerate(cohort):
                carries = bool(carried >> bit & 1)
                chance *= chances[k] if carries else 1 - chances[k]
                count += carries
            total += chance * sp.Rational(count, 2) ** 2 / 3
    values = {K: 3, m: 2, pi: sum(chances) / 3}
    values[allocation.mean_square] = sum(u**2 for u in chances) / 3
    assert allocation.share_moments().second.subs(values) == total
    assert allocation.share_moments(2) == allocation.share_moments(4)


@pytest.mark.slow
def test_certain_carriers_are_svd_based_allocation():
    second = allocation.share_moments().second.subs(allocation.mean_square, pi)
    assert sp.simplify(second - without_replacement().second) == 0
    assert allocation.excess_over_svd().subs(m, 1) == 0


def test_nothing_concentrates():
    assert allocation.concentration() == 0
