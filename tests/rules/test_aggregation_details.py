"""Properties of the package's rules in addition to the laws of `fedlora_sim.conformance`.

Scalings that differ from the cohort's, weights beyond float32, half precision bit by bit, batches
of batches, and relations between rules.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from designs import pairwise
from hypothesis import assume, given
from hypothesis import strategies as st
from simulator_cases import (
    ALL_RULES,
    EXACT_RULES,
    PRODUCT_RULES,
    assert_close,
    differs,
    map_factors,
    per_rule,
    quick,
    random_factors,
    rounds,
)

from fedlora_sim import LoRAFactors, aggregate
from fedlora_sim.conformance.case import only
from fedlora_sim.federation import partition_slices

SEEDS = st.integers(0, 2**32 - 1)
every_rule = pytest.mark.parametrize("rule", ALL_RULES)


def size(cohort):
    parts = (*cohort.updates, cohort.previous)
    return sum(float(torch.linalg.matrix_norm(u.delta())) for u in parts)


def assert_same(rule, one, other, kind="factorization"):
    """Check for equal global updates; rounds of full rank avoid the truncation to r_max."""
    assert_close(one.delta(rule), other.delta(rule), kind, scale=size(one))


@pytest.mark.slow
@every_rule
@per_rule
@given(cohort=rounds(full_rank=True), factor=st.floats(1e-6, 1e6))
def test_weights_are_relative_over_many_orders(rule, cohort, factor):
    cohort = cohort.suit(rule)
    scaled = replace(cohort, weights=tuple(factor * n for n in cohort.weights))
    assert_same(rule, cohort, scaled)


@every_rule
@pytest.mark.parametrize("factor", [1e-50, 1e50])
def test_weights_are_relative_in_float32_as_well(rule, factor):
    rng = np.random.default_rng(0)
    whole = random_factors(rng, 4, 4, 4, dtype=torch.float32)
    updates = [whole.truncate(2), map_factors(whole, on_b=lambda b: b.flip(0))]
    scaled = aggregate(updates, [2 * factor, factor], rule).delta()
    assert_close(scaled, aggregate(updates, [2, 1], rule).delta(), "factorization", torch.float32)


@every_rule
@per_rule
@given(cohort=rounds(full_rank=True), seed=SEEDS, data=st.data())
def test_a_client_without_samples_changes_nothing_whatever_its_rank_and_scaling(
    rule, cohort, seed, data
):
    cohort, r = cohort.suit(rule), data.draw(st.sampled_from(cohort.rank_levels))
    scaling = data.draw(st.sampled_from([cohort.updates[0].scaling, 3.0, 0.0, -1.0]))
    d_out, d_in = cohort.previous.d_out, cohort.previous.d_in
    extra = random_factors(np.random.default_rng(seed), d_out, d_in, r, scaling)
    assert_same(rule, cohort, cohort.inserted(len(cohort.updates), extra, 0.0))


@quick
@given(cohort=rounds(full_rank=True), factor=st.floats(1, 100))
def test_hetlora_uses_only_clients_that_took_part(cohort, factor):
    first = factor * cohort.weights[0]
    more = replace(cohort, weights=(first, *cohort.weights[1:]))
    assert_same("hetlora", cohort, more, "exact")


@every_rule
@per_rule
@given(cohort=rounds(), copies=st.integers(1, 4))
def test_identical_clients_return_one_client_up_to_rounding(rule, cohort, copies):
    cohort = cohort.suit(rule)
    update = cohort.updates[0]
    same = replace(
        cohort, updates=(update,) * copies, weights=(3.0,) * copies, empty_partition="zero"
    )
    assert_close(same.delta(rule), update.delta(), "factorization")


@quick
@given(cohort=rounds())
def test_flora_and_fedex_are_exact_where_the_adapter_is_cut(cohort):
    """With the highest level below min(d_in, d_out), which truncates FedAvg's average."""
    pairs = zip(cohort.updates, cohort.weights, strict=True)
    wanted = sum(n / sum(cohort.weights) * u.delta() for u, n in pairs)
    for rule in ("flora", "fedex"):
        assert_close(cohort.delta(rule), wanted, "factorization", scale=size(cohort))
    assert not bool(cohort.adapter("flora").delta().any())


