"""The runs of a study on disk: one file each, made several at a time, resumed round by round."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from joblib import Parallel, delayed

from analysis.real.study import Study, StudyRun
from fedlora_sim import simulate
from fedlora_sim.datasets import load_dataset, save_dataset
from fedlora_sim.errors import expected

RUNS, ROUNDS = "runs", "rounds"


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
        on_progress: called with every run that is there.
    """
    missing = []
    for run in study.runs():
        if kept_run(run, out) is None:
            missing.append(run)
        else:
            on_progress(run)
    made = Parallel(n_jobs=workers, return_as="generator_unordered")(
        delayed(_make)(run, out) for run in missing
    )
    for run in made:
        on_progress(run)


def kept_run(run: StudyRun, out: Path) -> xr.Dataset | None:
    """A run that is on disk, or None.

    Raises:
        InputError: if the file is of another run, naming what differs.
    """
    path = _file(run, out)
    if not path.exists():
        return None
    dataset = load_dataset(path)
    wanted = {**run.scenario.to_attrs(), "rule": run.rule}
    for name, value in wanted.items():
        found = dataset.attrs.get(name)
        if not np.array_equal(np.asarray(found), np.asarray(value)):
            raise expected(name, value, f"{found!r}, as in {path} (or another folder)")
    return dataset


def load_runs(study: Study, out: Path) -> dict[str, xr.Dataset]:
    """All runs of a study by label.

    Raises:
        InputError: if one has not been made.
    """
    found = {}
    for run in study.runs():
        dataset = kept_run(run, out)
        if dataset is None:
            raise expected("out", str(out), f"all runs of the study; {run.label} is missing")
        found[run.label] = dataset
    return found


def missing_runs(study: Study, out: Path) -> Sequence[StudyRun]:
    """Runs that are not on disk."""
    return [run for run in study.runs() if not _file(run, out).exists()]


def _make(run: StudyRun, out: Path) -> StudyRun:
    rounds = out / ROUNDS / run.label
    dataset = simulate(run.scenario, rule=run.rule, seed=run.seed, checkpoints=rounds)
    save_dataset(dataset, _file(run, out))
    shutil.rmtree(rounds, ignore_errors=True)
    return run


def _file(run: StudyRun, out: Path) -> Path:
    return out / RUNS / f"{run.label}.nc"
