"""Files of a sweep: one per task, complete or absent, even if a writer is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import h5py
import xarray as xr

from fedlora_sim.errors import expected
from fedlora_sim.rules import get_rule
from fedlora_sim.rules.external import rule_class, rule_code
from fedlora_sim.rules.registry import ENTRY_POINTS
from fedlora_sim.storage import (
    PACKAGE,
    code_versions,
    damaged,
    encode_dataset,
    load_dataset,
    only_writer,
    temporary_folder,
    write_bytes,
    write_json,
)
from fedlora_sim.sweep.grid import SEED, Grid, Point, described, label
from fedlora_sim.sweep.plan import Part, SweepTask, plan

TASKS, ROUNDS = "tasks", "rounds"
RUN, POINT = "run", "point"
"""Dimension of a file, and the id of the point of each run there."""
TASK_ATTR, COMPLETE = "sweep_task", "complete"


def claim_folder(folder: Path, stack: ExitStack) -> Path:
    """Lock the folder of a sweep until the stack is closed, and check that it is writable.

    The folder is created, and removed again at the end if it is still empty.

    Returns:
        Its absolute path, under which remote workers find it.

    Raises:
        InputError: if it cannot be created or written to, or if another process holds the lock.
    """
    target = folder.expanduser().absolute()
    try:
        stack.enter_context(only_writer(target))
        with temporary_folder(target / "probe"):
            pass
    except OSError as error:
        raise expected("out", str(folder), f"a folder that can be written to ({error})") from None
    return target


def task_path(folder: Path, task: SweepTask | str) -> Path:
    """Return the file of a task."""
    return folder / TASKS / f"{task if isinstance(task, str) else task.id}.nc"


def put_task(folder: Path, task: SweepTask, dataset: xr.Dataset) -> None:
    """Store a task's runs atomically.

    Raises:
        OSError: if there is no space or no permission; nothing remains in this case.
    """
    labeled = dataset.assign_attrs({TASK_ATTR: task.id, COMPLETE: 1})
    write_bytes(task_path(folder, task), encode_dataset(labeled))


def read_task(folder: Path, task: SweepTask) -> xr.Dataset:
    """Return the runs of a finished task as `simulate` returned them, in memory.

    Raises:
        InputError: if the file is damaged.
    """
    return load_dataset(task_path(folder, task)).drop_vars(POINT).swap_dims({RUN: SEED})


def is_valid(folder: Path, task: SweepTask) -> bool:
    """Return True if the task's file exists, can be opened, and has the expected content."""
    try:
        with h5py.File(task_path(folder, task), "r") as file:
            return file.attrs.get(TASK_ATTR) == task.id and file.attrs.get(COMPLETE) == 1
    except OSError:
        return False


def missing_tasks(folder: Path, tasks: Iterable[SweepTask]) -> list[SweepTask]:
    """Return the tasks without a valid file; damaged files are removed."""
    missing = [task for task in tasks if not is_valid(folder, task)]
    for task in missing:
        task_path(folder, task).unlink(missing_ok=True)
    return missing


def present_tasks(folder: Path) -> set[str]:
    """Return the ids of the tasks whose file exists; files appear only when complete."""
    try:
        return {
            Path(entry.name).stem for entry in os.scandir(folder / TASKS) if entry.name[0] != "."
        }
    except FileNotFoundError:
        return set()


def drop_rounds(folder: Path) -> None:
    """Remove the stored rounds of finished tasks, also those that other code has left."""
    for rounds in (folder / ROUNDS).glob("*/*"):
        if task_path(folder, rounds.name).exists():
            shutil.rmtree(rounds, ignore_errors=True)
    for place in (*(folder / ROUNDS).glob("*"), folder / ROUNDS):
        with suppress(OSError):  # rounds of unfinished tasks are stored there
            place.rmdir()


# External rules: versions of their code, and whether workers can import them


@cache
def rule_version(rule: str) -> str | None:
    """Return the hash of the file of an external rule; None for built-in rules."""
    code = rule_code(get_rule(rule))
    return None if code is None else code[:12]


def check_found_by_workers(rule: str) -> None:
    """Refuse a rule that only this process has registered.

    Raises:
        InputError: names the rule.
    """
    chosen = get_rule(rule)
    kind = rule_class(chosen)
    known = {point.value for point in entry_points(group=ENTRY_POINTS)}
    if rule_code(chosen) is not None and f"{kind.__module__}:{kind.__qualname__}" not in known:
        wanted = f"a rule that other processes find by its name: an entry point of {ENTRY_POINTS!r}"
        raise expected("rule", rule, f"{wanted} (or one process alone)")


# The manifest of a sweep: its grid, its tasks and the code that computed them

MANIFEST, FORMAT = "manifest.json", 1


