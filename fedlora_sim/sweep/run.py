"""`run_sweep`: run the missing tasks of a sweep, show progress, and resume."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from fedlora_sim.errors import InputError, check_count, check_positive, expected
from fedlora_sim.finetune.batches import split_clients
from fedlora_sim.runtime import blas_threads, one_thread, resolve_device, torch_dtype
from fedlora_sim.storage import remove_stale
from fedlora_sim.sweep.cluster import (
    gpu_client,
    on_cluster,
    scheduler_client,
    visible_gpus,
)
from fedlora_sim.sweep.grid import Grid, Point, described, read_grid
from fedlora_sim.sweep.plan import TASK_SECONDS, Part, SweepTask
from fedlora_sim.sweep.store import (
    TASKS,
    Manifest,
    check_found_by_workers,
    claim_folder,
    drop_rounds,
    is_valid,
    missing_tasks,
    updated_manifest,
)
from fedlora_sim.sweep.work import TaskResult, in_processes, in_this_process, task_dataset
from fedlora_sim.tasks.loading import load_task

# Progress: a bar with the remaining time on a terminal, lines elsewhere

LINES, EVERY_SECONDS = 20, 30.0
"""Lines of a sweep without a terminal, and seconds after which one is printed in any case."""
BAR = "{desc} |{bar}| {percentage:3.0f}% [{elapsed}<{remaining}]"


class Display:
    """Progress of a sweep, weighted by the estimated time of the tasks.

    Args:
        tasks: all tasks of the sweep.
        missing: tasks to run.
        shown: whether to print anything.
    """

    def __init__(
        self, tasks: Sequence[SweepTask], missing: Sequence[SweepTask], shown: bool
    ) -> None:
        self.total, self.done = len(tasks), len(tasks) - len(missing)
        self.failed, self.shown = 0, shown
        self.terminal = shown and sys.stderr.isatty()
        left = sum(task.seconds for task in missing)
        self.weight, self.finished, self.started = left, 0.0, time.monotonic()
        self.said_at, self.said = self.started, self.done
        self.bar = tqdm(total=left, disable=not self.terminal, bar_format=BAR, file=sys.stderr)

    def __enter__(self) -> Display:
        if self.done:
            self.say(f"going on from {self.done:,} of {self.total:,} tasks")
        self._describe()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def say(self, text: str) -> None:
        """Print a line."""
        if self.shown:
            tqdm.write(text, file=sys.stderr) if self.terminal else print(text, file=sys.stderr)

    def finish(self, task: SweepTask, outcome: TaskResult) -> None:
        """Count a task that is done or has failed."""
        self.done += outcome.error is None
        self.failed += outcome.error is not None
        self.finished += task.seconds
        self.bar.update(task.seconds)
        self._describe()
        if self.terminal or not self.shown:
            return
        now = time.monotonic()
        some = self.done - self.said >= max(1, self.total // LINES)
        if some or now - self.said_at >= EVERY_SECONDS or self.done == self.total:
            self.said, self.said_at = self.done, now
            print(f"{self._text()}, {self._left()}", file=sys.stderr, flush=True)

    def _describe(self) -> None:
        self.bar.set_description_str(self._text(), refresh=False)

    def _text(self) -> str:
        failed = f", {self.failed:,} failed" if self.failed else ""
        return f"{self.done:,} of {self.total:,} tasks{failed}"

    def _left(self) -> str:
        spent = time.monotonic() - self.started
        left = spent * (self.weight - self.finished) / max(self.finished, 1e-9)
        return f"about {duration(left)} left"


def duration(seconds: float) -> str:
    """Return a duration as seconds, minutes or hours with about two digits."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


# `run_sweep`

MOST_WORKERS = 1_024
"""Maximum number of local processes."""


@dataclass(frozen=True)
class SweepReport:
    """Result of a sweep.

    Args:
        folder: folder of the sweep.
        tasks: number of its tasks.
        made: number of tasks run by this call.
        failed: row to error message.
    """

    folder: Path
    tasks: int
    made: int
    failed: Mapping[str, str]


