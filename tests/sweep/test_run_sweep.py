"""Sweeps run, stopped, continued, extended and refused, in one process and in several."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr
from sweep_cases import QUICK, SMALL, assert_same_bits, changed, contents, swept

from fedlora_sim import Scenario, simulate
from fedlora_sim.errors import InputError
from fedlora_sim.sweep import open_sweep, store, work
from fedlora_sim.sweep.run import Engine
from fedlora_sim.sweep.store import MANIFEST, load_manifest


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int, error: BaseException) -> None:
    """Raise after a number of stored tasks."""
    kept, put = [], store.put_task

    def counted(*arguments: object) -> None:
        if len(kept) == count:
            raise error
        put(*arguments)
        kept.append(1)

    monkeypatch.setattr(work, "put_task", counted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"cohort_size": 2},
        {"cohort_size": 3, "drift_std": 0.1, "heterogeneity": "persistent"},
        {"allocation": "importance"},
        {"local_loss": "quadratic", "target_std": 0.2, "gain_std": 0.0},
        {"fidelity": "matrix", "d_in": 10, "d_out": 8},
    ],
)
def test_every_run_has_the_bits_that_simulate_gives_it(out: Path, more: dict) -> None:
    tables = changed(SMALL, scenario={"rounds": 20, **more}, grid={"gain_std": None})
    tables = changed(tables, grid={"initial_amplitude": [1.0, 1.5, 2.0]})
    report = swept(tables, out, seconds=10.0)
    assert (report.tasks, report.made, report.failed) == (1, 1, {})
    data = open_sweep(out)
    for rule in ("fedavg", "raflora"):
        for amplitude in (1.0, 1.5, 2.0):
            scenario = Scenario("2x2,4x2", rounds=20, initial_amplitude=amplitude, **more)
            alone = simulate(scenario, rule=rule, seed=range(3))
            mine = data.sel(rule=rule, initial_amplitude=amplitude)
            for name in alone.data_vars:
                assert mine[name].dims == alone[name].dims
                assert (mine[name].values == alone[name].values).all()


@pytest.mark.slow
@pytest.mark.parametrize("engine", [Engine(), Engine(workers=2)], ids=["serial", "pool"])
def test_files_have_the_same_bytes_for_any_driver(tmp_path: Path, engine: Engine) -> None:
    swept(SMALL, tmp_path / "a")
    report = swept(SMALL, tmp_path / "b", engine=engine)
    assert report.made == report.tasks == len(contents(tmp_path / "a")) > 2
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_existing_pieces_are_not_made_again(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            swept(SMALL, out)
    kept = {path: path.stat().st_mtime_ns for path in (out / "tasks").iterdir()}
    assert len(kept) == 2
    report = swept(SMALL, out)
    assert report.made == report.tasks - 2
    assert all(path.stat().st_mtime_ns == moment for path, moment in kept.items())
    assert swept(SMALL, out).made == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda path, other: path.write_bytes(path.read_bytes()[:-100]),
        lambda path, other: path.write_bytes(b""),
        lambda path, other: path.write_text("not HDF5"),
        lambda path, other: path.write_bytes(other.read_bytes()),
        lambda path, other: xr.Dataset({"a": 1}).to_netcdf(path, engine="h5netcdf"),
        lambda path, other: path.unlink(),
    ],
    ids=["cut", "empty", "text", "another task's", "another netCDF", "gone"],
)
def test_a_broken_file_is_made_again(out: Path, damage: object) -> None:
    swept(SMALL, out)
    before = contents(out)
    first, second = list((out / "tasks").iterdir())[:2]
    damage(first, second)
    assert swept(SMALL, out).made == 1
    assert contents(out) == before


def test_only_leftovers_of_killed_writers_are_removed(out: Path) -> None:
    swept(SMALL, out)
    left, other = out / "tasks" / f".abc.nc.{'0f' * 8}.tmp", out / "tasks" / "notes.txt"
    left.write_text("half")
    other.write_text("mine")
    swept(SMALL, out)
    assert not left.exists()
    assert other.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "larger",
    [
        changed(SMALL, grid={"gain_std": [0.3, 0.0, 0.1, 0.2]}),
        changed(SMALL, scenario={"seed": {"count": 5}}),
        changed(SMALL, scenario={"rounds": None}, grid={"rounds": [4, 5]}),
        changed(SMALL, grid={"rule": ["fedavg", "flora", "raflora"]}),
    ],
)
def test_a_larger_grid_adds_to_the_sweep(out: Path, tmp_path: Path, larger: dict) -> None:
    first = swept(SMALL, out)
    kept = {path: path.stat().st_mtime_ns for path in (out / "tasks").iterdir()}
    report = swept(larger, out)
    assert report.made == report.tasks - first.tasks > 0
    assert all(path.stat().st_mtime_ns == moment for path, moment in kept.items())
    swept(larger, tmp_path / "at once")
    assert_same_bits(open_sweep(out), open_sweep(tmp_path / "at once"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (changed(SMALL, scenario={"rounds": 6}), "rounds=6: expected 5, as in the sweep in"),
        (changed(SMALL, scenario={"drift_std": 0.1}), "drift_std=0.1: expected 'its default'"),
        (changed(SMALL, scenario={"ranks": "2x4"}), "ranks='2x4': expected '2x2,4x2'"),
        (changed(SMALL, grid={"gain_std": [0.0, 0.1]}), "gain_std=0.2"),
        (changed(SMALL, scenario={"seed": {"count": 2}}), "seed=2"),
        (changed(SMALL, grid={"rule": ["fedavg"]}), "rule='raflora'"),
    ],
)
def test_another_sweep_in_the_folder_is_refused(out: Path, other: dict, message: str) -> None:
    swept(SMALL, out)
    before = contents(out), (out / MANIFEST).read_text()
    with pytest.raises(InputError, match=message):
        swept(other, out)
    assert before == (contents(out), (out / MANIFEST).read_text())


def test_other_code_is_refused_unless_allowed(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(monkeypatch, 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        swept(SMALL, out)
    monkeypatch.undo()
    other = {**store.code_versions(), "code": "0123456789ab"}
    monkeypatch.setattr(store, "code_versions", lambda: other)
    with pytest.raises(InputError, match=r"code='0123456789ab'.*which made 1 tasks.*--mix-code"):
        swept(SMALL, out)
    swept(SMALL, out, mix_code=True)
    assert [v["code"] for v in load_manifest(out).made_with][1] == "0123456789ab"
    with pytest.warns(UserWarning, match="different code"):
        open_sweep(out)


def test_other_libraries_are_refused_by_name(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept(SMALL, out)
    other = {**store.code_versions(), "torch_version": "0.1"}
    monkeypatch.setattr(store, "code_versions", lambda: other)
    with pytest.raises(InputError, match=r"torch_version='0\.1'"):
        swept(SMALL, out)


def test_the_manifest_records_the_sweeps_origin(out: Path) -> None:
    swept(SMALL, out)
    written = json.loads((out / MANIFEST).read_text())
    assert written["made_with"][0].keys() >= {"code", "fedlora_sim_version", "torch_version"}
    assert written["grid"]["fixed"] == {"ranks": "2x2,4x2", "rounds": 5}
    assert {task["id"] for task in written["tasks"]} == {Path(n).stem for n in contents(out)}
    (out / MANIFEST).write_text("{")
    with pytest.raises(InputError, match="file="):
        swept(SMALL, out)


@pytest.mark.slow
def test_fine_tuning_is_swept_and_continues_round_by_round(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = {
        "scenario": {"ranks": "2x2,4x1", "fidelity": "training", "max_train": 60, "max_test": 30},
        "grid": {"rounds": [1, 2], "rule": ["fedavg"], "seed": [3, 4]},
    }
    tables["scenario"] |= {"local_steps": 1}
    assert swept(tables, out).made == 4
    data = open_sweep(out)
    alone = simulate(Scenario(**(tables["scenario"] | {"rounds": 2})), rule="fedavg", seed=4).isel(
        seed=0
    )
    mine = data.sel(rule="fedavg", rounds=2, seed=4)
    for name in ("accuracy", "loss", "layer_energy", "client_preservation", "rho"):
        assert mine[name].dims == alone[name].dims
        assert ((mine[name] == alone[name]) | alone[name].isnull()).all(), name
    assert data.accuracy.sel(rounds=1).isel(round=2).isnull().all()
    assert not (out / "rounds").exists()


@pytest.mark.slow
def test_a_script_without_a_guard_may_use_processes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from fedlora_sim import run_sweep, open_sweep\n"
        "from fedlora_sim.sweep.run import Engine\n"
        f"tables = {SMALL!r}\n"
        f"run_sweep(tables, 'out', engine=Engine(2), task_seconds={QUICK}, progress=False)\n"
        "assert open_sweep('out').rho.notnull().all()\n"
    )
    subprocess.run([sys.executable, script], cwd=tmp_path, check=True, timeout=120)
