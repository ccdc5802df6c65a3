"""Derivation of the second-moment recursion, its floor and its phase boundary.

`x' = sum_k w_k (a_k x + b_k)` is squared for a few explicit clients and the expectation is taken
term by term; gains and drifts are drawn every round. Setting: Wu et al., arXiv 2602.13486, App. B;
all constants: our derivation.
"""

from __future__ import annotations

from itertools import combinations

import sympy as sp

from analysis.derivations.cohorts import without_replacement
from analysis.derivations.statement import derivation
from analysis.derivations.symbols import P0, S1, S2, Q, c, g, nu, t, tau, x1, x2, x2_start

TITLE = "Non-IID updates: second-moment recursion and floors"


@derivation(r"E[x']")
def mean_recursion(num_clients: int = 3) -> sp.Expr:
    """Return `E[x']` from `x' = sum_k w_k (a_k x + b_k)`.

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


@derivation(r"E[x'^2]")
def second_moment_recursion(num_clients: int = 3) -> sp.Expr:
    """Return `E[x'^2]` from `x' = sum_k w_k (a_k x + b_k)` with independent gains and drifts.

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
    """Return the new amplitude and its weights, all symbols explicit."""
    weights = sp.symbols(f"w_0:{num_clients}")
    gains, drifts = _clients(num_clients)
    x = sp.Symbol("x")
    terms = [w * (a * x + b) for w, a, b in zip(weights, gains, drifts, strict=True)]
    return sp.Add(*terms), weights


def _clients(num_clients: int) -> tuple[tuple[sp.Symbol, ...], tuple[sp.Symbol, ...]]:
    return sp.symbols(f"a_0:{num_clients}"), sp.symbols(f"b_0:{num_clients}")


def _expect_clients(expression: sp.Expr, num_clients: int) -> sp.Expr:
    """Return the expectation over gains, drifts and x, term by term, for fixed weights."""
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


@derivation(r"q'")
def rate() -> sp.Expr:
    """Return q', the coefficient of `E[x^2]` in `second_moment_recursion`.

    Returns:
        Expression in g, nu, S2 and Q.

    Reference:
        Wu et al., arXiv 2602.13486, App. B; our derivation.
    """
    return second_moment_recursion().coeff(x2)


@derivation(r"\partial E[x'^2] / \partial E[x]")
def cross() -> sp.Expr:
    """Return the coefficient of `E[x]` in `second_moment_recursion`.

    Returns:
        Expression in g, c and S2.

    Reference:
        Our derivation.
    """
    return second_moment_recursion().coeff(x1)


@derivation(r"\delta^2")
def noise() -> sp.Expr:
    """Return `delta^2`, the part of `second_moment_recursion` without the amplitude.

    Returns:
        Expression in c, tau, S2 and Q.

    Reference:
        Wu et al., arXiv 2602.13486, App. B; our derivation.
    """
    return second_moment_recursion().subs({x1: 0, x2: 0})


@derivation(r"E[x_\infty^2]_{c = 0}")
def floor() -> sp.Expr:
    """Return the fixed point of the energy for drift of mean zero, `E = q' E + delta^2`.

    Returns:
        Expression in g, nu, tau, S2 and Q; a floor where q' < 1.

    Reference:
        Wu et al., arXiv 2602.13486, App. B; our derivation.
    """
    recursion = second_moment_recursion().subs(c, 0)
    (solution,) = sp.solve(sp.Eq(x2, recursion), x2)
    return sp.factor(solution)


@derivation(r"E[x_\infty]")
def mean_floor() -> sp.Expr:
    """Return the fixed point of the mean amplitude under drift of mean c.

    Returns:
        Expression in g, c and S1; reached where `|g S1| < 1`.

    Reference:
        Our derivation.
    """
    (solution,) = sp.solve(sp.Eq(x1, mean_recursion()), x1)
    return sp.factor(solution)


