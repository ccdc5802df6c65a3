"""Search for a counterexample to a law, by Hypothesis, and make it small."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING

from fedlora_sim.conformance.case import Case
from fedlora_sim.conformance.result import NotApplicable, Violation
from fedlora_sim.errors import InputError

if TYPE_CHECKING:
    from hypothesis import Phase
    from hypothesis.strategies import SearchStrategy

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
