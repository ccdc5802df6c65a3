"""Products of low-rank factors, easy and hard, and their results in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from simulator_cases import assert_close

from fedlora_sim.lowrank import LowRankProduct, compute_dtype

D_OUT, D_IN = 40, 30
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def client(rng, rank, d_out=D_OUT, d_in=D_IN, batch=()):
    """Return gaussian columns and rows of norm about 1, float64."""
    lora_b = rng.standard_normal((*batch, d_out, rank)) / d_out**0.5
    return lora_b, rng.standard_normal((*batch, rank, d_in)) / d_in**0.5


def product(pairs, weights=None, dtype=torch.float64):
    """Return the product of NumPy pairs, weights in the dtype of the computation."""
    blocks = [tuple(torch.from_numpy(x).to(dtype) for x in pair) for pair in pairs]
    total = sum(b.shape[-1] for b, _ in blocks)
    weights = np.ones(total) if weights is None else np.asarray(weights, dtype=np.float64)
    return LowRankProduct(blocks, torch.from_numpy(weights).to(compute_dtype(dtype)))


@dataclass(frozen=True)
class Truth:
    """The same product in float64: matrix, singular values, and size of its terms."""

    dense: torch.Tensor
    values: torch.Tensor
    summed: torch.Tensor

    @classmethod
    def of(cls, given):
        lora_b = torch.cat([b.double() for b, _ in given.blocks], -1)
        lora_b = lora_b * given.weights.double().unsqueeze(-2)
        lora_a = torch.cat([a.double() for _, a in given.blocks], -2)
        dense = lora_b @ lora_a
        terms = lora_b.norm(dim=-2) * lora_a.norm(dim=-1)
        return cls(dense, torch.linalg.svdvals(dense), terms.norm(dim=-1))

    def best(self, r):
        u, s, vh = torch.linalg.svd(self.dense, full_matrices=False)
        return u[..., :r] * s[..., None, :r] @ vh[..., :r, :]


def assert_right(svd, given, r, scale=None, kind="factorization"):
    """Check values, orthonormal vectors, and the best approximation (r must end at a gap)."""
    truth, dtype = Truth.of(given), given.dtype
    scale = truth.summed if scale is None else scale
    u, s, vh = (x.double() for x in svd)
    eye = torch.eye(r, dtype=torch.float64)
    assert s.shape == (r,)
    assert bool((s.diff() <= 0).all())
    assert bool((s >= 0).all())
    assert_close(s, truth.values[:r], kind, dtype, scale)
    assert_close(u.mT @ u, eye, kind, dtype)
    assert_close(vh @ vh.mT, eye, kind, dtype)
    assert_close(u * s @ vh, truth.best(r), kind, dtype, scale)


def plain(rng):
    return [client(rng, r) for r in (4, 2, 3)], None, 9


def weighted(rng):
    return [client(rng, r) for r in (4, 2, 3)], rng.uniform(0.1, 2, 9) * rng.choice([-1, 1], 9), 9


def dead_columns(rng):
    pairs = [client(rng, r) for r in (4, 2, 3)]
    pairs[2][1][0] = 0
    return pairs, [1, 0, -1, 1, 2, 0.5, 1, 1, 0], 6


def unbalanced(rng):
    pairs = [client(rng, r) for r in (4, 2, 3)]
    for (lora_b, lora_a), scale in zip(pairs, (1e3, 1.0, 1e-3), strict=True):
        lora_b *= scale
        lora_a /= scale
    return pairs, None, 9


def unequal(rng):
    pairs = [client(rng, 6)]
    pairs[0][0][:] *= np.geomspace(1e3, 1e-3, 6)
    return pairs, None, 1


CASES = (plain, weighted, dead_columns, unbalanced, unequal)


def steep(rng):
    lora_b, lora_a = (np.linalg.qr(rng.standard_normal((d, 8)))[0] for d in (D_OUT, D_IN))
    return [(lora_b * np.geomspace(1, 1e-9, 8), lora_a.T)]


def identical(rng):
    return [client(rng, 4)] * 3


def nearly_identical(rng):
    one = client(rng, 4)
    return [tuple(x * (1 + 1e-6 * rng.standard_normal(x.shape)) for x in one) for _ in range(3)]


def nearly_canceling(rng):
    lora_b, lora_a = client(rng, 4)
    return [(lora_b, lora_a), (-lora_b, lora_a * (1 + 1e-5 * rng.standard_normal(lora_a.shape)))]


def canceling(rng):
    lora_b, lora_a = client(rng, 4)
    return [(lora_b, lora_a), (-lora_b, lora_a)]


def zero(rng):
    return [tuple(np.zeros_like(x) for x in client(rng, 4))]


def one_sided(rng):
    lora_b, lora_a = client(rng, 6)
    return [(lora_b, lora_a[:1] + 1e-3 * lora_a)]


HARD = (steep, identical, nearly_identical, nearly_canceling, canceling, zero, one_sided)


def conditioned(rng, rows, columns, condition):
    """Return nearly dependent columns."""
    u = np.linalg.qr(rng.standard_normal((rows, columns)))[0]
    v = np.linalg.qr(rng.standard_normal((columns, columns)))[0]
    return u * np.geomspace(1, 1 / condition, columns) @ v
