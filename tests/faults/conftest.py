"""Fixtures of the tests of faults, and how often they try."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import faults_cases
import pytest
from hypothesis_profiles import examples, is_random

DEEP, CI = 25, 3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that run commands in separate processes."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def prepared_command(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], faults_cases.Prepared]:
    """Return a command of `COMMANDS` by name, prepared once."""
    return cache(lambda name: faults_cases.prepared(name, tmp_path_factory.mktemp(name)))


@pytest.fixture
def trials() -> int:
    """Return the number of kills or full disks: 25 in `make test-deep`, 3 in `make test`."""
    return DEEP if is_random() else max(1, CI * examples(CI) // CI)
