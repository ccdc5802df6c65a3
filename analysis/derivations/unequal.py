"""Derivation of share moments for unequal sample counts, over a few explicit clients.

Without renormalization weights are linear in the indicators and inclusion probabilities suffice.
Weights divided by the cohort's samples are ratios: their moments are sums over all cohorts. All
formulas: our derivation, for the weights of Wu et al., arXiv 2602.13486, Sec. 3 and Eq. 8.
"""

from __future__ import annotations

from itertools import combinations

import sympy as sp

from analysis.derivations.statement import derivation
from analysis.derivations.symbols import K, m, pi

TITLE = "Random cohorts with unequal sample counts"

squares = sp.Symbol("s_2", positive=True)
"""`sum of p_k^2` over the contributors."""


@derivation(r"E[W]_{\mathrm{federation}}")
def unbiased_mean(num_contributors: int = 3) -> sp.Expr:
    """Return the mean of `W = sum p_k 1_k K / m` over contributors: their coverage.

    It holds for any sample counts.

    Args:
        num_contributors: number of explicit contributors.

    Returns:
        Expression in the weights `p_1, ...`.

    Reference:
        Our derivation.
    """
    weights = sp.symbols(f"p_1:{num_contributors + 1}", positive=True)
    return sp.Add(*[p * (m / K) * K / m for p in weights])


@derivation(r"E[W^2]_{\mathrm{federation}}")
def unbiased_second_moment(num_contributors: int = 3, *, independent: bool = False) -> sp.Expr:
    """Return `E[W^2]` without renormalization from first and second inclusion probabilities.

    `E[1_j 1_k] = m (m - 1) / (K (K - 1))` without replacement and `(m / K)^2` for independent
    clients, `E[1_k^2] = m / K`; products of weights are gathered in `pi^2` and `s_2`.

    Args:
        num_contributors: number of explicit contributors; the result does not depend on it.
        independent: Bernoulli participation instead of a cohort without replacement.

    Returns:
        Expression in K, m, pi and `s_2 = sum of p_k^2 over contributors`.

    Reference:
        Our derivation.
    """
    weights = sp.symbols(f"p_1:{num_contributors + 1}", positive=True)
    single, pair = m / K, m * (m - 1) / (K * (K - 1))
    pair = single**2 if independent else pair
    second = sum(p**2 * single for p in weights)
    second += 2 * sum(p * q * pair for p, q in combinations(weights, 2))
    second = sp.Poly(sp.expand(second * (K / m) ** 2), *weights)
    alpha = second.coeff_monomial(weights[0] ** 2)
    beta = second.coeff_monomial(weights[0] * weights[1]) / 2
    # the sum over pairs of p_j p_k is (pi^2 - s_2) for any number of contributors
    return sp.factor(alpha - beta) * squares + sp.factor(beta) * pi**2


@derivation(r"E[\textstyle\sum_k w_k^2]_{\mathrm{federation}}")
def unbiased_sum_of_squares(num_contributors: int = 3) -> sp.Expr:
    """Return `E[sum_k w_k^2]` of weights `p_k 1_k K / m`.

    Args:
        num_contributors: number of explicit contributors.

    Returns:
        Expression in K, m and `s_2`.

    Reference:
        Our derivation.
    """
    weights = sp.symbols(f"p_1:{num_contributors + 1}", positive=True)
    total = sum((p * K / m) ** 2 * (m / K) for p in weights)
    return sp.factor(total.subs(weights[0] ** 2, squares - sum(p**2 for p in weights[1:])))


@derivation(r"E[W^2](K = 3, m = 2)")
def share_moment(
    power: int = 2, num_clients: int = 3, num_contributors: int = 1, cohort_size: int = 2
) -> sp.Expr:
    """Return the share moment of explicit clients without replacement, with the cohort's samples.

    `W = sum_{S & C} n_k / sum_S n_k`, to the power, averaged over all cohorts S. The contributors
    are the first clients.

    Args:
        power: exponent of W, at least 1.
        num_clients: K.
        num_contributors: n.
        cohort_size: m.

    Returns:
        Rational expression in the sample counts `n_1, ...`.

    Reference:
        Our derivation.
    """
    samples = sp.symbols(f"n_1:{num_clients + 1}", positive=True)
    cohorts = list(combinations(range(num_clients), cohort_size))
    shares = []
    for cohort in cohorts:
        carried = sp.Add(*[samples[k] for k in cohort if k < num_contributors])
        shares.append((carried / sp.Add(*[samples[k] for k in cohort])) ** power)
    return sp.Add(*shares) / len(cohorts)


@derivation(r"E[\textstyle\sum_k w_k^2](K = 3, m = 2)")
def share_squares(
    num_clients: int = 3,
    num_contributors: int = 1,
    cohort_size: int = 2,
    *,
    contributors_only: bool = False,
) -> sp.Expr:
    """Return `E[sum_k w_k^2]` of explicit clients without replacement, by the sum over all cohorts.

    Args:
        num_clients: K.
        num_contributors: n, the first clients.
        cohort_size: m.
        contributors_only: weights over the contributors' samples (raFLoRA) instead of the cohort's.

    Returns:
        Rational expression in the sample counts `n_1, ...`.

    Reference:
        Our derivation.
    """
    samples = sp.symbols(f"n_1:{num_clients + 1}", positive=True)
    cohorts = list(combinations(range(num_clients), cohort_size))
    total = sp.Integer(0)
    for cohort in cohorts:
        carriers = [samples[k] for k in cohort if k < num_contributors]
        whole = carriers if contributors_only else [samples[k] for k in cohort]
        total += sum(count**2 for count in carriers) / sp.Add(*whole) ** 2 if carriers else 0
    return total / len(cohorts)
