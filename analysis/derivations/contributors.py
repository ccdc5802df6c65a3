"""Derivation of extinction and of the mean inverse number of contributors.

Both follow from the distribution of H, the number of contributors (or contributor draws) in one
cohort. Setting: Wu et al., arXiv 2602.13486, Sec. 5; all formulas: our derivation.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from analysis.derivations.statement import derivation
from analysis.derivations.symbols import K, d, m, n

TITLE = "Contributors of one cohort: extinction and inverse number"


@dataclass(frozen=True)
class Extinction:
    """P0 of four cohort laws."""

    without_replacement: sp.Expr
    with_replacement: sp.Expr
    bernoulli: sp.Expr
    bernoulli_renormalized: sp.Expr


@derivation(r"E[\textstyle\sum_k c_k^2 \mid d]")
def repeated_client_squares() -> sp.Expr:
    """Return `E[sum_k c_k^2 | d]` for d uniform draws among n clients, `c_k` the count of client k.

    The sum counts ordered pairs of draws that hit the same client: d pairs of a draw with itself,
    and `d (d - 1)` others that agree with probability `1 / n`.

    Returns:
        Expression in d and n.

    Reference:
        Our derivation.
    """
    agree = n * (1 / n) ** 2
    return sp.expand(d + d * (d - 1) * agree)


@derivation(r"P_0(m = 3)")
def extinction_probability(cohort_size: int = 3) -> sp.Expr:
    """Return P0 for uniform cohorts without replacement: no draw hits one of the n contributors.

    Clients are drawn one after the other, so `P0 = prod_j (K - n - j) / (K - j)`.

    Args:
        cohort_size: clients per round, at least 1.

    Returns:
        Expression in K and n, equal to `C(K - n, m) / C(K, m)`.

    Reference:
        Our derivation.
    """
    return sp.prod([(K - n - j) / (K - j) for j in range(cohort_size)])


@derivation(
    r"P_0^{\mathrm{without}}",
    r"P_0^{\mathrm{with}}",
    r"P_0^{\mathrm{Bernoulli}}",
    r"P_0^{\mathrm{Bernoulli}, S \neq \emptyset}",
)
def extinction() -> Extinction:
    """Return P0 of each cohort law: the probability that a round has no contributor.

    Without replacement the cohort is one of `C(K - n, m)` among `C(K, m)`; independent draws or
    clients all miss; of Bernoulli cohorts the empty one is redrawn.

    Returns:
        Expressions in K, m and n.

    Reference:
        Our derivation.
    """
    miss, none = (1 - m / K) ** n, (1 - m / K) ** K
    return Extinction(
        sp.binomial(K - n, m) / sp.binomial(K, m),
        (1 - n / K) ** m,
        miss,
        (miss - none) / (1 - none),
    )


@derivation(r"E[1/H;\, H > 0]")
def inverse_contributors() -> sp.Expr:
    """Return `E[1/H; H > 0]` for uniform cohorts without replacement, H the number of contributors.

    `H = h` in `C(n, h) C(K - n, m - h)` of `C(K, m)` cohorts; this is raFLoRA's `E[sum w^2]`, every
    contributor weighing `1 / H`.

    Returns:
        A finite sum over h, in K, m and n.

    Reference:
        Our derivation.
    """
    h = sp.Symbol("h", integer=True, positive=True)
    mass = sp.binomial(n, h) * sp.binomial(K - n, m - h) / sp.binomial(K, m)
    return sp.Sum(mass / h, (h, 1, m))


@derivation(r"E[\textstyle\sum_k w_k^2]_{\mathrm{raFLoRA, with}}")
def inverse_contributors_with_replacement() -> sp.Expr:
    """Return raFLoRA's `E[sum_k w_k^2]` for draws with replacement, with weights `c_k / D`.

    D contributor draws are binomial; given D = d, `sum c_k^2` has `repeated_client_squares`.

    Returns:
        A finite sum over d, in K, m and n.

    Reference:
        Our derivation.
    """
    j = sp.Symbol("d", integer=True, positive=True)
    mass = sp.binomial(m, j) * (n / K) ** j * (1 - n / K) ** (m - j)
    return sp.Sum(mass * sp.expand(repeated_client_squares().subs(d, j) / j**2), (j, 1, m))


@derivation(r"E[1/H;\, H > 0]_{\mathrm{Bernoulli}}")
def inverse_contributors_bernoulli() -> sp.Expr:
    """Return `E[1/H; H > 0]` for Bernoulli cohorts that are redrawn while empty.

    H is binomial over the n contributors; a cohort with a contributor is never empty.

    Returns:
        A finite sum over h, in K, m and n.

    Reference:
        Our derivation.
    """
    h = sp.Symbol("h", integer=True, positive=True)
    mass = sp.binomial(n, h) * (m / K) ** h * (1 - m / K) ** (n - h)
    return sp.Sum(mass / h, (h, 1, n)) / (1 - (1 - m / K) ** K)
