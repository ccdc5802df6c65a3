"""The calibrated theory on a study's runs: what its first rounds foretell of the later ones.

Every run of the mixed ranks is foretold twice: calibrated on its own first rounds, and on those of
the FedAvg run of its heterogeneity and seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import xarray as xr
from joblib import Parallel, delayed

from analysis.real.failures import failures, summarise
from analysis.real.scoring import predict_every_rule, score
from analysis.real.study import MIXED, Study
from analysis.real.updates import by_partition
from fedlora_sim.runtime import one_thread

OWN, CALIBRATING = "own", "fedavg"
FIRST_UPDATE = 2  # the first round starts from nothing and tells nothing of gains
SHOWN = ("fedavg", "raflora")
SAMPLES = 200

Scores = Mapping[str, Mapping[str, xr.Dataset]]


def calibration_rounds(study: Study) -> int:
    """Rounds that calibrate: a third of all."""
    return max(FIRST_UPDATE, study.scenario.rounds // 3)


def why_no_scores(study: Study) -> str:
    """Why the runs of a study cannot be foretold; empty where they can."""
    if study.scenario.rounds <= calibration_rounds(study):
        return f"{study.scenario.rounds} rounds leave none to foretell"
    if study.scenario.allocation != "svd":
        return f"it is not recorded who holds what under {study.scenario.allocation} allocation"
    return ""


def score_runs(
    study: Study,
    runs: Mapping[str, xr.Dataset],
    workers: int = 1,
    on_progress: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, xr.Dataset]]:
    """Score every run of the mixed ranks under both calibrations.

    Args:
        study: what was compared.
        runs: its datasets by label.
        workers: processes.
        on_progress: called after every seed.

    Returns:
        Calibration (`own`, `fedavg`) -> rule -> what `score` returns of all seeds and
        heterogeneities together, dimension `seed`; empty where nothing can be foretold.
    """
    if why_no_scores(study):
        return {}
    by_seed: dict[int, dict[str, xr.Dataset]] = {}
    for run in study.runs():
        if run.configuration == MIXED:
            by_seed.setdefault(run.seed, {})[run.rule] = runs[run.label]
    first, found = calibration_rounds(study), []
    for scores in Parallel(n_jobs=workers, return_as="generator")(
        delayed(_score_seed)(own, first) for own in by_seed.values()
    ):
        found.append(scores)
        on_progress()
    return {
        calibration: {
            rule: xr.concat([s[calibration][rule] for s in found], "seed", combine_attrs="override")
            for rule in rules
        }
        for calibration, rules in found[0].items()
    }


def _score_seed(runs: Mapping[str, xr.Dataset], first: int) -> dict[str, dict[str, xr.Dataset]]:
    with one_thread():  # tensors are small, and the other cores have seeds of their own
        own = {rule: score(run, first, samples=SAMPLES) for rule, run in runs.items()}
        if CALIBRATING not in runs:
            return {OWN: own}
        given = predict_every_rule(runs[CALIBRATING], runs, first, samples=SAMPLES)
        return {OWN: own, CALIBRATING: given}


def score_rows(scores: Scores) -> list[dict[str, Any]]:
    """Every rule and calibration in a few numbers.

    Args:
        scores: as `score_runs` returns them.

    Returns:
        One mapping each: `rule`, `calibration`, and what `summarise` says of all its runs.
    """
    return [
        {"rule": rule, "calibration": calibration, **summarise(of_rule)}
        for calibration, rules in scores.items()
        for rule, of_rule in rules.items()
    ]


def interval_confidence(scores: Scores) -> float | None:
    """Of the forecasts' intervals, each for itself; None where nothing was foretold."""
    of_rules = (of_rule for rules in scores.values() for of_rule in rules.values())
    return next((float(of_rule.attrs["confidence"]) for of_rule in of_rules), None)


def pooled(scores: Scores) -> xr.Dataset:
    """`failures` of every calibration and rule, (calibration, rule, forecast, ...)."""
    tables = [
        xr.concat([failures(s).drop_attrs() for s in rules.values()], "rule").assign_coords(
            rule=list(rules)
        )
        for rules in scores.values()
    ]
    return xr.concat(tables, "calibration").assign_coords(calibration=list(scores))


def forecasts(study: Study, runs: Mapping[str, xr.Dataset], scores: Scores) -> xr.Dataset | None:
    """What was measured and foretold of FedAvg and raFLoRA, calibrated on themselves.

    Args:
        study: what was compared.
        runs: its datasets by label.
        scores: as `score_runs` returns them.

    Returns:
        `measured` (rule, seed, partition, round) and `predicted` (rule, seed, partition, round,
        statistic), layers together, of the study's middle heterogeneity; None where neither rule
        was scored.
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
