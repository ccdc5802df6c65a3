"""Derivation of elasticities.

The relative change of a rate or floor per relative change of an input.

The elasticity of F in q is `d ln F / d ln q = (q / F) dF/dq`. FedAvg, equal sample counts, cohorts
without replacement, drift of mean zero. Setting: Wu et al., arXiv 2602.13486, App. B; all formulas:
our derivation. They are the data-dependent constants that its review asks for.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from analysis.derivations import floors
from analysis.derivations.cohorts import without_replacement
from analysis.derivations.flow import G, M, T, omega
from analysis.derivations.flow import floor as flow_floor
from analysis.derivations.statement import derivation
from analysis.derivations.symbols import S2, Q, W, c, g, m, nu, pi, tau

TITLE = "Sensitivities"


@dataclass(frozen=True)
class Elasticities:
    """Elasticities in gain mean and deviation, drift deviation, coverage and cohort size."""

    gain_mean: sp.Expr
    gain_std: sp.Expr
    drift_std: sp.Expr
    coverage: sp.Expr
    cohort_size: sp.Expr


@dataclass(frozen=True)
class FlowElasticities:
    """Elasticities of the flow's floor in target, local time and multiplier."""

    target: sp.Expr
    local_time: sp.Expr
    multiplier: sp.Expr


def elasticity(quantity: sp.Expr, parameter: sp.Symbol) -> sp.Expr:
    """Return `d ln quantity / d ln parameter`.

    Args:
        quantity: a positive expression.
        parameter: one of its symbols.

    Returns:
        Expression without unit.

    Reference:
        Our derivation.
    """
    return sp.factor(sp.simplify(parameter / quantity * sp.diff(quantity, parameter)))


def _explicit(quantity: sp.Expr) -> sp.Expr:
    """Return a quantity with weight moments in terms of K, m and pi."""
    return quantity.subs(floors.fedavg_cohort_moments())


@derivation(*(rf"\eta_{{{s}}}[q']" for s in ("g", r"\nu", r"\tau", r"\pi", "m")))
def rate_elasticities() -> Elasticities:
    """Return the elasticities of the rate q' in every parameter.

    Returns:
        Expressions in g, nu, K, m and pi.

    Reference:
        Our derivation.
    """
    return Elasticities(*[elasticity(_explicit(floors.rate()), p) for p in (g, nu, tau, pi, m)])


@derivation(*(rf"\eta_{{{s}}}[E_\infty]" for s in ("g", r"\nu", r"\tau", r"\pi", "m")))
def floor_elasticities() -> Elasticities:
    """Return the elasticities of the floor in every parameter.

    Returns:
        Expressions in g, nu, K, m and pi; for q' below 1.

    Reference:
        Our derivation.
    """
    return Elasticities(*[elasticity(_explicit(floors.floor()), p) for p in (g, nu, tau, pi, m)])


@derivation(r"\eta[E_\infty] - \eta[\delta^2] - \tfrac{q'}{1 - q'} \eta[q']")
def floor_decomposition() -> sp.Expr:
    """Return the elasticity of the floor minus its decomposition: zero.

    It is that of the noise plus that of the rate times `q' / (1 - q')`, for rate and noise as
    unknown functions of one parameter.

    Returns:
        Zero: near the boundary every sensitivity of the floor diverges as `1 / (1 - q')`.

    Reference:
        Our derivation.
    """
    theta = sp.Symbol("theta", positive=True)
    rate, noise = sp.Function("q")(theta), sp.Function("D")(theta)
    found = theta / (noise / (1 - rate)) * sp.diff(noise / (1 - rate), theta)
    parts = theta / noise * sp.diff(noise, theta)
    parts += rate / (1 - rate) * theta / rate * sp.diff(rate, theta)
    return sp.simplify(found - parts)


@derivation(r"\partial E[W^2] / \partial m")
def participation_effect() -> sp.Expr:
    """Return the effect of the cohort size on the mean-energy rate: larger cohorts suppress more.

    Returns:
        Expression in K, m and pi, negative for coverage below 1: lower participation makes the
        *mean* factor milder.

    Reference:
        Our derivation.
    """
    return sp.factor(sp.diff(without_replacement().second, m))


@derivation(r"\nu_{\mathrm{critical}}^2")
def critical_heterogeneity() -> sp.Expr:
    """Return the squared heterogeneity at the boundary `q' = 1`, in coverage and cohort size.

    Returns:
        Expression in g, K, m and pi.

    Reference:
        Our derivation.
    """
    return sp.factor(sp.simplify(_explicit(floors.critical_gain_std()) ** 2))


@derivation(r"E_\infty \big|_{\nu = c = 0}")
def data_dependent_floor() -> sp.Expr:
    """Return the floor for common gains: the data-dependent constant of the non-IID bound.

    Returns:
        Expression in g, tau, K, m and pi.

    Reference:
        Our derivation.
    """
    return sp.factor(_explicit(floors.floor()).subs({nu: 0, c: 0}))


@derivation(*(rf"\eta_{{{s}}}[x^*]" for s in ("M", "T", r"\omega")))
def flow_elasticities() -> FlowElasticities:
    """Return the elasticities of the flow's floor; in omega it diverges at the threshold.

    Returns:
        Expressions in M, T, omega and `G = exp(2 M T)`.

    Reference:
        Our derivation.
    """
    floor = flow_floor().subs(G, sp.exp(2 * M * T))
    values = [elasticity(floor, p).subs(sp.exp(2 * M * T), G) for p in (M, T, omega)]
    return FlowElasticities(*[sp.factor(value) for value in values])


@derivation(r"\partial x^* / \partial \omega")
def flow_floor_slope() -> sp.Expr:
    """Return the derivative of the floor in the multiplier, which is constant.

    Returns:
        Expression in M and G, constant in omega and at least M.

    Reference:
        Our derivation.
    """
    return sp.factor(sp.diff(flow_floor(), omega))


@derivation(r"x^*_{W} - x^*_{W^2}")
def flow_floor_gap() -> sp.Expr:
    """Return floor in product space (omega = W) minus that of zero-padded factors (omega = W^2).

    Returns:
        Expression in M, G and W, positive for W below 1.

    Reference:
        Our derivation.
    """
    return sp.factor(flow_floor().subs(omega, W) - flow_floor().subs(omega, W**2))


@derivation(r"\eta_{E[(\sum w)^2]}[q']", r"\eta_{E[\sum w^2]}[q']")
def moment_elasticities() -> MomentElasticities:
    """Return the elasticities of q' in both weight moments; they sum to 1 for any rule and law.

    Returns:
        Expressions in g, nu, S2 and Q.

    Reference:
        Our derivation.
    """
    return MomentElasticities(*[elasticity(floors.rate(), s) for s in (S2, Q)])


@dataclass(frozen=True)
class MomentElasticities:
    """Shares of q' that come from the squared sum and from the sum of squares."""

    squared_sum: sp.Expr
    sum_of_squares: sp.Expr
