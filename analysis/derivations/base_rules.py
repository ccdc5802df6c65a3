"""Derivation of rules that merge into the base: FLoRA's moments, and FedEx's two states.

FedEx averages factors into the adapter x and puts the residual into the base z, so a direction has
two states per round. Rules: Wang et al. 2024, arXiv 2409.05976, and Singhal et al. 2024, arXiv
2410.09432; all maps: our derivation, in the setting of Wu et al., arXiv 2602.13486, App. B.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import sympy as sp

from analysis.derivations.statement import derivation
from analysis.derivations.symbols import S1, S2, Q, W, c, g, nu, t, tau

TITLE = "Rules that merge into the base"

x, z = sp.symbols("x z", real=True)
"""Amplitude of a direction in the adapter and in the base."""

a, b = sp.symbols("a b", real=True)
"""A common client gain and drift."""


@dataclass(frozen=True)
class SymbolicMoments:
    """One round's affine map of `(E[x], E[x^2])`."""

    gain: sp.Expr
    shift: sp.Expr
    rate: sp.Expr
    cross: sp.Expr
    noise: sp.Expr


@derivation(r"\alpha", r"\beta", r"q'", r"\kappa", r"\delta^2")
def flora_moments(num_clients: int = 2) -> SymbolicMoments:
    """Return FLoRA's moment map: the base keeps x and gains `sum_k w_k ((a_k - 1) x + b_k)`.

    Squared for explicit clients with independent gains and drifts; sums of weights are expressed by
    `S1 = E[sum w]`, `S2 = E[(sum w)^2]` and `Q = E[sum w^2]`.

    Args:
        num_clients: number of explicit clients, at least 2; the result does not depend on it.

    Returns:
        Expressions in g, c, nu, tau, S1, S2 and Q.

    Reference:
        Our derivation.
    """
    weights = sp.symbols(f"w_0:{num_clients}")
    gains, drifts = sp.symbols(f"a_0:{num_clients}"), sp.symbols(f"b_0:{num_clients}")
    state = sp.Symbol("x")
    sums = [w * ((u - 1) * state + v) for w, u, v in zip(weights, gains, drifts, strict=True)]
    mean = {**dict.fromkeys(gains, g), **dict.fromkeys(drifts, c)}
    square = {u**2: g**2 + nu**2 for u in gains} | {v**2: c**2 + tau**2 for v in drifts}
    after = state + sp.Add(*sums)
    first = _gather(sp.expand(after).subs(mean), weights)
    second = _gather(sp.expand(after**2).subs(square).subs(mean), weights)
    linear, quadratic = sp.Poly(first, state), sp.Poly(second, state)
    return SymbolicMoments(
        linear.coeff_monomial(state),
        linear.coeff_monomial(1),
        *[sp.expand(quadratic.coeff_monomial(state**j)) for j in (2, 1, 0)],
    )


def _gather(expression: sp.Expr, weights: tuple[sp.Symbol, ...]) -> sp.Expr:
    """Return the expectation over weights of a symmetric quadratic in them, by S1, S2 and Q."""
    poly = sp.Poly(sp.expand(expression), *weights)
    constant = poly.coeff_monomial(1)
    linear = poly.coeff_monomial(weights[0])
    own = poly.coeff_monomial(weights[0] ** 2)
    pair = poly.coeff_monomial(weights[0] * weights[1]) / 2
    symmetric = constant + linear * sum(weights) + own * sum(w**2 for w in weights)
    symmetric += 2 * pair * sum(v * w for v, w in combinations(weights, 2))
    assert sp.expand(expression - symmetric) == 0, "clients are exchangeable"
    return sp.expand(constant + linear * S1 + own * Q + pair * (S2 - Q))


@derivation(r"(x, z) \mapsto")
def fedex_map() -> sp.ImmutableMatrix:
    """Return FedEx's round as a matrix on (x, z), for drift of mean zero.

    A contributor trains the total `x + z` to `a (x + z) + b` and returns the adapter
    `y = a (x + z) + b - z`; averaged factors hold `W^2 y`, the residual `(W - W^2) y` joins z.

    Returns:
        Matrix in a and W.

    Reference:
        Singhal et al. 2024, arXiv 2410.09432, Sec. 3; our derivation.
    """
    return sp.ImmutableMatrix(_fedex_round().subs(b, 0).jacobian([x, z]))


