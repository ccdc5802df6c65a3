"""Guarantees of the documents, recorded by the tests that check them.

A test states its guarantee with the fixture `promise` and counts its trials:

    def test_...(promise):
        count = promise("No file ... is deleted.", "kills at random steps")
        count()

`pytest --record-promises FILE` writes one row per guarantee and test. `tests/faults/record.py` runs
all tests that state one and updates the record of the table in docs/reliability.md. The fixture and
the hooks are used by `tests/conftest.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

Promise = Callable[[str, str], Callable[..., None]]
Row = dict[str, Any]
TESTS = Path(__file__).parent
PROPERTY = "promise"

# Guarantees that several files test.
NO_CODE = (
    "No code in a data file, an adapter or a model is run: neither a pickle nor a script (a canary "
    "file would show it)."
)
ONE_LINE = (
    "Error messages are one line of at most 2,000 characters in which control characters are "
    "escaped, whatever the input contains."
)


@pytest.fixture
def promise(request: pytest.FixtureRequest) -> Promise:
    """Return a function that states a guarantee and returns the counter of its trials."""

    def state(text: str, kind: str) -> Callable[..., None]:
        row: Row = {"promise": text, "kind": kind, "count": 0}
        # Properties are part of the test's report, which pytest-xdist sends to the main process.
        request.node.user_properties.append((PROPERTY, row))

        def count(number: int = 1) -> None:
            row["count"] += number

        return count

    return state


class Recorder:
    """Write what the tests recorded when the session ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" or report.skipped:
            return
        test = report.nodeid.partition("[")[0].removeprefix(f"{TESTS.name}/")
        found = [row for key, row in report.user_properties if key == PROPERTY]
        self.rows += [{**row, "test": test, "passed": report.passed} for row in found]

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(json.dumps(summed(self.rows), indent=1) + "\n", encoding="utf-8")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-promises", type=Path, help="file to write the guarantees to")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--record-promises")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(path))


def summed(rows: Iterable[Row]) -> list[Row]:
    """Return one row per guarantee, test and kind of trial."""
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = tuple(row[name] for name in ("promise", "test", "kind"))
        total = found.setdefault(key, {**row, "count": 0})
        total["count"] += row["count"]
        total["passed"] = total["passed"] and row["passed"]
    return list(found.values())


def merged(recorded: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """Return the recorded rows with those of the tests that ran again replaced by the new ones.

    New rows follow the recorded ones of the same guarantee.
    """
    new = list(new)
    ran = {row["test"] for row in new}
    rows = [row for row in recorded if row["test"] not in ran] + new
    order = {text: place for place, text in enumerate(dict.fromkeys(r["promise"] for r in rows))}
    return sorted(rows, key=lambda row: (order[row["promise"]], row["test"]))
