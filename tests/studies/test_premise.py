"""Preservation of directions: runs that measure it, and runs that cannot."""

from __future__ import annotations

import numpy as np
import pytest
from real_cases import EXACT
from study_cases import ROUNDS, made_up_runs, small_study

from analysis.studies.findings import premise_rows
from analysis.studies.report import premise_table

RULES = ("fedavg", "raflora")
FIRST = 2  # round with angles
TURN = 0.5


@pytest.fixture(scope="module")
def study():
    return small_study()


@pytest.fixture(scope="module")
def runs(study):
    return made_up_runs(study, law=EXACT)


def collapsing(runs, rounds, turn=TURN):
    """Return a run whose highest level has a number of rounds with a rotation angle."""
    kept = FIRST + rounds
    return {
        label: run.assign(angle=(run.angle + turn).where((run.level < 4) | (run["round"] < kept)))
        for label, run in runs.items()
    }


@pytest.mark.slow
def test_the_premise_holds_without_rotation(study, runs):
    rows = premise_rows(study, runs)
    places = [(row["rule"], row["heterogeneity"]) for row in rows]
    assert places[:2] == [("fedavg", None), ("raflora", None)]
    assert places[2:] == [(rule, name) for rule in RULES for name in study.heterogeneity]
    still = {"known": 1.0, "median": 0.0, "largest": 0.0}
    for row in rows:
        assert [block["mean"] for block in row["preservation"]] == [1.0] * 3
        assert row["preservation"][0]["from"] == FIRST
        assert row["preservation"][-1]["to"] == ROUNDS
        assert row["angle"] == [{"level": level, **still} for level in (2, 4)]


def test_rotated_directions_are_detected(study, runs):
    late = ROUNDS - 1
    turned = {
        run.label: runs[run.label].assign(
            preservation=runs[run.label].preservation.where(runs[run.label]["round"] < late, 0.5),
            angle=runs[run.label].angle + 0.1 * (run.rule == "fedavg"),
        )
        for run in study.runs()
    }
    fedavg, raflora, *_ = premise_rows(study, turned)
    assert [block["mean"] for block in fedavg["preservation"]] == [1.0, 0.75, 0.5]
    assert [place["median"] for place in fedavg["angle"]] == [0.1, 0.1]
    assert [place["largest"] for place in raflora["angle"]] == [0.0, 0.0]


@pytest.mark.slow
def test_the_share_of_rounds_with_an_angle_is_shown(study, runs):
    total = ROUNDS - FIRST + 1
    for rounds in (0, 1, total):
        row, *_ = premise_rows(study, collapsing(runs, rounds))
        low, high = row["angle"]
        assert low["known"] == 1
        np.testing.assert_allclose(high["known"], rounds / total)
        np.testing.assert_allclose(high["largest"], TURN if rounds else np.nan)


@pytest.mark.slow
def test_an_angle_of_few_rounds_is_not_shown(study, runs):
    angles = {0: "– (0% of rounds)", 2: "– (40% of rounds)", 4: "29°, 29° (80% of rounds)"}
    for rounds, text in angles.items():
        report = {"premise": premise_rows(study, collapsing(runs, rounds))}
        _, _, first, *_ = premise_table(report).splitlines()
        assert first.endswith(f" | 29°, 29° | {text} |")


def test_a_study_of_one_round_says_nothing_of_it():
    found = premise_rows(small_study(scenario={"ranks": "2x2,4x2", "rounds": 1}), {})
    assert found == []
    assert premise_table({"premise": found}) == premise_table({}) == "Not measured."
