"""Run a study as a sweep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import xarray as xr

from analysis.studies.study import Study, StudyRun
from fedlora_sim.errors import InputError, expected
from fedlora_sim.sweep.grid import Point, listed_grid
from fedlora_sim.sweep.plan import Part, SweepTask
from fedlora_sim.sweep.run import Engine, run_sweep
from fedlora_sim.sweep.store import is_valid, read_task
from fedlora_sim.sweep.work import TaskResult

RUNS = "runs"
"""Name of the sweep in a study's folder."""


def run_study(
    study: Study,
    out: Path,
    workers: int = 1,
    *,
    part: Study | None = None,
    mix_code: bool = False,
    on_task: Callable[[TaskResult], object] = lambda outcome: None,
) -> None:
    """Run the missing runs as the sweep `runs`, see `run_sweep`.

    The bits of a run do not depend on the order or the process. A stopped study continues from the
    last finished round of each run.

    Args:
        study: the study.
        out: folder of the results.
        workers: number of runs in parallel, each in its own process.
        part: the part of the study to run now; all when None.
        mix_code: continue although other code computed the finished runs.
        on_task: called with each outcome.

    Raises:
        InputError: before anything is run; or if a run has failed, after all others, with its name.
    """
    names = {task_of(run).id: run.label for run in (part or study).runs()}
    failed: dict[str, str] = {}

    def tell(outcome: TaskResult) -> None:
        if outcome.error is not None:
            failed[names[outcome.id]] = outcome.error
        on_task(outcome)

    grid = listed_grid((point_of(run), run.seed) for run in study.runs())
    engine = Engine(workers)
    run_sweep(grid, out / RUNS, engine=engine, mix_code=mix_code, only=names, on_task=tell)
    for name, error in failed.items():
        raise InputError(f"{name}: {error}")


def missing_runs(study: Study, out: Path) -> list[StudyRun]:
    """Return the runs without a result."""
    return [run for run in study.runs() if not is_valid(out / RUNS, task_of(run))]


def load_runs(study: Study, out: Path) -> dict[str, xr.Dataset]:
    """Return all runs of a study by label.

    Raises:
        InputError: if one is missing.
    """
    missing = missing_runs(study, out)
    if missing:
        wanted = f"all runs of the study; {len(missing)} are missing, {missing[0].label} first"
        raise expected("out", str(out), wanted)
    return {run.label: read_task(out / RUNS, task_of(run)) for run in study.runs()}


def point_of(run: StudyRun) -> Point:
    """Return a run's scenario and rule as a point of a sweep."""
    return Point(run.scenario, run.rule)


def task_of(run: StudyRun) -> SweepTask:
    """Return the task of a sweep that makes a run."""
    return SweepTask((Part(point_of(run), (run.seed,)),))
