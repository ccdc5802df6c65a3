"""Summary of a report: all claims, themes in order, conjectures in full."""

from __future__ import annotations

from typing import Any

import pytest
from report_cases import claim_entry

from analysis.claims.report import (
    by_theme,
    claim_tables,
    conjecture_table,
    theme_table,
    verdict_table,
)


@pytest.fixture
def mixed(report: dict[str, Any]) -> dict[str, Any]:
    control = {"description": "something wrong", "verdict": "supported"}
    claims = [
        claim_entry("one", theme="Rates"),
        claim_entry("two", theme="Floors", verdict="undecided"),
        claim_entry("three", theme="Rates", kind="conjecture", verdict="refuted"),
        claim_entry("four", theme="Rates", negative_control=control),
        claim_entry("five", theme="Rates", kind="conjecture"),
    ]
    return {**report, "claims": claims}


def test_themes_keep_the_order_of_the_report_and_every_claim(mixed: dict[str, Any]) -> None:
    parts = [(name, [c["id"] for c in part["claims"]]) for name, part in by_theme(mixed)]
    assert parts == [("Rates", ["one", "three", "four", "five"]), ("Floors", ["two"])]


def test_the_theme_table_counts_verdicts_and_controls(mixed: dict[str, Any]) -> None:
    rows = theme_table(mixed).splitlines()[2:]
    assert rows == [
        "| Rates | 2 supported | 1 supported, 1 refuted | 3 of 4 refuted | 4 of 4 refuted |",
        "| Floors | 1 undecided | – | 1 of 1 refuted | 1 of 1 refuted |",
    ]


def test_conjectures_are_listed_in_full_and_separately(mixed: dict[str, Any]) -> None:
    rows = conjecture_table(mixed).splitlines()[2:]
    assert [row.split("**")[1] for row in rows] == ["three", "five"]
    assert set(rows) <= set(verdict_table(mixed).splitlines())


def test_claim_tables_hold_every_row_once(mixed: dict[str, Any]) -> None:
    text = claim_tables(mixed)
    assert text.count("### ") == 2
    for row in verdict_table(mixed).splitlines()[2:]:
        assert text.count(row) == 1
