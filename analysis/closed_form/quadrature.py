"""Gauss quadrature over normal and gamma laws: exact for polynomials, at any order."""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh_tridiagonal

from analysis.cohorts.law import Array


def normal_rule(order: int) -> tuple[Array, Array]:
    """Nodes and weights of the standard normal law, exact to degree `2 * order - 1`."""
    return gauss_rule(np.zeros(order), np.sqrt(np.arange(1.0, order)))


def gamma_rule(order: int, shape: float) -> tuple[Array, Array]:
    """Nodes and weights of the gamma law of scale 1, exact to degree `2 * order - 1`."""
    k = np.arange(1.0, order)
    return gauss_rule(2 * np.arange(float(order)) + shape, np.sqrt(k * (k + shape - 1)))


def gauss_rule(diagonal: Array, beside: Array) -> tuple[Array, Array]:
    """Nodes and weights of a probability law from the recurrence of its orthonormal polynomials.

    Nodes are the eigenvalues of the Jacobi matrix. A weight is `1 / sum_k p_k(node)**2`, a sum of
    positive terms, taken with a running scale: tail weights keep their digits until they underflow.

    Args:
        diagonal: coefficients a_k, (order,).
        beside: coefficients b_k between k - 1 and k, (order - 1,).

    Returns:
        Nodes and weights, which sum to 1; nodes of weight 0 are left out.
    """
    nodes = np.asarray(eigh_tridiagonal(diagonal, beside, eigvals_only=True), dtype=np.float64)
    before, here = np.zeros_like(nodes), np.ones_like(nodes)
    total, scale = np.ones_like(nodes), np.zeros_like(nodes)
    for k in range(1, nodes.size):
        earlier = beside[k - 2] if k > 1 else 0.0
        after = ((nodes - diagonal[k - 1]) * here - earlier * before) / beside[k - 1]
        total = total + after**2
        root = np.sqrt(total)
        before, here, total = here / root, after / root, np.ones_like(nodes)
        scale += np.log(root)
    weights = np.exp(-2 * scale)
    keep = weights > 0
    return nodes[keep], weights[keep] / weights[keep].sum()
