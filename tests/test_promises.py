"""Records of the guarantees: rows per test, sums, and rows of tests that ran again."""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from promises import TESTS, Recorder, merged, summed

RECORD = TESTS.parent / "results" / "recorded" / "faults.json"


def row(promise: str, test: str, count: int, *, passed: bool = True) -> dict[str, object]:
    return {"promise": promise, "kind": "kills", "count": count, "test": test, "passed": passed}


def test_cases_of_a_test_are_summed_and_one_failure_counts(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "found.json")
    for case, when, passed in (("a", "call", True), ("b", "call", False), ("c", "setup", False)):
        found = {"promise": "Kept.", "kind": "kills", "count": 2}
        recorder.pytest_runtest_logreport(
            SimpleNamespace(
                nodeid=f"tests/faults/test_x.py::test_y[{case}::z]",
                when=when,
                skipped=False,
                passed=passed,
                user_properties=[("promise", found), ("other", 3)],
            )
        )
    recorder.pytest_sessionfinish()
    written = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert written == [row("Kept.", "faults/test_x.py::test_y", 4, passed=False)]


def test_tests_that_ran_again_replace_their_rows_and_no_others() -> None:
    old = [row("One.", "a", 1), row("One.", "b", 2), row("Two.", "a", 3), row("Two.", "c", 4)]
    new = summed([row("One.", "a", 10), row("Three.", "d", 5)])
    assert merged(old, new) == [
        row("One.", "a", 10),
        row("One.", "b", 2),
        row("Two.", "c", 4),
        row("Three.", "d", 5),
    ]
    assert merged((), old) == merged(old, ())


@cache
def promising_tests() -> set[str]:
    """Tests that take the fixture `promise`, named as in the record."""
    return {
        f"{path.relative_to(TESTS).as_posix()}::{node.name}"
        for path in TESTS.rglob("test_*.py")
        if "promise" in (text := path.read_text(encoding="utf-8"))
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and any(argument.arg == "promise" for argument in node.args.args)
    }


def test_the_record_has_every_test_that_promises() -> None:
    rows = json.loads(RECORD.read_text(encoding="utf-8"))["rows"]
    assert {row["test"] for row in rows} == promising_tests()
    assert all(row["count"] > 0 for row in rows)
    for row in rows:
        text = (TESTS / row["test"].partition("::")[0]).read_text(encoding="utf-8")
        assert row["kind"] in text
