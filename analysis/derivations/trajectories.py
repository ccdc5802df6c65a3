"""Derivation of both moments of a direction for every t, including degenerate cases.

`(E[x^2], E[x], 1)` is multiplied by one matrix per round, whose powers follow from its
eigenvectors. If two of its eigenvalues q', the gain and 1 coincide, the formula is 0/0 and its
limit is taken. Setting: Wu et al., arXiv 2602.13486, App. B; the closed forms: our derivation.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from analysis.derivations import floors
from analysis.derivations.statement import derivation
from analysis.derivations.symbols import S1, t, x1, x1_start, x2_start

TITLE = "Both moments after any number of rounds"

gain, shift, cross = sp.symbols("alpha beta kappa", real=True)
"""`E[x'] = alpha E[x] + beta`, and the factor kappa of `E[x]` in `E[x'^2]`."""

rate, noise = sp.symbols("q delta^2", nonnegative=True)
"""Factor q' of `E[x^2]` in `E[x'^2]`, and its constant part `delta^2`."""


@dataclass(frozen=True)
class Moments:
    """`E[x_t]` and `E[x_t^2]`."""

    mean: sp.Expr
    energy: sp.Expr


@dataclass(frozen=True)
class Coefficients:
    """One round as an affine map of `(E[x], E[x^2])`."""

    gain: sp.Expr
    shift: sp.Expr
    rate: sp.Expr
    cross: sp.Expr
    noise: sp.Expr


@dataclass(frozen=True)
class Degenerate:
    """`E[x_t^2]` if eigenvalues of the round coincide."""

    unit_rate: sp.Expr
    unit_gain: sp.Expr
    rate_is_gain: sp.Expr
    all_one: sp.Expr


@derivation(r"\alpha", r"\beta", r"q'", r"\kappa", r"\delta^2")
def coefficients() -> Coefficients:
    """Return the coefficients of the affine map, from the two recursions.

    Returns:
        Expressions in g, c, nu, tau, S1, S2 and Q.

    Reference:
        Wu et al., arXiv 2602.13486, App. B; our derivation.
    """
    mean = sp.Poly(floors.mean_recursion(), x1)
    values = (mean.coeff_monomial(x1), mean.coeff_monomial(1))
    return Coefficients(*values, floors.rate(), floors.cross(), floors.noise())


def round_matrix() -> sp.ImmutableMatrix:
    """Return the matrix that takes `(E[x^2], E[x], 1)` to the next round."""
    return sp.ImmutableMatrix([[rate, cross, noise], [0, gain, shift], [0, 0, 1]])


@derivation(r"E[x_t]", r"E[x_t^2]")
def moments_after() -> Moments:
    """Return the mean and energy after t rounds, from the powers of the round's matrix.

    Returns:
        Expressions in the coefficients, `x1_start`, `x2_start` and t, for `q'`, `alpha` and 1 all
        different.

    Reference:
        Our derivation.
    """
    vectors, values = round_matrix().diagonalize()
    powers = sp.diag(*[values[i, i] ** t for i in range(3)])
    start = sp.Matrix([x2_start, x1_start, 1])
    after = vectors * powers * vectors.inv() * start
    energy, mean = sp.factor(after[0]), sp.factor(after[1])
    return Moments(mean, energy)


@derivation(
    r"E[x_t^2]_{q' = 1}",
    r"E[x_t^2]_{\alpha = 1}",
    r"E[x_t^2]_{q' = \alpha}",
    r"E[x_t^2]_{q' = \alpha = 1}",
)
def degenerate_energy() -> Degenerate:
    """Return the energy after t rounds if q', the gain and 1 are not all different, as limits.

    Returns:
        Expressions in the remaining coefficients, `x1_start`, `x2_start` and t.

    Reference:
        Our derivation.
    """
    energy = moments_after().energy
    unit_gain = sp.limit(energy, gain, 1)
    cases = (
        sp.limit(energy, rate, 1),
        unit_gain,
        sp.limit(energy, rate, gain),
        sp.limit(unit_gain, rate, 1),
    )
    return Degenerate(*[sp.simplify(case) for case in cases])


@derivation(r"E[x_t]_{\alpha = 1}")
def degenerate_mean() -> sp.Expr:
    """Return the mean amplitude after t rounds if the mean gain is 1: drift accumulates.

    Returns:
        Expression in beta, `x1_start` and t.

    Reference:
        Our derivation.
    """
    return sp.expand(sp.limit(moments_after().mean, gain, 1))


@derivation(r"\lim_{t \to \infty} E[x_t^2]")
def limit_energy() -> sp.Expr:
    """Return the limit of the energy for `q' < 1` and `|alpha| < 1`: the part without powers.

    Returns:
        Expression in the coefficients; the floor with drift.

    Reference:
        Our derivation.
    """
    energy = sp.expand(moments_after().energy)
    # q^t and alpha^t vanish, whatever their factors
    return sp.factor(energy.subs({rate**t: 0, gain**t: 0}))


@derivation(r"\mathrm{Var}[x_\infty]_{\nu = 0}")
def deterministic_share_variance() -> sp.Expr:
    """Return the stationary variance of the amplitude for common gains and a deterministic share.

    `E[x^2] - E[x]^2` at rest with `nu = 0` and `E[(sum w)^2] = E[sum w]^2`: drift noise alone.

    Returns:
        Expression in g, tau, S1 and Q.

    Reference:
        Our derivation.
    """
    from_drift = floors.floor_with_drift() - floors.mean_floor() ** 2
    still = from_drift.subs({floors.nu: 0, floors.S2: S1**2})
    return sp.factor(sp.simplify(still))


def as_recursion(expression: sp.Expr) -> sp.Expr:
    """Return an expression with coefficients in terms of g, c, nu, tau, S1, S2 and Q."""
    values = coefficients()
    symbols = (gain, shift, rate, cross, noise)
    written = (values.gain, values.shift, values.rate, values.cross, values.noise)
    return expression.subs(dict(zip(symbols, written, strict=True)), simultaneous=True)
