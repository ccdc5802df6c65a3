"""Scalings, bases, dtypes, batches: what must hold however a cohort is written down."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from law_cases import SEEDS, all_rules_but, assert_same, every_rule, gauges, size
from simulator_cases import (
    CANONICAL,
    EXACT_RULES,
    PRODUCT_RULES,
    Round,
    assert_close,
    differs,
    map_factors,
    orthogonal,
    per_rule,
    random_factors,
    rounds,
)

from fedlora_sim import LoRAFactors, aggregate


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
