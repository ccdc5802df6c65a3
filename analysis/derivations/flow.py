"""Derivation of LoRA training as a gradient flow: logistic flow and a phase transition.

One direction of the loss `0.5 ||B A - M||_F^2` with balanced factors, gradient flow for time T,
then `x' = omega f(x)` on the server. The cohort size is m elsewhere, so the target amplitude is M.
All formulas: our derivation, an extension of Wu et al., arXiv 2602.13486.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from analysis.derivations.statement import derivation
from analysis.derivations.symbols import t, x

TITLE = "LoRA's own training: logistic flow and phase transition"

M, T, G, omega = sp.symbols("M T G omega", positive=True)
"""Target amplitude, local time, growth `exp(2 M T)` and the rule's multiplier."""

start, y = sp.symbols("x_0 y", positive=True)
"""Amplitude at round 0; inverse amplitude 1/x."""


@dataclass(frozen=True)
class Sides:
    """Results below and above the threshold."""

    below: sp.Expr
    above: sp.Expr


@dataclass(frozen=True)
class FlowLimits:
    """Limits of the local map and of the floor."""

    no_training: sp.Expr
    full_training: sp.Expr
    floor_full_training: sp.Expr
    floor_undiluted: sp.Expr


@derivation(r"\dot x")
def amplitude_flow() -> sp.Expr:
    """Return the gradient flow of one direction's amplitude `x = b a` from balanced factors.

    `db/dt = -dL/db`, `da/dt = -dL/da` with `L = 0.5 (b a - M)^2`; the product rule, then
    `a^2 = b^2 = x`, which stays so (see `balance`).

    Returns:
        Expression in x and M.

    Reference:
        Our derivation; balanced flows: Saxe et al. 2014, arXiv 1312.6120.
    """
    a, b, flow_a, flow_b = _factor_flow()
    speed = sp.factor(flow_b * a + b * flow_a)
    return sp.factor(speed.subs({a: sp.sqrt(x), b: sp.sqrt(x)}))


@derivation(r"\tfrac{d}{dt}(b^2 - a^2)")
def balance() -> sp.Expr:
    """Return the change of the factors' imbalance along the flow, which is zero.

    Returns:
        Zero.

    Reference:
        Our derivation.
    """
    a, b, flow_a, flow_b = _factor_flow()
    return sp.expand(2 * b * flow_b - 2 * a * flow_a)


def _factor_flow() -> tuple[sp.Symbol, sp.Symbol, sp.Expr, sp.Expr]:
    """Return the factors a, b of one direction and their negative gradients."""
    a, b = sp.symbols("a b", positive=True)
    loss = sp.Rational(1, 2) * (b * a - M) ** 2
    return a, b, -sp.diff(loss, a), -sp.diff(loss, b)


@derivation(r"f(x)")
def local_map() -> sp.Expr:
    """Return amplitude after local time T, by solving the flow in `y = 1/x`, where it is linear.

    Returns:
        Expression in x, M and `G = exp(2 M T)`, equal to `M G x / (M + x (G - 1))`.

    Reference:
        Our derivation.
    """
    inverse = sp.Function("y")
    flow = -amplitude_flow() / x**2  # chain rule
    equation = sp.Eq(inverse(T).diff(T), sp.expand(flow.subs(x, 1 / y)).subs(y, inverse(T)))
    solution = sp.dsolve(equation, inverse(T), ics={inverse(0): 1 / x}).rhs
    in_growth = sp.expand(solution).subs(sp.exp(-2 * M * T), 1 / G)
    return sp.simplify(1 / in_growth)


@derivation(r"f(x)_{M = 0}")
def local_map_without_target() -> sp.Expr:
    """Return the amplitude after local time T for a target of zero, as a limit.

    Returns:
        Expression in x and T.

    Reference:
        Our derivation.
    """
    return sp.factor(sp.limit(local_map().subs(G, sp.exp(2 * M * T)), M, 0))


@derivation(r"f'(0)")
def local_gain() -> sp.Expr:
    """Return the growth of a small amplitude in one round of local training.

    Returns:
        G.

    Reference:
        Our derivation.
    """
    return sp.simplify(sp.diff(local_map(), x).subs(x, 0))


@derivation(r"x'")
def round_map() -> sp.Expr:
    """Return one round: local training, then the rule's multiplier.

    Returns:
        Expression in x, M, G and omega.

    Reference:
        Our derivation.
    """
    return omega * local_map()


@derivation(r"y'")
def inverse_round_map() -> sp.Expr:
    """Return one round in `y = 1/x`: an affine map.

    Returns:
        Expression in y, M, G and omega, linear in y.

    Reference:
        Our derivation.
    """
    inverse = sp.expand(sp.simplify(1 / round_map().subs(x, 1 / y)))
    slope = sp.factor(sp.diff(inverse, y))
    return slope * y + sp.factor(inverse.subs(y, 0))


