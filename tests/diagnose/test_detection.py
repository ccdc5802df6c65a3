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
    # a known limit: under strong noise a healthy partition can lose half of its energy by chance
    noisy = [row for row in recorded if row["fields"] == {"cohort_size": 4, "gain_std": 0.3}]
    assert len(noisy) == 1
    assert all(row["false_alarms_by_10"] == 0 for row in recorded if row not in noisy)
    assert noisy[0]["false_alarms_by_10"] <= RUNS // 20
    # small cohorts that train from zero hide the dilution for some rounds
    assert all(row["detected_by_10"] == RUNS for row in recorded[:4])


def test_a_few_runs() -> None:
    (row,) = rows(5, names=list(SCENARIOS)[:1])
    assert row["detected_by_10"] == 5
    assert row["false_alarms_by_30"] == 0
