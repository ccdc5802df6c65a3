"""Rates of detection and of false alarms: recorded, and repeated with few runs."""

from __future__ import annotations

import json
from pathlib import Path

from analysis.diagnose.detection import RUNS, SCENARIOS, rows

RECORD = Path(__file__).parents[2] / "results" / "recorded" / "diagnose.json"


def test_recorded_rates() -> None:
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))["rows"]
    assert [row["scenario"] for row in recorded] == list(SCENARIOS)
    assert [row["fields"] for row in recorded] == [dict(fields) for fields in SCENARIOS.values()]
    assert all(row["runs"] == RUNS for row in recorded)
    assert all(row["false_alarms_by_10"] == 0 for row in recorded)
    # small cohorts that train from zero hide the dilution for some rounds
    assert all(row["detected_by_10"] == RUNS for row in recorded[:3])


def test_a_few_runs() -> None:
    (row,) = rows(5, names=list(SCENARIOS)[:1])
    assert row["detected_by_10"] == 5
    assert row["false_alarms_by_30"] == 0
