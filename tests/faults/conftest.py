"""What the tests of faults count, and how often they try.

`pytest tests/faults --record-faults FILE` writes what they found, a row for each promise, from
which the table of docs/reliability.md is made; `python tests/faults/record.py` does it for a deep
run. A test states its promise and counts with the fixture `promise`:

    def test_...(promise):
        count = promise("No file ... is deleted.", "kills at random steps")
        count()
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import faults_cases
import pytest
from hypothesis_profiles import examples, is_random

DEEP, CI = 25, 3
RESULTS = pytest.StashKey[list[dict[str, object]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-faults", type=Path, help="file to write what was found to")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("faults")
            item.add_marker("slow")  # in processes of their own


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.when == "call":
        item.user_properties.append(("passed", report.passed))
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = session.config.getoption("--record-faults", None)
    if target is not None:
        target.write_text(json.dumps(session.config.stash[RESULTS], indent=1) + "\n", "utf-8")


@pytest.fixture(scope="session")
def prepared_command(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], faults_cases.Prepared]:
    """A command of `COMMANDS` by name, prepared once."""
    return cache(lambda name: faults_cases.prepared(name, tmp_path_factory.mktemp(name)))


@pytest.fixture
def trials() -> int:
    """Kills, or full disks, of one test: 25 in `make test-deep`, 3 in `make test`."""
    return DEEP if is_random() else max(1, CI * examples(CI) // CI)


@pytest.fixture
def promise(request: pytest.FixtureRequest) -> Iterator[Callable[..., Callable[..., None]]]:
    """State what is tested; the counter that it returns is called for every trial."""
    rows: list[dict[str, object]] = []

    def state(text: str, kind: str) -> Callable[..., None]:
        row: dict[str, object] = {"promise": text, "kind": kind, "count": 0}
        rows.append(row)

        def count(number: int = 1) -> None:
            row["count"] = int(str(row["count"])) + number

        return count

    yield state
    passed = dict(request.node.user_properties).get("passed", False)
    name = f"{Path(os.fspath(request.node.path)).name}::{request.node.originalname}"
    request.config.stash[RESULTS] += [{**row, "test": name, "passed": passed} for row in rows]
