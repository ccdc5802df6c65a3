"""What must hold of the rules whatever the cohort, by the laws that they state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from simulator_cases import (
    PRODUCT_RULES,
    RULES,
    assert_close,
    differs,
    map_factors,
    only_partition,
    orthogonal,
    quick,
    random_factors,
    rounds,
)

from fedlora_sim import LoRAFactors, aggregate
from fedlora_sim.aggregation import get_rule
from fedlora_sim.federation import partition_slices

SEEDS = st.integers(0, 2**32 - 1)
every_rule = pytest.mark.parametrize("rule", RULES)
product_rules = pytest.mark.parametrize("rule", PRODUCT_RULES)


def size(cohort):
    parts = (*cohort.updates, cohort.previous)
    return sum(float(torch.linalg.matrix_norm(u.delta())) for u in parts)


def assert_same(rule, one, other, kind="factorization"):
    """Equal global updates; cutting to r_max is left out by rounds of full rank."""
    assert_close(one.delta(rule), other.delta(rule), kind, scale=size(one))


@every_rule
@quick
@given(cohort=rounds(full_rank=True), data=st.data())
def test_the_order_of_the_clients_does_not_matter(rule, cohort, data):
    order = data.draw(st.permutations(range(len(cohort.updates))))
    shuffled = replace(
        cohort,
        updates=tuple(cohort.updates[k] for k in order),
        weights=tuple(cohort.weights[k] for k in order),
    )
    assert_same(rule, cohort, shuffled)


@every_rule
@quick
@given(cohort=rounds(full_rank=True), factor=st.floats(1e-6, 1e6))
def test_weights_are_relative(rule, cohort, factor):
    scaled = replace(cohort, weights=tuple(factor * n for n in cohort.weights))
    assert_same(rule, cohort, scaled)


@every_rule
@pytest.mark.parametrize("factor", [1e-50, 1e50])
def test_weights_are_relative_in_float32_as_well(rule, factor):
    rng = np.random.default_rng(0)
    updates = [random_factors(rng, 4, 4, r, dtype=torch.float32) for r in (2, 4)]
    scaled = aggregate(updates, [2 * factor, factor], rule).delta()
    assert_close(scaled, aggregate(updates, [2, 1], rule).delta(), "factorization", torch.float32)


@every_rule
@quick
@given(cohort=rounds(full_rank=True), seed=SEEDS, data=st.data())
def test_a_client_without_samples_changes_nothing(rule, cohort, seed, data):
    r = data.draw(st.sampled_from(cohort.levels))
    scaling = data.draw(st.sampled_from([cohort.updates[0].scaling, 3.0, 0.0, -1.0]))
    d_out, d_in = cohort.previous.d_out, cohort.previous.d_in
    extra = random_factors(np.random.default_rng(seed), d_out, d_in, r, scaling)
    assert_same(rule, cohort, cohort.with_client(extra, 0))


@every_rule
@quick
@given(cohort=rounds(full_rank=True))
def test_twice_the_samples_is_the_client_twice(rule, cohort):
    doubled = replace(cohort, weights=(2 * cohort.weights[0], *cohort.weights[1:]))
    assert_same(rule, doubled, cohort.with_client(cohort.updates[0], cohort.weights[0]))


@every_rule
@quick
@given(cohort=rounds(), copies=st.integers(1, 4))
def test_one_client_or_identical_clients_come_back_as_they_are(rule, cohort, copies):
    update = cohort.updates[0]
    same = replace(
        cohort, updates=(update,) * copies, weights=(3.0,) * copies, empty_partition="zero"
    )
    result = same.aggregate(rule)
    assert result.rank == cohort.levels[-1]
    assert_close(result.delta(), update.delta(), "factorization")


@quick
@given(cohort=rounds())
def test_equal_ranks_leave_nothing_to_partition(cohort):
    r = min(update.rank for update in cohort.updates)
    equal = replace(
        cohort,
        updates=tuple(update.truncate(r) for update in cohort.updates),
        levels=(r,),
        previous=cohort.previous.truncate(r),
    )
    assert_same("raflora", equal, equal, "exact")
    assert_close(equal.delta("raflora"), equal.delta("fedavg"), "factorization", scale=size(equal))


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


@every_rule
@quick
@given(cohort=rounds(full_rank=True), data=st.data())
def test_only_the_update_counts_and_not_its_scaling(rule, cohort, data):
    other = tuple(u.rescale(data.draw(st.floats(0.1, 10))) for u in cohort.updates)
    assert_same(rule, cohort, replace(cohort, updates=other, previous=cohort.previous.rescale(3.0)))


@product_rules
@quick
@given(cohort=rounds(full_rank=True), c=st.floats(0.1, 10))
def test_product_space_does_not_care_which_factor_holds_the_scaling(rule, cohort, c):
    def moved(update):
        return map_factors(update, on_b=lambda b: b / c, scaling=update.scaling * c)

    assert_same(rule, cohort, cohort.map(moved))


@every_rule
@quick
@given(cohort=rounds(full_rank=True), seed=SEEDS)
def test_turning_the_layer_turns_the_result(rule, cohort, seed):
    rng = np.random.default_rng(seed)
    left, right = orthogonal(rng, cohort.previous.d_out), orthogonal(rng, cohort.previous.d_in)
    turned = cohort.map(
        lambda u: map_factors(u, on_a=lambda a: a @ right.mT, on_b=lambda b: left @ b)
    )
    wanted = left @ cohort.delta(rule) @ right.mT
    assert_close(turned.delta(rule), wanted, "factorization", scale=size(cohort))


@every_rule
@quick
@given(cohort=rounds())
def test_inputs_stay_as_they_were_and_the_same_call_gives_the_same_bits(rule, cohort):
    given_factors = (*cohort.updates, cohort.previous)
    before = [(u.lora_A.clone(), u.lora_B.clone()) for u in given_factors]
    first, second = cohort.aggregate(rule), cohort.aggregate(rule)
    for update, (lora_a, lora_b) in zip(given_factors, before, strict=True):
        assert torch.equal(update.lora_A, lora_a)
        assert torch.equal(update.lora_B, lora_b)
    assert torch.equal(first.lora_A, second.lora_A)
    assert torch.equal(first.lora_B, second.lora_B)


@every_rule
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@quick
@given(cohort=rounds())
def test_half_precision_is_computed_in_float32(rule, dtype, cohort):
    def cast(to):
        return lambda u: LoRAFactors(u.lora_A.to(to), u.lora_B.to(to), u.scaling)

    half = cohort.map(cast(dtype))
    result, single = half.aggregate(rule), half.map(cast(torch.float32)).aggregate(rule)
    assert result.dtype == dtype
    assert torch.equal(result.lora_A, single.lora_A.to(dtype))
    assert torch.equal(result.lora_B, single.lora_B.to(dtype))


@every_rule
@pytest.mark.parametrize("empty_partition", ["carry", "zero"])
@pytest.mark.parametrize("ranks", [(2, 4, 2), (2, 2), (2, 2, 6)])
def test_leading_dimensions_are_one_by_one(rule, empty_partition, ranks):
    rng = np.random.default_rng(1)
    updates = [random_factors(rng, 8, 7, r, 1 + r / 4, batch=(2, 3)) for r in ranks]
    previous = random_factors(rng, 8, 7, 6, batch=(2, 3))
    options = {"rank_levels": (2, 4, 6), "empty_partition": empty_partition}
    weights = [1.0, 2.0, 3.0][: len(ranks)]
    batched = aggregate(updates, weights, rule, previous=previous, **options).delta()
    for i, j in np.ndindex(2, 3):
        one = [LoRAFactors(u.lora_A[i, j], u.lora_B[i, j], u.scaling) for u in updates]
        last = LoRAFactors(previous.lora_A[i, j], previous.lora_B[i, j])
        alone = aggregate(one, weights, rule, previous=last, **options).delta()
        assert_close(batched[i, j], alone, "iteration")


def fixed_basis_cohort(ranks, amplitudes, scaling):
    """Clients that return the directions of one basis with common amplitudes."""
    rng = np.random.default_rng(2)
    q = len(amplitudes)
    u, v = orthogonal(rng, q + 2)[:, :q], orthogonal(rng, q + 1)[:, :q]
    root = torch.from_numpy(np.sqrt(amplitudes))
    whole = LoRAFactors((v * root).mT, u * root).rescale(scaling)
    return [whole.truncate(r) for r in ranks], u, v


@every_rule
@pytest.mark.parametrize("scaling", [1.0, 0.25])
def test_the_declared_multiplier_is_what_real_factors_show(rule, scaling):
    amplitudes = np.array([5.0, 4.0, 3.0, 2.0, 1.0])
    ranks, samples = (1, 3, 3, 4), np.array([4.0, 1.0, 2.0, 3.0])
    updates, u, v = fixed_basis_cohort(ranks, amplitudes, scaling)
    coverage = (samples / samples.sum()) @ (np.array(ranks)[:, None] > np.arange(5))
    result = aggregate(updates, samples, rule, rank_levels=(1, 3, 4, 5), empty_partition="zero")
    measured = torch.diag(u.mT @ result.delta() @ v)
    declared = get_rule(rule).multiplier(torch.from_numpy(coverage))
    assert_close(measured, declared * torch.from_numpy(amplitudes), "factorization")


@every_rule
def test_direction_weights_are_shares(rule):
    weights = torch.tensor([[1.0, 2.0, 3.0], [0.0, 5.0, 1.0]], dtype=torch.float64)
    members = torch.tensor([[True, True], [True, False], [True, False]])
    shares = get_rule(rule).direction_weights(weights, members)
    assert shares.shape == (2, 3, 2)
    assert_close(shares[..., 0], weights / weights.sum(-1, keepdim=True))
    high = {"raflora": [1.0, 0.0]}.get(rule, [1 / 6, 0.0])
    assert_close(shares[..., 1].sum(-1), high)
    np.testing.assert_array_equal(shares[:, 1:, 1], 0)
