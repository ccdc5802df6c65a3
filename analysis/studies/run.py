"""Run a study as a sweep, and score its runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from analysis.studies.calibrate import by_partition
from analysis.studies.forecast import failures, predict_every_rule, score, summarize
from analysis.studies.study import MIXED, Study, StudyRun
from fedlora_sim.errors import InputError, expected
from fedlora_sim.runtime import in_processes, one_thread
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