@derivation(r"E[x_\infty^2]")
def floor_with_drift() -> sp.Expr:
    """Return the fixed point of the energy for drift of any mean, from both recursions.

    Returns:
        Expression in g, c, nu, tau, S1, S2 and Q; reached where q' < 1 and `|g S1| < 1`.

    Reference:
        Our derivation.
    """
    (solution,) = sp.solve(sp.Eq(x2, second_moment_recursion().subs(x1, mean_floor())), x2)
    return sp.factor(solution)


@derivation(r"E[x_t^2]_{c = 0}")
def energy_after(rounds: sp.Symbol = t) -> sp.Expr:
    """Return energy after any number of rounds for drift of mean zero, by solving the recurrence.

    Args:
        rounds: an integer symbol.

    Returns:
        Expression in `x2_start`, g, nu, tau, S2, Q and `rounds`.

    Reference:
        Our derivation.
    """
    q, noise_symbol = sp.symbols("q delta^2", positive=True)
    energy = sp.Function("E")
    recurrence = energy(rounds + 1) - q * energy(rounds) - noise_symbol
    solution = sp.rsolve(recurrence, energy(rounds), {energy(0): x2_start})
    return solution.subs({q: rate(), noise_symbol: noise().subs(c, 0)})


@derivation(r"E[x_t^2]_{c = 0,\, q' = 1}")
def energy_at_boundary() -> sp.Expr:
    """Return the energy at the phase boundary `q' = 1`, which grows by `delta^2` per round.

    There is no floor.

    Returns:
        Expression in `x2_start`, tau, Q and t.

    Reference:
        Our derivation.
    """
    energy = sp.Function("E")
    step = noise().subs(c, 0)
    return sp.rsolve(energy(t + 1) - energy(t) - step, energy(t), {energy(0): x2_start})


@derivation(r"\nu_{\mathrm{critical}}")
def critical_gain_std() -> sp.Expr:
    """Return the heterogeneity nu at which q' = 1; above it nothing is suppressed.

    Returns:
        Expression in g, S2 and Q; real where `g^2 S2 <= 1`.

    Reference:
        Our derivation.
    """
    square = sp.Symbol("nu_squared")
    (solution,) = sp.solve(sp.Eq(rate().subs(nu**2, square), 1), square)
    return sp.sqrt(solution)


@derivation(r"E[x'^2]_{\mathrm{carry}}")
def carry(recursion: sp.Expr | None = None) -> sp.Expr:
    """Return the recursion that keeps the previous amplitude in rounds without a contributor.

    Without a contributor all weights are zero, so the old square is added with probability P0.

    Args:
        recursion: `E[x'^2]` under `zero`; `second_moment_recursion` by default.

    Returns:
        `E[x'^2]` under `carry`.

    Reference:
        Our derivation.
    """
    under_zero = second_moment_recursion() if recursion is None else recursion
    return sp.expand(under_zero + P0 * x2)


@derivation(r"q'_{\mathrm{raFLoRA, zero}}")
def raflora_rate() -> sp.Expr:
    """Return the rate of raFLoRA with `zero`, whose weights sum to 1 if there is a contributor.

    Returns:
        Expression in g, nu, P0 and `Q = E[1/H; H > 0]`: `1 - P0` for perfect gains.

    Reference:
        Our derivation.
    """
    return rate().subs(S2, 1 - P0)


@derivation(r"(q' - 1)_{\mathrm{carry},\, g = 1,\, \nu = 0}")
def carry_excess() -> sp.Expr:
    """Return the difference of raFLoRA's rate with `carry` from 1 for perfect gains: zero.

    raFLoRA's weights sum to 1 if there is a contributor, so `E[(sum w)^2] = 1 - P0`.

    Returns:
        Zero.

    Reference:
        Our derivation.
    """
    perfect = {g: 1, nu: 0, S2: 1 - P0}
    return sp.expand(carry().coeff(x2).subs(perfect) - 1)


def fedavg_cohort_moments() -> dict[sp.Symbol, sp.Expr]:
    """Return S1, S2, Q of FedAvg for uniform cohorts without replacement and equal sample counts.

    Returns:
        Substitutions in K, m and pi.

    Reference:
        Our derivation.
    """
    moments = without_replacement()
    return {S1: moments.first, S2: moments.second, Q: moments.squares}
