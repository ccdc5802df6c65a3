"""Studies: what runs they take, what is refused before the first, and what is on disk."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from study_cases import keep, made_up, small_study, study_values

from analysis.real import study_runs
from analysis.real.study import HIGHEST, LOWEST, MIXED
from analysis.real.study_files import load_study, study_about, study_names, study_of
from analysis.real.study_runs import check_data, load_runs, missing_runs, run_study
from fedlora_sim.datasets import load_dataset, save_dataset
from fedlora_sim.errors import InputError
from fedlora_sim.tasks.examples import Examples

PLACES = {"model": "a-model", "data": "train.tsv"}
BY_WRITER = {"mild": {"split": "iid"}, "last": {"split": "by_writer"}}
CANONICAL = {"rules": ["raflora:canonicalize=true"]}
TOML = """
name = "own"
rules = ["fedavg"]
seeds = 1
[scenario]
ranks = "2x2,4x2"
[heterogeneity]
first = { split = "iid" }
last = { split = "dirichlet", dirichlet_alfa = 0.5 }
"""


@pytest.mark.parametrize("name", study_names())
def test_packaged_studies_hold_every_rule_under_every_heterogeneity(name):
    study = load_study(name, PLACES if name == "agnews" else {})
    mixed = [run for run in study.runs() if run.configuration == MIXED]
    assert study_about(name).endswith(".")
    assert study.name == name
    assert len(mixed) == len(study.rules) * sum(len(own) for own in study.seeds.values())
    assert {"fedavg", "raflora"} <= set(study.rules)
    assert len({run.label for run in study.runs()}) == len(study.runs())
    for run in study.runs():
        assert re.fullmatch(r"[\w.-]+", run.label)


def test_a_packaged_study_says_what_it_must_be_told():
    with pytest.raises(InputError, match="model=None"):
        load_study("agnews")


def test_rules_meet_the_same_seeds_and_heterogeneities_their_own():
    study = small_study()
    assert study.seeds == {"mild": (7, 8), "harsh": (9, 10)}
    met = {}
    for run in study.runs():
        met.setdefault((run.rule, run.configuration), set()).add(run.seed)
    assert met["fedavg", MIXED] == met["raflora", MIXED] == {7, 8, 9, 10}
    assert met["fedavg", LOWEST] == met["fedavg", HIGHEST] == {7, 8, 9, 10}
    assert met["fedavg", "few"] == met["raflora", "few"] == {7, 8, 9, 10}


def test_runs_have_the_ranks_and_the_split_of_their_names():
    for run in small_study().runs():
        ranks = {MIXED: (2, 2, 4, 4), LOWEST: (2,) * 4, HIGHEST: (4,) * 4, "few": (2, 2, 2, 4)}
        assert run.scenario.ranks == ranks[run.configuration]
        assert (
            run.scenario.split == {"mild": "dirichlet", "harsh": "pathological"}[run.heterogeneity]
        )
        asked = (run.rule, run.configuration) == ("raflora", MIXED)
        assert run.scenario.counterfactuals is asked


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ruels": ["fedavg"]}, "study field='ruels'.*did you mean 'rules'"),
        ({"rules": ["fedavg", "ralfora"]}, "did you mean 'raflora'"),
        ({"rules": ["fedavg", 3]}, "rule=3"),
        ({"rules": ["fedavg", "flexlora"]}, "each rule once"),
        ({"rules": []}, r"rules=\[\]"),
        ({"seeds": 0}, "seeds=0"),
        ({"seeds": 2.0}, "seeds=2.0"),
        ({"first_seed": -1}, "first_seed=-1"),
        ({"target_accuracy": 1.5}, "target_accuracy=1.5"),
        ({"scenario": {"rounds": 2}}, "ranks=None"),
        ({"scenario": {"ranks": "2x2", "roundz": 2}}, "did you mean 'rounds'"),
        ({"scenario": {"ranks": "2x2,4x2", "fidelity": "matrix"}}, "fidelity='matrix'"),
        ({"scenario": {"ranks": "2x2", "counterfactuals": True}}, "counterfactual_rules"),
        ({"scenario": {"ranks": "2x2,4x2", "allocation": "random"}, **CANONICAL}, "allocation"),
        ({"heterogeneity": {"mild": {}, "last": {"splitt": "iid"}}}, "did you mean 'split'"),
        ({"heterogeneity": {"mild": {}, "last": {"split": "iidd"}}}, "did you mean 'iid'"),
        ({"heterogeneity": {"mild": {}, "last": {"ranks": "2x4"}}}, "heterogeneity 'last'"),
        ({"heterogeneity": {"mild": 3}}, "heterogeneity 'mild'=3"),
        ({"rank_configurations": {"mixed": "2x4"}}, "rank_configurations='mixed'"),
        ({"rank_configurations": {"last": "2x3"}}, "4 clients"),
        ({"rank_configurations": {"a b": "2x4", "a-b": "4x4"}}, "a-b"),
        ({"compared_rules": ["fedawg"]}, "did you mean 'fedavg'"),
    ],
)
def test_what_cannot_be_run_is_refused_before_the_first_run(changes, message):
    values = study_values(**changes)
    with pytest.raises(InputError, match=message):
        study_of(values, {})


def test_a_file_is_read_to_its_last_row(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(TOML)
    with pytest.raises(InputError, match="did you mean 'dirichlet_alpha'"):
        load_study(str(path))
    path.write_text(TOML.replace("alfa", "alpha"))
    study = load_study(str(path), {"rounds": 3})
    assert study.scenario.rounds == 3
    assert study.about == ""
    path.write_text(TOML.replace("]", ""))
    with pytest.raises(InputError, match="readable TOML"):
        load_study(str(path))


def test_a_folder_of_its_name_does_not_hide_a_packaged_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert load_study("digits").name == "digits"
    with pytest.raises(InputError, match="did you mean 'digits'"):
        load_study("digit")
    with pytest.raises(InputError, match="readable TOML"):
        load_study("digits.toml")


def test_the_runs_of_a_part_are_runs_of_the_whole():
    study = small_study()
    part = study.part(["raflora"], ["harsh"], 1)
    labels = [run.label for run in study.runs()]
    assert {run.label for run in part.runs()} < set(labels)
    assert {(run.rule, run.configuration, run.seed) for run in part.runs()} == {
        ("raflora", MIXED, 9),
        ("raflora", "few", 9),
        ("fedavg", LOWEST, 9),
        ("fedavg", HIGHEST, 9),
    }
    assert study.complete
    assert not part.complete
    assert study.part(["raflora", "fedavg"], ["harsh", "mild"], 2) == study
    assert not part.part().complete


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rules": ["rbla"]}, "rules='rbla'"),
        ({"rules": []}, r"rules=\[\]"),
        ({"heterogeneity": ["wild"]}, "one of the study's: mild, harsh"),
        ({"seeds": 3}, "at most the 2"),
        ({"seeds": 0}, "seeds=0"),
    ],
)
def test_a_part_that_the_study_does_not_have_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        small_study().part(**given)


def test_runs_on_disk_are_found_and_loaded(tmp_path):
    study = small_study().part(heterogeneity=["mild"], seeds=1)
    first, *others = study.runs()
    keep(first, tmp_path)
    assert missing_runs(study, tmp_path) == others
    with pytest.raises(InputError, match=f"{len(others)} are missing, {others[0].label} first"):
        load_runs(study, tmp_path)
    for run in others:
        keep(run, tmp_path)
    found = load_runs(study, tmp_path)
    assert list(found) == [run.label for run in study.runs()]
    np.testing.assert_array_equal(found[first.label].energy, made_up(first).energy)


def test_a_run_of_another_scenario_is_refused_with_what_differs(tmp_path):
    run = small_study().runs()[0]
    keep(run, tmp_path)
    other = small_study(scenario={"ranks": "2x2,4x2", "rounds": 6, "batch_size": 5})
    with pytest.raises(InputError, match=f"batch_size=5: expected.*16.*{run.label}"):
        missing_runs(other, tmp_path)


def test_a_field_that_came_later_had_its_usual_value_before(tmp_path):
    first, *others = small_study().runs()
    older = made_up(first)
    del older.attrs["momentum"]
    save_dataset(older, tmp_path / "runs" / f"{first.label}.nc")
    assert missing_runs(small_study(), tmp_path) == others
    fields = {"ranks": "2x2,4x2", "rounds": 6, "momentum": 0.5}
    with pytest.raises(InputError, match=r"momentum=0.5: expected 0\.0"):
        missing_runs(small_study(scenario=fields), tmp_path)


def test_a_list_of_one_is_the_same_on_disk(tmp_path):
    fields = {"ranks": "2x2,4x2", "rounds": 6, "target_modules": ["q_proj"]}
    study = small_study(scenario=fields)
    first, *others = study.runs()
    keep(first, tmp_path)
    assert missing_runs(study, tmp_path) == others


def test_only_missing_runs_are_made(tmp_path, monkeypatch):
    study, made = small_study().part(heterogeneity=["mild"], seeds=1), []

    def simulate(scenario, *, rule, seed, on_progress, checkpoints):
        made.append((rule, seed))
        run = next(r for r in study.runs() if (r.scenario, r.rule) == (scenario, rule))
        checkpoints.mkdir(parents=True)
        return made_up(run)

    monkeypatch.setattr(study_runs, "simulate", simulate)
    first, *others = study.runs()
    keep(first, tmp_path)
    told = []
    run_study(study, tmp_path, on_progress=told.append)
    assert told == others
    assert made == [(run.rule, run.seed) for run in others]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    run_study(study, tmp_path, on_progress=told.append)
    assert told == others


def test_a_run_that_fails_says_which_it_is(tmp_path, monkeypatch):
    study = small_study()

    def simulate(scenario, **options):
        raise InputError("update=nan: expected a finite one")

    monkeypatch.setattr(study_runs, "simulate", simulate)
    with pytest.raises(InputError, match=rf"{study.runs()[0].label}: update=nan"):
        run_study(study, tmp_path)


def test_a_split_that_the_data_do_not_allow_is_found_before_the_first_run(monkeypatch):
    labels = torch.arange(40) % 10
    task = SimpleNamespace(train=Examples({"x": torch.zeros(40, 1)}, labels))
    monkeypatch.setattr(study_runs, "load_task", lambda scenario: task)
    assert check_data(small_study().runs()) is None
    study = small_study(heterogeneity=BY_WRITER)
    with pytest.raises(InputError, match="last_mixed_fedavg_seed-9: groups"):
        check_data(study.runs())


def test_a_torn_file_is_no_run(tmp_path):
    run = small_study().runs()[0]
    path = save_dataset(made_up(run), tmp_path / "runs" / f"{run.label}.nc")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(OSError, match="nc"):
        missing_runs(small_study(), tmp_path)
    assert load_dataset(keep(run, tmp_path)).attrs["rule"] == "fedavg"


def test_every_seed_draws_a_task_of_its_own():
    """Samples and new parameters too: runs that shared them would not be independent."""
    for run in small_study().runs():
        assert run.scenario.task_seed == run.seed


@pytest.mark.parametrize(("name", "message"), [("task_seed", "own seed"), ("counterfactuals", "s")])
def test_what_differs_from_run_to_run_is_not_set_for_all(name, message):
    with pytest.raises(InputError, match=f"{name}=1: expected none in .*{message}"):
        study_of(study_values(), {name: 1})
    values = study_values()
    values["scenario"] = {**values["scenario"], name: 1}
    with pytest.raises(InputError, match=f"{name}=1: expected none in"):
        study_of(values, {})


def test_a_changed_study_is_not_the_whole_of_its_file():
    values = study_values()
    assert study_of(values, {"threads": 2, "device": "cpu"}).complete
    assert not study_of(values, {"rounds": 2}).complete


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


def test_a_run_says_what_code_made_it(tmp_path, monkeypatch):
    part = small_study().part(heterogeneity=["mild"], seeds=1)
    runs = {(run.rule, run.scenario): run for run in part.runs()}
    monkeypatch.setattr(
        study_runs, "simulate", lambda scenario, rule, **_: made_up(runs[rule, scenario])
    )
    run_study(part, tmp_path)
    assert {len(run.attrs[study_runs.CODE]) for run in load_runs(part, tmp_path).values()} == {12}
