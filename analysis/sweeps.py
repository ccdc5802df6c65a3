"""A table of a sweep: one row per point of the grid, with means and intervals over its seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analysis.stats.intervals import Array, mean_interval, over_survivors
from analysis.stats.series import log_linear_rate
from fedlora_sim.errors import check_confidence, expected
from fedlora_sim.metrics import effective_rank, energy_ratio
from fedlora_sim.sweep import open_sweep

QUANTITIES = ("rho", "energy_left", "effective_rank", "rate")
INNER = ("seed", "round", "direction")


def summarize(sweep: xr.Dataset | str | Path, *, confidence: float = 0.95) -> pd.DataFrame:
    """Return means over seeds, with intervals, at each point of a sweep's grid.

    Args:
        sweep: the result of `open_sweep`, or a part of it; or the folder of a sweep.
        confidence: confidence of each single interval, in (0, 1).

    Returns:
        One row per point, with its fields, `runs` (number of finished seeds) and, each with the
        ends of its interval in `_low` and `_high` (NaN for a single run):

        `rho`: share of the energy in the first l_1 directions after the last round.
        `energy_left`: energy after the last round relative to the start.
        `effective_rank`: after the last round.
        `rate`: factor per round of the energy beyond the first l_1 directions, fitted to all
        rounds; NaN if there is no such energy.

    Raises:
        InputError: if there is no sweep in the folder, the dataset has no runs (as one of
            `keep="moments"`), or the confidence is out of range.
    """
    error = 1.0 - check_confidence("confidence", confidence)
    dataset = sweep if isinstance(sweep, xr.Dataset) else open_sweep(sweep)
    if "energy" not in dataset:
        raise expected("sweep", sorted(map(str, dataset)), "a dataset with the energy of each run")
    outer = [dim for dim in dataset.energy.dims if dim not in INNER]
    tables = [
        _runs(dataset.isel(dict(zip(outer, position, strict=True))))
        for position in np.ndindex(*(dataset.sizes[dim] for dim in outer))
    ]
    runs = pd.concat(tables, ignore_index=True)
    fields = [name for name in runs.columns if name not in (*QUANTITIES, "seed")]
    if not fields:
        return pd.DataFrame([_row(runs, error)])
    groups = runs.groupby(fields, sort=False, dropna=False)
    rows = [_named(fields, key) | _row(own, error) for key, own in groups]
    return pd.DataFrame(rows)


def _runs(point: xr.Dataset) -> pd.DataFrame:
    """Return the quantities of each run of a point, with the point's fields."""
    energy = point.energy.values.reshape(-1, point.sizes["round"], point.sizes["direction"])
    fields = {
        str(name): coord.values.item()
        for name, coord in point.coords.items()
        if coord.ndim == 0 and name != "rho_level"
    }
    level = int(point.coords["rho_level"])
    measured = [_measure(run, level) for run in energy]
    own = pd.DataFrame(measured, columns=list(QUANTITIES))
    own["seed"] = np.atleast_1d(point["seed"].values)
    for name, value in fields.items():
        if name != "seed":
            own[name] = value
    return own


def _measure(energy: Array, level: int) -> tuple[float, ...]:
    """Return the quantities of a run from its energies (T + 1, r); NaN if it is not finished."""
    made = energy[~np.isnan(energy).all(1)]
    made = made[:, ~np.isnan(made).all(0)] if len(made) else made
    if not len(made):
        return (np.nan,) * len(QUANTITIES)
    total, beyond = made.sum(1), made[:, level:].sum(1)
    rate = float(log_linear_rate(beyond)) if beyond[0] > 0 else np.nan
    left = float(total[-1] / total[0]) if total[0] > 0 else np.nan
    last = made[-1]
    return float(energy_ratio(last, level)), left, float(effective_rank(last)), rate


def _row(runs: pd.DataFrame, error: float) -> dict[str, Any]:
    made = runs[list(QUANTITIES)].to_numpy(dtype=np.float64)
    row: dict[str, Any] = {"runs": int((~np.isnan(made).all(1)).sum())}
    for name, column in zip(QUANTITIES, made.T, strict=True):
        known = column[~np.isnan(column)]
        found = over_survivors(mean_interval)(column[:, None], error)
        row[name] = known.mean() if known.size else np.nan
        ends = np.concatenate([found.low, found.high])
        ends = np.clip(ends, 0.0, 1.0) if name == "rho" else ends  # rho is a share
        row[f"{name}_low"], row[f"{name}_high"] = ends
    return row


def _named(fields: list[str], key: Any) -> dict[str, Any]:
    return dict(zip(fields, key if isinstance(key, tuple) else (key,), strict=True))