def _fedex_round() -> sp.Matrix:
    returned = a * (x + z) + b - z
    return sp.Matrix([W**2 * returned, z + (W - W**2) * returned])


@derivation(r"(x + z)' / x\ (z = 0)")
def fedex_total() -> sp.Expr:
    """Return the total after FedEx's first round with perfect gain and an empty base: as FedAvg.

    Returns:
        W.

    Reference:
        Our derivation.
    """
    after = fedex_map().subs(a, 1) * sp.Matrix([x, 0])
    return sp.simplify(sum(after) / x)


@derivation(r"(x + z)_t / x_0\ (a = 1)")
def fedex_total_after() -> sp.Expr:
    """Return the total after t rounds of FedEx with perfect gain, full participation, empty base.

    The t-th power of the round's matrix, by its eigenvectors.

    Returns:
        Expression in W and t.

    Reference:
        Our derivation.
    """
    vectors, values = fedex_map().subs(a, 1).diagonalize()
    powers = sp.diag(*[values[i, i] ** t for i in range(2)])
    after = vectors * powers * vectors.inv() * sp.Matrix([1, 0])
    return sp.factor(sp.powdenest(sum(after), force=True))


@derivation(r"(x + z)_\infty / x_0\ (a = 1)")
def fedex_total_limit() -> sp.Expr:
    """Return the limit of FedEx's total with perfect gain: a loss, but no collapse.

    Returns:
        `W / (1 + W)`.

    Reference:
        Our derivation.
    """
    after = sp.expand(fedex_total_after())
    powers = [p for p in after.atoms(sp.Pow) if t in p.free_symbols]
    # W < 1: every power of W that grows with t vanishes
    return sp.factor(sp.simplify(after.subs(dict.fromkeys(powers, 0))))


@derivation(r"(x^2, x z, z^2) \mapsto")
def fedex_energy_map() -> sp.ImmutableMatrix:
    """Return FedEx's round on `(x^2, x z, z^2)`; its spectral radius is the energy rate.

    Random cohorts: the expectation replaces powers of W by the moments `E[W^j]`, j = 1..4; W is
    independent of the state.

    Returns:
        Matrix in a and `W_1, ..., W_4`, where `W_j = E[W^j]`.

    Reference:
        Our derivation.
    """
    moments = sp.symbols("W_1:5", positive=True)
    after = fedex_map() * sp.Matrix([x, z])
    squares = [after[0] ** 2, after[0] * after[1], after[1] ** 2]
    polys = [sp.Poly(sp.expand(value), x, z) for value in squares]
    rows = [[p.coeff_monomial(mono) for mono in (x**2, x * z, z**2)] for p in polys]
    expected = {W**j: moment for j, moment in enumerate(moments, start=1)}
    matrix = sp.Matrix(rows).applyfunc(sp.expand)
    return sp.ImmutableMatrix(matrix.applyfunc(lambda entry: _expect_share(entry, expected)))


def _expect_share(entry: sp.Expr, moments: dict[sp.Expr, sp.Expr]) -> sp.Expr:
    """Replace powers of W by moments, monomial by monomial."""
    terms = sp.Poly(entry, W).terms()
    return sp.Add(*[value * (moments[W**power] if power else 1) for (power,), value in terms])


@derivation(r"x_\infty", r"z_\infty")
def fedex_rest_point() -> FedExRest:
    """Return the fixed point of FedEx with a gain below 1 and drift, under full participation.

    Returns:
        Expressions in a, b and W: the adapter is empty and the base holds `b / (1 - a)`.

    Reference:
        Our derivation.
    """
    rest = sp.solve(list(_fedex_round() - sp.Matrix([x, z])), [x, z], dict=True)[0]
    return FedExRest(sp.factor(rest[x]), sp.factor(rest[z]))


@dataclass(frozen=True)
class FedExRest:
    """Adapter and base at the fixed point."""

    adapter: sp.Expr
    base: sp.Expr
