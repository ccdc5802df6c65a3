"""The table of a study's runs, and the summary of its seeds."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from study_cases import D_IN, D_OUT, ROUNDS, made_up_runs, small_study

from analysis.stats.intervals import mean_interval
from analysis.studies.findings import (
    QUANTITIES,
    SHARE,
    SIZE,
    TABLE_ERROR,
    curves,
    finals,
    summary,
    with_interval,
)
from analysis.studies.study import HIGHEST, LOWEST, MIXED
from fedlora_sim.tolerances import relative

EXACT = relative("exact", "float64")
LAYERS = 2


@pytest.fixture(scope="module")
def study():
    return small_study()


@pytest.fixture(scope="module")
def runs(study):
    return made_up_runs(study)


@pytest.mark.slow
def test_every_run_has_a_row(study, runs):
    table = finals(study, runs)
    assert len(table) == len(study.runs())
    for (_, row), run in zip(table.iterrows(), study.runs(), strict=True):
        one = runs[run.label].isel(seed=0)
        assert (row["rule"], row["seed"]) == (run.rule, run.seed)
        assert (row["heterogeneity"], row["configuration"]) == (
            run.heterogeneity,
            run.configuration,
        )
        np.testing.assert_allclose(row["accuracy"], 0.1 * ROUNDS + 0.01 * run.seed, rtol=EXACT)
        np.testing.assert_allclose(row["untrained"], 0.01 * run.seed, rtol=EXACT)
        energy = one.energy.isel(round=-1).values
        np.testing.assert_allclose(row["rho"], energy[:2].sum() / energy.sum(), rtol=1e-15)
        np.testing.assert_allclose(row["effective_rank"], one.effective_rank[-1], rtol=EXACT)
        np.testing.assert_allclose(row["preservation"], 1.0, rtol=EXACT)


@pytest.mark.slow
def test_rounds_to_the_target_are_those_until_it_was_seen(study, runs):
    table = finals(study, runs).set_index("seed")
    # 0.1 a round and 0.01 a seed: half is reached in the round that the seeds 7 to 10 need.
    for seed, rounds in {7: 5, 8: 5, 9: 5, 10: 4}.items():
        assert (table.loc[seed, "rounds_to_target"] == rounds).all()
    unjudged = {
        label: run.assign(accuracy=run.accuracy.where(run["round"] % ROUNDS == 0))
        for label, run in runs.items()
    }
    assert (finals(study, unjudged)["rounds_to_target"] == ROUNDS).all()
    never = {label: run.assign(accuracy=run.accuracy / 2) for label, run in runs.items()}
    assert finals(study, never)["rounds_to_target"].isna().all()
    row = summary(study, finals(study, never))[0]
    assert (row["rounds_to_target"], row["reached_target"]) == (None, 0)


def test_traffic_is_that_of_the_factors(study, runs):
    sent = finals(study, runs).groupby("configuration")["megabytes"].agg(["min", "max"])
    both_ways, single = 2, 4
    for configuration, total in {MIXED: 12, LOWEST: 8, HIGHEST: 16, "few": 10}.items():
        wanted = total * (D_IN + D_OUT) * LAYERS * ROUNDS * both_ways * single / 1e6
        np.testing.assert_allclose(sent.loc[configuration], wanted, rtol=EXACT)


def test_a_rule_without_closed_form_has_no_traffic(study, runs):
    table = finals(study, runs)
    table["megabytes"] = np.nan
    row = summary(study, table)[0]
    assert (row["megabytes"], row["megabytes_interval"]) == (None, None)


def test_seeds_are_summed_up_with_an_interval(study, runs):
    table = finals(study, runs)
    rows = summary(study, table)
    keys = [(r["heterogeneity"], r["configuration"], r["rule"]) for r in rows]
    assert len(set(keys)) == len(keys) == 2 * (4 + 2)
    row = rows[keys.index(("harsh", MIXED, "raflora"))]
    own = table[(table["heterogeneity"] == "harsh") & (table["configuration"] == MIXED)]
    values = own[own["rule"] == "raflora"]["rho"].to_numpy()
    assert row["runs"] == 2
    np.testing.assert_allclose(row["rho"], values.mean(), rtol=EXACT)
    assert row["rho_interval"] == with_interval("rho", values, SHARE)["rho_interval"]
    for row in rows:
        for name, (least, most) in QUANTITIES.items():
            low, high = row[f"{name}_interval"]
            assert least <= low <= row[name] <= high <= most, name


def test_intervals_are_students_and_end_where_the_quantity_does():
    values = np.array([0.5, 0.98, 0.99])
    wanted = mean_interval(values[:, None], TABLE_ERROR)
    low, high = wanted.low[0], wanted.high[0]
    assert with_interval("x", values, SIZE)["x_interval"] == [low, high]
    assert low > 0
    assert high > 1
    assert with_interval("x", values, SHARE)["x_interval"] == [low, 1.0]
    assert with_interval("x", 1 - values, SHARE)["x_interval"] == [0.0, pytest.approx(1 - low)]
    assert with_interval("x", [1.0, 1.0], SHARE)["x_interval"] == [1.0, 1.0]


def test_one_run_has_no_interval():
    assert with_interval("x", [2.0], SIZE) == {"x": 2.0, "x_interval": None}
    assert with_interval("x", [np.nan, 2.0], SIZE) == {"x": 2.0, "x_interval": None}
    assert with_interval("x", [], SIZE) == {"x": None, "x_interval": None}


def test_curves_are_those_of_the_mixed_ranks(study, runs, tmp_path):
    found = curves(study, runs)
    assert dict(found.sizes) == {"heterogeneity": 2, "rule": 2, "run": 2, "round": ROUNDS + 1}
    for run in study.runs():
        if run.configuration != MIXED:
            continue
        place = {"heterogeneity": run.heterogeneity, "rule": run.rule}
        own = found.sel(place).isel(run=study.seeds[run.heterogeneity].index(run.seed))
        for name in ("accuracy", "rho", "effective_rank"):
            np.testing.assert_array_equal(own[name], runs[run.label][name][0])
    found.to_netcdf(tmp_path / "curves.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "curves.nc", engine="h5netcdf") as again:
        assert again.equals(found)
