"""Derivation of the noise that remains after averaging, and of one round's signal-to-noise ratio.

Contributors return `a_k x + b_k`; averaging leaves `nu^2 x^2 + tau^2` times `sum w_k^2`. Setting:
Wu et al., arXiv 2602.13486, App. B; all formulas: our derivation.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import sympy as sp

from analysis.derivations.cohorts import without_replacement
from analysis.derivations.contributors import inverse_contributors
from analysis.derivations.statement import derivation
from analysis.derivations.symbols import P0, H, K, c, g, m, n, nu, pi, tau, x

TITLE = "Noise and signal-to-noise ratio"


@dataclass(frozen=True)
class OneRound:
    """Mean, variance and squared mean over variance of `x'` given the weights."""

    signal: sp.Expr
    variance: sp.Expr
    ratio: sp.Expr


@derivation(r"E[x' \mid w]", r"\mathrm{Var}[x' \mid w]", r"\mathrm{SNR}")
def one_round(num_clients: int = 3) -> OneRound:
    """Return signal and noise of one round for explicit contributors and weights.

    Args:
        num_clients: number of explicit contributors.

    Returns:
        Expressions in the weights `w_1, ...`, x, g, c, nu and tau.

    Reference:
        Our derivation.
    """
    weights = sp.symbols(f"w_1:{num_clients + 1}", positive=True)
    signal = sp.factor(sp.Add(*[w * (g * x + c) for w in weights]))
    # independent clients: variances add, and so do those of gain and drift within a client
    variance = sp.factor(sp.Add(*[w**2 * (nu**2 * x**2 + tau**2) for w in weights]))
    return OneRound(signal, variance, signal**2 / variance)


def _given_contributors(weight: sp.Expr) -> OneRound:
    """Return one round with H contributors of weight `weight` each."""
    signal = H * weight * (g * x + c)
    variance = H * weight**2 * (nu**2 * x**2 + tau**2)
    return OneRound(signal, variance, sp.factor(signal**2 / variance))


@derivation(r"E[x' \mid H]", r"\mathrm{Var}[x' \mid H]", r"\mathrm{SNR}_{\mathrm{FedAvg}}")
def fedavg_round() -> OneRound:
    """Return FedAvg's round given H contributors among m clients, `1 / m` each.

    Returns:
        Expressions in H, m, x, g, c, nu and tau.

    Reference:
        Our derivation.
    """
    return _given_contributors(1 / m)


@derivation(r"E[x' \mid H]", r"\mathrm{Var}[x' \mid H]", r"\mathrm{SNR}_{\mathrm{raFLoRA}}")
def raflora_round() -> OneRound:
    """Return raFLoRA's round given H contributors, `1 / H` each.

    Returns:
        Expressions in H, x, g, c, nu and tau.

    Reference:
        Our derivation.
    """
    return _given_contributors(1 / H)


@derivation(r"\mathrm{SNR}_{\mathrm{raFLoRA}} - \mathrm{SNR}_{\mathrm{FedAvg}}")
def ratio_difference() -> sp.Expr:
    """Return difference of the two signal-to-noise ratios given H: zero for any H, gain and drift.

    Returns:
        Zero.

    Reference:
        Our derivation.
    """
    return sp.simplify(raflora_round().ratio - fedavg_round().ratio)


@derivation(r"\mathrm{Var}_{\mathrm{raFLoRA}} / \mathrm{Var}_{\mathrm{FedAvg}}")
def variance_ratio() -> sp.Expr:
    """Return the noise of raFLoRA relative to FedAvg given H: the cost of undoing the dilution.

    Returns:
        `(m / H)^2`.

    Reference:
        Our derivation.
    """
    return sp.simplify(raflora_round().variance / fedavg_round().variance)


@derivation(r"E[\textstyle\sum w^2]_{\mathrm{raFLoRA}} / E[\textstyle\sum w^2]_{\mathrm{FedAvg}}")
def amplification() -> sp.Expr:
    """Return the mean noise gain of raFLoRA relative to FedAvg, over cohorts without replacement.

    Returns:
        A finite sum in K, m and n: `E[1/H; H > 0]` over `pi / m`.

    Reference:
        Our derivation.
    """
    return inverse_contributors() / without_replacement().squares.subs(pi, n / K)


@derivation(r"E[1/H;\, H > 0] - (1 - P_0)^2 / E[H]")
def inverse_bound_gap(num_outcomes: int = 3) -> sp.Expr:
    """Return Cauchy's gap of `E[1/H; H > 0] >= (1 - P0)^2 / E[H]`.

    A fraction without negative terms.

    For explicit positive outcomes `h_j` of probability `P_j`:
    `sum P_j / h_j sum P_j h_j - (sum P_j)^2` is a sum of squares over pairs, divided by `E[H]`.

    Args:
        num_outcomes: number of outcomes with H > 0.

    Returns:
        Expression in `h_1, ...` and `P_1, ...`.

    Reference:
        Our derivation.
    """
    values = sp.symbols(f"h_1:{num_outcomes + 1}", positive=True)
    chances = sp.symbols(f"P_1:{num_outcomes + 1}", positive=True)
    inverse = sp.Add(*[p / h for p, h in zip(chances, values, strict=True)])
    mean = sp.Add(*[p * h for p, h in zip(chances, values, strict=True)])
    pairs = zip(combinations(chances, 2), combinations(values, 2), strict=True)
    squares = sum(p * q * (h - k) ** 2 / (h * k) for (p, q), (h, k) in pairs)
    assert sp.simplify(inverse * mean - sp.Add(*chances) ** 2 - squares) == 0, "Cauchy's identity"
    return squares / mean


@derivation(r"A_{\min}")
def amplification_bound() -> sp.Expr:
    """Return the least amplification: Cauchy's bound of `E[1/H; H > 0]` over FedAvg's `pi / m`.

    `E[H] = m pi`, so the bound is `(1 - P0)^2 / (m pi) / (pi / m)`.

    Returns:
        `((1 - P0) / pi)^2`: undoing a dilution by pi amplifies noise by `1 / pi^2` at least.

    Reference:
        Our derivation.
    """
    moments = without_replacement()
    expected_contributors = m * moments.first
    return sp.simplify((1 - P0) ** 2 / expected_contributors / moments.squares)