@quick
@given(cohort=rounds())
def test_with_equal_ranks_rbla_is_zero_padding(cohort):
    r = min(update.rank for update in cohort.updates)
    equal = replace(
        cohort,
        updates=tuple(update.truncate(r) for update in cohort.updates),
        rank_levels=(r,),
        previous=cohort.previous.truncate(r),
    )
    scale = size(equal)
    assert_close(equal.delta("rbla"), equal.delta("zero_pad"), "factorization", scale=scale)


@quick
@given(cohort=rounds(full_rank=True))
def test_the_partitions_of_raflora_sum_to_the_whole(cohort):
    cohort, summed = replace(cohort, empty_partition="zero"), 0
    for part in partition_slices(cohort.rank_levels):
        masked = cohort.in_partition(part)
        summed = summed + masked.delta("raflora")
    assert_close(cohort.delta("raflora"), summed, "factorization", scale=size(cohort))


@quick
@given(cohort=rounds(full_rank=True), seed=SEEDS, weight=st.integers(1, 20))
def test_a_low_rank_client_leaves_the_higher_partitions_alone(cohort, seed, weight):
    """For any content; the suite's law is about single directions."""
    assume(len(cohort.rank_levels) > 1)
    high = slice(cohort.rank_levels[0], None)
    low = random_factors(
        np.random.default_rng(seed),
        cohort.previous.d_out,
        cohort.previous.d_in,
        cohort.rank_levels[0],
    )
    before = cohort.in_partition(high)
    after = before.inserted(len(before.updates), only(low, high), float(weight))
    assert_same("raflora", before, after)
    brought = any(
        u.rank > high.start and n > 0 for u, n in zip(before.updates, before.weights, strict=True)
    )
    assert differs(after.delta("fedavg"), before.delta("fedavg")) == brought


@pytest.mark.parametrize("rule", sorted({*PRODUCT_RULES, *EXACT_RULES}))
@per_rule
@given(cohort=rounds(full_rank=True), data=st.data())
def test_only_averages_of_factors_care_which_factor_holds_the_scaling(rule, cohort, data):
    def moved(update):
        c = data.draw(st.floats(0.1, 10))
        return map_factors(update, on_b=lambda b: b / c, scaling=update.scaling * c)

    cohort = cohort.suit(rule)
    assert_same(rule, cohort, cohort.map(moved))


@pytest.mark.slow
@every_rule
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@per_rule
@given(cohort=rounds())
def test_half_precision_is_computed_in_float32(rule, dtype, cohort):
    def cast(to):
        return lambda u: LoRAFactors(u.lora_A.to(to), u.lora_B.to(to), u.scaling)

    half = cohort.suit(rule).map(cast(dtype))
    result, single = half.aggregate(rule), half.map(cast(torch.float32)).aggregate(rule)
    assert result.adapter.dtype == dtype
    assert torch.equal(result.adapter.lora_A, single.adapter.lora_A.to(dtype))
    assert torch.equal(result.adapter.lora_B, single.adapter.lora_B.to(dtype))
    if rule in ("flora", "fedex"):  # the base contains the rounding error of the adapter
        whole = (result.delta(), single.delta())
        assert_close(*whole, "reduction", torch.float32, scale=size(cohort.suit(rule)))


@pairwise(rule=ALL_RULES, empty_partition=["carry", "zero"], ranks=[(2, 4, 2), (2, 2), (2, 2, 6)])
def test_leading_dimensions_are_one_by_one(rule, empty_partition, ranks):
    rng = np.random.default_rng(1)
    updates = [random_factors(rng, 8, 7, r, 1 + r / 4, batch=(2, 3)) for r in ranks]
    previous = random_factors(rng, 8, 7, 6, batch=(2, 3))
    if rule == "ffa":
        updates = [
            map_factors(u, on_a=lambda a: previous.lora_A[..., : a.shape[-2], :]) for u in updates
        ]
    options = {"rank_levels": (2, 4, 6), "empty_partition": empty_partition}
    weights = [1.0, 2.0, 3.0][: len(ranks)]
    batched = aggregate(updates, weights, rule, previous=previous, **options).delta()
    for i, j in np.ndindex(2, 3):
        one = [LoRAFactors(u.lora_A[i, j], u.lora_B[i, j], u.scaling) for u in updates]
        last = LoRAFactors(previous.lora_A[i, j], previous.lora_B[i, j])
        alone = aggregate(one, weights, rule, previous=last, **options).delta()
        assert_close(batched[i, j], alone, "iteration")
