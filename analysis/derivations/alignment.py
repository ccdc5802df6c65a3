"""Derivation of the limits of the theory: the effect of rotating a client's basis.

The theory assumes that clients return the directions that they received. Here a client's singular
vectors are rotated by an angle theta, and its update is measured in the server's basis. Assumption:
Wu et al., arXiv 2602.13486, App. A; all formulas: our derivation.
"""

from __future__ import annotations

import sympy as sp

from analysis.derivations.statement import derivation
from analysis.derivations.symbols import x

TITLE = "Where the theory stops: turned directions"

theta = sp.Symbol("theta", real=True)
"""Angle by which both singular vectors of a client's direction are rotated."""

epsilon = sp.Symbol("epsilon", positive=True)
"""Tolerated relative error of an energy factor."""

x_other = sp.Symbol("x_j", positive=True)
"""Amplitude of the direction that is rotated into the first one."""


def _rotation() -> sp.Matrix:
    return sp.Matrix([[sp.cos(theta), -sp.sin(theta)], [sp.sin(theta), sp.cos(theta)]])


def _turned(second: sp.Expr) -> sp.Matrix:
    """Return an update that is diagonal in the rotated basis, written in the server's basis.

    Its amplitudes are x and `second`.
    """
    turn = _rotation()
    return turn * sp.diag(x, second) * turn.T


@derivation(r"s / \sigma")
def gain() -> sp.Expr:
    """Return the gain `u^T dW v / x` of a direction that is rotated towards an empty one.

    Returns:
        `cos(theta)^2`.

    Reference:
        Our derivation.
    """
    return sp.simplify(_turned(sp.Integer(0))[0, 0] / x)


@derivation(r"s^2 / \|\Delta W\|^2")
def preservation_index() -> sp.Expr:
    """Return the direction-preservation index of an update whose only direction leaves the basis.

    Returns:
        `cos(theta)^4`; 1 where the theory's assumption holds.

    Reference:
        Our derivation.
    """
    update = _turned(sp.Integer(0))
    whole = sp.trigsimp((update.T * update).trace())
    return sp.simplify(update[0, 0] ** 2 / whole)


@derivation(r"\textstyle\sum_i s_i^2 / \|\Delta W\|^2")
def exchange_index() -> sp.Expr:
    """Return the index of an update whose two directions are rotated into each other.

    Returns:
        Expression in x, `x_j` and theta: 1 for equal amplitudes, whatever the angle.

    Reference:
        Our derivation.
    """
    update = _turned(x_other)
    whole = sp.trigsimp(sp.expand((update.T * update).trace()))
    diagonal = update[0, 0] ** 2 + update[1, 1] ** 2
    lost = sp.factor(sp.trigsimp(sp.expand(whole - diagonal)))
    return 1 - lost / sp.simplify(whole)


@derivation(r"\theta_{\max}")
def tolerated_angle() -> sp.Expr:
    """Return the largest angle at which a round's energy factor is within epsilon of the theory's.

    `gain^2 = 1 - epsilon` solved for the angle.

    Returns:
        Expression in epsilon.

    Reference:
        Our derivation.
    """
    cosine = sp.Symbol("z", positive=True)
    squared = gain().subs(sp.cos(theta), cosine) ** 2
    roots = sp.solve(sp.Eq(squared, 1 - epsilon), cosine)
    # the only root that is the cosine of an acute angle; any small epsilon distinguishes them
    (acute,) = [root for root in roots if root.subs(epsilon, sp.Rational(1, 20)).is_positive]
    return sp.acos(acute)


@derivation(r"\mathrm{energy\ factor} - 1")
def small_angle_loss() -> sp.Expr:
    """Return the leading order of a round's energy loss by rotation.

    Returns:
        `-2 theta^2`.

    Reference:
        Our derivation.
    """
    return sp.series(gain() ** 2 - 1, theta, 0, 3).removeO()
