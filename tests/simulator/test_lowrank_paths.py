"""Gram, QR and dense: one product, three ways, against float64; batches, threads and bad layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from simulator_cases import assert_close, quick

from fedlora_sim.lowrank import METHODS, LowRankProduct, compute_dtype, low_rank_svd
from fedlora_sim.lowrank.gram import gram_core
from fedlora_sim.lowrank.svd import _mend

D_OUT, D_IN = 40, 30
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def client(rng, rank, d_out=D_OUT, d_in=D_IN, batch=()):
    """Gaussian columns and rows of norm about 1, float64."""
    lora_b = rng.standard_normal((*batch, d_out, rank)) / d_out**0.5
    return lora_b, rng.standard_normal((*batch, rank, d_in)) / d_in**0.5


def product(pairs, weights=None, dtype=torch.float64):
    """A product of NumPy pairs, factors in the dtype, weights in the dtype of the computation."""
    blocks = [tuple(torch.from_numpy(x).to(dtype) for x in pair) for pair in pairs]
    total = sum(b.shape[-1] for b, _ in blocks)
    weights = np.ones(total) if weights is None else np.asarray(weights, dtype=np.float64)
    return LowRankProduct(blocks, torch.from_numpy(weights).to(compute_dtype(dtype)))


@dataclass(frozen=True)
class Truth:
    """The same numbers in float64: the product, its singular values, the size of its terms."""

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
    """Values, orthonormal vectors, and (r must end at a gap) the best approximation."""
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_every_path_is_right_where_it_is_meant_to_be(case, method, dtype):
    pairs, weights, r = case(np.random.default_rng(0))
    given = product(pairs, weights, dtype)
    assert given.dtype == compute_dtype(dtype)
    # Squaring costs the Gram path some of float64's digits, which is why `auto` does not take it.
    loses = method == "gram" and dtype == torch.float64
    kind = "iteration" if loses else "factorization"
    assert_right(given.svd(r, method), given, r, kind=kind)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 4, 10, 11, 12, 13, 20])
@pytest.mark.parametrize("sizes", [(12, 17), (17, 12), (12, 12)])
def test_fewer_and_more_columns_than_the_product_has_room_for(sizes, columns, dtype):
    rng = np.random.default_rng(columns)
    pairs = [client(rng, 1, *sizes) for _ in range(columns)]
    given = product(pairs, None, dtype)
    r = min(columns, 12)
    for method in ("auto", "dense", "qr") if columns <= 12 else ("auto", "dense"):
        assert_right(given.svd(None, method), given, r)


def steep(rng):
    lora_b, lora_a = (np.linalg.qr(rng.standard_normal((d, 8)))[0] for d in (D_OUT, D_IN))
    return [(lora_b * np.geomspace(1, 1e-9, 8), lora_a.T)]


def identical(rng):
    return [client(rng, 4)] * 3


def nearly_identical(rng):
    one = client(rng, 4)
    return [tuple(x * (1 + 1e-6 * rng.standard_normal(x.shape)) for x in one) for _ in range(3)]


def nearly_cancelling(rng):
    lora_b, lora_a = client(rng, 4)
    return [(lora_b, lora_a), (-lora_b, lora_a * (1 + 1e-5 * rng.standard_normal(lora_a.shape)))]


def cancelling(rng):
    lora_b, lora_a = client(rng, 4)
    return [(lora_b, lora_a), (-lora_b, lora_a)]


def zero(rng):
    return [tuple(np.zeros_like(x) for x in client(rng, 4))]


def one_sided(rng):
    lora_b, lora_a = client(rng, 6)
    return [(lora_b, lora_a[:1] + 1e-3 * lora_a)]


HARD = (steep, identical, nearly_identical, nearly_cancelling, cancelling, zero, one_sided)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", HARD)
def test_what_the_gram_path_cannot_hold_is_right_all_the_same(case, dtype):
    given = product(case(np.random.default_rng(1)), None, dtype)
    r = given.columns
    # All columns: no gap is needed. A zero update has vectors too, and they are orthonormal.
    assert_right(given.svd(r), given, r, max(Truth.of(given).summed, torch.tensor(1e-30)))


@pytest.mark.parametrize("case", [identical, cancelling, zero, one_sided, nearly_identical])
def test_the_gram_path_knows_what_it_cannot_hold(case):
    given = product(case(np.random.default_rng(1)), None, torch.float32)
    core = gram_core(given.blocks, given.weights, given.columns, torch.float32)
    assert not bool(core.trusted)


@pytest.mark.parametrize("case", [*CASES, identical, nearly_identical])
def test_the_gram_path_is_trusted_with_what_it_can_hold(case):
    """Also with clients that agree, where the leading directions are wanted."""
    result = case(np.random.default_rng(1))
    pairs, weights, r = result if isinstance(result, tuple) else (result, None, 4)
    given = product(pairs, weights, torch.float32)
    assert bool(gram_core(given.blocks, given.weights, r, torch.float32).trusted)
    assert_right(given.svd(r), given, r)


def conditioned(rng, rows, columns, condition):
    """Columns that come near to depending on each other."""
    u = np.linalg.qr(rng.standard_normal((rows, columns)))[0]
    v = np.linalg.qr(rng.standard_normal((columns, columns)))[0]
    return u * np.geomspace(1, 1 / condition, columns) @ v


@quick
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.floats(0, 7),
    st.floats(0, 7),
    st.sampled_from([0.0, 3.0]),
)
def test_no_conditioning_of_the_factors_spoils_the_result(seed, columns, on_b, on_a, spread):
    """Found so: values may be right where vectors, small sums of large columns, are not."""
    rng = np.random.default_rng(seed)
    lora_b = conditioned(rng, D_OUT, columns, 10**on_b)
    lora_a = conditioned(rng, D_IN, columns, 10**on_a).T
    scales = 10 ** rng.uniform(-spread, spread, columns)
    weights = rng.uniform(0.1, 1, columns) * rng.choice([-1, 1], columns)
    given = product([(lora_b * scales, lora_a / scales[:, None])], weights, torch.float32)
    assert_right(given.svd(), given, columns)
    if bool(gram_core(given.blocks, given.weights, columns, torch.float32).trusted):
        # Here also relative to the product itself, however much of it cancels.
        assert_right(given.svd(), given, columns, torch.linalg.matrix_norm(Truth.of(given).dense))


@pytest.mark.parametrize("condition", [1e2, 1e3, 1e4])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("columns", [2, 4])
def test_vectors_stay_orthonormal_where_one_factor_is_nearly_dependent(columns, side, condition):
    rng = np.random.default_rng(3)
    on_b, on_a = (condition, 1.0) if side == "left" else (1.0, condition)
    pair = conditioned(rng, D_OUT, columns, on_b), conditioned(rng, D_IN, columns, on_a).T
    given = product([pair], None, torch.float32)
    assert_right(given.svd(), given, columns)


def bad_batch(dtype):
    """Six layers of which one is rank-deficient, one is zero and one cancels; a batch (2, 3)."""
    rng = np.random.default_rng(4)
    pairs = [client(rng, 3, batch=(2, 3)) for _ in range(2)]
    for x, y in zip(*pairs, strict=True):
        y[0, 1] = x[0, 1]
        x[1, 0] = y[1, 0] = 0
        y[1, 2] = x[1, 2]
    pairs[1][0][1, 2] *= -1
    return product(pairs, rng.uniform(0.5, 1, (2, 3, 6)), dtype)


def layer(given, i, j):
    weights = given.weights[i, j] if given.weights.ndim > 1 else given.weights
    return LowRankProduct([(b[i, j], a[i, j]) for b, a in given.blocks], weights)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["auto", "qr", "dense"])
def test_bad_layers_leave_the_good_ones_alone(method, dtype):
    given = bad_batch(dtype)
    u, s, vh = given.svd(6, method)
    for i, j in np.ndindex(2, 3):
        one = layer(given, i, j)
        mine = u[i, j], s[i, j], vh[i, j]
        assert_right(mine, one, 6, max(Truth.of(one).summed, torch.tensor(1e-30)))
        if method == "auto" and dtype == torch.float32:
            for a, b in zip(mine, one.svd(6), strict=True):
                assert torch.equal(a, b)


def test_layers_that_are_solved_together_are_mended_one_by_one():
    """The way of a GPU: one core for the batch, QR for what it cannot be trusted with."""
    given = bad_batch(torch.float32)
    blocks, weights = given.blocks, given.weights
    core = gram_core(blocks, weights, 6, torch.float32)
    assert core.trusted.tolist() == [[True, False, True], [False, True, False]]
    svd = core.lift(blocks, torch.float32)
    before = [x.clone() for x in svd]
    u, s, vh = _mend(svd, ~core.trusted, blocks, weights, 6, torch.float32)
    for i, j in np.ndindex(2, 3):
        one = layer(given, i, j)
        scale = max(Truth.of(one).summed, torch.tensor(1e-30))
        assert_right((u[i, j], s[i, j], vh[i, j]), one, 6, scale)
    for x, old in zip((u, s, vh), before, strict=True):
        assert torch.equal(x[core.trusted], old[core.trusted])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_batch_of_weights_over_one_cohort(method, dtype):
    rng = np.random.default_rng(5)
    given = product([client(rng, 3), client(rng, 2)], rng.uniform(0.5, 1, (2, 3, 5)), dtype)
    u, s, vh = given.svd(5, method)
    for i, j in np.ndindex(2, 3):
        one = LowRankProduct(given.blocks, given.weights[i, j])
        assert_right((u[i, j], s[i, j], vh[i, j]), one, 5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["auto", "qr", "dense"])
@pytest.mark.parametrize("case", [*CASES, *HARD])
def test_values_alone_are_those_of_the_whole(case, method, dtype):
    result = case(np.random.default_rng(9))
    pairs, weights, r = result if isinstance(result, tuple) else (result, None, 3)
    given = product(pairs, weights, dtype)
    truth, values = Truth.of(given), given.singular_values(r, method)
    scale = max(truth.summed, torch.tensor(1e-30))
    assert_close(values.double(), truth.values[:r], "factorization", given.dtype, scale)
    assert values.dtype == given.dtype


@pytest.mark.parametrize("columns", [6, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_alone_of_a_batch(columns, dtype):
    good = product([client(np.random.default_rng(10), columns, batch=(2, 3))], None, dtype)
    for layers in (good, bad_batch(dtype)):
        values = layers.singular_values(4)
        assert values.shape == (2, 3, 4)
        for i, j in np.ndindex(2, 3):
            truth = Truth.of(layer(layers, i, j))
            scale, wanted = max(truth.summed, torch.tensor(1e-30)), truth.values[:4]
            assert_close(values[i, j].double(), wanted, "factorization", layers.dtype, scale)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_has_the_same_bits_on_any_number_of_threads(threads, dtype):
    rng = np.random.default_rng(6)
    given = product([client(rng, 8, 300, 200, (5,)) for _ in range(4)], None, dtype)
    results = []
    for number in (1, 2, 4):
        threads(number)
        results.append(given.svd(8))
        assert torch.get_num_threads() == number
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.slow
def test_the_gram_matrices_are_summed_in_parts_of_any_length():
    """More rows than are turned to float64 at a time, and not a multiple of them."""
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
    with pytest.raises(ValueError, match=r"method='grm'.*did you mean 'gram'"):
        low_rank_svd(torch.ones(3, 1), torch.ones(1, 3), 1, method="grm")
