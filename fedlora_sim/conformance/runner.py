"""Search for a counterexample to a law, by Hypothesis, and make it small."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from fedlora_sim.conformance.case import Case
from fedlora_sim.conformance.result import NotApplicable, Violation
from fedlora_sim.errors import InputError

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

Law = Callable[[Case], None]
"""Raises `Violation` on a case that breaks it, `NotApplicable` on one of which it says nothing."""


class Search:
    """A search for a case that breaks a law.

    Attributes:
        tried: cases of which the law speaks.
        counterexample: the smallest case that breaks it; None if none was found.
        reason: how it does.
        raised: whether the rule raised an error there, in place of an answer.

    Args:
        law: what is held against every case.
        strategy: where cases come from.
        examples: cases to try, besides those that make a counterexample smaller.
        seed: of the search; the same one finds the same cases.
    """

    def __init__(self, law: Law, strategy: SearchStrategy[Case], examples: int, seed: int) -> None:
        self.law, self.tried, self.reason, self.raised = law, 0, "", False
        self.counterexample = self._find(strategy, examples, seed)

    def _find(self, strategy: SearchStrategy[Case], examples: int, seed: int) -> Case | None:
        from hypothesis import HealthCheck, Phase, find, settings
        from hypothesis.errors import NoSuchExample

        chosen = settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        try:
            found = find(strategy, self._breaks, settings=chosen, random=random.Random(seed))
        except NoSuchExample:
            return None
        self.reason = self._violation(found) or ""
        return found

    def _breaks(self, case: Case) -> bool:
        return self._violation(case) is not None

    def _violation(self, case: Case) -> str | None:
        """How a case breaks the law; None if it does not. A rule that raises breaks it."""
        self.tried += 1
        self.raised = False
        try:
            self.law(case)
        except Violation as violation:
            return str(violation)
        except NotApplicable:
            self.tried -= 1
        except Exception as error:  # whatever a rule that is under test may raise
            self.raised = True
            return f"raised {type(error).__name__}: {error}"
        return None


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
