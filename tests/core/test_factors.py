"""`LoRAFactors`: the product and its scaling, gauges, truncation, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from simulator_cases import assert_close, quick, random_factors

from fedlora_sim import LoRAFactors
from fedlora_sim.errors import InputError
from fedlora_sim.lora import from_svd
from fedlora_sim.metrics import direction_preservation

SEEDS = st.integers(0, 2**32 - 1)
SQUARE = 6


@st.composite
def factors(draw, batch=()):
    d_out, d_in = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    r = draw(st.integers(1, min(d_out, d_in)))
    rng = np.random.default_rng(draw(SEEDS))
    return random_factors(rng, d_out, d_in, r, draw(st.floats(0.1, 10)), batch=batch)


def test_delta_is_scaling_times_B_A_and_not_A_B_on_a_square_layer():
    lora_a, lora_b = np.zeros((2, 4)), np.zeros((4, 2))
    lora_a[0, 1], lora_b[3, 0] = 2.0, 5.0
    wanted = np.zeros((4, 4))
    wanted[3, 1] = 30.0
    update = LoRAFactors(lora_A=lora_a, lora_B=lora_b, scaling=3.0)
    np.testing.assert_array_equal(update.delta(), wanted)
    assert (update.rank, update.d_in, update.d_out) == (2, 4, 4)


def test_square_factors_of_full_rank_are_distinguished_by_name():
    rng = np.random.default_rng(0)
    lora_a, lora_b = rng.standard_normal((2, SQUARE, SQUARE))
    assert_close(LoRAFactors(lora_a, lora_b, 0.5).delta(), 0.5 * lora_b @ lora_a)
    assert_close(LoRAFactors(lora_A=lora_b, lora_B=lora_a).delta(), lora_a @ lora_b)


@quick
@given(factors())
def test_canonical_factors_are_balanced_and_the_same_update(update):
    canonical = update.canonical()
    scale = torch.linalg.matrix_norm(update.delta())
    assert_close(canonical.delta(), update.delta(), "factorization")
    gram_a, gram_b = canonical.lora_A @ canonical.lora_A.mT, canonical.lora_B.mT @ canonical.lora_B
    assert_close(gram_a, torch.diag(update.svd()[1]), "factorization", scale=scale)
    assert_close(gram_b, gram_a, "factorization", scale=scale)
    assert canonical.scaling == 1.0


@quick
@given(factors(), st.data())
def test_truncating_canonical_factors_is_the_best_approximation(update, data):
    r = data.draw(st.integers(1, update.rank))
    values = torch.linalg.svdvals(update.delta())
    error = torch.linalg.matrix_norm(update.delta() - update.canonical().truncate(r).delta())
    scale = torch.linalg.vector_norm(values)
    assert_close(error, torch.linalg.vector_norm(values[r:]), "factorization", scale=scale)
    assert_close(update.canonical(r).delta(), update.canonical().truncate(r).delta())


@quick
@given(factors(), st.floats(0.05, 20))
def test_rescaling_keeps_the_update_and_the_balance(update, scaling):
    other = update.rescale(scaling)
    assert other.scaling == scaling
    assert_close(other.delta(), update.delta())
    balance = torch.linalg.matrix_norm(update.lora_A) / torch.linalg.matrix_norm(update.lora_B)
    new = torch.linalg.matrix_norm(other.lora_A) / torch.linalg.matrix_norm(other.lora_B)
    assert_close(new, balance)


@quick
@given(factors(), st.data(), st.floats(0.05, 20))
def test_from_delta_is_the_best_balanced_split(update, data, scaling):
    dense = update.delta()
    r = data.draw(st.integers(1, min(dense.shape)))
    split = LoRAFactors.from_delta(dense, r, scaling)
    u, s, vh = torch.linalg.svd(dense, full_matrices=False)
    scale = torch.linalg.vector_norm(s)
    wanted = u[:, :r] @ torch.diag(s[:r]) @ vh[:r]
    assert (split.rank, split.scaling) == (r, scaling)
    assert_close(split.delta(), wanted, "iteration", scale=scale)
    gram_b, gram_a = split.lora_B.mT @ split.lora_B, split.lora_A @ split.lora_A.mT
    assert_close(scaling * gram_b, torch.diag(s[:r]), "factorization", scale=scale)
    assert_close(scaling * gram_a, torch.diag(s[:r]), "factorization", scale=scale)


@quick
@given(factors(batch=(2, 3)))
def test_leading_dimensions_are_one_by_one(update):
    u, s, vh = update.svd()
    canonical = update.canonical()
    for i, j in np.ndindex(2, 3):
        one = LoRAFactors(update.lora_A[i, j], update.lora_B[i, j], update.scaling)
        assert_close(update.delta()[i, j], one.delta())
        assert_close(s[i, j], one.svd()[1], "factorization")
        assert_close(u[i, j] * s[i, j] @ vh[i, j], one.delta(), "factorization")
        assert_close(canonical.truncate(1).delta()[i, j], one.canonical(1).delta(), "iteration")


@quick
@given(factors())
def test_column_amplitudes_are_singular_values_in_the_svd_gauge(update):
    s = update.svd()[1]
    assert_close(update.canonical().column_amplitudes(), s, "factorization", scale=s[0])
    norms = [
        torch.linalg.matrix_norm(update.scaling * b[:, None] @ a[None]) for a, b in pairs(update)
    ]
    assert_close(update.column_amplitudes(), norms)


def pairs(update):
    return list(zip(update.lora_A, update.lora_B.mT, strict=True))


def test_lost_columns_are_those_that_rounding_left():
    lora_a, lora_b = torch.eye(3, 5, dtype=torch.float64), torch.eye(4, 3, dtype=torch.float64)
    lora_a[1] *= torch.finfo(torch.float64).eps
    lora_b[:, 2] = 0
    update = LoRAFactors(torch.stack([lora_a, torch.zeros(3, 5)]), torch.stack([lora_b, lora_b]))
    assert update.lost_columns().tolist() == [[False, True, True], [True, True, True]]


def test_from_svd_pads_with_zeros():
    u, s, vh = random_factors(np.random.default_rng(1), 5, 7, 2).svd()
    padded = from_svd(u, s, vh, r=4)
    assert padded.rank == 4
    assert_close(padded.delta(), u * s @ vh, "factorization")
    np.testing.assert_array_equal(padded.lora_A[2:], 0)
    np.testing.assert_array_equal(padded.lora_B[:, 2:], 0)


def test_truncate_takes_the_first_components_and_keeps_the_scaling():
    update = random_factors(np.random.default_rng(2), 5, 7, 3, scaling=0.25)
    cut = update.truncate(2)
    np.testing.assert_array_equal(cut.lora_A, update.lora_A[:2])
    np.testing.assert_array_equal(cut.lora_B, update.lora_B[:, :2])
    assert cut.scaling == update.scaling


def test_the_zero_update_has_a_gauge():
    zero = LoRAFactors.from_delta(torch.zeros(4, 3), 2)
    np.testing.assert_array_equal(zero.delta(), 0)
    np.testing.assert_array_equal(zero.canonical().delta(), 0)
    assert torch.isnan(direction_preservation(zero.lora_B, zero.lora_A, zero))


@pytest.mark.parametrize("view", ["read_only", "reversed", "transposed", "list"])
def test_numpy_arrays_of_any_layout_are_taken(view):
    lora_a, lora_b = np.random.default_rng(3).standard_normal((2, 3, 3))
    given_a = {
        "read_only": lora_a.copy(),
        "reversed": np.ascontiguousarray(lora_a[::-1])[::-1],
        "transposed": np.ascontiguousarray(lora_a.T).T,
        "list": lora_a.tolist(),
    }[view]
    if view == "read_only":
        given_a.flags.writeable = False
    given_b = lora_b.tolist() if view == "list" else lora_b
    dtype = torch.float32 if view == "list" else torch.float64
    assert_close(LoRAFactors(given_a, given_b).delta(), lora_b @ lora_a, "reduction", dtype)


FINE_A, FINE_B = torch.ones(2, 5), torch.ones(4, 2)


@pytest.mark.parametrize(
    ("lora_a", "lora_b", "scaling", "message"),
    [
        (FINE_A.int(), FINE_B.int(), 1.0, r"lora_A='torch.int32 of shape \(2, 5\)'"),
        (FINE_A + 0j, FINE_B + 0j, 1.0, "lora_A='torch.complex64"),
        (FINE_A[0], FINE_B, 1.0, r"lora_A=.*\(5,\)"),
        (FINE_A, FINE_B[:, 0], 1.0, r"lora_B=.*\(4,\)"),
        (FINE_A.double(), FINE_B, 1.0, "lora_B=.*float32.*float64"),
        (FINE_B, FINE_A, 1.0, r"lora_B=\(2, 5\)"),
        (FINE_A, torch.ones(4, 3), 1.0, r"lora_B=\(4, 3\).*\(2, 5\)"),
        (torch.ones(2, 2, 5), torch.ones(3, 4, 2), 1.0, r"lora_B=\(3, 4, 2\)"),
        (torch.ones(0, 5), torch.ones(4, 0), 1.0, "rank=0"),
        (torch.ones(5, 5), torch.ones(4, 5), 1.0, "rank=5.*= 4"),
        (FINE_A, FINE_B, float("nan"), "scaling=nan"),
        (FINE_A, FINE_B, float("inf"), "scaling=inf"),
        (FINE_A, FINE_B, "much", "scaling='much'"),
    ],
)
def test_factors_that_do_not_fit_are_named(lora_a, lora_b, scaling, message):
    with pytest.raises(InputError, match=message):
        LoRAFactors(lora_a, lora_b, scaling)


@pytest.mark.parametrize("r", [0, -1, 3, 1.5, True, None, "two"])
def test_ranks_out_of_range_are_named(r):
    update = LoRAFactors(FINE_A, FINE_B)
    message = f"r={r!r}: expected"
    with pytest.raises(InputError, match=message):
        update.truncate(r)
    with pytest.raises(InputError, match=message):
        LoRAFactors.from_delta(torch.ones(2, 3), r)


@pytest.mark.parametrize("scaling", [0.0, -2.0, float("nan")])
def test_no_rescaling_to_a_scaling_that_is_not_positive(scaling):
    with pytest.raises(InputError, match="scaling="):
        LoRAFactors(FINE_A, FINE_B).rescale(scaling)


@pytest.mark.parametrize(
    "dense", [torch.ones(4), torch.ones(4, 4).int(), torch.full((4, 4), float("nan"))]
)
def test_from_delta_names_a_dense_update_that_cannot_be_split(dense):
    with pytest.raises(InputError, match="W="):
        LoRAFactors.from_delta(dense, 1)
