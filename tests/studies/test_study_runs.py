"""The runs of a study on disk: missing runs, stored rounds, and the code that made them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from study_cases import keep, made_up, small_study

from analysis.studies import run as studies_run
from analysis.studies.run import check_data, load_runs, missing_runs, run_study
from fedlora_sim.errors import InputError
from fedlora_sim.storage import load_dataset, save_dataset
from fedlora_sim.tasks.task import Examples

BY_WRITER = {"mild": {"split": "iid"}, "last": {"split": "by_writer"}}


@pytest.mark.slow
def test_a_field_that_came_later_had_its_usual_value_before(tmp_path):
    first, *others = small_study().runs()
    older = made_up(first)
    del older.attrs["weight_decay"]
    save_dataset(older, tmp_path / "runs" / f"{first.label}.nc")
    assert missing_runs(small_study(), tmp_path) == others
    fields = {"ranks": "2x2,4x2", "rounds": 6, "weight_decay": 0.5}
    with pytest.raises(InputError, match=r"weight_decay=0.5: expected 0\.0"):
        missing_runs(small_study(scenario=fields), tmp_path)


def test_a_list_of_one_is_the_same_on_disk(tmp_path):
    fields = {"ranks": "2x2,4x2", "rounds": 6, "target_modules": ["q_proj"]}
    study = small_study(scenario=fields)
    first, *others = study.runs()
    keep(first, tmp_path)
    assert missing_runs(study, tmp_path) == others


@pytest.mark.slow
def test_only_missing_runs_are_made(tmp_path, monkeypatch):
    study, made = small_study().part(heterogeneity=["mild"], seeds=1), []

    def simulate(scenario, *, rule, seed, checkpoints):
        made.append((rule, seed))
        run = next(r for r in study.runs() if (r.scenario, r.rule) == (scenario, rule))
        checkpoints.mkdir(parents=True)
        return made_up(run)

    monkeypatch.setattr(studies_run, "simulate", simulate)
    first, *others = study.runs()
    keep(first, tmp_path)
    told = []
    run_study(study, tmp_path, on_progress=told.append)
    assert told == others
    assert made == [(run.rule, run.seed) for run in others]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    run_study(study, tmp_path, on_progress=told.append)
    assert told == others


def test_a_failing_run_is_named(tmp_path, monkeypatch):
    study = small_study()

    def simulate(scenario, **options):
        raise InputError("update=nan: expected a finite one")

    monkeypatch.setattr(studies_run, "simulate", simulate)
    with pytest.raises(InputError, match=rf"{study.runs()[0].label}: update=nan"):
        run_study(study, tmp_path)


def test_a_split_that_the_data_do_not_allow_is_found_before_the_first_run(monkeypatch):
    labels = torch.arange(40) % 10
    task = SimpleNamespace(train=Examples({"x": torch.zeros(40, 1)}, labels))
    monkeypatch.setattr(studies_run, "load_task", lambda scenario: task)
    assert check_data(small_study().runs()) is None
    study = small_study(heterogeneity=BY_WRITER)
    with pytest.raises(InputError, match="last_mixed_fedavg_seed-9: groups"):
        check_data(study.runs())


def test_a_truncated_file_is_not_a_run(tmp_path):
    run = small_study().runs()[0]
    path = save_dataset(made_up(run), tmp_path / "runs" / f"{run.label}.nc")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OSError, match="nc"):
        missing_runs(small_study(), tmp_path)
    assert load_dataset(keep(run, tmp_path)).attrs["rule"] == "fedavg"


@pytest.mark.slow
def test_rounds_of_other_parts_are_left_alone(tmp_path, monkeypatch):
    study = small_study()
    part = study.part(heterogeneity=["mild"], seeds=1)
    other = next(run for run in study.runs() if run.heterogeneity == "harsh")
    kept = tmp_path / "rounds" / "code" / other.label
    stale = tmp_path / "rounds" / "older-code" / part.runs()[0].label
    for folder in (kept, stale):
        folder.mkdir(parents=True)
    for run in part.runs():
        keep(run, tmp_path)
    run_study(part, tmp_path)
    assert kept.exists()
    assert not stale.parent.exists()


@pytest.mark.slow
def test_a_run_records_its_code(tmp_path, monkeypatch):
    part = small_study().part(heterogeneity=["mild"], seeds=1)
    runs = {(run.rule, run.scenario): run for run in part.runs()}
    monkeypatch.setattr(
        studies_run, "simulate", lambda scenario, rule, **_: made_up(runs[rule, scenario])
    )
    run_study(part, tmp_path)
    assert {len(run.attrs[studies_run.CODE]) for run in load_runs(part, tmp_path).values()} == {12}
