"""The report on a study: JSON-able, and free of the paths of the machine that made it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analysis.real.comparison import (
    DIFFERENCE,
    SIZE,
    TABLE_ERROR,
    finals,
    replicate_means,
    summary,
    with_interval,
)
from analysis.real.counterfactuals import accuracy_gain, coverage_shares, relative_to_rule
from analysis.real.paper_claims import claims_left_out, judge_claims
from analysis.real.premise import premise_rows
from analysis.real.study import MIXED, PATHS, Study
from analysis.real.study_runs import CODE
from analysis.real.study_scores import (
    Scores,
    calibration_rounds,
    interval_confidence,
    score_rows,
    why_no_scores,
)
from analysis.verify import LIBRARIES, finite_or_none
from fedlora_sim import Scenario
from fedlora_sim.version import versions

REFERENCE, AVERAGE = "raflora", "fedavg"


def study_report(
    study: Study, runs: Mapping[str, xr.Dataset], scores: Scores, command: str = ""
) -> dict[str, Any]:
    """Everything that a study says.

    Args:
        study: what was compared.
        runs: its datasets by label.
        scores: as `study_scores.score_runs` returns them.
        command: what repeats it.

    Returns:
        `study`, its fields; `finals`, how every run ended; `rows` of the comparison; `claims` and
        those `left_out`, which follow from the finals alone; `scores` of the calibrated theory;
        `counterfactuals`; `premise`; `environment`; None for what is not finite.
    """
    table = finals(study, runs)
    report = {
        "study": study_fields(study),
        "command": command,
        "finals": table.to_dict("records"),
        "rows": summary(study, table),
        "confidence": 1 - TABLE_ERROR,
        "claims": judge_claims(study, table),
        "left_out": claims_left_out(study, table),
        "scores": {
            "calibration_rounds": calibration_rounds(study),
            "confidence": interval_confidence(scores),
            "reason": why_no_scores(study),
            "rows": score_rows(scores),
        },
        "counterfactuals": counterfactual_rows(study, runs),
        "premise": premise_rows(study, runs),
        "environment": environment(study, runs),
    }
    return dict(finite_or_none(report))


def study_fields(study: Study) -> dict[str, Any]:
    """A study's own fields, and those of its scenario that are not the usual ones."""
    scenario = study.scenario
    usual = asdict(Scenario(scenario.ranks, fidelity="training"))
    own = {n: v for n, v in asdict(scenario).items() if n not in ("ranks", "rounds")}
    told = {name: value for name, value in own.items() if value != usual[name]}
    told |= {name: last_part(told[name]) for name in PATHS if name in told}
    return {
        "name": study.name,
        "about": study.about,
        "complete": study.complete,
        "runs": len(study.runs()),
        "rounds": scenario.rounds,
        "ranks": list(scenario.ranks),
        "levels": list(scenario.federation.levels),
        "rules": list(study.rules),
        "heterogeneity": {name: dict(own) for name, own in study.heterogeneity.items()},
        "seeds": {name: list(own) for name, own in study.seeds.items()},
        "target_accuracy": study.target_accuracy,
        "rank_configurations": dict(study.rank_configurations),
        "compared_rules": list(study.compared_rules),
        "scenario": told,
    }


def last_part(place: str) -> str:
    """The last part of a path of this machine; the name of a data set or a model as it is."""
    path = Path(place).expanduser()
    return path.name if path.is_absolute() or path.exists() else place


def counterfactual_rows(study: Study, runs: Mapping[str, xr.Dataset]) -> list[dict[str, Any]]:
    """What other rules would have made of the same cohorts, against raFLoRA.

    Args:
        study: what was compared.
        runs: its datasets by label.

    Returns:
        One mapping per rule that `ran` and rule `compared`: `runs`; `partitions`, the `energy` of
        each over raFLoRA's, and for FedAvg what is `foretold` of it, `W_h(S)^2`, see
        `coverage_shares`; `accuracy_gain` above raFLoRA's: means over rounds, then over runs, with
        an interval over replicates of the study.
    """
    rows = []
    for ran in study.rules:
        if ran not in study.counterfactual_rules:
            continue
        own = {
            (run.heterogeneity, run.seed): runs[run.label]
            for run in study.runs()
            if (run.rule, run.configuration) == (ran, MIXED)
        }
        own = {key: run for key, run in own.items() if REFERENCE in run.compared_rule}
        if own:
            rows += _compared(study, ran, own)
    return rows


def _compared(
    study: Study, ran: str, by_seed: Mapping[tuple[str, int], xr.Dataset]
) -> list[dict[str, Any]]:
    together = xr.concat([_one_step(run) for run in by_seed.values()], "run")
    index = pd.MultiIndex.from_tuples(by_seed)

    def replicates(values: xr.DataArray) -> np.ndarray:
        return replicate_means(study, pd.Series(values.values, index))

    rows = []
    for compared in together.compared_rule.values.tolist():
        if compared == REFERENCE:
            continue
        own = together.sel(compared_rule=compared)
        row: dict[str, Any] = {"ran": ran, "compared": compared, "runs": len(by_seed)}
        row["partitions"] = []
        for h in own.partition.values.tolist():
            part = own.sel(partition=h)
            told = {"foretold": float(part.foretold.mean())} if compared == AVERAGE else {}
            energy = with_interval("energy", replicates(part.energy), SIZE)
            row["partitions"].append({"partition": h, **energy, **told})
        gain = with_interval("accuracy_gain", replicates(own.accuracy_gain), DIFFERENCE)
        rows.append(row | gain)
    return rows


def _one_step(run: xr.Dataset) -> xr.Dataset:
    """Means over the rounds of a run; what is foretold of those in which it can be compared."""
    energy = relative_to_rule(run, REFERENCE)
    told = (coverage_shares(run) ** 2).where(energy.notnull())
    found = {"energy": energy, "foretold": told, "accuracy_gain": accuracy_gain(run, REFERENCE)}
    return xr.Dataset(found).mean("round").isel(seed=0, drop=True)


def environment(study: Study, runs: Mapping[str, xr.Dataset]) -> dict[str, Any]:
    """What the runs were made with, and what they were looked at with."""
    names = (*versions(), CODE)
    made_with = {", ".join(f"{n} {run.attrs.get(n)}" for n in names) for run in runs.values()}
    return {
        "runs_made_with": "; ".join(sorted(made_with)).replace("_version", ""),
        **versions(),
        **{f"{name}_version": version(name) for name in LIBRARIES},
        "python_version": platform.python_version(),
        "platform": platform.platform(),
        "threads": study.scenario.threads,
        "device": study.scenario.device,
    }
