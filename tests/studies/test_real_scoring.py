"""Scores: near nominal if the model is true, and informative if it is not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from real_cases import EXACT, linear_run, scenario_of, turning_run

from analysis import studies
from analysis.stats import Prediction, Verdict, judge
from analysis.stats.intervals import mean_interval
from fedlora_sim.errors import InputError
from fedlora_sim.storage import load_dataset, save_dataset
from fedlora_sim.tolerances import relative

ITERATED = relative("iteration")
START = 8 * 0.8 ** np.arange(3)
# Noise is below the floor: the energies still fall.
FALLING = {"gain_mean": 0.9, "gain_std": 0.2, "drift_mean": 0.05, "drift_std": 0.05}
ANGLE = 0.5


def falling_run(rule, **options):
    scenario = scenario_of("1x8,3x8", rounds=14, cohort_size=6)
    return linear_run(rule, scenario, law=FALLING, start=START, **options)


def is_near_nominal(scores, margin=0.1):
    covered = scores.covered.sel(forecast="theory").mean(("layer", "partition", "horizon"))
    measured = mean_interval(covered.values[:, None], error=1e-2)
    return judge(measured, Prediction.near(scores.attrs["confidence"], margin)) is Verdict.SUPPORTED


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "cohorts"), [("fedavg", "random"), ("raflora", "actual")])
def test_intervals_cover_the_models_energies_at_the_nominal_rate(rule, cohorts):
    assert is_near_nominal(
        studies.score(falling_run(rule, seeds=50), 8, cohorts=cohorts, samples=100)
    )


@pytest.mark.slow
def test_the_theory_beats_both_baselines_if_it_is_true():
    scores = studies.score(falling_run("fedavg", seeds=10), 8, samples=100)
    error = abs(scores.error).median(("seed", "layer", "horizon"))
    theory, *baselines = (error.sel(forecast=name) for name in studies.FORECASTS)
    for baseline in baselines:
        assert (theory < baseline).all()
    assert scores.covered.sel(forecast="persistence").isnull().all()


@pytest.mark.slow
@pytest.mark.parametrize("cohorts", ["random", "actual"])
def test_a_forecast_does_not_see_the_rounds_on_which_it_is_scored(cohorts):
    run, first = falling_run("fedavg", seeds=2), 8
    later = run["round"] > first
    other = run.assign(
        layer_energy=run.layer_energy * xr.where(later, 49.0, 1.0),
        amplitude=run.amplitude * xr.where(later, -7.0, 1.0),
        update_energy=run.update_energy * xr.where(later, 49.0, 1.0),
    )
    options = {"cohorts": cohorts, "samples": 20}
    told, again = (studies.score(each, first, **options) for each in (run, other))
    assert again.predicted.identical(told.predicted)
    assert again.total_predicted.identical(told.total_predicted)
    np.testing.assert_allclose(again.measured, 49 * told.measured, rtol=ITERATED)
    told, again = (
        studies.predict_every_rule(each, {"fedavg": run}, first, **options)["fedavg"]
        for each in (run, other)
    )
    assert again.identical(told)
    # The last round of the calibration is seen.
    near = run.assign(amplitude=run.amplitude * xr.where(run["round"] == first, -7.0, 1.0))
    assert not studies.score(near, first, **options).predicted.identical(told.predicted)


def test_without_noise_errors_are_rounding():
    law = {"gain_mean": 0.9, "gain_std": 0.0, "drift_mean": 0.1, "drift_std": 0.0}
    scores = studies.score(linear_run("fedavg", scenario_of(), law=law, start=START), 8)
    for prefix in ("", "total_"):
        error = scores[f"{prefix}error"].sel(forecast="theory")
        np.testing.assert_allclose(error, 0.0, atol=ITERATED)
        assert (scores[f"{prefix}covered"].sel(forecast="theory") == 1).all()
    measured = scores.measured.sum("layer")
    np.testing.assert_allclose(scores.total_measured, measured, rtol=ITERATED)


def test_equal_clients_show_pure_suppression():
    run = linear_run("fedavg", scenario_of(cohort_size=4), law=EXACT, start=START)
    error = studies.score(run, 6, cohorts="actual").error
    np.testing.assert_allclose(error.sel(forecast=["theory", "pure"]), 0.0, atol=ITERATED)
    assert (error.sel(forecast="persistence", partition=2) < 0).all()


def test_a_turning_basis_is_reported_as_failure():
    """The update keeps its energy, but clients seem to lose some of it in every round."""
    scores = studies.score(turning_run(scenario_of(), ANGLE, since=1), 6)
    seen = np.cos(ANGLE) ** 2
    np.testing.assert_allclose(
        scores.error.sel(forecast="theory", partition=1)[0, 0],
        -2 * scores.horizon * np.log10(seen),
        rtol=ITERATED,
    )
    row = studies.summarize(scores)
    assert row["theory"]["coverage"] == 0
    assert row["theory"]["error"] > row["persistence"]["error"]
    worst, table = row["worst"], studies.failures(scores).sel(forecast="theory")
    assert worst["horizon"] == 6
    cell = table.sel(partition=worst["partition"], horizon=worst["horizon"])
    assert worst["error"] == cell.error == table.error.max()
    np.testing.assert_allclose(cell.leakage, 1 - seen**2, rtol=ITERATED)
    assert cell.angle == ANGLE
    assert cell.outside == 0
    assert (table.error.diff("horizon") > 0).all()
    assert (table.coverage == 0).all()


def test_a_summary_is_plain_and_has_the_range_over_runs():
    scores = studies.score(falling_run("raflora", seeds=3), 8, samples=50)
    row = studies.summarize(scores)
    assert json.loads(json.dumps(row["theory"])) == row["theory"]
    assert row["runs"] == 3
    alone = [studies.summarize(scores.sel(seed=[seed])) for seed in scores.seed.values]
    for name in ("error", "coverage"):
        each = [one["theory"][name] for one in alone]
        assert row["theory"][f"{name}_range"] == [min(each), max(each)]
        assert min(each) <= row["theory"][name] <= max(each)
    by = [part["coverage"] for part in row["by_partition"]]
    np.testing.assert_allclose(np.mean(by), row["theory"]["coverage"], rtol=ITERATED)
    assert np.isnan(row["persistence"]["coverage"])


@pytest.mark.slow
def test_one_rule_calibrates_for_all():
    """FedAvg's amplitudes fall farthest, so its calibration covers those of the other rules."""
    runs = {rule: falling_run(rule, seeds=40) for rule in ("fedavg", "raflora", "flora")}
    scores = studies.predict_every_rule(runs["fedavg"], runs, 8, samples=100)
    assert list(scores) == list(runs)
    for rule in runs:
        assert is_near_nominal(scores[rule], margin=0.15), rule
        assert scores[rule].attrs["rule"] == rule


