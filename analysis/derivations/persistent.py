"""Derivation of persistent heterogeneity: gains and drifts drawn once per client.

Full participation: one round is `x' = A x + B` with `A = sum_k p_k a_k` and `B = sum_k p_k b_k`
over contributors, the same in every round; for Gaussian clients both are Gaussian. The second mode
of Wu et al., arXiv 2602.13486, App. B; all formulas: our derivation.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from analysis.derivations.statement import derivation
from analysis.derivations.symbols import c, g, nu, pi, t, tau
from analysis.derivations.unequal import squares

TITLE = "Persistent heterogeneity"

A, B, start = sp.symbols("A B x_0", real=True)
"""One draw's gain and drift, and the amplitude at round 0."""

mu, b = sp.symbols("mu b", real=True)
"""Means of A and B."""

s, s_drift = sp.symbols("s s_B", positive=True)
"""Standard deviations of A and B."""


@dataclass(frozen=True)
class GaussianMap:
    """Means and variances of A and B."""

    gain_mean: sp.Expr
    gain_variance: sp.Expr
    drift_mean: sp.Expr
    drift_variance: sp.Expr


@derivation(r"E[A]", r"\mathrm{Var}[A]", r"E[B]", r"\mathrm{Var}[B]")
def aggregate_law(num_contributors: int = 3) -> GaussianMap:
    """Return the mean and variance of `A = sum p_k a_k` and `B = sum p_k b_k` over contributors.

    Clients are independent: means add up with `p_k`, variances with `p_k^2`.

    Args:
        num_contributors: number of explicit contributors.

    Returns:
        Expressions in g, nu, c, tau, pi and `s_2 = sum of p_k^2 over contributors`.

    Reference:
        Our derivation.
    """
    weights = sp.symbols(f"p_1:{num_contributors + 1}", positive=True)
    last = {weights[-1]: pi - sp.Add(*weights[:-1])}
    coverage = sp.expand(sp.Add(*weights).subs(last))
    rest = squares - sum(p**2 for p in weights[:-1])
    spread = sp.Add(*[p**2 for p in weights]).subs(weights[-1] ** 2, rest)
    return GaussianMap(g * coverage, nu**2 * spread, c * coverage, tau**2 * spread)


@derivation(r"x_t")
def amplitude_after() -> sp.Expr:
    """Return the amplitude of one draw after t rounds, from `x(t + 1) = A x(t) + B`.

    Returns:
        Expression in A, B, `x_0` and t, equal to `A^t x_0 + B (1 - A^t) / (1 - A)`.

    Reference:
        Our derivation.
    """
    amplitude = sp.Function("x")
    solution = sp.rsolve(
        amplitude(t + 1) - A * amplitude(t) - B, amplitude(t), {amplitude(0): start}
    )
    return A**t * start + sp.factor(solution - A**t * start)


@derivation(r"x_\infty^2")
def floor_of_a_draw() -> sp.Expr:
    """Return the limit of the energy of one draw with `|A| < 1`: the squared fixed point.

    Returns:
        Expression in A and B.

    Reference:
        Our derivation.
    """
    rest = sp.Symbol("x")
    (point,) = sp.solve(sp.Eq(rest, A * rest + B), rest)
    return sp.factor(point**2)


@derivation(r"(x_t - x_\infty) / (x_0 - x_\infty)")
def approach() -> sp.Expr:
    """Return the remaining distance of one draw to its fixed point.

    It vanishes exactly if `|A| < 1`.

    Returns:
        Expression in A and t.

    Reference:
        Our derivation.
    """
    rest = B / (1 - A)
    return sp.simplify((amplitude_after() - rest) / (start - rest))


@derivation(r"E[A^n]")
def stein_recursion() -> sp.Expr:
    """Return the power moments of a Gaussian gain by Stein's identity.

    The integral of the derivative of `A^(n - 1) phi(A)` vanishes; divided by the density phi it is
    `(n - 1) A^(n - 2) - A^(n - 1) (A - mu) / s^2`, whose expectation is solved for `E[A^n]`.

    Returns:
        Expression in `M(n - 1)`, `M(n - 2)`, mu, s and n, where `M(j) = E[A^j]`.

    Reference:
        Stein's identity; our derivation.
    """
    n = sp.Symbol("n", integer=True, positive=True)
    moment = sp.Function("M")
    density = sp.exp(-((A - mu) ** 2) / (2 * s**2))
    inside = sp.diff(A ** (n - 1) * density, A) / density * s**2
    # a quadratic in A times A^(n - 2): its coefficients belong to M(n), M(n - 1) and M(n - 2)
    quadratic = sp.Poly(sp.powsimp(sp.expand(inside / A ** (n - 2))), A)
    top, middle, bottom = quadratic.all_coeffs()
    return sp.expand((middle * moment(n - 1) + bottom * moment(n - 2)) / -top)


@derivation(r"E[A^4]")
def gain_power(order: int = 4) -> sp.Expr:
    """Return `E[A^order]` by Stein's recursion from `E[1] = 1` and `E[A] = mu`.

    Args:
        order: not negative.

    Returns:
        Polynomial in mu and s.

    Reference:
        Our derivation.
    """
    known = [sp.Integer(1), mu]
    n, moment = sp.Symbol("n", integer=True, positive=True), sp.Function("M")
    recursion = stein_recursion()
    for j in range(2, order + 1):
        lower = {moment(n - 1): known[j - 1], moment(n - 2): known[j - 2]}
        known.append(sp.expand(recursion.subs(lower).subs(n, j)))
    return known[order]


@derivation(r"E[x_2^2]")
def energy_after(rounds: int = 2) -> sp.Expr:
    """Return the mean energy over draws after explicit rounds, A and B Gaussian and independent.

    `x_t = A^t x_0 + B sum_{j < t} A^j` is squared; powers of A and B are replaced by moments.

    Args:
        rounds: t, not negative.

    Returns:
        Polynomial in `x_0`, mu, s, b and `s_B`.

    Reference:
        Our derivation.
    """
    amplitude = A**rounds * start + B * sum(A**j for j in range(rounds))
    drift = (1, b, b**2 + s_drift**2)
    terms = sp.Poly(sp.expand(amplitude**2), A, B).terms()
    return sp.expand(sum(value * gain_power(i) * drift[j] for (i, j), value in terms))


@derivation(r"\lim_{t \to \infty} E[A^{2t+2}] / E[A^{2t}]")
def mean_growth() -> sp.Expr:
    """Return the limit of the mean energy's growth for a gain of mean 0: unbounded.

    Stein's recursion gives `E[A^(2t+2)] = (2t + 1) s^2 E[A^(2t)]`; a nonzero mean only adds
    positive terms to even moments. The mean over draws therefore has no finite floor, however small
    s is: rare draws with `|A| > 1` dominate it, although each draw with `|A| < 1` converges.

    Returns:
        Infinity.

    Reference:
        Our derivation.
    """
    n, moment = sp.Symbol("n", integer=True, positive=True), sp.Function("M")
    ratio = stein_recursion().subs(mu, 0).subs(n, 2 * t + 2) / moment(2 * t)
    return sp.limit(sp.simplify(ratio), t, sp.oo)
