"""Forecasts against closed forms, exact recursions and their own limits."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from real_cases import EXACT, LAW, linear_run, scenario_of

from analysis import closed_form, studies
from analysis.stats.intervals import mean_interval
from fedlora_sim import Scenario
from fedlora_sim.errors import InputError
from fedlora_sim.federation import Federation
from fedlora_sim.tolerances import relative

ITERATED = relative("iteration")
RANKS = (1, 1, 2, 3, 3)
SPREAD = {"gain_mean": 0.9, "gain_std": 0.2, "drift_mean": 0.2, "drift_std": 0.1}
ALIKE = {**SPREAD, "gain_std": 0.0, "drift_std": 0.0}
START = np.array([2.0, 1.5, 1.0])
ROUNDS = 4


def known(law, layers=1) -> studies.Calibration:
    """Return a calibration that holds this law for certain."""
    run = linear_run("fedavg", scenario_of(RANKS), layers=layers)
    pure = studies.pure_suppression(studies.calibrate(run, slice(1, None)).of_run(0))
    moments = {"mean": ("gain_mean", "drift_mean"), "variance": ("gain_std", "drift_std")}
    given = {
        name: pure.estimates[name] * 0
        + xr.DataArray([law[q] ** (1 + (name == "variance")) for q in names], dims="moment")
        for name, names in moments.items()
    }
    return studies.Calibration(pure.pool, pure.cells, pure.rounds, pure.estimates.assign(given))


def state(layers=1) -> xr.DataArray:
    run = linear_run("fedavg", scenario_of(RANKS), layers=layers, start=START)
    return run.layer_energy.isel(seed=0, round=0) ** 0.5


def told(rule, law, federation, **options) -> xr.Dataset:
    return studies.forecast(known(law), state(), rule, federation, ROUNDS, **options)


def check_mean(rule, law, policy="zero", sampling="without_replacement"):
    """Compare Monte Carlo energies with the closed form, by partition and round."""
    full = sampling == "full"
    given = {
        "num_samples": (2, 1, 3, 1, 2),
        "cohort_size": 5 if full else 2,
        "sampling": sampling,
    }
    federation = Federation(RANKS, **given)
    options = {"empty_partition": policy, "samples": 200}
    means = [
        told(rule, law, federation, seed=seed, **options).energy.sel(statistic="mean")
        for seed in range(10)
    ]
    scenario = Scenario(RANKS, rounds=ROUNDS, empty_partition=policy, **given)
    exact = closed_form.energy_trajectory(scenario, rule, initial_amplitude=START, **law)
    measured = mean_interval(np.array([m.values.ravel() for m in means]), error=1e-3)
    wanted = exact[1:].T.ravel()
    slack = ITERATED * wanted  # without randomness
    assert (measured.low - slack <= wanted).all()
    assert (wanted <= measured.high + slack).all()


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["zero", "carry"])
def test_mean_energies_of_raflora_are_those_of_the_closed_form(policy):
    check_mean("raflora", SPREAD, policy)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["fedavg", "ffa", "flora"])
def test_mean_energies_are_those_of_the_closed_form(rule):
    check_mean(rule, SPREAD)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["zero_pad", "rbla"])
def test_mean_energies_of_factor_averages_are_those_of_the_closed_form(rule):
    check_mean(rule, ALIKE)


@pytest.mark.slow
def test_mean_energies_of_norm_weights_are_those_of_the_closed_form():
    check_mean("hetlora", {**EXACT, "gain_mean": 0.9}, sampling="full")


@pytest.mark.parametrize("rule", ["fedavg", "raflora"])
def test_known_cohorts_and_clients_without_noise_are_deterministic(rule):
    law = {"gain_mean": 0.9, "gain_std": 0.0, "drift_mean": 0.1, "drift_std": 0.0}
    run = linear_run(rule, scenario_of(RANKS, cohort_size=2), law=law, start=4 * START)
    cohorts = studies.actual_cohorts(run, slice(7, 12))
    start = run.layer_energy.isel(seed=0).sel(round=6) ** 0.5
    federation, given = Federation(RANKS, cohort_size=2), {"cohorts": cohorts, "samples": 3}
    energy = studies.forecast(known(law, layers=2), start, rule, federation, 6, **given).energy
    measured = studies.by_partition(run.layer_energy).isel(seed=0).sel(round=slice(7, 12))
    for statistic in energy.statistic.values:
        one = energy.sel(statistic=statistic).transpose("partition", "horizon", "layer")
        np.testing.assert_allclose(one, measured, rtol=ITERATED)


def test_knowledge_makes_intervals_shorter():
    scenario = scenario_of("1x6,3x6", cohort_size=4)
    run = linear_run("fedavg", scenario, law={**LAW, "gain_std": 0.02}, start=START)
    calibration = studies.calibrate(run, slice(1, 6)).of_run(0)
    start = run.layer_energy.isel(seed=0).sel(round=6) ** 0.5
    cohorts = studies.actual_cohorts(run, slice(7, 12))

    def widths(**options):
        told = studies.forecast(calibration, start, "fedavg", scenario.federation, 6, **options)
        ends = np.log(told.total.sel(statistic=["low", "high"]))
        return float(ends.diff("statistic").sel(partition=2).isel(horizon=-1).item())

    assert widths(cohorts=cohorts) < widths()
    assert widths(certain=True) < widths()
    assert widths(confidence=0.5) < widths(confidence=0.9)


def test_a_seed_gives_the_same_forecast_every_time():
    federation = Federation(RANKS, cohort_size=2)
    first, again, other = (told("fedavg", SPREAD, federation, seed=s) for s in (1, 1, 2))
    assert first.identical(again)
    assert not first.equals(other)


def test_statistics_are_in_order_and_sum_over_layers():
    federation = Federation(RANKS, cohort_size=2)
    found = studies.forecast(known(SPREAD, 2), state(2), "raflora", federation, ROUNDS)
    low, median, high = (found.energy.sel(statistic=s) for s in ("low", "median", "high"))
    assert (low <= median).all()
    assert (median <= high).all()
    total, parts = (found[v].sel(statistic="mean") for v in ("total", "energy"))
    np.testing.assert_allclose(total, parts.sum("layer"), rtol=ITERATED)
    assert found.energy.dims == ("layer", "partition", "horizon", "statistic")


@pytest.mark.parametrize("rule", ["fedex", "raflora:canonicalize=true"])
def test_rules_without_a_recursion_of_amplitudes_state_it(rule):
    found = told(rule, SPREAD, Federation(RANKS))
    assert found.energy.isnull().all()
    assert found.total.isnull().all()
    assert rule.partition(":")[0] in found.attrs["reason"]


def test_pools_without_calibration_stay_unknown():
    law = known(SPREAD)
    unknown = law.estimates.assign(mean=law.estimates["mean"].where(law.estimates.partition < 3))
    holed = studies.Calibration(law.pool, law.cells, law.rounds, unknown)
    found = studies.forecast(holed, state(), "fedavg", Federation(RANKS), ROUNDS)
    assert found.energy.sel(partition=3).isnull().all()
    assert found.energy.sel(partition=[1, 2]).notnull().all()


def test_an_update_of_zero_grows_by_its_drift_alone():
    found = studies.forecast(known(ALIKE), state() * 0, "raflora", Federation(RANKS), 1)
    drift = ALIKE["drift_mean"]
    np.testing.assert_allclose(found.energy.sel(statistic="low"), drift**2, rtol=ITERATED)


def test_bad_arguments_are_refused():
    law, start, federation = known(SPREAD), state(), Federation(RANKS, cohort_size=1)
    with pytest.raises(InputError, match="direction"):
        studies.forecast(law, start[:, :2], "fedavg", federation, 2)
    with pytest.raises(InputError, match="at least 0"):
        studies.forecast(law, start * np.nan, "fedavg", federation, 2)
    with pytest.raises(InputError, match=r"start=\[np\.str_\('other'\)\]"):
        studies.forecast(law, start.assign_coords(layer=["other"]), "fedavg", federation, 2)
    with pytest.raises(InputError, match="rounds=0"):
        studies.forecast(law, start, "fedavg", federation, 0)
    with pytest.raises(InputError, match="empty_partition='error'"):
        studies.forecast(law, start, "raflora", federation, 9, empty_partition="error")
    run = linear_run("fedavg", scenario_of(RANKS))
    with pytest.raises(InputError, match="round 3 has none"):
        studies.actual_cohorts(run.assign(dropped=run.dropped | (run["round"] == 3)), slice(1, 9))
