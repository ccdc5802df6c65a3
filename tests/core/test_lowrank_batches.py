"""Batches of layers: a bad one does not change the others; threads do not change bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lowrank_cases import (
    DTYPES,
    Truth,
    assert_right,
    client,
    product,
)
from simulator_cases import assert_close

from fedlora_sim.lowrank import METHODS, LowRankProduct, _gram_svd_together, gram_core
from fedlora_sim.tolerances import relative


def bad_batch(dtype):
    """Provide a batch (2, 3) of layers: one is rank-deficient, one is zero, one cancels."""
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


def test_layers_of_a_batch_are_corrected_one_by_one():
    """As on a GPU: one core for the batch, QR for the layers that need more precision."""
    given = bad_batch(torch.float32)
    blocks, weights = given.blocks, given.weights
    core = gram_core(blocks, weights, 6, torch.float32)
    assert core.trusted.tolist() == [[True, False, True], [False, True, False]]
    lifted = core.lift(blocks, torch.float32)
    u, s, vh = _gram_svd_together(blocks, weights, 6, torch.float32, fall_back=True)
    for i, j in np.ndindex(2, 3):
        one = layer(given, i, j)
        scale = max(Truth.of(one).summed, torch.tensor(1e-30))
        assert_right((u[i, j], s[i, j], vh[i, j]), one, 6, scale)
    for x, old in zip((u, s, vh), lifted, strict=True):
        assert torch.equal(x[core.trusted], old[core.trusted])


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_singular_values_of_one_bad_layer_are_right(bad):
    """In one of the layers two clients cancel up to the last digit, which the Gram path loses.

    Trusting the whole batch because some of its layers can be trusted gives 12% of error there.
    """
    x, a = client(np.random.default_rng(7), 3, batch=(3,))
    y = x.copy()
    weights = torch.ones(3, 6)
    weights[bad, 3:] = 2.0**-23 - 1
    given = product([(x, a), (y, a)], weights, torch.float32)
    trusted = gram_core(given.blocks, given.weights, 3, torch.float32).trusted
    assert trusted.tolist() == [i != bad for i in range(3)]
    found = given.singular_values(3)
    for i in range(3):
        (b, own), _ = ((p[i].double(), q[i].double()) for p, q in given.blocks)
        wanted = torch.linalg.svdvals((1 + weights[i, 3].double()) * b @ own)[:3]
        rounding = relative("factorization", torch.float32) * wanted[0]
        assert float((found[i] - wanted).abs().max()) <= rounding


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_batch_of_weights_over_one_cohort(method, dtype):
    rng = np.random.default_rng(5)
    given = product([client(rng, 3), client(rng, 2)], rng.uniform(0.5, 1, (2, 3, 5)), dtype)
    u, s, vh = given.svd(5, method)
    for i, j in np.ndindex(2, 3):
        one = LowRankProduct(given.blocks, given.weights[i, j])
        assert_right((u[i, j], s[i, j], vh[i, j]), one, 5)


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
