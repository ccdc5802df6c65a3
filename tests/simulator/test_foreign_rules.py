"""Rules from outside the family: any object with a step, as the three engines take it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from simulator_cases import assert_close, random_factors

from fedlora_sim import Scenario, aggregate, simulate
from fedlora_sim.aggregation import (
    Aggregated,
    Context,
    Properties,
    as_rule,
    get_rule,
    register,
    registry,
    rule_names,
)
from fedlora_sim.aggregation.describe import describe
from fedlora_sim.factors import LoRAFactors
from fedlora_sim.lowrank import LowRankProduct


def mean_of(updates, weights):
    pairs = zip(updates, weights, strict=True)
    return torch.stack([w / sum(weights) * update.delta() for update, w in pairs]).sum(0)


@dataclass(frozen=True)
class DenseFedAvg:
    """FedAvg by dense matrices, through the protocol alone."""

    name: ClassVar[str] = "dense_fedavg"
    source: ClassVar[str] = "a test"
    properties: ClassVar[Properties] = Properties(linear=True, exact=True)

    def step(self, updates, weights, context, state):
        mean = mean_of(updates, weights)
        return Aggregated(LoRAFactors.from_delta(mean, context.r_max)), {}


@dataclass(frozen=True)
class Moving(DenseFedAvg):
    """FedAvg with a velocity and a count of rounds, a number without dimensions."""

    beta: float = 0.5
    name: ClassVar[str] = "moving"

    def step(self, updates, weights, context, state):
        mean, last = mean_of(updates, weights), context.previous.delta()
        velocity, rounds = mean - last, torch.zeros((), dtype=mean.dtype)
        if state:
            velocity, rounds = velocity + self.beta * state["velocity"], state["rounds"] + 1
        adapter = LoRAFactors.from_delta(last + velocity, context.r_max)
        return Aggregated(adapter), {"velocity": velocity, "rounds": rounds}


@dataclass(frozen=True)
class DenseFedEx(DenseFedAvg):
    """FedEx: averaged factors, and what they miss, in as many columns as it needs."""

    name: ClassVar[str] = "dense_fedex"
    space: ClassVar[str] = "factor"

    def step(self, updates, weights, context, state):
        r, total = context.r_max, sum(weights)
        lora_a = updates[0].lora_A.new_zeros(r, updates[0].d_in)
        lora_b = updates[0].lora_B.new_zeros(updates[0].d_out, r)
        held = context.positions or [range(update.rank) for update in updates]
        for update, weight, own in zip(updates, weights, held, strict=True):
            at, root = list(own), abs(update.scaling) ** 0.5
            lora_a[at] += weight / total * root * update.lora_A
            lora_b[:, at] += weight / total * root * update.lora_B
        missed = mean_of(updates, weights) - lora_b @ lora_a
        u, s, vh = torch.linalg.svd(missed, full_matrices=False)
        kept = s > 1e-13 * s[0]
        base = LowRankProduct([(u[:, kept], vh[kept])], s[kept])
        return Aggregated(LoRAFactors(lora_a, lora_b), base), {}


def scenario(**changes) -> Scenario:
    given = {"fidelity": "matrix", "rounds": 4, "gain_std": 0.1, "drift_std": 0.05}
    return Scenario("2x3,4x2,7x1", **{**given, "subspace_noise": 0.1, **changes})


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
    """Also where nobody in a cohort of two carries the highest partition."""
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


def cohort(seed=0, batch=(), dtype=torch.float64, scaling=1.0):
    rng = np.random.default_rng(seed)
    return [random_factors(rng, 6, 5, r, scaling, dtype, batch) for r in (1, 2, 3)]


def test_a_state_is_kept_layer_by_layer():
    """Layers in a batch of two dimensions, a state with matrices and one with none."""
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
    updates[0].lora_A[0] = -1  # no correction there at all
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
def test_what_the_adapter_loses_the_base_makes_up_for(options, dtype):
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


def test_a_base_that_needs_nothing_made_up_for_is_handed_on_as_it_is():
    result = simulate(scenario(rounds=1), rule=DenseFedEx(), seed=0)
    assert np.isfinite(result.energy).all()
    rule = as_rule(DenseFedEx())
    from fedlora_sim.aggregation import Cohort

    own = Cohort.from_updates(cohort(), torch.ones(3), (1, 2, 3))
    base = rule.aggregate(own).base
    assert base is not None
    assert base.columns <= 5  # no columns that cancel each other


def test_clients_of_weight_zero_and_foreign_ranks_never_reach_the_rule():
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


def test_names_options_and_listings():
    rule = get_rule(Moving(beta=0.25))
    assert as_rule(rule) is rule
    assert (rule.name, rule.label) == ("moving", "moving:beta=0.25")
    assert rule.options == {"beta": 0.5}
    assert get_rule(Moving()).label == "moving"
    assert rule.properties is Moving.properties
    assert rule.is_linear
    assert not get_rule(DenseFedEx()).has_spectral_form
    told = describe(rule)
    assert (told.options, told.averages, told.also) == ("beta=0.5", "in its own way", "")
    assert told.summary.startswith("FedAvg with a velocity")
    assert told.multiplier == "not declared"


def test_a_multiplier_is_told_and_applied_as_declared():
    @dataclass(frozen=True)
    class Doubled(DenseFedAvg):
        properties: ClassVar[Properties] = Properties(multiplier=lambda w: 2 * w)

    rule = get_rule(Doubled())
    assert describe(rule).multiplier == "declared, not in words"
    assert float(rule.multiplier(torch.tensor(0.5))) == 1.0
    with pytest.raises(ValueError, match="a rule that declares a multiplier"):
        get_rule(DenseFedAvg()).multiplier(torch.tensor(0.5))
    with pytest.raises(ValueError, match="weights per client and direction"):
        rule.direction_weights(torch.ones(1), torch.ones(1, 1))


def test_what_engines_ask_follows_from_the_properties():
    @dataclass(frozen=True)
    class Told(DenseFedAvg):
        properties: ClassVar[Properties] = Properties(common_a=True, empty_partitions=True)

    rule = get_rule(Told())
    assert (rule.frozen_a, rule.has_empty_partition_policy, rule.is_linear) == (True, True, False)
    plain = get_rule(DenseFedAvg())
    assert (plain.frozen_a, plain.has_empty_partition_policy, plain.space) == (
        False,
        False,
        "product",
    )


@pytest.fixture
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    monkeypatch.setattr(registry, "_ALIASES", dict(registry._ALIASES))


@pytest.mark.usefixtures("own_registry")
def test_the_decorator_takes_any_rule():
    register(Moving)
    assert "moving" in rule_names()
    assert get_rule("moving:beta=0.25") == get_rule(Moving(beta=0.25))
    with pytest.raises(ValueError, match="did you mean 'beta'"):
        get_rule("moving:betta=1")


@dataclass(frozen=True)
class Listed(DenseFedAvg):
    """Options of all kinds."""

    parts: list[int] = field(default_factory=lambda: [1, 2])
    beta: float = 0.5
    derived: float = field(init=False, default=0.0)
    name: ClassVar[str] = "listed"


def test_options_may_be_made_and_what_is_derived_is_no_option():
    assert get_rule(Listed()).options == {"parts": [1, 2], "beta": 0.5}
    assert get_rule(Listed()).label == "listed"
    assert get_rule(Listed(parts=[3])).label == "listed:parts=[3]"


class Stepless:
    name, source, properties = "stepless", "a test", Properties()


class Silent(DenseFedAvg):
    properties = None


class Nameless(DenseFedAvg):
    name = " "


class Sourceless(DenseFedAvg):
    source = None


class Split(DenseFedAvg):
    name = "a,b"


class Nowhere(DenseFedAvg):
    space = "elsewhere"


REFUSED = [
    (Stepless, r"rule='Stepless': expected an AggregationRule, or an object with `step`"),
    (Silent, r"Silent\.properties=None: expected Properties"),
    (Nameless, r"Nameless\.name=' ': expected text"),
    (Sourceless, r"Sourceless\.source=None: expected text"),
    (Split, r"Split\.name='a,b': expected a name without ':' and ','"),
    (Nowhere, r"Nowhere\.space='elsewhere': expected one of factor, none, product"),
]


@pytest.mark.parametrize(("rule", "message"), REFUSED)
@pytest.mark.usefixtures("own_registry")
def test_what_is_no_rule_is_refused_at_every_door(rule, message):
    with pytest.raises(ValueError, match=message):
        as_rule(rule())
    with pytest.raises(ValueError, match=message):
        register(rule)
    if rule is not Stepless:
        with pytest.raises(ValueError, match=message):
            aggregate(cohort(), None, rule())
    assert rule_names() == tuple(sorted(registry._RULES))


@dataclass(frozen=True)
class Demanding(DenseFedAvg):
    beta: float
    name: ClassVar[str] = "demanding"


class NeedsMore(DenseFedAvg):
    name = "needs_more"

    def __init__(self, beta):
        pass


@pytest.mark.usefixtures("own_registry")
def test_a_class_of_rules_can_be_made_from_its_name_alone():
    with pytest.raises(ValueError, match=r"Demanding\.beta='no default': expected options with"):
        register(Demanding)
    with pytest.raises(ValueError, match=r"rule='NeedsMore': expected .* without arguments"):
        register(NeedsMore)


class Returning(DenseFedAvg):
    """Returns what it was made with, or the average with another state."""

    name = "returning"

    def __init__(self, returned=None, state=None):
        object.__setattr__(self, "returned", returned)
        object.__setattr__(self, "state", state)

    def step(self, updates, weights, context, state):
        result, _ = super().step(updates, weights, context, state)
        if self.state is not None:
            return result, self.state
        if self.returned == "wide":
            return Aggregated(LoRAFactors.from_delta(result.delta(), context.r_max + 1)), {}
        return result if self.returned == "bare" else self.returned


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Returning("bare"), r"returning\.step='Aggregated': expected a pair"),
        (Returning(), r"returning\.step='NoneType': expected a pair"),
        (Returning((1, {})), r"returning\.step='tuple': expected a pair"),
        (Returning("wide"), r"shapes of the adapter's B and A=\(\(6, 4\), \(4, 5\)\): .*\(6, 3\)"),
        (Returning(state=[1]), r"returning\.step: state=\[1\]: expected tensors by name"),
        (Returning(state={"n": 1.0}), r"returning\.step: state='n': expected tensors by name"),
        (Returning(state={"a/b": torch.ones(1)}), r"state='a/b': expected .* no '/'"),
    ],
)
def test_a_step_that_returns_something_else_is_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        aggregate(cohort(), None, rule)


def test_states_of_a_batch_have_one_form():
    class Sometimes(DenseFedAvg):
        name = "sometimes"

        def step(self, updates, weights, context, state):
            result, _ = super().step(updates, weights, context, state)
            positive = float(updates[0].lora_A[0, 0]) > 0
            return result, ({"x": torch.ones(2)} if positive else {})

    updates = cohort(batch=(2,))
    updates[0].lora_A[:, 0, 0] = torch.tensor([1.0, -1.0])
    with pytest.raises(ValueError, match=r"sometimes\.step: state=.*one form in a batch"):
        aggregate(updates, None, Sometimes())


def test_the_spectral_fidelity_has_no_form_for_them():
    with pytest.raises(ValueError, match=r"fidelity='spectral': expected matrix or training: mov"):
        simulate(scenario(fidelity="spectral", subspace_noise=0.0), rule=Moving())


def test_a_rule_is_no_other_rule_for_having_its_name():
    assert get_rule(DenseFedAvg()) == get_rule(DenseFedAvg())
    assert get_rule(Moving()) != get_rule(Moving(beta=0.1))
    assert get_rule(replace(Moving(), beta=0.1)) == get_rule(Moving(beta=0.1))
