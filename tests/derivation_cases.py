"""Shared by the tests of derivations: exact evaluation, and federations of two rank levels."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, product

import sympy as sp
from hypothesis import strategies as st

from fedlora_sim.tolerances import relative

CLOSE = 100 * relative("factorization")  # 1e-10: numbers and symbols agree to this
TOP = -1  # the highest partition, where coverage is lowest
DIGITS = 30
AWAY = 1e-2  # nearer to a boundary 1 - q' loses more digits than CLOSE allows


def evaluate(expression: sp.Expr, values: Mapping[sp.Symbol, object]) -> float:
    """Return the expression's value, with floats as exact numbers."""
    exact = {s: sp.Rational(v) if isinstance(v, float) else v for s, v in values.items()}
    # finite sums are written out
    return float(sp.N(expression.subs(exact).doit(), DIGITS))


def ranks_of(K: int, n: int) -> str:
    """Return the ranks of K clients of which n carry the second direction."""
    return f"1x{K - n},2x{n}" if n < K else f"2x{K}"


@st.composite
def federations(draw: st.DrawFn, fewest: int = 2, most: int = 60) -> tuple[int, int, int]:
    """Return clients K, contributors n of the top partition, cohort size m."""
    K = draw(st.integers(fewest, most))
    return K, draw(st.integers(1, K - 1)), draw(st.integers(1, K))


def cohorts(K: int, m: int) -> list[tuple[int, ...]]:
    """Return all cohorts without replacement."""
    return list(combinations(range(K), m))


def draws(K: int, m: int) -> list[tuple[int, ...]]:
    """Return all sequences of m draws with replacement."""
    return list(product(range(K), repeat=m))


POSITIVE = st.floats(0.01, 0.5)
