"""`check_aggregator`: every law, held against one rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fedlora_sim.aggregation import AggregationRule, Aggregator, get_rule
from fedlora_sim.conformance.catalogue import CHECKS
from fedlora_sim.conformance.law import Check
from fedlora_sim.conformance.result import CheckResult, Status
from fedlora_sim.conformance.runner import Search, check_hypothesis
from fedlora_sim.errors import check_choice, check_count, check_seed

LEAST_FOR_ABSENT = 300
"""Cases that are tried for a counterexample that a rule declares: the first one ends the search."""


def check_aggregator(
    rule: str | AggregationRule | Aggregator,
    *,
    examples: int | None = None,
    seed: int = 0,
    checks: Sequence[str] | None = None,
    shrink: bool = True,
    on_result: Callable[[CheckResult], Any] = lambda result: None,
) -> list[CheckResult]:
    """Hold every law against a rule.

    A law that the rule declares is searched for a counterexample, and so is one that it declares
    absent, where one must be found. What it leaves open is reported as untested.

    Args:
        rule: name of a registered rule, or a rule.
        examples: cases to try per law; that of the Hypothesis profile in force when None. For the
            counterexample to a law that is declared absent more are tried, if need be.
        seed: of the search: the same one tries the same cases.
        checks: names of the checks to run; all when None.
        shrink: make counterexamples small, which takes most of the time where there are some.
        on_result: called with every result as soon as it is there.

    Returns:
        One result per check, in the order of the catalogue.

    Raises:
        InputError: on an unknown rule or check, or without Hypothesis.
    """
    chosen = get_rule(rule)
    wanted = list(CHECKS) if checks is None else [check_named(name) for name in checks]
    count, seed = check_examples(examples), check_seed("seed", seed)
    results = []
    for check in wanted:
        results.append(run_check(chosen, check, count, seed, shrink))
        on_result(results[-1])
    return results


def check_named(name: str) -> Check:
    """The check of a name.

    Raises:
        InputError: with the closest name.
    """
    by_name = {check.name: check for check in CHECKS}
    return by_name[check_choice("check", name, by_name)]


def check_examples(examples: int | None) -> int:
    """Cases to try per law: as given, or as the Hypothesis profile in force has it."""
    check_hypothesis()
    if examples is not None:
        return check_count("examples", examples)
    from hypothesis import settings

    return int(settings().max_examples)


def run_check(
    rule: AggregationRule, check: Check, examples: int, seed: int, shrink: bool = True
) -> CheckResult:
    """Hold one law against a rule.

    Args:
        rule: the rule, as `get_rule` returns it.
        check: the law.
        examples: cases to try.
        seed: of the search.
        shrink: make a counterexample small.
    """
    from fedlora_sim.conformance.strategies import suitable

    properties = rule.properties
    declared = check.declared(properties)
    result = partial(CheckResult, check.name, statement=check.statement)
    if declared is None:
        return result("skipped", "untested: the rule declares nothing of it")
    missing = check.missing(rule)
    if missing is not None:
        return result("skipped", f"not available: {missing}")
    strategy = suitable(properties, **check.options)
    # Who says that a law is broken must not fail because few cases happened to keep it.
    count = examples if declared else max(examples, LEAST_FOR_ABSENT)
    search = Search(partial(check.test, rule), strategy, count, seed, shrink, absent=not declared)
    status, reason = _judge(search, declared)
    return result(status, reason, examples=search.tried, counterexample=search.counterexample)


def _judge(search: Search, declared: bool) -> tuple[Status, str]:
    if search.counterexample is None and not search.tried:
        return "skipped", "no case of which the law speaks was found"
    if search.counterexample is None and declared:
        return "passed", ""
    if search.counterexample is None:
        return "failed", f"declared absent, but {search.tried} cases keep the law"
    return "failed" if declared or search.raised else "expected", search.reason
