"""Declarations of external rules, and refusals: names, options, results."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import torch
from external_cases import DenseFedAvg, DenseFedEx, Moving, cohort, scenario

from fedlora_sim import aggregate, simulate
from fedlora_sim.errors import InputError
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.rules import (
    Aggregated,
    Properties,
    as_rule,
    get_rule,
    register,
    registry,
    rule_names,
)
from fedlora_sim.rules.registry import describe


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


def test_a_multiplier_is_listed_and_applied_as_declared():
    @dataclass(frozen=True)
    class Doubled(DenseFedAvg):
        properties: ClassVar[Properties] = Properties(multiplier=lambda w: 2 * w)

    rule = get_rule(Doubled())
    assert describe(rule).multiplier == "declared, without a description"
    assert float(rule.multiplier(torch.tensor(0.5))) == 1.0
    with pytest.raises(InputError, match="rule='dense_fedavg'"):
        get_rule(DenseFedAvg()).multiplier(torch.tensor(0.5))
    with pytest.raises(InputError, match="rule='dense_fedavg'"):
        rule.direction_weights(torch.ones(1), torch.ones(1, 1))


def test_the_engines_requirements_follow_from_the_properties():
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
    with pytest.raises(InputError, match=r"option of rule 'moving'='betta'.*'beta'"):
        get_rule("moving:betta=1")


@dataclass(frozen=True)
class Listed(DenseFedAvg):
    """Options of all kinds."""

    parts: list[int] = field(default_factory=lambda: [1, 2])
    beta: float = 0.5
    derived: float = field(init=False, default=0.0)
    name: ClassVar[str] = "listed"


def test_options_may_have_factories_and_derived_fields_are_not_options():
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
    (Stepless, "rule='Stepless'"),
    (Silent, r"Silent\.properties=None"),
    (Nameless, r"Nameless\.name=' '"),
    (Sourceless, r"Sourceless\.source=None"),
    (Split, r"Split\.name='a,b': expected a name without ':' and ','"),
    (Nowhere, r"Nowhere\.space='elsewhere'"),
]


@pytest.mark.parametrize(("rule", "message"), REFUSED)
@pytest.mark.usefixtures("own_registry")
def test_objects_that_are_not_rules_are_refused_everywhere(rule, message):
    with pytest.raises(InputError, match=message):
        as_rule(rule())
    with pytest.raises(InputError, match=message):
        register(rule)
    if rule is not Stepless:
        with pytest.raises(InputError, match=message):
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
    with pytest.raises(InputError, match=r"Demanding\.beta='no default'"):
        register(Demanding)
    with pytest.raises(InputError, match="rule='NeedsMore'"):
        register(NeedsMore)


class Returning(DenseFedAvg):
    """Returns its option, or the average with another state."""

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
        (Returning("bare"), r"returning\.step='Aggregated'"),
        (Returning(), r"returning\.step='NoneType'"),
        (Returning((1, {})), r"returning\.step='tuple'"),
        (Returning("wide"), r"shapes of the adapter's B and A=\(\(6, 4\), \(4, 5\)\): .*\(6, 3\)"),
        (Returning(state=[1]), r"returning\.step: state=\[1\]"),
        (Returning(state={"n": 1.0}), r"returning\.step: state='n'"),
        (Returning(state={"a/b": torch.ones(1)}), r"state='a/b': expected .* no '/'"),
    ],
)
def test_a_step_that_returns_something_else_is_refused(rule, message):
    with pytest.raises(InputError, match=message):
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
    with pytest.raises(InputError, match=r"sometimes\.step: state="):
        aggregate(updates, None, Sometimes())


def test_the_spectral_fidelity_has_no_form_for_them():
    with pytest.raises(InputError, match="fidelity='spectral'"):
        simulate(scenario(fidelity="spectral", subspace_noise=0.0), rule=Moving())


def test_rules_of_one_name_are_different():
    assert get_rule(DenseFedAvg()) == get_rule(DenseFedAvg())
    assert get_rule(Moving()) != get_rule(Moving(beta=0.1))
    assert get_rule(replace(Moving(), beta=0.1)) == get_rule(Moving(beta=0.1))
