"""Files of tasks have the same bytes if a profiler watches while they are written."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import xarray as xr
from sweep_cases import SMALL, swept

from fedlora_sim import storage
from fedlora_sim.sweep import store
from fedlora_sim.sweep.store import load_manifest


@contextmanager
def watched() -> Iterator[None]:
    """Hold this thread's frames for a moment, as the profiler of a Dask worker does."""
    me, done = threading.get_ident(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            held = sys._current_frames().get(me)
            time.sleep(0.001)
            del held

    watcher = threading.Thread(target=watch)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        sys.setswitchinterval(before)


def test_a_file_of_another_task_is_made_again(tmp_path: Path) -> None:
    swept(SMALL, tmp_path)
    first, second = load_manifest(tmp_path).tasks[:2]
    assert store.missing_tasks(tmp_path, [first, second]) == []
    shutil.copy(store.task_path(tmp_path, second), store.task_path(tmp_path, first))
    assert store.missing_tasks(tmp_path, [first, second]) == [first]
    assert not store.task_path(tmp_path, first).exists()


def test_rounds_of_finished_tasks_are_removed_and_no_others(tmp_path: Path) -> None:
    swept(SMALL, tmp_path)
    done = load_manifest(tmp_path).tasks[0].id
    finished, again = (tmp_path / "rounds" / code / done for code in ("older", "newer"))
    other = tmp_path / "rounds/newer/0123456789ab"
    for folder in (finished, again, other):
        folder.mkdir(parents=True)
    swept(SMALL, tmp_path)
    assert list((tmp_path / "rounds").glob("*/*")) == [other]
    assert not finished.parent.exists()
    other.rmdir()
    store.drop_rounds(tmp_path)
    assert not (tmp_path / "rounds").exists()


@pytest.mark.slow
@pytest.mark.parametrize("own_thread", [True, False], ids=["own thread", "control"])
def test_a_profiler_does_not_change_the_bytes(
    own_thread: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control writes in the watched thread, and the layout of its files varies."""
    swept(SMALL, tmp_path)
    task = load_manifest(tmp_path).tasks[0]
    path = store.task_path(tmp_path, task)
    dataset = xr.load_dataset(path, engine="h5netcdf")
    if not own_thread:
        monkeypatch.setattr(store, "encode_dataset", storage.encode_here)
    found = {path.read_bytes()}
    with watched():
        for _ in range(20 if own_thread else 60):  # the control varies within a few writes
            store.put_task(tmp_path, task, dataset)
            found.add(path.read_bytes())
            if len(found) > 1:
                break
    assert (len(found) == 1) == own_thread
