"""Symbolic derivation of the second-moment recursion, its floor and its phase boundary.

`x' = sum_k w_k (a_k x + b_k)` is squared for a few explicit clients and the expectation is taken
term by term. Setting: Wu et al., arXiv 2602.13486, App. B; all constants: our derivation.
"""

from __future__ import annotations

from itertools import combinations

import sympy as sp

from analysis.derivations.rates import K, cohort_second_moment, m, pi

g, c = sp.symbols("g c", real=True)
"""Means of client gains and drifts."""

nu, tau = sp.symbols("nu tau", nonnegative=True)
"""Standard deviations of client gains and drifts."""

S1, S2, Q = sp.symbols("S1 S2 Q", positive=True)
"""`E[sum w]`, `E[(sum w)^2]`, `E[sum w^2]`."""

P0 = sp.Symbol("P0", nonnegative=True)
"""Probability of a cohort without contributor."""

x1 = sp.Symbol("x1", real=True)
"""`E[x]`."""

x2, x2_start = sp.symbols("x2 x2_start", positive=True)
"""`E[x^2]`, now and at round 0."""


def mean_recursion(num_clients: int = 3) -> sp.Expr:
    """`E[x']` from `x' = sum_k w_k (a_k x + b_k)`.

    Args:
        num_clients: number of explicit clients, at least 2; the result does not depend on it.

    Returns:
        Expression in g, c, S1 and x1.

    Reference:
        Wu et al., arXiv 2602.13486, App. B; our derivation.
    """
    update, weights = _update(num_clients)
    expectation = _expect_clients(update, num_clients)
    slope = sp.diff(expectation, weights[0])
    remainder = sp.expand(expectation - slope * sum(weights))
    assert remainder == 0, "the mean depends on the weights through their sum only"
    return sp.expand(slope * S1)


def second_moment_recursion(num_clients: int = 3) -> sp.Expr:
    """`E[x'^2]` from `x' = sum_k w_k (a_k x + b_k)`, gains and drifts independent over clients.

    After the expectation over clients the square is a symmetric quadratic form in the weights,
    `alpha sum w_k^2 + beta sum_{j != k} w_j w_k`, whose expectation over cohorts is
    `alpha Q + beta (S2 - Q)`.

    Args:
        num_clients: number of explicit clients, at least 2; the result does not depend on it.

    Returns:
        Expression in g, c, nu, tau, S2, Q, x1 and x2.

    Reference:
        Wu et al., arXiv 2602.13486, App. B; our derivation.
    """
    update, weights = _update(num_clients)
    expectation = sp.Poly(_expect_clients(update**2, num_clients), *weights)
    alpha = expectation.coeff_monomial(weights[0] ** 2)
    beta = expectation.coeff_monomial(weights[0] * weights[1]) / 2
    diagonal = sum(w**2 for w in weights)
    pairs = 2 * sum(v * w for v, w in combinations(weights, 2))
    remainder = sp.expand(expectation.as_expr() - alpha * diagonal - beta * pairs)
    assert remainder == 0, "clients are exchangeable, so the quadratic form is symmetric"
    return sp.expand(alpha * Q + beta * (S2 - Q))


def _update(num_clients: int) -> tuple[sp.Expr, tuple[sp.Symbol, ...]]:
    """The new amplitude and its weights, all symbols explicit."""
    weights = sp.symbols(f"w_0:{num_clients}")
    gains, drifts = _clients(num_clients)
    x = sp.Symbol("x")
    terms = [w * (a * x + b) for w, a, b in zip(weights, gains, drifts, strict=True)]
    return sp.Add(*terms), weights


def _clients(num_clients: int) -> tuple[tuple[sp.Symbol, ...], tuple[sp.Symbol, ...]]:
    return sp.symbols(f"a_0:{num_clients}"), sp.symbols(f"b_0:{num_clients}")


