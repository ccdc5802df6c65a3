"""The SVD of a product from its factors: agreement with the dense one, signs, size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from simulator_cases import assert_close, quick, random_factors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedlora_sim.errors import InputError
from fedlora_sim.lowrank import fix_signs, low_rank_svd, sign_fixed_svd

SIZES = st.tuples(st.integers(1, 10), st.integers(1, 10), st.integers(1, 14))


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return out


def random_stack(seed, d_out, d_in, columns, batch=()):
    rng = np.random.default_rng(seed)
    lora_b = torch.from_numpy(rng.standard_normal((*batch, d_out, columns)))
    return lora_b, torch.from_numpy(rng.standard_normal((*batch, columns, d_in)))


@quick
@given(SIZES, st.integers(0, 2**32 - 1), st.integers(1, 14))
def test_agrees_with_the_dense_svd(sizes, seed, r):
    d_out, d_in, columns = sizes
    lora_b, lora_a = random_stack(seed, d_out, d_in, columns)
    u, s, vh = low_rank_svd(lora_b, lora_a, r)
    kept = min(r, *sizes)
    values = torch.linalg.svdvals(lora_b @ lora_a)
    scale = torch.linalg.vector_norm(values)
    assert u.shape == (d_out, kept)
    assert vh.shape == (kept, d_in)
    assert_close(s, values[:kept], "factorization", scale=scale)
    assert bool((s.diff() <= 0).all())
    assert_close(u.mT @ u, torch.eye(kept), "factorization")
    assert_close(vh @ vh.mT, torch.eye(kept), "factorization")
    assert_close(u.mT @ (lora_b @ lora_a) @ vh.mT, torch.diag(s), "factorization", scale=scale)


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_columns_that_depend_on_each_other(columns):
    lora_b, lora_a = random_stack(columns, 8, 9, columns)
    u, s, vh = low_rank_svd(torch.cat([lora_b, lora_b], -1), torch.cat([lora_a, lora_a]), 5)
    assert_close(u * s @ vh, 2 * lora_b @ lora_a, "factorization")
    scale = torch.linalg.vector_norm(s)
    assert_close(s[columns:], torch.zeros_like(s[columns:]), "factorization", scale=scale)


@pytest.mark.slow
def test_the_product_is_never_formed():
    update = random_factors(np.random.default_rng(0), 64, 48, 3)
    with LargestTensor() as largest:
        update.svd()
    assert 0 < largest.numel < update.d_out * update.d_in


@quick
@given(st.integers(0, 2**32 - 1))
def test_the_sign_belongs_to_the_product_and_not_to_its_factors(seed):
    lora_b, lora_a = random_stack(seed, 7, 6, 3)
    gauge = torch.from_numpy(np.random.default_rng(seed).standard_normal((3, 3))) + 4 * torch.eye(3)
    u, s, vh = low_rank_svd(lora_b, lora_a, 3)
    others = [
        low_rank_svd(lora_b @ gauge, torch.linalg.inv(gauge) @ lora_a, 3),
        low_rank_svd(-lora_b, -lora_a, 3),
        tuple(
            x[..., :3] if i < 2 else x[:3] for i, x in enumerate(sign_fixed_svd(lora_b @ lora_a))
        ),
    ]
    peaks = u.gather(-2, u.abs().argmax(-2, keepdim=True))
    assert bool((peaks > 0).all())
    for other in others:
        for mine, theirs in zip((u, s, vh), other, strict=True):
            assert_close(theirs, mine, "iteration")


def test_the_opposite_product_has_the_same_left_vectors():
    lora_b, lora_a = random_stack(4, 7, 6, 3)
    u, s, vh = low_rank_svd(lora_b, lora_a, 3)
    opposite = low_rank_svd(-lora_b, lora_a, 3)
    for mine, theirs in zip((u, s, -vh), opposite, strict=True):
        assert_close(theirs, mine, "factorization")


def test_signs_of_a_batch_are_fixed_one_by_one():
    u = torch.tensor([[[-2.0, 1.0], [1.0, 3.0]], [[1.0, 1.0], [-4.0, 0.0]]])
    vh = torch.ones(2, 2, 2)
    fixed_u, _, fixed_vh = fix_signs(u, torch.ones(2, 2), vh)
    np.testing.assert_array_equal(fixed_u[0], [[2.0, 1.0], [-1.0, 3.0]])
    np.testing.assert_array_equal(fixed_u[1], [[-1.0, 1.0], [4.0, 0.0]])
    np.testing.assert_array_equal(fixed_vh[0], [[-1.0, -1.0], [1.0, 1.0]])
    np.testing.assert_array_equal(fixed_vh[1], [[-1.0, -1.0], [1.0, 1.0]])


@pytest.mark.parametrize("columns", [2, 12])
def test_a_batch_is_its_members(columns):
    lora_b, lora_a = random_stack(5, 6, 8, columns, batch=(2, 2))
    u, s, vh = low_rank_svd(lora_b, lora_a, 2)
    for i, j in np.ndindex(2, 2):
        one = low_rank_svd(lora_b[i, j], lora_a[i, j], 2)
        for mine, theirs in zip((u[i, j], s[i, j], vh[i, j]), one, strict=True):
            assert_close(mine, theirs, "factorization")


@pytest.mark.parametrize("r", [0, -1, 1.5, True])
def test_a_number_of_triplets_that_is_none_is_refused(r):
    with pytest.raises(InputError, match=f"r={r!r}: expected a whole number"):
        low_rank_svd(*random_stack(0, 5, 4, 3), r)
