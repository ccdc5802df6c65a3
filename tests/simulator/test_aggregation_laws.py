"""Whose updates count, and how much: what must hold of the rules whatever the cohort."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from law_cases import SEEDS, all_rules_but, assert_same, every_rule, size
from simulator_cases import (
    CANONICAL,
    EXACT_RULES,
    assert_close,
    differs,
    map_factors,
    only_partition,
    per_rule,
    quick,
    random_factors,
    rounds,
)

from fedlora_sim import aggregate
from fedlora_sim.federation import partition_slices


@every_rule
@per_rule
@given(cohort=rounds(full_rank=True), data=st.data())
def test_the_order_of_the_clients_does_not_matter(rule, cohort, data):
    cohort = cohort.suit(rule)
    order = data.draw(st.permutations(range(len(cohort.updates))))
    shuffled = replace(
        cohort,
        updates=tuple(cohort.updates[k] for k in order),
        weights=tuple(cohort.weights[k] for k in order),
    )
    assert_same(rule, cohort, shuffled)


@every_rule
@per_rule
@given(cohort=rounds(full_rank=True), factor=st.floats(1e-6, 1e6))
def test_weights_are_relative(rule, cohort, factor):
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
def test_a_client_without_samples_changes_nothing(rule, cohort, seed, data):
    cohort, r = cohort.suit(rule), data.draw(st.sampled_from(cohort.levels))
    scaling = data.draw(st.sampled_from([cohort.updates[0].scaling, 3.0, 0.0, -1.0]))
    d_out, d_in = cohort.previous.d_out, cohort.previous.d_in
    extra = random_factors(np.random.default_rng(seed), d_out, d_in, r, scaling)
    assert_same(rule, cohort, cohort.with_client(extra, 0))


@all_rules_but("hetlora")  # its paper's weights are norms alone
@per_rule
@given(cohort=rounds(full_rank=True))
def test_twice_the_samples_is_the_client_twice(rule, cohort):
    cohort = cohort.suit(rule)
    doubled = replace(cohort, weights=(2 * cohort.weights[0], *cohort.weights[1:]))
    assert_same(rule, doubled, cohort.with_client(cohort.updates[0], cohort.weights[0]))


@quick
@given(cohort=rounds(full_rank=True), factor=st.floats(1, 100))
def test_hetlora_asks_only_who_took_part(cohort, factor):
    first = factor * cohort.weights[0]
    more = replace(cohort, weights=(first, *cohort.weights[1:]))
    assert_same("hetlora", cohort, more, "exact")


@every_rule
@per_rule
@given(cohort=rounds(), copies=st.integers(1, 4))
def test_one_client_or_identical_clients_come_back_as_they_are(rule, cohort, copies):
    cohort = cohort.suit(rule)
    update = cohort.updates[0]
    same = replace(
        cohort, updates=(update,) * copies, weights=(3.0,) * copies, empty_partition="zero"
    )
    result = same.aggregate(rule)
    assert result.adapter.rank == cohort.levels[-1]
    assert_close(result.delta(), update.delta(), "factorization")


@pytest.mark.parametrize("rule", EXACT_RULES)
@quick
@given(cohort=rounds(full_rank=True))
def test_exact_rules_return_the_weighted_sum_of_the_products(rule, cohort):
    cohort = cohort.suit(rule)
    pairs = zip(cohort.updates, cohort.weights, strict=True)
    wanted = sum(n / sum(cohort.weights) * u.delta() for u, n in pairs)
    assert_close(cohort.delta(rule), wanted, "factorization", scale=size(cohort))


@quick
@given(cohort=rounds())
def test_flora_and_fedex_are_exact_where_the_adapter_is_cut(cohort):
    """With the highest level below min(d_in, d_out), which cuts FedAvg's average."""
    pairs = zip(cohort.updates, cohort.weights, strict=True)
    wanted = sum(n / sum(cohort.weights) * u.delta() for u, n in pairs)
    for rule in ("flora", "fedex"):
        assert_close(cohort.delta(rule), wanted, "factorization", scale=size(cohort))
    assert not bool(cohort.adapter("flora").delta().any())


@pytest.mark.parametrize(
    ("rule", "same"), [("raflora", "fedavg"), (CANONICAL, "fedavg"), ("rbla", "zero_pad")]
)
@quick
@given(cohort=rounds())
def test_equal_ranks_leave_nothing_to_partition(rule, same, cohort):
    r = min(update.rank for update in cohort.updates)
    equal = replace(
        cohort,
        updates=tuple(update.truncate(r) for update in cohort.updates),
        levels=(r,),
        previous=cohort.previous.truncate(r),
    )
    assert_same(rule, equal, equal, "exact")
    assert_close(equal.delta(rule), equal.delta(same), "factorization", scale=size(equal))


@quick
@given(cohort=rounds(full_rank=True))
def test_a_partition_of_raflora_is_that_of_fedavg_over_its_coverage(cohort):
    cohort = replace(cohort, empty_partition="zero")
    summed, total = 0, sum(cohort.weights)
    for part, level in zip(partition_slices(cohort.levels), cohort.levels, strict=True):
        pairs = zip(cohort.updates, cohort.weights, strict=True)
        coverage = sum(n for u, n in pairs if u.rank >= level) / total
        if coverage > 0:
            masked = cohort.map(lambda u, part=part: only_partition(u, part))
            diluted = masked.delta("fedavg") / coverage
            scale = size(cohort) / coverage
            assert_close(masked.delta("raflora"), diluted, "factorization", scale=scale)
            summed = summed + diluted
    lowest = min(n for n in cohort.weights if n > 0) / total
    assert_close(cohort.delta("raflora"), summed, "factorization", scale=size(cohort) / lowest)


@quick
@given(cohort=rounds(full_rank=True), seed=SEEDS, weight=st.integers(1, 20))
def test_a_low_rank_client_leaves_the_higher_partitions_alone(cohort, seed, weight):
    assume(len(cohort.levels) > 1)
    high = slice(cohort.levels[0], None)
    low = random_factors(
        np.random.default_rng(seed), cohort.previous.d_out, cohort.previous.d_in, cohort.levels[0]
    )
    before = cohort.map(lambda u: only_partition(u, high))
    after = before.with_client(only_partition(low, high), weight)
    assert_same("raflora", before, after)
    brought = any(
        u.rank > high.start and n > 0 for u, n in zip(before.updates, before.weights, strict=True)
    )
    assert differs(after.delta("fedavg"), before.delta("fedavg")) == brought
