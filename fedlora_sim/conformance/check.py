"""`check_aggregator`: every law, held against one rule."""

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

# Search for a counterexample to a law, by Hypothesis, and make it small

Law = Callable[[Case], None]
"""Raises `Violation` on a case that breaks it, `NotApplicable` on one of which it says nothing."""

MOST_KEPT = 200
"""Cases that are kept for the next law, since drawing one takes longer than holding a law against
it; longer searches draw theirs anew."""


class Search:
    """A search for a case that breaks a law.

    Attributes:
        tried: cases of which the law speaks, up to the first that breaks it.
        counterexample: the smallest case that breaks it; None if none was found.
        reason: how it does.
        raised: whether the rule raised an error there, in place of an answer.

    Args:
        law: what is held against every case.
        strategy: where cases come from.
        examples: cases to try, besides those that make a counterexample smaller.
        seed: of the search; the same one finds the same cases.
        shrink: make the counterexample small; else it is the first one found.
        absent: the law is said not to hold, which an error does not show: one counts only where
            nothing else was found.
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
        """The last case that broke the law is the smallest: it is kept, whatever comes after."""
        from hypothesis import Phase
        from hypothesis.errors import Flaky

        if examples <= MOST_KEPT and not any(map(self._breaks, drawn(strategy, examples, seed))):
            return
        if examples <= MOST_KEPT and not shrink:
            return
        phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
        # A rule that draws numbers may keep the law on a case that it has just broken it on.
        with suppress(Flaky):
            search(strategy, self._breaks, examples, seed, phases)

    def _breaks(self, case: Case) -> bool:
        """Whether a rule breaks the law on a case, or raises, which breaks it too."""
        error = ""
        try:
            self.law(case)
        except NotApplicable:
            return False
        except Violation as violation:
            reason = str(violation)
        except Exception as raised:  # whatever a rule that is under test may raise
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
    """The cases that a search of a law that always holds would try, in their order."""
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
    """Draw cases, at most so many, until one is wanted; then smaller ones."""
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
        InputError: saying how to install it.
    """
    try:
        import hypothesis  # noqa: F401
    except ModuleNotFoundError:
        install = "pip install 'fedlora-sim[check]'"
        raise InputError(f"hypothesis, which searches for counterexamples: {install}") from None


# All checks, in the order in which they are run and reported

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


# `check_aggregator`: every law, held against one rule

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
