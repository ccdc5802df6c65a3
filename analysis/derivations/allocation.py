"""Derivation of random allocation, which treats all directions equally.

Client k carries a uniform random subset of `r_k` of the `r_max` directions, drawn every round: it
carries a given direction with probability `u_k = r_k / r_max`. All formulas: our derivation, for
the question in the review of Wu et al., arXiv 2602.13486.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import sympy as sp

from analysis.derivations.statement import derivation
from analysis.derivations.symbols import K, m, pi

TITLE = "Random allocation"

mean_square = sp.Symbol("u_2", positive=True)
"""Mean over clients of `(r_k / r_max)^2`; their mean is the coverage pi."""


@dataclass(frozen=True)
class RandomShare:
    """`E[W]`, `E[W^2]` and `E[sum w^2]` of random allocation."""

    first: sp.Expr
    second: sp.Expr
    squares: sp.Expr


@derivation(r"P(\mathrm{client\ carries\ direction})")
def carry_probability() -> sp.Expr:
    """Return the probability that a random r-subset of R directions contains a given one.

    Returns:
        Expression in r and R.

    Reference:
        Our derivation.
    """
    r, largest = sp.symbols("r R", positive=True)
    return sp.combsimp(sp.binomial(largest - 1, r - 1) / sp.binomial(largest, r))


@derivation(r"\pi_{\mathrm{random}}")
def coverage(num_clients: int = 3) -> sp.Expr:
    """Return the coverage `sum_k p_k r_k / r_max`, which is equal for all directions.

    Args:
        num_clients: number of explicit clients.

    Returns:
        Expression in `p_1, ...`, `r_1, ...` and R, the largest rank.

    Reference:
        Our derivation.
    """
    r = sp.Symbol("r", positive=True)
    ranks = sp.symbols(f"r_1:{num_clients + 1}", positive=True)
    weights = sp.symbols(f"p_1:{num_clients + 1}", positive=True)
    chance = carry_probability()
    return sp.Add(*[p * chance.subs(r, rank) for p, rank in zip(weights, ranks, strict=True)])


@derivation(r"E[W]_{\mathrm{random}}", r"E[W^2]_{\mathrm{random}}", r"E[\textstyle\sum w^2]")
def share_moments(num_clients: int = 3) -> RandomShare:
    """Return the share moments of equal sample counts and a cohort without replacement.

    `W = sum_k 1_k z_k / m` with independent carriers `E[z_k] = E[z_k^2] = u_k`; the symmetric sums
    over clients are expressed by the mean and the mean square of u.

    Args:
        num_clients: number of explicit clients, at least 2; the result does not depend on it.

    Returns:
        Expressions in K, m, `pi = mean u` and `u_2 = mean u^2`.

    Reference:
        Our derivation.
    """
    chances = sp.symbols(f"u_1:{num_clients + 1}", positive=True)
    single, pair = m / K, m * (m - 1) / (K * (K - 1))
    second = sum(u * single for u in chances)
    second += 2 * sum(u * w * pair for u, w in combinations(chances, 2))
    poly = sp.Poly(sp.expand(second / m**2), *chances)
    linear = poly.coeff_monomial(chances[0])
    product = poly.coeff_monomial(chances[0] * chances[1]) / 2
    # sum u = K pi, sum over pairs u_j u_k = K^2 pi^2 - K u_2, for any number of clients
    linear, product = sp.factor(linear * K), sp.factor(product * K)
    second = linear * pi + product * (K * pi**2 - mean_square)
    first = K * pi * single / m
    return RandomShare(first, second, first / m)


@derivation(r"E[W^2]_{\mathrm{random}} - E[W^2]_{\mathrm{SVD}}")
def excess_over_svd() -> sp.Expr:
    """Return the second moment of random minus SVD-based allocation at the same coverage.

    SVD-based allocation is the case `u_k` in {0, 1}, where `u_2 = pi`; any other has `u_2 < pi`.

    Returns:
        Expression in K, m, pi and `u_2`: positive for `u_2 < pi` and `m > 1`.

    Reference:
        Our derivation.
    """
    second = share_moments().second
    return sp.factor(second - second.subs(mean_square, pi))


@derivation(r"P_{0,\mathrm{random}}(K = 3, m = 2)")
def extinction_probability(num_clients: int = 3, cohort_size: int = 2) -> sp.Expr:
    """Return probability P0 that no client of the cohort carries the direction, over all cohorts.

    Args:
        num_clients: K.
        cohort_size: m.

    Returns:
        Expression in `u_1, ...`.

    Reference:
        Our derivation.
    """
    chances = sp.symbols(f"u_1:{num_clients + 1}", positive=True)
    cohorts = list(combinations(chances, cohort_size))
    return sp.Add(*[sp.prod([1 - u for u in cohort]) for cohort in cohorts]) / len(cohorts)


@derivation(r"\rho(t) - \rho(0)")
def concentration() -> sp.Expr:
    """Return the change of the energy ratio when all directions have the same mean rate: zero.

    Mean energies, two groups of directions; under random allocation both have rate `E[W^2]`.

    Returns:
        Zero.

    Reference:
        Our derivation.
    """
    shared, high, q = sp.symbols("E_1 E_2 q", positive=True)
    ratio = shared / (shared + high)
    after = ratio.subs({shared: q * shared, high: q * high}, simultaneous=True)
    return sp.simplify(after - ratio)