@dataclass(frozen=True)
class Engine:
    """Where tasks run: this process, processes of this machine, or Dask.

    Args:
        workers: number of processes of this machine; 1 uses this process only.
        scheduler: address of a Dask scheduler, `tcp://host:8786`.
        gpus: whether to start one worker for each GPU of this machine.

    Raises:
        InputError: if two of them are given.
    """

    workers: int = 1
    scheduler: str | None = None
    gpus: bool = False

    def __post_init__(self) -> None:
        check_count("workers", self.workers, MOST_WORKERS)
        given = {
            "workers": self.workers != 1,
            "scheduler": self.scheduler is not None,
            "gpus": self.gpus,
        }
        names = [name for name, is_given in given.items() if is_given]
        if len(names) > 1:
            value = getattr(self, names[1])
            raise expected(names[1], value, f"none with {names[0]}={getattr(self, names[0])!r}")

    @property
    def is_local(self) -> bool:
        """True if tasks run on this machine."""
        return self.scheduler is None

    def start(self, stack: ExitStack, folder: Path, display: Display) -> Any:
        """Return a function from tasks to their outcomes.

        Closing the stack releases its resources.
        """
        if self.workers > 1:
            return lambda tasks: in_processes(tasks, folder, self.workers)
        if self.is_local and not self.gpus:
            return lambda tasks: in_this_process(tasks, folder)
        if self.scheduler is not None:
            client = stack.enter_context(scheduler_client(self.scheduler))
        else:
            client = stack.enter_context(gpu_client(visible_gpus()))
        display.say(f"Dask: {client}")
        return lambda tasks: on_cluster(tasks, folder, client)


