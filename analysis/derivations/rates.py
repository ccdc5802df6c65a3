"""Symbolic derivation of suppression rates: staircase, collapse bound, cohort second moments.

Everything is derived here from indicator variables and recurrences, nothing is transcribed; the
tests compare the results with the numbers of `analysis.closed_form`. Setting: Wu et al.,
arXiv 2602.13486, Sec. 4 and App. A; cohorts: our derivation. All quantities are dimensionless.
"""

from __future__ import annotations

import sympy as sp

K, m, n, d = sp.symbols("K m n d", positive=True)
"""Clients, cohort size, contributors of a direction, contributor draws in one cohort."""

pi = sp.Symbol("pi", positive=True)
"""Coverage of a direction; `n = pi K` for equal sample counts."""

t = sp.Symbol("t", integer=True, nonnegative=True)
"""Round."""


def cohort_second_moment() -> sp.Expr:
    """`E[W^2]` for uniform cohorts without replacement and equal sample counts.

    `H = sum of indicators` over the n contributors: `Var H = n Var 1_k + n (n - 1) Cov(1_j, 1_k)`,
    with `P(k) = m / K` and `P(j and k) = m (m - 1) / (K (K - 1))`; then `W = H / m`.

    Returns:
        Expression in K, m and pi.

    Reference:
        Our derivation.
    """
    single = m / K
    pair = m * (m - 1) / (K * (K - 1))
    return _second_moment_of_share(single - single**2, pair - single**2, single)


def replacement_second_moment() -> sp.Expr:
    """`E[W^2]` for m uniform draws with replacement and equal sample counts.

    The count of a client is a sum over draws: `Var = m/K (1 - 1/K)`, `Cov = -m / K^2`.

    Returns:
        Expression in K, m and pi.

    Reference:
        Our derivation.
    """
    return _second_moment_of_share(m / K * (1 - 1 / K), -m / K**2, m / K)


def _second_moment_of_share(variance: sp.Expr, covariance: sp.Expr, mean: sp.Expr) -> sp.Expr:
    """`E[W^2]` of `W = (sum of n exchangeable counts) / m`, at `n = pi K`."""
    total_variance = n * variance + n * (n - 1) * covariance
    second = (total_variance + (n * mean) ** 2) / m**2
    return sp.factor(second.subs(n, pi * K))


def repeated_client_squares() -> sp.Expr:
    """`E[sum_k c_k^2 | d]` for d uniform draws among n clients, `c_k` the count of client k.

    The sum counts ordered pairs of draws that hit the same client: d pairs of a draw with itself,
    and `d (d - 1)` others that agree with probability `1 / n`.

    Returns:
        Expression in d and n.

    Reference:
        Our derivation.
    """
    agree = n * (1 / n) ** 2
    return sp.expand(d + d * (d - 1) * agree)


def extinction_probability(cohort_size: int) -> sp.Expr:
    """P0 for uniform cohorts without replacement: no draw hits one of the n contributors.

    Clients are drawn one after the other, so `P0 = prod_j (K - n - j) / (K - j)`.

    Args:
        cohort_size: clients per round, at least 1.

    Returns:
        Expression in K and n, equal to `C(K - n, m) / C(K, m)`.

    Reference:
        Our derivation.
    """
    return sp.prod([(K - n - j) / (K - j) for j in range(cohort_size)])


def staircase_energy() -> sp.Expr:
    """Energy after t rounds of FedAvg with full participation and common gain, per unit at t = 0.

    Contributors return `x`, all others 0, so `x(t + 1) = sum_k p_k x(t) = pi x(t)`; the recurrence
    is solved, then squared.

    Returns:
        Expression in pi and t.

    Reference:
        Wu et al., arXiv 2602.13486, App. A.
    """
    amplitude = sp.Function("x")
    solution = sp.rsolve(amplitude(t + 1) - pi * amplitude(t), amplitude(t), {amplitude(0): 1})
    return sp.powsimp(solution**2)


def staircase_rate() -> sp.Expr:
    """Energy factor per round and partition, `energy(t + 1) / energy(t)`.

    Returns:
        Expression in pi.

    Reference:
        Wu et al., arXiv 2602.13486, App. A.
    """
    energy = staircase_energy()
    return sp.simplify(energy.subs(t, t + 1) / energy)


def collapse_bound_gap(num_levels: int = 3) -> sp.Expr:
    """`C gamma^t - (1 - rho_{l_1}(t))` for explicit levels, as one fraction.

    With `G = gamma^t` in (0, 1], level 2 holds `E_2 G`; a level above has less coverage, so it
    holds `E_h G / (1 + v_h)` with `v_h >= 0`. The bound holds for every t if no coefficient of the
    fraction's expanded numerator and denominator is negative.

    Args:
        num_levels: number of rank levels, at least 2.

    Returns:
        Expression in G, the initial energies `E_1, E_2, ...` and `v_3, ...`.

    Reference:
        Wu et al., arXiv 2602.13486, App. A; the proof: our derivation.
    """
    decay = sp.Symbol("G", positive=True)
    energies = sp.symbols(f"E_1:{num_levels + 1}", positive=True)
    slack = [sp.Integer(0), *sp.symbols(f"v_3:{num_levels + 1}", nonnegative=True)]
    shared, higher = energies[0], energies[1:]
    high = sum(e * decay / (1 + v) for e, v in zip(higher, slack, strict=True))
    bound = sum(higher) / shared * decay
    return sp.factor(sp.together(bound - high / (shared + high)))
