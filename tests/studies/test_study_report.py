"""The report on a study: correct if the model is true, plain, without paths of the machine."""

from __future__ import annotations

import json

import numpy as np
import pytest
from real_cases import EXACT, LAW
from study_cases import made_up_runs, small_study

from analysis.studies.report import (
    claims_table,
    counterfactuals_table,
    last_part,
    outcomes_table,
    premise_table,
    study_fields,
    study_report,
    to_markdown,
)
from analysis.studies.study import MIXED
from fedlora_sim.tolerances import relative

ITERATED = relative("iteration")
CERTAIN = {**EXACT, "gain_mean": 0.9}
TABLES = (claims_table, outcomes_table)


@pytest.fixture(scope="module")
def study():
    return small_study()


@pytest.fixture(scope="module")
def runs(study):
    return made_up_runs(study, law=CERTAIN)


@pytest.fixture(scope="module")
def report(study, runs):
    return study_report(study, runs, "fedlora-sim study small.toml")


@pytest.mark.slow
def test_one_step_equals_the_shares(study, report):
    """With all clients and a fixed basis FedAvg keeps W_h^2 of raFLoRA's energy."""
    (row,) = report["counterfactuals"]
    assert (row["ran"], row["compared"], row["runs"]) == ("raflora", "fedavg", 4)
    shares = [part["energy"] for part in row["partitions"]]
    np.testing.assert_allclose(shares, [1.0, 0.25], rtol=ITERATED)
    low, high = row["partitions"][1]["energy_interval"]
    np.testing.assert_allclose([low, high], 0.25, rtol=ITERATED)
    told = [part["predicted"] for part in row["partitions"]]
    np.testing.assert_allclose(told, shares, rtol=ITERATED)
    measured, predicted = counterfactuals_table(report).splitlines()[2:]
    assert measured.startswith("| `raflora` | `fedavg` | 1 [1, 1] | 0.25 [0.25, 0.25] |")
    assert predicted == "| `raflora` | `fedavg`, predicted: `W_h^2` | 1 | 0.25 | – |"


@pytest.mark.slow
def test_the_report_is_plain_and_complete(study, report):
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["study"]["complete"]
    assert report["study"]["runs"] == len(study.runs())
    assert report["study"]["levels"] == [2, 4]
    assert len(report["rows"]) == 12
    assert len(report["claims"]) + len(report["left_out"]) == 4
    versions = report["environment"]
    assert versions["runs_made_with"].startswith("fedlora_sim ")
    assert {"torch_version", "numpy_version", "python_version", "threads"} <= set(versions)


@pytest.mark.slow
def test_runs_of_several_versions_are_reported(study, runs):
    first, *_ = runs
    mixed = {**runs, first: runs[first].assign_attrs(torch_version="1.0")}
    made_with = study_report(study, mixed)["environment"]["runs_made_with"]
    assert made_with.count(";") == 1
    assert "torch 1.0" in made_with


def test_a_report_has_no_path_of_the_machine(tmp_path):
    places = {"model": str(tmp_path / "a-model"), "data": str(tmp_path / "train.tsv")}
    scenario = {"task": "text", "ranks": "2x2,4x2", "rounds": 3, "cache_prefix": True, **places}
    told = study_fields(small_study(scenario=scenario))
    assert told["scenario"] == {
        "task": "text",
        "model": "a-model",
        "data": "train.tsv",
        "cache_prefix": True,
    }
    assert str(tmp_path) not in json.dumps(told)
    assert last_part("organization/model") == "organization/model"


def test_every_table_is_in_the_text(report):
    text = to_markdown(report)
    for table in (*TABLES, counterfactuals_table, premise_table):
        assert table(report) in text
    for heading in ("One step of every rule", "Are directions preserved?", "Environment"):
        assert f"## {heading}" in text
    assert "Repeat: `fedlora-sim study small.toml`" in text
    assert "mild: 7–8, harsh: 9–10" in text
    assert "Intervals of this table hold together at 95%." in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_tables_are_as_wide_as_their_heads(report):
    for table in TABLES:
        head, *lines = table(report).splitlines()
        assert {line.count("|") for line in lines} == {head.count("|")}
    assert "all 4" in outcomes_table(report)
    few = [row for row in report["rows"] if row["configuration"] == "few"]
    rows = [row for row in report["rows"] if row is not few[-1]]
    assert f"| few | `{few[-1]['rule']}` |" in outcomes_table({**report, "rows": rows})
    assert "| – |" in outcomes_table({**report, "rows": rows})


@pytest.mark.slow
def test_a_part_of_a_study_is_marked_as_one():
    part = small_study().part(["fedavg"], ["mild"], 1)
    runs = made_up_runs(part, law=LAW)
    found = study_report(part, runs)
    assert found["claims"] == found["counterfactuals"] == []
    assert len(found["left_out"]) == 4
    text = to_markdown(found)
    assert "A part of the study." in text
    assert "left out: its runs are not in this study" in text
    assert "One step" not in text
    assert {run.configuration for run in part.runs()} > {MIXED}
