"""Rank levels, empty partitions, options of the result, and everything that `aggregate` refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from simulator_cases import RULES, assert_close, differs, only_partition, random_factors

from fedlora_sim import LoRAFactors, aggregate, rule_names
from fedlora_sim.aggregation import FedAvg, RaFLoRA, ZeroPad, get_rule, register

D = 6
LEVELS = (2, 4, 6)


def cohort(*ranks, seed=0, scaling=1.0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    return [random_factors(rng, D, D, r, scaling, dtype) for r in ranks]


PREVIOUS = cohort(6, seed=9, scaling=0.5)[0]


@pytest.mark.parametrize("rule", RULES)
def test_rank_levels_come_from_the_federation_and_not_from_the_cohort(rule):
    updates = cohort(2, 2)
    alone = aggregate(updates, None, rule)
    known = aggregate(updates, None, rule, rank_levels=LEVELS, empty_partition="zero")
    assert (alone.rank, known.rank) == (2, 6)
    assert differs(alone.delta(), known.delta()) == (rule != "zero_pad")
    wanted = sum(u.delta() for u in updates) / 2
    assert rule == "zero_pad" or not differs(known.delta(), wanted)


def test_levels_may_come_in_any_order_and_more_than_once():
    updates = cohort(2, 6)
    wanted = aggregate(updates, [1, 2], rank_levels=(2, 6)).delta()
    np.testing.assert_array_equal(aggregate(updates, [1, 2], rank_levels=[6, 2, 2]).delta(), wanted)


def test_carry_keeps_the_partitions_that_nobody_brought():
    updates = cohort(2, 4)
    result = aggregate(updates, [1, 3], rank_levels=LEVELS, previous=PREVIOUS)
    low = aggregate(updates, [1, 3], rank_levels=LEVELS, empty_partition="zero")
    kept = only_partition(PREVIOUS, slice(4, 6)).delta()
    assert_close(result.delta(), low.delta() + kept, "factorization")


def test_zero_loses_them():
    updates = cohort(2, 4)
    result = aggregate(
        updates, [1, 3], rank_levels=LEVELS, previous=PREVIOUS, empty_partition="zero"
    )
    wanted = updates[0].delta() / 4 + 3 / 4 * only_partition(updates[1], slice(0, 2)).delta()
    wanted = wanted + only_partition(updates[1], slice(2, 4)).delta()
    assert result.rank == 6
    assert_close(result.delta(), wanted, "factorization")


def test_a_contributor_without_samples_does_not_fill_a_partition():
    updates = cohort(2, 6)
    result = aggregate(updates, [1, 0], rank_levels=LEVELS, previous=PREVIOUS)
    wanted = updates[0].delta() + only_partition(PREVIOUS, slice(2, 6)).delta()
    assert_close(result.delta(), wanted, "factorization")


@pytest.mark.parametrize("rule", ["fedavg", "zero_pad"])
@pytest.mark.parametrize("empty_partition", ["carry", "zero", "error"])
def test_rank_agnostic_rules_have_no_empty_partitions(rule, empty_partition):
    options = {"rank_levels": LEVELS, "empty_partition": empty_partition}
    result = aggregate(cohort(2, 2), None, rule, **options).delta()
    carried = aggregate(cohort(2, 2), None, rule, previous=PREVIOUS, **options).delta()
    np.testing.assert_array_equal(result, carried)


def test_full_partitions_need_no_policy():
    results = [
        aggregate(cohort(2, 4, 6), None, empty_partition=policy, previous=previous).delta()
        for policy in ("carry", "zero", "error")
        for previous in (None, PREVIOUS)
    ]
    for result in results:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("rule", RULES)
def test_options_write_the_same_result_otherwise(rule):
    updates = cohort(2, 4, 6, scaling=2.0)
    plain = aggregate(updates, [1, 2, 3], rule)
    cut = aggregate(updates, [1, 2, 3], rule, rank=3)
    scaled = aggregate(updates, [1, 2, 3], rule, scaling=0.125)
    assert cut.rank == 3
    assert torch.equal(cut.lora_A, plain.lora_A[:3])
    assert scaled.scaling == 0.125
    assert_close(scaled.delta(), plain.delta())
    values = torch.linalg.svdvals(plain.delta())
    error = torch.linalg.matrix_norm(plain.delta() - cut.delta())
    best = torch.linalg.vector_norm(values[3:])
    assert error > best if rule == "zero_pad" else not differs(error, best)


def test_rules_are_found_by_name_or_given():
    assert rule_names() == RULES
    assert get_rule("RaFLoRA") is get_rule("raflora")
    assert [type(get_rule(name)) for name in RULES] == [FedAvg, RaFLoRA, ZeroPad]
    own = FedAvg()
    assert get_rule(own) is own
    with pytest.raises(ValueError, match="name='fedavg'"):
        register(FedAvg)
    assert rule_names() == RULES


def test_the_default_rule_is_raflora_and_samples_default_to_equal():
    updates = cohort(2, 6)
    wanted = aggregate(updates, [7, 7], "raflora").delta()
    np.testing.assert_array_equal(aggregate(updates, None).delta(), wanted)


def spoiled(value, factor="lora_A"):
    good, bad = cohort(2, 2)
    getattr(bad, factor)[1, 1] = value
    return [good, bad]


BAD = {
    "nobody": ({"updates": [], "num_samples": []}, r"updates=\[\].*at least one client"),
    "not_factors": ({"updates": [torch.ones(2, 2)]}, r"updates\[0\]='Tensor'.*LoRAFactors"),
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
    "all_zero": ({"num_samples": [0, 0]}, r"num_samples=\[0.0, 0.0\].*positive"),
    "nan_samples": ({"num_samples": [1, float("nan")]}, "num_samples=nan"),
    "rule": ({"rule": "raflor"}, "rule='raflor'.*did you mean 'raflora'"),
    "rule_type": ({"rule": FedAvg}, "rule="),
    "option": ({"rnk": 2}, "rnk=2"),
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
    "no_previous": ({"previous": None}, "previous=None.*carry"),
    "error": ({"empty_partition": "error"}, "empty_partition='error'"),
    "policy": ({"empty_partition": "cary"}, "empty_partition='cary'.*did you mean 'carry'"),
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
    with pytest.raises(ValueError, match=message):
        aggregate(**arguments)


def test_factor_averages_refuse_scalings_that_have_no_root():
    updates = [*cohort(2), *cohort(2, scaling=-1.0)]
    with pytest.raises(ValueError, match=r"scaling=\[1.0, -1.0\]"):
        aggregate(updates, None, "zero_pad")
