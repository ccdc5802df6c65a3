"""Data files of the paper: their content, their agreement with theory, and finished work."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from paper_cases import small_recipe

from analysis import closed_form
from analysis.claims.base import RunContext
from analysis.paper import __main__ as command
from analysis.paper import energies, training
from analysis.paper.catalogue import RECIPES
from analysis.paper.recipe import ranks_text
from analysis.paper.store import ROOT, is_current, make, read, read_record
from fedlora_sim import parse_ranks
from fedlora_sim.errors import InputError
from fedlora_sim.storage import MARKER
from fedlora_sim.tolerances import relative

SHARE = 0.8  # minimum share of 95% intervals that contain the true value, far below chance


@pytest.mark.parametrize("name", RECIPES)
def test_files_describe_their_content(name: str, paper_data: Path) -> None:
    record = read_record(paper_data, name)
    assert record["command"] == f"python -m analysis.paper {name}"
    assert record["made_with"].keys() >= {"fedlora_sim_version", "torch_version", "code"}
    assert set(record["variables"]) | set(record["dimensions"]) == set(record["units"])
    assert all(record["units"].values())
    with (paper_data / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["quantity", *record["dimensions"], "value"]
    for row in rows:
        filled = {dim for dim in record["dimensions"] if row[dim]}
        assert filled == set(record["variables"][row["quantity"]]["dims"])
    recipe = RECIPES[name]
    if recipe.runs is None:
        assert record["seeds"] is None
        assert record["sources"]
    else:
        base = recipe.base_seed * 1_000_000
        assert record["seeds"] == [base + recipe.runs[0], base + recipe.runs[-1]]


@pytest.mark.parametrize("name", RECIPES)
def test_files_give_the_numbers_back(name: str, paper_data: Path) -> None:
    recipe = small_recipe(name)
    made = recipe.dataset(RunContext(seed=recipe.base_seed))
    back = read(paper_data, name)
    assert set(made.variables) == set(back.variables)
    assert set(made.coords) == set(back.coords)
    for key, array in made.variables.items():
        assert back[key].dims == array.dims
        if array.dtype.kind == "f":
            np.testing.assert_allclose(back[key].values, array.values, rtol=1e-8)
        else:
            np.testing.assert_array_equal(back[key].values, array.values)
    for key, value in recipe.settings.items():
        assert key in back.attrs
        if key not in made.attrs:
            assert back.attrs[key] == json.loads(json.dumps(value))


def test_the_spectrum_is_the_closed_form(paper_data: Path) -> None:
    data = read(paper_data, "spectrum")
    seen = data.predicted > 1e-20  # below, only the aggregation's rounding is measured
    off = np.abs(data.measured / data.predicted - 1).where(seen)
    assert float(off.max()) < 1e-5
    coverage = closed_form.coverage(energies.SPECTRUM_SCENARIO)
    np.testing.assert_allclose(data.coverage.values, coverage)
    fall = data.predicted.sel(rule="fedavg", round=1) / data.predicted.sel(rule="fedavg", round=0)
    np.testing.assert_allclose(fall.values, coverage**2)


def held(data: xr.Dataset, predicted: xr.DataArray) -> float:
    """Return share of the intervals that hold the prediction, to a rounding."""
    slack = relative("reduction") * np.abs(predicted)
    inside = (data.low - slack <= predicted) & (predicted <= data.high + slack)
    return float(inside.mean())


def test_stairs_are_the_squared_coverage_and_measured_as_predicted(paper_data: Path) -> None:
    data = read(paper_data, "staircase")
    coverage = data.coverage.values
    np.testing.assert_allclose(data.predicted.sel(setting="all", rule="fedavg"), coverage**2)
    np.testing.assert_allclose(data.predicted.sel(setting="all", rule="zero_pad"), coverage**4)
    np.testing.assert_allclose(data.predicted.sel(rule="raflora"), 1.0)
    assert (
        data.predicted.sel(setting="cohorts", rule="fedavg").values[1:] > coverage[1:] ** 2
    ).all()
    exact = data.sel(setting="all")
    np.testing.assert_allclose(exact.measured, exact.predicted, rtol=1e-6)
    assert held(data.sel(setting="cohorts"), data.predicted.sel(setting="cohorts")) >= SHARE


def test_the_bound_holds_for_fedavg_and_not_for_rules_that_keep(paper_data: Path) -> None:
    data = read(paper_data, "energy_ratio")
    np.testing.assert_allclose(data.measured, data.predicted, rtol=1e-5)
    assert (data.measured.sel(rule="fedavg") <= data.bound).all()
    assert set(data.rule.values) == set(energies.RATIO_RULES)
    last = data.isel(round=-1)
    assert float(last.measured.sel(rule="raflora")) > float(last.bound)


def test_floors_are_met(paper_data: Path) -> None:
    data = read(paper_data, "floors")
    found = data.predicted.sel(gain_std=data.measured_std.values).rename(gain_std="measured_std")
    assert held(data, found.assign_coords(measured_std=data.measured_std)) >= SHARE
    rising = data.predicted.sel(rule="raflora").diff("gain_std")
    assert (rising > 0).all()


def test_random_allocation_takes_all_partitions_down_alike(paper_data: Path) -> None:
    data = read(paper_data, "allocation")
    random = data.predicted.sel(allocation="random")
    assert float((random.max("part") / random.min("part")).max()) < 1 + 1e-9
    svd = data.predicted.sel(allocation="svd").isel(round=-1)
    np.testing.assert_allclose(svd.sel(part=1), 1.0)
    assert float(svd.sel(part=0)) > float(random.sel(part=0).isel(round=-1))
    assert held(data, data.predicted) >= SHARE


def test_the_rank_configuration_is_as_predicted(paper_data: Path) -> None:
    data = read(paper_data, "ranks")
    found = data.predicted.sel(size=data.measured_size.values).rename(size="measured_size")
    assert held(data, found.assign_coords(measured_size=data.measured_size)) >= SHARE
    study = json.loads((ROOT / "results/recorded/agnews/study.json").read_text())
    row = next(
        r
        for r in study["rows"]
        if (r["rule"], r["configuration"], r["heterogeneity"])
        == ("fedavg", "few high", "pathological")
    )
    place = {"rule": "fedavg", "configuration": "few high", "split": "pathological"}
    assert float(data["real"].sel(place)) == pytest.approx(1 - row["rho"], rel=1e-6)


def test_the_digits_runs_are_those_of_the_record() -> None:
    report = json.loads((ROOT / "results/recorded/report.json").read_text())
    assert report["environment"]["seed"] == training.RECORDED_SEED
    assert RECIPES["digits"].base_seed == training.RECORDED_SEED


def test_times_are_those_of_the_record(paper_data: Path) -> None:
    data = read(paper_data, "scaling")
    bench = json.loads((ROOT / "results/recorded/aggregation.json").read_text())
    row = next(
        r for r in bench["rows"] if (r["method"], r["d"], r["dtype"]) == ("peft", 4096, "float32")
    )
    shown = data.aggregation.sel({"method": "peft", "width": 4096, "kind": "median"})
    assert float(shown) == pytest.approx(row["cpu_median"], rel=1e-6)
    assert np.isnan(data.aggregation.sel({"method": "dense", "width": 8192})).all()


def test_ranks_as_text_are_read_back() -> None:
    for ranks in ((4, 4, 8), (8, 4, 8), (1,)):
        assert sorted(parse_ranks(ranks_text(ranks))) == sorted(ranks)


def test_finished_work_is_kept_until_something_changes(tmp_path: Path) -> None:
    recipe, context = small_recipe("allocation"), RunContext(seed=3)
    assert not is_current(recipe, tmp_path, context)
    path = make(recipe, tmp_path, context)
    first = path.read_bytes()
    assert is_current(recipe, tmp_path, context)
    assert not is_current(recipe, tmp_path, RunContext(seed=4))
    other = dataclasses.replace(recipe, settings={**recipe.settings, "rounds": 9})
    assert not is_current(other, tmp_path, context)
    assert not is_current(dataclasses.replace(recipe, sources=("README.md",)), tmp_path, context)
    path.write_bytes(first + b"allocation,svd,0,0,1\n")
    assert not is_current(recipe, tmp_path, context)
    with pytest.raises(InputError, match=r"allocation\.csv.*expected the file of sha256"):
        read(tmp_path, "allocation")
    with pytest.raises(InputError, match="--out="):
        make(recipe, tmp_path, context)
    make(recipe, tmp_path, context, force=True)
    assert path.read_bytes() == first
    (tmp_path / "allocation.json").write_text("{")  # half a file
    assert not is_current(recipe, tmp_path, context)


def test_a_variable_without_a_unit_is_refused(tmp_path: Path) -> None:
    recipe = small_recipe("allocation")
    units = {name: unit for name, unit in recipe.units.items() if name != "low"}
    with pytest.raises(InputError, match=r"units.*\['low'\]"):
        make(dataclasses.replace(recipe, units=units), tmp_path, RunContext())
    assert not list(tmp_path.iterdir())


def test_the_command_skips_existing_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(command.RECIPES, "allocation", small_recipe("allocation"))
    command.main(["allocation", "scaling", "allocation", "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {
        *("allocation.csv", "allocation.json", "scaling.csv", "scaling.json", MARKER),
    }
    capsys.readouterr()
    command.main(["allocation", "--out", str(tmp_path)])
    assert "is there" in capsys.readouterr().err
    command.main(["allocation", "--force", "--out", str(tmp_path)])
    assert "is there" not in capsys.readouterr().err


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["staircases"])
    assert "staircase" in capsys.readouterr().err
