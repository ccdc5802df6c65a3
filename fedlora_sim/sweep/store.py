"""Files of a sweep: one per task, whole or absent, whoever is killed while writing it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
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
    temporary_folder,
    write_bytes,
    write_json,
)
from fedlora_sim.sweep.grid import SEED, Grid, Point, described, label
from fedlora_sim.sweep.plan import Part, Task, plan

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


# Rules from outside the package: what tells their versions apart, and who finds them


@cache
def rule_version(rule: str) -> str | None:
    """Hash of the file of a rule from outside; None for the rules of the package."""
    code = rule_code(get_rule(rule))
    return None if code is None else code[:12]


def check_found_by_workers(rule: str) -> None:
    """Refuse a rule that only this process has registered.

    Raises:
        InputError: naming the rule.
    """
    chosen = get_rule(rule)
    kind = rule_class(chosen)
    known = {point.value for point in entry_points(group=ENTRY_POINTS)}
    if rule_code(chosen) is not None and f"{kind.__module__}:{kind.__qualname__}" not in known:
        wanted = f"a rule that other processes find by its name: an entry point of {ENTRY_POINTS!r}"
        raise expected("rule", rule, f"{wanted} (or one process alone)")


# The manifest of a sweep: its grid, its tasks and the code that makes them

MANIFEST, FORMAT = "manifest.json", 1


@dataclass(frozen=True)
class Manifest:
    """What a sweep's folder holds or will hold.

    Args:
        grid: rows and seeds.
        tasks: whose runs are all of the grid's, each once.
        made_with: versions of the code that made them, the last one now at work.
    """

    grid: Grid
    tasks: tuple[Task, ...]
    made_with: tuple[Mapping[str, str], ...]

    def write(self, folder: Path) -> None:
        """Write it whole."""
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

    def split(self, tasks: Sequence[Task]) -> Manifest:
        """With some tasks cut into their parts."""
        cut = {task.id for task in tasks}
        kept = (task for task in self.tasks if task.id not in cut)
        return replace(self, tasks=(*kept, *(part for task in tasks for part in task.split())))


def versions_of(tasks: Iterable[Task]) -> dict[str, str]:
    """What the bits of the tasks depend on besides themselves, as far as a process can tell.

    Raises:
        InputError: for a rule that this process does not know.
    """
    rules = sorted({part.point.rule for task in tasks for part in task.parts})
    own = map(rule_version, rules)
    return code_versions() | {f"code of {r}": v for r, v in zip(rules, own, strict=True) if v}


def load_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None where there is none.

    Raises:
        InputError: if it cannot be read.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        grid = Grid.of_tables(content["grid"])
        points = {row.point.id: row.point for row in grid.rows}
        tasks = tuple(Task(_parts(task["parts"], points)) for task in content["tasks"])
        return Manifest(grid, tasks, tuple(content["made_with"]))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        reason = f"{type(error).__name__}: {error}"
        remedy = "give another folder, or restore the file; the tasks in the folder are complete"
        raise damaged(path, "the manifest of a sweep", reason, remedy) from None


def updated_manifest(folder: Path, grid: Grid, seconds: float, mix_code: bool) -> Manifest:
    """The manifest of a folder for this grid: a new one, that which is there, or a larger one.

    A sweep may grow: every row and seed that the folder's has must be in the new grid, and keeps
    its task; the others are planned beside.

    Args:
        folder: of the sweep.
        grid: what is asked for.
        seconds: estimated time that a new task should take at least.
        mix_code: whether tasks that other code made may stay beside those of this one.

    Raises:
        InputError: naming what the folder has and the grid has not, or what code differs.
    """
    before = load_manifest(folder)
    if before is None:
        tasks = tuple(plan(grid.rows, seconds))
        return Manifest(grid, tasks, (versions_of(tasks),))
    _check_contains(folder, before.grid, grid)
    now = versions_of(before.tasks)
    _check_code(folder, before, now, mix_code)
    covered = before.grid.runs  # of which every one is in a task
    known = [v for v in before.made_with if v != now] if present_tasks(folder) else []
    tasks = (*before.tasks, *plan(grid.rows, seconds, covered))
    return Manifest(grid, tasks, (*known, versions_of(tasks)))


def _check_contains(folder: Path, old: Grid, new: Grid) -> None:
    """Refuse a grid without some row or seed of the folder's: name the field that differs."""
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
    """Refuse to go on with other code, unless that is asked for."""
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
    """A list of seeds, or its ends where none is left out between them."""
    dense = len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return {"first": seeds[0], "last": seeds[-1]} if dense else list(seeds)


def _unpacked(seeds: Any) -> tuple[int, ...]:
    if isinstance(seeds, Mapping):
        return tuple(range(seeds["first"], seeds["last"] + 1))
    return tuple(seeds)


def _commit() -> str | None:
    """The commit that the sources are at, where they are a checkout; marked if they differ."""
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
