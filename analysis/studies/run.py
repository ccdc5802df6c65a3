"""Run a study: one file per run, made in parallel, resumed round by round; and score its runs."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import fedlora_sim
from analysis.studies.calibrate import by_partition
from analysis.studies.forecast import failures, predict_every_rule, score, summarize
from analysis.studies.study import MIXED, Study, StudyRun
from fedlora_sim import Scenario, simulate
from fedlora_sim.errors import InputError, expected
from fedlora_sim.finetune.batches import split_clients
from fedlora_sim.finetune.checkpoints import OtherRunError, drop_other_run
from fedlora_sim.runtime import in_processes, one_thread
from fedlora_sim.storage import load_dataset, save_dataset, source_fingerprint
from fedlora_sim.tasks.loading import load_task

RUNS, ROUNDS = "runs", "rounds"
CODE = "code"
"""Attribute of a run: hash of the simulator's sources that made it."""


def run_study(
    study: Study,
    out: Path,
    workers: int = 1,
    on_progress: Callable[[StudyRun], object] = lambda run: None,
) -> None:
    """Make the missing runs.

    The bits of a run do not depend on the order or the process. A stopped study continues from the
    last finished round of each run.

    Args:
        study: the study.
        out: folder of the results.
        workers: number of runs in parallel, each in its own process.
        on_progress: called with each finished run.

    Raises:
        InputError: names the run and what is wrong with it.
    """
    code = source_fingerprint(Path(fedlora_sim.__file__).parent)[:12]
    jobs = [(run, out, code) for run in missing_runs(study, out)]
    for run in in_processes(_make, jobs, workers):
        on_progress(run)
    _drop_rounds(study, out)


def check_data(runs: Sequence[StudyRun]) -> None:
    """Load the task and split it as every run will, so that errors occur before the first run.

    Raises:
        InputError: names the run and what is wrong with it.
    """
    for run in runs:
        # a prefix takes time and memory, and does not affect the split
        scenario = run.scenario.replace(cache_prefix=False)
        try:
            split_clients(scenario, load_task(scenario).train, run.seed)
        except InputError as error:
            raise _named(run, error) from None


