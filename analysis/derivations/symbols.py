"""Symbols that several sections share, with sympy's assumptions."""

from __future__ import annotations

import sympy as sp

K, m, n, d = sp.symbols("K m n d", positive=True)
"""Clients, cohort size, contributors of a direction, contributor draws in one cohort."""

pi = sp.Symbol("pi", positive=True)
"""Coverage of a direction; `n = pi K` for equal sample counts."""

t = sp.Symbol("t", integer=True, nonnegative=True)
"""Round."""

W, H = sp.symbols("W H", positive=True)
"""Weight and number of the contributors in one cohort."""

P0 = sp.Symbol("P0", nonnegative=True)
"""Probability of a cohort without contributor."""

S1, S2, Q = sp.symbols("S1 S2 Q", positive=True)
"""`E[sum w]`, `E[(sum w)^2]`, `E[sum w^2]`."""

g, c = sp.symbols("g c", real=True)
"""Means of client gains and drifts."""

nu, tau = sp.symbols("nu tau", nonnegative=True)
"""Standard deviations of client gains and drifts."""

x1, x1_start = sp.Symbol("x1", real=True), sp.Symbol("x_{1,0}", real=True)
"""`E[x]`, now and at round 0."""

x2, x2_start = sp.Symbol("x2", positive=True), sp.Symbol("x_{2,0}", positive=True)
"""`E[x^2]`, now and at round 0."""

x = sp.Symbol("x", positive=True)
"""Amplitude of a direction at the start of a round."""


def at_covered(expression: sp.Expr) -> sp.Expr:
    """Return an expression with the number of contributors n written as `pi K`, factored."""
    return sp.factor(sp.simplify(expression.subs(n, pi * K)))
