"""Studies: their runs, refusals before the first run, and runs on disk."""

from __future__ import annotations

import re

import numpy as np
import pytest
from study_cases import keep, made_up, small_study, study_values

from analysis.studies.run import load_runs, missing_runs
from analysis.studies.study import (
    HIGHEST,
    LOWEST,
    MIXED,
    load_study,
    study_about,
    study_names,
    study_of,
)
from fedlora_sim.errors import InputError

PLACES = {"model": "a-model", "data": "train.tsv"}
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


@pytest.mark.slow
@pytest.mark.parametrize("name", study_names())
def test_packaged_studies_have_every_rule_under_every_heterogeneity(name):
    study = load_study(name, PLACES if name == "agnews" else {})
    mixed = [run for run in study.runs() if run.configuration == MIXED]
    assert study_about(name).endswith(".")
    assert study.name == name
    assert len(mixed) == len(study.rules) * sum(len(own) for own in study.seeds.values())
    assert {"fedavg", "raflora"} <= set(study.rules)
    assert len({run.label for run in study.runs()}) == len(study.runs())
    for run in study.runs():
        assert re.fullmatch(r"[\w.-]+", run.label)


def test_a_packaged_study_names_its_required_options():
    with pytest.raises(InputError, match="model=None"):
        load_study("agnews")


def test_rules_share_seeds_and_heterogeneities_do_not():
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
        ({"ruels": ["fedavg"]}, "study field='ruels'.*'rules'"),
        ({"rules": ["fedavg", "ralfora"]}, "rule='ralfora'.*'raflora'"),
        ({"rules": ["fedavg", 3]}, "rule=3"),
        ({"rules": ["fedavg", "flexlora"]}, r"rules=\['fedavg', 'flexlora'\]"),
        ({"rules": []}, r"rules=\[\]"),
        ({"seeds": 0}, "seeds=0"),
        ({"seeds": 2.0}, "seeds=2.0"),
        ({"first_seed": -1}, "first_seed=-1"),
        ({"target_accuracy": 1.5}, "target_accuracy=1.5"),
        ({"scenario": {"rounds": 2}}, "ranks=None"),
        ({"scenario": {"ranks": "2x2", "roundz": 2}}, "scenario field='roundz'.*'rounds'"),
        ({"scenario": {"ranks": "2x2,4x2", "fidelity": "matrix"}}, "fidelity='matrix'"),
        ({"scenario": {"ranks": "2x2", "counterfactuals": True}}, "counterfactual_rules"),
        ({"scenario": {"ranks": "2x2,4x2", "allocation": "random"}, **CANONICAL}, "allocation"),
        (
            {"heterogeneity": {"mild": {}, "last": {"splitt": "iid"}}},
            "scenario field='splitt'.*'split'",
        ),
        ({"heterogeneity": {"mild": {}, "last": {"split": "iidd"}}}, "split='iidd'.*'iid'"),
        ({"heterogeneity": {"mild": {}, "last": {"ranks": "2x4"}}}, "heterogeneity 'last'"),
        ({"heterogeneity": {"mild": 3}}, "heterogeneity 'mild'=3"),
        ({"rank_configurations": {"mixed": "2x4"}}, "rank_configurations='mixed'"),
        ({"rank_configurations": {"last": "2x3"}}, "4 clients"),
        ({"rank_configurations": {"a b": "2x4", "a-b": "4x4"}}, "a-b"),
        ({"compared_rules": ["fedawg"]}, "rule='fedawg'.*'fedavg'"),
    ],
)
def test_invalid_studies_are_refused_before_the_first_run(changes, message):
    values = study_values(**changes)
    with pytest.raises(InputError, match=message):
        study_of(values, {})


def test_a_file_is_read_to_its_last_row(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(TOML)
    with pytest.raises(InputError, match=r"scenario field='dirichlet_alfa'.*'dirichlet_alpha'"):
        load_study(str(path))
    path.write_text(TOML.replace("alfa", "alpha"))
    study = load_study(str(path), {"rounds": 3})
    assert study.scenario.rounds == 3
    assert study.about == ""
    path.write_text(TOML.replace("]", ""))
    with pytest.raises(InputError, match="study="):
        load_study(str(path))


def test_a_folder_of_its_name_does_not_hide_a_packaged_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert load_study("digits").name == "digits"
    with pytest.raises(InputError, match=r"study='digit'.*'digits'"):
        load_study("digit")
    with pytest.raises(InputError, match="study="):
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


@pytest.mark.slow
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


def test_every_seed_draws_another_task():
    """Samples and new parameters too, because runs that share them are not independent."""
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
