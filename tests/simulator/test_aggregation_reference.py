"""The three rules against the slow dense reference, over random cohorts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from simulator_cases import PRODUCT_RULES, RULES, assert_close, quick, random_factors, rounds

from fedlora_sim import aggregate
from fedlora_sim.reference.aggregation import aggregate_reference


def dense_scale(cohort):
    """Size of what is summed: cancellation is measured against it."""
    return sum(float(torch.linalg.matrix_norm(u.delta())) for u in cohort.updates)


def reference(cohort, rule):
    updates = [(u.lora_A.numpy(), u.lora_B.numpy(), u.scaling) for u in cohort.updates]
    previous = cohort.previous.rescale(1.0)
    lora_a, lora_b = aggregate_reference(
        updates,
        cohort.weights,
        rule,
        cohort.levels,
        (previous.lora_A.numpy(), previous.lora_B.numpy()),
        cohort.empty_partition,
    )
    return lora_b @ lora_a


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("square", [False, True])
def test_every_rule_agrees_with_its_formula(rule, square):
    @quick
    @given(rounds(square=square))
    def check(cohort):
        result = cohort.aggregate(rule)
        assert result.rank == cohort.levels[-1]
        assert_close(
            result.delta(), reference(cohort, rule), "iteration", scale=dense_scale(cohort)
        )

    check()


@pytest.mark.parametrize("rule", RULES)
@quick
@given(cohort=rounds(full_rank=True))
def test_where_nothing_is_cut_off_only_rounding_is_left(rule, cohort):
    scale = dense_scale(cohort) + float(torch.linalg.matrix_norm(cohort.previous.delta()))
    assert_close(cohort.delta(rule), reference(cohort, rule), "factorization", scale=scale)


@pytest.mark.parametrize("rule", RULES)
@quick
@given(cohort=rounds())
def test_float32_agrees_too(rule, cohort):
    single = cohort.map(lambda u: type(u)(u.lora_A.float(), u.lora_B.float(), u.scaling))
    scale = dense_scale(cohort)
    assert single.aggregate(rule).dtype == torch.float32
    assert_close(
        single.delta(rule), reference(cohort, rule), "iteration", torch.float32, scale=scale
    )


@pytest.mark.parametrize("rule", PRODUCT_RULES)
@quick
@given(cohort=rounds())
def test_product_space_rules_return_the_balanced_split(rule, cohort):
    result = cohort.aggregate(rule)
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
def test_zero_pad_returns_the_averaged_factors_as_they_are(cohort):
    plain = cohort.map(lambda u: type(u)(u.lora_A, u.lora_B, 0.5))
    lora_a, lora_b = (
        torch.zeros_like(plain.previous.lora_A),
        torch.zeros_like(plain.previous.lora_B),
    )
    for update, n in zip(plain.updates, plain.weights, strict=True):
        lora_a[: update.rank] += n / sum(plain.weights) * update.lora_A
        lora_b[:, : update.rank] += n / sum(plain.weights) * update.lora_B
    result = plain.aggregate("zero_pad")
    assert result.scaling == plain.updates[0].scaling
    assert_close(result.lora_A, lora_a)
    assert_close(result.lora_B, lora_b)


@pytest.mark.parametrize("scalings", [(-1.0, -1.0), (2.0, -0.5), (0.0, 1.0)])
@pytest.mark.parametrize("rule", PRODUCT_RULES)
def test_product_space_takes_any_scaling(rule, scalings):
    rng = np.random.default_rng(0)
    updates = [random_factors(rng, 4, 4, 2, s) for s in scalings]
    wanted = sum(u.delta() for u in updates) / 2
    exact = aggregate(updates, None, rule, rank_levels=[2, 4], empty_partition="zero")
    assert_close(exact.delta(), wanted, "factorization")
