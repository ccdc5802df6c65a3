"""Reports for several tests, each made once."""

from __future__ import annotations

from functools import cache

import pytest
from collapse_cases import Reports

from analysis.collapse import CollapseReport, collapse_report


@cache
def _report(rule: str, scenarios: tuple[str, ...] | None) -> CollapseReport:
    return collapse_report(rule, seed=0, scenarios=scenarios)


@pytest.fixture(scope="session")
def reports() -> Reports:
    """Return the report on a rule's name with the default number of runs."""
    return lambda rule, *scenarios: _report(rule, scenarios or None)
