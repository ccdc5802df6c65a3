"""What came of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedlora_sim.conformance.case import Case

Status = Literal["passed", "failed", "skipped", "expected"]


class Violation(AssertionError):  # noqa: N818 - no error of the program
    """A case in which a rule breaks a law; the message says how."""


class NotApplicable(Exception):  # noqa: N818 - no error
    """A case of which a law says nothing."""


@dataclass(frozen=True, eq=False)
class CheckResult:
    """What came of one check of one rule.

    Args:
        check: its name.
        status: `passed`: no counterexample to a law that is universal or declared; `failed`: one,
            or none to a law that is declared absent; `expected`: one, to a law declared absent;
            `skipped`: not declared, hence untested, or not available.
        reason: what was found, in a line.
        statement: the law.
        examples: cases of which the law speaks that were tried, up to the first that breaks it.
        counterexample: the smallest case found that breaks the law; `code()` is Python to paste.
    """

    check: str
    status: Status
    reason: str
    statement: str
    examples: int = 0
    counterexample: Case | None = None
