"""Some eigenpairs of a core, with their certificate; graded and square cores; against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis_profiles import examples
from lowrank_cases import Truth, assert_right, client, nearly_identical, product

from fedlora_sim import lowrank
from fedlora_sim.lowrank import are_leading, gram_core, leading_eigenpairs
from fedlora_sim.tolerances import relative

N, R = 24, 6
SPECTRA = {
    "flat": lambda rng: rng.uniform(1, 1.1, N),
    "decaying": lambda rng: 0.7 ** np.arange(N),
    "a cluster at the cut": lambda rng: np.r_[[9, 8, 7], 1 + 1e-13 * rng.standard_normal(N - 3)],
    "ties": lambda rng: np.repeat([3.0, 2.0, 1.0], N // 3),
    "rank-deficient": lambda rng: np.r_[rng.uniform(1, 2, 3), np.zeros(N - 3)],
    "zero": lambda rng: np.zeros(N),
    "20 decades": lambda rng: np.geomspace(1e10, 1e-10, N),
}


@pytest.fixture(autouse=True)
def small_cores_are_partial(monkeypatch):
    monkeypatch.setattr(lowrank, "PARTIAL_FROM", 2)


def symmetric(values, rng):
    q = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0]
    return torch.from_numpy(q * values @ q.T)


@settings(max_examples=examples(60))
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(SPECTRA)))
def test_the_leading_pairs_are_those_of_the_whole(seed, name):
    rng = np.random.default_rng(seed)
    core = symmetric(SPECTRA[name](rng), rng)
    values, x = leading_eigenpairs(core, R)
    wanted = torch.linalg.eigvalsh(core).flip(0)
    bound = relative("factorization") * float(wanted[0])
    assert float((values - wanted[:R]).abs().max()) <= bound
    assert float((x.mT @ x - torch.eye(R)).abs().max()) <= relative("factorization")
    # The best approximation of rank R, whichever of equal directions were taken.
    rest = torch.linalg.matrix_norm(core - x * values @ x.mT, 2)
    assert float(rest) <= float(wanted[R:].abs().max()) + bound


@pytest.mark.parametrize("name", ["flat", "decaying", "ties"])
def test_lapacks_pairs_pass_the_certificate(name):
    rng = np.random.default_rng(1)
    core = symmetric(SPECTRA[name](rng), rng)
    assert are_leading(core, *lowrank._some_eigenpairs(core, R))


@pytest.mark.parametrize("column", range(R))
@pytest.mark.parametrize("fault", ["vector", "value", "missing", "twice"])
def test_the_certificate_refuses_one_wrong_pair(column, fault):
    """Every pair counts: a wrong vector or value, a larger pair left out, a pair found twice."""
    rng = np.random.default_rng(column)
    core = symmetric(np.linspace(2, 1, N), rng)
    values, x = torch.linalg.eigh(core)
    values, x = values.flip(0), x.flip(1)
    kept = [i for i in range(R + 1) if i != (column if fault == "missing" else R)]
    values, x = values[kept].clone(), x[:, kept].clone()
    assert are_leading(core, values, x) == (fault != "missing")
    if fault == "vector":
        turn = torch.linalg.qr(torch.randn(N, N, generator=torch.Generator().manual_seed(0)))[0]
        x[:, column] += 1e-9 * turn[:, 0]
        x[:, column] /= x[:, column].norm()
    elif fault == "value":
        values[column] *= 1 + 1e-9
    elif fault == "twice":
        x[:, column], values[column] = x[:, column - 1], values[column - 1]
    assert not are_leading(core, values, x)


def test_all_pairs_are_computed_if_the_certificate_fails(monkeypatch):
    core = symmetric(np.linspace(2, 1, N), np.random.default_rng(2))
    monkeypatch.setattr(lowrank, "_some_eigenpairs", lambda c, r: (c[0, :r] * 0 + 1, c[:, :r]))
    values, _ = leading_eigenpairs(core, R)
    wanted = torch.linspace(2, 1, N, dtype=torch.float64)[:R]
    assert float((values - wanted).abs().max()) <= relative("factorization")


def collapsed(rng, floor):
    """Return clients whose amplitudes above the second are `floor` of the others."""
    pairs = [client(rng, 5) for _ in range(4)]
    for lora_b, lora_a in pairs:
        lora_b[:, 2:] *= floor**0.5
        lora_a[2:] *= floor**0.5
    return pairs


@pytest.mark.parametrize("floor", [1e-3, 1e-5, 1e-7])
def test_amplitudes_of_several_magnitudes_are_right_one_by_one(floor):
    """Relative to each value: the small ones are not lost among the roundings of the large."""
    given_product = product(collapsed(np.random.default_rng(3), floor), None, torch.float32)
    core = gram_core(given_product.blocks, given_product.weights, 20, torch.float32)
    truth = Truth.of(given_product)
    assert bool(core.trusted)
    apart = (core.values - truth.values[:20]).abs() / truth.values[:20]
    assert float(apart.max()) <= relative("factorization", "float32")
    assert_right(given_product.svd(20), given_product, 20)


def test_nearly_dependent_columns_of_several_magnitudes_are_not_trusted():
    rng = np.random.default_rng(4)
    pairs = [*nearly_identical(rng), tuple(1e-3 * x for x in client(rng, 2))]
    given_product = product(pairs, None, torch.float32)
    assert not bool(
        gram_core(given_product.blocks, given_product.weights, 6, torch.float32).trusted
    )
    assert_right(given_product.svd(14), given_product, 14)


@pytest.mark.parametrize("shape", [(24, 30), (30, 24)])
@pytest.mark.parametrize("floor", [1.0, 1e-4, 1e-9, 0.0])
def test_more_columns_than_the_product_has_room_for(shape, floor, monkeypatch):
    monkeypatch.setattr(lowrank, "COLUMNS", 7)  # the parts do not end with the clients
    rng = np.random.default_rng(5)
    pairs = [client(rng, 4, *shape) for _ in range(9)]
    for lora_b, _ in pairs:
        lora_b[8:] *= floor  # at least eight directions are above the floor
    given_product = product(pairs, rng.uniform(-1, 1, 36), torch.float32)
    assert_right(given_product.svd(8), given_product, 8)


@pytest.mark.parametrize("rows", [40, 24])
def test_shared_directions_that_decay_are_right(rows):
    """As late in training: weak directions are small differences of large columns."""
    rng = np.random.default_rng(6)
    shared = client(rng, 6, rows, 30)
    fall = 0.2 ** np.arange(6)
    pairs = []
    for _ in range(5):
        noise = client(rng, 6, rows, 30)
        pairs.append(
            (
                (shared[0] + 0.01 * noise[0]) * fall,
                (shared[1] + 0.01 * noise[1]) * fall[:, None],
            )
        )
    given_product = product(pairs, None, torch.float32)
    u, s, vh = (x.double() for x in given_product.svd(6))
    truth = Truth.of(given_product)
    bound = relative("factorization", "float32")
    assert float(((s - truth.values[:6]) / truth.values[:6]).abs().max()) <= bound
    assert_right((u, s, vh), given_product, 6, truth.values[0])
    if rows == 40:  # the Gram path, not the product itself
        core = gram_core(given_product.blocks, given_product.weights, 6, torch.float32)
        assert bool(core.trusted)
