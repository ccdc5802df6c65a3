"""Sweeps in trouble: full disks, unwritable folders, killed workers, second drivers, bad input."""

from __future__ import annotations

import errno
import os
import subprocess
import warnings
from pathlib import Path

import pytest
from sweep_cases import SMALL, changed, contents, swept

from fedlora_sim import storage
from fedlora_sim.errors import InputError
from fedlora_sim.sweep import open_sweep, run, store, work
from fedlora_sim.sweep.run import Engine
from fedlora_sim.sweep.store import MANIFEST

ROWS = 6


def test_the_second_driver_is_refused(out: Path) -> None:
    with (
        storage.only_writer(out),
        pytest.raises(InputError, match=rf"no other process at work there .*{os.getpid()}"),
    ):
        swept(SMALL, out)
    assert not (out / MANIFEST).exists()
    assert swept(SMALL, out).made


@pytest.mark.slow
@pytest.mark.parametrize("engine", [Engine(), Engine(workers=2)], ids=["serial", "pool"])
def test_a_full_disk_ends_the_sweep_and_keeps_finished_tasks(
    out: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept(SMALL, out)
    whole = contents(out)
    for name in list(whole)[1:]:
        (out / "tasks" / name).unlink()
    if engine.workers > 1:
        monkeypatch.setattr(work, "_do", _full)
    else:
        monkeypatch.setattr(store, "write_bytes", _full)
    with pytest.raises(OSError, match="No space left") as caught:
        swept(SMALL, out, engine=engine)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    kept = [path.name for path in (out / "tasks").glob("[!.]*")]
    assert kept == list(whole)[:1]
    swept(SMALL, out)
    assert contents(out) == whole


def _full(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can mount")
def test_a_disk_that_really_runs_full(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount")
    try:
        tables = changed(SMALL, scenario={"rounds": 300})
        with pytest.raises(OSError, match="No space left"):
            swept(tables, small / "sweep")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            data = open_sweep(small / "sweep").load()
        assert 0 < int(data.rho.notnull().all("round").sum()) < ROWS * 3
        assert not list((small / "sweep/tasks").glob(".*"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"out=.*a folder that can be written to"):
        swept(SMALL, tmp_path / "file" / "sweep")
    with pytest.raises(InputError, match="out='/proc/"):
        swept(SMALL, Path("/proc/sweep"))


def test_a_row_that_fails_does_not_end_the_others(out: Path) -> None:
    tables = changed(
        SMALL,
        scenario={"cohort_size": 1},
        grid={"empty_partition": ["carry", "error"], "gain_std": None},
    )
    report = swept(tables, out, seconds=10.0)
    assert list(report.failed) == ["rule='raflora', empty_partition='error', seeds 0 to 2"]
    assert "a contributor to every direction" in report.failed.popitem()[1]
    assert (report.tasks, report.made) == (4, 3)
    with pytest.warns(UserWarning, match="1 of 4 tasks are missing"):
        data = open_sweep(out)
    assert data.rho.sel(rule="raflora", empty_partition="error").isnull().all()
    assert data.rho.isnull().sum() == 3 * 6
    again = swept(tables, out)
    assert (again.made, len(again.failed)) == (0, 1)


def test_workers_that_are_killed_again_and_again_end_the_sweep(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise work.BrokenProcessPool("killed")
        yield

    monkeypatch.setattr(run, "in_processes", broken)
    with pytest.raises(OSError, match=r"killed again and again.*memory"):
        swept(SMALL, out, engine=Engine(workers=2))


@pytest.mark.slow
@pytest.mark.parametrize("engine", [Engine(), Engine(workers=2)], ids=["serial", "pool"])
def test_a_sweep_that_is_stopped_leaves_no_unfinished_file(out: Path, engine: Engine) -> None:
    left = out / "tasks" / ".abc.nc.0123456789abcdef.tmp"

    def stop(outcome: object) -> None:
        left.write_text("what a worker was at when it was ended")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        swept(SMALL, out, engine=engine, on_task=stop)
    assert contents(out)
    assert not left.exists()


@pytest.mark.slow
def test_data_that_is_missing_is_refused_before_the_first_run(out: Path) -> None:
    tables = {
        "scenario": {"ranks": "2x2", "fidelity": "training", "rounds": 1, "classes_per_client": 5},
        "grid": {"task": ["digits", "text"], "rule": ["fedavg"]},
    }
    with pytest.raises(InputError, match="row task='text'"):
        swept(tables, out)
    tables["scenario"] |= {"model": "/nowhere", "data": "/nowhere.csv"}
    with pytest.raises((ValueError, OSError), match="nowhere"):
        swept(tables, out)
    assert not out.exists()


def test_a_device_that_is_not_there_is_refused_before_the_first_run(out: Path) -> None:
    tables = changed(SMALL, grid={"device": ["cpu", "mps"]})
    with pytest.raises(InputError, match="mps"):
        swept(tables, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers=0"),
        ({"workers": 2, "scheduler": "tcp://x:1"}, "scheduler='tcp://x:1'.*with workers=2"),
        ({"scheduler": "tcp://x:1", "gpus": True}, "gpus=True"),
    ],
)
def test_one_engine_at_a_time(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Engine(**options)
