"""The suite detects each bug by the checks named for it and by no others."""

from __future__ import annotations

import pytest
from broken_averages import AVERAGES
from broken_cases import CASES
from broken_rounds import ROUNDS, ElsewhereReturned
from conformance_cases import NAMES, by_status, outcomes, pasted, reasons, search_seed
from healthy_rules import FEDAVG, HEALTHY_RULES, DenseFedAvg, ServerMomentum
from hypothesis_profiles import examples, is_random

from fedlora_sim.conformance import CHECKS, check_aggregator, laws_of_arithmetic
from fedlora_sim.conformance.check import MOST_KEPT, check_named
from fedlora_sim.rules import FedAvg, RaFLoRA, get_rule

# A separate search, see `make test-deep`: dozens of rules, a second or two each.
pytestmark = [pytest.mark.hypothesis, pytest.mark.slow]
BROKEN_RULES = (*AVERAGES, *ROUNDS, *CASES)
EXAMPLES = (
    min(examples(16), MOST_KEPT) if is_random() else 2
)  # number of examples for checks that dozens of rules pass


def of(rules):
    return pytest.mark.parametrize("rule", rules, ids=lambda rule: rule.__name__)


@of(HEALTHY_RULES)
def test_a_rule_written_from_its_definition_fails_nothing(rule):
    seed = search_seed()
    results = outcomes(rule(), EXAMPLES, seed=seed)
    assert reasons(results, "failed") == {}, f"seed {seed}"
    declared = [check for check in CHECKS if check.declared(rule().properties) is False]
    assert by_status(results, "expected") == {check.name for check in declared}


@of(BROKEN_RULES if is_random() else BROKEN_RULES[::4])
def test_a_broken_rule_fails_what_its_bug_breaks_on_cases_to_paste(rule):
    seed, aggregator = search_seed(), get_rule(rule())
    results = outcomes(aggregator, EXAMPLES, rule.fails, seed)
    assert by_status(results, "failed") == rule.fails, f"seed {seed}: {reasons(results, 'failed')}"
    for name in sorted(rule.fails):
        check, result = check_named(name), results[name]
        if check.declared(aggregator.properties):
            case = pasted(result.counterexample)
            with pytest.raises(Exception) as caught:  # noqa: PT011 - rules may raise what they like
                check.test(aggregator, case)
            assert str(caught.value) in result.reason
        else:
            assert result.counterexample is None
            assert "declared absent, but" in result.reason


def test_every_check_can_fail():
    found = set().union(*(rule.fails for rule in (*BROKEN_RULES, ElsewhereReturned)))
    assert found == set(NAMES)


def test_a_broken_rule_describes_its_bug_and_declares_healthy_properties():
    healthy = (*HEALTHY_RULES, FedAvg, RaFLoRA)
    for rule in BROKEN_RULES:
        assert rule.__doc__, rule
        assert rule.__base__ in healthy, rule
        if "properties" not in vars(rule):
            assert rule.properties is rule.__base__.properties, rule
        if rule.__base__ is ServerMomentum:
            assert rule.properties in (ServerMomentum.properties, FEDAVG), rule


@pytest.mark.parametrize(
    ("rule", "status"), [(DenseFedAvg, "passed"), (ElsewhereReturned, "failed")]
)
def test_results_elsewhere_than_the_updates_are_found(monkeypatch, rule, status):
    """Without a GPU the check treats the CPU as one and detects results elsewhere."""
    monkeypatch.setattr(laws_of_arithmetic, "_accelerator", lambda: "cpu")
    (result,) = check_aggregator(rule(), examples=5, checks=["device"])
    assert (result.status, result.examples) == (status, 5 if status == "passed" else 1)
    assert status == "passed" or "come back on meta" in result.reason


def test_without_an_accelerator_the_device_is_not_tested(monkeypatch):
    monkeypatch.setattr(laws_of_arithmetic, "_accelerator", lambda: None)
    (result,) = check_aggregator(DenseFedAvg(), examples=5, checks=["device"])
    assert (result.status, result.reason) == ("skipped", "not available: no GPU")
