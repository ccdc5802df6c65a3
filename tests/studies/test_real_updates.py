"""Measures of clients' updates with known results."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from real_cases import EXACT, linear_run, scenario_of

from analysis import studies
from fedlora_sim.errors import InputError
from fedlora_sim.tolerances import relative

CLOSE = relative("factorization")


@pytest.fixture
def run() -> xr.Dataset:
    return linear_run("fedavg", law=EXACT)


@pytest.mark.parametrize("rule", ["fedavg", "raflora", "flora"])
def test_clients_that_return_their_input_have_gain_one(rule):
    updates = studies.describe_updates(linear_run(rule, law=EXACT))
    gain = updates.gain.isel(round=slice(1, None))
    for direction, holders in ((1, 8), (2, 4), (3, 4)):
        seen = gain.sel(direction=direction)
        assert (seen.count("slot") == holders).all()
        np.testing.assert_allclose(seen.values[np.isfinite(seen.values)], 1.0, rtol=CLOSE)
    assert gain.dims == ("seed", "round", "layer", "slot", "direction")


def test_a_round_sets_out_from_the_row_before(run):
    updates = studies.describe_updates(run)
    np.testing.assert_allclose(
        updates.sigma.isel(round=slice(1, None)) ** 2,
        run.layer_energy.isel(round=slice(None, -1)),
        rtol=CLOSE,
    )
    assert updates.sigma.isel(round=0).isnull().all()


def test_leakage_is_what_is_not_preserved(run):
    preserved = run.client_preservation.copy()
    preserved[:, :, :, 0] = 0.25
    updates = studies.describe_updates(run.assign(client_preservation=preserved))
    leakage = updates.leakage.isel(round=slice(1, None))
    np.testing.assert_allclose(leakage.isel(slot=0), 0.75, rtol=CLOSE)
    np.testing.assert_allclose(leakage.isel(slot=slice(1, None)), 0.0, atol=CLOSE)
    np.testing.assert_allclose(
        updates.leaked_energy.isel(slot=0, round=1), 0.75 * run.update_energy.isel(slot=0, round=1)
    )


def test_empty_slots_and_dropped_clients_are_ignored(run):
    cohort, dropped = run.cohort.copy(), run.dropped.copy()
    cohort[:, :, 0], dropped[:, :, 1] = -1, True
    updates = studies.describe_updates(run.assign(cohort=cohort, dropped=dropped))
    silent, heard = updates.isel(slot=[0, 1]), updates.isel(slot=2, round=1)
    assert silent[["gain", "leakage", "leaked_energy"]].isnull().all().to_array().all()
    assert (silent.weight == 0).all()
    assert heard.gain.sel(direction=1).notnull().all()


def test_missing_directions_are_nan(run):
    energy = run.layer_energy.copy()
    energy[:, 3] = 0.0
    energy[:, 5, :, 2] = energy[:, 5, :, 0] * CLOSE**2 / 2  # below rounding
    gain = studies.describe_updates(run.assign(layer_energy=energy)).gain
    assert gain.sel(round=4).isnull().all()
    assert gain.sel(round=6, direction=3).isnull().all()
    assert gain.sel(round=6, direction=2).notnull().any()


def test_partitions_sum_their_directions_and_hide_no_gap(run):
    energy = run.layer_energy.copy()
    parts = studies.by_partition(energy)
    np.testing.assert_allclose(parts.sel(partition=2), energy[..., 1] + energy[..., 2])
    np.testing.assert_array_equal(parts.sel(partition=1), energy[..., 0])
    energy[0, 0, 0, 2] = np.nan
    assert np.isnan(studies.by_partition(energy).sel(partition=2)[0, 0, 0])


def test_bad_datasets_are_refused(run):
    with pytest.raises(InputError, match=r"amplitude.*client_weight"):
        studies.describe_updates(run.drop_vars(["amplitude", "client_weight"]))
    with pytest.raises(InputError, match="allocation='random'"):
        studies.describe_updates(linear_run("fedavg", scenario_of(allocation="random")))
