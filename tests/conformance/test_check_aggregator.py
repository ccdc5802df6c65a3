"""`check_aggregator`: passed, failed, expected and skipped checks, and the tried cases."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from broken_averages import AlphaOverRIgnored, FactorsSoldAsExact, OnlyTheFirstClient
from conformance_cases import NAMES, pasted
from healthy_rules import FEDAVG, DenseFedAvg, DenseZeroPad
from hypothesis import settings

from fedlora_sim.conformance import CHECKS, check, check_aggregator
from fedlora_sim.conformance.case import Check, NotApplicable, universal
from fedlora_sim.conformance.check import LEAST_FOR_ABSENT, MOST_KEPT, run_check
from fedlora_sim.errors import InputError
from fedlora_sim.rules import Properties, get_rule

FEW = 20
# Declarations of a rule that declares nothing.
USUAL = [field.name for field in fields(Properties) if field.default is True]


class Raises(DenseFedAvg):
    """A rule that raises an error."""

    def mean(self, clients, context):
        raise RuntimeError("no such mean")


class RaisesAtTimes(DenseZeroPad):
    """A rule that fails for two or more clients."""

    def factors(self, clients):
        if len(clients) == 2:
            raise RuntimeError("two")
        return super().factors(clients)


def declaring(**properties):
    class Declares(DenseFedAvg):
        """FedAvg with other declarations."""

    Declares.properties = replace(FEDAVG, **properties)
    return Declares()


def one(rule, check, examples=FEW, **options):
    (result,) = check_aggregator(rule, examples=examples, checks=[check], **options)
    return result


def test_a_law_that_is_declared_and_kept_passes_on_all_examples():
    result = one(DenseFedAvg(), "exact")
    assert (result.status, result.examples, result.counterexample) == ("passed", FEW, None)
    assert result.statement == "The result is the weighted mean of the updates."


@pytest.mark.slow
def test_a_law_that_is_declared_and_broken_fails_with_the_smallest_case():
    result = one(AlphaOverRIgnored(), "exact")
    assert (result.status, result.reason[:30]) == ("failed", "the result, and the weighted m")
    case = result.counterexample
    assert len(case.updates) == 1
    assert (case.updates[0].d_out, case.updates[0].d_in) == (2, 2)
    first = one(AlphaOverRIgnored(), "exact", shrink=False).counterexample
    assert len(case.code()) <= len(first.code())


@pytest.mark.slow
def test_a_law_that_is_declared_absent_is_expected_to_be_broken():
    result = one(DenseZeroPad(), "exact")
    assert result.status == "expected"
    assert result.counterexample is not None


@pytest.mark.slow
def test_a_law_that_is_declared_absent_and_kept_fails():
    result = one(declaring(linear=False), "linear")
    assert (result.status, result.counterexample) == ("failed", None)
    assert result.reason == f"declared absent, but {LEAST_FOR_ABSENT} cases keep the law"


def test_undeclared_laws_are_skipped():
    rule = DenseFedAvg()
    rule.properties = Properties(**dict.fromkeys(USUAL))
    results = check_aggregator(rule, examples=2)
    passed = {result.check for result in results if result.status == "passed"}
    lacking = {"device", "direction_weights"}
    assert passed == {check.name for check in CHECKS if check.declared is universal} - lacking
    others = {result.reason for result in results if result.check not in passed | lacking}
    assert others == {"untested: the rule declares nothing of it"}


@pytest.mark.slow
@pytest.mark.parametrize("declared", [True, False])
def test_a_rule_that_raises_fails_with_its_error(declared):
    rule = Raises()
    rule.properties = replace(FEDAVG, exact=declared)
    result = one(rule, "exact")
    assert (result.status, result.reason) == ("failed", "raised RuntimeError: no such mean")
    assert result.counterexample is not None


@pytest.mark.slow
def test_an_error_in_some_case_does_not_show_that_a_law_is_absent():
    assert one(RaisesAtTimes(), "exact", 100).status == "expected"
    assert one(RaisesAtTimes(), "shapes", 100).reason == "raised RuntimeError: two"


def test_a_required_refusal_is_not_an_error():
    assert one(DenseFedAvg(), "unknown_level").status == "passed"
    assert one(DenseFedAvg(), "nonfinite").status == "passed"


def test_a_law_without_cases_is_skipped():
    def silent(rule, case):
        raise NotApplicable

    check = Check("silent", "Nothing.", silent, lambda properties: True)
    result = run_check(get_rule("fedavg"), check, FEW, 0)
    assert (result.status, result.examples) == ("skipped", 0)
    assert result.reason == "no case of which the law speaks was found"


@pytest.mark.slow
@pytest.mark.parametrize("shrink", [True, False])
@pytest.mark.parametrize("examples", [FEW, MOST_KEPT + 1])
def test_the_same_seed_finds_the_same_case(shrink, examples):
    def code(seed):
        found = one(FactorsSoldAsExact(), "exact", examples, seed=seed, shrink=shrink)
        return found.counterexample.code()

    assert code(3) == code(3)
    assert shrink or code(3) != code(4)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [OnlyTheFirstClient, FactorsSoldAsExact])
def test_cached_cases_change_no_result(monkeypatch, rule):
    """Searches of few examples reuse cached cases and find the same."""
    found = [one(rule(), "exact")]
    monkeypatch.setattr(check, "MOST_KEPT", 0)
    found.append(one(rule(), "exact"))
    kept, drawn = ((r.counterexample.code(), r.reason, r.examples) for r in found)
    assert kept == drawn


@pytest.mark.parametrize("every", [2, 3, 7])
def test_a_rule_that_breaks_a_law_at_times_fails_once_it_was_seen(every):
    """Hypothesis, which repeats a case, calls it flaky, which is not a result."""

    class AtTimes(DenseFedAvg):
        calls = 0

        def mean(self, clients, context):
            AtTimes.calls += 1
            return super().mean(clients, context) * (1 if AtTimes.calls % every else 2)

    result = one(AtTimes(), "exact", 40)
    assert result.status == "failed"
    assert result.counterexample is not None


@pytest.mark.slow
def test_a_case_is_python_to_paste():
    result = one(AlphaOverRIgnored(), "exact")
    again = pasted(result.counterexample)
    assert again.code() == result.counterexample.code()


@pytest.mark.slow
def test_the_loaded_profile_sets_the_number_of_examples():
    before = settings().max_examples
    (own,) = check_aggregator("fedavg", checks=["finite"])
    assert own.examples == before
    settings.register_profile("three", settings(), max_examples=3)
    name = settings.get_current_profile_name()
    settings.load_profile("three")
    try:
        (own,) = check_aggregator("fedavg", checks=["finite"])
    finally:
        settings.load_profile(name)
    assert own.examples == 3
    assert settings().max_examples == before


def test_results_are_yielded_in_the_order_of_the_catalogue():
    seen = []
    results = check_aggregator("fedavg", examples=1, shrink=False, on_result=seen.append)
    assert [result.check for result in results] == list(NAMES)
    assert seen == results


def test_checks_run_in_the_requested_order():
    asked = ["orthogonal", "shapes"]
    assert [r.check for r in check_aggregator("fedavg", examples=1, checks=asked)] == asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checks": ["liner"]}, "check='liner'.*'linear'"),
        ({"examples": 0}, "examples=0"),
        ({"examples": 1.5}, "examples=1.5"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_invalid_requests_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        check_aggregator("fedavg", **options)


def test_an_unknown_rule_is_refused():
    with pytest.raises(InputError, match=r"rule='fedagv'.*'fedavg'"):
        check_aggregator("fedagv")