@derivation(r"x_t")
def amplitude_after() -> sp.Expr:
    """Return amplitude after t rounds: the affine recurrence in 1/x solved, for `omega G` not 1.

    Returns:
        Expression in `x_0`, M, G, omega and t.

    Reference:
        Our derivation.
    """
    return 1 / _solve_inverse(inverse_round_map())


@derivation(r"x_t\ (\omega G = 1)")
def critical_amplitude() -> sp.Expr:
    """Return the amplitude after t rounds at the threshold.

    The recurrence in 1/x adds a constant.

    Returns:
        Expression in `x_0`, M, G and t.

    Reference:
        Our derivation.
    """
    return sp.factor(1 / _solve_inverse(sp.expand(inverse_round_map().subs(omega, 1 / G))))


def _solve_inverse(step: sp.Expr) -> sp.Expr:
    """Return `y(t)` of the recurrence `y' = step(y)` from `y(0) = 1/x_0`."""
    inverse = sp.Function("y")
    recurrence = inverse(t + 1) - step.subs(y, inverse(t))
    return sp.simplify(sp.rsolve(recurrence, inverse(t), {inverse(0): 1 / start}))


@derivation(r"\lim_{t \to \infty} t\, x_t\ (\omega G = 1)")
def critical_law() -> sp.Expr:
    """Return the `1/t` law at the threshold, which does not depend on the start.

    Returns:
        Expression in M and G.

    Reference:
        Our derivation.
    """
    return sp.factor(sp.limit(t * critical_amplitude(), t, sp.oo))


@derivation(r"\mathrm{threshold:}\ 1")
def threshold() -> sp.Expr:
    """Return the slope of the round map at zero: below 1 the direction collapses to exactly zero.

    Returns:
        `omega G`.

    Reference:
        Our derivation.
    """
    return sp.simplify(sp.diff(round_map(), x).subs(x, 0))


@derivation(r"T^*")
def critical_time() -> sp.Expr:
    """Return the local time at the threshold `omega G = 1`, below which a direction collapses.

    Returns:
        Expression in omega and M, equal to `ln(1/omega) / (2 M)`.

    Reference:
        Our derivation.
    """
    (solution,) = sp.solve(sp.Eq(threshold().subs(G, sp.exp(2 * M * T)), 1), T)
    return sp.expand_log(solution, force=True)


@derivation(r"x^*")
def floor() -> sp.Expr:
    """Return the fixed point of the round map other than zero.

    Returns:
        Expression in M, G and omega, equal to `M (omega G - 1) / (G - 1)`; positive where
        `omega G > 1`.

    Reference:
        Our derivation.
    """
    (point,) = [p for p in sp.solve(sp.Eq(round_map(), x), x, check=False) if p != 0]
    return sp.factor(point)


@derivation(r"\lim x_t\ (\omega G < 1)", r"\lim x_t\ (\omega G > 1)")
def long_run() -> Sides:
    """Return the limit of the amplitude from any start: zero below the threshold, the floor above.

    The closed form with `omega G` written as `1 + u` or `1 / (1 + u)`, `u > 0`, for t to infinity.

    Returns:
        Zero, and an expression in M, G and omega.

    Reference:
        Our derivation.
    """
    u, path = sp.Symbol("u", positive=True), amplitude_after()
    sides = [path.subs(omega, factor / G) for factor in (1 / (1 + u), 1 + u)]
    below, above = [sp.limit(sp.simplify(side), t, sp.oo) for side in sides]
    return Sides(below, sp.factor(sp.simplify(above.subs(u, omega * G - 1))))


@derivation(r"\mathrm{rate\ to\ } 0", r"\mathrm{rate\ to\ } x^*")
def approach() -> Sides:
    """Return the factor per round by which an amplitude approaches its limit.

    The limit is 0 below the threshold and the floor above. The factor is the derivative of the
    round map at its fixed points; each is below 1 on its side.

    Returns:
        Expressions in omega and G.

    Reference:
        Our derivation.
    """
    slope = sp.diff(round_map(), x)
    return Sides(sp.simplify(slope.subs(x, 0)), sp.simplify(slope.subs(x, floor())))


@derivation(r"f\ (T \to 0)", r"f\ (G \to \infty)", r"x^*\ (G \to \infty)", r"x^*\ (\omega = 1)")
def limits() -> FlowLimits:
    """Return the limits without training and with complete training, and the floor in the latter.

    Returns:
        Expressions in x, M and omega; undiluted (raFLoRA) the floor is the target itself.

    Reference:
        Our derivation.
    """
    return FlowLimits(
        sp.simplify(sp.limit(local_map(), G, 1)),
        sp.limit(local_map(), G, sp.oo),
        sp.limit(floor(), G, sp.oo),
        sp.simplify(floor().subs(omega, 1)),
    )
