"""Conformance suite: laws of correct aggregators, tested by search for counterexamples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedlora_sim.conformance.case import Case as Case
from fedlora_sim.conformance.case import CheckResult as CheckResult
from fedlora_sim.conformance.check import CHECKS as CHECKS
from fedlora_sim.conformance.check import check_aggregator as check_aggregator

if TYPE_CHECKING:
    from fedlora_sim.conformance.pytest_support import (
        parametrize_with_checks as parametrize_with_checks,
    )


def __getattr__(name: str) -> Any:
    """Return `parametrize_with_checks`, imported on first access because only it needs pytest."""
    if name == "parametrize_with_checks":
        from fedlora_sim.conformance.pytest_support import parametrize_with_checks

        return parametrize_with_checks
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
