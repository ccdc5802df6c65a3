"""`Aggregated`: adapter and base as one update, truncated or full; the residual of FedEx."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from designs import each_value
from hypothesis import given
from hypothesis import strategies as st
from simulator_cases import (
    ALL_RULES,
    assert_close,
    map_factors,
    per_rule,
    quick,
    random_factors,
    rounds,
)

from fedlora_sim import LoRAFactors, aggregate
from fedlora_sim.errors import InputError
from fedlora_sim.rules import get_rule


def norm(x):
    return float(torch.linalg.matrix_norm(x))


def size(cohort):
    return sum(norm(u.delta()) for u in (*cohort.updates, cohort.previous))


@pytest.mark.parametrize("rule", ALL_RULES)
@per_rule
@given(cohort=rounds(), data=st.data())
def test_one_update_seen_from_all_sides(rule, cohort, data):
    cohort = cohort.suit(rule)
    result, scale = cohort.aggregate(rule), size(cohort)
    whole = result.adapter.delta()
    if result.base is not None:
        whole = whole + result.base.dense()
    values = torch.linalg.svdvals(whole)
    assert_close(result.delta(), whole, scale=scale)
    assert_close(result.product.dense(), whole, scale=scale)
    assert_close(result.total().delta(), whole, "factorization", scale=scale)
    assert_close(
        result.singular_values(), values[: cohort.rank_levels[-1]], "factorization", scale=scale
    )
    r = data.draw(st.integers(1, min(whole.shape)))
    total = result.total(r)
    assert (total.rank, total.scaling) == (r, 1.0)
    error = norm(total.delta() - whole)
    assert_close(error, torch.linalg.vector_norm(values[r:]), "factorization", scale=scale)
    assert (result.base is None) == (not get_rule(rule).residual_in_base)


@pytest.mark.parametrize("rule", ["raflora", "flora"])
@pytest.mark.parametrize("r", [0, -1, 1.5, True, "two", 6])
def test_a_total_of_no_possible_rank_is_refused(rule, r):
    result = aggregate([random_factors(np.random.default_rng(0), 6, 5, 2)], None, rule)
    assert result.total(5).rank == 5
    with pytest.raises(InputError, match=f"r={r!r}"):
        result.total(r)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", ["fedex", "zero_pad", "ffa", "flora"])
def test_a_scaling_that_half_precision_cannot_hold_is_not_rounded(rule, dtype):
    rng = np.random.default_rng(1)
    updates = [random_factors(rng, 7, 6, r, 1 / 3, dtype) for r in (4, 2)]
    if rule == "ffa":
        updates[1] = map_factors(updates[1], on_a=lambda a: updates[0].lora_A[: a.shape[-2]])
    result = aggregate(updates, None, rule)
    adapter = result.adapter.to(torch.float64)
    wanted = adapter.delta()
    if result.base is not None:
        wanted = wanted + result.base.dense().double()
    assert rule == "flora" or result.adapter.scaling == 1 / 3
    assert_close(result.product.dense().double(), wanted, dtype=torch.float32)
    values = torch.linalg.svdvals(wanted)[:4]
    assert_close(result.singular_values(), values, "factorization", torch.float32)
    assert result.total(3).dtype == dtype


@quick
@given(cohort=rounds(), rank=st.integers(1, 12))
def test_fedex_keeps_the_best_residual_of_a_rank(cohort, rank):
    exact, cut = cohort.aggregate("fedex"), cohort.aggregate(f"fedex:residual_rank={rank}")
    assert torch.equal(cut.adapter.lora_A, exact.adapter.lora_A)
    assert torch.equal(cut.adapter.lora_B, exact.adapter.lora_B)
    residual, kept = exact.base.dense(), cut.base.dense()
    values = torch.linalg.svdvals(residual)
    scale = size(cohort)
    error = norm(residual - kept)
    assert_close(error, torch.linalg.vector_norm(values[rank:]), "factorization", scale=scale)
    rest = torch.linalg.svdvals(kept)[rank:]
    assert_close(rest, torch.zeros_like(rest), "factorization", scale=scale)


@quick
@given(cohort=rounds(), data=st.data())
def test_the_base_compensates_the_truncation_of_the_adapter(cohort, data):
    rank = data.draw(st.integers(1, cohort.rank_levels[-1]))
    cut = cohort.aggregate("fedex", rank=rank, scaling=0.7)
    assert (cut.adapter.rank, cut.adapter.scaling) == (rank, 0.7)
    assert_close(cut.delta(), cohort.delta("fedex"), "factorization", scale=size(cohort))


def test_rows_of_a_frozen_a_without_contributor_are_the_sent_ones():
    rng = np.random.default_rng(4)
    sent = random_factors(rng, 7, 6, 5)
    cohort = [LoRAFactors(sent.lora_A[:2], random_factors(rng, 7, 6, 2).lora_B, 0.25)]
    options = {"rank_levels": (2, 5)}
    known = aggregate(cohort, None, "ffa", previous=sent, scaling=0.5, **options).adapter
    assert torch.equal(known.lora_A, sent.lora_A)
    assert not known.lora_B[:, 2:].any()
    assert_close(known.delta(), cohort[0].delta())
    assert not aggregate(cohort, None, "ffa", **options).adapter.lora_A[2:].any()


@pytest.mark.parametrize("rule", ["flora", "fedex"])
def test_an_exact_total_has_no_more_columns_than_the_clients(rule):
    rng = np.random.default_rng(6)
    updates = [random_factors(rng, 30, 25, r, 16 / r) for r in (2, 4, 8)]
    result = aggregate(updates, [1, 2, 3], rule)
    assert result.total().rank == result.product.columns == 14
    wanted = sum(n / 6 * u.delta() for n, u in zip((1, 2, 3), updates, strict=True))
    assert_close(result.total().delta(), wanted, "factorization")


def test_a_common_a_is_required_per_layer_and_from_the_last_adapter():
    rng = np.random.default_rng(7)
    large = random_factors(rng, 5, 6, 3, batch=(2,))
    scale = torch.tensor([1.0, 1e-9], dtype=torch.float64).reshape(2, 1, 1)
    first = LoRAFactors(large.lora_A * scale, large.lora_B)
    other = first.lora_A.clone()
    other[1] = other[1].flip(0)
    with pytest.raises(InputError, match=r"updates\[1\].lora_A.*the same A"):
        aggregate([first, LoRAFactors(other, large.lora_B)], None, "ffa")
    with pytest.raises(InputError, match=r"previous.lora_A.*the same A"):
        aggregate([first], None, "ffa", previous=LoRAFactors(other, large.lora_B))


def test_equal_factors_leave_no_residual():
    update = random_factors(np.random.default_rng(2), 6, 5, 3, 0.5)
    result = aggregate([update, update], [1, 2], "fedex")
    scale = norm(update.delta())
    assert_close(result.base.dense(), torch.zeros(6, 5), scale=scale)


@each_value(rule=ALL_RULES, shape=[(), (2,), (2, 3)])
def test_results_keep_the_leading_dimensions(rule, shape):
    rng = np.random.default_rng(3)
    whole = random_factors(rng, 7, 6, 3, 0.5, torch.float32, shape)
    updates = [whole, map_factors(whole.truncate(2), on_b=lambda b: b.flip(-2))]
    result = aggregate(updates, None, rule)
    assert result.delta().shape == (*shape, 7, 6)
    assert result.total(4).lora_A.shape == (*shape, 4, 6)
    assert result.singular_values().shape == (*shape, 3)
