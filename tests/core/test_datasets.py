"""The labeled boundary: dimensions, coordinates, attributes, netCDF and back, atomic files."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from simulator_cases import assert_close

from fedlora_sim import Scenario, simulate, storage
from fedlora_sim.metrics import effective_rank, energy_ratio
from fedlora_sim.storage import load_dataset, save_dataset

RUN = Scenario("2x2,3x1,5x1", rounds=4, cohort_size=2, num_samples=(1, 2, 3, 4), d_in=6, d_out=7)
ENERGY = ("seed", "round", "direction")


@pytest.fixture(params=["spectral", "matrix"])
def run(request):
    return RUN.replace(fidelity=request.param)


@pytest.mark.slow
def test_dimensions_and_coordinates(run):
    dataset = simulate(run, seed=[4, 2])
    assert dataset.energy.dims == ENERGY
    assert dict(dataset.sizes) == {"seed": 2, "round": 5, "direction": 5}
    np.testing.assert_array_equal(dataset.seed, [4, 2])
    np.testing.assert_array_equal(dataset["round"], range(5))
    np.testing.assert_array_equal(dataset.direction, [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(dataset.partition, [1, 1, 2, 3, 3])
    assert_close(dataset.coverage, [1.0, 1.0, 0.7, 0.4, 0.4])
    assert ("projected_energy" in dataset) == (run.fidelity == "matrix")
    for name in dataset.data_vars:
        assert dataset[name].dims == ENERGY[: dataset[name].ndim]
        assert dataset[name].attrs["long_name"]
        assert dataset[name].attrs["units"]


def test_derived_variables(run):
    dataset = simulate(run, seed=range(2))
    assert dataset.attrs["rho_level"] == 2
    np.testing.assert_array_equal(dataset.rho, energy_ratio(dataset.energy, 2))
    np.testing.assert_array_equal(dataset.effective_rank, effective_rank(dataset.energy))
    assert_close(dataset.energy[:, 0], np.tile(run.initial_amplitudes**2, (2, 1)), "factorization")


def test_the_lowest_level_is_the_federations_own():
    """Without a client of rank 2 in any cohort rho is still computed at l_1 = 2."""
    run = Scenario("2x1,3x9", rounds=1, cohort_size=1)
    assert simulate(run, seed=0).attrs["rho_level"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["2x2,3x1", "3x1"])
def test_a_file_leads_back_to_data_and_scenario(run, ranks, tmp_path):
    samples = range(1, 1 + len(Scenario(ranks).ranks))
    run = run.replace(ranks=ranks, num_samples=tuple(samples), cohort_size=1, use_rslora=True)
    dataset = simulate(run, rule="fedavg", seed=range(3))
    loaded = load_dataset(save_dataset(dataset, tmp_path / "new" / "run.nc"))
    xr.testing.assert_equal(loaded, dataset)
    assert set(loaded.attrs) == set(dataset.attrs)
    assert loaded.attrs["rule"] == "fedavg"
    assert Scenario.from_attrs(loaded.attrs) == run
    again = simulate(Scenario.from_attrs(loaded.attrs), rule=loaded.attrs["rule"], seed=range(3))
    np.testing.assert_array_equal(again.energy, loaded.energy)


def test_a_loaded_file_is_closed_and_may_be_written_again(tmp_path):
    first, second = simulate(RUN, seed=0), simulate(RUN, seed=1)
    path = save_dataset(first, tmp_path / "run.nc")
    loaded = load_dataset(path)
    save_dataset(second, path)
    xr.testing.assert_equal(loaded, first)
    xr.testing.assert_equal(load_dataset(path), second)
    assert [p.name for p in tmp_path.iterdir()] == ["run.nc"]


@pytest.mark.parametrize(
    "stop", [OSError("disk full"), KeyboardInterrupt()], ids=["full", "ctrl_c"]
)
@pytest.mark.parametrize("existing", [True, False])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, stop, existing
):
    old, path = simulate(RUN, seed=0), tmp_path / "run.nc"
    if existing:
        save_dataset(old, path)

    def half_written(written):
        written.write_bytes(b"half")
        raise stop

    monkeypatch.setattr(storage, "_flush", half_written)
    with pytest.raises(type(stop)):
        save_dataset(simulate(RUN, seed=1), path)
    assert [p.name for p in tmp_path.iterdir()] == (["run.nc"] if existing else [])
    if existing:
        xr.testing.assert_equal(load_dataset(path), old)


def test_the_target_is_untouched_until_the_new_file_is_whole(tmp_path, monkeypatch):
    path, seen = tmp_path / "run.nc", []
    flush = storage._flush

    def watched(written):
        flush(written)
        seen.append((written.is_file(), path.exists()))

    monkeypatch.setattr(storage, "_flush", watched)
    save_dataset(simulate(RUN), path)
    assert seen == [(True, False), (False, True)]  # the file, then its folder
    assert path.exists()
