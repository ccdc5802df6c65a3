"""The runs of a study on disk: one file each, made several at a time, resumed round by round."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr
from joblib import Parallel, delayed

import fedlora_sim
from analysis.real.study import Study, StudyRun
from fedlora_sim import Scenario, simulate
from fedlora_sim.errors import InputError, expected
from fedlora_sim.finetune.batches import split_clients
from fedlora_sim.finetune.checkpoints import OtherRunError, drop_other_run
from fedlora_sim.runtime import serve
from fedlora_sim.storage import load_dataset, save_dataset, source_fingerprint
from fedlora_sim.tasks.loading import load_task

RUNS, ROUNDS = "runs", "rounds"
CODE = "code"
"""Attribute of a run: a hash of the simulator's sources that made it."""


def run_study(
    study: Study,
    out: Path,
    workers: int = 1,
    on_progress: Callable[[StudyRun], object] = lambda run: None,
) -> None:
    """Make the runs that are not there yet.

    A run has the same bits in whatever order and process it is made. What is stopped goes on from
    the last round that every run had finished.

    Args:
        study: what is compared.
        out: folder of the results.
        workers: runs at a time, each in a process of its own.
        on_progress: called with every run that was made.

    Raises:
        InputError: naming the run and what is wrong with it.
    """
    code, owner = source_fingerprint(Path(fedlora_sim.__file__).parent)[:12], os.getpid()
    made = Parallel(n_jobs=workers, return_as="generator_unordered")(
        delayed(_make)(run, out, code, owner) for run in missing_runs(study, out)
    )
    for run in made:
        on_progress(run)
    _drop_rounds(study, out)


def check_data(runs: Sequence[StudyRun]) -> None:
    """Load the task and split it as every run will, so that none is refused hours later.

    Raises:
        InputError: naming the run and what is wrong with it.
    """
    for run in runs:
        # a prefix takes time and memory, and says nothing of the split
        scenario = run.scenario.replace(cache_prefix=False)
        try:
            split_clients(scenario, load_task(scenario).train, run.seed)
        except InputError as error:
            raise _named(run, error) from None


def missing_runs(study: Study, out: Path) -> list[StudyRun]:
    """Runs that are not on disk.

    Raises:
        InputError: if a file is of another run, naming what differs.
    """
    missing = []
    for run in study.runs():
        path = _file(run, out)
        if not path.exists():
            missing.append(run)
            continue
        with xr.open_dataset(path, engine="h5netcdf") as dataset:
            _check_same(run, dataset, path)
    return missing


def load_runs(study: Study, out: Path) -> dict[str, xr.Dataset]:
    """All runs of a study by label.

    Raises:
        InputError: if one has not been made, or if a file is of another run.
    """
    missing = missing_runs(study, out)
    if missing:
        wanted = f"all runs of the study; {len(missing)} are missing, {missing[0].label} first"
        raise expected("out", str(out), wanted)
    return {run.label: load_dataset(_file(run, out)) for run in study.runs()}


def _check_same(run: StudyRun, dataset: xr.Dataset, path: Path) -> None:
    usual = Scenario(run.scenario.ranks, fidelity="training").to_attrs()
    for name, value in {**run.scenario.to_attrs(), "rule": run.rule}.items():
        # before there was such a field, runs were what its usual value makes them
        found = dataset.attrs.get(name, usual.get(name))
        # netCDF stores a list of one as a number
        if np.atleast_1d(np.asarray(found)).tolist() != np.atleast_1d(np.asarray(value)).tolist():
            raise expected(name, value, f"{found!r}, as in {path} (or another folder)")


def _make(run: StudyRun, out: Path, code: str, owner: int) -> StudyRun:
    """Make one run, or go on with it where the same code had left it."""
    serve(owner)
    rounds = out / ROUNDS / code / run.label
    make = partial(simulate, run.scenario, rule=run.rule, seed=run.seed, checkpoints=rounds)
    try:
        try:
            dataset = make()
        except OtherRunError as error:  # begun on a machine where the model has other bits
            drop_other_run(rounds, error)
            dataset = make()
    except InputError as error:
        raise _named(run, error) from None
    save_dataset(dataset.assign_attrs({CODE: code}), _file(run, out))
    shutil.rmtree(rounds, ignore_errors=True)
    return run


def _drop_rounds(study: Study, out: Path) -> None:
    """Rounds of runs that are made: those of other code, and of a run killed right after it."""
    for run in study.runs():
        for rounds in (out / ROUNDS).glob(f"*/{run.label}"):
            shutil.rmtree(rounds, ignore_errors=True)
    for folder in (*(out / ROUNDS).glob("*"), out / ROUNDS):
        with contextlib.suppress(OSError):  # runs of another part are kept there
            folder.rmdir()


def _named(run: StudyRun, error: InputError) -> InputError:
    return InputError(f"{run.label}: {error}")


def _file(run: StudyRun, out: Path) -> Path:
    return out / RUNS / f"{run.label}.nc"
