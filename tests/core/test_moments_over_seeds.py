"""Moments and quantiles over seeds are those of the runs, in any blocks and any order."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from hypothesis_profiles import examples

from analysis import predict, summarize
from fedlora_sim import InputError, Scenario, moments, simulate
from fedlora_sim.moments import RunningMoments, RunningQuantiles, SeedMoments, ranges_of

RUN = Scenario(
    "1x3,3x2,4x1", cohort_size=2, rounds=40, gain_std=0.2, drift_std=0.01, empty_partition="zero"
)
SEEDS = range(300)


def assert_moments(found, runs):
    for name, variable in runs.data_vars.items():
        known = variable.values[:, ~np.isnan(variable.values).any(0)]
        columns = ~np.isnan(variable.values).any(0)
        mean = found[f"{name}_mean"].values[columns]
        variance = found[f"{name}_variance"].values[columns]
        np.testing.assert_allclose(mean, known.mean(0), rtol=1e-12)
        np.testing.assert_allclose(variance, known.var(0, ddof=1), rtol=1e-12, atol=1e-25)


def assert_quantiles(found, energy):
    levels = found["quantile"].values
    exact = np.quantile(energy, levels, axis=0, method="inverted_cdf")
    np.testing.assert_array_equal(found.energy_quantile == 0, exact == 0)
    some = exact > 0
    off = np.abs(np.log10(found.energy_quantile.values[some] / exact[some]))
    width = np.broadcast_to(found.quantile_resolution.values, exact.shape)[some]
    assert np.all(off <= width)


@pytest.mark.parametrize("rule", ["fedavg", "raflora"])
@pytest.mark.parametrize("block", [1, 37, 1000])
def test_moments_are_those_of_the_runs(rule, block, monkeypatch):
    monkeypatch.setattr(moments, "BLOCK_NUMBERS", block * 41 * 4)
    runs = simulate(RUN, rule, seed=SEEDS)
    found = simulate(RUN, rule, seed=SEEDS, keep="moments")
    assert_moments(found, runs)
    assert_quantiles(found, runs.energy.values)
    np.testing.assert_array_equal(found.extinct, (runs.energy == 0).mean("seed"))
    # A cohort without carriers ends a direction, and the drift of a later one starts it again.
    chance = predict(RUN, rule).extinction_probability.values
    spread = np.sqrt(chance * (1 - chance) / len(SEEDS))
    assert np.all(np.abs(found.extinct[-1] - chance) <= 5 * spread)
    assert chance[-1] > 0.5
    assert found.attrs["num_seeds"] == 300
    assert found.attrs["seeds"] == "0-299"
    assert Scenario.from_attrs(found.attrs) == RUN


def test_quantiles_do_not_depend_on_the_order_of_the_seeds(monkeypatch):
    monkeypatch.setattr(moments, "BLOCK_NUMBERS", 23 * 41 * 4)
    one = simulate(RUN, "fedavg", seed=SEEDS, keep="moments")
    other = simulate(RUN, "fedavg", seed=SEEDS[::-1], keep="moments")
    np.testing.assert_array_equal(one.energy_quantile, other.energy_quantile)
    np.testing.assert_allclose(one.energy_variance, other.energy_variance, rtol=1e-12, atol=1e-25)


def test_matrix_runs_have_moments_too():
    run = RUN.replace(fidelity="matrix", rounds=3, d_in=6, d_out=5)
    found = simulate(run, "raflora", seed=range(9), keep="moments")
    assert_moments(found, simulate(run, "raflora", seed=range(9)))


@given(
    st.lists(
        arrays.arrays(
            np.float64, (3, 2), elements=st.just(0.0) | st.floats(-300, 300).map(lambda x: 10.0**x)
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=examples(40))
def test_histograms_hold_any_range_and_merge(blocks):
    """Values of 600 decades: neighboring bins are merged, and the parts of a merge, too."""
    whole, merged = RunningQuantiles((2,)), RunningQuantiles((2,))
    for block in blocks:
        part = RunningQuantiles((2,))
        part.add(block)
        merged.merge(part)
        whole.add(block)
    values = np.concatenate(blocks)
    levels = [0.01, 0.3, 0.5, 1.0]
    found = whole.result(levels)
    np.testing.assert_array_equal(merged.result(levels), found)
    np.testing.assert_array_equal(merged.counts, whole.counts)
    exact = np.quantile(values, levels, axis=0, method="inverted_cdf")
    np.testing.assert_array_equal(found == 0, exact == 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.abs(np.log10(found) - np.log10(exact))
    assert np.all(off[exact > 0] <= np.broadcast_to(whole.resolution(), off.shape)[exact > 0])


def test_a_merge_knows_that_blocks_have_other_means():
    found = RunningMoments((1,))
    for block in ([1.0, 2.0], [100.0], [np.nan, 7.0, 8.0]):
        found.add(np.array(block)[:, None])
    mean, variance = found.result()
    known = [1, 2, 100, 7, 8]
    np.testing.assert_allclose(mean, np.mean(known))
    np.testing.assert_allclose(variance, np.var(known, ddof=1))


def test_a_state_continues_where_it_was():
    first, second = (simulate(RUN, "fedavg", seed=seeds) for seeds in (SEEDS[:50], SEEDS[50:90]))
    whole = SeedMoments(RUN, "fedavg")
    whole.add(first)
    again = SeedMoments.from_state(RUN, "fedavg", whole.state())
    for one in (whole, again):
        one.add(second)
    assert whole.dataset(SEEDS[:90]).identical(again.dataset(SEEDS[:90]))


def test_memory_does_not_grow_with_the_seeds(monkeypatch):
    monkeypatch.setattr(moments, "BLOCK_NUMBERS", 100 * 41 * 4)
    peaks = []
    for count in (200, 2000):
        tracemalloc.start()
        simulate(RUN, "fedavg", seed=range(count), keep="moments")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_bad_input_of_keep():
    with pytest.raises(InputError, match="keep='means'"):
        simulate(RUN, keep="means")
    with pytest.raises(InputError, match="keep='moments'"):
        simulate(RUN, keep="moments", ledger=True)
    with pytest.raises(InputError, match="keep='moments'"):
        simulate(RUN.replace(fidelity="training", gain_std=0, drift_std=0), keep="moments")


def test_a_summary_of_runs_refuses_moments():
    found = simulate(RUN, "fedavg", seed=range(3), keep="moments")
    with pytest.raises(InputError, match="expected a dataset with the energy of each run"):
        summarize(found)


def test_seeds_are_written_as_ranges():
    assert ranges_of(range(1_000_000)) == "0-999999"
    assert ranges_of([9, 3, 7, 8]) == "3,7-9"
