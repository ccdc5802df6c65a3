"""Is a rule a correct aggregator? Laws, searched for counterexamples on cohorts of all kinds."""

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
    """`parametrize_with_checks` when it is asked for: it alone needs pytest."""
    if name == "parametrize_with_checks":
        from fedlora_sim.conformance.pytest_support import parametrize_with_checks

        return parametrize_with_checks
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
