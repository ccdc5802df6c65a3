"""Every run of a study in one tidy table, and what its seeds say together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analysis.closed_form import communication
from analysis.inference.intervals import mean_interval
from analysis.real.study import MIXED, Study, StudyRun
from fedlora_sim.metrics import energy_ratio

BYTES = 4
"""Of a number as it is sent: single precision."""

TABLE_ERROR = 0.05
"""Each interval of the table stands for itself; verdicts have theirs, see `paper_claims`."""

QUANTITIES = ("accuracy", "rho", "effective_rank", "preservation", "megabytes")


def finals(study: Study, runs: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """One row per run: what it was, and how it ended.

    Args:
        study: what was compared.
        runs: its datasets by label.

    Returns:
        Columns `heterogeneity, configuration, rule, seed`; `untrained` and `accuracy`, of the
        global model before and after all rounds; `rounds_to_target`, NaN where it was never judged
        that good; `rho` at the mixed federation's lowest level and `effective_rank` of the last
        update; `preservation`, mean over its layers and rounds; `megabytes` sent both ways by the
        adapters in single precision.
    """
    level = study.scenario.federation.levels[0]
    return pd.DataFrame([_final(study, run, runs[run.label], level) for run in study.runs()])


def _final(study: Study, run: StudyRun, dataset: xr.Dataset, level: int) -> dict[str, Any]:
    one = dataset.isel(seed=0)
    accuracy = one.accuracy.values
    reached = np.flatnonzero(accuracy >= study.target_accuracy)
    return {
        "heterogeneity": run.heterogeneity,
        "configuration": run.configuration,
        "rule": run.rule,
        "seed": run.seed,
        "untrained": float(accuracy[0]),
        "accuracy": float(accuracy[-1]),
        "rounds_to_target": float(reached[0]) if len(reached) else np.nan,
        "rho": float(energy_ratio(one.energy.values[-1], level)),
        "effective_rank": float(one.effective_rank.values[-1]),
        "preservation": float(np.nanmean(one.preservation.values)),
        "megabytes": _megabytes(run, one),
    }


def _megabytes(run: StudyRun, one: xr.Dataset) -> float:
    """Expected traffic of all rounds, in 10**6 bytes."""
    scenario = run.scenario
    numbers = sum(
        communication(
            run.rule.partition(":")[0],
            scenario.ranks,
            int(d_in),
            int(d_out),
            cohort_size=scenario.cohort_size,
            sampling=scenario.sampling,
            allocation=scenario.allocation,
        ).total
        for d_out, d_in in zip(one.d_out.values, one.d_in.values, strict=True)
    )
    return scenario.rounds * numbers * BYTES / 1e6


def summary(study: Study, table: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per heterogeneity, configuration and rule.

    Args:
        study: what was compared.
        table: as `finals` returns it.

    Returns:
        Every quantity's mean over the seeds with a Student interval (of one seed none); the rounds
        to the target as the median of the runs that reached it, and how many did.
    """
    keys = ["heterogeneity", "configuration", "rule"]
    return [
        dict(zip(keys, key, strict=True)) | _summarised(study, own)
        for key, own in table.groupby(keys, sort=False)
    ]


def _summarised(study: Study, own: pd.DataFrame) -> dict[str, Any]:
    row: dict[str, Any] = {"runs": len(own), "confidence": 1 - TABLE_ERROR}
    for name in QUANTITIES:
        values = own[name].to_numpy(dtype=np.float64)
        row[name], row[f"{name}_interval"] = float(values.mean()), None
        if len(values) > 1:
            m = mean_interval(values[:, None], TABLE_ERROR)
            row[f"{name}_interval"] = [float(m.low[0]), float(m.high[0])]
    reached = own["rounds_to_target"].dropna()
    row["target_accuracy"], row["reached_target"] = study.target_accuracy, len(reached)
    row["rounds_to_target"] = float(reached.median()) if len(reached) else None
    return row


def curves(study: Study, runs: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Trajectories of the mixed ranks, dimensions (heterogeneity, rule, run, round).

    Args:
        study: what was compared.
        runs: its datasets by label.

    Returns:
        `accuracy`, `rho`, `effective_rank`, `preservation` (mean over layers); runs of one
        heterogeneity meet the same seeds under all rules.
    """
    mixed = [run for run in study.runs() if run.configuration == MIXED]
    parts = []
    for name in study.heterogeneity:
        by_rule = []
        for rule in study.rules:
            own = [runs[r.label] for r in mixed if (r.heterogeneity, r.rule) == (name, rule)]
            kept = [_curve(dataset).assign_coords(run=i) for i, dataset in enumerate(own)]
            by_rule.append(xr.concat(kept, "run"))
        parts.append(xr.concat(by_rule, pd.Index(study.rules, name="rule")))
    return xr.concat(parts, pd.Index(list(study.heterogeneity), name="heterogeneity"))


def _curve(dataset: xr.Dataset) -> xr.Dataset:
    one = dataset.isel(seed=0, drop=True)
    found = one[["accuracy", "rho", "effective_rank"]].assign(
        preservation=one.preservation.mean("layer")
    )
    return found.drop_attrs()