def missing_runs(study: Study, out: Path) -> list[StudyRun]:
    """Return the runs without a file.

    Raises:
        InputError: if a file is of another run; names the difference.
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
    """Return all runs of a study by label.

    Raises:
        InputError: if one is missing, or if a file is of another run.
    """
    missing = missing_runs(study, out)
    if missing:
        wanted = f"all runs of the study; {len(missing)} are missing, {missing[0].label} first"
        raise expected("out", str(out), wanted)
    return {run.label: load_dataset(_file(run, out)) for run in study.runs()}


def _check_same(run: StudyRun, dataset: xr.Dataset, path: Path) -> None:
    usual = Scenario(run.scenario.ranks, fidelity="training").to_attrs()
    for name, value in {**run.scenario.to_attrs(), "rule": run.rule}.items():
        # files from before this field existed correspond to its default
        found = dataset.attrs.get(name, usual.get(name))
        # netCDF stores a list of one item as a number
        if np.atleast_1d(np.asarray(found)).tolist() != np.atleast_1d(np.asarray(value)).tolist():
            raise expected(name, value, f"{found!r}, as in {path} (or another folder)")


def _make(run: StudyRun, out: Path, code: str) -> StudyRun:
    """Make one run, or continue it if the same code started it."""
    rounds = out / ROUNDS / code / run.label
    make = partial(simulate, run.scenario, rule=run.rule, seed=run.seed, checkpoints=rounds)
    try:
        try:
            dataset = make()
        except OtherRunError as error:  # started on a machine where the model has other bits
            drop_other_run(rounds, error)
            dataset = make()
    except InputError as error:
        raise _named(run, error) from None
    save_dataset(dataset.assign_attrs({CODE: code}), _file(run, out))
    shutil.rmtree(rounds, ignore_errors=True)
    return run


def _drop_rounds(study: Study, out: Path) -> None:
    """Remove stored rounds of finished runs, which other code or a killed process left."""
    for run in study.runs():
        for rounds in (out / ROUNDS).glob(f"*/{run.label}"):
            shutil.rmtree(rounds, ignore_errors=True)
    for folder in (*(out / ROUNDS).glob("*"), out / ROUNDS):
        with contextlib.suppress(OSError):  # runs of another part are stored there
            folder.rmdir()


def _named(run: StudyRun, error: InputError) -> InputError:
    return InputError(f"{run.label}: {error}")


def _file(run: StudyRun, out: Path) -> Path:
    return out / RUNS / f"{run.label}.nc"


# The calibrated theory on a study's runs: forecasts of its later rounds from the first ones.
#
# Every run of the mixed ranks is predicted twice: calibrated on its own first rounds, and on those
# of the FedAvg run of its heterogeneity and seed.

OWN, CALIBRATING = "own", "fedavg"
FIRST_UPDATE = 2  # the first round starts from zero and shows no gains
SHOWN = ("fedavg", "raflora")
SAMPLES = 200

Scores = Mapping[str, Mapping[str, xr.Dataset]]


def calibration_rounds(study: Study) -> int:
    """Return the number of rounds that calibrate: a third of all."""
    return max(FIRST_UPDATE, study.scenario.rounds // 3)


def why_no_scores(study: Study) -> str:
    """Return why the runs of a study cannot be forecast; empty if they can."""
    if study.scenario.rounds <= calibration_rounds(study):
        return f"{study.scenario.rounds} rounds leave none to forecast"
    if study.scenario.allocation != "svd":
        return f"it is not recorded who holds what under {study.scenario.allocation} allocation"
    return ""


def score_runs(
    study: Study,
    runs: Mapping[str, xr.Dataset],
    workers: int = 1,
    on_progress: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, xr.Dataset]]:
    """Return the scores of all runs of the mixed ranks under both calibrations.

    Args:
        study: the study.
        runs: its datasets by label.
        workers: number of processes.
        on_progress: called after each seed.

    Returns:
        Calibration (`own`, `fedavg`) to rule to scores of all heterogeneities together, dimension
        `seed`; empty if nothing can be forecast.
    """
    if why_no_scores(study):
        return {}
    by_seed: dict[int, dict[str, xr.Dataset]] = {}
    for run in study.runs():
        if run.configuration == MIXED:
            by_seed.setdefault(run.seed, {})[run.rule] = runs[run.label]
    first, found = calibration_rounds(study), {}
    jobs = [(seed, own, first) for seed, own in by_seed.items()]
    for seed, scores in in_processes(_score_seed, jobs, workers):
        found[seed] = scores
        on_progress()
    parts = [found[seed] for seed in by_seed]
    return {
        calibration: {
            rule: xr.concat([s[calibration][rule] for s in parts], "seed", combine_attrs="override")
            for rule in rules
        }
        for calibration, rules in parts[0].items()
    }


def _score_seed(
    seed: int, runs: Mapping[str, xr.Dataset], first: int
) -> tuple[int, dict[str, dict[str, xr.Dataset]]]:
    with one_thread():  # tensors are small, and the other cores run other seeds
        own = {rule: score(run, first, samples=SAMPLES) for rule, run in runs.items()}
        if CALIBRATING not in runs:
            return seed, {OWN: own}
        given = predict_every_rule(runs[CALIBRATING], runs, first, samples=SAMPLES)
        return seed, {OWN: own, CALIBRATING: given}


def score_rows(scores: Scores) -> list[dict[str, Any]]:
    """Return a summary of each rule and calibration.

    Args:
        scores: result of `score_runs`.

    Returns:
        One mapping each: `rule`, `calibration`, and the result of `summarize` for all its runs.
    """
    return [
        {"rule": rule, "calibration": calibration, **summarize(of_rule)}
        for calibration, rules in scores.items()
        for rule, of_rule in rules.items()
    ]


def interval_confidence(scores: Scores) -> float | None:
    """Return the confidence of each single forecast interval; None if there is no forecast."""
    of_rules = (of_rule for rules in scores.values() for of_rule in rules.values())
    return next((float(of_rule.attrs["confidence"]) for of_rule in of_rules), None)


def pooled(scores: Scores) -> xr.Dataset:
    """Return `failures` of each calibration and rule, (calibration, rule, forecast, ...)."""
    tables = [
        xr.concat([failures(s).drop_attrs() for s in rules.values()], "rule").assign_coords(
            rule=list(rules)
        )
        for rules in scores.values()
    ]
    return xr.concat(tables, "calibration").assign_coords(calibration=list(scores))


def forecasts(study: Study, runs: Mapping[str, xr.Dataset], scores: Scores) -> xr.Dataset | None:
    """Return measured and predicted energies of FedAvg and raFLoRA, each calibrated on itself.

    Args:
        study: the study.
        runs: its datasets by label.
        scores: result of `score_runs`.

    Returns:
        `measured` (rule, seed, partition, round) and `predicted` (rule, seed, partition, round,
        statistic), layers together, of the study's middle heterogeneity; None if neither rule was
        scored.
    """
    rules = [rule for rule in SHOWN if rule in scores.get(OWN, {})]
    names = [*study.heterogeneity]
    name = names[(len(names) - 1) // 2]
    if not rules:
        return None
    found = []
    for rule in rules:
        own = [
            runs[run.label]
            for run in study.runs()
            if (run.heterogeneity, run.configuration, run.rule) == (name, MIXED, rule)
        ]
        measured = xr.concat([by_partition(run.layer_energy).sum("layer") for run in own], "seed")
        told = scores[OWN][rule].sel(seed=measured.seed, forecast="theory", drop=True)
        predicted = told.total_predicted.rename(horizon="round")
        later = predicted.assign_coords(round=predicted["round"] + calibration_rounds(study))
        found.append(xr.Dataset({"measured": measured, "predicted": later}))
    together = xr.concat(found, "rule").assign_coords(rule=rules)
    together = together.transpose("rule", "seed", "partition", "round", "statistic")
    attrs = scores[OWN][rules[0]].attrs
    return together.drop_attrs().assign_attrs(
        heterogeneity=name,
        calibration_rounds=calibration_rounds(study),
        confidence=attrs["confidence"],
    )
