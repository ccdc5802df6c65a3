"""Every run of a study in one tidy table, and what its seeds say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike

from analysis.closed_form import RULES, communication
from analysis.real.study import MIXED, Study, StudyRun
from analysis.stats.intervals import Array, mean_interval
from fedlora_sim.metrics import energy_ratio

BYTES = 4
"""Of a number as it is sent: single precision."""

TABLE_ERROR = 0.05
"""Each interval of the tables stands for itself; verdicts have theirs, see `paper_claims`."""

Range = tuple[float, float]
SHARE: Range = (0.0, 1.0)
SIZE: Range = (0.0, np.inf)
DIFFERENCE: Range = (-1.0, 1.0)  # of two shares

QUANTITIES: dict[str, Range] = {
    "untrained": SHARE,
    "accuracy": SHARE,
    "rho": SHARE,
    "effective_rank": (1.0, np.inf),
    "preservation": SHARE,
    "megabytes": SIZE,
}
"""What the tables show of a run, and between which ends it lies."""


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
        "preservation": float(one.preservation.mean()),
        "megabytes": _megabytes(run, one),
    }


def _megabytes(run: StudyRun, one: xr.Dataset) -> float:
    """Expected traffic of all rounds, in 10**6 bytes; NaN of a rule that has no closed form."""
    name, scenario = run.rule.partition(":")[0], run.scenario
    if name not in RULES:
        return float("nan")
    shapes = Counter(zip(one.d_out.values.tolist(), one.d_in.values.tolist(), strict=True))
    numbers = sum(
        communication(
            name,
            scenario.ranks,
            d_in,
            d_out,
            layers=layers,
            cohort_size=scenario.cohort_size,
            sampling=scenario.sampling,
            allocation=scenario.allocation,
        ).total
        for (d_out, d_in), layers in shapes.items()
    )
    return scenario.rounds * numbers * BYTES / 1e6


def summary(study: Study, table: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per heterogeneity, configuration and rule.

    Args:
        study: what was compared.
        table: as `finals` returns it.

    Returns:
        Every quantity's mean over the seeds with its interval, see `with_interval`; the rounds to
        the target as the median of the runs that reached it, and how many did.
    """
    keys = ["heterogeneity", "configuration", "rule"]
    return [
        dict(zip(keys, key, strict=True)) | _summarised(study, own)
        for key, own in table.groupby(keys, sort=False)
    ]


def _summarised(study: Study, own: pd.DataFrame) -> dict[str, Any]:
    row: dict[str, Any] = {"runs": len(own)}
    for name, within in QUANTITIES.items():
        row |= with_interval(name, own[name].to_numpy(dtype=np.float64), within)
    reached = own["rounds_to_target"].dropna()
    row["reached_target"] = len(reached)
    row["rounds_to_target"] = float(reached.median()) if len(reached) else None
    return row


def with_interval(name: str, samples: ArrayLike, within: Range) -> dict[str, Any]:
    """A mean over runs, and its Student interval, for a row of a table.

    The interval is cut to the ends that the quantity cannot pass, which costs it no coverage. It is
    not `log_odds_interval`, which is one of the typical share, need not hold the mean that stands
    beside it, and goes by rounding where a run has exactly 0 or 1, as rho of equal lowest ranks.

    Args:
        name: of the quantity.
        samples: once per run, (n,); NaN where a run has none.
        within: the least and the most that the quantity can be.

    Returns:
        `name` and `{name}_interval`; None where there is no run, of one run no interval.
    """
    known = np.asarray(samples, dtype=np.float64)
    known = known[~np.isnan(known)]
    row: dict[str, Any] = {name: None, f"{name}_interval": None}
    if len(known):
        row[name] = float(known.mean())
    if len(known) > 1:
        m = mean_interval(known[:, None], TABLE_ERROR)
        row[f"{name}_interval"] = [
            max(float(m.low[0]), within[0]),
            min(float(m.high[0]), within[1]),
        ]
    return row


def replicate_means(study: Study, samples: pd.Series) -> Array:
    """Return the mean of every replicate of a study over its heterogeneities.

    Replicates are independent and follow one law, whatever heterogeneities differ in or share: the
    unit of every interval over more than one heterogeneity.

    Args:
        study: what was compared.
        samples: a quantity once per run, indexed by (heterogeneity, seed).

    Returns:
        One mean per replicate, (n,), in the order of the seeds. A replicate in which a
        heterogeneity is missing or NaN is left out: its mean would be one of other heterogeneities.
    """
    known = samples.dropna()
    names = known.index.get_level_values(0)
    numbers = [study.replicate(name, seed) for name, seed in known.index]
    grouped = known.groupby(np.array(numbers, dtype=np.int64))
    complete = grouped.size() == names.nunique()
    return grouped.mean()[complete].to_numpy(dtype=np.float64)


def curves(study: Study, runs: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Trajectories of the mixed ranks, dimensions (heterogeneity, rule, run, round).

    Args:
        study: what was compared.
        runs: its datasets by label.

    Returns:
        `accuracy`, NaN in rounds that were not judged, `rho`, `effective_rank`, `preservation`
        (mean over layers); runs of one heterogeneity meet the same seeds under all rules.
    """
    mixed = [run for run in study.runs() if run.configuration == MIXED]
    parts = []
    for name in study.heterogeneity:
        by_rule = []
        for rule in study.rules:
            own = [runs[r.label] for r in mixed if (r.heterogeneity, r.rule) == (name, rule)]
            kept = [_curve(dataset).assign_coords(run=i) for i, dataset in enumerate(own)]
            by_rule.append(xr.concat(kept, "run"))
        parts.append(xr.concat(by_rule, "rule").assign_coords(rule=list(study.rules)))
    names = list(study.heterogeneity)
    return xr.concat(parts, "heterogeneity").assign_coords(heterogeneity=names)


def _curve(dataset: xr.Dataset) -> xr.Dataset:
    one = dataset.isel(seed=0, drop=True)
    found = one[["accuracy", "rho", "effective_rank"]].assign(
        preservation=one.preservation.mean("layer")
    )
    return found.drop_attrs()
