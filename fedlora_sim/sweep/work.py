"""Run one task and store it, in this process or in worker processes."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from threadpoolctl import threadpool_limits

from fedlora_sim import runtime
from fedlora_sim.errors import expected
from fedlora_sim.finetune.checkpoints import OtherRunError, drop_other_run
from fedlora_sim.runtime import blas_threads, one_thread, resolve_device, torch_dtype
from fedlora_sim.scenario import Scenario
from fedlora_sim.simulate import simulate, simulate_many
from fedlora_sim.sweep.grid import SEED, labels
from fedlora_sim.sweep.plan import Part, SweepTask
from fedlora_sim.sweep.store import MANIFEST, POINT, ROUNDS, RUN, is_valid, put_task, versions_of


@dataclass(frozen=True)
class TaskResult:
    """Result of a task.

    Args:
        id: id of the task.
        seconds: duration.
        error: why it failed; None if it is stored.
    """

    id: str
    seconds: float
    error: str | None = None


def do_task(task: SweepTask, folder: Path, versions: dict[str, str]) -> TaskResult:
    """Run a task on one thread and store its result.

    Args:
        task: the task.
        folder: folder of the sweep, which this process must see.
        versions: code versions of the driver, which must equal those of this process.

    Returns:
        The outcome; an error of the run itself is reported, not raised.

    Raises:
        InputError: if this process has other code, or does not see the folder.
        OSError: if the file cannot be written.
    """
    started, own = time.perf_counter(), versions_of([task])
    where = f"the worker on {socket.gethostname()}"
    for name, value in own.items():
        if versions.get(name) != value:
            raise expected(name, value, f"{versions.get(name)!r} for {where}, as the driver has")
    if not (folder / MANIFEST).exists():
        raise expected("out", str(folder), f"a folder on a file system that {where} sees too")
    rounds = folder / ROUNDS / own["code"] / task.id
    try:
        with one_thread(), blas_threads(1):
            try:
                dataset = task_dataset(task, rounds)
            except OtherRunError as error:  # started on a machine where the model has other bits
                drop_other_run(rounds, error)
                dataset = task_dataset(task, rounds)
    except Exception as error:  # an error of a rule or a model must not end the sweep
        if is_valid(folder, task):  # a worker of a killed driver was faster
            return TaskResult(task.id, time.perf_counter() - started)
        told = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        return TaskResult(task.id, time.perf_counter() - started, told)
    put_task(folder, task, dataset.assign_attrs({"code": own["code"]}))
    shutil.rmtree(rounds, ignore_errors=True)
    return TaskResult(task.id, time.perf_counter() - started)


def task_dataset(task: SweepTask, rounds: Path | None = None) -> xr.Dataset:
    """Return the runs of a task along `run`, labeled by seed and by what varies.

    Args:
        task: the task.
        rounds: where fine-tuning stores its rounds until it is done.
    """
    point, seeds = task.parts[0].point, task.parts[0].seeds
    if point.scenario.fidelity == "training":
        made = [simulate(point.scenario, rule=point.rule, seed=seeds, checkpoints=rounds)]
    else:
        made = _many(task.parts)
    used = {_device_of(part.point.scenario) for part in task.parts}
    return _side_by_side(task.parts, made).assign_attrs({"devices_used": ",".join(sorted(used))})


def _device_of(scenario: Scenario) -> str:
    dtype = torch_dtype(scenario.dtype)
    return str(resolve_device(scenario.device, dtype, scenario.fidelity).type)


@cache
def use_one_thread() -> None:
    """Limit this process to one thread permanently.

    Contexts that restore the number would interfere in threads of one worker.
    """
    torch.set_num_threads(1)
    threadpool_limits(1)


def _many(parts: Sequence[Part]) -> list[xr.Dataset]:
    """Return the datasets of the parts; parts of one rule with equal seeds advance together."""
    together: dict[tuple[Any, ...], list[int]] = {}
    for index, part in enumerate(parts):
        together.setdefault((part.point.rule, part.seeds), []).append(index)
    made: dict[int, xr.Dataset] = {}
    for (rule, seeds), indices in together.items():
        scenarios = [parts[index].point.scenario for index in indices]
        made |= zip(indices, simulate_many(scenarios, rule=rule, seed=seeds), strict=True)
    return [made[index] for index in range(len(parts))]


def _side_by_side(parts: Sequence[Part], made: Sequence[xr.Dataset]) -> xr.Dataset:
    """Return the datasets of several points along one dimension, with their common attributes."""
    first, runs = made[0], [len(part.seeds) for part in parts]
    variables: dict[str, Any] = {}
    for name, variable in first.variables.items():
        if SEED in variable.dims:
            axis = variable.dims.index(SEED)
            values = np.concatenate([one[name].values for one in made], axis)
            dims = tuple(RUN if dim == SEED else dim for dim in variable.dims)
            variables[str(name)] = (dims, values, variable.attrs)
        elif all(variable.identical(one.variables[name]) for one in made[1:]):
            variables[str(name)] = variable
    differing = [name for name in first.attrs if any(_differs(first, x, name) for x in made[1:])]
    for name in differing:
        column = [one.attrs[name] for one in made]
        variables[str(name)] = ((RUN,), np.repeat(labels(str(name), column), runs))
    variables[POINT] = ((RUN,), np.repeat([part.point.id for part in parts], runs))
    dataset = xr.Dataset(variables).set_coords([SEED, POINT, *map(str, differing)])
    coords = [str(name) for name in first.coords if str(name) in dataset.variables]
    attrs = {name: value for name, value in first.attrs.items() if name not in differing}
    return dataset.set_coords(coords).assign_attrs(attrs)


def _differs(one: xr.Dataset, other: xr.Dataset, name: str) -> bool:
    return str(one.attrs[name]) != str(other.attrs[name])


# Execution in this process or in local processes

MOST_BREAKS = 3
"""Maximum number of successive kills of workers without a finished task."""


def in_this_process(tasks: Sequence[SweepTask], folder: Path) -> Iterator[TaskResult]:
    """Run tasks one after another."""
    for task in tasks:
        yield do_task(task, folder, versions_of([task]))


def in_processes(tasks: Sequence[SweepTask], folder: Path, workers: int) -> Iterator[TaskResult]:
    """Run tasks in parallel; killed workers are replaced, and their tasks repeated.

    Args:
        tasks: the tasks to run.
        folder: folder of the sweep.
        workers: number of processes.

    Returns:
        Outcomes in order of completion; closing the iterator stops the workers.

    Raises:
        BrokenProcessPool: if workers are killed repeatedly without finishing a task.
    """
    left, breaks = {task.id: task for task in tasks}, 0
    versions = versions_of(tasks)
    while left:
        jobs = [(task, folder, versions) for task in left.values()]
        made = runtime.in_processes(_do, jobs, workers)
        try:
            for outcome in made:
                del left[outcome.id]
                breaks = 0
                yield outcome
        except BrokenProcessPool:
            breaks += 1
            if breaks == MOST_BREAKS:
                raise
        finally:
            made.close()  # returns after the workers have ended


def _do(task: SweepTask, folder: Path, versions: dict[str, str]) -> TaskResult:
    use_one_thread()
    return do_task(task, folder, versions)
