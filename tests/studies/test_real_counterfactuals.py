"""One-step tables of every rule, which are exact in a fixed basis."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from real_cases import linear_run, scenario_of, with_counterfactuals

from analysis import studies
from fedlora_sim.errors import InputError
from fedlora_sim.tolerances import relative

CLOSE = relative("factorization")


@pytest.fixture(params=["raflora", "fedavg"])
def run(request) -> xr.Dataset:
    scenario = scenario_of("1x4,2x2,4x3", cohort_size=3, num_samples=range(1, 10))
    return with_counterfactuals(linear_run(request.param, scenario, seeds=2, start=[4, 3, 2, 1]))


def test_raflora_is_fedavg_over_the_share(run):
    share = studies.coverage_shares(run)
    # Directions that FedAvg has lost completely are not in the next round.
    there = (share > 0) & (studies.one_step_energy(run).sel(compared_rule="fedavg") > 0)
    ratio = studies.relative_to_rule(run).sel(compared_rule="fedavg")
    np.testing.assert_allclose(ratio, (share**2).where(there.all("layer")), rtol=CLOSE)


def test_shares_are_those_of_the_cohort(run):
    share = studies.coverage_shares(run).isel(round=slice(1, None))
    ranks, samples = np.repeat([1, 2, 4], [4, 2, 3]), np.arange(1.0, 10.0)
    for cohort, found in zip(run.cohort.values[0, 1:], share.values[0], strict=True):
        sums = [samples[cohort[ranks[cohort] >= level]].sum() for level in (1, 2, 4)]
        np.testing.assert_allclose(found, np.array(sums) / sums[0], rtol=CLOSE)
    assert (share.sel(partition=3) == 0).any()


def test_rules_are_compared_with_the_requested_one(run):
    for reference in ("fedavg", "raflora"):
        ratio = studies.relative_to_rule(run, reference).sel(compared_rule=reference)
        assert (ratio.where(ratio.notnull(), 1.0) == 1).all()
        gain = studies.accuracy_gain(run, reference)
        assert (gain.sel(compared_rule=reference).isel(round=slice(1, None)).fillna(0.0) == 0).all()
        assert gain.notnull().any()
    energy = studies.one_step_energy(run)
    assert energy.dims == ("seed", "round", "compared_rule", "layer", "partition")


def test_missing_fields_are_named(run):
    with pytest.raises(InputError, match="counterfactual_energy"):
        studies.one_step_energy(run.drop_vars("counterfactual_energy"))
    with pytest.raises(InputError, match="reference='raflor'"):
        studies.relative_to_rule(run, "raflor")
