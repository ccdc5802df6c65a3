"""Derivation of the moments of a cohort's share W of contributors, for equal sample counts.

`W = H / m` with H the number of contributor draws, a sum of indicators. A product of distinct
indicators has the same expectation for all clients (or draws), so the factorial moments
`E[H (H - 1) ... (H - j + 1)]` are a number of tuples times one probability; powers of H are sums of
those. Setting: Wu et al., arXiv 2602.13486, Sec. 4; all moments: our derivation.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from analysis.derivations.statement import derivation
from analysis.derivations.symbols import K, at_covered, m, n

TITLE = "Random cohorts with equal sample counts"

size = sp.Symbol("s", positive=True)
"""Number of clients in one Bernoulli cohort."""

share = sp.Symbol("pi_B", positive=True)
"""Probability `m / K` with which a client takes part in a Bernoulli cohort."""

MOMENTS = (r"E[W]", r"E[W^2]", r"E[W^3]", r"E[W^4]", r"E[\sum_k w_k^2]")


@dataclass(frozen=True)
class ShareMoments:
    """`E[W]` to `E[W^4]` of one cohort law, and `E[sum_k w_k^2]` over contributors."""

    first: sp.Expr
    second: sp.Expr
    third: sp.Expr
    fourth: sp.Expr
    squares: sp.Expr


def _falling(base: sp.Expr, order: int) -> sp.Expr:
    return sp.prod([base - j for j in range(order)])


def _in_falling(power: int) -> list[sp.Expr]:
    """Return coefficients a_j of `h^power = sum_j a_j h (h - 1) ... (h - j + 1)`, by division."""
    h = sp.Symbol("h")
    rest, coefficients = sp.Poly(h**power, h), [sp.Integer(0)] * (power + 1)
    for j in range(power, -1, -1):
        coefficients[j] = rest.coeff_monomial(h**j)
        rest -= sp.Poly(coefficients[j] * _falling(h, j), h)
    return coefficients


def _share_moments(factorial: list[sp.Expr], squares: sp.Expr) -> ShareMoments:
    """Return the moments of `W = H / m` from the factorial moments of H of orders 0 to 4."""
    raw = [
        sum(a * factorial[j] for j, a in enumerate(_in_falling(power))) / m**power
        for power in range(1, 5)
    ]
    return ShareMoments(*[at_covered(value) for value in (*raw, squares)])


@derivation(*MOMENTS)
def without_replacement() -> ShareMoments:
    """Return the share moments of a uniform cohort of m clients out of K without replacement.

    The n contributors have indicators with `P(j given clients all drawn) = (m)_j / (K)_j`. A
    contributor that is drawn weighs `1 / m`, so `E[sum w^2] = n P(drawn) / m^2`.

    Returns:
        Expressions in K, m and pi.

    Reference:
        Our derivation.
    """
    factorial = [_falling(n, j) * _falling(m, j) / _falling(K, j) for j in range(5)]
    return _share_moments(factorial, n * (m / K) / m**2)


@derivation(*MOMENTS)
def with_replacement() -> ShareMoments:
    """Return the share moments of m uniform draws with replacement.

    The m draws are independent, each a contributor with probability `n / K`; client k is drawn
    `c_k` times, `E[c_k^2] = Var + mean^2` of a binomial count, and weighs `c_k / m`.

    Returns:
        Expressions in K, m and pi.

    Reference:
        Our derivation.
    """
    factorial = [_falling(m, j) * (n / K) ** j for j in range(5)]
    count_squared = m / K * (1 - 1 / K) + (m / K) ** 2
    return _share_moments(factorial, n * count_squared / m**2)


@derivation(*MOMENTS)
def bernoulli_unnormalized() -> ShareMoments:
    """Return share moments of independent participation with probability `m / K`, weights `1 / m`.

    Weights are not divided by the cohort's size, so W is unbiased, may exceed 1, and is 0 in a
    round without clients.

    Returns:
        Expressions in K, m and pi.

    Reference:
        Our derivation.
    """
    factorial = [_falling(n, j) * (m / K) ** j for j in range(5)]
    return _share_moments(factorial, n * (m / K) / m**2)


@derivation(*(rf"{moment[:-1]} \mid |S| = s]" for moment in MOMENTS))
def bernoulli_given_size() -> ShareMoments:
    """Return the share moments of a Bernoulli cohort of s clients, weights divided by its size.

    All cohorts of s clients are equally likely, `pi_B^s (1 - pi_B)^(K - s)` each, so
    `P(j given clients | s)` is the fraction `C(K - j, s - j) / C(K, s)` of them: given its size, a
    Bernoulli cohort is one without replacement.

    Returns:
        Expressions in K, s and pi.

    Reference:
        Our derivation.
    """
    weight = share**size * (1 - share) ** (K - size)
    total = sp.binomial(K, size) * weight
    joint = [sp.binomial(K - j, size - j) * weight / total for j in range(5)]
    factorial = [_falling(n, j) * sp.combsimp(p) for j, p in enumerate(joint)]
    found = _share_moments(factorial, n * sp.combsimp(joint[1]) / size**2)
    # `_share_moments` divides by the cohort size m, which is s here
    raw = [found.first, found.second, found.third, found.fourth]
    scaled = [sp.factor(value * (m / size) ** power) for power, value in enumerate(raw, start=1)]
    return ShareMoments(*[*scaled, found.squares])


@derivation(r"E[W^2]_{\mathrm{Bernoulli}}")
def bernoulli_renormalized(power: int = 2) -> sp.Expr:
    """Return the share moment of a Bernoulli cohort that is redrawn while empty.

    `sum_{s >= 1} P(|S| = s) E[W^p | s] / (1 - P(|S| = 0))` with |S| binomial.

    Args:
        power: p from 1 to 4.

    Returns:
        A finite sum over s, in K, pi and `pi_B = m / K`.

    Reference:
        Our derivation.
    """
    given = bernoulli_given_size()
    value = (given.first, given.second, given.third, given.fourth)[power - 1]
    return _over_sizes(value)


@derivation(r"E[\textstyle\sum_k w_k^2]_{\mathrm{Bernoulli}}")
def bernoulli_squares() -> sp.Expr:
    """Return `E[sum_k w_k^2]` of a Bernoulli cohort that is redrawn while empty.

    Returns:
        A finite sum over s, in K, pi and `pi_B = m / K`.

    Reference:
        Our derivation.
    """
    return _over_sizes(bernoulli_given_size().squares)


def _over_sizes(value: sp.Expr) -> sp.Expr:
    """Return the mean over the size of a Bernoulli cohort that is not empty."""
    s = sp.Symbol("s", integer=True, positive=True)
    mass = sp.binomial(K, s) * share**s * (1 - share) ** (K - s)
    return sp.Sum(mass * value.subs(size, s), (s, 1, K)) / (1 - (1 - share) ** K)


@derivation(r"E[H^2] / E[H]^2 - 1")
def relative_variance() -> sp.Expr:
    """Return the squared coefficient of variation of H, i.e. of W, without replacement.

    Returns:
        Expression in K, m and pi; zero at m = K.

    Reference:
        Our derivation.
    """
    moments = without_replacement()
    return sp.factor(moments.second / moments.first**2 - 1)