@dataclass(frozen=True)
class Manifest:
    """Content of a sweep's folder, present and planned.

    Args:
        grid: rows and seeds.
        tasks: tasks that cover all runs of the grid, each once.
        made_with: versions of the code that computed them, the current one last.
    """

    grid: Grid
    tasks: tuple[SweepTask, ...]
    made_with: tuple[Mapping[str, str], ...]

    def write(self, folder: Path) -> None:
        """Write the manifest atomically."""
        content = {
            "format": FORMAT,
            "grid": self.grid.tables(),
            "made_with": self.made_with,
            "commit": _commit(),
            "tasks": [
                {
                    "id": task.id,
                    "runs": task.runs,
                    "parts": [[part.point.id, _packed(part.seeds)] for part in task.parts],
                }
                for task in self.tasks
            ],
        }
        write_json(folder / MANIFEST, content)

    def split(self, tasks: Sequence[SweepTask]) -> Manifest:
        """Return the manifest with some tasks divided into their parts."""
        cut = {task.id for task in tasks}
        kept = (task for task in self.tasks if task.id not in cut)
        return replace(self, tasks=(*kept, *(part for task in tasks for part in task.split())))


def versions_of(tasks: Iterable[SweepTask]) -> dict[str, str]:
    """Return the versions of everything on which the bits of the tasks depend, as far as known.

    Raises:
        InputError: for a rule that this process does not know.
    """
    rules = sorted({part.point.rule for task in tasks for part in task.parts})
    own = map(rule_version, rules)
    return code_versions() | {f"code of {r}": v for r, v in zip(rules, own, strict=True) if v}


def load_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a folder, or None.

    Raises:
        InputError: if it cannot be read.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        grid = Grid.of_tables(content["grid"])
        points = {row.point.id: row.point for row in grid.rows}
        tasks = tuple(SweepTask(_parts(task["parts"], points)) for task in content["tasks"])
        return Manifest(grid, tasks, tuple(content["made_with"]))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        reason = f"{type(error).__name__}: {error}"
        remedy = "give another folder, or restore the file; the tasks in the folder are complete"
        raise damaged(path, "the manifest of a sweep", reason, remedy) from None


def updated_manifest(folder: Path, grid: Grid, seconds: float, mix_code: bool) -> Manifest:
    """Return the manifest of a folder for this grid: a new, the existing, or an extended one.

    A sweep can grow: all rows and seeds of the folder must be in the new grid, and keep their task;
    the others are planned in addition.

    Args:
        folder: folder of the sweep.
        grid: the requested grid.
        seconds: maximum estimated time of a new task, unless one run takes longer.
        mix_code: whether tasks of other code may remain.

    Raises:
        InputError: names what the folder contains and the grid lacks, or which code differs.
    """
    before = load_manifest(folder)
    if before is None:
        tasks = tuple(plan(grid.rows, seconds))
        return Manifest(grid, tasks, (versions_of(tasks),))
    _check_contains(folder, before.grid, grid)
    now = versions_of(before.tasks)
    _check_code(folder, before, now, mix_code)
    covered = before.grid.runs  # each of them is in a task
    known = [v for v in before.made_with if v != now] if present_tasks(folder) else []
    tasks = (*before.tasks, *plan(grid.rows, seconds, covered))
    return Manifest(grid, tasks, (*known, versions_of(tasks)))


def _check_contains(folder: Path, old: Grid, new: Grid) -> None:
    """Refuse a grid without a row or seed of the folder; name the field that differs."""
    as_before = f"as in the sweep in {folder} (or another folder)"
    nothing = frozenset[int]()
    for row in old.rows:
        lacking = set(row.seeds) - new.runs.get(row.point.id, nothing)
        if not lacking:
            continue
        for name in sorted(old.fixed.keys() | new.fixed.keys()):
            mine, theirs = (_shown(name, grid.fixed.get(name)) for grid in (new, old))
            if mine != theirs and name not in (*new.swept, *old.swept):
                raise expected(name, mine, f"{theirs!r}, {as_before}")
        named = described({**row.values, SEED: min(lacking)})
        raise expected("grid", f"without the row {named}", f"all rows and seeds {as_before}")


def _shown(name: str, value: Any) -> Any:
    return "its default" if value is None else label(name, value)


def _check_code(folder: Path, before: Manifest, now: Mapping[str, str], mix_code: bool) -> None:
    """Refuse to continue with other code unless requested."""
    last = before.made_with[-1]
    done = len(present_tasks(folder))
    if mix_code or not done or last == now:
        return
    name = next(name for name in (*now, *last) if last.get(name) != now.get(name))
    wanted = f"{last.get(name)!r}, which made {done} tasks in {folder}"
    raise expected(name, now.get(name), f"{wanted} (or another folder, or --mix-code)")


def _parts(listed: Sequence[Any], points: Mapping[str, Point]) -> tuple[Part, ...]:
    return tuple(Part(points[own], _unpacked(seeds)) for own, seeds in listed)


def _packed(seeds: Sequence[int]) -> Any:
    """Return a list of seeds, or its ends if it is contiguous."""
    dense = len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return {"first": seeds[0], "last": seeds[-1]} if dense else list(seeds)


def _unpacked(seeds: Any) -> tuple[int, ...]:
    if isinstance(seeds, Mapping):
        return tuple(range(seeds["first"], seeds["last"] + 1))
    return tuple(seeds)


def _commit() -> str | None:
    """Return the commit of the sources if they are a checkout, marked if they were changed."""
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
