"""Rules of other papers under their own formulas: equal to the rule of which they are an alias."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlora_sim import LoRAFactors, aggregate
from fedlora_sim.tolerances import relative

D_OUT, D_IN = 7, 9
RANKS = (2, 3, 3, 5)
SAMPLES = np.array([3.0, 1.0, 4.0, 2.0])
R_MAX = max(RANKS)
DATA = SAMPLES / SAMPLES.sum()


def clients(seed):
    """Return `(A, B)` of every client; scaling 1."""
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(r, D_IN)), rng.normal(size=(D_OUT, r))) for r in RANKS]


def update_of(rule, factors):
    updates = [LoRAFactors(*map(torch.from_numpy, pair)) for pair in factors]
    return aggregate(updates, SAMPLES.tolist(), rule).adapter.delta().numpy()


def best(dense):
    u, s, vh = np.linalg.svd(dense, full_matrices=False)
    return u[:, :R_MAX] * s[:R_MAX] @ vh[:R_MAX]


def owners(i):
    return [k for k, rank in enumerate(RANKS) if rank > i]


def owner_weights(i):
    return SAMPLES[owners(i)] / SAMPLES[owners(i)].sum()


def hlora(factors, weights=DATA):
    """Decompose the mean product; `B = U`, `A = S V^T`."""
    mean = sum(w * b @ a for w, (a, b) in zip(weights, factors, strict=True))
    u, s, vh = np.linalg.svd(mean, full_matrices=False)
    return u[:, :R_MAX] @ (s[:R_MAX, None] * vh[:R_MAX])


def ilora(factors, weights=DATA):
    """Stack the factors, and decompose the product of their triangular factors."""
    q_b, r_b = np.linalg.qr(np.hstack([w * b for w, (_, b) in zip(weights, factors, strict=True)]))
    q_a, r_a = np.linalg.qr(np.vstack([a for a, _ in factors]).T)
    u, s, vh = np.linalg.svd(r_b @ r_a.T)
    return q_b @ u[:, :R_MAX] * s[:R_MAX] @ vh[:R_MAX] @ q_a.T


def rb_lora(factors):
    """Weigh every rank-one component among the clients that have it."""
    total = np.zeros((D_OUT, D_IN))
    for i in range(R_MAX):
        for w, k in zip(owner_weights(i), owners(i), strict=True):
            total += w * np.outer(factors[k][1][:, i], factors[k][0][i])
    return best(total)


def rb_lora_on_factors(factors):
    """Weigh the factors instead of the components."""
    return best(fedilora(factors))


def fedilora(factors, weights=owner_weights):
    """Average every row of A and column of B over the clients that have it."""
    a, b = np.zeros((R_MAX, D_IN)), np.zeros((D_OUT, R_MAX))
    for i in range(R_MAX):
        for w, k in zip(weights(i), owners(i), strict=True):
            a[i] += w * factors[k][0][i]
            b[:, i] += w * factors[k][1][:, i]
    return b @ a


def replicate(factors, filling=owner_weights):
    """Fill missing rows and columns with the mean of their owners; average over all clients."""
    a, b = np.zeros((R_MAX, D_IN)), np.zeros((D_OUT, R_MAX))
    for i in range(R_MAX):
        own = dict(zip(owners(i), filling(i), strict=True))
        mean_a = sum(w * factors[k][0][i] for k, w in own.items())
        mean_b = sum(w * factors[k][1][:, i] for k, w in own.items())
        for k, w in enumerate(DATA):
            a[i] += w * (factors[k][0][i] if k in own else mean_a)
            b[:, i] += w * (factors[k][1][:, i] if k in own else mean_b)
    return b @ a


def equal_weights(i):
    return np.full(len(owners(i)), 1 / len(owners(i)))


EQUAL = np.full(len(RANKS), 1 / len(RANKS))
CASES = {
    "hlora": (hlora, lambda factors: hlora(factors, EQUAL)),
    "ilora": (ilora, lambda factors: ilora(factors, EQUAL)),
    "rb_lora": (rb_lora, rb_lora_on_factors),
    "fedilora": (fedilora, lambda factors: fedilora(factors, equal_weights)),
    "prelort": (fedilora, rb_lora),
    "replicate": (replicate, lambda factors: replicate(factors, equal_weights)),
}
"""The formula of each alias, and a near miss: other weights, or the same weights elsewhere."""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("alias", CASES)
def test_an_alias_is_its_own_formula_and_not_the_near_miss(alias, seed):
    formula, near_miss = CASES[alias]
    factors = clients(seed)
    found = update_of(alias, factors)
    size = np.linalg.norm(found)
    assert np.linalg.norm(formula(factors) - found) <= relative("factorization") * size
    assert np.linalg.norm(near_miss(factors) - found) > 0.01 * size
