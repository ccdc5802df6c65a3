"""Derivation of the drift law: moments, floors and growth, and the drift that Adam causes.

A round is `x' = mu (g x + c)`, mu the rule's multiplier of the round's cohort; with a schedule s_t,
`x' = mu (x + s_t ((g - 1) x + c))`. The second part derives c from the optimizer: two balanced
factors whose columns have norm `sqrt(x)`, moved by Adam along a path that forgets its direction.
All formulas: our derivation, in the setting of Wu et al., arXiv 2602.13486, App. B.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from analysis.derivations import base_rules, floors
from analysis.derivations.statement import derivation
from analysis.derivations.symbols import P0, S1, S2, Q, W, c, g, t, x, x1, x1_start, x2

TITLE = "The drift law of Adam"

V = sp.Symbol("V", nonnegative=True)
"""Variance of an amplitude over runs."""

T = sp.Symbol("T", positive=True, integer=True)
"""Number of rounds."""

epsilon = sp.Symbol("epsilon", positive=True)
"""Share of the floor within which an amplitude has settled."""

L, ell = sp.symbols("L ell", positive=True)
"""Length of the path of a column in one round, and length over which it forgets its direction."""

s = sp.Symbol("s", positive=True)
"""Their ratio `L / ell`."""

q = sp.Symbol("q", positive=True)
"""Factor `sqrt(mu g)` of a round on the columns of both factors."""

k = sp.Symbol("k", positive=True, integer=True)
"""Rounds between two movements."""

eta, lamda, G = sp.symbols("eta lambda G", positive=True)
"""Learning rate, weight decay, and size of a gradient."""

n = sp.Symbol("n", positive=True, integer=True)
"""Local steps of a round."""

cosine = sp.Symbol("cos_alpha", real=True)
"""Cosine of the angle between a column and its movement in one round."""


# Moments


@derivation(r"E[x_t]")
def mean_after() -> sp.Expr:
    """Return the mean amplitude after t rounds, by solving `E[x'] = (g E[x] + c) E[mu]`.

    Returns:
        Expression in g, c, `S1 = E[mu]`, `x1_start` and t.

    Reference:
        Our derivation.
    """
    amplitude = sp.Function("x")
    recurrence = amplitude(t + 1) - floors.mean_recursion().subs(x1, amplitude(t))
    solution = sp.rsolve(recurrence, amplitude(t), {amplitude(0): x1_start})
    rest = floors.mean_floor()
    left = (g * S1) ** t * (x1_start - rest)
    assert sp.simplify(solution - rest - left) == 0, "a fixed point and one power"
    return rest + left


@derivation(r"\mathrm{Var}[x']")
def variance_recursion() -> sp.Expr:
    """Return the variance after a round, `E[x'^2] - E[x']^2` at `E[x^2] = V + E[x]^2`.

    Returns:
        Expression in V, x1, g, nu, c, tau, S1, S2 and Q; without the difference of large numbers.

    Reference:
        Our derivation.
    """
    second = floors.second_moment_recursion().subs(x2, V + x1**2)
    whole = sp.expand(second - floors.mean_recursion() ** 2)
    moved = (S2 - S1**2) * (g * x1 + c) ** 2
    noise = Q * (floors.nu**2 * x1**2 + floors.tau**2)
    written = floors.rate() * V + moved + noise
    assert sp.expand(whole - written) == 0, "rate, cohort and noise"
    return written


@derivation(r"\mathrm{Var}[x']_{\mathrm{carry}}")
def carry_variance() -> sp.Expr:
    """Return the variance after a round that keeps x with probability P0, without client noise.

    Returns:
        Expression in V, x1, g, c and P0: `g - 1` takes the place of g in the cohort's part.

    Reference:
        Our derivation.
    """
    value = sp.Symbol("x")
    outcomes = ((1 - P0, g * value + c), (P0, value))

    def mean(power: int) -> sp.Expr:
        total = sp.expand(sum(chance * new**power for chance, new in outcomes))
        return sp.expand(total.subs(value**2, V + x1**2).subs(value, x1))

    rate = P0 + (1 - P0) * g**2
    written = rate * V + P0 * (1 - P0) * ((g - 1) * x1 + c) ** 2
    assert sp.expand(mean(2) - mean(1) ** 2 - written) == 0, "rate and cohort"
    return written


@derivation(r"\mathrm{Var}[x']_{\mathrm{FLoRA}}")
def flora_variance() -> sp.Expr:
    """Return the variance after a round of FLoRA, whose base keeps the amplitude.

    Returns:
        Expression in V, x1, g, nu, c, tau, S1, S2 and Q.

    Reference:
        Our derivation.
    """
    step = base_rules.flora_moments()
    mean = step.gain * x1 + step.shift
    whole = step.rate * (V + x1**2) + step.cross * x1 + step.noise - mean**2
    noise = Q * (floors.nu**2 * x1**2 + floors.tau**2)
    written = step.rate * V + (S2 - S1**2) * ((g - 1) * x1 + c) ** 2 + noise
    assert sp.expand(whole - written) == 0, "rate, cohort and noise"
    return written


@derivation(r"\mathrm{Var}[x_\infty]")
def variance_floor() -> sp.Expr:
    """Return the fixed point of the variance, at the fixed point of the mean.

    Returns:
        Expression in g, nu, c, tau, S1, S2 and Q; reached where q' < 1.

    Reference:
        Our derivation.
    """
    at_rest = variance_recursion().subs(x1, floors.mean_floor())
    (solution,) = sp.solve(sp.Eq(V, at_rest), V)
    return sp.factor(solution)


# Floors, growth and settling time


@derivation(r"x_\infty")
def full_floor() -> sp.Expr:
    """Return the floor of rules that average products, with all clients: `W c / (1 - g W)`.

    Returns:
        Expression in g, c and W.

    Reference:
        Our derivation.
    """
    return sp.factor(floors.mean_floor().subs(S1, W))


@derivation(r"x_{\infty,\, \mathrm{zero\ padding}}")
def zero_pad_floor() -> sp.Expr:
    """Return the floor of zero padding, which averages both factors: `W^2 c / (1 - g W^2)`.

    Returns:
        Expression in g, c and W.

    Reference:
        Our derivation.
    """
    return sp.factor(floors.mean_floor().subs(S1, W**2))


@derivation(r"x_{\infty,\, \mathrm{raFLoRA}}")
def raflora_saturation() -> sp.Expr:
    """Return the amplitude at which weight decay stops raFLoRA: `c / (1 - g)`.

    Returns:
        Expression in g and c.

    Reference:
        Our derivation.
    """
    return sp.factor(floors.mean_floor().subs(S1, 1))


@dataclass(frozen=True)
class Growth:
    """Mean and variance of an amplitude that grows."""

    mean: sp.Expr
    variance: sp.Expr


@derivation(r"E[x_t]_{\mathrm{carry}}", r"\mathrm{Var}[x_t]_{\mathrm{carry}}")
def raflora_growth() -> Growth:
    """Return raFLoRA's growth at `g = 1`, with `carry`: linear, like the variance.

    Returns:
        Expressions in c, P0, `x1_start` and t.

    Reference:
        Our derivation.
    """
    amplitude, variance = sp.Function("x"), sp.Function("V")
    mean = sp.rsolve(
        amplitude(t + 1) - amplitude(t) - (1 - P0) * c, amplitude(t), {amplitude(0): x1_start}
    )
    more = sp.expand(carry_variance().subs(g, 1)) - V
    spread = sp.rsolve(variance(t + 1) - variance(t) - more, variance(t), {variance(0): 0})
    return Growth(sp.expand(mean), sp.factor(spread))


@derivation(r"(x' - x)_{\mathrm{FLoRA}}")
def flora_growth() -> sp.Expr:
    """Return FLoRA's mean growth per round at `g = 1`.

    Returns:
        Expression in c and S1.

    Reference:
        Our derivation.
    """
    step = base_rules.flora_moments()
    return sp.factor(((step.gain - 1) * x1 + step.shift).subs(g, 1))


@derivation(r"((x + z)' - (x + z))_{\mathrm{FedEx}}")
def fedex_growth() -> sp.Expr:
    """Return FedEx's growth per late round at `g = 1`: its adapter settles, its base grows.

    The adapter follows `x' = W^2 (x + c)`, and the base gains `(W - W^2) (x + c)`.

    Returns:
        Expression in c and W.

    Reference:
        Our derivation; rule: Singhal et al. 2024, arXiv 2410.09432.
    """
    value = sp.Symbol("x")
    (adapter,) = sp.solve(sp.Eq(value, W**2 * (value + c)), value)
    return sp.factor((W - W**2) * (adapter + c))


@derivation(r"t_\epsilon")
def settling_rounds() -> sp.Expr:
    """Return the rounds until a mean that rises from zero is within a share of its floor.

    Returns:
        Expression in epsilon, g and S1, `0 < g S1 < 1`.

    Reference:
        Our derivation.
    """
    factor, rounds = sp.symbols("a t", positive=True)
    rest = floors.mean_floor()
    apart = (rest - mean_after().subs(x1_start, 0)) / rest
    assert sp.simplify(apart - (g * S1) ** t) == 0, "a power"
    (solution,) = sp.solve(sp.Eq(rounds * sp.log(factor), sp.log(epsilon)), rounds)
    return solution.subs(factor, g * S1)


# Schedules of the learning rate


@dataclass(frozen=True)
class ScheduledSums:
    """Sums of the learning rates of T rounds, relative to the first."""

    linear: sp.Expr
    cosine: sp.Expr


@derivation(r"\sum_t s_t^{\mathrm{linear}}", r"\sum_t s_t^{\mathrm{cosine}}")
def scheduled_sums() -> ScheduledSums:
    """Return the sums of both schedules: with `g = 1` and no dilution x grows by c times the sum.

    `1 - t/T` and `(1 + cos(pi t/T)) / 2`, t = 0..T-1. The cosines are the real part of a geometric
    sum.

    Returns:
        Expressions in T.

    Reference:
        Our derivation.
    """
    linear = sp.summation(1 - t / T, (t, 0, T - 1))
    ratio = sp.exp(sp.I * sp.pi / T)
    waves = sp.re(sp.expand_complex((1 - sp.exp(sp.I * sp.pi)) / (1 - ratio)))
    return ScheduledSums(sp.factor(linear), sp.factor(sp.simplify(T + waves) / 2))


@derivation(r"x_T^{\mathrm{linear}}")
def linear_schedule() -> sp.Expr:
    """Return the amplitude after T rounds of a linear schedule with dilution W and `g = 1`.

    By solving `x(t + 1) = W (x(t) + c (1 - t/T))`.

    Returns:
        Expression in c, W, `x1_start` and T.

    Reference:
        Our derivation.
    """
    amplitude = sp.Function("x")
    recurrence = amplitude(t + 1) - W * amplitude(t) - W * c * (1 - t / T)
    solution = sp.rsolve(recurrence, amplitude(t), {amplitude(0): x1_start})
    return W**T * x1_start + sp.factor(sp.simplify(solution.subs(t, T) - W**T * x1_start))


# The drift that an optimizer causes


@derivation(r"\hat m_n / \sqrt{\hat v_n}")
def adam_step() -> sp.Expr:
    """Return Adam's step over the learning rate for a constant gradient: its sign, in every step.

    Both moments follow `m(n + 1) = beta m(n) + (1 - beta) G`, from zero and with bias correction.
    Learning rate and number of steps thus enter by their product.

    Returns:
        `G / |G|`.

    Reference:
        Kingma and Ba 2015, arXiv 1412.6980, Algorithm 1; our derivation.
    """
    beta, gradient = sp.Symbol("beta", positive=True), sp.Symbol("G", real=True, nonzero=True)
    moment = sp.Function("m")
    recurrence = moment(n + 1) - beta * moment(n) - (1 - beta) * x
    solution = sp.rsolve(recurrence, moment(n), {moment(0): 0})
    corrected = sp.simplify(solution / (1 - beta**n))
    return corrected.subs(x, gradient) / sp.sqrt(corrected.subs(x, gradient**2))


@derivation(r"c(x)")
def drift_of_step() -> sp.Expr:
    """Return the drift of two balanced columns that both move by L at an angle to themselves.

    The singular value of `(b + Delta)(a + Delta')^T` is the product of the norms: linear in the
    step if it is short compared with `sqrt(x)`, quadratic if it is long.

    Returns:
        Expression in x, L and the cosine.

    Reference:
        Our derivation.
    """
    column = x + 2 * L * cosine * sp.sqrt(x) + L**2
    return sp.expand(sp.sqrt(column) * sp.sqrt(column) - x)


@derivation(r"|\Delta|^2")
def path_square() -> sp.Expr:
    """Return the mean squared movement of a column in a round along a path that bends.

    The path has length L, and directions a length u apart have correlation `exp(-u / ell)`.

    Returns:
        Expression in L and ell.

    Reference:
        Kratky and Porod 1949 (the chain); its use here: our derivation.
    """
    u, v = sp.symbols("u v", positive=True)
    inner = sp.integrate(sp.exp(-(u - v) / ell), (v, 0, u))
    return sp.factor(sp.simplify(2 * sp.integrate(sp.expand(inner), (u, 0, L))))


@derivation(r"\Delta_t \cdot \Delta_{t - k}")
def path_overlap() -> sp.Expr:
    """Return the mean inner product of a column's movements k rounds apart.

    Returns:
        Expression in L, ell and k.

    Reference:
        Our derivation.
    """
    u, v = sp.symbols("u v", positive=True)
    inner = sp.integrate(sp.exp(-(k * L + u - v) / ell), (v, 0, L))
    return sp.factor(sp.simplify(sp.integrate(sp.expand(inner), (u, 0, L))))


@derivation(r"c")
def adam_drift() -> sp.Expr:
    """Return the drift of a column that is the sum of its earlier movements.

    A round shrinks columns by `q = sqrt(mu g)`. The old column holds the movement of k rounds ago
    shrunk k times, weight decay of this round included, so that
    `c = |Delta|^2 + 2 sum_k q^k Delta_t . Delta_{t-k}`. The amplitude does not occur.

    Returns:
        Expression in ell, s and q.

    Reference:
        Our derivation.
    """
    own = path_square().subs(L, s * ell)
    first = path_overlap().subs(L, s * ell).subs(k, 1)
    next_one = path_overlap().subs(L, s * ell).subs(k, 2)
    ratio = sp.simplify(q * next_one / first)
    assert sp.simplify(ratio - q * sp.exp(-s)) == 0, "movements are forgotten geometrically"
    overlap = q * first / (1 - q * sp.exp(-s))
    e = sp.exp(-s)
    written = 2 * ell**2 * (s - 1 + e + q * (1 - e) ** 2 / (1 - q * e))
    assert sp.simplify(own + 2 * overlap - written) == 0, "a geometric sum"
    return written


@dataclass(frozen=True)
class DriftLimits:
    """The drift without dilution, and that of short and of long paths."""

    undiluted: sp.Expr
    short: sp.Expr
    long: sp.Expr


@derivation(r"c_{q = 1}", r"c_{L \ll \ell}", r"c_{L \gg \ell}")
def drift_limits() -> DriftLimits:
    """Return the drift's limits: linear in the path without dilution, and for long paths.

    Returns:
        Expressions in L, ell and q.

    Reference:
        Our derivation.
    """
    drift = adam_drift()
    undiluted = sp.simplify(drift.subs(q, 1)).subs(s, L / ell)
    zero, slope, curve = (sp.diff(drift, s, order).subs(s, 0) for order in range(3))
    assert sp.simplify(zero) == sp.simplify(slope) == 0, "short paths start with the square"
    short = sp.factor(curve) / 2 * (L / ell) ** 2
    long = sp.expand(drift.subs(sp.exp(-s), 0)).coeff(s) * L / ell
    return DriftLimits(undiluted, short, long)


@derivation(r"p = \partial \ln c / \partial \ln L")
def drift_exponent() -> sp.Expr:
    """Return the power of the path, and so of learning rate times steps, with which c grows.

    Returns:
        Expression in s and q: 1 at `q = 1`, otherwise from 2 (s to 0) to 1 (s to infinity).

    Reference:
        Our derivation.
    """
    drift = adam_drift() / (2 * ell**2)
    return sp.diff(drift, s) * s / drift


@derivation(r"g")
def adamw_gain() -> sp.Expr:
    """Return the factor of n steps of decoupled weight decay on the product of both factors.

    Returns:
        Expression in eta, lambda and n.

    Reference:
        Loshchilov and Hutter 2019, arXiv 1711.05101, Algorithm 2; our derivation.
    """
    factor = sp.Function("b")
    recurrence = factor(n + 1) - (1 - eta * lamda) * factor(n)
    column = sp.rsolve(recurrence, factor(n), {factor(0): sp.sqrt(x)})
    return sp.powsimp(sp.expand(column**2 / x, power_base=True), force=True)


@derivation(r"c_{\mathrm{SGD}}(x)")
def sgd_drift() -> sp.Expr:
    """Return what n steps of SGD add to an amplitude under a constant gradient G of the product.

    A column moves by `eta G` times the other one, which has the same norm: a gain, and no drift.

    Returns:
        Expression in eta, G, n and x, which vanishes with x.

    Reference:
        Our derivation.
    """
    factor = sp.Function("b")
    recurrence = factor(n + 1) - factor(n) - eta * G * factor(n)
    column = sp.rsolve(recurrence, factor(n), {factor(0): sp.sqrt(x)})
    return sp.factor(sp.powsimp(sp.expand(column**2, power_base=True), force=True) - x)
