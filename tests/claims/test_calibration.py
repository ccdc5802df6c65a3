"""Calibration: it detects an estimator that errs too often; the recorded estimators pass."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import calibration
from analysis.calibration import (
    ALLOWED,
    EXPONENTIAL,
    FAST,
    MEAN,
    NORMAL,
    REACH,
    CalibrationCase,
    Edge,
    coverage,
    false_support,
    family_error,
    family_misses,
    ranks,
)
from analysis.claims import CLAIMS
from analysis.stats import FAMILY_ERROR, Measurement, mean_interval
from analysis.stats.intervals import MEAN_RUNS
from fedlora_sim.tolerances import relative
from paper_figs.check_tables import coverage_table, family_line, ranks_table

RECORD = Path(__file__).parents[2] / "results" / "recorded" / "calibration.json"
SEED = 3


def shortened(factor: float) -> calibration.Estimator:
    """Return intervals of means that are too short by a factor."""

    def estimate(samples: np.ndarray, error: float) -> Measurement:
        m = mean_interval(samples, error)
        ends = (m.value + factor * (end - m.value) for end in (m.low, m.high))
        return Measurement(m.value, *ends, m.samples)

    return estimate


def shifted(samples: np.ndarray, error: float) -> Measurement:
    """Return intervals that lie a quarter of a standard error too high."""
    m = mean_interval(samples, error)
    shift = 0.25 * samples.std(0, ddof=1) / np.sqrt(len(samples))
    return Measurement(m.value + shift, m.low + shift, m.high + shift, m.samples)


def test_students_interval_of_normal_runs_has_the_nominal_error() -> None:
    rows = coverage(CalibrationCase(MEAN, NORMAL, (8,), 40_000, (0.1, 0.01, 1e-3)), 8, SEED)
    assert [row["error"] for row in rows] == [0.1, 0.01, 1e-3]
    for row in rows:
        low, high = row["ratio_interval"]
        assert low < 1 < high
        assert row["calibrated"]
        assert row["missed_above"] + row["missed_below"] == pytest.approx(
            row["ratio"] * row["error"] * row["replicates"]
        )


def test_intervals_a_tenth_too_short_are_seen() -> None:
    case = CalibrationCase(("short", shortened(0.9)), NORMAL, (30,), 40_000, (0.01,))
    (row,) = coverage(case, 30, SEED)
    assert row["ratio"] > ALLOWED
    assert row["calibrated"] is False


def test_few_skewed_runs_are_seen_to_miss_on_the_side_of_their_tail() -> None:
    (row,) = coverage(CalibrationCase(MEAN, EXPONENTIAL, (8,), 40_000, (0.01,)), 8, SEED)
    assert row["missed_above"] > 10 * row["missed_below"]
    assert row["calibrated"] is False
    (row,) = coverage(CalibrationCase(MEAN, EXPONENTIAL, (100,), 20_000, (0.01,)), 100, SEED)
    assert row["calibrated"]
    assert row["reach"] < REACH


def test_rare_expected_misses_are_not_judged() -> None:
    (row,) = coverage(CalibrationCase(MEAN, NORMAL, (8,), 100, (1e-3,)), 8, SEED)
    assert (row["resolved"], row["calibrated"]) == (False, None)
    assert "| normal | 8 | 100 | – |" in coverage_table({"coverage": [row]})


ON_THE_EDGE = Edge(MEAN, replace(EXPONENTIAL), 100, 400, 400)


def test_support_on_the_edge_of_a_margin_is_as_rare_as_the_error() -> None:
    row = false_support(ON_THE_EDGE, SEED)
    assert row["looks"] == 3
    assert row["supported"] + row["refuted"] + row["undecided"] == 400
    assert row["calibrated"]


def test_wide_margins_and_short_intervals_support_values_on_the_edge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = replace(ON_THE_EDGE, estimator=("short", shortened(0.02)))
    assert false_support(short, SEED)["calibrated"] is False
    within = calibration.Prediction.within
    monkeypatch.setattr(
        calibration.Prediction, "within", lambda value, relative: within(value, 1_000 * relative)
    )
    row = false_support(ON_THE_EDGE, SEED)
    assert row["supported"] == 400
    assert row["calibrated"] is False


def test_a_family_errs_where_any_of_its_claims_does() -> None:
    part = {"claim": "a", "runs": 9, "first": 9, "quantities": 1, "each": 1e-4, "skewness": 2.0}
    part["error"] = 0.125
    parts = [part | {"missed": [True, False, False, False]}]
    parts += [part | {"claim": "b", "missed": [True, False, True, False]}]
    found = family_error(parts)
    assert (found["missed"], found["repetitions"], found["error"]) == (2, 4, 0.25)
    assert [claim["missed"] for claim in found["claims"]] == [1, 2]
    assert "In 2 of 4 repetitions (50%" in family_line({"family": found})


def test_one_claim_is_repeated_with_fresh_runs_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "FAMILY_RUNS", 30)
    found = family_misses("random-allocation-rate", SEED, 12)
    assert len(found["missed"]) == 12
    assert sum(found["missed"]) < 6
    assert (found["runs"], found["quantities"]) == (30, 3)


def test_ranks_are_flat_for_a_right_estimator_and_not_for_a_shifted_one() -> None:
    flat = ranks(MEAN, NORMAL, 8, 2_000, SEED)
    assert sum(flat["counts"]) == 2_000
    assert flat["p_uniform"] > 1e-3
    tilted = ranks(("shifted", shifted), NORMAL, 8, 2_000, SEED)
    assert tilted["p_uniform"] < 1e-6
    assert ranks_table({"ranks": [flat]}).count("\n") == 2


def test_a_stopped_calibration_continues_from_its_finished_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    stop = True

    def make(label: str) -> dict[str, Any]:
        if stop and label == "b":
            raise KeyboardInterrupt
        made.append(label)
        return {"claim": label}

    monkeypatch.setattr(
        calibration,
        "pieces",
        lambda seed: iter([("margin", n, lambda n=n: make(n)) for n in ("a", "b")]),
    )
    monkeypatch.setattr(calibration, "family_error", list)
    with pytest.raises(KeyboardInterrupt):
        calibration.calibrate(tmp_path)
    stop = False
    record = calibration.calibrate(tmp_path)
    assert made == ["a", "b"]
    assert record["margin"] == [{"claim": "a"}, {"claim": "b"}]
    assert json.loads((tmp_path / "calibration.json").read_text()) == record
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.json"]


def test_the_fast_claims_are_claims() -> None:
    assert set(FAST) <= {claim.id for claim in CLAIMS}


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return dict(json.loads(RECORD.read_text()))


def test_recorded_intervals_of_enough_runs_are_calibrated(recorded: dict[str, Any]) -> None:
    judged = [row for row in recorded["coverage"] if row["resolved"]]
    enough = [
        row
        for row in judged
        if row["law"] == "normal"
        or row["reach"] is None
        or (row["runs"] >= MEAN_RUNS and row["reach"] <= REACH)
    ]
    assert len(enough) > len(judged) / 2
    assert all(row["calibrated"] for row in enough)


def test_recorded_intervals_of_few_skewed_runs_are_not(recorded: dict[str, Any]) -> None:
    few = [r for r in recorded["coverage"] if r["runs"] <= 8 and r["reach"] and r["error"] <= 0.01]
    assert len(few) > 5
    assert not any(row["calibrated"] for row in few)


def test_recorded_verdicts_keep_their_errors(recorded: dict[str, Any]) -> None:
    assert all(row["calibrated"] for row in recorded["margin"])
    family = recorded["family"]
    assert family["repetitions"] == 200
    assert family["error"] <= FAMILY_ERROR * (1 + relative("reduction"))
    assert family["ratio_interval"][0] <= 1
    assert [claim["claim"] for claim in family["claims"]] == list(FAST)


def test_the_claims_data_lie_within_the_reach_of_their_estimators(
    recorded: dict[str, Any],
) -> None:
    known = [c for c in recorded["family"]["claims"] if c["skewness"] is not None]
    assert len(known) > 4
    assert all(claim["reach"] <= REACH for claim in known)
    assert all(claim["first"] >= MEAN_RUNS for claim in known)