def test_amplitudes_that_the_calibration_never_met_are_reported():
    runs = {rule: falling_run(rule) for rule in ("fedavg", "raflora")}
    outside = {
        rule: scores.outside.sel(partition=2).mean()
        for rule, scores in studies.predict_every_rule(runs["raflora"], runs, 8, samples=20).items()
    }
    assert outside["fedavg"] == 1
    assert outside["raflora"] < 1


def test_rules_without_a_recursion_are_scored_against_the_baselines_alone():
    runs = {"fedex": falling_run("fedavg").assign_attrs(rule="fedex")}
    scores = studies.predict_every_rule(falling_run("raflora"), runs, 8, samples=20)
    assert scores["fedex"].error.sel(forecast="theory").isnull().all()
    summary = studies.summarize(scores["fedex"])
    assert "fedex" in summary["reason"]
    assert np.isnan([*summary["theory"]["error_range"], summary["theory"]["coverage"]]).all()
    assert summary["worst"] is None
    assert summary["persistence"]["error"] > 0


@pytest.mark.slow
def test_files_are_scored_like_their_runs(tmp_path):
    run = falling_run("raflora", layers=1)
    again = load_dataset(save_dataset(run, tmp_path / "run.nc"))
    assert studies.score(again, 8, samples=20).identical(studies.score(run, 8, samples=20))


def test_runs_that_start_from_nothing():
    run = falling_run("raflora")
    energy = run.layer_energy.where(run["round"] > 0, 0.0)
    first = run["round"] == 1
    blank = run.assign(
        layer_energy=energy,
        amplitude=run.amplitude.where(~first),
        client_preservation=run.client_preservation.where(~first),
    )
    scores = studies.score(blank, 8, samples=20)
    assert scores.error.notnull().all()


def test_a_layer_that_stays_zero_has_no_error_and_no_calibration():
    run = falling_run("fedavg")
    live = run.layer == "block0"
    scores = studies.score(
        run.assign(layer_energy=run.layer_energy.where(live, 0.0)), 8, samples=20
    )
    dead = scores.sel(layer="block1")
    assert (dead.error.sel(forecast="persistence") == 0).all()
    assert dead.error.sel(forecast="theory").isnull().all()
    assert scores.sel(layer="block0").error.notnull().all()


def test_collapse_below_rounding_is_no_error():
    run = falling_run("fedavg").assign_attrs(dtype="float32")
    high, late = run.direction > 1, run["round"] >= 8
    lost = run.assign(layer_energy=run.layer_energy * xr.where(high & late, 1e-30, 1.0))
    error = studies.score(lost, 8, samples=20).error
    assert (error.sel(forecast="persistence", partition=2) == 0).all()


def test_ranks_that_clients_pruned_are_those_that_count():
    run = linear_run("fedavg", scenario_of(), law=EXACT, start=START)
    ranks = run.client_rank.where((run["round"] < 6) | (run.client < 7), 1)
    predicted = studies.score(run.assign(client_rank=ranks), 6).predicted
    pure = predicted.sel(forecast="pure", partition=2, statistic="median", horizon=1)
    before = studies.by_partition(run.layer_energy).sel(round=6, partition=2)
    np.testing.assert_allclose(pure, before * (3 / 8) ** 2, rtol=ITERATED)


def test_bad_arguments_are_refused():
    run = falling_run("fedavg")
    with pytest.raises(InputError, match="calibration_rounds=14"):
        studies.score(run, 14)
    with pytest.raises(InputError, match="cohorts='future'"):
        studies.score(run, 8, cohorts="future")
    other = run.assign_coords(seed=[7])
    with pytest.raises(InputError, match=r"calibration=\[7\]"):
        studies.predict_every_rule(other, {"fedavg": run}, 8)