def _expect_clients(expression: sp.Expr, num_clients: int) -> sp.Expr:
    """Expectation over gains, drifts and x, term by term; weights stay as they are."""
    gains, drifts = _clients(num_clients)
    moments = dict.fromkeys(gains, (g, g**2 + nu**2))
    moments |= dict.fromkeys(drifts, (c, c**2 + tau**2))
    moments[sp.Symbol("x")] = (x1, x2)
    polynomial = sp.Poly(sp.expand(expression), *moments)
    total = sp.Integer(0)
    for powers, coefficient in polynomial.terms():
        # independence: the expectation of a monomial is the product over its variables
        factors = [
            pair[power - 1] for pair, power in zip(moments.values(), powers, strict=True) if power
        ]
        total += coefficient * sp.prod(factors)
    return sp.expand(total)


def rate() -> sp.Expr:
    """q', the coefficient of `E[x^2]` in `second_moment_recursion`.

    Returns:
        Expression in g, nu, S2 and Q.

    Reference:
        Wu et al., arXiv 2602.13486, App. B; our derivation.
    """
    return second_moment_recursion().coeff(x2)


def cross() -> sp.Expr:
    """The coefficient of `E[x]` in `second_moment_recursion`.

    Returns:
        Expression in g, c and S2.

    Reference:
        Our derivation.
    """
    return second_moment_recursion().coeff(x1)


def noise() -> sp.Expr:
    """`delta^2`, the part of `second_moment_recursion` without the amplitude.

    Returns:
        Expression in c, tau, S2 and Q.

    Reference:
        Wu et al., arXiv 2602.13486, App. B; our derivation.
    """
    return second_moment_recursion().subs({x1: 0, x2: 0})


def floor() -> sp.Expr:
    """Fixed point of the energy for drift of mean zero, `E = q' E + delta^2`.

    Returns:
        Expression in g, nu, tau, S2 and Q; a floor where q' < 1.

    Reference:
        Wu et al., arXiv 2602.13486, App. B; our derivation.
    """
    recursion = second_moment_recursion().subs(c, 0)
    (solution,) = sp.solve(sp.Eq(x2, recursion), x2)
    return sp.simplify(solution)


def energy_after(rounds: sp.Symbol) -> sp.Expr:
    """Energy after any number of rounds, for drift of mean zero: the recurrence solved.

    Args:
        rounds: an integer symbol.

    Returns:
        Expression in `x2_start`, g, nu, tau, S2, Q and `rounds`.

    Reference:
        Our derivation.
    """
    q, noise_symbol = sp.symbols("q delta2", positive=True)
    energy = sp.Function("E")
    recurrence = energy(rounds + 1) - q * energy(rounds) - noise_symbol
    solution = sp.rsolve(recurrence, energy(rounds), {energy(0): x2_start})
    return solution.subs({q: rate(), noise_symbol: noise().subs(c, 0)})


def critical_gain_std() -> sp.Expr:
    """Heterogeneity nu at which q' = 1: from there on nothing is suppressed.

    Returns:
        Expression in g, S2 and Q; real where `g^2 S2 <= 1`.

    Reference:
        Our derivation.
    """
    square = sp.Symbol("nu_squared")
    (solution,) = sp.solve(sp.Eq(rate().subs(nu**2, square), 1), square)
    return sp.sqrt(solution)


def carry(recursion: sp.Expr) -> sp.Expr:
    """Add "keep the previous amplitude if nobody contributes" to a second-moment recursion.

    Without contributor all weights are zero, so the old square is added with probability P0.

    Args:
        recursion: `E[x'^2]` under `zero`.

    Returns:
        `E[x'^2]` under `carry`.

    Reference:
        Our derivation.
    """
    return sp.expand(recursion + P0 * x2)


def fedavg_cohort_moments() -> dict[sp.Symbol, sp.Expr]:
    """S1, S2, Q of FedAvg for uniform cohorts without replacement and equal sample counts.

    A contributor of the cohort weighs `1 / m`, and `E[H] = pi m`.

    Returns:
        Substitutions in K, m and pi.

    Reference:
        Our derivation.
    """
    expected_contributors = pi * K * (m / K)
    return {
        S1: expected_contributors / m,
        S2: cohort_second_moment(),
        Q: expected_contributors / m**2,
    }
