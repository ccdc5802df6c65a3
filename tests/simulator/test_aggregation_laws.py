"""What must hold of the rules whatever the cohort, by the laws that they state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from simulator_cases import (
    ALL_RULES,
    CANONICAL,
    EXACT_RULES,
    PRODUCT_RULES,
    Round,
    assert_close,
    differs,
    map_factors,
    only_partition,
    orthogonal,
    per_rule,
    quick,
    random_factors,
    rounds,
)

from fedlora_sim import LoRAFactors, aggregate
from fedlora_sim.federation import partition_slices

SEEDS = st.integers(0, 2**32 - 1)
every_rule = pytest.mark.parametrize("rule", ALL_RULES)


def all_rules_but(*exceptions):
    """Every rule that states the law; the test says why the others do not."""
    return pytest.mark.parametrize("rule", [rule for rule in ALL_RULES if rule not in exceptions])


def size(cohort):
    parts = (*cohort.updates, cohort.previous)
    return sum(float(torch.linalg.matrix_norm(u.delta())) for u in parts)


def assert_same(rule, one, other, kind="factorization"):
    """Equal global updates; cutting to r_max is left out by rounds of full rank."""
    assert_close(one.delta(rule), other.delta(rule), kind, scale=size(one))


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


@all_rules_but("ffa")  # its A has to stay common; the scaling may move to and from B, as below
@per_rule
@given(cohort=rounds(full_rank=True), data=st.data())
def test_only_the_update_counts_and_not_its_scaling(rule, cohort, data):
    other = tuple(u.rescale(data.draw(st.floats(0.1, 10))) for u in cohort.updates)
    assert_same(rule, cohort, replace(cohort, updates=other, previous=cohort.previous.rescale(3.0)))


@pytest.mark.parametrize("rule", sorted({*PRODUCT_RULES, *EXACT_RULES}))
@per_rule
@given(cohort=rounds(full_rank=True), data=st.data())
def test_only_averages_of_factors_care_which_factor_holds_the_scaling(rule, cohort, data):
    def moved(update):
        c = data.draw(st.floats(0.1, 10))
        return map_factors(update, on_b=lambda b: b / c, scaling=update.scaling * c)

    cohort = cohort.suit(rule)
    assert_same(rule, cohort, cohort.map(moved))


@every_rule
@per_rule
@given(cohort=rounds(full_rank=True), seed=SEEDS)
def test_turning_the_layer_turns_the_result(rule, cohort, seed):
    rng, cohort = np.random.default_rng(seed), cohort.suit(rule)
    left, right = orthogonal(rng, cohort.previous.d_out), orthogonal(rng, cohort.previous.d_in)
    turned = cohort.map(
        lambda u: map_factors(u, on_a=lambda a: a @ right.mT, on_b=lambda b: left @ b)
    )
    wanted = left @ cohort.delta(rule) @ right.mT
    assert_close(turned.delta(rule), wanted, "factorization", scale=size(cohort))


@every_rule
@per_rule
@given(cohort=rounds())
def test_inputs_stay_as_they_were_and_the_same_call_gives_the_same_bits(rule, cohort):
    cohort = cohort.suit(rule)
    given_factors = (*cohort.updates, cohort.previous)
    before = [(u.lora_A.clone(), u.lora_B.clone()) for u in given_factors]
    first, second = cohort.aggregate(rule), cohort.aggregate(rule)
    for update, (lora_a, lora_b) in zip(given_factors, before, strict=True):
        assert torch.equal(update.lora_A, lora_a)
        assert torch.equal(update.lora_B, lora_b)
    assert torch.equal(first.adapter.lora_A, second.adapter.lora_A)
    assert torch.equal(first.adapter.lora_B, second.adapter.lora_B)
    assert torch.equal(first.delta(), second.delta())


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
    if rule in ("flora", "fedex"):  # what rounding the adapter takes away is in the base
        whole = (result.delta(), single.delta())
        assert_close(*whole, "reduction", torch.float32, scale=size(cohort.suit(rule)))


@every_rule
@pytest.mark.parametrize("empty_partition", ["carry", "zero"])
@pytest.mark.parametrize("ranks", [(2, 4, 2), (2, 2), (2, 2, 6)])
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


def gauges(cohort, seed):
    """The same updates, each written with an invertible G of its own: `B G`, `G^-1 A`."""
    rng = np.random.default_rng(seed)

    def change(update):
        left, right = orthogonal(rng, update.rank), orthogonal(rng, update.rank)
        g = left * torch.from_numpy(rng.uniform(0.5, 2, update.rank)) @ right
        return map_factors(update, lambda a: torch.linalg.inv(g) @ a, lambda b: b @ g)

    return replace(cohort, updates=tuple(map(change, cohort.updates)))


@pytest.mark.parametrize("rule", ["fedavg", "flora", "fedex", CANONICAL])
@per_rule
@given(cohort=rounds(full_rank=True), seed=SEEDS)
def test_these_rules_see_updates_and_not_how_they_are_written(rule, cohort, seed):
    # A singular value that nearly equals its neighbour turns the directions between them.
    kind = "iteration" if rule == CANONICAL else "factorization"
    assert_same(rule, cohort, gauges(cohort, seed), kind)


@pytest.mark.parametrize("rule", ["raflora", "rbla", "zero_pad"])
def test_these_rules_depend_on_how_an_update_is_written(rule):
    """What stands in which partition is the gauge's choice: `canonicalize` is there for that."""
    rng = np.random.default_rng(4)
    updates = tuple(random_factors(rng, 6, 5, r) for r in (2, 4))
    cohort = Round(updates, (1.0, 1.0), (2, 4), updates[1], "zero")
    assert differs(gauges(cohort, 5).delta(rule), cohort.delta(rule))
