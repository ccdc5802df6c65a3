"""Rank levels, empty partitions, options of the result, and refusals of `aggregate`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from simulator_cases import (
    ALL_RULES,
    CANONICAL,
    FACTOR_RULES,
    assert_close,
    differs,
    map_factors,
    random_factors,
)

from fedlora_sim import LoRAFactors, aggregate
from fedlora_sim.conformance.case import only
from fedlora_sim.errors import InputError
from fedlora_sim.rules import FedAvg, get_rule

D = 6
LEVELS = (2, 4, 6)


def cohort(*ranks, seed=0, scaling=1.0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    return [random_factors(rng, D, D, r, scaling, dtype) for r in ranks]


def common_a(updates):
    """Return the updates over one A: `ffa` takes no others, and the rest do not mind."""
    last = PREVIOUS.lora_A
    return [map_factors(u, on_a=lambda a: last[: a.shape[-2]]) for u in updates]


PREVIOUS = cohort(6, seed=9, scaling=0.5)[0]
PARTITIONED = ("raflora", CANONICAL, "rbla")


@pytest.mark.parametrize("rule", ALL_RULES)
def test_rank_levels_come_from_the_federation_and_not_from_the_cohort(rule):
    updates = common_a(cohort(2, 2)) if rule == "ffa" else cohort(2, 2)
    alone = aggregate(updates, None, rule)
    known = aggregate(updates, None, rule, rank_levels=LEVELS, empty_partition="zero")
    assert (alone.adapter.rank, known.adapter.rank) == (2, 6)
    # Levels above the cohort's do not truncate a sum of products; lower levels do.
    cuts = rule in ("fedavg", "raflora", CANONICAL)
    assert differs(alone.delta(), known.delta()) == cuts
    wanted = sum(u.delta() for u in updates) / 2
    exact = rule not in (*FACTOR_RULES, "fedex:residual_rank=1")
    assert exact or rule == "fedex:residual_rank=1" or differs(known.delta(), wanted)
    assert not exact or not differs(known.delta(), wanted)


def test_levels_may_come_in_any_order_and_more_than_once():
    updates = cohort(2, 6)
    wanted = aggregate(updates, [1, 2], rank_levels=(2, 6)).delta()
    np.testing.assert_array_equal(aggregate(updates, [1, 2], rank_levels=[6, 2, 2]).delta(), wanted)


def test_carry_keeps_partitions_without_contributor():
    updates = cohort(2, 4)
    result = aggregate(updates, [1, 3], rank_levels=LEVELS, previous=PREVIOUS)
    low = aggregate(updates, [1, 3], rank_levels=LEVELS, empty_partition="zero")
    kept = only(PREVIOUS, slice(4, 6)).delta()
    assert_close(result.delta(), low.delta() + kept, "factorization")


def test_rbla_carries_the_factors_themselves():
    updates = cohort(2, 4)
    result = aggregate(updates, [1, 3], "rbla", rank_levels=LEVELS, previous=PREVIOUS).adapter
    low = aggregate(updates, [1, 3], "rbla", rank_levels=LEVELS, empty_partition="zero").adapter
    kept = PREVIOUS.rescale(result.scaling)
    assert_close(result.lora_A, torch.cat([low.lora_A[:4], kept.lora_A[4:]]))
    assert_close(result.lora_B, torch.cat([low.lora_B[:, :4], kept.lora_B[:, 4:]], dim=1))
    np.testing.assert_array_equal(low.lora_A[4:], 0)


def test_positions_make_partitions_empty_wherever_they_are():
    updates, places = cohort(2, 2), [(5, 0), (0, 3)]
    options = {"rank_levels": LEVELS, "previous": PREVIOUS, "positions": places}
    result = aggregate(updates, [1, 3], **options).delta()
    one, other = (map_factors(u) for u in updates)
    wanted = only(one, slice(0, 1)).delta() + only(other, slice(1, 2)).delta()
    wanted = wanted + only(one, slice(1, 2)).delta() / 4
    wanted = wanted + only(other, slice(0, 1)).delta() * 3 / 4
    for i in (1, 2, 4):
        wanted = wanted + only(PREVIOUS, slice(i, i + 1)).delta()
    assert_close(result, wanted, "factorization")


def test_zero_loses_partitions_without_contributor():
    updates = cohort(2, 4)
    result = aggregate(
        updates, [1, 3], rank_levels=LEVELS, previous=PREVIOUS, empty_partition="zero"
    )
    wanted = updates[0].delta() / 4 + 3 / 4 * only(updates[1], slice(0, 2)).delta()
    wanted = wanted + only(updates[1], slice(2, 4)).delta()
    assert result.adapter.rank == 6
    assert_close(result.delta(), wanted, "factorization")


def test_a_contributor_without_samples_does_not_fill_a_partition():
    updates = cohort(2, 6)
    result = aggregate(updates, [1, 0], rank_levels=LEVELS, previous=PREVIOUS)
    wanted = updates[0].delta() + only(PREVIOUS, slice(2, 6)).delta()
    assert_close(result.delta(), wanted, "factorization")


@pytest.mark.parametrize("rule", [rule for rule in ALL_RULES if rule not in PARTITIONED])
@pytest.mark.parametrize("empty_partition", ["carry", "zero", "error"])
def test_rank_agnostic_rules_have_no_empty_partitions(rule, empty_partition):
    options = {"rank_levels": LEVELS, "empty_partition": empty_partition}
    updates = common_a(cohort(2, 2))
    result = aggregate(updates, None, rule, **options).delta()
    carried = aggregate(updates, None, rule, previous=PREVIOUS, **options).delta()
    np.testing.assert_array_equal(result, carried)
    assert not get_rule(rule).has_empty_partition_policy


@pytest.mark.parametrize("rule", PARTITIONED)
def test_full_partitions_need_no_policy(rule):
    results = [
        aggregate(cohort(2, 4, 6), None, rule, empty_partition=policy, previous=previous).delta()
        for policy in ("carry", "zero", "error")
        for previous in (None, PREVIOUS)
    ]
    for result in results:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("rule", PARTITIONED)
def test_partitions_without_contributor_can_be_refused(rule):
    with pytest.raises(InputError, match=r"empty_partition='error'.*rank index 4"):
        aggregate(cohort(2, 4), None, rule, rank_levels=LEVELS, empty_partition="error")
    with pytest.raises(InputError, match="previous=None"):
        aggregate(cohort(2, 4), None, rule, rank_levels=LEVELS)


@pytest.mark.parametrize("rule", ALL_RULES)
def test_options_write_the_same_result_otherwise(rule):
    updates = common_a(cohort(2, 4, 6, scaling=2.0))
    plain, cut, scaled = (
        aggregate(updates, [1, 2, 3], rule, **options).adapter
        for options in ({}, {"rank": 3}, {"scaling": 0.125})
    )
    assert cut.rank == 3
    assert torch.equal(cut.lora_A, plain.lora_A[:3])
    assert scaled.scaling == 0.125
    assert_close(scaled.delta(), plain.delta())
    values = torch.linalg.svdvals(plain.delta())
    error = torch.linalg.matrix_norm(plain.delta() - cut.delta())
    best = torch.linalg.vector_norm(values[3:])
    svd_gauge = get_rule(rule).space != "factor"
    assert not differs(error, best) if svd_gauge else error > best


def test_the_default_rule_is_raflora_and_samples_default_to_equal():
    updates = cohort(2, 6)
    wanted = aggregate(updates, [7, 7], "raflora").delta()
    np.testing.assert_array_equal(aggregate(updates, None).delta(), wanted)


def spoiled(value, factor="lora_A"):
    good, bad = cohort(2, 2)
    getattr(bad, factor)[1, 1] = value
    return [good, bad]


BAD = {
    "nobody": ({"updates": [], "num_samples": []}, r"updates=\[\]"),
    "not_factors": ({"updates": [torch.ones(2, 2)]}, r"updates\[0\]='Tensor'"),
    "nan": ({"updates": spoiled(float("nan"))}, r"updates\[1\].lora_A=nan"),
    "inf": ({"updates": spoiled(float("inf"), "lora_B")}, r"updates\[1\].lora_B=inf"),
    "shape": (
        {"updates": [*cohort(2), random_factors(np.random.default_rng(0), D, D + 1, 2)]},
        r"updates\[1\]=.*d_in=7.*d_in=6",
    ),
    "dtype": (
        {"updates": [*cohort(2), *cohort(2, dtype=torch.float32)]},
        r"updates\[1\]=.*float32.*float64",
    ),
    "batch": (
        {"updates": [*cohort(2), random_factors(np.random.default_rng(0), D, D, 2, batch=(3,))]},
        r"updates\[1\]=.*batch=\(3,\)",
    ),
    "few_samples": ({"num_samples": [1]}, r"num_samples=\[1.0\].*2 values"),
    "many_samples": ({"num_samples": [1, 2, 3]}, "num_samples=.*2 values"),
    "one_number": ({"num_samples": 3}, "num_samples=3"),
    "negative": ({"num_samples": [1, -2]}, "num_samples=-2"),
    "all_zero": ({"num_samples": [0, 0]}, r"num_samples=\[0.0, 0.0\]"),
    "nan_samples": ({"num_samples": [1, float("nan")]}, "num_samples=nan"),
    "updates_by_name": ({"updates": {"a": 1}}, "updates='dict'"),
    "updates_once": ({"updates": iter([1])}, "updates='list_iterator'"),
    "rule": ({"rule": "raflor"}, "rule='raflor'.*'raflora'"),
    "rule_type": ({"rule": FedAvg}, "rule="),
    "option": (
        {"rule": "raflora:canonical=true"},
        "option of rule 'raflora'='canonical'.*'canonicalize'",
    ),
    "rank": ({"rank": 7}, "rank=7.*6"),
    "rank_zero": ({"rank": 0}, "rank=0"),
    "scaling": ({"scaling": 0.0}, "scaling=0.0"),
    "scaling_nan": ({"scaling": float("nan")}, "scaling=nan"),
    "levels": ({"rank_levels": (2, 6)}, r"updates\[1\].rank=4.*\[2, 6\]"),
    "levels_empty": ({"rank_levels": ()}, r"rank_levels=\[\]"),
    "levels_high": ({"rank_levels": (2, 4, 7)}, r"rank_levels=\[2, 4, 7\].*6"),
    "levels_zero": ({"rank_levels": (0, 2, 4)}, "rank_levels=0"),
    "levels_number": ({"rank_levels": 4}, "rank_levels=4"),
    "previous_rank": ({"previous": cohort(4)[0]}, "previous.rank=4.*6"),
    "previous_dtype": ({"previous": cohort(6, dtype=torch.float32)[0]}, "previous=.*float32"),
    "previous_type": ({"previous": PREVIOUS.delta()}, "previous='Tensor'"),
    "previous_nan": (
        {"previous": LoRAFactors(PREVIOUS.lora_A * float("nan"), PREVIOUS.lora_B)},
        "previous.lora_A=nan",
    ),
    "no_previous": ({"previous": None}, "previous=None"),
    "positions_few": ({"positions": [(0, 1)]}, "positions='1 rows'.*2, one per client"),
    "positions_rank": ({"positions": [(0, 1), (0, 1)]}, r"positions\[1\]=\[0, 1\].*4 distinct"),
    "positions_twice": ({"positions": [(0, 0), range(4)]}, r"positions\[0\]=\[0, 0\].*2 distinct"),
    "positions_high": ({"positions": [(0, 6), range(4)]}, r"positions\[0\]=\[0, 6\].*0\.\.5"),
    "positions_low": ({"positions": [(0, -1), range(4)]}, r"positions\[0\]=\[0, -1\]"),
    "positions_part": ({"positions": [(0, 1.5), range(4)]}, r"positions\[0\]=\[0, 1.5\]"),
    "positions_flat": ({"positions": [0, 1]}, r"positions\[0\]=0"),
    "positions_number": ({"positions": 3}, "positions=3"),
    "positions_svd": (
        {"rule": CANONICAL, "positions": [(0, 1), range(4)]},
        "positions=.*None for raflora:canonicalize=true",
    ),
    "frozen_a": ({"rule": "ffa"}, r"updates\[1\].lora_A=.A that differs by .*the same A"),
    "error": ({"empty_partition": "error"}, "empty_partition='error'"),
    "policy": ({"empty_partition": "cary"}, "empty_partition='cary'.*'carry'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    changed, message = BAD[case]
    arguments = {
        "updates": cohort(2, 4),
        "num_samples": None,
        "rank_levels": LEVELS,
        "previous": PREVIOUS,
        **changed,
    }
    with pytest.raises(InputError, match=message):
        aggregate(**arguments)


def test_factor_averages_refuse_scalings_that_have_no_root():
    updates = [*cohort(2), *cohort(2, scaling=-1.0)]
    with pytest.raises(InputError, match=r"scaling=\[1.0, -1.0\]"):
        aggregate(updates, None, "zero_pad")
    result = aggregate(common_a(updates), None, "ffa")  # its scaling is applied to B only
    assert_close(result.delta(), sum(u.delta() for u in common_a(updates)) / 2)


@pytest.mark.parametrize("rule", ALL_RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_that_training_still_holds_are_taken(rule, dtype):
    updates = common_a(cohort(2, 1, dtype=torch.float64))
    plain = [map_factors(u, lambda a: a.to(dtype), lambda b: b.to(dtype)) for u in updates]
    held = [
        map_factors(u, lambda a: a.clone().requires_grad_(), lambda b: b.clone().requires_grad_())
        for u in plain
    ]
    result = aggregate(held, None, rule)
    assert not result.adapter.lora_B.requires_grad
    np.testing.assert_array_equal(result.delta().detach(), aggregate(plain, None, rule).delta())


def test_a_slightly_different_row_is_another_a():
    scale = torch.tensor([1, 1.001], dtype=torch.float64)
    updates = common_a(cohort(2, 2))
    updates[1] = map_factors(updates[1], on_a=lambda a: scale.unsqueeze(-1) * a)
    with pytest.raises(InputError, match=r"updates\[1\].lora_A=.A that differs by 0.000"):
        aggregate(updates, None, "ffa")
    aggregate(updates, [1, 0], "ffa")  # clients that do not take part may have any A
