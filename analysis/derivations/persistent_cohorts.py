"""Derivation of persistent heterogeneity under random cohorts, for small explicit federations.

Rounds are independent only given the clients' gains and drifts: expectations are taken over cohorts
round by round first, and over normal clients at the end. Equal sample counts. The second mode of Wu
et al., arXiv 2602.13486, App. B; all formulas: our derivation.
"""

from __future__ import annotations

from itertools import combinations

import sympy as sp

from analysis.derivations.persistent import gain_power, mu, s, start
from analysis.derivations.statement import derivation
from analysis.derivations.symbols import S1, S2, Q, c, g, n, nu, tau

TITLE = "Persistent heterogeneity and random cohorts"


@derivation(r"E[x_2^2]\ (K = 3, n = m = 2)")
def energy_after(
    rounds: int = 2, num_clients: int = 3, num_contributors: int = 2, cohort_size: int = 2
) -> sp.Expr:
    """Return the mean energy of FedAvg over all cohorts of all rounds and over normal clients.

    Given the clients, `(x, x^2)` has an affine map per cohort; the maps are averaged over cohorts
    and iterated. The result is a polynomial in `a_k` and `b_k`, whose powers are replaced by normal
    moments.

    Args:
        rounds: t, non-negative.
        num_clients: K.
        num_contributors: n, the first clients.
        cohort_size: m.

    Returns:
        Polynomial in `x_0`, g, nu, c and tau.

    Reference:
        Our derivation.
    """
    gains = sp.symbols(f"a_1:{num_contributors + 1}", real=True)
    drifts = sp.symbols(f"b_1:{num_contributors + 1}", real=True)
    outcomes = []
    for cohort in combinations(range(num_clients), cohort_size):
        carriers = [k for k in cohort if k < num_contributors]
        gain = sp.Add(*[gains[k] for k in carriers]) / cohort_size
        outcomes.append((gain, sp.Add(*[drifts[k] for k in carriers]) / cohort_size))
    mean, energy = start, start**2
    for _ in range(rounds):
        squares = [A**2 * energy + 2 * A * B * mean + B**2 for A, B in outcomes]
        energy = sp.expand(sp.Add(*squares) / len(outcomes))
        mean = sp.expand(sp.Add(*[A * mean + B for A, B in outcomes]) / len(outcomes))
    return _over_clients(energy, gains, drifts)


def _over_clients(
    polynomial: sp.Expr, gains: tuple[sp.Symbol, ...], drifts: tuple[sp.Symbol, ...]
) -> sp.Expr:
    """Return the expectation over independent normal gains and drifts."""
    total = sp.Integer(0)
    for powers, value in sp.Poly(polynomial, *gains, *drifts).terms():
        moments = [_normal(power, g, nu) for power in powers[: len(gains)]]
        moments += [_normal(power, c, tau) for power in powers[len(gains) :]]
        total += value * sp.prod(moments)
    return sp.expand(total)


def _normal(order: int, mean: sp.Symbol, std: sp.Symbol) -> sp.Expr:
    return gain_power(order).subs({mu: mean, s: std}, simultaneous=True)


@derivation(r"E[x_\infty^2]_{\nu = 0}")
def drift_floor(num_contributors: int = 3) -> sp.Expr:
    """Return the floor of persistent drifts under a common gain and exchangeable random weights.

    Given the drifts, `E[x]` follows their mean `b`, so `E[x b]` and `E[x^2]` converge together:
    `E[x b] = g S1 E[x b] + S1 E[b^2]`, `E[x^2] = g^2 S2 E[x^2] + 2 g S2 E[x b] + E[(sum w b)^2]`.
    The last is a symmetric quadratic form in explicit drifts.

    Args:
        num_contributors: number of explicit contributors, at least 2.

    Returns:
        Expression in g, c, tau, S1, S2, Q and n, the number of contributors.

    Reference:
        Our derivation.
    """
    drifts = sp.symbols(f"b_1:{num_contributors + 1}", real=True)
    count = sp.Integer(num_contributors)
    own, pair = Q / count, (S2 - Q) / (count * (count - 1))
    square = own * sum(v**2 for v in drifts)
    square += 2 * pair * sum(v * w for v, w in combinations(drifts, 2))
    noise = _over_clients(square, (), drifts)
    mean_square = _over_clients(sp.expand((sum(drifts) / count) ** 2), (), drifts)
    # E[b^2] = c^2 + tau^2 / n for any number
    mean_square = mean_square.coeff(c**2) * c**2 + mean_square.coeff(tau**2) * count / n * tau**2
    tied, energy = sp.symbols("tied energy")
    equations = [
        g * S1 * tied + S1 * mean_square - tied,
        g**2 * S2 * energy + 2 * g * S2 * tied + noise - energy,
    ]
    return sp.factor(sp.solve(equations, [tied, energy], dict=True)[0][energy])


@derivation(r"E[x_\infty^2]_{\mathrm{persistent}} - E[x_\infty^2]_{\mathrm{fresh}}")
def persistence_effect() -> sp.Expr:
    """Return the effect on the floor of drifts that act in the same direction every round.

    Common gain, drift of mean zero; the fresh floor is `tau^2 Q / (1 - g^2 S2)`.

    Returns:
        Expression in g, tau, S1, S2 and n: positive for `0 < g S1 < 1` and `g^2 S2 < 1`.

    Reference:
        Our derivation.
    """
    fresh = tau**2 * Q / (1 - g**2 * S2)
    return sp.factor(sp.simplify(drift_floor().subs(c, 0) - fresh))
