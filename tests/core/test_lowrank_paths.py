"""Gram, QR and dense: one product, three ways, against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from designs import pairwise
from hypothesis import given
from hypothesis import strategies as st
from lowrank_cases import (
    CASES,
    D_IN,
    D_OUT,
    DTYPES,
    HARD,
    Truth,
    assert_right,
    canceling,
    client,
    conditioned,
    identical,
    nearly_identical,
    one_sided,
    product,
    zero,
)
from simulator_cases import assert_close, quick

from fedlora_sim.errors import InputError
from fedlora_sim.lowrank import METHODS, LowRankProduct, compute_dtype, gram_core, low_rank_svd


@pairwise(dtype=DTYPES, method=METHODS, case=CASES)
def test_every_path_is_right_where_it_is_meant_to_be(case, method, dtype):
    pairs, weights, r = case(np.random.default_rng(0))
    given = product(pairs, weights, dtype)
    assert given.dtype == compute_dtype(dtype)
    # Squaring costs the Gram path some of float64's digits, so `auto` does not use it.
    loses = method == "gram" and dtype == torch.float64
    kind = "iteration" if loses else "factorization"
    assert_right(given.svd(r, method), given, r, kind=kind)


@pairwise(dtype=DTYPES, columns=[1, 4, 10, 11, 12, 13, 20], sizes=[(12, 17), (17, 12), (12, 12)])
def test_fewer_and_more_columns_than_the_product_has_room_for(sizes, columns, dtype):
    rng = np.random.default_rng(columns)
    pairs = [client(rng, 1, *sizes) for _ in range(columns)]
    given = product(pairs, None, dtype)
    r = min(columns, 12)
    for method in ("auto", "dense", "qr") if columns <= 12 else ("auto", "dense"):
        assert_right(given.svd(None, method), given, r)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", HARD)
def test_products_beyond_the_gram_paths_precision_are_right(case, dtype):
    given = product(case(np.random.default_rng(1)), None, dtype)
    r = given.columns
    # All columns: no gap is needed. A zero update has vectors too, and they are orthonormal.
    assert_right(given.svd(r), given, r, max(Truth.of(given).summed, torch.tensor(1e-30)))


@pytest.mark.parametrize("case", [identical, canceling, zero, nearly_identical])
def test_the_gram_path_detects_products_beyond_its_precision(case):
    given = product(case(np.random.default_rng(1)), None, torch.float32)
    core = gram_core(given.blocks, given.weights, given.columns, torch.float32)
    assert not bool(core.trusted)


def test_the_gram_path_detects_vectors_that_float32_cannot_sum():
    """Vectors that are small differences of large columns are summed in float64."""
    given = product(one_sided(np.random.default_rng(1)), None, torch.float32)
    core = gram_core(given.blocks, given.weights, given.columns, torch.float32)
    assert bool(core.trusted)
    assert core.is_wide


@pytest.mark.parametrize("case", [*CASES, identical, nearly_identical])
def test_the_gram_path_is_used_within_its_precision(case):
    """Also for the leading directions of clients that agree."""
    result = case(np.random.default_rng(1))
    pairs, weights, r = result if isinstance(result, tuple) else (result, None, 4)
    given = product(pairs, weights, torch.float32)
    assert bool(gram_core(given.blocks, given.weights, r, torch.float32).trusted)
    assert_right(given.svd(r), given, r)


@quick
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.floats(0, 7),
    st.floats(0, 7),
    st.sampled_from([0.0, 3.0]),
)
def test_no_conditioning_of_the_factors_spoils_the_result(seed, columns, on_b, on_a, spread):
    """Values may be right while vectors, which are small sums of large columns, are not."""
    rng = np.random.default_rng(seed)
    lora_b = conditioned(rng, D_OUT, columns, 10**on_b)
    lora_a = conditioned(rng, D_IN, columns, 10**on_a).T
    scales = 10 ** rng.uniform(-spread, spread, columns)
    weights = rng.uniform(0.1, 1, columns) * rng.choice([-1, 1], columns)
    given = product([(lora_b * scales, lora_a / scales[:, None])], weights, torch.float32)
    assert_right(given.svd(), given, columns)
    if bool(gram_core(given.blocks, given.weights, columns, torch.float32).trusted):
        # Also relative to the product itself, even if most of it cancels.
        assert_right(given.svd(), given, columns, torch.linalg.matrix_norm(Truth.of(given).dense))


@pairwise(condition=[1e2, 1e3, 1e4], side=["left", "right"], columns=[2, 4])
def test_vectors_stay_orthonormal_where_one_factor_is_nearly_dependent(columns, side, condition):
    rng = np.random.default_rng(3)
    on_b, on_a = (condition, 1.0) if side == "left" else (1.0, condition)
    pair = conditioned(rng, D_OUT, columns, on_b), conditioned(rng, D_IN, columns, on_a).T
    given = product([pair], None, torch.float32)
    assert_right(given.svd(), given, columns)


@pairwise(dtype=DTYPES, method=["auto", "qr", "dense"], case=[*CASES, *HARD])
def test_values_alone_are_those_of_the_whole(case, method, dtype):
    result = case(np.random.default_rng(9))
    pairs, weights, r = result if isinstance(result, tuple) else (result, None, 3)
    given = product(pairs, weights, dtype)
    truth, values = Truth.of(given), given.singular_values(r, method)
    scale = max(truth.summed, torch.tensor(1e-30))
    assert_close(values.double(), truth.values[:r], "factorization", given.dtype, scale)
    assert values.dtype == given.dtype


@pytest.mark.slow
def test_the_gram_matrices_are_summed_in_parts_of_any_length():
    """The number of rows exceeds a block of conversion to float64 and is not a multiple of it."""
    rng = np.random.default_rng(7)
    given = product([client(rng, 3, 2100, 1030), client(rng, 2, 2100, 1030)], None, torch.bfloat16)
    assert_right(given.svd(5), given, 5)


@pytest.mark.parametrize("method", METHODS)
def test_factors_of_any_layout_are_taken(method):
    rng = np.random.default_rng(8)
    lora_b, lora_a = client(rng, 4)
    wide = product([(lora_b, lora_a)], None, torch.float32)
    b, a = wide.blocks[0]
    turned = b.mT.contiguous().mT, a.repeat_interleave(2, -1)[:, ::2]
    given = LowRankProduct([tuple(x.requires_grad_() for x in turned)], wide.weights)
    for mine, theirs in zip(given.svd(4, method), wide.svd(4, method), strict=True):
        assert not mine.requires_grad
        assert_close(mine, theirs, "factorization", torch.float32)


def test_an_unknown_path_is_named():
    with pytest.raises(InputError, match=r"method='grm'.*'gram'"):
        low_rank_svd(torch.ones(3, 1), torch.ones(1, 3), 1, method="grm")
