"""Files of a sweep: one per task, whole or absent, whoever is killed while writing it."""

from __future__ import annotations

import io
import os
import secrets
import socket
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5netcdf
import h5py
import xarray as xr
from xarray.backends import H5NetCDFStore

from fedlora_sim.errors import expected
from fedlora_sim.sweep.plan import Task

TASKS, ROUNDS, TEMPORARY = "tasks", "rounds", ".tmp"
TASK_ATTR, COMPLETE = "sweep_task", "complete"
_WRITING = threading.Lock()


def prepare_folder(folder: Path) -> Path:
    """Make the folder of a sweep, and see that it can be written to.

    Returns:
        Its absolute path, which workers elsewhere know it by.

    Raises:
        InputError: if it cannot be made or written to.
    """
    target = folder.expanduser().absolute()
    try:
        (target / TASKS).mkdir(parents=True, exist_ok=True)
        probe = target / TASKS / f".probe.{_unique()}{TEMPORARY}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise expected("out", str(folder), f"a folder that can be written to ({error})") from None
    return target


def task_path(folder: Path, task: Task | str) -> Path:
    """The file of a task."""
    return folder / TASKS / f"{task if isinstance(task, str) else task.id}.nc"


def put_task(folder: Path, task: Task, dataset: xr.Dataset) -> None:
    """Keep a task's runs: written under a name of its own, then moved into place.

    Raises:
        OSError: if there is no room or no permission; nothing is left then.
    """
    target = task_path(folder, task)
    temporary = target.with_name(f".{task.id}.{_unique()}{TEMPORARY}")
    content = _encoded(dataset.assign_attrs({TASK_ATTR: task.id, COMPLETE: 1}))
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def is_valid(folder: Path, task: Task) -> bool:
    """Whether the task's file is there, can be opened, and is what it should be."""
    try:
        with h5py.File(task_path(folder, task), "r") as file:
            return file.attrs.get(TASK_ATTR) == task.id and file.attrs.get(COMPLETE) == 1
    except OSError:
        return False


def missing_tasks(folder: Path, tasks: Iterable[Task]) -> list[Task]:
    """Tasks without a valid file; what is broken in their place is removed."""
    missing = [task for task in tasks if not is_valid(folder, task)]
    for task in missing:
        task_path(folder, task).unlink(missing_ok=True)
    return missing


def present_tasks(folder: Path) -> set[str]:
    """Ids of the tasks whose file is there, which by then is whole."""
    try:
        return {
            Path(entry.name).stem for entry in os.scandir(folder / TASKS) if entry.name[0] != "."
        }
    except FileNotFoundError:
        return set()


def drop_temporary(folder: Path) -> None:
    """Remove what was being written when its writer died; for who holds the lock."""
    for path in (folder / TASKS).glob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def _encoded(dataset: xr.Dataset) -> memoryview:
    """A dataset as netCDF in memory: a full disk is then an OSError of a plain write.

    In a thread of its own: HDF5 lays a file out by when its objects are let go of, and the profiler
    of a Dask worker, which looks at the worker's threads, holds on to what it sees there. The
    bytes would be an accident of its timing.
    """
    with _WRITING, ThreadPoolExecutor(1) as thread:  # HDF5 writes one file at a time anyway
        return thread.submit(_written, dataset).result()


def _written(dataset: xr.Dataset) -> memoryview:
    """Into a store that is open already.

    `to_netcdf` would ask the scheduler of a Dask client, where there is one, for a lock on what is
    this process's alone.
    """
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        dataset.dump_to_store(H5NetCDFStore(file))
    return buffer.getbuffer()


def _unique() -> str:
    """Of this process and moment, on whatever machine."""
    return f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