def run_sweep(
    grid: str | Path | Mapping[str, Any] | Grid,
    out: str | Path,
    *,
    engine: Engine | None = None,
    task_seconds: float = TASK_SECONDS,
    mix_code: bool = False,
    only: Collection[str] | None = None,
    progress: bool = True,
    on_task: Callable[[TaskResult], object] = lambda outcome: None,
) -> SweepReport:
    """Run all runs of a grid that the folder does not contain yet.

    Neither the plan nor the bits of a task depend on the machine or worker (for one kind of
    device). A sweep can be stopped at any time, even killed, and continued on another machine.

    Args:
        grid: a TOML file or its tables; see `fedlora_sim.sweep.grid`.
        out: folder of the sweep. A sweep with fewer rows or seeds is extended.
        engine: where tasks run; this process when None.
        task_seconds: maximum estimated time of a new task, unless one run takes longer.
        mix_code: continue although other code computed the existing tasks; the manifest lists both.
        only: ids of the tasks to run now; all when None.
        progress: show a bar on a terminal, and lines elsewhere.
        on_task: called with each outcome; an exception ends the sweep and keeps finished tasks.

    Returns:
        A report of finished and failed tasks: a failing row does not stop the others.

    Raises:
        InputError: before anything is run; names the argument, field or row.
        OSError: if the disk is full; finished tasks are kept.
    """
    chosen = Engine() if engine is None else engine
    checked = grid if isinstance(grid, Grid) else read_grid(grid)
    seconds = check_positive("task_seconds", task_seconds)
    with ExitStack() as stack:
        folder = claim_folder(Path(out), stack)
        manifest = updated_manifest(folder, checked, seconds, mix_code)
        wanted = [task for task in manifest.tasks if only is None or task.id in only]
        missing = missing_tasks(folder, wanted)
        remove_stale(folder)
        remove_stale(folder / TASKS)
        check_tasks(missing, checked, chosen)
        manifest.write(folder)
        stack.callback(drop_rounds, folder)
        display = stack.enter_context(Display(wanted, missing, progress))
        if not missing:
            return SweepReport(folder, len(manifest.tasks), 0, {})
        needed, free = sum(task.nbytes for task in missing), shutil.disk_usage(folder).free
        if needed > free:
            display.say(f"about {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
        if chosen.is_local:  # workers elsewhere may outlive this driver and continue writing
            stack.callback(remove_stale, folder / TASKS)
        make = chosen.start(stack, folder, display)

        def tell(task: SweepTask, outcome: TaskResult) -> None:
            display.finish(task, outcome)
            on_task(outcome)

        return _run(manifest, missing, make, folder, tell)


def check_tasks(tasks: Sequence[SweepTask], grid: Grid, engine: Engine) -> None:
    """Refuse tasks that this machine cannot run, and missing data, before the sweep starts.

    Args:
        tasks: tasks to run.
        grid: grid of their runs.
        engine: where they run; other machines have their own devices and files.

    Raises:
        InputError: names the row.
    """
    points = {part.point.id: part.point for task in tasks for part in task.parts}
    seeds: dict[str, list[int]] = {}
    for task in tasks:
        for part in task.parts:
            seeds.setdefault(part.point.id, []).extend(part.seeds)
    if engine != Engine():
        for rule in {point.rule for point in points.values()}:
            check_found_by_workers(rule)
    for own, point in points.items() if engine.is_local else ():
        try:
            scenario = point.scenario
            resolve_device(scenario.device, torch_dtype(scenario.dtype), scenario.fidelity)
            if scenario.fidelity == "training":
                # a prefix takes time and memory, and does not affect the split
                data = load_task(scenario.replace(cache_prefix=False)).train
                for seed in seeds[own]:
                    split_clients(scenario, data, seed)
        except InputError as error:
            row = next(row for row in grid.rows if row.point.id == own)
            raise InputError(f"row {described(row.values)}: {error}") from None


def _run(
    manifest: Manifest, missing: Sequence[SweepTask], make: Any, folder: Path, tell: Any
) -> SweepReport:
    """Run tasks; tasks of several parts that fail are repeated part by part."""
    names = {row.point.id: described(row.values) for row in manifest.grid.rows}
    made, failed, waiting = 0, dict[str, str](), list(missing)
    while waiting:
        by_id, again = {task.id: task for task in waiting}, list[SweepTask]()
        for outcome in _outcomes(make(waiting)):
            task = by_id[outcome.id]
            if outcome.error is None:
                made += 1
            elif len(task.parts) > 1:
                again.append(task)
            else:
                seeds = task.parts[0].seeds
                which = f"{names[task.parts[0].point.id]}, seeds {seeds[0]} to {seeds[-1]}"
                failed[which] = outcome.error
            tell(task, outcome)
        if again:
            manifest = manifest.split(again)
            manifest.write(folder)
        waiting = [part for task in again for part in task.split()]
    return SweepReport(folder, len(manifest.tasks), made, failed)


def _outcomes(made: Iterator[TaskResult]) -> Iterator[TaskResult]:
    with closing(made):  # type: ignore[type-var]  # every engine is a generator
        try:
            yield from made
        except BrokenProcessPool as error:
            reason = "workers are killed again and again, often for lack of memory: fewer may do"
            raise OSError(f"{reason} ({error})") from None


# Forecast: number of tasks, time by a short probe, and disk space

PROBE_SECONDS = 1.0


@dataclass(frozen=True)
class Forecast:
    """Forecast of the cost of a sweep.

    Args:
        rows, runs, tasks: numbers for the whole sweep.
        present: number of finished tasks.
        seconds: time of the missing tasks, one after another on this machine.
        nbytes: disk space of the missing tasks.
        free: free disk space in bytes.
    """

    rows: int
    runs: int
    tasks: int
    present: int
    seconds: float
    nbytes: int
    free: int


def forecast(
    grid: str | Path | Mapping[str, Any] | Grid,
    out: str | Path,
    *,
    task_seconds: float = TASK_SECONDS,
    mix_code: bool = False,
    engine: Engine | None = None,
) -> Forecast:
    """Return what `run_sweep` with these arguments would do, without writing anything.

    Raises:
        InputError: in the same cases as `run_sweep`.
    """
    checked = grid if isinstance(grid, Grid) else read_grid(grid)
    folder = Path(out).expanduser().absolute()
    tasks = updated_manifest(folder, checked, task_seconds, mix_code).tasks
    missing = [task for task in tasks if not is_valid(folder, task)]
    chosen = Engine() if engine is None else engine
    check_tasks(missing, checked, chosen)
    alike: dict[str, list[SweepTask]] = {}
    for task in missing:
        alike.setdefault(task.parts[0].point.scenario.fidelity, []).append(task)
    where = next(path for path in (folder, *folder.parents) if path.exists())
    return Forecast(
        rows=len(checked.rows),
        runs=sum(task.runs for task in tasks),
        tasks=len(tasks),
        present=len(tasks) - len(missing),
        # models and data may be missing on this machine
        seconds=sum(
            sum(task.seconds for task in own)
            * (probe(own) if chosen.is_local or fidelity != "training" else 1.0)
            for fidelity, own in alike.items()
        ),
        nbytes=sum(task.nbytes for task in missing),
        free=shutil.disk_usage(where).free,
    )


def probe(tasks: Sequence[SweepTask]) -> float:
    """Return the measured seconds per estimated second of a small part of the median task.

    Args:
        tasks: tasks of one fidelity. For fine-tuning the probe runs the first rounds and excludes
            the setup.
    """
    task = sorted(tasks, key=lambda task: task.seconds)[len(tasks) // 2]
    first = task.parts[0]
    if first.point.scenario.fidelity == "training":
        few, more = (
            Part(Point(first.point.scenario.replace(rounds=n), first.point.rule), first.seeds)
            for n in (1, 3)
        )
        return (_time(more) - _time(few)) / (more.seconds - few.seconds)
    share = min(1.0, PROBE_SECONDS / task.seconds)
    parts = [Part(part.point, part.seeds[: ceil(share * len(part.seeds))]) for part in task.parts]
    _time(*parts)  # warm up
    return _time(*parts) / sum(part.seconds for part in parts)


def _time(*parts: Part) -> float:
    with one_thread(), blas_threads(1):
        started = time.perf_counter()
        task_dataset(SweepTask(parts))
        return time.perf_counter() - started
