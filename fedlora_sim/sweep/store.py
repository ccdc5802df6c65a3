"""Files of a sweep: one per task, whole or absent, whoever is killed while writing it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import h5py
import xarray as xr

from fedlora_sim.errors import expected
from fedlora_sim.storage import encode_dataset, temporary_folder, write_bytes
from fedlora_sim.sweep.plan import Task

TASKS, ROUNDS = "tasks", "rounds"
TASK_ATTR, COMPLETE = "sweep_task", "complete"


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
        with temporary_folder(target / TASKS / "probe"):
            pass
    except OSError as error:
        raise expected("out", str(folder), f"a folder that can be written to ({error})") from None
    return target


def task_path(folder: Path, task: Task | str) -> Path:
    """The file of a task."""
    return folder / TASKS / f"{task if isinstance(task, str) else task.id}.nc"


def put_task(folder: Path, task: Task, dataset: xr.Dataset) -> None:
    """Keep a task's runs, atomically.

    Raises:
        OSError: if there is no room or no permission; nothing is left then.
    """
    labelled = dataset.assign_attrs({TASK_ATTR: task.id, COMPLETE: 1})
    write_bytes(task_path(folder, task), encode_dataset(labelled))


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
