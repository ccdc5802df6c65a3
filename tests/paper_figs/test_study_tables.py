"""A study's tables from an artificial report."""

from __future__ import annotations

from study_report_cases import claim, study_report

from analysis.studies.report import claims_table, scores_table, to_markdown


def test_scores_are_shown_with_their_range_over_runs() -> None:
    head, _, fedavg, _, unknown = scores_table(study_report()).splitlines()
    assert "| error of the theory [range over runs] | persistence, likewise |" in head
    assert "| coverage of 90% intervals [range over runs] |" in head
    cells = [cell.strip() for cell in fedavg.strip("|").split("|")]
    assert cells[2:6] == ["6", "0.3 [0.3 to 0.3]", "0.5 [0.25 to 1]", "0.3 [0.3 to 0.3]"]
    assert cells[6:8] == ["0.8 [0.7 to 0.9]", "0.8, 0.8"]
    assert unknown.endswith("| – | 0.5 [0.25 to 1] | – | – | – | no recursion |")


def test_intervals_are_shown_with_their_confidence() -> None:
    report = study_report(environment={})
    report["scores"]["confidence"] = 0.8
    assert "coverage of 80% intervals" in scores_table(report)
    claims = [{**claim("supported"), "confidence": 0.99}] * 3  # and one that is left out
    report["study"]["scenario"] = {}
    assert "hold together at 96%" in to_markdown({**report, "claims": claims})
    assert "hold together" not in to_markdown({**report, "claims": []})


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    bar = {**claim("supported"), "statement": "E[W | W > 0] stays."}
    head, _, row, _ = claims_table(study_report(claims=[bar])).splitlines()
    assert "E[W \\| W > 0]" in row
    assert row.replace("\\|", "").count("|") == head.count("|")
