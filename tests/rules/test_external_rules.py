"""External rules: any object with a step, in the three engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from external_cases import DenseFedAvg, DenseFedEx, Moving, cohort, mean_of, scenario
from simulator_cases import assert_close, random_factors

from fedlora_sim import aggregate, simulate
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.lowrank import LowRankProduct
from fedlora_sim.rules import Aggregated, Context, as_rule


def same_runs(found, wanted) -> None:
    for name in ("energy", "projected_energy"):
        assert_close(found[name], wanted[name], "iteration")


@pytest.mark.parametrize("allocation", ["svd", "random", "importance"])
@pytest.mark.parametrize(
    "cohort",
    [{}, {"cohort_size": 2}, {"sampling": "bernoulli", "cohort_size": 3}],
    ids=["full", "sampled", "bernoulli"],
)
def test_fedavg_written_outside_is_fedavg(allocation, cohort):
    """Also if no client in a cohort of two carries the highest partition."""
    settings = scenario(allocation=allocation, num_samples=(1, 5, 2, 8, 3, 1), **cohort)
    found, wanted = (
        simulate(settings, rule=rule, seed=range(3)) for rule in (DenseFedAvg(), "fedavg")
    )
    same_runs(found, wanted)
    assert found.attrs["rule"] == "dense_fedavg"


@pytest.mark.parametrize("allocation", ["svd", "random"])
def test_fedex_written_outside_is_fedex(allocation):
    settings = scenario(allocation=allocation, cohort_size=3)
    same_runs(
        simulate(settings, rule=DenseFedEx(), seed=range(3)),
        simulate(settings, rule="fedex", seed=range(3)),
    )


def test_seeds_with_a_state_are_the_same_together_and_alone():
    settings = scenario(cohort_size=4)
    together = simulate(settings, rule=Moving(), seed=[3, 4, 5])
    for seed in (3, 4, 5):
        same_runs(together.sel(seed=[seed]), simulate(settings, rule=Moving(), seed=seed))
    still = simulate(settings, rule=Moving(beta=0.0), seed=[3, 4, 5])
    same_runs(still, simulate(settings, rule="fedavg", seed=[3, 4, 5]))
    assert not np.allclose(together.energy[:, 2:], still.energy[:, 2:])
    np.testing.assert_array_equal(together.energy[:, :2], still.energy[:, :2])


def test_a_state_is_kept_layer_by_layer():
    """Layers in a batch of two dimensions; states with and without matrices."""
    updates, previous = (
        cohort(batch=(2, 3)),
        random_factors(np.random.default_rng(1), 6, 5, 3, batch=(2, 3)),
    )
    rule, state, results = Moving(), {}, []
    for _ in range(3):
        result = aggregate(updates, [1, 2, 3], rule, previous=previous, state=state)
        previous, state = result.adapter, result.state
        results.append(result)
    assert state["velocity"].shape == (2, 3, 6, 5)
    assert state["rounds"].shape == (2, 3)
    assert (state["rounds"] == 2).all()
    for index in np.ndindex(2, 3):
        own = [LoRAFactors(u.lora_A[index], u.lora_B[index]) for u in updates]
        first = random_factors(np.random.default_rng(1), 6, 5, 3, batch=(2, 3))
        last, alone = LoRAFactors(first.lora_A[index], first.lora_B[index]), {}
        for result in results:
            one = aggregate(own, [1, 2, 3], rule, previous=last, state=alone)
            last, alone = one.adapter, one.state
            assert alone["rounds"].shape == ()
            assert_close(result.delta()[index], one.delta(), "factorization")
        assert_close(state["velocity"][index], alone["velocity"], "factorization")


@dataclass(frozen=True)
class Uneven(DenseFedAvg):
    """A base correction of as many columns as the first update has positive entries; or none."""

    name: ClassVar[str] = "uneven"

    def step(self, updates, weights, context, state):
        mean = mean_of(updates, weights)
        adapter = LoRAFactors.from_delta(mean, context.r_max).rescale(4.0)
        columns = int((updates[0].lora_A > 0).sum())
        if not columns:
            return Aggregated(adapter), {}
        rest = mean - adapter.delta()
        weights = torch.full((columns,), 1 / columns, dtype=mean.dtype)
        b, a = rest.repeat(1, columns), torch.cat([torch.eye(rest.shape[1]).to(rest)] * columns)
        base = LowRankProduct([(b, a)], weights.repeat_interleave(rest.shape[1]))
        return Aggregated(adapter, base), {}


def test_base_corrections_of_different_columns_are_stacked():
    updates = cohort(batch=(4,))
    updates[0].lora_A[0] = -1  # no correction there
    found = aggregate(updates, None, Uneven())
    assert found.base is not None
    parts = [
        aggregate([LoRAFactors(u.lora_A[i], u.lora_B[i]) for u in updates], None, Uneven())
        for i in range(4)
    ]
    assert parts[0].base is None
    assert len({part.base.columns for part in parts[1:]}) > 1
    assert_close(found.delta(), torch.stack([part.delta() for part in parts]), "factorization")
    assert_close(found.adapter.delta()[0], found.delta()[0], "factorization")
    assert_close(
        found.base.dense(), torch.stack([torch.zeros(6, 5), *(p.base.dense() for p in parts[1:])])
    )


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"rank": 1}, torch.float64),
        ({"scaling": 0.25}, torch.float64),
        ({"rank": 2, "scaling": 3.0}, torch.float64),
        ({}, torch.float16),
        ({"rank": 1, "scaling": 2.0}, torch.bfloat16),
    ],
    ids=str,
)
def test_the_base_compensates_the_loss_of_the_adapter(options, dtype):
    updates = [u.to(dtype) for u in cohort(scaling=0.5)]
    found = aggregate(updates, [1, 2, 4], DenseFedEx(), **options)
    whole = aggregate([u.to(torch.float64) for u in updates], [1, 2, 4], DenseFedEx())
    assert found.adapter.dtype == dtype
    assert found.adapter.rank == options.get("rank", 3)
    assert found.adapter.scaling == options.get("scaling", 1.0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert_close(found.delta().double(), whole.delta(), "factorization", wide)
    own = aggregate(updates, [1, 2, 4], "fedex", **options)
    assert_close(found.delta().double(), own.delta().double(), "factorization", wide)


def test_a_base_without_loss_of_the_adapter_is_passed_on_unchanged():
    result = simulate(scenario(rounds=1), rule=DenseFedEx(), seed=0)
    assert np.isfinite(result.energy).all()
    rule = as_rule(DenseFedEx())
    from fedlora_sim.rules import Cohort

    own = Cohort.from_updates(cohort(), torch.ones(3), (1, 2, 3))
    base = rule.aggregate(own).base
    assert base is not None
    assert base.columns <= 5  # no columns that cancel each other


def test_clients_of_weight_zero_and_other_ranks_never_reach_the_rule():
    seen = []

    @dataclass(frozen=True)
    class Seeing(DenseFedAvg):
        def step(self, updates, weights, context, state):
            seen.append(([u.rank for u in updates], list(weights), context))
            return super().step(updates, weights, context, state)

    aggregate(cohort(), [1, 0, 3], Seeing(), rank_levels=[1, 2, 3, 5])
    ranks, weights, context = seen.pop()
    assert ranks == [1, 3]
    assert weights[1] == pytest.approx(3 * weights[0])
    assert isinstance(context, Context)
    assert (context.rank_levels, context.r_max, context.positions) == ((1, 2, 3, 5), 5, None)
    aggregate(cohort(), None, Seeing(), positions=[[2], [0, 1], [0, 1, 2]])
    assert seen.pop()[2].positions == [[2], [0, 1], [0, 1, 2]]
