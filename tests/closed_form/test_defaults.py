"""All defaults come from the scenario, in closed forms, predictions and commands."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from analysis import closed_form, design
from analysis.closed_form.scope import SCOPES, VALUES
from analysis.predict import compare, predict
from fedlora_cli import design as design_command
from fedlora_cli import predict as predict_command
from fedlora_sim import Scenario, simulate
from fedlora_sim.scenario import Scenario as Fields
from fedlora_sim.tolerances import relative

RANKS, COHORT, ROUNDS = "1x8,4x1", 1, 20
WITHOUT_SCENARIO = {
    *("multiplier", "base_share", "flow_map", "half_life", "check_rule"),
    *("adam_drift", "adamw_gain", "drift_exponent", "implied_drift"),
}
# What a form asks besides a scenario and a rule.
OPTIONS = {
    "communication": {"layers": 1},
    "drift_interval": {"confidence": 0.9},
    "drift_settling": {"within": 0.1},
    "drift_trajectory": {"shares": None},
}


def test_every_closed_form_takes_scenario_and_rule_without_other_defaults():
    names = {name for name in dir(closed_form) if inspect.isfunction(getattr(closed_form, name))}
    assert names - WITHOUT_SCENARIO == set(SCOPES)
    for name in SCOPES:
        parameters = inspect.signature(getattr(closed_form, name)).parameters
        first, *others = parameters.values()
        assert first.name == "scenario"
        if others and others[0].kind is not inspect.Parameter.VAR_KEYWORD:
            assert others.pop(0).name == "rule"
        defaults = {p.name: p.default for p in others if p.default is not p.empty}
        assert defaults == OPTIONS.get(name, {})


def test_no_function_of_predictions_repeats_a_field_of_the_scenario():
    fields = set(Fields.__dataclass_fields__) - {"ranks"}
    for function in (predict, compare, design):
        own = set(inspect.signature(function).parameters) & fields
        # compare takes gains and training together; a scenario has one of them
        assert own == ({"local_time"} if function is compare else set())


@pytest.mark.parametrize("command", [predict_command.predict, design_command.design])
def test_defaults_of_the_commands_are_the_scenarios(command):
    for name, parameter in inspect.signature(command).parameters.items():
        if name in Fields.__dataclass_fields__ and parameter.default is not None:
            assert parameter.default == getattr(Scenario, name, parameter.empty), name


def test_values_are_the_same_everywhere_and_others_are_refused():
    scenario = Scenario("1x2,2x2")
    for name in set(VALUES) - {"target"}:
        closed_form.energy_rate(scenario, "fedavg", **{name: 0.0})
    with pytest.raises(ValueError, match=r"target=1\.0: expected no target"):
        closed_form.energy_rate(scenario, "fedavg", target=1.0)
    with pytest.raises(ValueError, match=r"did you mean 'gain_std'"):
        closed_form.energy_rate(scenario, "fedavg", gain_sd=0.1)
    with pytest.raises(ValueError, match=r"scenario='1x2': expected a Scenario"):
        closed_form.energy_rate("1x2", "fedavg")


@pytest.mark.parametrize("rule", ["raflora", "rbla"])
def test_the_default_prediction_is_that_of_the_default_simulation(rule):
    scenario = Scenario(RANKS, cohort_size=COHORT, rounds=ROUNDS)
    run = simulate(scenario, rule=rule, seed=range(3)).energy.values.mean(0)
    told = closed_form.energy_trajectory(scenario, rule)
    np.testing.assert_allclose(told, run, rtol=relative("reduction"))
    zero = closed_form.energy_rate(scenario.replace(empty_partition="zero"), rule)
    assert zero[-1] < 0.2  # the policy decides: a client of rank 4 is in one of nine cohorts
    np.testing.assert_array_equal(predict(scenario, rule).energy, told)
    (carried,) = (row for row in compare(scenario, [rule]) if row.empty_partition == "carry")
    np.testing.assert_array_equal(carried.theory.energy, told)
