"""A sweep as one dataset: labeled, lazy, with missing runs as NaN."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from sweep_cases import SMALL, assert_same_bits, changed, swept

from fedlora_sim import Scenario, simulate
from fedlora_sim.errors import InputError
from fedlora_sim.sweep import dataset, open_sweep


def test_dimensions_are_the_fields_of_the_grid(out: Path) -> None:
    swept(changed(SMALL, scenario={"drift_std": 0.1}), out)
    data = open_sweep(out)
    assert data.energy.dims == ("rule", "gain_std", "seed", "round", "direction")
    assert data.rho.dims == data.effective_rank.dims == ("rule", "gain_std", "seed", "round")
    assert data.rule.values.tolist() == ["fedavg", "raflora"]
    assert data.gain_std.values.tolist() == [0.0, 0.1, 0.2]
    assert data.direction.values.tolist() == [1, 2, 3, 4]
    assert data.partition.values.tolist() == [1, 1, 2, 2]
    assert data.coverage.values.tolist() == [1, 1, 0.5, 0.5]
    assert data.attrs["drift_std"] == 0.1
    assert not {"rule", "gain_std"} & set(data.attrs)
    assert data.energy.attrs["units"]
    alone = simulate(Scenario("2x2,4x2", rounds=5, drift_std=0.1, gain_std=0.1), seed=[2])
    mine = data.sel(rule="raflora", gain_std=0.1, seed=[2])
    np.testing.assert_array_equal(mine.energy, alone.energy)


def test_ranks_are_labels_and_shorter_runs_are_filled_up(out: Path) -> None:
    tables = changed(
        SMALL,
        scenario={"ranks": None, "rounds": None},
        grid={"ranks": ["2x2,4x2", [3, 8]], "rounds": [3, 5], "gain_std": None},
    )
    swept(tables, out)
    data = open_sweep(out)
    assert data.ranks.values.tolist() == ["2x2,4x2", "3x1,8x1"]
    assert data.sizes["direction"] == 8
    assert data.rho_level.dims == ("ranks",)
    assert data.rho_level.values.tolist() == [2, 3]
    assert data.coverage.dims == ("ranks", "direction")
    short = data.sel(ranks="2x2,4x2", rounds=3)
    assert short.energy.isel(direction=slice(4, None)).isnull().all()
    assert short.energy.isel(round=slice(4, None)).isnull().all()
    alone = simulate(Scenario("2x2,4x2", rounds=3), rule="fedavg", seed=[0, 1, 2])
    mine = short.sel(rule="fedavg").isel(direction=slice(4), round=slice(4))
    np.testing.assert_array_equal(mine.energy, alone.energy)


def test_zipped_fields_are_coordinates_of_one_dimension(out: Path) -> None:
    tables = changed(
        SMALL, grid={"gain_std": None}, zip={"cohort_size": [2, 3], "gain_std": [0, 1]}
    )
    swept(tables, out)
    data = open_sweep(out)
    assert data.energy.dims == ("rule", "zip", "seed", "round", "direction")
    assert data.cohort_size.dims == data.gain_std.dims == ("zip",)
    one = data.where(data.cohort_size == 3, drop=True)
    assert one.gain_std.values.tolist() == [1]


def test_zipped_seeds_have_no_separate_dimension(out: Path) -> None:
    tables = changed(
        SMALL,
        scenario={"seed": None},
        grid={"gain_std": None},
        zip={"seed": [7, 8, 9], "gain_std": [0.1, 0.1, 0.2]},
    )
    swept(tables, out)
    data = open_sweep(out)
    assert data.energy.dims == ("rule", "zip", "round", "direction")
    alone = simulate(Scenario("2x2,4x2", rounds=5, gain_std=0.1), rule="fedavg", seed=8)
    mine = data.sel(rule="fedavg").isel(zip=1)
    assert int(mine.seed) == 8
    np.testing.assert_array_equal(mine.energy, alone.energy[0])


def test_one_zipped_field_is_a_dimension_of_its_name(out: Path) -> None:
    swept(changed(SMALL, grid={"gain_std": None}, zip={"gain_std": [0.0, 0.1]}), out)
    assert open_sweep(out).rho.dims == ("rule", "gain_std", "seed", "round")


@pytest.mark.slow
def test_fidelities_side_by_side(out: Path) -> None:
    tables = changed(SMALL, grid={"gain_std": None, "fidelity": ["spectral", "matrix"]})
    swept(tables, out)
    data = open_sweep(out)
    assert data.projected_energy.sel(fidelity="spectral").isnull().all()
    assert data.projected_energy.sel(fidelity="matrix").notnull().all()


@pytest.mark.slow
def test_files_are_read_only_on_access(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept(SMALL, out, seconds=0.001)
    opened: list[Path] = []

    class Counted(h5py.File):
        def __init__(self, path: Path, *arguments: object) -> None:
            opened.append(path)
            super().__init__(path, *arguments)

    monkeypatch.setattr(dataset.h5py, "File", Counted)
    data = open_sweep(out)
    repr(data)
    assert not opened
    float(data.rho.sel(rule="fedavg", gain_std=0.1, seed=1).isel(round=-1))
    assert len(opened) == 1


KEYS = [
    {"seed": 1, "round": -1},
    {"seed": [2, 0], "gain_std": slice(None, None, -1)},
    {"round": slice(None, None, -2), "direction": [3, 1]},
    {"rule": [1], "direction": slice(1, 3), "round": [0, 5, 2]},
    {"gain_std": slice(2, 2)},
    {"rule": xr.DataArray([0, 1, 1], dims="pick"), "seed": xr.DataArray([2, 0, 1], dims="pick")},
]


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_any_part_is_the_part_of_the_whole(out: Path, key: dict) -> None:
    swept(SMALL, out)
    whole = open_sweep(out).load()
    xr.testing.assert_identical(open_sweep(out).isel(key).load(), whole.isel(key))


def test_dask_arrays_have_a_chunk_per_point(out: Path) -> None:
    pytest.importorskip("dask")
    swept(SMALL, out)
    data = open_sweep(out, chunks={})
    assert data.energy.chunksizes["rule"] == (1, 1)
    assert data.energy.chunksizes["seed"] == (3,)
    assert_same_bits(data.compute(scheduler="threads"), open_sweep(out))


def test_missing_tasks_are_reported_and_nan(out: Path) -> None:
    total = swept(SMALL, out).tasks
    first = min((out / "tasks").iterdir())
    first.unlink()
    with pytest.warns(UserWarning, match=f"1 of {total} tasks are missing"):
        data = open_sweep(out)
    assert 0 < int(data.energy.isnull().sum()) < data.energy.size
    assert data.rho.dtype == np.float64


def test_a_broken_file_is_named(out: Path) -> None:
    swept(SMALL, out, seconds=10.0)
    (path,) = (out / "tasks").iterdir()
    path.write_text("broken")
    with pytest.raises(InputError, match=rf"{path}.*run it again"):
        open_sweep(out).load()


def test_folders_that_are_not_sweeps_are_named(out: Path) -> None:
    with pytest.raises(InputError, match="sweep="):
        open_sweep(out)


def test_a_task_file_can_be_read_by_itself(out: Path) -> None:
    swept(SMALL, out, seconds=10.0)
    (path,) = (out / "tasks").iterdir()
    with xr.open_dataset(path, engine="h5netcdf") as data:
        assert data.energy.dims == ("run", "round", "direction")
        assert data.rule.dims == data.gain_std.dims == data.seed.dims == ("run",)
        assert data.sizes["run"] == 18
        assert data.attrs["complete"] == 1
