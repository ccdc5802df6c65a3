"""Every rule against the slow dense reference, over random cohorts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from simulator_cases import (
    ALL_RULES,
    CANONICAL,
    PRODUCT_RULES,
    assert_close,
    per_rule,
    quick,
    random_factors,
    rounds,
)

from fedlora_sim import LoRAFactors, aggregate
from fedlora_sim.reference.aggregation import aggregate_reference


def dense_scale(cohort):
    """Return the size of the summands, against which cancellation is measured."""
    return sum(float(torch.linalg.matrix_norm(u.delta())) for u in cohort.updates)


def reference(cohort, rule, positions=None):
    """Return adapter and base of the slow reference, both dense."""
    updates = [(u.lora_A.numpy(), u.lora_B.numpy(), u.scaling) for u in cohort.updates]
    previous = cohort.previous.rescale(1.0)
    lora_a, lora_b, base = aggregate_reference(
        updates,
        cohort.weights,
        rule,
        cohort.rank_levels,
        (previous.lora_A.numpy(), previous.lora_B.numpy()),
        cohort.empty_partition,
        positions,
    )
    return lora_b @ lora_a, base


def assert_agrees(result, wanted, kind, dtype=torch.float64, scale=None):
    """Compare adapter and base, each and together."""
    adapter, base = wanted
    assert_close(result.adapter.delta(), adapter, kind, dtype, scale)
    assert_close(result.delta(), adapter + base, kind, dtype, scale)
    if result.base is None:
        np.testing.assert_array_equal(base, 0)


@pytest.mark.parametrize("rule", ALL_RULES)
@per_rule
@given(cohort=rounds())
def test_every_rule_agrees_with_its_formula(rule, cohort):
    cohort = cohort.suit(rule)
    result = cohort.aggregate(rule)
    assert result.adapter.rank == cohort.rank_levels[-1]
    assert_agrees(result, reference(cohort, rule), "iteration", scale=dense_scale(cohort))


@pytest.mark.parametrize("rule", ALL_RULES)
@per_rule
@given(cohort=rounds(full_rank=True))
def test_where_nothing_is_cut_off_only_rounding_is_left(rule, cohort):
    cohort = cohort.suit(rule)
    scale = dense_scale(cohort) + float(torch.linalg.matrix_norm(cohort.previous.delta()))
    wanted = sum(reference(cohort, rule))
    assert_close(cohort.delta(rule), wanted, "factorization", scale=scale)


@pytest.mark.parametrize("rule", ALL_RULES)
@per_rule
@given(cohort=rounds())
def test_float32_agrees_too(rule, cohort):
    cohort = cohort.suit(rule)
    single = cohort.map(lambda u: type(u)(u.lora_A.float(), u.lora_B.float(), u.scaling))
    result, scale = single.aggregate(rule), dense_scale(cohort)
    assert result.adapter.dtype == torch.float32
    assert_agrees(result, reference(cohort, rule), "iteration", torch.float32, scale)


@pytest.mark.parametrize("rule", [rule for rule in ALL_RULES if rule != CANONICAL])
@per_rule
@given(cohort=rounds(full_rank=True), data=st.data())
def test_clients_may_hold_any_directions(rule, cohort, data):
    cohort, r_max = cohort.suit(rule), cohort.rank_levels[-1]
    orders = [data.draw(st.permutations(range(r_max))) for _ in cohort.updates]
    held = [order[: u.rank] for order, u in zip(orders, cohort.updates, strict=True)]
    if rule == "ffa":
        common = cohort.previous.lora_A
        updates = zip(cohort.updates, held, strict=True)
        cohort = replace(
            cohort, updates=tuple(LoRAFactors(common[i], u.lora_B, u.scaling) for u, i in updates)
        )
    result = cohort.aggregate(rule, positions=held)
    scale = dense_scale(cohort) + float(torch.linalg.matrix_norm(cohort.previous.delta()))
    assert_agrees(result, reference(cohort, rule, held), "factorization", scale=scale)


@quick
@given(cohort=rounds())
def test_positions_of_the_first_directions_are_the_default(cohort):
    first = [range(u.rank) for u in cohort.updates]
    for rule in ("raflora", "rbla", "fedex"):
        assert torch.equal(cohort.delta(rule, positions=first), cohort.delta(rule))


@pytest.mark.parametrize("rule", PRODUCT_RULES)
@quick
@given(cohort=rounds())
def test_product_space_rules_return_the_balanced_split(rule, cohort):
    result = cohort.adapter(rule)
    scale = dense_scale(cohort)
    singular = torch.linalg.svdvals(result.delta())[: result.rank]
    assert result.scaling == 1.0
    assert_close(
        result.lora_B.mT @ result.lora_B, torch.diag(singular), "factorization", scale=scale
    )
    assert_close(
        result.lora_A @ result.lora_A.mT, torch.diag(singular), "factorization", scale=scale
    )


@quick
@given(cohort=rounds())
def test_zero_pad_and_fedex_return_the_averaged_factors_unchanged(cohort):
    plain = cohort.map(lambda u: type(u)(u.lora_A, u.lora_B, 0.5))
    lora_a, lora_b = (
        torch.zeros_like(plain.previous.lora_A),
        torch.zeros_like(plain.previous.lora_B),
    )
    for update, n in zip(plain.updates, plain.weights, strict=True):
        lora_a[: update.rank] += n / sum(plain.weights) * update.lora_A
        lora_b[:, : update.rank] += n / sum(plain.weights) * update.lora_B
    for result in (plain.adapter("zero_pad"), plain.adapter("fedex")):
        assert result.scaling == plain.updates[0].scaling
        assert_close(result.lora_A, lora_a)
        assert_close(result.lora_B, lora_b)


@quick
@given(cohort=rounds())
def test_ffa_returns_the_received_a(cohort):
    cohort = cohort.suit("ffa")
    taking_part = zip(cohort.updates, cohort.weights, strict=True)
    rank = max(u.rank for u, n in taking_part if n > 0)
    common = cohort.previous.lora_A[:rank]
    for options in ({}, {"scaling": 0.25}):
        result = cohort.adapter("ffa", **options)
        assert torch.equal(result.lora_A[:rank], common)
        np.testing.assert_array_equal(result.lora_B[:, rank:], 0)


@pytest.mark.parametrize("scalings", [(-1.0, -1.0), (2.0, -0.5), (0.0, 1.0)])
@pytest.mark.parametrize("rule", [*PRODUCT_RULES, "flora"])
def test_product_space_takes_any_scaling(rule, scalings):
    rng = np.random.default_rng(0)
    updates = [random_factors(rng, 4, 4, 2, s) for s in scalings]
    wanted = sum(u.delta() for u in updates) / 2
    exact = aggregate(updates, None, rule, rank_levels=[2, 4], empty_partition="zero")
    assert_close(exact.delta(), wanted, "factorization")
