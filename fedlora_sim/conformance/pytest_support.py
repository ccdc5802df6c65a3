"""pytest support: the checks as parametrized tests, one per rule and law."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from fedlora_sim.conformance.case import Check, CheckResult
from fedlora_sim.conformance.check import CHECKS, check_examples, run_check
from fedlora_sim.conformance.report import failure
from fedlora_sim.errors import check_positive_int, check_seed, expected
from fedlora_sim.rules import AggregationRule, Aggregator, get_rule
from fedlora_sim.runtime import one_thread


@dataclass(frozen=True)
class RuleCheck:
    """One law, to be called in a test with a rule.

    Args:
        law: the law to check.
        examples: number of cases; that of the active Hypothesis profile when None.
        seed: seed of the search.
    """

    law: Check
    examples: int | None = None
    seed: int = 0

    def __call__(self, rule: str | AggregationRule | Aggregator) -> CheckResult:
        """Return the result if the rule satisfies the law, or breaks it as declared.

        Raises:
            AssertionError: if the check failed; contains the smallest case as Python code.
        """
        __tracebackhide__ = True
        chosen = get_rule(rule)
        # A counterexample that was declared is not shown: shrinking it would take most of the time.
        shrink = self.law.declared(chosen.properties) is not False
        with one_thread():
            result = run_check(chosen, self.law, check_examples(self.examples), self.seed, shrink)
        if result.status == "skipped":
            pytest.skip(result.reason)
        if result.status == "failed":
            raise AssertionError(failure(result, chosen))
        return result


def parametrize_with_checks(
    rules: Iterable[str | AggregationRule | Aggregator],
    *,
    examples: int | None = None,
    seed: int = 0,
) -> pytest.MarkDecorator:
    """Parametrize a test over all rules and laws, as `test_rule[raflora-client_order]`.

        @parametrize_with_checks(["raflora", MyRule()])
        def test_rule(rule, check):
            check(rule)

    Laws that a rule leaves open, or that cannot be tested here, are skipped tests.

    Args:
        rules: names of registered rules, or rule objects.
        examples: number of cases per law; that of the active Hypothesis profile when None.
        seed: seed of the search for counterexamples.

    Raises:
        InputError: for unknown names, objects that are not rules, and invalid numbers.
    """
    if isinstance(rules, str):
        raise expected("rules", rules, "a list of rules")
    if examples is not None:
        check_positive_int("examples", examples)
    seed = check_seed("seed", seed)
    made = [(rule if not isinstance(rule, str) else get_rule(rule)) for rule in rules]
    cases = [
        pytest.param(rule, RuleCheck(law, examples, seed), id=f"{get_rule(rule).label}-{law.name}")
        for rule in made
        for law in CHECKS
    ]
    return pytest.mark.parametrize(("rule", "check"), cases)
