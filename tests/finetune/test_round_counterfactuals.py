"""Every rule on the same cohort: the run's rule gives the run, which is not changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from run_cases import TINY

from fedlora_sim import simulate
from fedlora_sim.errors import InputError
from fedlora_sim.finetune.run import FederatedRun, compared_rules
from fedlora_sim.rules import AggregationRule, get_rule
from fedlora_sim.rules.raflora import RaFLoRA
from fedlora_sim.tolerances import relative

ASKED = {"counterfactuals": True}
TOGETHER = ("fedavg", "fedex", "hetlora", "raflora", "rbla", "zero_pad")


def labels(rule: str, allocation: str = "svd") -> list[str]:
    return [other.label for other in compared_rules(get_rule(rule), allocation)]


def test_compared_rules():
    """Rules with the same local training, the run's rule first."""
    for rule in TOGETHER:
        assert labels(rule) == [rule, *(other for other in TOGETHER if other != rule)]
    assert labels("ffa") == ["ffa"]
    assert labels("flora") == ["flora"]
    assert labels("raflora:canonicalize=true") == ["raflora:canonicalize=true", *TOGETHER]


def test_rules_that_need_svd_allocation_are_not_compared_under_others(monkeypatch):
    def rule_of(name: str) -> AggregationRule:
        return get_rule("raflora:canonicalize=true" if name == "raflora" else name)

    monkeypatch.setattr("fedlora_sim.finetune.run.get_rule", rule_of)
    assert "raflora:canonicalize=true" in labels("fedavg")
    assert labels("fedavg", "random") == ["fedavg", "fedex", "hetlora", "rbla", "zero_pad"]


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["fedavg", "fedex", "flora", "ffa"])
def test_the_own_rule_is_the_run_and_the_run_keeps_its_bits(make_run, rule):
    changes = {"cohort_size": 4, "lora_alpha": 6.0}
    plain, asked = make_run(rule, **changes).run(), make_run(rule, **changes, **ASKED).run()
    np.testing.assert_array_equal(asked.singular_values, plain.singular_values)
    for name in ("loss", "accuracy", "amplitude", "angle"):
        np.testing.assert_array_equal(getattr(asked, name), getattr(plain, name))
    assert asked.compared[0] == rule
    energy = asked.counterfactual_energy
    np.testing.assert_array_equal(energy[1:, 0], asked.singular_values[1:] ** 2)
    np.testing.assert_array_equal(asked.counterfactual_accuracy[1:, 0], asked.accuracy[1:])
    assert np.isnan(energy[0]).all()
    assert np.isnan(asked.counterfactual_accuracy[0]).all()


@pytest.mark.slow
def test_another_rules_answer_is_its_own_first_round(make_run):
    """All rules start equally, so that they can be compared after one round."""
    asked = make_run("fedavg", rounds=1, **ASKED).run()
    for rule, energy in zip(asked.compared, asked.counterfactual_energy[1], strict=True):
        wanted = make_run(rule, rounds=1).run()
        np.testing.assert_array_equal(energy, wanted.singular_values[1] ** 2)
        accuracy = asked.counterfactual_accuracy[1, asked.compared.index(rule)]
        assert accuracy == wanted.accuracy[1]


@pytest.mark.slow
def test_later_rounds_answer_for_the_same_cohort(make_run):
    """In round 3 the other rule gets the updates trained under the run's rule."""
    run = make_run("fedavg", rounds=3, **ASKED)
    result = run.run()
    again = make_run("fedavg", rounds=3)
    again.round(0), again.round(1)
    upload = again.train(2)
    for rule, energy in zip(result.compared, result.counterfactual_energy[3], strict=True):
        state = again.state.after(again._aggregate(upload, get_rule(rule), again.state))
        for layer, (_, s, _) in enumerate(state.svd(8).values()):
            gap = np.abs(energy[layer] - s.numpy() ** 2).max()
            assert gap <= relative("exact")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "pruned", "heads"])
def test_runs_of_every_kind_can_be_compared(make_run, tiny_task, kind):
    changes = {
        "random": {"allocation": "random"},
        "pruned": {"pruning_decay": 0.6, "pruning_penalty": 5.0, "learning_rate": 0.03},
        "heads": {"task": replace(tiny_task, head_modules=("head",))},
    }[kind]
    result = make_run("raflora", cohort_size=3, **changes, **ASKED).run()
    assert np.isfinite(result.counterfactual_energy[1:]).all()
    np.testing.assert_array_equal(
        result.counterfactual_energy[1:, 0], result.singular_values[1:] ** 2
    )
    np.testing.assert_array_equal(result.counterfactual_accuracy[1:, 0], result.accuracy[1:])


def test_they_are_evaluated_with_the_run(make_run):
    result = make_run(evaluate_every=2, **ASKED).run()
    assert np.isnan(result.counterfactual_accuracy[1]).all()
    assert np.isfinite(result.counterfactual_accuracy[2:]).all()


def test_an_unregistered_rule_can_be_compared(tiny_task):
    @dataclass(frozen=True)
    class Own(RaFLoRA):
        name: ClassVar[str] = "own"

    run = FederatedRun(TINY.replace(rounds=1, **ASKED), Own(), 5, tiny_task)
    assert run.run().compared == ("own", *TOGETHER)


@pytest.mark.slow
def test_the_dataset_names_the_rules(make_run):
    scenario = make_run(**ASKED).scenario
    found = simulate(scenario, rule="fedavg", seed=[1, 2])
    assert found.counterfactual_energy.dims == (
        "seed",
        "round",
        "compared_rule",
        "layer",
        "direction",
    )
    assert found.counterfactual_accuracy.dims == ("seed", "round", "compared_rule")
    assert found.compared_rule.values.tolist() == list(TOGETHER)
    own = found.counterfactual_energy.sel(compared_rule="fedavg").isel(round=slice(1, None))
    np.testing.assert_array_equal(own, found.layer_energy.isel(round=slice(1, None)))


def test_a_comparison_that_would_end_the_run_is_refused_before_it(tiny_task):
    scenario = TINY.replace(empty_partition="error", counterfactuals=True)
    with pytest.raises(InputError, match="empty_partition='error'"):
        simulate(scenario, rule="fedavg", task=tiny_task)
