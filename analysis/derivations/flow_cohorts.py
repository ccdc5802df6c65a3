"""Derivation of the flow with random cohorts, unequal targets and a frozen factor.

Extends `flow`: the multiplier omega is random, the clients' targets differ, or A is frozen (FFA).
All formulas: our derivation, an extension of Wu et al., arXiv 2602.13486.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from analysis.derivations.flow import G, M, T, inverse_round_map, local_map, omega, start, y
from analysis.derivations.statement import derivation
from analysis.derivations.symbols import P0, W, t, x

TITLE = "The flow with random cohorts, unlike targets and a frozen factor"

mean_inverse = sp.Symbol("I", positive=True)
"""`E[1/omega | omega > 0]`."""

e = sp.Symbol("e", positive=True)
"""`exp(-T)`."""


@dataclass(frozen=True)
class Jensen:
    """Gap at two points of a convex function: its value at equal targets, and its curvature."""

    gap: sp.Expr
    curvature: sp.Expr


@derivation(r"E[y']")
def mean_inverse_map(num_outcomes: int = 3) -> sp.Expr:
    """Return the mean of `y' = 1/x'` over a random multiplier independent of the past.

    The affine map of `flow`, averaged over explicit outcomes of omega; only `E[1/omega]` enters.

    Args:
        num_outcomes: number of values of omega; the result does not depend on it.

    Returns:
        Expression in `y = E[1/x]`, `I = E[1/omega | omega > 0]`, M and G.

    Reference:
        Our derivation.
    """
    values = sp.symbols(f"omega_1:{num_outcomes + 1}", positive=True)
    chances = sp.symbols(f"P_1:{num_outcomes + 1}", positive=True)
    step = inverse_round_map()
    mean = sp.expand(sum(p * step.subs(omega, v) for p, v in zip(chances, values, strict=True)))
    inverse = sp.Add(*[p / v for p, v in zip(chances, values, strict=True)])
    factor = sp.simplify(mean / inverse)
    assert not factor.free_symbols & {*values, *chances}, "only E[1/omega] enters"
    return mean_inverse * factor


@derivation(r"E[1/x_t]^{-1}")
def harmonic_amplitude_after() -> sp.Expr:
    """Return the harmonic-mean amplitude after t rounds given a contributor in each, for I not G.

    Returns:
        Expression in `x_0`, I, M, G and t.

    Reference:
        Our derivation.
    """
    inverse = sp.Function("y")
    recurrence = inverse(t + 1) - sp.expand(mean_inverse_map().subs(y, inverse(t)))
    solution = sp.rsolve(recurrence, inverse(t), {inverse(0): 1 / start})
    return 1 / sp.simplify(solution)


@derivation(r"E[1/x_\infty]^{-1}")
def harmonic_floor() -> sp.Expr:
    """Return the limit of the harmonic-mean amplitude; positive where `I < G`.

    Returns:
        Expression in I, M and G; `flow.floor` at `I = 1/omega`.

    Reference:
        Our derivation.
    """
    (point,) = sp.solve(sp.Eq(y, mean_inverse_map()), y)
    return sp.factor(1 / point)


@derivation(r"E[y']_{\mathrm{raFLoRA, carry}}")
def carried_inverse_map() -> sp.Expr:
    """Return the mean of `1/x'` for raFLoRA with `carry`.

    With probability P0 a round has no effect.

    Returns:
        Expression in y, P0, M and G, with the target itself as its fixed point.

    Reference:
        Our derivation.
    """
    trained = inverse_round_map().subs(omega, 1)
    return sp.collect(sp.expand(P0 * y + (1 - P0) * trained), y)


@derivation(r"E[1/x_\infty]^{-1}_{\mathrm{raFLoRA, carry}}")
def carried_floor() -> sp.Expr:
    """Return limit of the harmonic-mean amplitude for raFLoRA with `carry`: the target for any P0.

    Returns:
        M.

    Reference:
        Our derivation.
    """
    (point,) = sp.solve(sp.Eq(y, carried_inverse_map()), y)
    return sp.simplify(1 / point)


@derivation(r"E[\log x'] - E[\log x]")
def typical_threshold() -> sp.Expr:
    """Return the drift of the log amplitude near zero.

    The typical direction collapses if it is negative.

    `log x' - log x` at `x -> 0` is `log(omega G)`, averaged over explicit outcomes of omega.

    Returns:
        Expression in `omega_1, omega_2, P_1, P_2` and G; `E[log omega] + log G`.

    Reference:
        Our derivation.
    """
    values, chances = sp.symbols("omega_1:3", positive=True), sp.symbols("P_1:3", positive=True)
    step = sp.log(sp.limit(omega * local_map() / x, x, 0))
    mean = sum(p * step.subs(omega, v) for p, v in zip(chances, values, strict=True))
    return sp.expand_log(mean, force=True)


def _targets(count: int) -> tuple[tuple[sp.Symbol, ...], list[sp.Expr], tuple[sp.Symbol, ...]]:
    """Return weights, local maps and targets of explicit contributors with different targets."""
    targets = sp.symbols(f"M_1:{count + 1}", positive=True)
    weights = sp.symbols(f"p_1:{count + 1}", positive=True)
    local = local_map().subs(G, sp.exp(2 * M * T))
    return weights, [local.subs(M, target) for target in targets], targets


@derivation(r"\partial x' / \partial x\,(0)")
def threshold_product(num_contributors: int = 2) -> sp.Expr:
    """Return slope at zero of `x' = sum p_k f_k(x)`: product-space averaging of unequal targets.

    Args:
        num_contributors: number of explicit contributors.

    Returns:
        `sum p_k exp(2 M_k T)`; the direction collapses where it is below 1.

    Reference:
        Our derivation.
    """
    weights, maps, _ = _targets(num_contributors)
    parts = [p * sp.simplify(sp.diff(f, x).subs(x, 0)) for p, f in zip(weights, maps, strict=True)]
    return sp.Add(*parts)


@derivation(r"\partial x' / \partial x\,(0)_{\mathrm{factors}}")
def threshold_factors(num_contributors: int = 2) -> sp.Expr:
    """Return the slope at zero of `x' = (sum p_k sqrt(f_k(x)))^2`: averaging zero-padded factors.

    Args:
        num_contributors: number of explicit contributors.

    Returns:
        `(sum p_k exp(M_k T))^2`; the direction collapses where it is below 1.

    Reference:
        Our derivation.
    """
    weights, maps, _ = _targets(num_contributors)
    # x'/x = (sum p_k sqrt(f_k / x))^2 is regular at 0
    slopes = [sp.simplify(sp.limit(sp.simplify(f / x), x, 0)) for f in maps]
    roots = [p * sp.powdenest(sp.sqrt(v), force=True) for p, v in zip(weights, slopes, strict=True)]
    return sp.Add(*roots) ** 2


@derivation(r"\Delta(0)", r"\Delta''")
def jensen() -> Jensen:
    """Return the effect of unequal targets of the same mean: they raise the slope at zero.

    Two contributors with targets `M (1 + z)` and `M (1 - z)`, equal weights: the slope relative to
    that at z = 0 is 1 there and convex in z, so heterogeneity delays collapse.

    Returns:
        The ratio minus 1 at `z = 0`, and its second derivative in z, positive.

    Reference:
        Our derivation.
    """
    z = sp.Symbol("z", real=True)
    slope = threshold_product(2)
    _, _, (first, second) = _targets(2)
    p_1, p_2 = sp.symbols("p_1 p_2", positive=True)
    unlike = slope.subs({first: M * (1 + z), second: M * (1 - z), p_1: 1, p_2: 1})
    ratio = sp.expand(unlike / unlike.subs(z, 0)).rewrite(sp.cosh)
    gap = sp.simplify(ratio) - 1
    return Jensen(sp.simplify(gap.subs(z, 0)), sp.simplify(sp.diff(gap, z, 2)))


@derivation(r"f(x)_{\mathrm{FFA}}")
def frozen_local_map() -> sp.Expr:
    """Return FFA's local map: the gradient flow of B with unit A is linear.

    `dx/dt = -dL/db` with `L = 0.5 (b - M)^2` and `x = b`, solved.

    Returns:
        Expression in x, M and `e = exp(-T)`.

    Reference:
        Our derivation; FFA-LoRA: Sun et al. 2024, arXiv 2403.12313.
    """
    amplitude, b = sp.Function("x"), sp.Symbol("b")
    speed = -sp.diff(sp.Rational(1, 2) * (b - M) ** 2, b)
    equation = sp.Eq(amplitude(T).diff(T), speed.subs(b, amplitude(T)))
    solution = sp.dsolve(equation, amplitude(T), ics={amplitude(0): x}).rhs
    return sp.expand(solution).subs(sp.exp(-T), e)


@derivation(r"x^*_{\mathrm{FFA}}")
def frozen_floor() -> sp.Expr:
    """Return fixed point of FFA's round `x' = W f(x)`: positive for every W, without a threshold.

    Returns:
        Expression in W, M and e, equal to `W M (1 - e) / (1 - W e)`.

    Reference:
        Our derivation.
    """
    (point,) = sp.solve(sp.Eq(x, W * frozen_local_map()), x)
    return sp.factor(point)


@derivation(r"\partial x' / \partial x_{\mathrm{FFA}}")
def frozen_rate() -> sp.Expr:
    """Return the factor per round by which FFA approaches its floor.

    Returns:
        `W e`.

    Reference:
        Our derivation.
    """
    return sp.diff(W * frozen_local_map(), x)
