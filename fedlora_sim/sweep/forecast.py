"""What a sweep will take: tasks, time on this machine from a short probe, and disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora_sim.runtime import blas_threads, one_thread
from fedlora_sim.sweep.driver import Engine, check_tasks
from fedlora_sim.sweep.grid import Grid, Point, read_grid
from fedlora_sim.sweep.manifest import updated_manifest
from fedlora_sim.sweep.plan import TASK_SECONDS, Part, Task
from fedlora_sim.sweep.store import is_valid
from fedlora_sim.sweep.work import task_dataset

PROBE_SECONDS = 1.0


@dataclass(frozen=True)
class Forecast:
    """What a sweep will take.

    Args:
        rows, runs, tasks: of the whole sweep.
        present: tasks that are there.
        seconds: of the missing tasks, one after another on this machine.
        nbytes: that the missing tasks will take on disk.
        free: bytes that are free there.
        speed: fidelity -> measured seconds per estimated second.
    """

    rows: int
    runs: int
    tasks: int
    present: int
    seconds: float
    nbytes: int
    free: int
    speed: Mapping[str, float]


def forecast(
    grid: str | Path | Mapping[str, Any] | Grid,
    out: str | Path,
    *,
    task_seconds: float = TASK_SECONDS,
    mix_code: bool = False,
    engine: Engine | None = None,
) -> Forecast:
    """What `run_sweep` with these arguments would do; writes nothing.

    Raises:
        InputError: what `run_sweep` would refuse.
    """
    checked = grid if isinstance(grid, Grid) else read_grid(grid)
    folder = Path(out).expanduser().absolute()
    tasks = updated_manifest(folder, checked, task_seconds, mix_code).tasks
    missing = [task for task in tasks if not is_valid(folder, task)]
    chosen = Engine() if engine is None else engine
    check_tasks(missing, checked, chosen)
    by_fidelity: dict[str, list[Task]] = {}
    for task in missing:
        by_fidelity.setdefault(task.parts[0].point.scenario.fidelity, []).append(task)
    speed = {
        # models and data of other machines may not be on this one
        fidelity: probe(own) if chosen.is_local or fidelity != "training" else 1.0
        for fidelity, own in by_fidelity.items()
    }
    seconds = sum(
        speed[fidelity] * sum(task.seconds for task in own) for fidelity, own in by_fidelity.items()
    )
    where = next(path for path in (folder, *folder.parents) if path.exists())
    return Forecast(
        rows=len(checked.rows),
        runs=sum(task.runs for task in tasks),
        tasks=len(tasks),
        present=len(tasks) - len(missing),
        seconds=seconds,
        nbytes=sum(task.nbytes for task in missing),
        free=shutil.disk_usage(where).free,
        speed=speed,
    )


def probe(tasks: Sequence[Task]) -> float:
    """Measured seconds per estimated second, of a small part of the task in the middle.

    Args:
        tasks: of one fidelity. Of fine-tuning it is the first rounds, without what comes before.
    """
    ordered = sorted(tasks, key=lambda task: task.seconds)
    middle = ordered[len(ordered) // 2]
    if middle.parts[0].point.scenario.fidelity == "training":
        few, more = (_of_rounds(middle, rounds) for rounds in (1, 3))
        return (_time(more) - _time(few)) / (_estimate(more) - _estimate(few))
    small = _smaller(middle)
    _time(small)  # what is loaded at first
    return _time(small) / _estimate(small)


def _time(task: Task) -> float:
    with one_thread(), blas_threads(1):
        started = time.perf_counter()
        task_dataset(task)
        return time.perf_counter() - started


def _estimate(task: Task) -> float:
    return sum(part.seconds for part in task.parts)


def _of_rounds(task: Task, rounds: int) -> Task:
    part = task.parts[0]
    point = Point(part.point.scenario.replace(rounds=rounds), part.point.rule)
    return Task((Part(point, part.seeds),))


def _smaller(task: Task) -> Task:
    """The first parts and seeds of a task that take a second together."""
    kept, left = list[Part](), PROBE_SECONDS
    for part in task.parts:
        if left <= 0:
            break
        count = int((left - part.cost.call) / part.cost.run)
        smaller = Part(part.point, part.seeds[: max(1, count)])
        kept.append(smaller)
        left -= smaller.seconds
    return Task(tuple(kept))
