"""The runs of a study on disk: a sweep, of which a part can be run, and whose runs are loaded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import xarray as xr
from study_cases import keep, made_up, small_study

from analysis.studies.run import RUNS, load_runs, missing_runs, run_study
from fedlora_sim.errors import InputError
from fedlora_sim.sweep import open_sweep, run, work
from fedlora_sim.tasks.task import Examples

FEW = SimpleNamespace(train=Examples({"x": torch.zeros(40, 1)}, torch.arange(40) % 10))
"""The part of a task that a split needs."""


@pytest.fixture
def study(monkeypatch):
    """A part of the small study whose runs are made up instead of trained."""
    part = small_study().part(heterogeneity=["mild"], seeds=1)

    def simulate(scenario, *, rule, seed, checkpoints):
        own = next(r for r in small_study().runs() if (r.scenario, r.rule) == (scenario, rule))
        checkpoints.mkdir(parents=True)
        return made_up(own)

    monkeypatch.setattr(run, "load_task", lambda scenario: FEW)
    monkeypatch.setattr(work, "simulate", simulate)
    return part


@pytest.mark.slow
def test_the_runs_of_a_study_are_a_sweep_of_which_a_part_is_made(tmp_path, study):
    first, *others = study.runs()
    kept = keep(first, tmp_path)
    before, made = kept.stat().st_mtime_ns, []
    run_study(small_study(), tmp_path, part=study, on_task=made.append)
    assert len(made) == len(others)
    assert kept.stat().st_mtime_ns == before
    assert missing_runs(study, tmp_path) == []
    rows = small_study().runs()
    assert missing_runs(small_study(), tmp_path) == [own for own in rows if own not in study.runs()]

    with pytest.warns(
        UserWarning, match=f"{len(rows) - len(study.runs())} of 24 tasks are missing"
    ):
        swept = open_sweep(tmp_path / RUNS)
    for label, found in load_runs(study, tmp_path).items():
        own = next(r for r in rows if r.label == label)
        xr.testing.assert_identical(found.drop_attrs(), made_up(own).drop_attrs())
        assert len(found.attrs.get("code", "")) == (0 if own == first else 12)
        row = swept.isel(zip=rows.index(own))
        assert (row["rule"], row.seed, row.split) == (own.rule, own.seed, own.scenario.split)
        assert (row.rho.values == found.rho.values).all()

    run_study(small_study(), tmp_path, part=study, on_task=made.append)
    assert len(made) == len(others)
    other = small_study(scenario={"ranks": "2x2,4x2", "rounds": 6, "batch_size": 5})
    with pytest.raises(InputError, match="batch_size=5: expected 'its default'"):
        run_study(other, tmp_path)


@pytest.mark.slow
def test_a_failing_run_is_named(tmp_path, study, monkeypatch):
    made = work.simulate

    def simulate(scenario, **options):
        if options["rule"] == "raflora":
            raise InputError("update=nan: expected a finite one")
        return made(scenario, **options)

    monkeypatch.setattr(work, "simulate", simulate)
    failing = [own for own in study.runs() if own.rule == "raflora"]
    with pytest.raises(InputError, match=rf"{failing[0].label}: update=nan"):
        run_study(small_study(), tmp_path, part=study)
    assert missing_runs(study, tmp_path) == failing


def test_a_split_that_the_data_do_not_allow_is_found_before_the_first_run(tmp_path, study):
    by_writer = {"mild": {"split": "iid"}, "last": {"split": "by_writer"}}
    with pytest.raises(InputError, match=r"row .*split='by_writer'.*: groups"):
        run_study(small_study(heterogeneity=by_writer), tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_a_truncated_file_is_not_a_run(tmp_path):
    first, *others = small_study().runs()
    path = keep(first, tmp_path)
    assert missing_runs(small_study(), tmp_path) == others
    path.write_bytes(path.read_bytes()[:100])
    assert missing_runs(small_study(), tmp_path) == [first, *others]
