"""A study's tables from an artificial report."""

from __future__ import annotations

from study_report_cases import claim, study_report

from analysis.studies.report import claims_table, to_markdown


def test_intervals_are_shown_with_their_confidence() -> None:
    report = study_report(environment={})
    claims = [{**claim("supported"), "confidence": 0.99}] * 3  # and one that is left out
    report["study"]["scenario"] = {}
    assert "hold together at 96%" in to_markdown({**report, "claims": claims})
    assert "hold together" not in to_markdown({**report, "claims": []})


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    bar = {**claim("supported"), "statement": "E[W | W > 0] stays."}
    head, _, row, _ = claims_table(study_report(claims=[bar])).splitlines()
    assert "E[W \\| W > 0]" in row
    assert row.replace("\\|", "").count("|") == head.count("|")
