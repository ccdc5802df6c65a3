"""`check_aggregator`: test a rule against all laws by searching for counterexamples."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from fedlora_sim.conformance import laws_of_arithmetic, laws_of_clients
from fedlora_sim.conformance.case import Case, Check, CheckResult, NotApplicable, Status, Violation
from fedlora_sim.errors import InputError, check_choice, check_count, check_seed
from fedlora_sim.rules import AggregationRule, Aggregator, get_rule

if TYPE_CHECKING:
    from hypothesis import Phase
    from hypothesis.strategies import SearchStrategy

# Search for a counterexample to a law by Hypothesis, and shrink it

Law = Callable[[Case], None]
"""Raises `Violation` on a case that breaks it.

`NotApplicable` on one to which it does not apply.
"""

MOST_KEPT = 200
"""Number of cases that are kept for the next law, since drawing a case takes longer than checking a

law; longer searches draw their own.
"""


class Search:
    """A search for a case that breaks a law.

    Attributes:
        tried: number of applicable cases, up to the first counterexample.
        counterexample: the smallest case that breaks the law; None if none was found.
        reason: how it breaks the law.
        raised: whether the rule raised an error there.

    Args:
        law: the law to test on each case.
        strategy: source of the cases.
        examples: number of cases to try, not counting those of shrinking.
        seed: seed of the search; equal seeds find equal cases.
        shrink: shrink the counterexample; otherwise it is the first one found.
        absent: the law is declared not to hold. An error does not demonstrate that, so it counts
            only if no other counterexample was found.
    """

    def __init__(
        self,
        law: Law,
        strategy: SearchStrategy[Case],
        examples: int,
        seed: int,
        shrink: bool = True,
        absent: bool = False,
    ) -> None:
        self.law, self.tried, self.reason, self.raised = law, 0, "", False
        self.absent, self._error = absent, ""
        self.counterexample: Case | None = None
        self._failing: Case | None = None
        self._find(strategy, examples, seed, shrink)
        if self.counterexample is None and self._failing is not None:
            self.counterexample, self.reason, self.raised = self._failing, self._error, True

    def _find(self, strategy: SearchStrategy[Case], examples: int, seed: int, shrink: bool) -> None:
        """Search, and keep the last case that broke the law, which is the smallest."""
        from hypothesis import Phase
        from hypothesis.errors import Flaky

        if examples <= MOST_KEPT and not any(map(self._breaks, drawn(strategy, examples, seed))):
            return
        if examples <= MOST_KEPT and not shrink:
            return
        phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
        # A rule that draws random numbers may satisfy the law on a case that has just broken it.
        with suppress(Flaky):
            search(strategy, self._breaks, examples, seed, phases)

    def _breaks(self, case: Case) -> bool:
        """Return True if a rule breaks the law on a case, or raises an error there."""
        error = ""
        try:
            self.law(case)
        except NotApplicable:
            return False
        except Violation as violation:
            reason = str(violation)
        except Exception as raised:  # the tested rule may raise anything
            reason = error = f"raised {type(raised).__name__}: {raised}"
        else:
            self.tried += self.counterexample is None
            return False
        self.tried += self.counterexample is None
        if error and self.absent:
            if self._failing is None:
                self._failing, self._error = case, error
            return False
        self.counterexample, self.reason, self.raised = case, reason, bool(error)
        return True


@lru_cache(maxsize=32)
def drawn(strategy: SearchStrategy[Case], examples: int, seed: int) -> tuple[Case, ...]:
    """Return the cases, in order, that a search of a law without counterexamples tries."""
    from hypothesis import Phase

    cases: list[Case] = []

    def keep(case: Case) -> bool:
        cases.append(case)
        return False

    search(strategy, keep, examples, seed, (Phase.generate,))
    return tuple(cases)


def search(
    strategy: SearchStrategy[Case],
    wanted: Callable[[Case], bool],
    examples: int,
    seed: int,
    phases: Sequence[Phase],
) -> None:
    """Draw at most this number of cases until one satisfies the condition, then shrink it."""
    from hypothesis import HealthCheck, find, settings
    from hypothesis.errors import NoSuchExample

    chosen = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )
    with suppress(NoSuchExample):
        find(strategy, wanted, settings=chosen, random=random.Random(seed))


def check_hypothesis() -> None:
    """Refuse to search without Hypothesis.

    Raises:
        InputError: says how to install it.
    """
    try:
        import hypothesis  # noqa: F401
    except ModuleNotFoundError:
        install = "pip install 'fedlora-sim[check]'"
        raise InputError(f"hypothesis, which searches for counterexamples: {install}") from None


# All checks, in the order of execution and of reports

CHECKS: tuple[Check, ...] = (
    *laws_of_arithmetic.FORM_LAWS,
    *laws_of_clients.ROUNDS_LAWS,
    *laws_of_arithmetic.NUMERICS_LAWS,
    *laws_of_clients.CLIENTS_LAWS,
    *laws_of_clients.SYMMETRY_LAWS,
    *laws_of_arithmetic.EXACTNESS_LAWS,
    *laws_of_clients.PARTITIONS_LAWS,
    *laws_of_clients.DIRECTIONS_LAWS,
)


# `check_aggregator`

LEAST_FOR_ABSENT = 300
"""Number of cases tried for a counterexample that a rule declares.

The first one ends the search.
"""


def check_aggregator(
    rule: str | AggregationRule | Aggregator,
    *,
    examples: int | None = None,
    seed: int = 0,
    checks: Sequence[str] | None = None,
    shrink: bool = True,
    on_result: Callable[[CheckResult], Any] = lambda result: None,
) -> list[CheckResult]:
    """Test a rule against all laws.

    The suite searches for a counterexample to each law that the rule declares. For a law that the
    rule declares not to hold, it must find one. Laws that the rule leaves open are reported as not
    tested.

    Args:
        rule: name of a registered rule, or a rule object.
        examples: cases to try per law; the number of the active Hypothesis profile when None. More
            cases are tried if necessary to find the counterexample to a law declared not to hold.
        seed: seed of the search; equal seeds try equal cases.
        checks: names of the checks to run; all when None.
        shrink: shrink counterexamples, which takes most of the time if there are any.
        on_result: called with each result as soon as it is available.

    Returns:
        One result per check, in the order of the catalogue.

    Raises:
        InputError: if a rule or check is unknown, or Hypothesis is not installed.
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
    """Return the check of the given name.

    Raises:
        InputError: names the closest name.
    """
    by_name = {check.name: check for check in CHECKS}
    return by_name[check_choice("check", name, by_name)]


def check_examples(examples: int | None) -> int:
    """Return the number of cases per law: as given, or of the active Hypothesis profile."""
    check_hypothesis()
    if examples is not None:
        return check_count("examples", examples)
    from hypothesis import settings

    return int(settings().max_examples)


def run_check(
    rule: AggregationRule, check: Check, examples: int, seed: int, shrink: bool = True
) -> CheckResult:
    """Test a rule against one law.

    Args:
        rule: the rule, as `get_rule` returns it.
        check: the law.
        examples: number of cases to try.
        seed: seed of the search.
        shrink: shrink a counterexample.
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
    # A rule that declares a law not to hold must not fail because few cases happened to satisfy it.
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
