"""Derivation of the typical direction: log random walk, survival, and mean versus median.

Given a carrier in every round, the energy of a direction is `x_0^2 prod_t W_t^2`: a random walk in
the logarithm with independent steps `2 log W`. All formulas: our derivation, in the setting of Wu
et al., arXiv 2602.13486, App. A.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from analysis.derivations.statement import derivation
from analysis.derivations.symbols import P0, t

TITLE = "The typical direction: a random walk in the logarithm"

ell = sp.Symbol("ell", real=True)
"""`E[log W | W > 0]`."""

v = sp.Symbol("v", positive=True)
"""`Var[log W | W > 0]`."""


@dataclass(frozen=True)
class LogEnergy:
    """Mean and variance of `log(x_t^2 / x_0^2)` given survival."""

    mean: sp.Expr
    variance: sp.Expr


@dataclass(frozen=True)
class LogNormal:
    """Mean, median and their ratio of the energy when its logarithm is normal."""

    mean: sp.Expr
    median: sp.Expr
    ratio: sp.Expr


@dataclass(frozen=True)
class Corrections:
    """Mean and typical rate over `E[W]^2`, to second order in the variation of W."""

    mean: sp.Expr
    typical: sp.Expr


@derivation(r"E[\log x_t^2/x_0^2]", r"\mathrm{Var}[\log x_t^2/x_0^2]")
def log_energy() -> LogEnergy:
    """Return the mean and variance of the log energy after t rounds, given survival.

    A round adds `2 log W`, independent of the past: `M' = M + 2 ell`, `V' = V + Var(2 log W)` with
    `Var(2 z) = E[(2 z)^2] - E[2 z]^2`; both recurrences are solved.

    Returns:
        Expressions in t, `ell = E[log W | W > 0]` and `v = Var[log W | W > 0]`.

    Reference:
        Our derivation.
    """
    total = sp.Function("M")
    step_mean, step_square = 2 * ell, 4 * (v + ell**2)
    steps = (step_mean, sp.expand(step_square - step_mean**2))
    solved = [sp.rsolve(total(t + 1) - total(t) - s, total(t), {total(0): 0}) for s in steps]
    return LogEnergy(*solved)


@derivation(r"q_{\mathrm{typical}}")
def typical_rate() -> sp.Expr:
    """Return the energy factor per round of the typical direction: `exp(2 E[log W | W > 0])`.

    The t-th root of the energy whose logarithm is the mean log energy.

    Returns:
        Expression in `ell`; a common gain g adds `log |g|` to it.

    Reference:
        Our derivation.
    """
    return sp.simplify(sp.exp(sp.expand(log_energy().mean / t)))


@derivation(r"P(\mathrm{alive\ at\ } t)")
def survival() -> sp.Expr:
    """Return the probability that a direction had a contributor in each of t rounds.

    Rounds are independent: `s(t + 1) = (1 - P0) s(t)`, solved.

    Returns:
        Expression in P0 and t.

    Reference:
        Our derivation.
    """
    alive = sp.Function("s")
    return sp.rsolve(alive(t + 1) - (1 - P0) * alive(t), alive(t), {alive(0): 1})


@derivation(r"E[t_{\mathrm{extinct}}]")
def mean_lifetime() -> sp.Expr:
    """Return the expected round of extinction: the sum of the survival probabilities.

    Returns:
        Expression in P0; infinite at P0 = 0.

    Reference:
        Our derivation.
    """
    alive = sp.Symbol("s", positive=True)
    total = sp.Sum(alive**t, (t, 0, sp.oo)).doit()
    # 0 < s = 1 - P0 < 1: the branch on which the geometric series converges
    return sp.simplify(total.args[0][0].subs(alive, 1 - P0))


@derivation(r"E[x_t^2]/x_0^2", r"\mathrm{median}[x_t^2]/x_0^2", r"\mathrm{mean}/\mathrm{median}")
def log_normal() -> LogNormal:
    """Return the mean and median of the energy if its logarithm is normal, as after many rounds.

    The mean is the Gaussian integral of `exp(z)`, whose exponent sympy completes to a square. The
    median is the exponential of the median of z, which is its mean.

    Returns:
        Expressions in t, ell and v.

    Reference:
        Our derivation.
    """
    z, mean = sp.symbols("z mean", real=True)
    spread = sp.Symbol("sigma", positive=True)
    exponent = sp.expand(z - (z - mean) ** 2 / (2 * spread**2))
    (peak,) = sp.solve(sp.diff(exponent, z), z)
    shifted = sp.expand(exponent.subs(z, z + peak))
    height = shifted.subs(z, 0)
    # the rest is a centered Gaussian of the same width
    kernel = sp.exp(sp.simplify(shifted - height))
    norm = sp.integrate(kernel, (z, -sp.oo, sp.oo)) / (spread * sp.sqrt(2 * sp.pi))
    walk = log_energy()
    values = {mean: walk.mean, spread: sp.sqrt(walk.variance)}
    average = sp.exp(sp.factor(sp.simplify(height * norm).subs(values)))
    median = sp.exp(walk.mean)
    return LogNormal(average, median, sp.simplify(average / median))


@derivation(r"\log E[W^2] - 2 E[\log W]")
def jensen_gap() -> sp.Expr:
    """Return the log of the mean rate over the typical rate, for a share that is `a` or `b`.

    Zero at `p = 0` and `p = 1`, and concave in p (see `jensen_curvature`): never negative, so the
    typical direction falls at least as fast as the mean energy.

    Returns:
        Expression in a, b and p, the probability of b.

    Reference:
        Our derivation.
    """
    a, b, p = _two_points()
    mean = (1 - p) * a**2 + p * b**2
    return sp.log(mean) - 2 * ((1 - p) * sp.log(a) + p * sp.log(b))


@derivation(r"\partial^2_p (\log E[W^2] - 2 E[\log W])")
def jensen_curvature() -> sp.Expr:
    """Return the second derivative of `jensen_gap` in p: minus a square over a square.

    Returns:
        Expression in a, b and p.

    Reference:
        Our derivation.
    """
    return sp.factor(sp.diff(jensen_gap(), _two_points()[2], 2))


@derivation(r"\log E[W^2] - 2 E[\log W]")
def small_fluctuation_gap() -> sp.Expr:
    """Return the leading order of the gap for small variation of W: twice its squared variation.

    `W = E[W] (1 + e z)` with `E[z] = 0`, `E[z^2] = 1`, expanded to second order in e.

    Returns:
        Expression in e, the coefficient of variation.

    Reference:
        Our derivation.
    """
    e, z = sp.symbols("e z", positive=True)
    typical = sp.series(sp.log(1 + e * z), e, 0, 3).removeO()
    typical = _standardized(sp.expand(typical), z)
    mean = sp.log(_standardized(sp.expand((1 + e * z) ** 2), z))
    return sp.series(mean - 2 * typical, e, 0, 3).removeO()


@derivation(r"E[W^2] / E[W]^2", r"e^{2 E[\log W]} / E[W]^2")
def opposite_corrections() -> Corrections:
    """Return effects of the variation of W on the mean rate and on the typical rate: opposite ones.

    With fewer clients per round W varies more (see `cohorts.relative_variance`): the mean energy
    falls more slowly and the typical energy faster, by the same amount in leading order.

    Returns:
        Expressions in e, the coefficient of variation of W.

    Reference:
        Our derivation, for the question in the review of Wu et al., arXiv 2602.13486.
    """
    e, z = sp.symbols("e z", positive=True)
    log_share = sp.series(sp.log(1 + e * z), e, 0, 3).removeO()
    typical = sp.exp(2 * _standardized(sp.expand(log_share), z))
    mean = _standardized(sp.expand((1 + e * z) ** 2), z)
    return Corrections(mean, sp.series(typical, e, 0, 3).removeO())


def _standardized(expression: sp.Expr, z: sp.Symbol) -> sp.Expr:
    """Return the expectation of a quadratic in z, of mean 0 and variance 1."""
    return sum(expression.coeff(z, power) * moment for power, moment in enumerate((1, 0, 1)))


def _two_points() -> tuple[sp.Symbol, sp.Symbol, sp.Symbol]:
    return tuple(sp.symbols("a b p", positive=True))
