"""Moments of clients: known ones are found, and undeterminable ones are NaN."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from real_cases import EXACT, LAW, linear_run, scenario_of

from analysis import studies
from analysis.stats import Prediction, Verdict, judge
from analysis.stats.intervals import proportion_interval
from analysis.studies.calibrate import fit_linear
from fedlora_sim.errors import InputError
from fedlora_sim.tolerances import relative

ITERATED = relative("iteration")
ALL = slice(1, None)
QUANTITIES = tuple(LAW)
# Amplitudes that fall far, so that gain and drift can be distinguished in noise.
START = 8 * 0.8 ** np.arange(3)
NOISY = {"gain_mean": 0.8, "gain_std": 0.2, "drift_mean": 0.1, "drift_std": 0.1}
SILENT = {**NOISY, "gain_std": 0.0, "drift_std": 0.0}


@cache
def hits(rule):
    """Return whether each interval holds the truth, (quantity, runs and layers and partitions)."""
    scenario = scenario_of("1x10,3x10", rounds=10)
    run = linear_run(rule, scenario, law=NOISY, seeds=300, start=START)
    found = studies.calibrate(run, ALL)
    ends = {q: found.interval(q).transpose("end", ...).values for q in QUANTITIES}
    return {q: ((low <= NOISY[q]) & (NOISY[q] <= high)).ravel() for q, (low, high) in ends.items()}


@pytest.mark.slow
@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("rule", ["fedavg", "raflora", "flora"])
def test_intervals_of_moments_cover_at_the_nominal_rate(rule, quantity):
    measured = proportion_interval(hits(rule)[quantity][:, None], error=1e-3)
    # Slightly less for means, whose errors change later amplitudes; more for a spread near 0.
    assert judge(measured, Prediction.near(0.95, 0.05)) is Verdict.SUPPORTED


@pytest.mark.parametrize("pool", ["partition", "direction"])
@pytest.mark.parametrize("rule", ["fedavg", "raflora", "flora"])
def test_without_noise_gain_and_drift_are_exact(rule, pool):
    found = studies.calibrate(linear_run(rule, law=SILENT, start=START), slice(1, 8), pool)
    np.testing.assert_allclose(found.gain_mean, 0.8, rtol=ITERATED)
    np.testing.assert_allclose(found.drift_mean, 0.1, rtol=ITERATED)
    np.testing.assert_allclose(found.gain_std, 0.0, atol=ITERATED)
    np.testing.assert_allclose(found.drift_std, 0.0, atol=ITERATED)
    assert found.identified.all()
    assert found.rounds == (1, 8)


def test_observations_are_counted_by_pool():
    run = linear_run("fedavg")
    for pool, counts in (("partition", [48, 48]), ("direction", [48, 24, 24])):
        found = studies.calibrate(run, slice(1, 6), pool).observations
        np.testing.assert_array_equal(found, np.broadcast_to(counts, found.shape))


def test_units_do_not_matter():
    run = linear_run("raflora", start=START)
    small = run.assign(amplitude=run.amplitude * 1e-6, layer_energy=run.layer_energy * 1e-12)
    first, second = (studies.calibrate(r, ALL) for r in (run, small))
    for quantity, unit in zip(QUANTITIES, (1.0, 1.0, 1e-6, 1e-6), strict=True):
        for end in (0, 1):
            one, other = (c.interval(quantity).isel(end=end) for c in (first, second))
            np.testing.assert_allclose(other, one * unit, rtol=ITERATED, atol=ITERATED * unit)


def test_constant_amplitudes_do_not_distinguish_gain_and_drift():
    found = studies.calibrate(linear_run("raflora", law=EXACT), ALL, "direction")
    assert not found.identified.any()
    assert (found.drift_mean == 0).all()
    assert (found.drift_std == 0).all()
    np.testing.assert_allclose(found.gain_mean, 1.0, rtol=ITERATED)
    # Two directions of different amplitudes do.
    unlike = linear_run("raflora", law=EXACT, start=np.array([4.0, 2.0, 1.0]))
    assert studies.calibrate(unlike, ALL).identified.sel(partition=2).all()


def test_the_variance_of_few_clients_is_unbiased():
    """For a constant amplitude it is the sample variance, with one degree of freedom less."""
    s = np.random.default_rng(6).normal(0.9, 0.2, 5)
    fit = fit_linear(np.ones((1, 1, 1, 1, 1)), s.reshape(1, 1, 1, 5, 1), np.zeros(1, np.int64))
    assert fit.variance[0, 0, 0].tolist() == pytest.approx([s.var(ddof=1), 0.0])


def test_deviations_are_never_negative():
    law = {**NOISY, "drift_mean": 0.0, "drift_std": 0.0}
    found = studies.calibrate(linear_run("fedavg", law=law, seeds=20, start=START), ALL)
    assert (found.drift_std >= 0).all()
    assert (found.drift_std == 0).any()
    assert (found.interval("drift_std").isel(end=0) == 0).any()
    assert found.standard_error("drift_std").where(found.drift_std == 0).isnull().all()
    assert (found.standard_error("gain_mean") > 0).all()


def test_dropped_clients_have_no_effect():
    run = linear_run("fedavg", start=START)
    there = run.slot != 3
    gone = run.assign(cohort=run.cohort.where(there, -1), dropped=run.dropped)
    wild = run.assign(
        amplitude=run.amplitude.where(there, np.inf), dropped=run.dropped | (run.slot == 3)
    )
    first, second = (studies.calibrate(r, ALL).estimates for r in (gone, wild))
    assert first.identical(second)


def test_runs_and_layers_are_independent():
    run = linear_run("fedavg", seeds=2, layers=3, start=START)
    whole = studies.calibrate(run, ALL)
    alone = studies.calibrate(run.isel(seed=[1], layer=[2]), ALL)
    part = whole.of_run(1).estimates.isel(layer=[2])
    for name in ("mean", "variance", "observations"):
        np.testing.assert_allclose(alone.estimates[name][0], part[name], rtol=ITERATED)


def test_pools_spread_over_their_directions():
    found = studies.calibrate(linear_run("fedavg", start=START), ALL)
    gain = found.per_direction(found.gain_mean)
    assert gain.dims == ("seed", "layer", "direction")
    np.testing.assert_array_equal(gain.sel(direction=3), found.gain_mean.sel(partition=2))
    updates = studies.describe_updates(linear_run("fedavg", start=START))
    assert abs(studies.drifts(updates, gain).mean() - found.drift_mean.mean()) < NOISY["drift_mean"]


def test_few_observations_and_none():
    run = linear_run("fedavg", start=START)
    nobody = run.assign(client_rank=run.client_rank * 0 + 1)
    found = studies.calibrate(nobody, slice(1, 1))
    assert found.gain_mean.sel(partition=2).isnull().all()
    assert (found.observations.sel(partition=2) == 0).all()
    assert found.gain_mean.sel(partition=1).notnull().all()
    assert not found.identified.any()
    with pytest.raises(InputError, match="rounds="):
        studies.calibrate(run.assign(layer_energy=run.layer_energy * 0), ALL)
    with pytest.raises(InputError, match="rounds="):
        studies.calibrate(run, slice(99, 100))
    with pytest.raises(InputError, match="pool='layer'"):
        studies.calibrate(run, ALL, "layer")
    with pytest.raises(InputError, match="quantity='gain'"):
        found.interval("gain")
